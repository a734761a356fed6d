"""The health of a replica: one state machine, fed by probes and by traffic. Pure.

States are :class:`~gateway.types.ReplicaState`. One function, :meth:`Health._become`, moves the
state. Time is always an argument (seconds of a monotonic clock).
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.types import ReplicaState


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When a replica is ejected and for how long.

    Attributes:
        failures: consecutive failures that eject.
        ban_base: seconds of the first ban; doubled by each further one.
        ban_max: longest ban in seconds.
        forgive: seconds without failure after which the next ban is a first one again.
    """

    failures: int = 3
    ban_base: float = 1.0
    ban_max: float = 60.0
    forgive: float = 300.0


class Health:
    """The state of one replica.

    Attributes:
        state: the current state.
        ejections: how often it was ejected since the start.
        reason: why it is in this state, for people.
    """

    __slots__ = (
        "_banned_until",
        "_bans",
        "_draining",
        "_failures",
        "_last_failure",
        "_policy",
        "ejections",
        "reason",
        "state",
    )

    def __init__(self, policy: HealthPolicy) -> None:
        self._policy = policy
        self._failures = 0
        self._bans = 0
        self._banned_until = 0.0
        self._last_failure = float("-inf")
        self._draining = False
        self.ejections = 0
        self.state = ReplicaState.STARTING
        self.reason = "not probed yet"

    def _become(self, state: ReplicaState, reason: str) -> bool:
        changed = state is not self.state
        self.state = state
        self.reason = reason
        return changed

    @property
    def reachable(self) -> bool:
        """Whether sessions placed here can be served."""
        return self.state in (ReplicaState.UP, ReplicaState.DRAINING)

    @property
    def accepts_new(self) -> bool:
        """Whether new sessions may be placed here."""
        return self.state is ReplicaState.UP

    def may_probe(self, now: float) -> bool:
        """Whether it is time to look again: not while a ban runs."""
        return now >= self._banned_until

    def retry_after(self, now: float) -> float:
        """Return the seconds until the next probe may run (0 if it may now)."""
        return max(0.0, self._banned_until - now)

    def succeeded(self, now: float) -> bool:
        """Note a good probe; return whether the state changed."""
        self._failures = 0
        if now - self._last_failure > self._policy.forgive:
            self._bans = 0
        if self._draining:
            return self._become(ReplicaState.DRAINING, "draining")
        return self._become(ReplicaState.UP, "probes succeed")

    def failed(self, now: float, reason: str) -> bool:
        """Note a failed probe, connect or a timeout; return whether the state changed."""
        self._last_failure = now
        self._failures += 1
        if not self.reachable and self.state is not ReplicaState.EJECTED:
            # Never seen up, or known to be gone: nothing to eject, keep looking at every probe.
            return self._become(self.state, reason)
        if self._failures < self._policy.failures:
            return False
        ban = min(self._policy.ban_base * 2**self._bans, self._policy.ban_max)
        self._bans = min(self._bans + 1, 32)
        self._banned_until = now + ban
        self._failures = 0
        self.ejections += 1
        return self._become(ReplicaState.EJECTED, f"ejected for {ban:g} s: {reason}")

    def gone(self, now: float, reason: str) -> bool:
        """Note that its process is known to have ended; return whether the state changed."""
        self._last_failure = now
        self._failures = 0
        return self._become(ReplicaState.DOWN, reason)

    def drain(self, draining: bool) -> bool:
        """Start or end draining; return whether the state changed."""
        self._draining = draining
        if self.state is ReplicaState.UP and draining:
            return self._become(ReplicaState.DRAINING, "draining")
        if self.state is ReplicaState.DRAINING and not draining:
            return self._become(ReplicaState.UP, "drain was taken back")
        return False

    @property
    def draining(self) -> bool:
        """Whether the operator has asked for a drain, whatever the state."""
        return self._draining
