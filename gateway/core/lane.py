"""The fast lane: what passes as it came, and is at most noted on its way.

:func:`receive_requests` and :func:`receive_answers` take what was read from a client and from a
replica. :func:`pass_requests` lets a client's requests about open sessions pass, prompts included,
:func:`pass_answers` a replica's events and good answers: nearly all traffic. Both stop at the first
frame that is anything else, which ``client`` and ``link`` then deal with.

Each has a twin in C (``_lane.c``), built where a compiler is at hand, that works on the very same
objects. Whoever changes a form here changes both; the tests hold one against the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from gateway.core.pending import Pending, PendingHook
from gateway.core.turn import Prompt
from gateway.wire.scan import scan
from gateway.wire.stream import LOUD_EVENTS, Kind, look, skim

if TYPE_CHECKING:
    from gateway.core.client import Client
    from gateway.core.link import Link
    from gateway.core.stats import Stats

MAX_DIRECT_BYTES = 64 * 1024
"""Largest request that is tried: a larger one is most likely a prompt, and not worth two looks."""

TIMED_READS = 16
"""One read in so many is timed: looking at the clock costs a tenth of what passing a message does,
and a distribution needs no more."""

SHORT_READ_BYTES = 16 * 1024
"""A replica's read below this may be all it may send until it is acknowledged."""

ANSWERS_ALONE = 4
"""Reads in a row with nothing but answers after which a replica is not acknowledged at once.

It writes each message by itself and leaves Nagle's algorithm on, so that it may hold back the next
one until the last is acknowledged. A client that asks one thing at a time and hears nothing besides
will go on like that, and its next request carries the acknowledgement. A wrong guess delays one
message by 40 ms.
"""


class ClientReader(Protocol):
    """Reads what a client sends.

    Attributes:
        client: the client; None before it is admitted, and if it is turned away.
        reads: how often something was read.
    """

    client: Client | None
    reads: int

    def timed(self, data: bytes, /) -> None:
        """Feed the client, and measure how long that takes."""

    def acknowledge(self) -> None:
        """Acknowledge what was read without delay."""


class LinkReader(Protocol):
    """Reads what a replica sends; as :class:`ClientReader`, with a link that there always is."""

    link: Link
    reads: int

    def timed(self, data: bytes, /) -> None:
        """Feed the link, and measure how long that takes."""

    def acknowledge(self) -> None:
        """Acknowledge what was read without delay."""


# A plain integer: comparing members of an enumeration costs as much as the rest of a frame.
_EVENT, _RESPONSE = int(Kind.EVENT), int(Kind.RESPONSE)


def pass_requests_python(
    data: bytes,
    pos: int,
    max_frame: int,
    client: Client,
    stats: Stats,
    now: Callable[[], float],
    max_pending: int,
) -> int:
    """Forward requests byte for byte; the reference form of :func:`pass_requests`."""
    size = len(data)
    pending = client.pending
    while pos < size and not client.closed:
        found = scan(data, pos, max_frame)
        if found is None:
            break
        body, end, request_id, method, session_id = found
        tenant = client.tenant_stats
        binding = None if session_id is None else client.bindings.get(session_id)
        direct = client.direct.get(method)
        if (
            tenant is None
            or binding is None
            or not binding.open
            or direct is None
            or request_id is None
            or request_id in pending
            or len(pending) >= max_pending
        ):
            break
        link = binding.link
        if link is None or link.closed or link.sink is None:
            break
        rule, counters, prompts = direct
        frame = data if end - pos == size else data[pos:end]
        started = now()
        if prompts:
            hook = binding.prompted(frame, rule, started)
            if hook is None:
                break
            pending[request_id] = PendingHook(
                link, binding, frame, rule, counters, started, hook, rewrites=False, notes=True
            )
        elif client.allows(end - body):
            pending[request_id] = Pending(link, binding, frame, rule, counters, started)
        else:
            break
        tenant.requests += 1
        stats.frames_from_client += 1
        link.replica.stats.in_flight += 1
        link.send(frame)
        pos = end
    return pos


def pass_answers_python(
    data: bytes, pos: int, max_frame: int, link: Link, now: Callable[[], float]
) -> tuple[int, int, int] | None:
    """Forward what merely passes; the reference form of :func:`pass_answers`."""
    start = pos
    events = answers = 0
    client = link.client
    while True:
        pos, run = skim(data, pos)
        events += run
        found = look(data, pos, max_frame)
        if found is None or client is None:
            break
        kind, key, name, _, body, end = found
        if kind == _EVENT:
            binding = client.bindings.get(key)
            if binding is not None:
                binding.event(name, data[body:end])
            events += 1
            pos = end
            continue
        if kind != _RESPONSE or name != "result":
            break
        pending = client.pending.get(key)
        if pending is None or pending.link is not link:
            break
        hook = pending.hook
        if hook is not None and not pending.notes:
            break
        del client.pending[key]
        pending.stats.ok += 1
        pending.stats.duration.observe(now() - pending.started)
        link.replica.stats.in_flight -= 1
        if hook is not None:
            hook(True, data[body:end])
        answers += 1
        pos = end
    if start == 0 and pos == len(data) and client is not None:
        link.passed(data, events, answers, 0)
        return None
    return pos, events, answers


def receive_requests_python(reader: ClientReader, data: bytes) -> None:
    """Take what was read from a client; the reference form of :func:`receive_requests`."""
    client = reader.client
    if client is None:
        return
    reader.reads += 1
    if reader.reads % TIMED_READS:
        client.feed(data)
    else:
        reader.timed(data)
    if client.begun and not client.closed:
        reader.acknowledge()


def receive_answers_python(reader: LinkReader, data: bytes) -> None:
    """Take what was read from a replica; the reference form of :func:`receive_answers`."""
    link = reader.link
    reader.reads += 1
    if reader.reads % TIMED_READS:
        link.feed(data)
    else:
        reader.timed(data)
    # The kernel goes on acknowledging at once until the next write, which it expects to carry the
    # acknowledgements from then on.
    if (
        link.sent
        and link.answers_alone < ANSWERS_ALONE
        and (len(data) < SHORT_READ_BYTES or link.begun)
        and not link.closed
    ):
        link.sent = False
        reader.acknowledge()


pass_requests = pass_requests_python
"""``pass_requests(data, pos, max_frame, client, stats, now, max_pending) -> pos``.

Forward the client's requests from ``pos`` on, each noted as in flight and counted, up to the first
that is not in canonical form, not in :attr:`Client.direct`, not about an open session, or over a
limit; return where that starts.
"""

pass_answers = pass_answers_python
"""``pass_answers(data, pos, max_frame, link, now) -> (pos, events, answers) | None``.

Pass over the replica's events, of which the loud ones are told to their binding, and over good
answers to requests that went out on ``link`` and have no hook or one that only takes note; their
requests are no longer in flight, and counted. If that is all of ``data``, it is counted and handed
to the client as it is, and None returned. Otherwise that is left to the caller, as well as the
frame at ``pos``.
"""

receive_requests: Callable[[Any, bytes], None] = receive_requests_python
"""``receive_requests(reader, data)``: the ``data_received`` of a :class:`ClientReader`."""

receive_answers: Callable[[Any, bytes], None] = receive_answers_python
"""``receive_answers(reader, data)``: the ``data_received`` of a :class:`LinkReader`."""

try:
    from gateway.core import _lane  # type: ignore[attr-defined,unused-ignore]
except ImportError:
    ACCELERATED = False
else:
    _lane.set_loud(tuple(sorted(name.encode() for name in LOUD_EVENTS)))
    _lane.set_types(Pending, PendingHook, Prompt)
    _lane.set_reading(MAX_DIRECT_BYTES, TIMED_READS, SHORT_READ_BYTES, ANSWERS_ALONE)
    pass_requests = _lane.pass_requests
    pass_answers = _lane.pass_answers
    receive_requests = _lane.receive_requests
    receive_answers = _lane.receive_answers
    ACCELERATED = True
