"""Kinds of settings: how a value of each type is read, checked and shown.

A kind reads a value twice: from a parsed TOML value and from the text of a flag or an environment
variable. Reading raises ``ValueError`` with what would be accepted, without naming the setting and
without quoting the value; :mod:`gateway.config.load` adds both where that is safe.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """How values of one type are read and shown.

    Attributes:
        name: the type's name on the reference page.
        read: makes a value from a TOML value; ``ValueError`` says what would be accepted.
        read_text: the same from the text of a flag or an environment variable.
        show: writes a value as TOML.
        many: the flag may be repeated.
        choices: the accepted words, if there is a fixed set.
        metavar: the value's name in the command line's help.
    """

    name: str
    read: Callable[[object], T]
    read_text: Callable[[str], T]
    show: Callable[[T], str]
    many: bool = False
    choices: tuple[str, ...] = ()
    metavar: str = "VALUE"


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A host and a port; IPv6 hosts are kept without their brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


_ADDRESS = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[\w.-]+)):(?P<port>\d{1,5})"
)


def parse_address(text: str) -> Address:
    """Read ``HOST:PORT``; an IPv6 host stands in brackets.

    Raises:
        ValueError: anything else.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or not text.isascii():
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:4321 or [::1]:4321")
    port = int(match["port"])
    if port > 65535:
        raise ValueError("must have a port of at most 65535")
    host = match["host"]
    if host is None:
        host = match["v6"]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError("must have a valid IPv6 address between the brackets") from None
    return Address(host, port)


def text_of(value: object) -> str:
    """Return a string as it is; ``ValueError`` for anything else."""
    if not isinstance(value, str):
        raise ValueError("must be a string")
    if "\0" in value:
        raise ValueError("must not contain a null byte")
    return value


def _quote(value: str) -> str:
    # A JSON string is a TOML basic string, save that TOML also wants DEL escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _text_kind(
    name: str, read: Callable[[str], T], show: Callable[[T], str], **more: Any
) -> Kind[T]:
    """Return a kind whose TOML form is a string and whose text form is the same string."""
    return Kind(name, lambda value: read(text_of(value)), read, show, **more)


def _bounded(value: T, low: Any, high: Any, shown: Callable[[Any], str]) -> T:
    if low is not None and cast(Any, value) < low:
        raise ValueError(f"must be at least {shown(low)}")
    if high is not None and cast(Any, value) > high:
        raise ValueError(f"must be at most {shown(high)}")
    return value


def integer(low: int | None = None, high: int | None = None) -> Kind[int]:
    """A whole number."""

    def read(value: object) -> int:
        if type(value) is not int:
            raise ValueError("must be a whole number")
        return _bounded(value, low, high, str)

    def read_text(text: str) -> int:
        return read(int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None)

    return Kind("integer", read, read_text, str, metavar="N")


def number(low: float | None = None, high: float | None = None) -> Kind[float]:
    """A finite number."""

    def read(value: object) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError("must be a number")
        return _bounded(float(value), low, high, str)

    def read_text(text: str) -> float:
        try:
            return read(float(text))
        except (ValueError, OverflowError):
            raise ValueError("must be a number") from None

    return Kind("number", read, read_text, str, metavar="NUMBER")


_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parse_duration(text: str) -> float:
    """Read ``5``, ``5s``, ``200ms``, ``2m``, ``1h`` or ``30d`` as seconds.

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s?(ms|s|m|h|d)?", text)
    if match is None:
        raise ValueError('must be a number of seconds or a duration such as "200ms", "5s" or "2m"')
    return float(match[1]) * _DURATION_UNITS[match[2] or "s"]


def show_duration(seconds: float) -> str:
    """Write seconds in the largest unit that keeps the number whole (``90s``, ``2m``)."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= _DURATION_UNITS[unit] and seconds % _DURATION_UNITS[unit] == 0:
            return f"{int(seconds / _DURATION_UNITS[unit])}{unit}"
    return f"{round(seconds * 1000)}ms" if seconds else "0s"


def duration(low: float = 0.0, high: float | None = None) -> Kind[float]:
    """A time span: seconds as a number, or a string with a unit."""

    def read(value: object) -> float:
        if isinstance(value, str):
            seconds = parse_duration(value)
        elif isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ValueError('must be a number of seconds or a duration such as "200ms" or "2m"')
        else:
            seconds = float(value)
        return _bounded(seconds, low, high if high is not None else 1e9, show_duration)

    return Kind(
        "duration", read, read, lambda value: _quote(show_duration(value)), metavar="DURATION"
    )


def show_size(size: int) -> str:
    """Write bytes in the largest unit that keeps the number whole (``64MiB``)."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return f"{size}B"


def size(low: int = 0, high: int | None = None) -> Kind[int]:
    """A number of bytes, or a string with a unit."""
    wanted = 'must be a number of bytes or a size such as "64KiB" or "1MiB"'

    def read(value: object) -> int:
        if isinstance(value, str):
            match = re.fullmatch(r"([0-9]{1,15})\s?(B|KiB|MiB|GiB)?", value)
            if match is None:
                raise ValueError(wanted)
            value = int(match[1]) * _SIZE_UNITS[match[2] or "B"]
        if type(value) is not int:
            raise ValueError(wanted)
        return _bounded(value, low, high, show_size)

    return Kind("size", read, read, lambda value: _quote(show_size(value)), metavar="SIZE")


def boolean() -> Kind[bool]:
    """True or false."""

    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value

    def read_text(text: str) -> bool:
        return read({"true": True, "1": True, "false": False, "0": False}.get(text.lower()))

    return Kind("boolean", read, read_text, lambda value: "true" if value else "false")


def choice(*words: str) -> Kind[str]:
    """One of a few words."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text

    return _text_kind(" \\| ".join(words), read, _quote, choices=words)


def string(metavar: str = "TEXT") -> Kind[str]:
    """Any text without a null byte."""
    return _text_kind("string", text_of, _quote, metavar=metavar)


def secret() -> Kind[str]:
    """A token: never shown, never in an error; only the environment can give it."""

    def read(text: str) -> str:
        if not text or not text.isascii() or not text.isprintable() or text != text.strip():
            raise ValueError("must be a non-empty printable ASCII token without spaces around it")
        return text

    return _text_kind("secret", read, lambda value: '"***"' if value else '""')


def url(*schemes: str) -> Kind[str]:
    """A URL of one of some schemes; a password in it is never shown."""

    def read(text: str) -> str:
        try:
            known = not text or urlsplit(text).scheme in schemes
        except ValueError:
            known = False
        if not known:
            raise ValueError(f"must be a URL that starts with one of {', '.join(schemes)} and ://")
        return text

    return _text_kind("URL", read, lambda value: _quote(redact_url(value)), metavar="URL")


def redact_url(value: str) -> str:
    """Return a URL without its password, fit for logs."""
    parts = urlsplit(value)
    if "@" not in parts.netloc:
        return value
    user = parts.netloc.rpartition("@")[0].partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{parts.netloc.rpartition('@')[2]}"))


def path() -> Kind[Path]:
    """A path, made absolute (``~`` included); empty (``Path()``) means "the default place"."""

    def read(text: str) -> Path:
        # Absolute at once: supervised CLIs and workers may run in another directory.
        return Path(text).expanduser().absolute() if text else Path()

    return _text_kind(
        "path",
        read,
        lambda value: _quote("" if value == Path() else str(value)),
        metavar="PATH",
    )


def optional_path() -> Kind[Path | None]:
    """A path, made absolute; empty means none."""
    return _text_kind(
        "path",
        lambda text: path().read(text) if text else None,
        lambda value: _quote(str(value) if value else ""),
        metavar="PATH",
    )


def optional_address() -> Kind[Address | None]:
    """One HOST:PORT; empty means none."""
    return _text_kind(
        "HOST:PORT",
        lambda text: parse_address(text) if text else None,
        lambda value: _quote(str(value) if value else ""),
        metavar="HOST:PORT",
    )


def listing(
    name: str, item: Callable[[str], T], shown: Callable[[T], str], split: str, *, low: int = 0
) -> Kind[tuple[T, ...]]:
    """A list: in the environment, items are separated by ``split`` (`` `` means shell words)."""

    def read(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ValueError("must be a list of strings")
        if len(value) < low:
            raise ValueError("must not be empty")
        return tuple(item(text_of(one)) for one in value)

    def read_text(text: str) -> tuple[T, ...]:
        if split == " ":
            return read(shlex.split(text))
        return read([one.strip() for one in text.split(split) if one.strip()])

    def show(values: tuple[T, ...]) -> str:
        return "[" + ", ".join(_quote(shown(value)) for value in values) + "]"

    return Kind(f"list of {name}", read, read_text, show, many=True, metavar=name)


def variables() -> Kind[tuple[tuple[str, str], ...]]:
    """Environment variables: a TOML table, or ``A=1,B=2``; values are never shown."""

    def read(value: object) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, dict):
            raise ValueError('must be a table of strings, such as { NAME = "value" }')
        for name, text in value.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError("must hold names of environment variables")
            text_of(text)
        return tuple(sorted(value.items()))

    def read_text(text: str) -> tuple[tuple[str, str], ...]:
        pairs = [one.partition("=") for one in text.split(",") if one]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("must be NAME=VALUE pairs separated by commas")
        return read({name.strip(): value for name, _, value in pairs})

    def show(value: tuple[tuple[str, str], ...]) -> str:
        return "{ " + ", ".join(f'{name} = "***"' for name, _ in value) + " }" if value else "{}"

    return Kind("table", read, read_text, show)


def environment() -> Kind[dict[str, Any] | None]:
    """A table of environment variables, each as text or as ``{ env = "X" }``, ``{ file = "x" }``.

    What its name says is a secret must not stand in the file itself.
    """

    def read(value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError('must be a table, such as { NAME = "value" }')
        for name, one in value.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError("must hold names of environment variables")
            if not isinstance(one, dict):
                text_of(one)
        secret = {name for name in value if _SECRET_VARIABLE.search(name)}
        read = {name: _credential(name, one, secret=name in secret) for name, one in value.items()}
        if any(isinstance(one, dict) for one in read.values()):
            raise ValueError('must name secrets as { env = "VARIABLE" } or { file = "path" }')
        return read

    return Kind("table", read, _no_text, _shown_table)


def mapping(*words: str) -> Kind[tuple[tuple[str, str], ...]]:
    """Names to one of a few words: a TOML table, or ``A=word,B=word``."""

    def read(value: object) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, dict) or any(text not in words for text in value.values()):
            raise ValueError(f"must be a table whose values are each one of {', '.join(words)}")
        return tuple(sorted(value.items()))

    def read_text(text: str) -> tuple[tuple[str, str], ...]:
        pairs = [one.partition("=") for one in text.split(",") if one.strip()]
        return read({name.strip(): word.strip() for name, _, word in pairs})

    def show(value: tuple[tuple[str, str], ...]) -> str:
        return "{ " + ", ".join(f"{_quote(k)} = {_quote(v)}" for k, v in value) + " }"

    return Kind("table", read, read_text, lambda value: show(value) if value else "{}")


def parse_network(text: str) -> str:
    """Check a network such as ``10.1.0.0/16`` or a single address, and return it.

    Raises:
        ValueError: it is none, or has bits set beyond its prefix.
    """
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("must be a network such as 10.1.0.0/16 or one address") from None
    return text


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A secret that the file names but does not hold.

    Attributes:
        env: environment variable that holds it, or empty.
        file: file that holds it, read at start and at each reload, or None.
        value: the variable's value, once it was looked up.
    """

    env: str = ""
    file: Path | None = None
    value: str | None = field(default=None, repr=False)


_SECRET_KEYS = frozenset({"apiKey", "bearerToken", "gitHubToken", "token"})
_SECRET_TABLES = frozenset({"headers"})
_SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY", re.IGNORECASE)


def json_table() -> Kind[dict[str, Any] | None]:
    """A table of anything that JSON can say."""

    def read(value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError("must be a table")
        return {name: _json_value(one) for name, one in value.items()}

    return Kind("table", read, _no_text, _shown_table)


def _json_value(value: object) -> Any:
    if isinstance(value, dict):
        return {name: _json_value(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_json_value(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must hold no infinite number")
    if not isinstance(value, str | int | float | bool):
        raise ValueError("must hold strings, numbers, booleans, lists and tables only")
    return value


def credentials() -> Kind[dict[str, Any] | None]:
    """A table of params whose secrets are named, as ``{ env = "X" }`` or ``{ file = "x" }``.

    What is a secret is told by its key; a secret that stands in the file itself is refused.
    """

    def read(value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError("must be a table")
        return {name: _credential(name, one, secret=False) for name, one in value.items()}

    return Kind("table", read, _no_text, _shown_table)


def _credential(name: str, value: object, *, secret: bool) -> Any:
    if isinstance(value, dict):
        if len(value) == 1 and value.keys() <= {"env", "file"}:
            [(where, text)] = value.items()
            if not isinstance(text, str) or not text:
                raise ValueError(
                    f'must name a variable or a file in {name}, such as {{ env = "X" }}'
                )
            return SecretRef(env=text) if where == "env" else SecretRef(file=path().read(text))
        inner = name in _SECRET_TABLES
        return {key: _credential(key, one, secret=inner) for key, one in value.items()}
    if isinstance(value, list):
        return [_credential(name, one, secret=secret) for one in value]
    if secret or name in _SECRET_KEYS:
        raise ValueError(
            f'must not hold the secret {name} itself: write {{ env = "VARIABLE" }} or '
            '{ file = "path" }'
        )
    return _json_value(value)


def _no_text(text: str) -> Any:
    raise ValueError("can only be set in the file")


def _shown_table(value: Mapping[str, Any] | None) -> str:
    """Write a table as TOML; secrets by their origin."""
    shown = [f"{_key(name)} = {_shown(one)}" for name, one in (value or {}).items()]
    return "{ " + ", ".join(shown) + " }" if shown else "{}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quote(name)


def _shown(value: Any) -> str:
    if isinstance(value, SecretRef):
        return (
            f"{{ file = {_quote(str(value.file))} }}"
            if value.file
            else f'{{ env = "{value.env}" }}'
        )
    if isinstance(value, Mapping):
        return _shown_table(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quote(value) if isinstance(value, str) else str(value)
