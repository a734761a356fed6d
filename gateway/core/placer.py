"""One writer per session: taking hold of sessions, moving them, draining replicas.

The registry arbitrates between workers and gateways; :mod:`gateway.routing.registry` explains
holds, epochs, leases and incarnations. Here they are used: a session is held before it is made
live, moved only while nobody else holds it, and let go after its last client has left.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from math import inf
from typing import TYPE_CHECKING

from gateway import errors
from gateway.core import answers
from gateway.core.link import LinkLostError
from gateway.core.session import Session, SessionNotFoundError
from gateway.errors import RegistryUnavailableError, RpcError
from gateway.routing.balancer import Candidate, choose
from gateway.routing.registry import Change, ChangesLost, PlacementChanged, ReplicaChanged
from gateway.types import Placement

if TYPE_CHECKING:
    from gateway.core.hub import Hub
    from gateway.core.replica import Replica

DRAINING, READY = "draining", "ready"
"""The marks by which all gateways know that a replica is drained, and no longer is: one without any
was never drained, or the registry has lost it."""

_ATTEMPTS = 8
"""Tries to agree on a session's place before the caller is told to come back."""

_RELEASE_DELAY = 0.05
"""Seconds for which releases are gathered; a session that comes back meanwhile stays held."""

_RELEASE_AGAIN = 1.0
"""Seconds between two attempts while the registry is away."""

_DRAIN_PAUSE = 0.1
"""Seconds between two looks at the sessions of a draining replica."""

_JOURNAL_DELAY = 1.0
"""Seconds after a turn by which it is certainly in the journal."""

_EXAMINE_EVERY = 60.0
"""Seconds between two looks at whether storage is shared; replicas may be added."""

_HANDS_OFF = 2.0
"""Seconds for which an idle session is let go of so that the last of its holders can move it."""


class Horizon:
    """For how long messages may pass without a question to the placer, in times of ``Hub.now``.

    Attributes:
        lease_until: until when the registry counts this worker as alive; prompts may pass until
            then.
        idles_until: until when the ends of turns need not be told to the placer.
    """

    __slots__ = ("idles_until", "lease_until")

    def __init__(self) -> None:
        self.lease_until = inf
        self.idles_until = inf


class Placer:
    """Decides and records where sessions live, for one worker.

    Attributes:
        gateway_id: this worker's name in the registry; None where it is the registry's only user
            and need not hold anything.
        free: sessions may live on any replica, because all see the same storage.
        horizon: what the data path has to know of all this.
        incarnations: of replicas, as last heard.
    """

    def __init__(
        self,
        hub: Hub,
        gateway_id: str | None,
        *,
        free: bool,
        slow_start: float,
        examines_storage: bool,
    ) -> None:
        self._hub = hub
        self._slow_start = slow_start
        # When to look again whether storage is shared, as is found out, or checked, while running.
        self._examine_at = 0.0 if examines_storage else inf
        self._releasing: set[str] = set()
        self._letting_go: dict[str, asyncio.Future[None]] = {}
        self._holding: set[str] = set()
        self._drains: dict[str, bool] = {}
        self.gateway_id = gateway_id
        self.free = free
        self.horizon = Horizon()
        self.incarnations: dict[str, int] = {}
        self._look_ahead()

    @property
    def has_lease(self) -> bool:
        """Whether what this worker holds is still its own."""
        return self._hub.now() < self.horizon.lease_until

    # Choosing

    def choose(self, session_id: str, *, without: str | None = None) -> str | None:
        """Return the replica for a session that becomes live, or None if none may take it."""
        hub = self._hub
        accepting = {
            name: replica
            for name, replica in hub.replicas.items()
            if replica.health.accepts_new and name != without
        }
        if not self.free:
            if not all(replica.backup for replica in accepting.values()):
                accepting = {n: one for n, one in accepting.items() if not one.backup}
            load = {name: replica.stats.sessions for name, replica in hub.replicas.items()}
            return hub.ring.choose(session_id, accepting, load)
        busy = dict.fromkeys(accepting, 0)
        for session in hub.sessions.values():
            if session.turn.busy and session.placement.replica in busy:
                busy[session.placement.replica] += 1
        now = hub.now()
        return choose(
            [
                Candidate(
                    name,
                    busy=busy[name],
                    sessions=replica.stats.sessions,
                    latency=replica.stats.probe_seconds or 0.0,
                    weight=replica.weight,
                    up_for=now - replica.up_since,
                    backup=replica.backup,
                )
                for name, replica in accepting.items()
            ],
            random.randrange,
            self._slow_start,
        )

    def turn_ended(self, session: Session) -> None:
        """Use the chance that a turn has ended; to be called from the horizon's idles_until on."""
        hub = self._hub
        if self._drains:
            hub.tasks.call_later(0, self.idle, session)
        now = hub.now()
        if now >= self._examine_at and len(hub.replicas) > 1:
            self._examine_at = now + _EXAMINE_EVERY
            hub.tasks.call_later(_JOURNAL_DELAY, self._examine, session)
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Set from when on the ends of turns matter."""
        self.horizon.idles_until = -inf if self._drains else self._examine_at

    # Finding out about storage

    def _examine(self, session: Session) -> None:
        self._hub.tasks.spawn(self._compare(session), "examine storage")

    async def _compare(self, session: Session) -> None:
        """Ask another replica for a session that it never served.

        One that knows it proves that storage is shared; one that does not, though the session's own
        replica has it on disk, proves the contrary. What the operator said does not matter then.
        """
        hub = self._hub
        own = hub.replicas.get(session.placement.replica)
        other = next(
            (r for r in hub.replicas.values() if r is not own and r.reachable and r.control), None
        )
        if own is None or other is None:
            return
        asked = {"sessionId": session.id}
        try:
            here = await hub.ask(own, "sessions.getMetadata", asked)
            there = await hub.ask(other, "sessions.getMetadata", asked)
        except (RpcError, LinkLostError):
            return
        if type(here) is not dict or not here.get("session") or session.placement.epoch > 1:
            return
        shared = type(there) is dict and bool(there.get("session"))
        if shared and not self.free:
            hub.log.info("replicas share their storage: sessions are routed freely from now on")
            self.free = True
        elif not shared and self.free:
            hub.log.error(
                "replicas do not share their storage, though it was said: sessions are sticky now",
                extra={"session": session.id, "knows_it": own.name, "does_not": other.name},
            )
            self.free = False

    # Holding

    async def occupy(self, session: Session) -> None:
        """Hold a session that is about to be made live, on the replica where it shall be.

        Raises:
            SessionNotFoundError: its record is gone.
            RpcError: the registry is not available, or others were always quicker.
        """
        self._releasing.discard(session.id)
        if session.live:
            return
        await self.will_hold(session.id)
        registry = self._hub.registry
        for _ in range(_ATTEMPTS):
            seen = session.placement
            target = seen.replica
            if self.free and not await self._held_elsewhere(session.id):
                target = self._where(seen)
            record: Placement | None = seen
            if target != seen.replica:
                record = await self._hub.registered(
                    registry.move, session.id, seen.epoch, target, self.gateway_id
                )
            elif self.gateway_id is not None:
                record = await self._hub.registered(
                    registry.hold, session.id, seen.epoch, self.gateway_id
                )
            if record is None:
                raise SessionNotFoundError(session.id)
            self.placed(session, record)
            if record.replica == target and (record.epoch == seen.epoch or target != seen.replica):
                session.held = self._grip(record)
                return
        raise answers.replica_unavailable(session.id, self._hub.limits.retry_after)

    def _grip(self, record: Placement) -> tuple[int, str, int]:
        return record.epoch, record.replica, self.incarnations.get(record.replica, 0)

    async def keep(self, session: Session) -> bool:
        """Hold a live session where it is by now; False if it has been moved once more.

        A move by another gateway ends this one's hold, and so does the fencing of the replica.

        Raises:
            SessionNotFoundError: its record is gone.
            RpcError: the registry is not available.
        """
        seen = session.placement
        if self.gateway_id is None or session.held == self._grip(seen):
            return True
        await self.will_hold(session.id)
        record = await self._hub.registered(
            self._hub.registry.hold, session.id, seen.epoch, self.gateway_id
        )
        if record is None:
            raise SessionNotFoundError(session.id)
        self.placed(session, record)
        if record.epoch != seen.epoch:
            return False
        session.held = self._grip(record)
        return True

    def _where(self, placement: Placement) -> str:
        """Return where a session that is live nowhere shall be; where it was, if as good."""
        name = self.choose(placement.session_id)
        current = self._hub.replicas.get(placement.replica)
        if name is None or name == placement.replica:
            return placement.replica
        if current is not None and current.health.accepts_new:
            chosen = self._hub.replicas[name]
            if current.backup and not chosen.backup:
                return name
            if current.stats.sessions <= chosen.stats.sessions:
                return placement.replica
        return name

    async def leads(self, session_id: str) -> bool:
        """Whether, of the gateways that hold a session, this is the one to act for all."""
        if self.gateway_id is None:
            return True
        try:
            holders = await self._hub.registered(self._hub.registry.holders, session_id)
        except RpcError:
            return False
        return min(holders, default=None) == self.gateway_id

    async def _held_elsewhere(self, session_id: str) -> bool:
        holders = await self._hub.registered(self._hub.registry.holders, session_id)
        return bool(holders - {self.gateway_id})

    def placed(self, session: Session, record: Placement) -> None:
        """Take over a session's record, and count it where it is now."""
        old = session.placement
        if record.epoch < old.epoch:
            return
        session.placement = record
        if session.live and record.replica != old.replica:
            for name, change in ((old.replica, -1), (record.replica, 1)):
                replica = self._hub.replicas.get(name)
                if replica is not None:
                    replica.stats.sessions += change

    def release_later(self, session_id: str) -> None:
        """Let go of a session after its last client here has left it, if it is held."""
        if session_id not in self._holding:
            return
        if not self._releasing:
            self._hub.tasks.call_later(_RELEASE_DELAY, self._release_now)
        self._releasing.add(session_id)

    def _release_now(self) -> None:
        sessions = self._hub.sessions
        used = {one for one in self._releasing if one in sessions and sessions[one].live}
        opening = {one for one in self._releasing if one in sessions and sessions[one].opening}
        gone = self._releasing - used - opening
        for one in gone & sessions.keys():
            sessions[one].held = None
        self._releasing = opening - used
        if self._releasing:
            self._hub.tasks.call_later(_RELEASE_DELAY, self._release_now)
        if gone:
            done = asyncio.get_running_loop().create_future()
            self._letting_go |= dict.fromkeys(gone, done)
            self._hub.tasks.spawn(self._release(gone, done), "release sessions")

    async def _release(self, session_ids: Iterable[str], done: asyncio.Future[None]) -> None:
        assert self.gateway_id is not None
        try:
            await self._hub.registry.release(session_ids, self.gateway_id)
        except RegistryUnavailableError:
            # A hold that stayed would keep other gateways from moving the session.
            if not self._releasing:
                self._hub.tasks.call_later(_RELEASE_AGAIN, self._release_now)
            self._releasing.update(session_ids)
        else:
            self._holding.difference_update(session_ids)
        finally:
            for one in session_ids:
                if self._letting_go.get(one) is done:
                    del self._letting_go[one]
            done.set_result(None)

    async def will_hold(self, session_id: str) -> None:
        """Note that a session may be held from now on, whatever becomes of the call that does it.

        Waits for a release of it that is under way, which could undo the hold.
        """
        while (release := self._letting_go.get(session_id)) is not None:
            await asyncio.wait([release])
        if self.gateway_id is not None:
            self._holding.add(session_id)

    # Failing over

    async def settled(self, session: Session, patience: float) -> Replica:
        """Return the replica on which a session is, or shall be, live, once it can serve.

        Raises:
            RpcError: there is none within ``patience`` seconds.
            SessionNotFoundError: its record is gone.
        """
        hub = self._hub
        give_up = hub.now() + patience
        while True:
            if session.moving is not None:
                await asyncio.wait([session.moving], timeout=max(0.0, give_up - hub.now()))
            replica = hub.replicas.get(session.placement.replica)
            if replica is not None and replica.reachable:
                return replica
            left = give_up - hub.now()
            if left <= 0:
                raise answers.replica_unavailable(session.id, hub.limits.retry_after)
            if not self.free:
                if replica is None:
                    raise answers.replica_unavailable(session.id, hub.limits.retry_after)
                await _wait_until(replica, left)
                continue
            target = self.choose(session.id)
            if target is None:
                await hub.until_any_reachable(left)
                continue
            await self._take_from_dead(session, target)

    async def _take_from_dead(self, session: Session, target: str) -> None:
        """Move a session off a replica that cannot serve; others may be moving it too."""
        hub = self._hub
        await self.will_hold(session.id)
        seen = session.placement
        dead = hub.replicas.get(seen.replica)
        if dead is not None:
            await self.fence(dead)
        record = await hub.registered(
            hub.registry.move, session.id, seen.epoch, target, self.gateway_id
        )
        if record is None:
            raise SessionNotFoundError(session.id)
        if record.epoch == seen.epoch:
            # Held by a worker that has not noticed yet.
            await asyncio.sleep(hub.limits.redial_delay)
            return
        self.placed(session, record)
        if (record.epoch, record.replica) == (seen.epoch + 1, target):
            session.held = self._grip(record)
        hub.log.info(
            "session moved",
            extra={"session": session.id, "replica": record.replica, "epoch": record.epoch},
        )

    async def fence(self, replica: Replica) -> None:
        """Void the holds on a replica's dead incarnation, once."""
        if replica.fenced:
            return
        replica.fenced = True
        try:
            incarnation = await self._hub.registered(
                self._hub.registry.fence_replica, replica.name, replica.incarnation
            )
        except RpcError:
            replica.fenced = False
            raise
        self.incarnations[replica.name] = max(incarnation, self.incarnations.get(replica.name, 0))

    # Hearing from others

    def changed(self, change: Change) -> None:
        """Act on a change that another process made in the registry."""
        hub = self._hub
        if isinstance(change, ReplicaChanged):
            fenced = change.incarnation > self.incarnations.get(change.replica, 0)
            self.incarnations[change.replica] = change.incarnation
            self.marked(change.replica, change.mark)
            replica = hub.replicas.get(change.replica)
            if fenced and replica is not None and replica.reachable:
                hub.tasks.spawn(self._hold_on(replica), f"hold on to {replica.name}")
        elif isinstance(change, PlacementChanged):
            hub.forget_owner(change.session_id)
            session = hub.sessions.get(change.session_id)
            record = change.placement
            if session is None or record is None:
                return
            seen = session.placement
            moved = record.replica != seen.replica
            # At the same epoch they differ where a registry that lost both heard of one first.
            if record.epoch > seen.epoch or (moved and record.epoch == seen.epoch):
                self.placed(session, record)
                if moved and session.moving is None:
                    self._follow(session, seen)
        elif isinstance(change, ChangesLost):
            hub.tasks.spawn(self._reread(), "read the registry again")

    def _follow(self, session: Session, seen: Placement) -> None:
        """Take the clients of a session to where another worker has moved it."""
        replica = self._hub.replicas.get(seen.replica)
        if replica is not None and replica.reachable:
            # Whoever moved it could not reach the replica; from here it may be alive and at work.
            self._hub.tasks.spawn(self._close_copy(session, replica), f"close {session.id}")
        for binding in list(session.bindings):
            binding.move_away()

    async def _close_copy(self, session: Session, replica: Replica) -> None:
        if session.placement.replica == replica.name:
            return
        try:
            await self._hub.ask(replica, "sessions.close", {"sessionId": session.id})
        except (RpcError, LinkLostError) as error:
            self._hub.log.info(
                "moved session not closed",
                extra={"session": session.id, "replica": replica.name, "reason": str(error)},
            )

    async def _hold_on(self, replica: Replica) -> None:
        """Hold what is live on a replica that another worker takes for dead, wrongly as it seems.

        Should it be dead all the same, this worker will soon fence it itself or move away.
        """
        for session in list(self._hub.sessions.values()):
            if session.live and session.placement.replica == replica.name and replica.reachable:
                try:
                    kept = await self.keep(session)
                except (RpcError, SessionNotFoundError):
                    continue
                if not session.live:
                    self.release_later(session.id)
                elif not kept:
                    for binding in list(session.bindings):
                        binding.move_away()

    async def _reread(self) -> None:
        try:
            known = await self._hub.registry.get_many(list(self._hub.sessions))
            self.incarnations = await self._hub.registry.replica_incarnations()
            await self.read_marks()
        except RegistryUnavailableError:
            return
        for placement in known.values():
            self.changed(PlacementChanged(placement.session_id, placement))

    @property
    def held(self) -> list[Placement]:
        """The records of the sessions that are live here."""
        return [one.placement for one in self._hub.sessions.values() if one.live]

    def republished(self, held: Iterable[Placement]) -> None:
        """Let go of what was told a registry as held, and has been left meanwhile."""
        for placement in held:
            session = self._hub.sessions.get(placement.session_id)
            if session is None or not session.live:
                self._holding.add(placement.session_id)
                self.release_later(placement.session_id)

    # Draining

    def marked(self, name: str, mark: str | None) -> None:
        """Begin or end the drain of a replica as the registry says."""
        replica = self._hub.replicas.get(name)
        draining = mark == DRAINING
        if replica is None or replica.health.draining == draining:
            return
        if mark is None:
            self._hub.tasks.spawn(self._mark_again(name), f"mark of {name}")
            return
        self._hub.drain(name, draining)
        if draining and self.free and not self._drains.get(name):
            self._drains[name] = True
            self._look_ahead()
            self._hub.tasks.spawn(self._evacuate(name), f"drain {name}")

    async def _mark_again(self, name: str) -> None:
        """Tell a registry that it has lost of a drain."""
        try:
            await self._hub.registered(self._hub.registry.set_replica_mark, name, DRAINING)
        except RpcError:
            return  # It will be told when it is back.

    async def read_marks(self) -> None:
        """Learn which replicas are being drained, and tell what was lost of it.

        Raises:
            RegistryUnavailableError: the registry is not available.
        """
        marks = await self._hub.registry.replica_marks()
        for name in list(self._hub.replicas):
            self.marked(name, marks.get(name))

    async def read_mark(self, name: str) -> None:
        """Learn whether a replica that is new here is being drained."""
        if self.gateway_id is None:
            return
        try:
            marks = await self._hub.registry.replica_marks()
        except RegistryUnavailableError:
            return
        self.marked(name, marks.get(name))

    def idle(self, session: Session) -> None:
        """Take the chance to move a session whose replica is being drained: its turn has ended."""
        replica = self._hub.replicas.get(session.placement.replica)
        if (
            self.free
            and replica is not None
            and replica.health.draining
            and replica.reachable
            and session.moving is None
            and session.live
            and session.quiet
        ):
            session.moving = asyncio.get_running_loop().create_future()
            self._hub.tasks.spawn(self._migrate(session, replica), f"move {session.id}")

    async def _evacuate(self, name: str) -> None:
        """Move a draining replica's sessions away, each when it is idle."""
        hub = self._hub
        try:
            while True:
                replica = hub.replicas.get(name)
                if replica is None or not replica.health.draining:
                    return
                if replica.reachable:
                    for session in [
                        one
                        for one in hub.sessions.values()
                        if one.placement.replica == name and one.live and one.moving is None
                    ]:
                        self.idle(session)
                await asyncio.sleep(_DRAIN_PAUSE)
        finally:
            self._drains.pop(name, None)
            self._look_ahead()

    async def _migrate(self, session: Session, replica: Replica) -> None:
        """Close an idle session on one replica and let its clients find it on another."""
        hub = self._hub
        moving = session.moving
        assert moving is not None
        try:
            if not session.quiet:
                return  # Something came in since it was found idle.
            for binding in list(session.bindings):
                binding.move_away()
            target = self.choose(session.id, without=replica.name)
            seen = session.placement
            if target is None or not await self._alone(session):
                return
            # Closed before it is moved: at no time is it live twice.
            await hub.ask(replica, "sessions.close", {"sessionId": session.id})
            record = await hub.registered(
                hub.registry.move, session.id, session.placement.epoch, target, self.gateway_id
            )
            if record is not None:
                self.placed(session, record)
                if (record.epoch, record.replica) == (seen.epoch + 1, target):
                    session.held = self._grip(record)
                hub.log.info(
                    "session moved", extra={"session": session.id, "replica": record.replica}
                )
        except (RpcError, LinkLostError) as error:
            hub.log.info(
                "session not moved yet", extra={"session": session.id, "reason": str(error)}
            )
        finally:
            session.moving = None
            moving.set_result(None)
            if not session.live:
                self.release_later(session.id)

    async def _alone(self, session: Session) -> bool:
        """Wait shortly for the other holders of an idle session to let go of it too."""
        hub = self._hub
        if self.gateway_id is None:
            return True
        give_up = hub.now() + _HANDS_OFF
        epoch = session.placement.epoch
        session.held = None
        await hub.registered(hub.registry.release, [session.id], self.gateway_id)
        while await self._held_elsewhere(session.id):
            if session.placement.epoch != epoch or hub.now() >= give_up:
                return False  # Its clients hold it again when they come back to it.
            await asyncio.sleep(hub.limits.redial_delay)
        return True


async def _wait_until(replica: Replica, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await replica.until_reachable()
    except TimeoutError:
        pass


def no_lease(retry_after: float) -> RpcError:
    """Return the error for a prompt while this worker may no longer be the session's only one."""
    return RpcError(
        errors.REGISTRY_UNAVAILABLE,
        "The registry has been unavailable for too long to go on safely",
        {"retryAfterMs": int(retry_after * 1000)},
    )
