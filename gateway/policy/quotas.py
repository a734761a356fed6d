"""Quotas of tenants and users: rates and counts, in memory that clients cannot grow. Pure.

A :class:`Quota` is what a tenant, or one user, may use and uses. A client holds an
:class:`Allowance`: the quotas that apply to it, or None where none does, so that without quotas a
message costs one comparison. Times are arguments, in seconds of one clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from gateway.errors import OVERLOADED, RpcError
from gateway.types import Owner

_SWEEP: Final = 3
"""Entries looked at for each new user, and dropped if unused: more can go than come, so the table
shrinks again."""

_ROUNDING: Final = 1e-6
"""Tokens that may be missing: waiting as told must be enough, whatever arithmetic loses."""

RETRY_COUNT_MS: Final = 1000
"""When to try again after a count was reached: nobody can know when a connection will end."""

_MIN_RETRY_MS: Final = 10

EVERY_OTHER_TENANT: Final = "*"


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """What may be used; 0 means no limit.

    Attributes:
        connections: client connections at a time.
        sessions: live sessions at a time.
        turns: sessions that work on a prompt at a time.
        messages_per_second: messages towards the gateway.
        bytes_per_second: their bytes.
        max_frame: largest message in bytes.
    """

    connections: int = 0
    sessions: int = 0
    turns: int = 0
    messages_per_second: float = 0.0
    bytes_per_second: float = 0.0
    max_frame: int = 0


NO_LIMITS: Final = QuotaLimits()


@dataclass(frozen=True, slots=True)
class TenantRule:
    """What is settled for one tenant.

    Attributes:
        limits: what it may use.
        user_limits: what each of its users may use.
        shared_sessions: its users share their sessions.
    """

    limits: QuotaLimits = NO_LIMITS
    user_limits: QuotaLimits = NO_LIMITS
    shared_sessions: bool = False


class Rate:
    """A token bucket that may go into debt.

    Something passes while there is enough to begin with, and takes its whole cost: so a message
    larger than a second's worth is not stuck for ever, and the average still holds.
    """

    __slots__ = ("_at", "_burst", "_level", "_need", "_rate")

    def __init__(self, rate: float, now: float, need: float = 1.0) -> None:
        """Start full; the bucket holds one second's worth, and at least ``need``.

        Args:
            rate: what comes in per second.
            now: the time.
            need: what must be there for something to pass.
        """
        self._rate = rate
        self._need = need
        self._burst = self._level = max(rate, need)
        self._at = now

    def wait(self, now: float) -> float:
        """Return the seconds until something may pass; 0 for at once."""
        if now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now
        if self._level >= self._need - _ROUNDING:
            return 0.0
        return (self._need - self._level) / self._rate

    def spend(self, cost: float) -> None:
        """Take the cost of something that passed; call :meth:`wait` first."""
        self._level -= cost

    def is_full(self, now: float) -> bool:
        """Whether nothing is owed to it, so that a new bucket would be the same."""
        return self.wait(now) == 0.0 and self._level >= self._burst


class LiveSession(Protocol):
    """What counts as a session here."""

    @property
    def busy(self) -> bool:
        """Whether it works on a prompt."""


class Quota:
    """What one tenant or user uses.

    Attributes:
        limits: what it may use.
        prefix: what its limits are called in errors: ``tenant`` or ``user``.
        connections: client connections now.
        opening: sessions that are being created or resumed.
        sessions: sessions that are live.
    """

    __slots__ = ("_bytes", "_messages", "connections", "limits", "opening", "prefix", "sessions")

    def __init__(self, limits: QuotaLimits, prefix: str, now: float) -> None:
        self.limits = limits
        self.prefix = prefix
        self.connections = 0
        self.opening = 0
        self.sessions: set[LiveSession] = set()
        self._messages = self._bytes = None
        self.change(limits, now)

    def __repr__(self) -> str:
        return (
            f"<Quota {self.prefix} connections={self.connections} sessions={len(self.sessions)} "
            f"opening={self.opening}>"
        )

    _messages: Rate | None
    _bytes: Rate | None

    def change(self, limits: QuotaLimits, now: float) -> None:
        """Take other limits, as after a reload; what is over them stays."""
        self.limits = limits
        self._messages = (
            Rate(limits.messages_per_second, now) if limits.messages_per_second else None
        )
        self._bytes = Rate(limits.bytes_per_second, now) if limits.bytes_per_second else None

    def wait(self, now: float) -> tuple[float, str, float]:
        """Return the seconds until a message may pass, and the limit that says so."""
        worst = (0.0, "", 0.0)
        if self._messages is not None:
            seconds = self._messages.wait(now)
            if seconds > worst[0]:
                worst = (seconds, "messages_per_second", self.limits.messages_per_second)
        if self._bytes is not None:
            seconds = self._bytes.wait(now)
            if seconds > worst[0]:
                worst = (seconds, "bytes_per_second", self.limits.bytes_per_second)
        return worst

    def spend(self, size: int) -> None:
        """Count a message of ``size`` bytes."""
        if self._messages is not None:
            self._messages.spend(1.0)
        if self._bytes is not None:
            self._bytes.spend(size)

    def refusal(self, name: str, used: int) -> RpcError | None:
        """Return the error for one more of ``name`` when ``used`` are in use, or None if it may."""
        limit: int = getattr(self.limits, name)
        if not limit or used < limit:
            return None
        return over(f"{self.prefix}.{name}", limit, RETRY_COUNT_MS)

    def is_idle(self, now: float) -> bool:
        """Whether forgetting it changes nothing."""
        return (
            not self.connections
            and not self.opening
            and not self.sessions
            and all(rate is None or rate.is_full(now) for rate in (self._messages, self._bytes))
        )


def over(limit: str, value: float, retry_after_ms: int) -> RpcError:
    """Return the error for a quota that was reached."""
    return RpcError(
        OVERLOADED,
        f"The quota {limit} ({value:g}) is reached",
        {"limit": limit, "value": value, "retryAfterMs": retry_after_ms},
    )


class Allowance:
    """The quotas that apply to one client.

    Invariants: what was counted for a client is counted for its tenant and its user alike.
    """

    __slots__ = ("_quotas",)

    def __init__(self, quotas: tuple[Quota, ...]) -> None:
        self._quotas = quotas

    def connect(self) -> RpcError | None:
        """Count a connection; return why it may not be, and then count nothing."""
        for quota in self._quotas:
            refusal = quota.refusal("connections", quota.connections)
            if refusal is not None:
                return refusal
        self.join()
        return None

    def join(self) -> None:
        """Count a connection that may be, whatever the limits say: it was there before them."""
        for quota in self._quotas:
            quota.connections += 1

    def disconnect(self) -> None:
        """Count the end of a connection."""
        for quota in self._quotas:
            quota.connections -= 1

    def take(self, size: int, now: float) -> tuple[float, RpcError | None]:
        """Count a message unless it is over a rate.

        Returns:
            The seconds until it may be sent again, and the error to answer with; 0 and None if it
            was counted.
        """
        worst, name, value, prefix = 0.0, "", 0.0, ""
        for quota in self._quotas:
            seconds, limit, rate = quota.wait(now)
            if seconds > worst:
                worst, name, value, prefix = seconds, limit, rate, quota.prefix
        if worst > 0:
            return worst, over(f"{prefix}.{name}", value, max(_MIN_RETRY_MS, int(worst * 1000) + 1))
        self.spend(size)
        return 0.0, None

    def spend(self, size: int) -> None:
        """Count a message that passes in any case."""
        for quota in self._quotas:
            quota.spend(size)

    def open_session(self) -> RpcError | None:
        """Count a session that is being made live; return why it may not be, and count nothing."""
        for quota in self._quotas:
            refusal = quota.refusal("sessions", len(quota.sessions) + quota.opening)
            if refusal is not None:
                return refusal
        for quota in self._quotas:
            quota.opening += 1
        return None

    def session_opened(self) -> None:
        """Note that the attempt of :meth:`open_session` has ended, one way or the other."""
        for quota in self._quotas:
            quota.opening -= 1

    def session_live(self, session: LiveSession) -> None:
        """Count a session that a client is attached to."""
        for quota in self._quotas:
            quota.sessions.add(session)

    def start_turn(self) -> RpcError | None:
        """Return why one more session may not begin to work, or None."""
        for quota in self._quotas:
            if quota.limits.turns:
                refusal = quota.refusal("turns", sum(one.busy for one in quota.sessions))
                if refusal is not None:
                    return refusal
        return None

    def max_frame(self, limit: int) -> int:
        """Return the size of the largest message, at most ``limit``."""
        return min([limit, *(q.limits.max_frame for q in self._quotas if q.limits.max_frame)])


@dataclass(slots=True)
class Quotas:
    """The quotas of all tenants and users that use the gateway now.

    Attributes:
        clock: seconds, for the age of unused entries.
        rules: by tenant; :data:`EVERY_OTHER_TENANT` for those that are not named.
    """

    clock: Callable[[], float]
    rules: Mapping[str, TenantRule] = field(default_factory=dict)
    _used: OrderedDict[Owner | str, Quota] = field(default_factory=OrderedDict, init=False)

    def __len__(self) -> int:
        """Return the number of entries held."""
        return len(self._used)

    def rule(self, tenant: str) -> TenantRule:
        """Return what is settled for a tenant."""
        rules = self.rules
        return rules.get(tenant) or rules.get(EVERY_OTHER_TENANT) or _NO_RULE

    def change(self, rules: Mapping[str, TenantRule]) -> None:
        """Take other rules, as after a reload; what is in use goes on being counted."""
        self.rules = rules
        now = self.clock()
        for key, quota in self._used.items():
            limits = self._limits(key)
            if limits != quota.limits:
                quota.change(limits, now)

    def _limits(self, key: Owner | str) -> QuotaLimits:
        if isinstance(key, Owner):
            return self.rule(key.tenant).user_limits
        return self.rule(key).limits

    def allowance(self, owner: Owner) -> Allowance | None:
        """Return the quotas of a client, or None if its tenant has no limits.

        To be used at once: what nobody uses is forgotten when others come.
        """
        if not self.rules:
            return None
        rule = self.rule(owner.tenant)
        if rule.limits == NO_LIMITS and rule.user_limits == NO_LIMITS:
            return None
        if owner not in self._used:
            self._sweep(self.clock())
        return Allowance((self._quota(owner.tenant), self._quota(owner)))

    def session_live(self, session: LiveSession, owner: Owner) -> None:
        """Count a session that a client is attached to."""
        allowance = self.allowance(owner)
        if allowance is not None:
            allowance.session_live(session)

    def session_ended(self, session: LiveSession, owner: Owner) -> None:
        """Stop counting a session; one that was not counted is ignored."""
        for key in (owner.tenant, owner):
            quota = self._used.get(key)
            if quota is not None:
                quota.sessions.discard(session)

    def _quota(self, key: Owner | str) -> Quota:
        quota = self._used.get(key)
        if quota is None:
            prefix = "user" if isinstance(key, Owner) else "tenant"
            quota = self._used[key] = Quota(self._limits(key), prefix, self.clock())
        return quota

    def _sweep(self, now: float) -> None:
        for _ in range(min(_SWEEP, len(self._used))):
            key, quota = self._used.popitem(last=False)
            if not quota.is_idle(now):
                self._used[key] = quota


_NO_RULE: Final = TenantRule()
