"""Clients and replicas that are slow, stalled or silent, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from tests.e2e.conftest import Fleet
from tests.support.fake_cli import ScriptedModel
from tests.support.rpc import RpcClient
from tests.support.sessions import run_turn, send
from tests.support.wait import eventually

SMALL_FLOW: dict[str, Any] = {"high_water": 16 << 10, "low_water": 4 << 10, "stall_timeout": 0.4}


def narrow(client: RpcClient) -> None:
    """Make the kernel buffer next to nothing for a client that does not read."""
    sock: socket.socket = client.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


async def test_a_client_that_stalls_is_cut_and_slows_nobody(fakes: Fleet) -> None:
    gateway = await fakes.local(flow=SMALL_FLOW)
    stalled, other = await fakes.client(gateway), await fakes.client(gateway)
    narrow(stalled)
    await stalled.request("session.create", fakes.params("stalled"))
    await other.request("session.create", fakes.params("other"))
    stalled.transport.pause_reading()
    stalled.post("session.send", {"sessionId": "stalled", "prompt": "[[size 30000000]] big"})
    started = asyncio.get_running_loop().time()
    for number in range(3):
        assert await run_turn(other, "other", f"turn {number}") == (
            f"echo: turn {number} [user messages: {number + 1}]"
        )
    assert asyncio.get_running_loop().time() - started < 5
    await eventually(lambda: gateway.worker.stats.clients_cut["stalled"] == 1)
    await eventually(lambda: len(gateway.worker.hub.clients) == 1)
    assert await run_turn(other, "other", "after") == "echo: after [user messages: 4]"


async def test_a_slow_reader_gets_everything(fakes: Fleet) -> None:
    gateway = await fakes.local(flow={**SMALL_FLOW, "stall_timeout": 10.0})
    slow = await fakes.client(gateway)
    await slow.request("session.create", fakes.params("s"))
    sending = asyncio.ensure_future(send(slow, "s", "[[size 2000000]] [[chunks 400]] big"))
    for _ in range(30):
        slow.transport.pause_reading()
        await asyncio.sleep(0.005)
        slow.transport.resume_reading()
        await asyncio.sleep(0.005)
    await sending
    await slow.wait_event("s", "session.idle")
    deltas = [e for e in slow.events("s") if e["type"] == "assistant.message_delta"]
    assert sum(len(e["data"]["deltaContent"].encode()) for e in deltas) == 2_000_000
    assert gateway.worker.stats.clients_cut["stalled"] == 0


async def test_memory_for_a_stalled_client_is_bounded(fakes: Fleet) -> None:
    gateway = await fakes.local(flow={**SMALL_FLOW, "stall_timeout": 30.0})
    stalled = await fakes.client(gateway)
    narrow(stalled)
    await stalled.request("session.create", fakes.params("s"))
    (core,) = gateway.worker.hub.clients
    stalled.transport.pause_reading()
    prompt = "[[size 20000000]] [[chunks 2000]] big"
    stalled.post("session.send", {"sessionId": "s", "prompt": prompt})
    await eventually(lambda: core.write_paused)
    link = next(iter(core.links.values()))
    reading = link.sink.is_reading  # type: ignore[union-attr]
    await eventually(lambda: not reading())
    held = core.sink.get_write_buffer_size()  # type: ignore[attr-defined]
    await asyncio.sleep(0.2)
    assert core.sink.get_write_buffer_size() == held  # type: ignore[attr-defined]
    assert held < 4 << 20


async def test_a_silent_replica_holds_up_only_its_own_sessions(fakes: Fleet) -> None:
    gateway = await fakes.local(health={"probe_interval": 60.0})
    client = await fakes.client(gateway)
    homes: dict[str, str] = {}
    number = 0
    while len(homes) < 2:
        await client.request("session.create", fakes.params(f"s{number}"))
        homes[gateway.replica_of(f"s{number}")] = f"s{number}"
        number += 1
    frozen = fakes.fake("cli-0")
    frozen.freeze()
    waiting = client.post("session.getMessages", {"sessionId": homes["cli-0"]})
    assert "echo" in await run_turn(client, homes["cli-1"], "hi")
    assert not waiting.done()
    frozen.unfreeze()
    assert "events" in await waiting


async def test_a_replica_that_does_not_read_stops_its_client_only(fakes: Fleet) -> None:
    gateway = await fakes.local(
        flow={**SMALL_FLOW, "stall_timeout": 30.0}, health={"probe_interval": 60.0}
    )
    pushing, other = await fakes.client(gateway), await fakes.client(gateway)
    await pushing.request("session.create", fakes.params("a"))
    await other.request("session.create", fakes.params("b"))
    frozen = fakes.fake(gateway.replica_of("a"))
    frozen.freeze()
    big = "x" * 500_000
    sends = [pushing.post("session.send", {"sessionId": "a", "prompt": big}) for _ in range(10)]
    await eventually(
        lambda: any(c.sink.is_closing() or not c.sink.is_reading()  # type: ignore[attr-defined]
                    for c in gateway.worker.hub.clients)
    )  # fmt: skip
    await other.request("ping")
    frozen.unfreeze()
    for one in sends:
        assert "messageId" in await one


async def test_a_silent_replica_is_ejected_and_comes_back(fakes: Fleet) -> None:
    gateway = await fakes.local(
        health={"probe_interval": 0.05, "probe_timeout": 0.1, "failures": 2, "ban_base": 0.2}
    )
    client = await fakes.client(gateway)
    await client.request("session.create", fakes.params("s"))
    assert "echo" in await run_turn(client, "s", "one")
    name = gateway.replica_of("s")
    frozen = fakes.fake(name)
    frozen.freeze()
    health = gateway.worker.hub.replicas[name].health
    await eventually(lambda: health.ejections >= 1)
    waiting = asyncio.ensure_future(run_turn(client, "s", "two"))
    frozen.unfreeze()
    assert await waiting == "echo: two [user messages: 2]"


async def test_one_sessions_burst_does_not_starve_another_client(fakes: Fleet) -> None:
    gateway = await fakes.local()
    burst, other = await fakes.client(gateway), await fakes.client(gateway)
    await burst.request("session.create", fakes.params("burst"))
    await other.request("session.create", fakes.params("other"))
    assert isinstance(fakes.model, ScriptedModel)
    await send(burst, "burst", "[[size 5000000]] [[chunks 20000]] go")
    started = asyncio.get_running_loop().time()
    await other.request("ping")
    assert asyncio.get_running_loop().time() - started < 3
    await burst.wait_event("burst", "session.idle", 30)


async def test_a_client_may_leave_while_much_is_on_its_way(fakes: Fleet) -> None:
    gateway = await fakes.local()
    leaving = await fakes.client(gateway)
    await leaving.request("session.create", fakes.params("s"))
    leaving.post("session.send", {"sessionId": "s", "prompt": "[[size 5000000]] [[chunks 5000]] x"})
    await leaving.wait_event("s", "assistant.message_delta")
    leaving.abort()
    await eventually(lambda: not gateway.worker.hub.clients)
    assert all(replica.reachable for replica in gateway.worker.hub.replicas.values())
