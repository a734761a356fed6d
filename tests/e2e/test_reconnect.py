"""A client is lost while its turn runs, and finds the turn where it is when it comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.e2e.conftest import Fleet, MakeFleet
from tests.e2e.test_failover import FREE, final_answers_in, history, prompts_in
from tests.support.gateway import GatewayProcess, LocalGateway
from tests.support.rpc import RpcClient
from tests.support.sessions import answer_tool, decide_permission, last_answer, run_turn, send, tool
from tests.support.wait import eventually

KINDS = ["fake", pytest.param("real", marks=pytest.mark.real)]
TWO = [False, True]
"""Whether the client comes back to another gateway."""

STREAM = "[[gate-mid g]] [[chunks 4]] hello"
CALL = '[[tool mine {"x":1}]] go'

ROUNDS = 5
"""Tries at a moment that lasts some milliseconds."""

Gateway = LocalGateway | GatewayProcess


def params(fleet: Fleet) -> dict[str, Any]:
    return fleet.params("s", tools=[tool("mine")], requestPermission=True)


async def gateways(fleet: Fleet, *, two: bool) -> tuple[LocalGateway, LocalGateway]:
    """Return where the client is, and where it comes back to."""
    registry = f"sqlite:///{fleet.folder / 'registry.db'}"
    first = await fleet.local(registry=registry, **FREE)
    return first, (await fleet.local(registry=registry, **FREE)) if two else first


async def leaves(
    fleet: Fleet, gateway: Gateway, prompt: str, until: str, *, stays: Gateway | None = None
) -> None:
    """Have a client begin a turn and drop its connection at a point of it.

    Another client stays attached through ``stays``.
    """
    client = await fleet.client(gateway)
    await client.request("session.create", params(fleet))
    await run_turn(client, "s", "one")
    if stays is not None:
        guest = await fleet.client(stays)
        await guest.request("session.resume", fleet.params("s"), 60)
    await send(client, "s", prompt)
    event = await client.wait_event("s", "permission.requested" if prompt == CALL else until)
    if until == "external_tool.requested":
        await decide_permission(client, "s", event["data"]["requestId"])
        await client.wait_event("s", until)
    client.abort()
    await client.close()


async def comes_back(fleet: Fleet, gateway: Gateway) -> RpcClient:
    client = await fleet.client(gateway)
    await client.request("session.resume", params(fleet), 60)
    return client


async def ended_well(client: RpcClient, answer: str, prompt: str) -> None:
    await client.wait_event("s", "session.idle", 60)
    assert last_answer(client, "s") == answer
    events = await history(client, "s")
    assert prompts_in(events) == ["one", prompt]
    assert len(final_answers_in(events)) == 2
    assert await run_turn(client, "s", "next") == "echo: next [user messages: 3]"


async def finish_call(client: RpcClient, *, permission: bool, session_id: str = "s") -> None:
    if permission:
        asked = await client.wait_event(session_id, "permission.requested")
        assert await decide_permission(client, session_id, asked["data"]["requestId"])
    call = await client.wait_event(session_id, "external_tool.requested")
    assert await answer_tool(client, session_id, call["data"]["requestId"], "done")


@pytest.mark.parametrize("two", TWO)
@pytest.mark.parametrize("kind", KINDS)
async def test_to_a_stream(make_fleet: MakeFleet, kind: str, two: bool) -> None:
    fleet = await make_fleet(kind, 2, shared=True)
    first, second = await gateways(fleet, two=two)
    await leaves(fleet, first, STREAM, "assistant.message_delta")
    client = await comes_back(fleet, second)
    await fleet.model.release("g")
    await ended_well(client, "echo: hello [user messages: 2]", STREAM)
    assert fleet.model.served == 3, "the model's call was not cut"


@pytest.mark.parametrize("point", ["permission.requested", "external_tool.requested"])
@pytest.mark.parametrize("two", TWO)
@pytest.mark.parametrize("kind", KINDS)
async def test_to_what_is_pending(make_fleet: MakeFleet, kind: str, two: bool, point: str) -> None:
    """It is told what waits for it, its tools do not clash with its own of before."""
    fleet = await make_fleet(kind, 2, shared=True)
    first, second = await gateways(fleet, two=two)
    await leaves(fleet, first, CALL, point)
    client = await comes_back(fleet, second)
    await finish_call(client, permission=point == "permission.requested")
    await ended_well(client, "echo: go [user messages: 2] [mine returned: done]", CALL)


@pytest.mark.parametrize("point", ["permission.requested", "external_tool.requested"])
@pytest.mark.parametrize("two", TWO)
@pytest.mark.parametrize("kind", KINDS)
async def test_to_what_is_pending_where_another_client_stayed(
    make_fleet: MakeFleet, kind: str, two: bool, point: str
) -> None:
    """The session stayed live for the other one, who cannot answer what only this one can."""
    fleet = await make_fleet(kind, 2, shared=True)
    first, second = await gateways(fleet, two=two)
    await leaves(fleet, first, CALL, point, stays=second)
    client = await comes_back(fleet, first)
    await finish_call(client, permission=point == "permission.requested")
    await ended_well(client, "echo: go [user messages: 2] [mine returned: done]", CALL)
    calls = [one for one in client.events("s") if one["type"] == "external_tool.requested"]
    assert len(calls) == 1, "told once, so that the tool runs once"


@pytest.mark.parametrize("after", ["a prompt", "a result"])
@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("two", TWO)
@pytest.mark.parametrize("kind", KINDS)
async def test_while_its_tools_are_being_looked_for(
    make_fleet: MakeFleet, kind: str, two: bool, stays: bool, after: str
) -> None:
    """A CLI looks which tools there are before it asks the model, which takes some milliseconds.

    Where a connection and its tools leave just then, the model calls what does not exist.
    """
    fleet = await make_fleet(kind, 1, shared=True)
    first, second = await gateways(fleet, two=two)
    again = await fleet.client(second)
    await again.request("session.create", fleet.params("other"))  # so that it is back at once
    guest = await fleet.client(second)
    (hub,) = first.worker.hubs
    for name in map("s-{}".format, range(ROUNDS)):
        own = {**params(fleet), "sessionId": name}
        client = await fleet.client(first)
        await client.request("session.create", own)
        await run_turn(client, name, "one")
        if stays:
            await guest.request("session.resume", fleet.params(name), 60)
        sent = client.post("session.send", {"sessionId": name, "prompt": f"{CALL} {CALL}"})
        if after == "a prompt":
            await eventually(lambda name=name: bool(hub.sessions[name].turn.prompts))  # type: ignore[misc]
        else:
            await sent
            await finish_call(client, permission=True, session_id=name)
        client.abort()
        await again.request("session.resume", own, 60)
        for _ in range(2 if after == "a prompt" else 1):
            await finish_call(again, permission=True, session_id=name)
        await again.wait_event(name, "session.idle", 60)
        assert last_answer(again, name).count("[mine returned: done]") == 2
        await client.close()


async def test_after_the_turn_has_ended_without_it(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 2, shared=True)
    gateway, _ = await gateways(fleet, two=False)
    await leaves(fleet, gateway, STREAM, "assistant.message_delta")
    await fleet.model.release("g")
    await eventually(lambda: not any(fleet.fake(cli.name).sessions for cli in fleet.clis))
    client = await comes_back(fleet, gateway)
    events = await history(client, "s")
    assert final_answers_in(events)[-1] == "echo: hello [user messages: 2]"
    assert await run_turn(client, "s", "next") == "echo: next [user messages: 3]"


async def test_its_replica_dies_while_it_is_away(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 2, shared=True)
    gateway, _ = await gateways(fleet, two=False)
    await leaves(fleet, gateway, STREAM, "assistant.message_delta")
    (cli,) = [one for one in fleet.clis if fleet.fake(one.name).sessions]
    fleet.fake(cli.name).sessions["s"].flush()
    await cli.kill()
    client = await comes_back(fleet, gateway)
    await fleet.model.release("g")
    await ended_well(client, "echo: hello [user messages: 2]", STREAM)


async def test_two_clients_come_back_to_two_gateways(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 2, shared=True)
    first, second = await gateways(fleet, two=True)
    await leaves(fleet, first, STREAM, "assistant.message_delta")
    clients = [await fleet.client(first), await fleet.client(second)]
    await asyncio.gather(*(one.request("session.resume", fleet.params("s"), 60) for one in clients))
    await fleet.model.release("g")
    for one in clients:
        await one.wait_event("s", "session.idle")
    assert len(final_answers_in(await history(clients[0], "s"))) == 2
    assert sum("s" in fleet.fake(cli.name).sessions for cli in fleet.clis) == 1


# The gateway dies


@pytest.mark.parametrize("point", ["assistant.message_delta", "permission.requested"])
@pytest.mark.parametrize("kind", KINDS)
async def test_its_gateway_is_killed(make_fleet: MakeFleet, kind: str, point: str) -> None:
    """The CLI ends the turn with its last connection; the next gateway takes it up."""
    fleet = await make_fleet(kind, 2, shared=True)
    args = ("--routing", "free")
    first = GatewayProcess(fleet.folder / "state", *args, replicas=fleet.clis)
    second = GatewayProcess(fleet.folder / "state", *args, replicas=fleet.clis)
    await first.start()
    try:
        await second.start()
        prompt = STREAM if point == "assistant.message_delta" else CALL
        client = await fleet.client(first)
        await client.request("session.create", params(fleet))
        await run_turn(client, "s", "one")
        await send(client, "s", prompt)
        await client.wait_event("s", point)
        # Only the disk will know; a save misses what is a few milliseconds old.
        await asyncio.sleep(0.05)
        await client.request("sessions.save", {"sessionId": "s"})
        await first.kill()
        await client.wait_ended()
        again = await comes_back(fleet, second)
        await fleet.model.release("g")
        if prompt == CALL:
            await finish_call(again, permission=True)
            await ended_well(again, "echo: go [user messages: 2] [mine returned: done]", CALL)
        else:
            await ended_well(again, "echo: hello [user messages: 2]", STREAM)
        await again.close()
    finally:
        await first.stop()
        await second.stop()
