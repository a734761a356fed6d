r"""The log: one line per record on standard error, as text or JSON.

Modules log a constant message and give what varies as fields::

    log.info("replica state", extra={"replica": "cli-0", "state": "up"})

which becomes ``2030-01-31T12:00:00.000Z info gateway.io.health replica state replica=cli-0
state=up``, or a JSON object with the same names. Whatever a field holds, a record is one line and
a terminal takes nothing in it as a command. Prompts and secrets are not logged in the first place;
that lines are scrubbed of what looks like a token is the last defence.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TextIO

from gateway.config.settings import LogSettings

MAX_VALUE = 4096
"""Characters of one field or message that are kept."""

MAX_TRACE = 32768
"""Characters of a traceback that are kept: its end, where the error is."""

MIN_SECRET = 8
"""Known secrets shorter than this are not scrubbed: they would turn up in ordinary words."""

_MASK = "***"

_SCRUB: tuple[tuple[re.Pattern[str], str], ...] = (
    # Our tokens: the id stays, it is public.
    (re.compile(r"(cgw_[a-z2-7]{12}_)[A-Za-z0-9_-]+"), rf"\1{_MASK}"),
    (re.compile(r"(?i)\b((?:bearer|basic|token)\s+)[A-Za-z0-9._~+/=-]{8,}"), rf"\1{_MASK}"),
    (
        re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?)(?!bearer|basic|token)\S+"),
        rf"\1{_MASK}",
    ),
    # GitHub's and OpenAI-like tokens, JSON Web Tokens.
    (re.compile(r"\b(gh[opsur]_|github_pat_|sk-)[A-Za-z0-9_-]{16,}"), rf"\1{_MASK}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), _MASK),
    # Passwords in URLs.
    (re.compile(r"(\w://[^\s/:@]*:)[^\s/@]+@"), rf"\1{_MASK}@"),
)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Scrubber:
    """Removes what looks like a secret, and secrets that are known, from text.

    Args:
        secrets: known secrets, such as the static token.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({one for one in secrets if len(one) >= MIN_SECRET}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __repr__(self) -> str:
        return "Scrubber()"

    def __call__(self, text: str) -> str:
        """Return the text with secrets masked."""
        if self._known is not None:
            text = self._known.sub(_MASK, text)
        for pattern, replacement in _SCRUB:
            text = pattern.sub(replacement, text)
        return text


def escape(text: str) -> str:
    r"""Return text with line ends, terminal codes and the like as ``\n``, ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


class _Formatter(logging.Formatter):
    """Takes records apart; subclasses write them."""

    def __init__(self, scrub: Scrubber) -> None:
        super().__init__()
        self._scrub = scrub

    def _parts(self, record: logging.LogRecord) -> tuple[str, str, dict[str, object]]:
        """Return time, message and fields, all scrubbed and bounded."""
        moment = datetime.fromtimestamp(record.created, UTC)
        stamp = moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
        try:
            message = record.getMessage()
        except Exception:  # wrong arguments for the format: the format is better than nothing
            message = str(record.msg)
        fields = {
            key: self._clean(value) for key, value in vars(record).items() if key not in _STANDARD
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            fields["error"] = self._clean(f"{type(error).__name__}: {error}")
            fields["trace"] = self._scrub("".join(traceback.format_exception(error)))[-MAX_TRACE:]
        return stamp, self._scrub(message)[:MAX_VALUE], fields

    def _clean(self, value: object) -> object:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, list | tuple | set | frozenset):
            return [self._clean(one) for one in value]
        try:
            text = str(value)
        except Exception:
            text = f"<{type(value).__name__}>"
        # Scrubbed before it is cut: half a token would no longer look like one.
        return self._scrub(text)[:MAX_VALUE]


class TextFormatter(_Formatter):
    """``time level logger message key=value ...``; values are quoted where they need it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        stamp, message, fields = self._parts(record)
        shown = "".join(f" {escape(key)}={_text(value)}" for key, value in fields.items())
        return f"{stamp} {record.levelname.lower()} {record.name} {escape(message)}{shown}"


class JsonFormatter(_Formatter):
    """One JSON object per record: ``time``, ``level``, ``logger``, ``message`` and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        stamp, message, fields = self._parts(record)
        head = {
            "time": stamp,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        # ASCII only: no reader takes a Unicode line separator for the end of the record.
        return json.dumps({**fields, **head}, separators=(",", ":"))


def _text(value: object) -> str:
    if isinstance(value, list):
        return _text(",".join(map(str, value)))
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "-" if value is None else str(value)
    if text and text.isprintable() and not any(char in ' "=' for char in text):
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escape(quoted)}"'


class _Handler(logging.StreamHandler[TextIO]):
    """Our handler, told apart from others' so that configuring again replaces only it."""


def configure(
    settings: LogSettings, secrets: Iterable[str] = (), stream: TextIO | None = None
) -> None:
    """Send all logging to standard error; may be called again, for a reload.

    Libraries log from ``warning`` up; ``gateway`` loggers at the level that is set.

    Args:
        settings: level and format.
        secrets: known secrets, which are masked wherever they turn up.
        stream: where to write instead of standard error.
    """
    scrub = Scrubber(secrets)
    handler = _Handler(stream if stream is not None else sys.stderr)
    handler.setFormatter(
        JsonFormatter(scrub) if settings.format == "json" else TextFormatter(scrub)
    )
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    level = settings.level.upper()
    root.setLevel(max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger("gateway").setLevel(level)
    # A full disk or a closed pipe behind standard error must not print tracebacks there.
    logging.raiseExceptions = False
