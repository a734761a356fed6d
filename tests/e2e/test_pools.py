"""Pools of the whole program: who reaches which replicas, and CLIs that come and go with users."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway import errors
from gateway.testing.model_server import DEFAULT_MODEL, ModelServer
from tests.e2e.conftest import MakeFleet
from tests.support.fake_cli import FakeCli
from tests.support.gateway import ADMIN_TOKEN, GatewayProcess, alive, children
from tests.support.rpc import RpcClient, RpcFault
from tests.support.sessions import run_turn, session_params
from tests.support.stack import fake_cli_executable, real_cli
from tests.support.wait import eventually


async def replicas(gateway: GatewayProcess) -> dict[str, Any]:
    """Return what the admin API says of the replicas, by name."""
    status, body = await gateway.admin("/replicas", token=ADMIN_TOKEN)
    assert status == 200
    return {one["name"]: one for one in json.loads(body)["replicas"]}


@pytest.mark.parametrize("workers", [1, 2])
async def test_two_pools_and_two_tenants(make_fleet: MakeFleet, workers: int) -> None:
    fleet = await make_fleet("fake", 4)
    gateway = await fleet.process(
        "--workers",
        str(workers),
        admin=True,
        config="""
        [[pools]]
        name = "first"
        tenants = ["acme"]
        replicas = ["cli-0", "cli-1"]
        [[pools]]
        name = "second"
        tenants = ["best"]
        replicas = ["cli-[2]"]
        """,
    )
    tokens = [gateway.add_token("acme", "ann"), gateway.add_token("best", "bob")]
    await eventually(lambda: gateway.text.count("tokens=2") == workers)
    for tenant, token, homes in (
        ("acme", tokens[0], {"cli-0", "cli-1"}),
        ("best", tokens[1], {"cli-2"}),
    ):
        client = await fleet.client(gateway, token)
        for number in range(8):
            await client.request("session.create", fleet.params(f"{tenant}-{number}"))
        assert await run_turn(client, f"{tenant}-0", "hi")
        _, body = await gateway.admin(f"/sessions?tenant={tenant}")
        assert {one["replica"] for one in json.loads(body)["sessions"]} == homes
        holding = {
            cli.name for cli in fleet.clis if isinstance(cli, FakeCli) and _live(cli, tenant)
        }
        assert holding == homes

    found = await replicas(gateway)
    assert {name: one["pool"] for name, one in found.items()} == {
        "cli-0": "first",
        "cli-1": "first",
        "cli-2": "second",
        "cli-3": "default",
    }


def _live(cli: FakeCli, tenant: str) -> bool:
    return any(session_id.startswith(tenant) for session_id in cli.sessions)


def own_config(binary: Path, **pool: Any) -> str:
    """Return a configuration whose only pool starts a CLI for each user."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in pool.items()]
    return "\n".join(
        [
            "[spawn]",
            f"binary = {json.dumps(str(binary))}",
            "[[pools]]",
            'name = "own"',
            'tenants = ["*"]',
            'isolation = "user"',
            *lines,
        ]
    )


async def test_a_cli_for_each_user(tmp_path: Path) -> None:
    binary = fake_cli_executable(tmp_path)
    config = own_config(binary, max_replicas=2, idle_timeout="1s")
    async with (
        GatewayProcess(tmp_path / "state", config=config, admin=True) as gateway,
        AsyncExitStack() as stack,
    ):
        status, _ = await gateway.admin("/readyz", token=None)
        assert status == 200, "a gateway that starts CLIs on demand waits for the demand"
        tokens = {user: gateway.add_token("acme", user) for user in ("ann", "bob", "eve")}
        await gateway.said("tokens=3")

        async def connect(user: str) -> RpcClient:
            return await stack.enter_async_context(await gateway.connect(tokens[user]))

        ann, bob = await asyncio.gather(connect("ann"), connect("bob"))
        for user, client in (("ann", ann), ("bob", bob)):
            await client.request("session.create", session_params(f"of-{user}"))
            assert await run_turn(client, f"of-{user}", "hi")
        found = await replicas(gateway)
        pids = {one["pid"] for one in found.values()}
        assert len(pids) == 2
        assert pids <= set(children(gateway.pid))
        assert all(name.startswith("own-") and one["supervised"] for name, one in found.items())

        with pytest.raises(RpcFault) as caught:
            await connect("eve")
        assert caught.value.code == errors.OVERLOADED
        assert caught.value.data["retryAfterMs"] > 0

        await ann.close()
        await bob.close()
        await eventually(lambda: not any(map(alive, pids)))
        await connect("eve")
        ann = await connect("ann")
        await ann.request("session.resume", session_params("of-ann"))
        left = [one["pid"] for one in (await replicas(gateway)).values()]
    assert not any(map(alive, left))


async def test_several_workers_cannot_start_clis_for_users(tmp_path: Path) -> None:
    config = own_config(fake_cli_executable(tmp_path))
    gateway = GatewayProcess(tmp_path / "state", "--workers", "2", config=config)
    await gateway.launch()
    assert await gateway.wait() == errors.EXIT_USAGE
    assert "server.workers" in gateway.stderr[-1]


@pytest.mark.real
async def test_a_real_cli_for_each_user(tmp_path: Path, model_server: ModelServer) -> None:
    config = own_config(
        real_cli(),
        idle_timeout="2s",
        env={
            "COPILOT_OFFLINE": "true",
            "COPILOT_MODEL": DEFAULT_MODEL,
            "COPILOT_PROVIDER_BASE_URL": model_server.base_url,
        },
    ).replace('": "', '" = "')
    async with (
        GatewayProcess(tmp_path / "state", config=config, admin=True) as gateway,
        AsyncExitStack() as stack,
    ):
        tokens = {user: gateway.add_token("acme", user) for user in ("ann", "bob")}
        await gateway.said("tokens=2")

        async def connect(user: str) -> RpcClient:
            return await stack.enter_async_context(await gateway.connect(tokens[user]))

        def params(user: str) -> dict[str, Any]:
            return session_params(f"of-{user}", model_url=model_server.base_url)

        ann, bob = await asyncio.gather(connect("ann"), connect("bob"))
        for user, client in (("ann", ann), ("bob", bob)):
            await client.request("session.create", params(user))
            assert await run_turn(client, f"of-{user}", "hi")
        found = await replicas(gateway)
        pids = {one["pid"] for one in found.values()}
        assert len(pids) == 2
        for name in found:
            sessions = tmp_path / "state" / "pools" / name / "session-state"
            assert len(list(sessions.glob("of-*"))) == 1
        with pytest.raises(RpcFault, match="not found"):
            await bob.request("session.resume", params("ann"))

        await ann.close()
        await bob.close()
        await eventually(lambda: not any(map(alive, pids)), 60)
        ann = await connect("ann")
        await ann.request("session.resume", params("ann"))
        events = (await ann.request("session.getMessages", {"sessionId": "of-ann"}))["events"]
        assert [one["data"]["content"] for one in events if one["type"] == "user.message"] == ["hi"]
