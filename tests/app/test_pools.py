"""Pools in a worker: whom they serve, and CLIs that are started for one tenant or user."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway import errors
from gateway.app.pools import pool_of_replica, pool_of_tenant
from gateway.app.worker import WorkerControl
from gateway.config.kinds import SecretRef
from gateway.config.settings import PoolSettings
from gateway.types import Identity, Placement
from tests.support.fake_cli import FakeCli
from tests.support.gateway import LocalGateway, alive, remove_tokens
from tests.support.rpc import RpcClient, RpcFault
from tests.support.sessions import run_turn, session_params
from tests.support.stack import fake_cli_executable
from tests.support.wait import eventually

A = PoolSettings(name="a", tenants=("acme",), replicas=("a-*",))
B = PoolSettings(name="b", tenants=("best", "*"), replicas=("b-0", "a-9"))


def test_whom_a_pool_serves() -> None:
    assert pool_of_tenant((A, B), "acme") is A
    assert pool_of_tenant((B, A), "acme") is A, "a name wins over the asterisk"
    assert pool_of_tenant((A, B), "someone") is B
    assert pool_of_tenant((A,), "someone") is None


def test_what_a_pool_has() -> None:
    assert pool_of_replica((A, B), "a-1") is A
    assert pool_of_replica((A, B), "a-9") is A, "the first that names it"
    assert pool_of_replica((A, B), "b-0") is B
    assert pool_of_replica((A, B), "b-00") is None


# Shared pools


class Stand:
    """A worker with pools, and those who use it."""

    def __init__(self, gateway: LocalGateway, stack: AsyncExitStack) -> None:
        self.gateway = gateway
        self.worker = gateway.worker
        self.control = WorkerControl(gateway.worker)
        self._stack = stack
        self._tokens: dict[tuple[str, str, str], str] = {}

    async def client(self, tenant: str, user: str, role: str = "user") -> RpcClient:
        """Return a client; one token for each user."""
        who = (tenant, user, role)
        if who not in self._tokens:
            self._tokens[who] = self.gateway.add_token(*who)
        client = await self.gateway.connect(self._tokens[who])
        return await self._stack.enter_async_context(client)

    async def names(self) -> dict[str, str]:
        """Return the pools of the replicas, by name."""
        return {one.name: one.pool for one in await self.control.replicas()}

    async def pids(self) -> dict[str, int | None]:
        """Return the processes of the replicas that the worker started, by name."""
        return {one.name: one.pid for one in await self.control.replicas() if one.supervised}


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def shared(stack: AsyncExitStack, tmp_path: Path) -> Stand:
    """Two replicas of pool ``a``, one of ``b``, one of nobody's."""
    clis = []
    for name in ("a-0", "a-1", "b-0", "c-0"):
        (tmp_path / name).mkdir()
        cli = FakeCli(name, state_dir=tmp_path / name, token="t")
        clis.append(await stack.enter_async_context(cli))
    only_b = PoolSettings(name="b", tenants=("best",), replicas=("b-0",))
    gateway = LocalGateway(tmp_path, *clis, pools=(A, only_b))
    return Stand(await stack.enter_async_context(gateway), stack)


async def lists(client: RpcClient, session_id: str) -> bool:
    """Return whether that session is all that a client is shown."""
    found = (await client.request("session.list"))["sessions"]
    return [one["sessionId"] for one in found] == [session_id]


async def test_a_tenant_reaches_its_pools_replicas_only(shared: Stand) -> None:
    homes = {"acme": {"a-0", "a-1"}, "best": {"b-0"}, "other": {"c-0"}}
    for tenant, expected in homes.items():
        client = await shared.client(tenant, "ann")
        found = set()
        for number in range(8):
            await client.request("session.create", session_params(f"{tenant}-{number}"))
            found.add(shared.gateway.replica_of(f"{tenant}-{number}"))
        assert found == expected
        assert await run_turn(client, f"{tenant}-0", "hi")
        await eventually(partial(lists, client, f"{tenant}-0"))
        if tenant != "acme":
            with pytest.raises(RpcFault, match="not found"):
                await client.request("session.resume", session_params("acme-0"))


async def test_operators_see_the_pools(shared: Stand) -> None:
    assert await shared.names() == {"a-0": "a", "a-1": "a", "b-0": "b", "c-0": "default"}
    ready = await shared.control.readiness()
    assert (ready.replicas_up, ready.replicas) == (4, 4)
    best = await shared.client("best", "ann")
    await best.request("session.create", session_params("s"))
    (session,) = await shared.control.sessions(None, None, None)
    assert (session.session, session.replica, session.pool) == ("s", "b-0", "b")


async def test_a_drain_is_of_the_pool_that_has_the_replica(shared: Stand) -> None:
    acme = await shared.client("acme", "ann")
    await shared.control.drain_replica("a-0", True)
    for number in range(8):
        await acme.request("session.create", session_params(f"s-{number}"))
        assert shared.gateway.replica_of(f"s-{number}") == "a-1"


async def test_a_revoked_token_closes_clients_of_every_pool(shared: Stand) -> None:
    clients = [await shared.client(tenant, "ann") for tenant in ("acme", "best", "other")]
    remove_tokens(shared.gateway.tokens, user="ann")
    for client in clients:
        await client.wait_ended()
    assert not [client for hub in shared.worker.hubs for client in hub.clients]


async def test_the_shutdown_ends_clients_of_every_pool(shared: Stand) -> None:
    clients = [await shared.client(tenant, "ann") for tenant in ("acme", "best", "other")]
    await shared.control.drain(5)
    for client in clients:
        await client.wait_ended()


async def test_one_heartbeat_republishes_the_sessions_of_all_pools(
    shared: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tenant in ("acme", "best"):
        client = await shared.client(tenant, "ann")
        await client.request("session.create", session_params(f"of-{tenant}"))
    registry = shared.worker.hub.registry
    calls: list[set[str]] = []

    async def forgotten(gateway_id: str, ttl_seconds: float) -> bool:
        return False

    async def republish(gateway_id: str, placements: Iterable[Placement]) -> dict[str, Placement]:
        held = {one.session_id: one for one in placements}
        calls.append(set(held))
        return held

    monkeypatch.setattr(registry, "heartbeat", forgotten)
    monkeypatch.setattr(registry, "republish", republish)
    before = [hub.placer.horizon.lease_until for hub in shared.worker.hubs]
    await eventually(lambda: calls)
    assert calls[0] == {"of-acme", "of-best"}
    after = [hub.placer.horizon.lease_until for hub in shared.worker.hubs]
    assert len(set(after)) == 1
    assert all(new > old for new, old in zip(after, before, strict=True))


# A CLI for each tenant or user


class MakeIsolated:
    """``await isolated(idle_timeout=1.0, ...)``: a worker whose only pool starts CLIs."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self._stack = stack

    async def __call__(self, *, spawn: dict[str, Any] | None = None, **pool: Any) -> Stand:
        settings = PoolSettings(**{"name": "own", "tenants": ("*",), "isolation": "user", **pool})
        binary = str(fake_cli_executable(self.folder))
        gateway = LocalGateway(
            self.folder / "state",
            pools=(settings,),
            spawn={"binary": binary, "stop_timeout": 5.0, **(spawn or {})},
        )
        (self.folder / "state").mkdir(exist_ok=True)
        return Stand(await self._stack.enter_async_context(gateway), self._stack)


@pytest.fixture
def isolated(stack: AsyncExitStack, tmp_path: Path) -> MakeIsolated:
    return MakeIsolated(tmp_path, stack)


async def test_each_user_has_a_cli(isolated: MakeIsolated) -> None:
    stand = await isolated()
    assert await stand.names() == {}
    ann, bob = await asyncio.gather(stand.client("acme", "ann"), stand.client("acme", "bob"))
    again = await stand.client("acme", "ann")
    names = await stand.names()
    assert len(names) == 2
    assert set(names.values()) == {"own"}
    pids = await stand.pids()
    assert len(set(pids.values())) == 2

    for client, session in ((ann, "of-ann"), (bob, "of-bob")):
        await client.request("session.create", session_params(session))
        assert await run_turn(client, session, "hi")
    assert stand.gateway.replica_of("of-ann") != stand.gateway.replica_of("of-bob")
    await again.request("session.resume", session_params("of-ann"))
    for name in names:
        assert (isolated.folder / "state" / "pools" / name).is_dir()

    boss = await stand.client("acme", "boss", "admin")
    assert (await boss.request("session.list"))["sessions"] == []
    with pytest.raises(RpcFault, match="not found"):
        await boss.request("session.resume", session_params("of-ann"))


async def test_a_tenant_has_one_cli_for_its_users(isolated: MakeIsolated) -> None:
    stand = await isolated(isolation="tenant")
    for user in ("ann", "bob"):
        await stand.client("acme", user)
    await stand.client("best", "ann")
    assert len(await stand.names()) == 2


async def test_an_unused_cli_ends_and_comes_back_with_its_sessions(isolated: MakeIsolated) -> None:
    stand = await isolated(idle_timeout=1.0)
    ann = await stand.client("acme", "ann")
    await ann.request("session.create", session_params("s"))
    assert await run_turn(ann, "s", "remember")
    ((name, pid),) = (await stand.pids()).items()
    assert pid is not None

    await asyncio.sleep(1.5)  # It is in use, though nothing is said.
    assert alive(pid)
    await ann.close()
    await eventually(lambda: not alive(pid))
    assert await stand.names() == {}

    ann = await stand.client("acme", "ann")
    assert list(await stand.names()) == [name]
    await ann.request("session.resume", session_params("s"))
    events = (await ann.request("session.getMessages", {"sessionId": "s"}))["events"]
    said = [one["data"]["content"] for one in events if one["type"] == "user.message"]
    assert said == ["remember"]


async def test_no_more_clis_than_allowed(isolated: MakeIsolated) -> None:
    stand = await isolated(max_replicas=2)
    ann = await stand.client("acme", "ann")
    await stand.client("acme", "bob")
    with pytest.raises(RpcFault) as caught:
        await stand.client("acme", "eve")
    assert caught.value.code == errors.OVERLOADED
    assert caught.value.data["limit"] == "max_replicas"
    assert caught.value.data["retryAfterMs"] > 0
    pids = await stand.pids()

    # One that nobody uses gives way at once.
    await ann.close()
    await eventually(lambda: sum(len(hub.clients) for hub in stand.worker.hubs) < 2)
    await stand.client("acme", "eve")
    now = await stand.pids()
    assert len(now) == 2
    assert len(set(now) & set(pids)) == 1


def environment_of(pid: int | None) -> dict[str, str]:
    """Return the environment that a process was started with."""
    given = Path(f"/proc/{pid}/environ").read_text()
    return dict(one.split("=", 1) for one in given.split("\0") if one)


async def test_what_a_cli_gets_in_its_environment(isolated: MakeIsolated) -> None:
    secrets = isolated.folder / "secrets"
    (secrets / "acme").mkdir(parents=True)
    (secrets / "acme" / "ann").write_text("key-of-ann\n")
    stand = await isolated(
        env={
            "PLAIN": "text",
            "NAMED": SecretRef(env="X", value="from-environment"),
            "FILED_TOKEN": SecretRef(file=secrets / "{tenant}" / "{user}"),
        },
    )
    await stand.client("acme", "ann")
    ((_, pid),) = (await stand.pids()).items()
    given = environment_of(pid)
    assert given["PLAIN"] == "text"
    assert given["NAMED"] == "from-environment"
    assert given["FILED_TOKEN"] == "key-of-ann"


async def test_a_name_that_leads_elsewhere_gets_no_cli(
    isolated: MakeIsolated, caplog: pytest.LogCaptureFixture
) -> None:
    (isolated.folder / "other").write_text("stolen")
    stand = await isolated(
        env={"TOKEN": SecretRef(file=isolated.folder / "secrets" / "{user}")},
    )
    # Issuers of signed tokens may name users as they like.
    stand.worker.hub.home_of(Identity("acme", "../other"))
    await eventually(lambda: "replica does not start" in caplog.text)
    assert "stolen" not in caplog.text
    assert await stand.pids() == dict.fromkeys(await stand.names())
    assert await stand.names()


async def test_a_provider_is_there_again_after_a_restart(isolated: MakeIsolated) -> None:
    stand = await isolated()
    ann = await stand.client("acme", "ann")
    assert (await ann.request("llmInference.setProvider"))["success"]
    await ann.request("session.create", session_params("s"))
    ((name, pid),) = (await stand.pids()).items()
    assert await stand.control.recycle(name)

    def replaced() -> bool:
        (pool,) = stand.worker.isolated_pools
        (hub,) = pool.hubs
        return hub.replicas[name].stats.restarts == 1 and hub.replicas[name].reachable

    await eventually(replaced)
    assert (await stand.pids())[name] != pid
    await ann.request("session.getMessages", {"sessionId": "s"})
    other = await stand.client("acme", "ann")
    with pytest.raises(RpcFault, match="already"):
        await other.request("llmInference.setProvider")


async def test_a_cli_whose_files_went_with_a_client_is_not_used_again(
    isolated: MakeIsolated,
) -> None:
    stand = await isolated()
    provider = {"initialCwd": "/", "sessionStatePath": "/s", "conventions": "posix"}
    ann = await stand.client("acme", "ann")
    await ann.request("sessionFs.setProvider", provider)
    ((name, pid),) = (await stand.pids()).items()
    await ann.close()
    await eventually(lambda: not any(hub.clients for hub in stand.worker.hubs))
    ann = await stand.client("acme", "ann")
    assert (await stand.pids())[name] != pid
    assert (await ann.request("sessionFs.setProvider", provider))["success"]


async def test_no_cli_outlives_the_worker(isolated: MakeIsolated) -> None:
    stand = await isolated()
    await stand.client("acme", "ann")
    await stand.client("acme", "bob")
    pids = [pid for pid in (await stand.pids()).values() if pid is not None]
    assert len(pids) == 2
    await stand.control.close()
    assert not any(alive(pid) for pid in pids)
