"""A worker: what its main process asks of it, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway import errors
from gateway.app.worker import WorkerControl
from gateway.config.settings import LimitsSettings
from tests.support.fake_cli import FakeCli
from tests.support.gateway import LocalGateway, remove_tokens, spec_of
from tests.support.rpc import RpcFault
from tests.support.sessions import run_turn, send, session_params
from tests.support.wait import eventually


@pytest.fixture
async def gateway(fake_cli: FakeCli, tmp_path: Path) -> AsyncIterator[LocalGateway]:
    """A worker in front of one fake CLI."""
    async with LocalGateway(tmp_path, fake_cli) as gateway:
        yield gateway


@pytest.fixture
def control(gateway: LocalGateway) -> WorkerControl:
    """The worker as its main process sees it."""
    return WorkerControl(gateway.worker)


async def test_readiness(gateway: LocalGateway, control: WorkerControl, fake_cli: FakeCli) -> None:
    ready = await control.readiness()
    assert (ready.accepting, ready.draining, ready.replicas_up, ready.replicas) == (
        True, False, 1, 1,
    )  # fmt: skip
    await fake_cli.kill()
    await eventually(lambda: not gateway.worker.hub.replicas["cli-0"].reachable)
    assert (await control.readiness()).replicas_up == 0
    await control.drain(0)
    ready = await control.readiness()
    assert (ready.accepting, ready.draining) == (False, True)


async def test_replicas_as_seen(gateway: LocalGateway, control: WorkerControl) -> None:
    async with await gateway.connect() as client:
        await client.request("session.create", session_params("s"))
        (info,) = await control.replicas()
        assert (info.name, info.state, info.version) == ("cli-0", "up", "1.0.102")
        assert (info.links, info.sessions, info.drained) == (2, 1, False)
    await control.note_restarts({"cli-0": 4, "unknown": 9})
    (info,) = await control.replicas()
    assert info.restarts == 4


async def test_sessions_as_seen(gateway: LocalGateway, control: WorkerControl) -> None:
    token = gateway.add_token("acme", "alice")
    async with await gateway.connect() as admin, await gateway.connect(token) as alice:
        await admin.request("session.create", session_params("a"))
        await alice.request("session.create", session_params("b"))
        found = await control.sessions(None, None, None)
        assert [(s.session, s.tenant, s.live, s.busy) for s in sorted(found, key=str)] == [
            ("a", "default", True, False),
            ("b", "acme", True, False),
        ]
        assert [s.session for s in await control.sessions(None, "acme", None)] == ["b"]
        assert [s.session for s in await control.sessions("a", None, "cli-0")] == ["b"]
        assert await control.sessions(None, None, "cli-9") == []


async def test_a_drained_replica_gets_nothing_new(
    gateway: LocalGateway, control: WorkerControl
) -> None:
    await control.drain_replica("cli-0", True)
    await control.drain_replica("unknown", True)
    (info,) = await control.replicas()
    assert (info.state, info.drained) == ("draining", True)
    await control.drain_replica("cli-0", False)
    (info,) = await control.replicas()
    assert info.state == "up"


async def test_draining_ends_the_idle_at_once_and_the_busy_when_they_are_done(
    gateway: LocalGateway, fake_cli: FakeCli
) -> None:
    idle, busy = await gateway.connect(), await gateway.connect()
    await busy.request("session.create", session_params("s"))
    await send(busy, "s", "[[gate g]] hello")
    await fake_cli.model.waiting("g")
    draining = asyncio.ensure_future(gateway.worker.drain(30))
    await idle.wait_ended()
    assert not draining.done()
    await fake_cli.model.release("g")
    await busy.wait_event("s", "session.idle")
    await busy.wait_ended()
    await draining
    for client in (idle, busy):
        await client.close()


async def test_draining_waits_for_requests_too(gateway: LocalGateway, fake_cli: FakeCli) -> None:
    client = await gateway.connect()
    fake_cli.create_delay = 0.3
    creating = client.post("session.create", session_params("s"))
    await eventually(lambda: gateway.worker.hub.replicas["cli-0"].stats.in_flight == 1)
    await gateway.worker.drain(30)
    assert (await creating)["sessionId"] == "s"
    await client.close()


async def test_draining_has_an_end(gateway: LocalGateway, fake_cli: FakeCli) -> None:
    client = await gateway.connect()
    await client.request("session.create", session_params("s"))
    await send(client, "s", "[[gate never]] hello")
    await fake_cli.model.waiting("never")
    await gateway.worker.drain(0.1)
    await gateway.worker.close()
    await client.wait_ended()
    await client.close()


def with_limits(gateway: LocalGateway, **limits: Any) -> Any:
    return replace(gateway.settings, limits=replace(LimitsSettings(), **limits))


async def test_new_limits_hold_for_new_connections(gateway: LocalGateway) -> None:
    async with await gateway.connect() as client:
        gateway.worker.apply(with_limits(gateway, max_frame=100_000))
        await client.request("ping")
        async with await gateway.connect() as late:
            with pytest.raises(RpcFault) as caught:
                await late.request("ping", {"message": "x" * 100_000})
            assert caught.value.code == errors.OVERLOADED


async def test_applying_reads_the_tokens_again(gateway: LocalGateway) -> None:
    token = gateway.add_token("acme", "alice")
    async with await gateway.connect(token) as alice, await gateway.connect() as other:
        remove_tokens(gateway.tokens, user="alice")
        gateway.worker.apply(gateway.settings)
        await alice.wait_ended()
        await other.request("ping")


async def test_replicas_may_come_and_go(gateway: LocalGateway, fake_cli: FakeCli) -> None:
    async with FakeCli("cli-1", token="second") as second, await gateway.connect() as client:
        await client.request("session.create", session_params("s"))
        gateway.worker.set_replicas([spec_of(fake_cli), spec_of(second)])
        await eventually(lambda: gateway.worker.hub.replicas["cli-1"].reachable)
        for number in range(8):
            await client.request("session.create", session_params(f"s{number}"))
        assert second.sessions
        assert "echo" in await run_turn(client, "s", "hi")
        gateway.worker.set_replicas([spec_of(fake_cli)])
        await eventually(lambda: not second.connections)
        assert "echo" in await run_turn(client, "s", "again")


async def test_closing_twice_is_closing(gateway: LocalGateway) -> None:
    client = await gateway.connect()
    await gateway.worker.close()
    await client.wait_ended()
    await client.close()
    await gateway.worker.close()


async def test_metrics_name_what_happened(gateway: LocalGateway) -> None:
    async with await gateway.connect() as client:
        await client.request("session.create", session_params("s"))
        with pytest.raises(RpcFault):
            await gateway.connect("wrong")
        text = gateway.worker.metrics().decode()
    assert 'replica="cli-0"' in text
    assert 'tenant="default"' in text
    assert "wrong" not in text
