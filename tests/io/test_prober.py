"""Control links: found, kept, lost, found again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.replica import Replica
from gateway.types import ReplicaSpec, ReplicaState
from tests.support.fake_cli import FakeCli
from tests.support.gateway import LocalGateway, spec_of
from tests.support.wait import eventually

HEALTH = {
    "probe_interval": 0.05, "probe_timeout": 0.15, "failures": 2, "ban_base": 0.1, "ban_max": 0.2,
}  # fmt: skip


@pytest.fixture
async def gateway(fake_cli: FakeCli, tmp_path: Path) -> AsyncIterator[LocalGateway]:
    """A worker in front of one fake CLI, which is up."""
    async with LocalGateway(tmp_path, fake_cli, health=HEALTH) as gateway:
        yield gateway


def replica(gateway: LocalGateway, name: str = "cli-0") -> Replica:
    return gateway.worker.hub.replicas[name]


def state(gateway: LocalGateway, name: str = "cli-0") -> ReplicaState:
    return replica(gateway, name).health.state


async def test_a_replica_is_found_and_says_its_version(
    gateway: LocalGateway, fake_cli: FakeCli
) -> None:
    assert state(gateway) is ReplicaState.UP
    assert replica(gateway).version == fake_cli.version
    assert len(fake_cli.connections) == 1


async def test_it_is_asked_again_and_again(gateway: LocalGateway, fake_cli: FakeCli) -> None:
    await eventually(lambda: len(fake_cli.received("ping")) >= 3)
    assert replica(gateway).stats.probe_seconds > 0


async def test_one_that_ends_is_down_at_once_and_comes_back(
    gateway: LocalGateway, fake_cli: FakeCli
) -> None:
    await fake_cli.kill()
    await eventually(lambda: state(gateway) is ReplicaState.DOWN)
    assert replica(gateway).control is None
    await fake_cli.start()
    await eventually(lambda: state(gateway) is ReplicaState.UP)
    assert replica(gateway).control is not None


async def test_one_that_is_silent_is_ejected_and_comes_back(
    gateway: LocalGateway, fake_cli: FakeCli
) -> None:
    fake_cli.freeze()
    await eventually(lambda: state(gateway) is ReplicaState.EJECTED)
    assert "no answer to a ping" in replica(gateway).health.reason
    fake_cli.unfreeze()
    await eventually(lambda: state(gateway) is ReplicaState.UP)


async def test_one_that_refuses_the_token_never_comes_up(
    gateway: LocalGateway, fake_cli: FakeCli
) -> None:
    wrong = ReplicaSpec("wrong", fake_cli.host, fake_cli.port, "not its token")
    gateway.worker.set_replicas([spec_of(fake_cli), wrong])
    await eventually(lambda: "handshake refused" in replica(gateway, "wrong").health.reason)
    assert state(gateway, "wrong") is ReplicaState.STARTING
    assert state(gateway) is ReplicaState.UP


async def test_one_that_was_removed_is_left_alone(gateway: LocalGateway, fake_cli: FakeCli) -> None:
    gateway.worker.set_replicas([])
    await eventually(lambda: not fake_cli.connections)
    probes = len(fake_cli.calls)
    await asyncio.sleep(0.2)
    assert len(fake_cli.calls) == probes


async def test_one_that_moved_is_followed(gateway: LocalGateway, fake_cli: FakeCli) -> None:
    async with FakeCli("cli-0", token="other-token") as elsewhere:
        gateway.worker.set_replicas([spec_of(elsewhere)])
        await eventually(lambda: len(elsewhere.connections) == 1 and not fake_cli.connections)
        await eventually(lambda: state(gateway) is ReplicaState.UP)
        gateway.worker.set_replicas([])
        await eventually(lambda: not elsewhere.connections)


async def test_one_without_a_port_is_not_dialed(gateway: LocalGateway) -> None:
    """A supervised CLI that is being restarted has none."""
    gateway.worker.set_replicas([ReplicaSpec("later", "127.0.0.1", 0)])
    await asyncio.sleep(0.2)
    assert state(gateway, "later") is ReplicaState.STARTING
    assert replica(gateway, "later").health.reason == "not probed yet"


async def test_one_known_to_be_gone_is_down_without_a_probe(
    gateway: LocalGateway, fake_cli: FakeCli
) -> None:
    await fake_cli.kill()
    gateway.worker.set_replicas([spec_of(fake_cli)], ["cli-0"])
    assert state(gateway) is ReplicaState.DOWN
    await fake_cli.start()
    await eventually(lambda: state(gateway) is ReplicaState.UP)


async def test_closing_ends_every_task(gateway: LocalGateway) -> None:
    for prober in gateway.worker._probers.values():
        await prober.close()
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not [name for name in names if name.startswith("probe ")]
