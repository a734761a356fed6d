"""Carries out the faults of a plan."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.clients import Application, Conversation, Record
from tests.chaos.fleet import Fleet, Gateway
from tests.chaos.schedule import Fault, Kind
from tests.support.stack import RealCli

DRAIN_BOUND = 30.0
"""Seconds that a replica has to become empty; then it is restarted all the same."""

log = logging.getLogger("tests.chaos")


@dataclass(frozen=True, slots=True)
class Struck:
    """A session whose turn was under way on a replica when that was struck.

    Attributes:
        kind: what happened to the replica.
        at: when, on the loop's clock.
        record: the session.
    """

    kind: Kind
    at: float
    record: Record


class Chaos:
    """Strikes.

    Attributes:
        done: how many faults of each kind were carried out.
        struck: the sessions that were in the middle of a turn.
        drains_overdue: drains that did not end in time.
    """

    def __init__(
        self,
        fleet: Fleet,
        applications: Sequence[Application],
        conversations: Sequence[Conversation],
    ) -> None:
        self._fleet = fleet
        self._applications = applications
        self._conversations = conversations
        self.done: dict[Kind, int] = {}
        self.struck: list[Struck] = []
        self.drains_overdue = 0

    async def run(self, faults: Sequence[Fault]) -> None:
        """Carry out a plan; its clock starts now."""
        start = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            # Whatever a replica or a gateway needs to come back may take longer than planned.
            busy: dict[str, asyncio.Lock] = {}
            for fault in faults:
                lock = busy.setdefault(_victim(fault), asyncio.Lock())
                tasks.create_task(self._strike(start + fault.at, fault, lock), name=fault.kind)

    async def _strike(self, at: float, fault: Fault, lock: asyncio.Lock) -> None:
        await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
        async with lock:
            log.info("%s %d for %.1f s", fault.kind, fault.target, fault.lasts)
            self.done[fault.kind] = self.done.get(fault.kind, 0) + 1
            match fault.kind:
                case Kind.RECONNECT:
                    self._applications[fault.target].drop()
                case Kind.GATEWAY:
                    front = self._fleet.fronts[fault.target]
                    await front.end(signal.SIGKILL)
                    for each in self._conversations:
                        each.front_killed(front.port)
                    await asyncio.sleep(fault.lasts)
                    await front.start()
                case Kind.REDIS | Kind.REDIS_EMPTY:
                    await self._redis(fault)
                case Kind.DRAIN:
                    await self._drain(self._fleet.replicas[fault.target])
                case _:
                    await self._replica(self._fleet.replicas[fault.target], fault)

    async def _replica(self, replica: RealCli, fault: Fault) -> None:
        here = self._fleet.live_on(replica)
        log.info("%s has %d sessions", replica.name, len(here))
        now = asyncio.get_running_loop().time()
        self.struck += [
            Struck(fault.kind, now, each.record)
            for each in self._conversations
            if each.record.busy and each.record.session in here
        ]
        if fault.kind is Kind.FREEZE:
            # Ended in the end, as a liveness probe or the gateway's own supervisor does: a CLI that
            # woke up would finish its turn in a journal that is another's by then.
            replica.freeze()
            await asyncio.sleep(fault.lasts)
            await replica.kill()
            await replica.start()
            return
        if fault.kind is Kind.KILL:
            await replica.kill()
        else:
            await replica.stop()
        await asyncio.sleep(fault.lasts)
        await replica.start()

    async def _drain(self, replica: RealCli) -> None:
        """Restart a replica as an operator does who has read the manual."""
        gateways = self._fleet.gateways
        if not gateways:  # A plain balancer moves nothing: all that it has is the restart.
            await replica.restart()
            return
        await gateways[0].ask("POST", f"/replicas/{replica.name}/drain")
        try:
            async with asyncio.timeout(DRAIN_BOUND):
                while not await self._drained(replica):
                    await asyncio.sleep(0.2)
        except TimeoutError:
            self.drains_overdue += 1
            for gateway in gateways:
                log.warning("%s did not become empty: %s", replica.name, await _left(gateway))
        await replica.restart()
        for gateway in self._fleet.gateways:
            # Any one would do; it is the one asked before that may be down now.
            with contextlib.suppress(OSError):
                await gateway.ask("POST", f"/replicas/{replica.name}/undrain")

    async def _drained(self, replica: RealCli) -> bool:
        try:
            seen = [await gateway.drained(replica.name) for gateway in self._fleet.gateways]
        except OSError:
            return False  # a gateway that is just being killed
        return bool(seen) and all(seen)

    async def _redis(self, fault: Fault) -> None:
        redis = self._fleet.redis
        assert redis is not None
        if fault.kind is Kind.REDIS:
            await redis.end()
        else:
            await redis.end(signal.SIGKILL)
            redis.lose()
        await asyncio.sleep(fault.lasts)
        await redis.start()


async def _left(gateway: Gateway) -> str:
    """Say what a gateway still has on its replicas."""
    try:
        return f"{gateway.name}: {await gateway.ask('GET', '/sessions')}"
    except OSError as error:
        return f"{gateway.name}: {error}"


def _victim(fault: Fault) -> str:
    match fault.kind:
        case Kind.RECONNECT:
            return f"client {fault.target}"
        case Kind.GATEWAY:
            return f"gateway {fault.target}"
        case Kind.REDIS | Kind.REDIS_EMPTY:
            return "redis"
        case _:
            return "replicas"
