"""The log: one line each, fields, escaping, and secrets that do not get through."""

from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import LogSettings
from gateway.io import logs
from gateway.policy.tokens import ENTROPY_BYTES, make_token

ID, TOKEN = make_token(bytes(range(ENTROPY_BYTES)))
log = logging.getLogger("gateway.somewhere")


@pytest.fixture(autouse=True)
def _restore():
    root, ours = logging.getLogger(), logging.getLogger("gateway")
    before = list(root.handlers), root.level, ours.level, logging.raiseExceptions
    yield
    root.handlers[:], level, our_level, logging.raiseExceptions = before
    root.setLevel(level)
    ours.setLevel(our_level)


def configured(kind: str, level: str = "info", secrets: tuple[str, ...] = ()) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(LogSettings(level=level, format=kind), secrets, stream)
    return stream


@pytest.fixture(params=["text", "json"])
def kind(request) -> str:
    return request.param


def test_text_has_time_level_logger_message_and_fields():
    stream = configured("text")
    log.info(
        "replica state",
        extra={"replica": "cli-0", "why": 'a "b" c', "n": 3, "ok": True, "no": None, "l": [1, "x"]},
    )
    stamp, rest = stream.getvalue().split(" ", 1)
    assert stamp.endswith("Z") and "T" in stamp
    assert rest == (
        "info gateway.somewhere replica state "
        'replica=cli-0 why="a \\"b\\" c" n=3 ok=true no=- l=1,x\n'
    )


def test_json_has_the_same_with_types():
    stream = configured("json")
    log.info("replica state", extra={"replica": "cli-0", "n": 3, "ok": True, "l": [1, "x"]})
    record = json.loads(stream.getvalue())
    assert record.pop("time").endswith("Z")
    assert record == {
        "level": "info",
        "logger": "gateway.somewhere",
        "message": "replica state",
        "replica": "cli-0",
        "n": 3,
        "ok": True,
        "l": [1, "x"],
    }


def test_fields_cannot_pose_as_the_records_own():
    stream = configured("json")
    log.info("real", extra={"level": "forged", "logger": "forged", "time": "forged"})
    assert "forged" not in stream.getvalue()


@pytest.mark.parametrize(
    "bad", ["\n", "\r\n", "\x1b[2J", "\x00", "\x85", "\u2028", "\u202e", "\ud800"]
)
def test_no_value_breaks_a_line_or_reaches_the_terminal(kind, bad):
    stream = configured(kind)
    log.info("message%s", bad, extra={"field": f"a{bad}2030 info forged", f"k{bad}": 1})
    line = stream.getvalue()
    assert line.endswith("\n") and line[:-1].isprintable()


@given(st.text(), st.text(), st.dictionaries(st.text(min_size=1), st.text() | st.integers()))
def test_any_record_is_one_printable_line(message, value, fields):
    reserved = vars(logging.makeLogRecord({})) | {"message": 0, "asctime": 0}
    extra = {key: one for key, one in fields.items() if key not in reserved}
    record = logging.getLogger("x").makeRecord(
        "x", logging.INFO, "f", 1, "%s", (message,), None, extra={**extra, "v": value}
    )
    scrub = logs.Scrubber()
    assert logs.TextFormatter(scrub).format(record).isprintable()
    assert isinstance(json.loads(logs.JsonFormatter(scrub).format(record)), dict)


SECRETS = [
    (TOKEN, TOKEN.rpartition("_")[2]),
    ("Authorization: Bearer hush-hush-hush", "hush"),
    ("{'authorization': 'hush-hush'}", "hush"),
    ('"Authorization":"Basic aHVzaDpodXNo"', "aHVzaDpodXNo"),
    ("redis://user:hush@host/0", "hush"),
    ("ghp_0123456789abcdefghij0123", "0123456789"),
    ("github_pat_0123456789abcdefghij0123", "0123456789"),
    ("sk-0123456789abcdefghij0123", "0123456789"),
    ("eyJhbGciOiJub25lIn0.eyJzdWIiOiJodXNoIn0.c2ln", "eyJzdWIi"),
    ("the static token is known-secret!", "known-secret"),
]


@pytest.mark.parametrize(("text", "hidden"), SECRETS)
def test_secrets_are_masked_wherever_they_stand(kind, text, hidden):
    stream = configured(kind, secrets=("known-secret!",))
    log.info("in the message: " + text.replace("%", "%%"))
    log.info("in a field", extra={"field": text, "inside": {"deep": [text]}, "many": [text]})
    try:
        raise RuntimeError(text)
    except RuntimeError:
        log.exception("in an exception")
    assert hidden not in stream.getvalue()
    assert "***" in stream.getvalue()


def test_the_public_id_of_a_token_stays():
    stream = configured("text")
    log.info("used", extra={"token": TOKEN})
    assert f"token=cgw_{ID}_***" in stream.getvalue()


def test_short_secrets_do_not_eat_ordinary_words():
    stream = configured("text", secrets=("info",))
    log.info("information")
    assert "information" in stream.getvalue()


def test_an_exception_is_fields_of_the_same_line(kind):
    stream = configured(kind)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("failed")
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert "ValueError: two\\nlines" in line and "test_logs.py" in line


def test_long_values_are_cut():
    stream = configured("text")
    log.info("x" * 100_000, extra={"field": "y" * 100_000})
    assert len(stream.getvalue()) < 10_000


def test_wrong_format_arguments_and_odd_objects_still_make_a_line(kind):
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    stream = configured(kind)
    log.info("%d of %d", "x", extra={"odd": Odd()})
    assert "%d of %d" in stream.getvalue() and "<Odd>" in stream.getvalue()


def test_levels_are_ours_and_libraries_speak_up_from_warning(kind):
    stream = configured(kind, level="debug")
    logging.getLogger("gateway.x").debug("ours")
    logging.getLogger("aiohttp").info("theirs")
    logging.getLogger("aiohttp").warning("their warning")
    assert [word in stream.getvalue() for word in ("ours", "theirs", "their warning")] == [
        True,
        False,
        True,
    ]


def test_configuring_again_replaces_the_handler():
    first = configured("text")
    second = configured("json", level="error")
    log.info("below the level")
    log.error("once")
    assert first.getvalue() == ""
    assert json.loads(second.getvalue())["message"] == "once"


def test_a_scrubber_shows_no_secrets():
    assert "known" not in repr(logs.Scrubber(["known-secret!"]))
