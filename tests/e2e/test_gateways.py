"""Two gateways on one Redis: one consistent answer under races, and life without the registry."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from gateway import errors
from tests.e2e.conftest import Fleet, MakeFleet
from tests.e2e.test_failover import FREE, history, prompts_in
from tests.support.gateway import LocalGateway
from tests.support.redis_server import RedisServer
from tests.support.rpc import RpcClient, RpcFault
from tests.support.sessions import last_answer, run_turn, send
from tests.support.wait import eventually

pytestmark = pytest.mark.redis

ROUNDS = 8
"""Repetitions of each race: whoever wins it, the answer has to be one."""


@pytest.fixture
async def redis() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


class Pair:
    """Two gateways with a client each, in front of replicas that share their storage."""

    def __init__(self, fleet: Fleet, redis: RedisServer) -> None:
        self.fleet = fleet
        self._url = f"unix://{redis.socket}"
        self.gateways: list[LocalGateway] = []
        self.clients: list[RpcClient] = []

    async def start(self) -> None:
        for _ in range(2):
            await self.add()

    async def add(self) -> None:
        """Start one more gateway, with a client."""
        gateway = await self.fleet.local(registry=self._url, **FREE)
        hub = gateway.worker.hub
        hub.limits = replace(hub.limits, registry_patience=0.5)
        self.gateways.append(gateway)
        self.clients.append(await self.fleet.client(gateway))

    def copies(self, session_id: str) -> list[str]:
        """Return the replicas that have a session in memory."""
        return [
            one.name for one in self.fleet.clis if session_id in self.fleet.fake(one.name).sessions
        ]

    def attached(self, session_id: str) -> list[str]:
        """Return the replicas that clients of a session are attached to."""
        return [
            binding.link.replica.name
            for gateway in self.gateways
            for binding in gateway.worker.hub.sessions[session_id].bindings
            if binding.attached and binding.open and binding.link is not None
        ]

    async def race(self, *calls: tuple[str, dict[str, Any]]) -> list[str]:
        """Make a call through each gateway at once; return ``ok`` or the error's text for each."""
        outcomes = await asyncio.gather(
            *(c.request(*call, within=30) for c, call in zip(self.clients, calls, strict=True)),
            return_exceptions=True,
        )
        texts = []
        for outcome in outcomes:
            assert isinstance(outcome, RpcFault | dict), outcome
            texts.append(outcome.message if isinstance(outcome, RpcFault) else "ok")
        return texts

    async def agree(self, session_id: str) -> None:
        """Check that both gateways mean the same copy."""
        records = {
            gateway.worker.hub.sessions[session_id].placement
            for gateway in self.gateways
            if session_id in gateway.worker.hub.sessions
        }
        assert len(records) == 1, records
        assert self.copies(session_id) == [next(iter(records)).replica]

    async def converse(self, session_id: str, earlier: int = 1) -> None:
        """Run a turn through each gateway; all clients are attached and have one conversation."""
        for number, client in enumerate(self.clients, earlier):
            await send(client, session_id, "next")
            for one in self.clients:
                await one.wait_event(session_id, "session.idle")
                assert last_answer(one, session_id) == f"echo: next [user messages: {number + 1}]"

    async def stored(self, session_id: str) -> None:
        """Have a session on disk that is live nowhere."""
        client = self.clients[0]
        await client.request("session.create", self.fleet.params(session_id))
        await run_turn(client, session_id, "one")
        await client.request("session.detach", {"sessionId": session_id})
        await eventually(lambda: not self.copies(session_id))


@pytest.fixture
async def pair(make_fleet: MakeFleet, redis: RedisServer) -> Pair:
    pair = Pair(await make_fleet("fake", 2, shared=True), redis)
    await pair.start()
    return pair


# Races


async def test_create_and_create(pair: Pair) -> None:
    for number in range(ROUNDS):
        params = pair.fleet.params(f"s{number}")
        outcomes = await pair.race(("session.create", params), ("session.create", params))
        assert "ok" in outcomes
        assert len(pair.copies(f"s{number}")) == 1
        await pair.agree(f"s{number}")


async def test_create_and_resume(pair: Pair) -> None:
    for number in range(ROUNDS):
        params = pair.fleet.params(f"s{number}")
        created, resumed = await pair.race(("session.create", params), ("session.resume", params))
        assert created == "ok"
        assert resumed == "ok" or "not found" in resumed
        await pair.agree(f"s{number}")


async def test_resume_and_resume(pair: Pair) -> None:
    for number in range(ROUNDS):
        session_id = f"s{number}"
        await pair.stored(session_id)
        params = pair.fleet.params(session_id)
        outcomes = await pair.race(("session.resume", params), ("session.resume", params))
        assert outcomes == ["ok", "ok"]
        await pair.agree(session_id)
        await pair.converse(session_id)


async def test_three_gateways(pair: Pair) -> None:
    await pair.add()
    for number in range(ROUNDS):
        params = pair.fleet.params(f"s{number}")
        outcomes = await pair.race(*[("session.create", params)] * 3)
        assert "ok" in outcomes
        await pair.race(*[("session.resume", params)] * 3)
        await pair.agree(params["sessionId"])
        assert len(set(pair.attached(params["sessionId"]))) == 1
        await pair.converse(params["sessionId"], earlier=0)


async def test_delete_and_resume(pair: Pair) -> None:
    for number in range(ROUNDS):
        session_id = f"s{number}"
        await pair.stored(session_id)
        deleted, resumed = await pair.race(
            ("session.delete", {"sessionId": session_id}),
            ("session.resume", pair.fleet.params(session_id)),
        )
        assert deleted == "ok"
        assert resumed == "ok" or "not found" in resumed
        assert len(pair.copies(session_id)) <= 1
        if not pair.fleet.fake("cli-0").storage.exists(session_id):
            asked = ("session.getMessages", {"sessionId": session_id})
            assert all("not found" in text for text in await pair.race(asked, asked))


async def test_drain_and_resume(pair: Pair) -> None:
    for number in range(ROUNDS):
        session_id = f"s{number}"
        await pair.stored(session_id)
        name = f"cli-{number % 2}"
        params = pair.fleet.params(session_id)
        resuming = pair.race(("session.resume", params), ("session.resume", params))
        draining = pair.gateways[number % 2].worker.drain_replica(name, True)
        outcomes, _ = await asyncio.gather(resuming, draining)
        assert outcomes == ["ok", "ok"]
        other = f"cli-{1 - number % 2}"
        await eventually(lambda other=other, one=session_id: pair.attached(one) == [other] * 2)
        await pair.converse(session_id)
        await pair.agree(session_id)
        for client in pair.clients:
            await client.request("session.detach", {"sessionId": session_id})
        await pair.gateways[0].worker.drain_replica(name, False)


async def test_a_session_of_both_moves_with_its_dead_replica(pair: Pair) -> None:
    params = pair.fleet.params("s")
    await pair.clients[0].request("session.create", params)
    await run_turn(pair.clients[0], "s", "one")
    await pair.clients[1].request("session.resume", {"sessionId": "s"})
    message = "[[gate g]] two"
    await send(pair.clients[0], "s", message)
    await pair.fleet.model.waiting("g")
    await pair.clients[0].request("sessions.save", {"sessionId": "s"})
    (home,) = pair.copies("s")
    await pair.fleet.fake(home).kill()
    await pair.fleet.model.release("g")
    for client in pair.clients:
        await client.wait_event("s", "session.idle", 30)
    await pair.agree("s")
    events = await history(pair.clients[1], "s")
    assert prompts_in(events) == ["one", message]
    assert len([one for one in events if one["type"] == "assistant.message"]) == 2
    assert pair.copies("s") != [home]


async def test_a_drain_is_known_to_both(pair: Pair) -> None:
    await pair.gateways[0].worker.drain_replica("cli-0", True)
    await eventually(lambda: pair.gateways[1].worker.hub.replicas["cli-0"].health.draining)
    for number in range(4):
        await pair.clients[1].request("session.create", pair.fleet.params(f"s{number}"))
        assert pair.copies(f"s{number}") == ["cli-1"]
    await pair.gateways[1].worker.drain_replica("cli-0", False)
    await eventually(lambda: not pair.gateways[0].worker.hub.replicas["cli-0"].health.draining)


# Without the registry


async def refused(client: RpcClient, fleet: Fleet, session_id: str) -> int | None:
    try:
        await client.request("session.create", fleet.params(session_id), 30)
    except RpcFault as fault:
        return fault.code
    return None


async def test_redis_is_away_for_a_while(pair: Pair, redis: RedisServer) -> None:
    """Placed sessions go on, new ones wait, are refused in time, and later made."""
    client = pair.clients[0]
    await client.request("session.create", pair.fleet.params("s"))
    redis.signal(signal.SIGSTOP)
    try:
        assert await run_turn(client, "s", "one") == "echo: one [user messages: 1]"
        assert await refused(client, pair.fleet, "new") == errors.REGISTRY_UNAVAILABLE
        assert pair.copies("new") == []
    finally:
        redis.signal(signal.SIGCONT)

    async def made() -> bool:
        return await refused(client, pair.fleet, "new") is None

    await eventually(made)
    assert await run_turn(client, "s", "two") == "echo: two [user messages: 2]"
    await pair.agree("s")


async def test_redis_is_away_past_the_lease(make_fleet: MakeFleet, redis: RedisServer) -> None:
    """Others may have taken what is held: it is read, not worked on, until the lease is back."""
    fleet = await make_fleet("fake", 2, shared=True)
    gateway = await fleet.local(
        registry={"url": f"unix://{redis.socket}", "lease": 1.0, "timeout": 0.2}, **FREE
    )
    placer = gateway.worker.hub.placer
    client = await fleet.client(gateway)
    await client.request("session.create", fleet.params("s"))
    assert await run_turn(client, "s", "one") == "echo: one [user messages: 1]"
    redis.signal(signal.SIGSTOP)
    try:
        await eventually(lambda: not placer.has_lease)
        with pytest.raises(RpcFault) as refusal:
            await client.request("session.send", {"sessionId": "s", "prompt": "two"})
        assert refusal.value.code == errors.REGISTRY_UNAVAILABLE
        assert refusal.value.data["retryAfterMs"] > 0
        assert prompts_in(await history(client, "s")) == ["one"]
    finally:
        redis.signal(signal.SIGCONT)
    await eventually(lambda: placer.has_lease)
    assert await run_turn(client, "s", "two") == "echo: two [user messages: 2]"


async def test_redis_is_restarted_empty(pair: Pair, redis: RedisServer) -> None:
    """Both tell it what they hold: nobody makes a second copy."""
    for number, client in enumerate(pair.clients):
        await client.request("session.create", pair.fleet.params(f"s{number}"))
        await run_turn(client, f"s{number}", "one")
    redis.kill()
    for number, client in enumerate(pair.clients):
        assert await run_turn(client, f"s{number}", "two") == "echo: two [user messages: 2]"
    await redis.start()

    async def known() -> bool:
        registry = pair.gateways[0].worker.hub.registry
        try:
            return len(await registry.get_many(["s0", "s1"])) == 2
        except errors.RegistryUnavailableError:
            return False

    await eventually(known)
    for number, client in enumerate(reversed(pair.clients)):
        await client.request("session.resume", {"sessionId": f"s{number}"}, 30)
        answer = await run_turn(client, f"s{number}", "three")
        assert answer == "echo: three [user messages: 3]"
        await pair.agree(f"s{number}")
