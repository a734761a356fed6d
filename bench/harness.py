"""The data path alone, for counting: recorded messages through the core, without sockets.

``python -m bench.harness LIBRARY`` is what :mod:`bench.instructions` runs under valgrind; LIBRARY
is ``native/callgrind.c``, compiled. It prints how many messages each case fed, as JSON.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial

from gateway.core import lane
from gateway.core.client import Client
from gateway.core.hub import Limits
from gateway.core.link import Link
from gateway.wire.framing import encode
from tests.support.playbook import Stage

MESSAGES = 400
"""Of each case; enough that what comes once does not matter."""

WARM_UP = 100
"""Messages before; the interpreter specializes code that has run for a while."""

TURN_EVENTS = 100
"""Events of a turn."""

RUN_EVENTS = 160
"""Events in one chunk of a burst: what a read of 64 KiB holds."""

SESSION = "0f8fad5b-d9cb-469f-a165-70867728950e"

_EVENT = (
    '{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"%s","event":{"type":'
    '"assistant.message_delta","data":{"messageId":"7c9e6679-7425-40de-944b-e07fc1f90ae7",'
    '"deltaContent":"%s"},"ephemeral":true,"id":"00000000-0000-4000-8000-%012d",'
    '"timestamp":"2026-01-01T00:00:00.000Z","parentId":null}}}'
)
_REQUEST = '{"jsonrpc":"2.0","id":%d,"method":"session.getMessages","params":{"sessionId":"%s"}}'
_PROMPT = (
    '{"jsonrpc":"2.0","id":%d,"method":"session.send","params":{"sessionId":"%s","prompt":"hi"}}'
)
_ACCEPTED = '{"jsonrpc":"2.0","id":%d,"result":{"messageId":"0f8fad5b-d9cb-469f-a165-708677289"}}'
_IDLE = (
    '{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"%s","event":{"type":'
    '"session.idle","data":{"mode":"interactive"},"ephemeral":true,'
    '"id":"00000000-0000-4000-8000-000000000000",'
    '"timestamp":"2026-01-01T00:00:00.000Z","parentId":null}}}'
)
_ANSWER = '{"jsonrpc":"2.0","id":%d,"result":{"events":[]}}'


class _Nowhere:
    """Takes bytes and keeps the last; implements :class:`gateway.core.ports.Sink`."""

    def __init__(self) -> None:
        self.last: bytes | memoryview = b""

    def write(self, data: bytes | memoryview, /) -> None:
        """Take bytes."""
        self.last = data

    def writelines(self, parts: Iterable[bytes | memoryview], /) -> None:
        """Take bytes."""
        self.last = b"".join(parts)

    def pause_reading(self) -> None:
        """Ignore it: nothing is waited for."""

    def resume_reading(self) -> None:
        """Ignore it."""

    def close(self) -> None:
        """Ignore it: the run ends anyway."""

    def abort(self) -> None:
        """Ignore it."""

    def is_closing(self) -> bool:
        """Stay open."""
        return False


class _Reader:
    """Stands for the protocol of a connection."""

    __slots__ = ("client", "link", "reads")

    def __init__(self, client: Client | None, link: Link) -> None:
        self.client = client
        self.link = link
        self.reads = 0

    def timed(self, data: bytes) -> None:
        """Do not measure it here."""
        feed = self.link.feed if self.client is None else self.client.feed
        feed(data)

    def acknowledge(self) -> None:
        """Ignore it: nothing is waited for."""


def _each(feed: Callable[[bytes], None], chunks: list[bytes]) -> None:
    for chunk in chunks:
        feed(chunk)


async def count(begin: Callable[[], None], end: Callable[[str], None]) -> dict[str, int]:
    """Feed every case between ``begin`` and ``end``; return the number of messages of each."""
    stage = Stage(Limits())
    await stage.adds("cli-0")
    alice = await stage.client("alice")
    await alice.creates(SESSION)
    await stage.settle()
    client, line = alice.core, stage.cli.line_of(alice)
    # From here on nothing but the core itself is to be counted.
    client.sink, line.link.sink = to_client, to_replica = _Nowhere(), _Nowhere()
    ask = partial(lane.receive_requests, _Reader(client, line.link))
    answer = partial(lane.receive_answers, _Reader(None, line.link))
    stage.hub.now = time.monotonic
    done: dict[str, int] = {}

    def case(
        name: str,
        feed: Callable[[bytes], None],
        chunks: list[bytes],
        sink: _Nowhere,
        messages: int = 1,
    ) -> None:
        warm = WARM_UP * len(chunks) // (MESSAGES + WARM_UP)
        _each(feed, chunks[:warm])
        begin()
        _each(feed, chunks[warm:])
        end(name)
        if sink.last != chunks[-1]:
            raise RuntimeError(f"{name}: not forwarded as it came")
        done[name] = messages * (len(chunks) - warm)

    total = MESSAGES + WARM_UP
    ids = range(1_000_000, 1_000_000 + total)
    requests = [encode((_REQUEST % (one, SESSION)).encode()) for one in ids]
    answers = [encode((_ANSWER % one).encode()) for one in ids]
    events = [
        encode((_EVENT % (SESSION, "word " * 15, number)).encode())
        for number in range(RUN_EVENTS * 40)
    ]
    case("request", ask, requests, to_replica)
    case("answer", answer, answers, to_client)
    case("event", answer, events[:total], to_client)
    runs = [b"".join(events[at : at + RUN_EVENTS]) for at in range(0, len(events), RUN_EVENTS)]
    case("event-run", answer, runs, to_client, RUN_EVENTS)

    prompts = [encode((_PROMPT % (one, SESSION)).encode()) for one in ids]
    burst = b"".join(events[:TURN_EVENTS]) + encode((_IDLE % SESSION).encode())
    bursts = iter([encode((_ACCEPTED % one).encode()) + burst for one in ids])

    def turn(prompt: bytes) -> None:
        ask(prompt)
        answer(next(bursts))

    case("turn", turn, prompts, to_replica)
    await stage.close()
    return done


def main() -> int:
    """Run all cases; counted only under valgrind."""
    library = ctypes.CDLL(sys.argv[1])
    done = asyncio.run(count(library.count_begin, lambda name: library.count_end(name.encode())))
    sys.stdout.write(json.dumps(done) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
