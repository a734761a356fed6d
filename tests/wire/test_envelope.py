"""Envelopes: what two parsers could read differently never leaves the gateway."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway import errors
from gateway.errors import RpcError
from gateway.wire import envelope
from gateway.wire.envelope import BadMessageError, parse, salvage_id
from tests.support.strategies import json_text, messages, mutated, spoiled


def loads_as_the_cli_does(text: bytes) -> Any:
    """Parse as serde_json: the last of duplicate keys, integers beyond 64 bits as floats."""

    def integer(digits: str) -> int | float:
        value = int(digits)
        return value if -(2**63) <= value < 2**64 else float(digits)

    return json.loads(text, parse_int=integer)


def refusal(body: bytes) -> tuple[Any, int]:
    with pytest.raises(BadMessageError) as caught:
        parse(body)
    return caught.value.request_id, caught.value.error.code


@given(messages().flatmap(json_text))
def test_a_message_is_read_however_it_is_written(body: bytes) -> None:
    assert parse(body) == json.loads(body)


@given(messages().flatmap(json_text))
def test_canonical_form_never_changes_the_meaning(body: bytes) -> None:
    frame = envelope.encode(parse(body))
    header, _, text = frame.partition(b"\r\n\r\n")
    assert header == b"Content-Length: %d" % len(text)
    assert loads_as_the_cli_does(text) == loads_as_the_cli_does(body)
    assert envelope.encode(parse(text)) == frame


@given(messages())
def test_what_sdks_write_leaves_as_it_came(message: dict[str, Any]) -> None:
    """Node writes compact JSON, as ``orjson`` does; so an equal length is left to nobody's luck."""
    body = orjson.dumps(message)
    assert envelope.encode(parse(body)).endswith(b"\r\n\r\n" + body)


@given(st.one_of(mutated(), messages().flatmap(json_text).flatmap(spoiled)))
@example(b"[" * 100_000)
@example(b'{"jsonrpc":"2.0","id":1,"method":"m","params":' + b"[" * 5000 + b"]" * 5000 + b"}")
@example(b'{"jsonrpc":"2.0","id":1e400,"method":"m"}')
@example(b'{"jsonrpc":"2.0","id":-0,"method":"m"}')
@example(b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}')
@example(b'{"jsonrpc":"2.0","id":"\\ud800","method":"m"}')
def test_anything_is_a_message_or_a_bad_message(body: bytes) -> None:
    try:
        message = parse(body)
    except BadMessageError as error:
        envelope.error_frame(error.request_id, error.error)
        return
    assert type(message) is dict
    assert "method" in message or "result" in message or "error" in message
    assert type(message.get("id", "")) in (str, int)
    again = parse(envelope.encode(message).partition(b"\r\n\r\n")[2])
    assert again == message


@given(st.binary(max_size=600))
def test_salvaging_an_id_never_fails(head: bytes) -> None:
    assert isinstance(salvage_id(head), str | int | None)


@given(messages().filter(lambda m: "id" in m and len(str(m["id"])) < 40))
def test_the_id_of_a_cut_message_is_the_id_of_the_message(message: dict[str, Any]) -> None:
    """Whatever can be salvaged is right; a method that holds an ``"id":`` fools nobody."""
    body = orjson.dumps(message)
    for end in range(0, len(body), 3):
        assert salvage_id(body[:end]) in (None, message["id"])


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b'{"jsonrpc":"2.0","id":7,"method":"m","params":{"x":', 7),
        (b'{"jsonrpc":"2.0","method":"session.send","id":"a-b","params":{"x":', "a-b"),
        (b'{ "id" : -3 , "x', -3),
        (b'{"jsonrpc":"2.0","id":"q\\"\\u0041","method"', 'q"A'),
        (b'{"jsonrpc":"2.0","id":7', None),
        (b'{"jsonrpc":"2.0","id":1.5,"method"', None),
        (b'{"jsonrpc":"2.0","method":"m","params":{"id":7,', None),
        (b'{"jsonrpc":"2.0","method":"a\\",\\"id\\":9,","id":7,', None),
        (b'["id",7,', None),
        (b"", None),
    ],
)
def test_ids_salvaged(head: bytes, expected: Any) -> None:
    assert salvage_id(head) == expected


@pytest.mark.parametrize(
    ("written", "answered_under"),
    [
        ("1.5", 1.5),
        ("1.0", 1.0),
        ("9223372036854775808", 2**63),
        ("18446744073709551616", 2.0**64),
        ("-9223372036854775809", -(2.0**63)),
        ("null", None),
        ("true", None),
        ("false", None),
        ("[]", None),
        ("[1]", None),
        ("{}", None),
        ('{"a":1}', None),
        ('"' + "x" * 1025 + '"', None),
    ],
)
def test_ids_that_the_cli_would_answer_with_null(written: str, answered_under: Any) -> None:
    body = f'{{"jsonrpc":"2.0","id":{written},"method":"ping"}}'.encode()
    assert refusal(body) == (answered_under, errors.INVALID_REQUEST)


@pytest.mark.parametrize("request_id", [0, -1, 2**63 - 1, -(2**63), "", "0", "ü", "x" * 1024])
def test_ids_that_are_good(request_id: Any) -> None:
    message = {"jsonrpc": "2.0", "id": request_id, "method": "ping"}
    assert parse(orjson.dumps(message)) == message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"\xef\xbb\xbf{}",
        b'{"a":1}{"b":2}',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'{"a":01}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\x01"}',
        b'{"a":\x001}',
        b"\x00",
        b'{"a":1}\x00',
        b"// comment\n{}",
    ],
)
def test_what_is_not_json(body: bytes) -> None:
    assert refusal(body) == (None, errors.PARSE_ERROR)


def test_broken_json_is_answered_under_its_own_id() -> None:
    assert refusal(b'{"jsonrpc":"2.0","id":"mine","method":"m","params":{]}') == (
        "mine",
        errors.PARSE_ERROR,
    )


@pytest.mark.parametrize(
    "body", [b"[]", b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', b"1", b'"x"']
)
def test_batches_and_scalars(body: bytes) -> None:
    assert refusal(body) == (None, errors.INVALID_REQUEST)


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":5,"method":"ping"}',
        b'{"jsonrpc":"1.0","id":5,"method":"ping"}',
        b'{"jsonrpc":2.0,"id":5,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":5}',
        b'{"jsonrpc":"2.0","id":5,"method":null}',
        b'{"jsonrpc":"2.0","id":5,"method":["ping"]}',
        b'{"jsonrpc":"2.0","id":5,"Method":"ping"}',
    ],
)
def test_envelopes_that_are_not_json_rpc(body: bytes) -> None:
    assert refusal(body) == (5, errors.INVALID_REQUEST)


@pytest.mark.parametrize(
    ("body", "path", "expected"),
    [
        (b'{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}', ("method",), "b"),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"b"}', ("id",), 2),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","\\u006dethod":"b"}', ("method",), "b"),
        (
            b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"sessionId":"mine","sessionId":"x"}}',
            ("params", "sessionId"),
            "x",
        ),
        (
            b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"sessionId":"mine",'
            b'"session\\u0049d":"x"}}',
            ("params", "sessionId"),
            "x",
        ),
        (
            b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"sessionId":"mine"},'
            b'"params":{"sessionId":"x"}}',
            ("params", "sessionId"),
            "x",
        ),
    ],
)
def test_duplicate_and_escaped_keys_leave_once_with_the_last_value(
    body: bytes, path: tuple[str, ...], expected: Any
) -> None:
    """What was checked is what is sent: a second reading can find nothing else."""
    message: Any = parse(body)
    text = envelope.encode(message).partition(b"\r\n\r\n")[2]
    assert text.count(b'"' + path[-1].encode() + b'"') == 1
    for key in path:
        message = message[key]
    assert message == expected


@pytest.mark.parametrize(("levels", "good"), [(1, True), (127, True), (128, False), (900, False)])
def test_nesting(levels: int, good: bool) -> None:
    """The envelope itself is the first level."""
    body = b'{"jsonrpc":"2.0","id":3,"method":"m","params":'
    body += b"[" * (levels - 1) + b"]" * (levels - 1) if levels > 1 else b"null"
    body += b"}"
    if good:
        assert parse(body)["id"] == 3
    else:
        assert refusal(body) == (3, errors.INVALID_REQUEST)


def test_width_is_not_depth() -> None:
    body = b'{"jsonrpc":"2.0","id":3,"method":"m","params":[' + b"[]," * 5000 + b"{}]}"
    assert parse(body)["id"] == 3


def test_brackets_in_text_are_not_depth() -> None:
    body = orjson.dumps({"jsonrpc": "2.0", "id": 3, "method": "m", "params": ["[{" * 5000]})
    assert parse(body)["id"] == 3


def test_answers_of_the_gateway() -> None:
    error = RpcError(errors.OVERLOADED, "too much", {"limit": "x"})
    assert envelope.error_frame("a", error).endswith(
        b'{"jsonrpc":"2.0","id":"a","error":{"code":-32012,"message":"too much",'
        b'"data":{"limit":"x"}}}'
    )
    assert envelope.result_frame(1, None).endswith(b'{"jsonrpc":"2.0","id":1,"result":null}')
    assert envelope.request_frame(1, "m", {}).endswith(
        b'{"jsonrpc":"2.0","id":1,"method":"m","params":{}}'
    )
    assert envelope.notification_frame("m", {}).endswith(
        b'{"jsonrpc":"2.0","method":"m","params":{}}'
    )
