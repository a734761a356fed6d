"""Random damage to real traffic, for a bounded time: frames and envelopes never surprise.

``FUZZ_SECONDS`` lengthens each run, ``FUZZ_SEED`` repeats one.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator

import pytest

from gateway.wire import envelope, framing, stream
from gateway.wire.framing import FrameDecoder, FramingError, encode
from tests.support.strategies import FRAGMENTS

SECONDS = float(os.environ.get("FUZZ_SECONDS", "1.5"))
LIMIT = 1 << 14

CLIENT_CORPUS = [
    b'{"jsonrpc":"2.0","id":0,"method":"connect","params":{"token":"t","clientInfo":{}}}',
    b'{"jsonrpc":"2.0","id":"0b3f","method":"session.create","params":{"sessionId":"s","tools":'
    b'[{"name":"x","parameters":{"type":"object"}}],"provider":{"apiKey":"k"}}}',
    b'{"jsonrpc":"2.0","id":17,"method":"session.send","params":{"sessionId":"s","prompt":"\xc3\xa4"}}',
    b'{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":17}}',
    b'{"jsonrpc":"2.0","id":3,"result":{"output":null}}',
    b'{"jsonrpc":"2.0","id":3,"error":{"code":-32603,"message":"no"}}',
]
REPLICA_CORPUS = [
    stream.EVENT_PREFIX + b's","event":{"type":"assistant.message_delta","data":{"x":1}}}}',
    stream.EVENT_PREFIX + b's","event":{"type":"session.idle","data":{},"ephemeral":true}}}',
    b'{"jsonrpc":"2.0","method":"session.lifecycle","params":{"type":"session.updated",'
    b'"sessionId":"s","metadata":{"startTime":"2026"}}}',
    b'{"jsonrpc":"2.0","id":1,"method":"hooks.invoke","params":{"sessionId":"s","input":{}}}',
    b'{"jsonrpc":"2.0","id":"0b3f","result":{"sessionId":"s"}}',
    b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"?"}}',
]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Randomness whose seed a failing test prints."""
    seed = int(os.environ.get("FUZZ_SEED", time.time_ns() % 2**32))
    print(f"FUZZ_SEED={seed}")
    return random.Random(seed)


def damaged(rng: random.Random, corpus: list[bytes]) -> bytes:
    """Return a few frames, some damaged inside (the length still right), some outside."""
    out = []
    for body in rng.choices(corpus, k=rng.randint(1, 4)):
        data = bytearray(body)
        if rng.random() < 0.6:
            _damage(rng, data)
        frame = bytearray(encode(bytes(data)))
        if rng.random() < 0.3:
            _damage(rng, frame)
        out.append(bytes(frame))
    return b"".join(out)


def _damage(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(data))
        match rng.randint(0, 4):
            case 0:
                data[at : at + rng.randint(1, 8)] = b""
            case 1:
                data[at:at] = rng.choice(FRAGMENTS)
            case 2:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 3:
                data[at:at] = data[at : at + 30]
            case _:
                data[at:at] = bytes([rng.choice(b'[{"\\')]) * rng.randint(1, 300)


def rounds() -> Iterator[int]:
    """Count until the time is up, at least to a hundred."""
    give_up = time.monotonic() + SECONDS
    for count in itertools.count():
        yield count
        if count >= 100 and time.monotonic() > give_up:
            return


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    edges = sorted({0, len(data), *(rng.randint(0, len(data)) for _ in range(rng.randint(0, 5)))})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def bodies(chunks: list[bytes]) -> tuple[list[bytes], bool]:
    decoder = FrameDecoder(LIMIT, max_header=256)
    found: list[bytes] = []
    try:
        for chunk in chunks:
            found += decoder.feed(chunk)
        found += decoder.feed(b"")
    except FramingError:
        return found, True
    return found, False


def test_what_clients_may_send(rng: random.Random) -> None:
    for _ in rounds():
        data = damaged(rng, CLIENT_CORPUS)
        found, broken = bodies([data])
        assert bodies(cut(rng, data)) == (found, broken)
        for body in found:
            try:
                message = envelope.parse(body)
            except envelope.BadMessageError as error:
                sent = envelope.error_frame(error.request_id, error.error)
            else:
                sent = envelope.encode(message)
                assert envelope.parse(sent.partition(framing.HEADER_END)[2]) == message
            assert len(bodies([sent])[0]) == 1 or len(sent) > LIMIT


def test_what_replicas_may_send(rng: random.Random) -> None:
    for _ in rounds():
        data = damaged(rng, REPLICA_CORPUS)
        pos = 0
        while pos < len(data):
            end, frames = stream.skim(data, pos)
            assert (end, frames) == stream.skim_python(data, pos)
            assert pos <= end <= len(data)
            pos = end
            if pos == len(data):
                break
            try:
                header = framing.read_header(data, pos)
            except FramingError:
                break
            if header is None or header.end > len(data):
                break
            found = stream.peek(data, *header)
            if found.kind is stream.Kind.REQUEST:
                stream.with_id(data, *header, found.tail, 1)
            pos = header.end
