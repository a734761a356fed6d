"""A replica is lost at every point of a turn: the turn is finished, as if nothing had happened."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self

import pytest
from copilot import CopilotClient, RuntimeConnection
from copilot.session import PermissionDecisionApproveOnce
from copilot.tools import define_tool
from pydantic import BaseModel

from gateway.testing.model_server import DEFAULT_MODEL, ModelServer
from tests.e2e.conftest import Fleet, MakeFleet
from tests.support.fake_cli import FakeCli
from tests.support.gateway import ADMIN_TOKEN, LocalGateway
from tests.support.rpc import Message, RpcClient, RpcFault
from tests.support.sessions import (
    answer_tool,
    decide_permission,
    last_answer,
    run_turn,
    send,
    tool,
)
from tests.support.stack import RealCli
from tests.support.wait import eventually

Cli = FakeCli | RealCli

FREE: dict[str, Any] = {
    "routing": {"mode": "free"},
    "health": {"probe_interval": 0.1, "probe_timeout": 0.5, "failures": 2, "ban_base": 0.2},
}
"""Settings of gateways in front of shared storage that notice quickly what hangs."""

MINE = '[[tool mine {"x":1}]] go'

POINTS: dict[str, tuple[str, str]] = {
    "acknowledged": ("[[delay 0.3]] hello", "hello"),
    "model": ("[[gate {}]] hello", "hello"),
    "streaming": ("[[gate-mid {}]] [[chunks 4]] hello", "hello"),
    "permission": (MINE, "go"),
    "tool": (MINE, "go"),
    "input": ('[[tool ask_user {"question":"color?"}]] go', "go"),
    "hook": (MINE, "go"),
}
"""Points of a turn: the prompt that leads there, with room for a gate's name, and its text."""

WITH_PENDING = ("permission", "tool", "input", "hook")


class Numbers(BaseModel):
    x: int


class Application:
    """What an SDK's user code does for a session: it decides, runs tools, answers hooks.

    Args:
        client: its connection.
        session_id: the session.
        holds: what it does not answer until :attr:`go` is set.

    Attributes:
        reached: what it holds has come.
        calls: how often its tool ran.
    """

    def __init__(self, client: RpcClient, session_id: str, holds: str = "") -> None:
        self._client = client
        self._session_id = session_id
        self._holds = holds
        self._tasks: list[asyncio.Task[None]] = []
        self.reached = asyncio.Event()
        self.go = asyncio.Event()
        self.calls = 0

    async def __aenter__(self) -> Self:
        work = (self._permissions(), self._tools(), self._questions())
        self._tasks = [asyncio.create_task(one) for one in work]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _may_answer(self, what: str) -> None:
        if what == self._holds:
            self.reached.set()
            await self.go.wait()

    async def _events(self, kind: str) -> str:
        event = await self._client.wait_event(self._session_id, kind, 120)
        request_id: str = event["data"]["requestId"]
        return request_id

    async def _permissions(self) -> None:
        while True:
            request_id = await self._events("permission.requested")
            await self._may_answer("permission")
            await decide_permission(self._client, self._session_id, request_id)

    async def _tools(self) -> None:
        while True:
            request_id = await self._events("external_tool.requested")
            await self._may_answer("tool")
            self.calls += 1
            await answer_tool(self._client, self._session_id, request_id, "done")

    async def _questions(self) -> None:
        while True:
            asked = await self._client.requests.wait_for(lambda _: True, 120)
            if asked["method"] == "userInput.request":
                await self._may_answer("input")
                self._client.reply(asked, {"answer": "blue", "wasFreeform": True})
            else:
                if asked["params"].get("hookType") == "preToolUse":
                    await self._may_answer("hook")
                self._client.reply(asked, {"output": None})


def params(fleet: Fleet, session_id: str, point: str) -> Message:
    return fleet.params(
        session_id,
        tools=[tool("mine")],
        requestPermission=True,
        requestUserInput=point == "input",
        hooks=point == "hook",
    )


async def history(client: RpcClient, session_id: str) -> list[Message]:
    answer = await client.request("session.getMessages", {"sessionId": session_id}, 60)
    events: list[Message] = answer["events"]
    return events


def prompts_in(events: list[Message]) -> list[str]:
    return [one["data"]["content"] for one in events if one["type"] == "user.message"]


def final_answers_in(events: list[Message]) -> list[str]:
    return [
        one["data"]["content"]
        for one in events
        if one["type"] == "assistant.message" and not one["data"].get("toolRequests")
    ]


async def kill(cli: Cli) -> None:
    await cli.kill()


async def restart(cli: Cli) -> None:
    await cli.kill()
    await cli.start()


async def freeze(cli: Cli) -> None:
    cli.freeze()


async def cut_off(cli: Cli) -> None:
    assert isinstance(cli, FakeCli)
    for connection in list(cli.connections):
        connection.reset()


async def lose_at(
    fleet: Fleet,
    gateway: LocalGateway,
    session_id: str,
    point: str,
    fault: Callable[[Cli], Awaitable[None]],
    *,
    flushed: bool = True,
) -> Cli:
    """Run a turn that loses its replica at a point; check how it ends; return the replica."""
    client = await fleet.client(gateway)
    await client.request("session.create", params(fleet, session_id, point))
    script, text = POINTS[point]
    script = script.replace("{}", session_id)
    async with Application(client, session_id, point) as application:
        assert await run_turn(client, session_id, "one") == "echo: one [user messages: 1]"
        await client.request("sessions.save", {"sessionId": session_id})
        message_id = await send(client, session_id, script)
        if point == "model":
            await fleet.model.waiting(session_id)
        elif point == "streaming":
            await client.wait_event(session_id, "assistant.message_delta")
        elif point in WITH_PENDING:
            await application.reached.wait()
        if point in WITH_PENDING and flushed:
            await client.request("sessions.save", {"sessionId": session_id})
        cli = fleet.cli(gateway.replica_of(session_id))
        await fault(cli)
        await fleet.model.release(session_id)
        application.go.set()
        await client.wait_event(session_id, "session.idle", 60)
        assert last_answer(client, session_id).startswith(f"echo: {text} [user messages: 2]")
        heard = client.events(session_id)
        assert [e["type"] for e in heard if e["type"] in ("session.error", "session.resume")] == []
        told = [e["data"]["messageId"] for e in heard if e["type"] == "user.message"]
        assert told[-1] == message_id
        events = await history(client, session_id)
        assert prompts_in(events) == ["one", script]
        assert len(final_answers_in(events)) == 2
        assert not client.ended.is_set()
        assert await run_turn(client, session_id, "next") == "echo: next [user messages: 3]"
    if point in ("permission", "tool") and flushed:
        assert application.calls == 1
    return cli


# Shared storage: the turn is finished on another replica


@pytest.mark.parametrize("fault", [kill, cut_off])
@pytest.mark.parametrize("point", POINTS)
async def test_lost_at(
    make_fleet: MakeFleet, point: str, fault: Callable[[Cli], Awaitable[None]]
) -> None:
    fleet = await make_fleet("fake", 2, shared=True)
    await lose_at(fleet, await fleet.local(**FREE), "s", point, fault)


@pytest.mark.parametrize("point", ["permission", "tool"])
async def test_killed_before_the_journal_knew(make_fleet: MakeFleet, point: str) -> None:
    """What was pending is lost with it: the model is asked again, and asks again."""
    fleet = await make_fleet("fake", 2, shared=True)
    await lose_at(fleet, await fleet.local(**FREE), "s", point, kill, flushed=False)


@pytest.mark.parametrize("point", ["permission", "tool"])
async def test_hung_at(make_fleet: MakeFleet, point: str) -> None:
    """It accepts connections and answers nothing: probes eject it."""
    fleet = await make_fleet("fake", 2, shared=True)
    await lose_at(fleet, await fleet.local(**FREE), "s", point, freeze)


async def test_the_first_prompt_of_a_session_is_lost_with_it(make_fleet: MakeFleet) -> None:
    """Nothing of the session is on any disk: it is made anew, and the prompt sent again."""
    fleet = await make_fleet("fake", 2, shared=True)
    gateway = await fleet.local(**FREE)
    client = await fleet.client(gateway)
    await client.request("session.create", fleet.params("s"))
    message_id = await send(client, "s", "[[gate g]] first")
    await fleet.fake(gateway.replica_of("s")).kill()
    await fleet.model.release("g")
    await client.wait_event("s", "session.idle")
    assert last_answer(client, "s") == "echo: first [user messages: 1]"
    told = [e["data"]["messageId"] for e in client.events("s") if e["type"] == "user.message"]
    assert told[-1] == message_id
    assert prompts_in(await history(client, "s")) == ["[[gate g]] first"]


async def test_a_queue_of_prompts_is_worked_off(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 2, shared=True)
    gateway = await fleet.local(**FREE)
    client = await fleet.client(gateway)
    await client.request("session.create", fleet.params("s"))
    await run_turn(client, "s", "one")
    await send(client, "s", "[[gate g]] two")
    await fleet.model.waiting("g")
    for prompt in ("three", "four"):
        await send(client, "s", prompt)
    await client.request("sessions.save", {"sessionId": "s"})
    await fleet.fake(gateway.replica_of("s")).kill()
    await fleet.model.release("g")
    await client.wait_event("s", "session.idle")
    events = await history(client, "s")
    assert prompts_in(events) == ["one", "[[gate g]] two", "three", "four"]
    assert [text.split()[1] for text in final_answers_in(events)] == ["one", "two", "three", "four"]


async def test_both_replicas_die_one_after_the_other(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 2, shared=True)
    gateway = await fleet.local(**FREE)
    client = await fleet.client(gateway)
    await client.request("session.create", fleet.params("s"))
    await run_turn(client, "s", "one")
    await send(client, "s", "[[gate g]] two")
    for arrivals in (1, 2):
        await fleet.model.waiting("g", arrivals)
        await fleet.fake(gateway.replica_of("s")).kill()
    for cli in fleet.clis:
        await cli.start()
    await fleet.model.release("g")
    await client.wait_event("s", "session.idle")
    assert last_answer(client, "s") == "echo: two [user messages: 2]"
    assert prompts_in(await history(client, "s")) == ["one", "[[gate g]] two"]


async def test_a_turn_with_two_clients_is_answered_once(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 2, shared=True)
    gateway = await fleet.local(**FREE)
    clients = [await fleet.client(gateway) for _ in "ab"]
    await clients[0].request("session.create", fleet.params("s"))
    await clients[1].request("session.resume", {"sessionId": "s"})
    await run_turn(clients[0], "s", "one")
    await clients[1].wait_event("s", "session.idle")
    await send(clients[0], "s", "[[gate g]] two")
    await fleet.model.waiting("g")
    await clients[0].request("sessions.save", {"sessionId": "s"})
    await fleet.fake(gateway.replica_of("s")).kill()
    await fleet.model.release("g")
    for client in clients:
        await client.wait_event("s", "session.idle")
        assert last_answer(client, "s") == "echo: two [user messages: 2]"
    assert len(final_answers_in(await history(clients[0], "s"))) == 2


async def test_many_sessions_at_once(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 3, shared=True)
    gateway = await fleet.local(**FREE)
    clients = [await fleet.client(gateway) for _ in range(5)]
    sessions = {f"s{number}": clients[number % 5] for number in range(30)}
    for session_id, client in sessions.items():
        await client.request("session.create", fleet.params(session_id))
    await asyncio.gather(*(run_turn(c, s, f"{s} one") for s, c in sessions.items()))
    await asyncio.gather(*(send(c, s, f"[[gate g]] {s} two") for s, c in sessions.items()))
    await fleet.fake("cli-0").kill()
    await fleet.model.release("g")
    await asyncio.gather(*(c.wait_event(s, "session.idle") for s, c in sessions.items()))
    for session_id, client in sessions.items():
        assert last_answer(client, session_id) == f"echo: {session_id} two [user messages: 2]"
        assert len(prompts_in(await history(client, session_id))) == 2


# Disks of their own: it is finished on the same replica, once that is back


@pytest.mark.parametrize("point", ["acknowledged", "model", "streaming", "permission", "tool"])
async def test_restarted_at(make_fleet: MakeFleet, point: str) -> None:
    fleet = await make_fleet("fake", 2)
    await lose_at(fleet, await fleet.local(), "s", point, restart)


# What the operator decides


async def test_recovery_switched_off(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 2, shared=True)
    gateway = await fleet.local(**FREE, sessions={"turn_recovery": "fail"})
    client = await fleet.client(gateway)
    await client.request("session.create", fleet.params("s"))
    await run_turn(client, "s", "one")
    await send(client, "s", "[[gate g]] two")
    await fleet.model.waiting("g")
    await fleet.fake(gateway.replica_of("s")).kill()
    await client.wait_event("s", "session.error")
    await client.wait_event("s", "session.idle")
    await fleet.model.release("g")
    assert "next" in await run_turn(client, "s", "next")


async def test_a_durable_send_survives_without_the_gateways_memory(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 2, shared=True)
    gateway = await fleet.local(**FREE, sessions={"durable": True})
    for cli in fleet.clis:
        fleet.fake(cli.name).journal_delay = 60.0
    client = await fleet.client(gateway)
    await client.request("session.create", fleet.params("s"))
    await send(client, "s", "[[gate g]] precious")
    await fleet.fake(gateway.replica_of("s")).kill()
    # With both gone, only the disk can tell.
    await client.close()
    other = await fleet.client(gateway)

    async def stored() -> list[str]:
        try:
            await other.request("session.resume", fleet.params("s"))
        except RpcFault:
            return []
        return prompts_in(await history(other, "s"))

    assert await stored() == ["[[gate g]] precious"]
    await fleet.model.release("g")


# Real CLIs, and the Python SDK


@pytest.mark.real
async def test_real_replicas_are_killed_at_every_point(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("real", 2, shared=True)
    gateway = await fleet.local(**FREE)
    for point in ("model", "streaming", "permission", "tool", "hook", "input"):
        cli = await lose_at(fleet, gateway, f"at-{point}", point, kill)
        await cli.start()


@pytest.mark.real
async def test_a_real_replica_is_stopped(make_fleet: MakeFleet) -> None:
    """SIGSTOP while it streams; woken up again it finds itself alone and writes no answer."""
    fleet = await make_fleet("real", 2, shared=True)
    gateway = await fleet.local(**FREE)
    cli = await lose_at(fleet, gateway, "s", "streaming", freeze)
    assert isinstance(cli, RealCli)
    cli.unfreeze()
    hub = gateway.worker.hub
    await eventually(lambda: hub.replicas[cli.name].reachable)
    client = await fleet.client(gateway)
    await client.request("session.resume", fleet.params("s"))
    events = await history(client, "s")
    assert len(prompts_in(events)) == len(final_answers_in(events)) == 3


@pytest.mark.real
@pytest.mark.parametrize("point", ["acknowledged", "streaming", "permission", "tool"])
async def test_the_python_sdk_gets_its_answer(make_fleet: MakeFleet, point: str) -> None:
    fleet = await make_fleet("real", 2, shared=True)
    gateway = await fleet.local(**FREE)
    assert isinstance(fleet.model, ModelServer)
    reached, go = asyncio.Event(), asyncio.Event()

    async def may_go(what: str) -> None:
        if what == point:
            reached.set()
            await go.wait()

    async def decide(request: Any, invocation: Any) -> Any:
        await may_go("permission")
        return PermissionDecisionApproveOnce()

    @define_tool(description="a tool")
    async def mine(numbers: Numbers) -> str:
        await may_go("tool")
        return f"got {numbers.x}"

    def hear(event: Any) -> None:
        if point == "streaming" and event.type.value == "assistant.message_delta":
            reached.set()

    connection = RuntimeConnection.for_uri(
        f"{gateway.host}:{gateway.port}", connection_token=ADMIN_TOKEN
    )
    sdk = CopilotClient(connection=connection)
    await sdk.start()
    try:
        session = await sdk.create_session(
            on_permission_request=decide,
            tools=[mine],
            model=DEFAULT_MODEL,
            streaming=True,
            provider={"type": "openai", "base_url": fleet.model.base_url, "api_key": "none"},
        )
        await session.send_and_wait("one", timeout=60)
        session.on(hear)
        script = POINTS[point][0].replace("{}", "g")
        asked = asyncio.ensure_future(session.send_and_wait(script, timeout=60))
        if point == "acknowledged":
            await eventually(lambda: gateway.worker.hub.sessions[session.session_id].turn.busy)
        else:
            await reached.wait()
        await fleet.cli(gateway.replica_of(session.session_id)).kill()
        await fleet.model.release("g")
        go.set()
        answer: Any = await asked
        text = POINTS[point][1]
        assert answer.data.content.startswith(f"echo: {text} [user messages: 2]")
        events: list[Any] = await session.get_events()
        prompts = [one.data.content for one in events if one.type.value == "user.message"]
        assert prompts == ["one", script]
    finally:
        await sdk.stop()
