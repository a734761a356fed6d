"""Requests in flight."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.core.binding import Binding
    from gateway.core.link import Link
    from gateway.core.request import Request
    from gateway.core.stats import MethodStats
    from gateway.policy.rules import MethodRule

Hook = Callable[[bool | None, bytes], Any]
"""``hook(ok, body)``: called with the answer; ``ok`` is None if it never comes."""


class Pending:
    """A request that was sent to a replica and not yet answered.

    Attributes:
        link: the link on which its answer is accepted.
        binding: the session it is about, or None.
        request: the request, for those that may have to be sent again; if it was not read, its
            frame.
        rule: the policy's rule for its method.
        stats: counters of its method class.
        started: when it arrived (``Hub.now``).
        hook: called with the answer, or None.
        rewrites: the answer is not forwarded; the hook sends what the client gets.
        notes: the hook only takes notice, and does not mind being called before the answer has
            left: what follows the answer leaves with it, in one write.
    """

    __slots__ = ("binding", "link", "request", "rule", "started", "stats")

    # Of those that merely pass, which is nearly all; others are of the subclass.
    hook: Hook | None = None
    rewrites: bool = False
    notes: bool = False

    def __init__(
        self,
        link: Link | None,
        binding: Binding | None,
        request: Request | bytes | None,
        rule: MethodRule,
        stats: MethodStats,
        started: float,
    ) -> None:
        self.link = link
        self.binding = binding
        self.request = request
        self.rule = rule
        self.stats = stats
        self.started = started


class PendingHook(Pending):
    """A request whose answer somebody waits for or takes note of."""

    __slots__ = ("hook", "notes", "rewrites")

    def __init__(
        self,
        link: Link | None,
        binding: Binding | None,
        request: Request | bytes,
        rule: MethodRule,
        stats: MethodStats,
        started: float,
        hook: Hook,
        *,
        rewrites: bool,
        notes: bool,
    ) -> None:
        super().__init__(link, binding, request, rule, stats, started)
        self.hook = hook
        self.rewrites = rewrites
        self.notes = notes
