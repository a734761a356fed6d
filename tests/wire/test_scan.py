"""Reading a client's requests without decoding: only what every parser reads alike gets through."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.wire import envelope
from gateway.wire import scan as module
from gateway.wire.framing import encode
from gateway.wire.scan import scan, scan_python
from tests.support.strategies import documents, json_text, messages, mutated, spoiled

LIMIT = 1 << 20
USUAL = b'{"jsonrpc":"2.0","id":7,"method":"session.getMessages","params":{"sessionId":"s-1"}}'

both = pytest.mark.parametrize(
    "scanner",
    [
        scan_python,
        pytest.param(
            scan,
            marks=pytest.mark.skipif(not module.ACCELERATED, reason="the C scanner was not built"),
        ),
    ],
    ids=["python", "c"],
)


def members(*pairs: str) -> bytes:
    return ("{" + ",".join(pairs) + "}").encode()


def request(params: str) -> bytes:
    return members('"jsonrpc":"2.0"', '"id":1', '"method":"m"', f'"params":{params}')


session_requests = st.builds(
    lambda method, session_id, more: {
        "jsonrpc": "2.0",
        "id": 1,
        "method": method,
        "params": {**more, "sessionId": session_id},
    },
    st.sampled_from(["session.send", "session.getMessages"]),
    st.one_of(st.text("abcXYZ019_-", max_size=12), documents),
    st.dictionaries(st.text(max_size=6), documents, max_size=4),
)
bodies = st.one_of(messages(), session_requests, documents).flatmap(
    lambda found: st.one_of(st.just(orjson.dumps(found)), json_text(found))
)
streams = st.one_of(
    st.lists(st.one_of(bodies, bodies.flatmap(spoiled)), max_size=3).map(
        lambda found: b"".join(map(encode, found))
    ),
    bodies.map(encode).flatmap(spoiled),
    mutated(),
)


@given(streams, st.integers(0, 40), st.sampled_from([LIMIT, 90]))
@example(encode(request('{"a":"\\u0041"}')), 0, LIMIT)
@example(encode(request('{"a":1,"a":2}')), 0, LIMIT)
@example(encode(request('{"a":1e5,"b":-0,"c":01,"d":1.0}')), 0, LIMIT)
@example(encode(request('{"a":"\x7f"}')), 0, LIMIT)
@example(encode(b'{"jsonrpc":"2.0","method":"m","params":{}}'), 0, LIMIT)
def test_what_the_c_scanner_accepts_the_python_form_reads_alike(
    data: bytes, pos: int, limit: int
) -> None:
    pos = min(pos, len(data))
    found = scan(data, pos, limit)
    if found is not None:
        assert found == scan_python(data, pos, limit)


@both
@given(data=streams)
def test_an_accepted_message_is_its_own_re_encoding(scanner: Any, data: bytes) -> None:
    found = scanner(data, 0, LIMIT)
    if found is None:
        return
    start, end, request_id, method, session_id = found
    body = data[start:end]
    message = envelope.parse(body)
    assert orjson.dumps(message) == body
    # A parser of another make, which takes the last of duplicate keys, reads the same.
    assert json.loads(body) == message
    assert message.get("id") == request_id
    assert message["method"] == method
    assert message.get("params", {}).get("sessionId") == session_id


@both
def test_usual_requests_are_accepted(scanner: Any) -> None:
    data = encode(b"x") + encode(USUAL)
    start = len(encode(b"x"))
    found = scanner(data, start, LIMIT)
    assert found == (len(data) - len(USUAL), len(data), 7, "session.getMessages", "s-1")
    assert scanner(data, start, len(USUAL)) == found


@both
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"jsonrpc":"2.0","method":"session.abort"}', (None, "session.abort", None)),
        (b'{"id":"a b","jsonrpc":"2.0","method":"ping","params":{}}', ("a b", "ping", None)),
        (request('{"a":{"sessionId":"x"}}'), (1, "m", None)),
        (request('{"sessionId":""}'), (1, "m", "")),
        (request('{"a":"\\n\\"\\\\","b":[null,true,false,-1,0],"é":"日本😀"}'), (1, "m", None)),
        (request('{"a":' + "[" * 60 + "]" * 60 + "}"), (1, "m", None)),
    ],
)
def test_other_canonical_requests_are_accepted(
    scanner: Any, body: bytes, said: tuple[Any, ...]
) -> None:
    assert scanner(encode(body), 0, LIMIT)[2:] == said


@both
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        USUAL[:-1],
        USUAL + b" ",
        USUAL.replace(b":7", b": 7"),
        USUAL.replace(b":7", b":7.0"),
        USUAL.replace(b":7", b":null"),
        USUAL.replace(b":7", b":1000000000000000"),
        USUAL.replace(b":7", b":-0"),
        USUAL.replace(b":7", b":07"),
        USUAL.replace(b":7", b':"\\u0041"'),
        USUAL.replace(b":7", b':"' + b"a" * 129 + b'"'),
        USUAL.replace(b'"2.0"', b'"1.0"'),
        USUAL.replace(b'"jsonrpc":"2.0",', b""),
        USUAL.replace(b'"id":7', b'"id":7,"id":8'),
        USUAL.replace(b'"id":7', b'"id":7,"i\\u0064":8'),
        USUAL.replace(b'"id":7', b'"id":7,"trace":8'),
        USUAL.replace(b'"method"', b'"result"'),
        USUAL.replace(b"session.getMessages", b"session\\u002egetMessages"),
        USUAL.replace(b"session.getMessages", b"session\\/getMessages"),
        USUAL.replace(b'{"sessionId":"s-1"}', b'["s-1"]'),
        USUAL.replace(b'"s-1"', b"1"),
        USUAL.replace(b'"s-1"', b'"s/1"'),
        USUAL.replace(b'"s-1"', b'"s-1","sessionId":"s-2"'),
        USUAL.replace(b'"s-1"', b'"s-1","session\\u0049d":"s-2"'),
        USUAL.replace(b'"s-1"', b'"s-1",'),
        request('{"a":{"b":1,"b":1}}'),
        request('{"a":"\\u00e9"}'),
        request('{"a":"\\ud800"}'),
        request('{"a":"\\/"}'),
        request('{"a":"\t"}'),
        request('{"a":01}'),
        request('{"a":1e400}'),
        request('{"a":NaN}'),
        request('{"a":tru}'),
        request('{"a":[1,]}'),
        request('{"a":[1}'),
        request('{"a":' + "[" * 200 + "]" * 200 + "}"),
        request('{"a":"x"}').replace(b"x", b"\xff"),
        request('{"a":"x"}').replace(b"x", b"\xc0\x80"),
        request('{"a":"x"}').replace(b"x", b"\xed\xa0\x80"),
        request('{"a":"x"}').replace(b"x", b"\xf4\x90\x80\x80"),
        request('{"a":"x"}').replace(b"x", b"\xe6\x97"),
    ],
)
def test_anything_else_is_left_to_the_parser(scanner: Any, body: bytes) -> None:
    assert scanner(encode(body), 0, LIMIT) is None


@both
@pytest.mark.parametrize(
    "data",
    [
        b"",
        encode(USUAL)[:-1],
        encode(USUAL).lower(),
        encode(USUAL).replace(b": ", b":", 1),
        b"X: 1\r\n" + encode(USUAL),
        b"Content-Length: 1234567890\r\n\r\n" + USUAL,
    ],
)
def test_frames_in_another_form_are_left_to_the_parser(scanner: Any, data: bytes) -> None:
    assert scanner(data, 0, LIMIT) is None


@both
def test_frames_over_the_limit_are_left_to_the_parser(scanner: Any) -> None:
    assert scanner(encode(USUAL), 0, len(USUAL) - 1) is None


@pytest.mark.skipif(not module.ACCELERATED, reason="the C scanner was not built")
@pytest.mark.parametrize("pos", [-1, 1])
def test_the_c_scanner_keeps_inside_its_data(pos: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        scan(b"", pos, LIMIT)


def test_many_keys_are_told_apart() -> None:
    names = [f'"k{number}":{number}' for number in range(600)]
    body = request("{" + ",".join([*names, '"k599":0']) + "}")
    assert scan(encode(body), 0, LIMIT) is None
    few = request("{" + ",".join(names[:100]) + "}")
    assert scan(encode(few), 0, LIMIT) is not None
