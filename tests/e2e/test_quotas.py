"""Quotas on the whole program, and that one tenant's flood does not slow another."""

from __future__ import annotations

import asyncio
import statistics
import time

import pytest

from gateway import errors
from tests.e2e.conftest import Fleet
from tests.support.gateway import GatewayProcess
from tests.support.rpc import RpcClient, RpcFault
from tests.support.sessions import run_turn, send
from tests.support.wait import eventually

CONFIG = """
[auth]
token_poll = "50ms"
[[tenants]]
name = "acme"
limits = { connections = 3, sessions = 2, turns = 1, messages_per_second = 100.0 }
user_limits = { connections = 2, max_frame = "64KiB" }
"""


async def tokens(gateway: GatewayProcess, *who: tuple[str, str]) -> list[str]:
    made = [gateway.add_token(tenant, user) for tenant, user in who]
    await gateway.said(f"tokens={len(made)}")
    return made


async def refused(client: RpcClient, method: str, params: dict[str, object]) -> str:
    """Ask what a quota forbids; return the quota."""
    with pytest.raises(RpcFault) as caught:
        await client.request(method, params)
    assert caught.value.code == errors.OVERLOADED, str(caught.value)
    assert caught.value.data["retryAfterMs"] > 0
    limit: str = caught.value.data["limit"]
    return limit


async def test_connections_sessions_and_turns(fakes: Fleet) -> None:
    gateway = await fakes.process(config=CONFIG)
    ann, bob, eve = await tokens(gateway, ("acme", "ann"), ("acme", "bob"), ("evil", "eve"))
    first = await fakes.client(gateway, ann)
    second = await fakes.client(gateway, ann)
    third = await fakes.bare(gateway)
    assert await refused(third, "connect", {"token": ann}) == "user.connections"
    bobs = await fakes.client(gateway, bob)
    fourth = await fakes.bare(gateway)
    assert await refused(fourth, "connect", {"token": bob}) == "tenant.connections"
    await fakes.client(gateway, eve)

    await first.request("session.create", fakes.params("a"))
    await bobs.request("session.create", fakes.params("b"))
    assert await refused(second, "session.create", dict(fakes.params("c"))) == "tenant.sessions"
    await first.request("session.detach", {"sessionId": "a"})
    await second.request("session.create", fakes.params("c"))

    await send(second, "c", "[[gate g]] hi")
    prompt = {"sessionId": "b", "prompt": "hi"}
    assert await refused(bobs, "session.send", dict(prompt)) == "tenant.turns"
    await fakes.model.release("g")
    await second.wait_event("c", "session.idle")
    assert await run_turn(bobs, "b", "hi")

    await second.close()
    again = await fakes.client(gateway, ann)
    await again.request("ping")


async def test_a_frame_over_a_users_limit(fakes: Fleet) -> None:
    gateway = await fakes.process(config=CONFIG)
    ann, eve = await tokens(gateway, ("acme", "ann"), ("evil", "eve"))
    small, large = await fakes.client(gateway, ann), await fakes.client(gateway, eve)
    message = {"message": "x" * 100_000}
    with pytest.raises(RpcFault) as caught:
        await small.request("ping", message)
    assert caught.value.code == errors.OVERLOADED
    await small.wait_ended()
    await large.request("ping", message)


async def test_a_rate_is_held_and_the_other_tenant_does_not_notice(fakes: Fleet) -> None:
    """A client that ignores refusals is read so rarely that it cannot hold up the gateway."""
    gateway = await fakes.process(config=CONFIG)
    ann, eve = await tokens(gateway, ("acme", "ann"), ("evil", "eve"))
    flood, calm = await fakes.client(gateway, ann), await fakes.client(gateway, eve)
    counts = {"ok": 0, "over": 0}

    def count(done: asyncio.Future[object]) -> None:
        if done.cancelled():
            return
        fault = done.exception()
        if fault is None:
            counts["ok"] += 1
        elif isinstance(fault, RpcFault) and fault.code == errors.OVERLOADED:
            counts["over"] += 1

    async def pour() -> None:
        while True:
            for _ in range(200):
                flood.post("ping", {"message": "x" * 200}).add_done_callback(count)
            await flood.drain()
            await asyncio.sleep(0.005)

    async def latency() -> float:
        started = time.perf_counter()
        await calm.request("ping")
        return time.perf_counter() - started

    quiet = statistics.median([await latency() for _ in range(50)])
    started = time.monotonic()
    pouring = asyncio.create_task(pour())
    try:
        await eventually(lambda: counts["over"] > 200)
        busy = statistics.median([await latency() for _ in range(50)])
        elapsed = time.monotonic() - started
    finally:
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
    assert counts["ok"] <= 100 + 100 * (elapsed + 1)
    # The machine is shared: what counts is that it is no queue of thousands of messages.
    assert busy < quiet + 0.1


async def test_what_a_tenant_uses_and_is_refused_is_counted(fakes: Fleet) -> None:
    gateway = await fakes.process(config=CONFIG, admin=True)
    (ann,) = await tokens(gateway, ("acme", "ann"))
    client = await fakes.client(gateway, ann)
    for _ in range(5):
        await client.request("ping")
    for _ in range(2):
        await client.request("session.create", fakes.params())
    assert await refused(client, "session.create", dict(fakes.params())) == "tenant.sessions"
    _, page = await gateway.admin("/metrics")
    assert 'copilot_gateway_tenant_limited_total{tenant="acme"} 1' in page
    assert 'copilot_gateway_tenant_requests_total{tenant="acme"} 9' in page
