"""Free routing over sockets: sessions go where there is room, stay while live, leave drains."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.testing.model_server import ModelServer
from tests.e2e.conftest import Fleet, MakeFleet
from tests.e2e.test_failover import FREE, final_answers_in, history, prompts_in
from tests.support.gateway import GatewayProcess, LocalGateway
from tests.support.rpc import RpcClient
from tests.support.sessions import (
    FAKE_MODEL_URL,
    event_types,
    last_answer,
    run_turn,
    send,
    session_params,
)
from tests.support.stack import cli_environment, fake_cli_executable, real_cli
from tests.support.wait import eventually

AUTO: dict[str, Any] = {
    "routing": {"mode": "auto"},
    "storage": {"mode": "auto"},
    "health": FREE["health"],
}


async def spread(fleet: Fleet, client: RpcClient, count: int) -> list[str]:
    """Create sessions that have each had a turn."""
    ids = [f"s{number}" for number in range(count)]
    for session_id in ids:
        await client.request("session.create", fleet.params(session_id))
        await run_turn(client, session_id, "one")
    return ids


def homes(gateway: LocalGateway, ids: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for session_id in ids:
        name = gateway.replica_of(session_id)
        counts[name] = counts.get(name, 0) + 1
    return counts


async def test_sessions_spread_evenly(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 2, shared=True)
    gateway = await fleet.local(**FREE)
    ids = await spread(fleet, await fleet.client(gateway), 8)
    assert homes(gateway, ids) == {"cli-0": 4, "cli-1": 4}


async def test_a_drained_replica_empties_itself(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 2, shared=True)
    gateway = await fleet.local(**FREE)
    client = await fleet.client(gateway)
    ids = await spread(fleet, client, 6)
    heard = {session_id: len(client.events(session_id)) for session_id in ids}
    (busy,) = [one for one in ids if gateway.replica_of(one) == "cli-0"][:1]
    await send(client, busy, "[[gate g]] long")
    await fleet.model.waiting("g")
    await gateway.worker.drain_replica("cli-0", True)
    await eventually(lambda: homes(gateway, ids) == {"cli-0": 1, "cli-1": 5})
    await fleet.model.release("g")
    await client.wait_event(busy, "session.idle")
    assert last_answer(client, busy) == "echo: long [user messages: 2]"
    await eventually(lambda: homes(gateway, ids) == {"cli-1": 6})
    assert fleet.fake("cli-0").sessions == {}
    for session_id in ids:
        expected = 3 if session_id == busy else 2
        assert await run_turn(client, session_id, "two") == f"echo: two [user messages: {expected}]"
        new = event_types(client, session_id)[heard[session_id] :]
        assert not {"session.error", "session.resume", "session.shutdown"} & set(new)
    await gateway.worker.drain_replica("cli-0", False)
    await client.request("session.create", fleet.params("new"))
    assert gateway.replica_of("new") == "cli-0"


async def test_prompts_sent_during_the_drain_are_all_answered(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 2, shared=True)
    gateway = await fleet.local(**FREE)
    client = await fleet.client(gateway)
    ids = await spread(fleet, client, 6)
    draining = False

    async def converse(session_id: str) -> int:
        turns = 1
        while not (draining and gateway.replica_of(session_id) == "cli-1") or turns < 12:
            turns += 1
            answer = await run_turn(client, session_id, f"[[delay 0.01]] n{turns}")
            assert answer == f"echo: n{turns} [user messages: {turns}]"
        return turns

    running = [asyncio.create_task(converse(one)) for one in ids]
    await asyncio.sleep(0.05)
    await gateway.worker.drain_replica("cli-0", True)
    draining = True
    async with asyncio.timeout(30):
        turns = await asyncio.gather(*running)
    for session_id, count in zip(ids, turns, strict=True):
        assert len(prompts_in(await history(client, session_id))) == count


async def test_shared_storage_is_found_out(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 2, shared=True)
    gateway = await fleet.local(**AUTO)
    assert not gateway.worker.hub.placer.free
    client = await fleet.client(gateway)
    await spread(fleet, client, 1)
    await eventually(lambda: gateway.worker.hub.placer.free)
    await fleet.fake(gateway.replica_of("s0")).kill()
    assert await run_turn(client, "s0", "two") == "echo: two [user messages: 2]"


async def test_a_wrong_declaration_is_found_out(make_fleet: MakeFleet) -> None:
    """Before a session is moved to where nothing is known of it."""
    fleet = await make_fleet("fake", 2)
    sections = {**AUTO, "storage": {"mode": "shared"}}
    gateway = await fleet.local(**sections)
    assert gateway.worker.hub.placer.free
    client = await fleet.client(gateway)
    await spread(fleet, client, 1)
    await eventually(lambda: not gateway.worker.hub.placer.free)
    cli = fleet.fake(gateway.replica_of("s0"))
    await cli.kill()
    running = asyncio.ensure_future(run_turn(client, "s0", "two"))
    await cli.start()
    assert await running == "echo: two [user messages: 2]"
    assert gateway.replica_of("s0") == cli.name


# A rolling restart


@pytest.mark.parametrize(
    ("kind", "storage"),
    [
        ("fake", "shared"),
        ("fake", "local"),
        pytest.param("real", "shared", marks=pytest.mark.real),
    ],
)
async def test_a_rolling_restart_under_load(kind: str, storage: str, tmp_path: Path) -> None:
    """Both CLIs are replaced while conversations go on; nobody sees an error.

    With shared storage sessions leave before; otherwise turns that do not end in time are cut and
    carried on afterwards.
    """
    async with ModelServer() as model:
        url = model.base_url if kind == "real" else FAKE_MODEL_URL
        binary = real_cli() if kind == "real" else fake_cli_executable(tmp_path)
        env = cli_environment(tmp_path, url)
        del env["COPILOT_HOME"]
        env["COPILOT_GATEWAY_SPAWN_BINARY"] = str(binary)
        env["COPILOT_GATEWAY_DRAIN_TIMEOUT"] = "1"
        args = ("--spawn", "2", "--storage", storage)
        gateway = GatewayProcess(tmp_path / "state", *args, env=env, admin=True)
        async with gateway:
            await gateway.until_up(2)
            await roll(gateway, url)


async def replicas(gateway: GatewayProcess) -> list[dict[str, Any]]:
    status, body = await gateway.admin("/replicas")
    assert status == 200, body
    found: list[dict[str, Any]] = json.loads(body)["replicas"]
    return found


async def roll(gateway: GatewayProcess, url: str) -> None:
    stopped = False
    async with await gateway.connect() as client:
        pids = {one["name"]: one["pid"] for one in await replicas(gateway)}

        async def converse(session_id: str) -> int:
            await client.request("session.create", session_params(session_id, model_url=url), 60)
            turns = 0
            while not stopped:
                turns += 1
                answer = await run_turn(client, session_id, f"[[delay 0.05]] n{turns}")
                assert answer == f"echo: n{turns} [user messages: {turns}]"
            return turns

        running = {one: asyncio.create_task(converse(one)) for one in ("a", "b", "c", "d")}
        for name in pids:
            status, body = await gateway.admin(f"/replicas/{name}/recycle", "POST")
            assert status < 300, body

        async def replaced() -> bool:
            for task in running.values():
                assert not task.done() or task.result() is None  # raises what it ended with
            now = await replicas(gateway)
            return all(one["pid"] not in pids.values() and one["state"] == "up" for one in now)

        await eventually(replaced, 60)
        stopped = True
        for session_id, task in running.items():
            turns = await task
            events = await history(client, session_id)
            prompts = [text.split()[-1] for text in prompts_in(events)]
            assert prompts == [f"n{number + 1}" for number in range(turns)]
            assert len(final_answers_in(events)) == turns
            assert "session.error" not in event_types(client, session_id)
