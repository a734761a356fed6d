"""Framing: any chunking equals all at once, and garbage is a typed error."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.wire import framing
from gateway.wire.framing import (
    FrameBuffer,
    FrameDecoder,
    FrameTooLargeError,
    FramingError,
    encode,
    read_header,
)
from tests.support.strategies import chunked, frames, mutated

LIMIT = 1 << 16
Outcome = tuple[list[bytes], str | None, int]


def decode(chunks: list[bytes], limit: int = LIMIT, max_header: int = 200) -> Outcome:
    """Feed chunks; return the bodies, the error if one came, and the bytes still held."""
    decoder = FrameDecoder(limit, max_header)
    bodies: list[bytes] = []
    try:
        for chunk in chunks:
            bodies += decoder.feed(chunk)
        while more := decoder.feed(b""):
            bodies += more
    except FramingError as error:
        return bodies, error.hint, 0
    return bodies, None, len(decoder.buffer)


def one_by_one(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@given(st.lists(st.binary(max_size=300), max_size=6), st.data())
def test_what_is_encoded_is_decoded_in_any_chunking(
    bodies: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(map(encode, bodies))
    assert decode(data.draw(chunked(stream))) == (bodies, None, 0)
    assert decode(one_by_one(stream)) == (bodies, None, 0)


@given(frames(), st.data())
def test_unusual_headers_are_read_the_same_in_any_chunking(
    given_frames: tuple[bytes, list[bytes]], data: st.DataObject
) -> None:
    stream, bodies = given_frames
    assert decode([stream]) == (bodies, None, 0)
    assert decode(data.draw(chunked(stream))) == (bodies, None, 0)


@given(mutated(), st.data())
@example(b"A" * 196 + b"\r\n\r\n", None)
@example(b"A" * 200 + b"\r\n\r\n", None)
@example(b"Content-Length: 2\r\nX: " + b"y" * 178 + b"\r\n\r\n{}", None)
def test_garbage_gives_the_same_typed_error_in_any_chunking(
    stream: bytes, data: st.DataObject | None
) -> None:
    whole = decode([stream])
    assert decode(one_by_one(stream)) == whole
    if data is not None:
        assert decode(data.draw(chunked(stream))) == whole


@pytest.mark.parametrize("length", range(194, 206))
def test_a_header_block_is_measured_alike_in_any_chunking(length: int) -> None:
    block = b"Content-Length: 0\r\nX: "
    stream = block + b"x" * (length - len(block)) + b"\r\n\r\n"
    whole = decode([stream])
    assert (whole[1] is None) == (length <= 200)
    assert decode(one_by_one(stream)) == whole
    assert decode([stream[:200], stream[200:]]) == whole


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Length: 2",
        b"content-length: 2",
        b"CONTENT-LENGTH:2",
        b"Content-Length:   2  ",
        b"Content-Length:\t2",
        b"Content-Length: 002",
        b"Content-Type: application/json\r\nContent-Length: 2",
        b"Content-Length: 2\r\nContent-Type: application/json; charset=utf-8",
        b"Content-Length: 2\r\nX-Empty:",
    ],
)
def test_tolerated_headers(header: bytes) -> None:
    assert decode([header + b"\r\n\r\n{}"]) == ([b"{}"], None, 0)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Content-Length : 2",
        b" Content-Length: 2",
        b"Content-Length 2",
        b"Content-Length: 2\nX: y",
        b"Content-Length: 2\rX: y",
        b"Content-Length: +2",
        b"Content-Length: -2",
        b"Content-Length: 2.0",
        b"Content-Length: 0x2",
        b"Content-Length: 2, 2",
        b"Content-Length: 2 2",
        b"Content-Length: ",
        b"Content-Length: \xb2",
        "Content-Length: ٢".encode(),  # digits to str.isdigit, not to the CLI
        b"Content-Length: 2\x00",
        b"Content-Length: 2\r\nContent-Length: 2",
        b"Content-Length: 2\r\ncontent-length: 3",
        b"X: \x00\r\nContent-Length: 2",
        b"Content-Length: 9999999999999",
        b"Content-Type: application/json",
        b"GET / HTTP/1.1\r\nHost: localhost",
        b"X: 1\r\n folded\r\nContent-Length: 2",
        b"X Y: 1\r\nContent-Length: 2",
    ],
)
def test_refused_headers(header: bytes) -> None:
    bodies, error, _ = decode([header + b"\r\n\r\n{}"])
    assert (bodies, error is not None) == ([], True)


def test_errors_quote_nothing_of_the_input() -> None:
    with pytest.raises(FramingError) as caught:
        FrameDecoder(LIMIT).feed(b"Token hunter2 secret\r\n\r\n")
    assert "hunter2" not in str(caught.value)


def test_bodies_before_a_broken_header_are_not_lost() -> None:
    decoder = FrameDecoder(LIMIT)
    assert decoder.feed(encode(b"1") + encode(b"2") + b"broken\r\n\r\n") == [b"1", b"2"]
    with pytest.raises(FramingError):
        decoder.feed(b"")


def test_an_oversized_frame_is_refused_from_its_header() -> None:
    head = b'{"jsonrpc":"2.0","id":7,' + b"x" * 600
    with pytest.raises(FrameTooLargeError) as caught:
        FrameDecoder(1000).feed(b"Content-Length: 1001\r\n\r\n" + head)
    assert (caught.value.length, caught.value.limit) == (1001, 1000)
    assert caught.value.head == head[: framing.SALVAGE_BYTES]


def test_an_oversized_frame_waits_only_for_what_its_id_needs() -> None:
    decoder = FrameDecoder(1000)
    assert decoder.feed(b"Content-Length: 999999999999\r\n\r\n") == []
    for _ in range(framing.SALVAGE_BYTES - 1):
        assert decoder.feed(b"x") == []
    with pytest.raises(FrameTooLargeError):
        decoder.feed(b"x")


def test_a_frame_of_exactly_the_limit_passes() -> None:
    assert decode([encode(b"x" * 1000)], limit=1000) == ([b"x" * 1000], None, 0)


def test_an_endless_header_is_refused_at_the_limit() -> None:
    decoder = FrameDecoder(LIMIT, max_header=100)
    fed = 0
    with pytest.raises(FramingError):
        while fed < 1000:
            decoder.feed(b"x")
            fed += 1
    assert fed <= 104


def test_the_limit_may_be_raised_while_a_frame_is_under_way() -> None:
    decoder = FrameDecoder(10)
    frame = encode(b"y" * 20)
    assert decoder.feed(encode(b"1") + frame[:5]) == [b"1"]
    decoder.buffer.max_frame = 100
    assert decoder.feed(frame[5:]) == [b"y" * 20]


def test_pending_tells_whether_a_frame_has_begun() -> None:
    decoder = FrameDecoder(LIMIT)
    assert not decoder.pending
    decoder.feed(b"Cont")
    assert decoder.pending
    assert decoder.feed(b"ent-Length: 2\r\n\r\n{") == []
    assert decoder.pending
    assert decoder.feed(b"}") == [b"{}"]
    assert not decoder.pending


def test_the_buffer_leaves_whole_chunks_alone() -> None:
    buffer = FrameBuffer(LIMIT)
    data = encode(b"{}")
    assert buffer.join(data) is data
    header = buffer.frame(data, 0)
    assert header is not None
    assert data[header.body : header.end] == b"{}"
    assert len(buffer) == 0


def test_a_header_is_read_where_it_is_asked_for() -> None:
    data = b"junk" + encode(b"[1]")
    header = read_header(data, 4)
    assert header is not None
    assert data[header.body : header.end] == b"[1]"
    assert read_header(data[:-8], 4) is None
