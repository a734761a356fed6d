"""What a Redis URL says: which servers, which kind of deployment, which settings.

=============================================  ==================================================
``redis://[user:password@]host[:port][/db]``   one server
``unix:///path/to/socket[?db=N]``              one server, over a Unix socket
``redis+sentinel://host[:port],.../name[/db]`` the master that Sentinels call ``name``
``redis+cluster://host[:port],...``            a Cluster; the hosts are where discovery starts
=============================================  ==================================================

``rediss`` in place of ``redis`` speaks TLS. Settings follow as a query; see :data:`SETTINGS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from gateway.errors import ConfigError

Kind = Literal["single", "unix", "sentinel", "cluster"]

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379

DEFAULT_SETTLE = 5.0
"""Seconds for which a server that may have lost data records no session it has never seen; above
the time in which gateways notice and republish."""

_SCHEMES: dict[str, tuple[Kind, bool]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("unix", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}

SCHEMES = frozenset(_SCHEMES)


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """Where and how to reach Redis; neither ``repr`` nor ``str`` shows a secret.

    Attributes:
        kind: one server over TCP or a Unix socket, Sentinels, or a Cluster.
        tls: speak TLS, to Sentinels too.
        hosts: host and port of the server, the Sentinels or the first Cluster nodes.
        path: the Unix socket.
        service: the master's name at the Sentinels.
        username: of the server's ACL, or None.
        password: of the server, or None.
        sentinel_password: of the Sentinels, or None.
        db: database number.
        prefix: begins all keys; gateways that share sessions share it.
        settle: seconds for which a server that may have lost data records no unknown session.
        ca_file: certificates that may sign the server's, or None for the system's.
        cert_file: our certificate, or None.
        key_file: its key, or None.
    """

    kind: Kind
    tls: bool = False
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    db: int = 0
    prefix: str = "copilot-gateway"
    settle: float = DEFAULT_SETTLE
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix://{self.path}"
        scheme = "rediss" if self.tls else "redis"
        if self.kind != "single":
            scheme = f"{scheme}+{self.kind}"
        hosts = ",".join(_join(host, port) for host, port in self.hosts)
        return f"{scheme}://{hosts}" + (f"/{self.service}" if self.service else "")


def _prefix(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]+", value):
        raise ValueError("letters, digits and _ . : - are accepted")
    return value


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 <= seconds <= 3600:
        raise ValueError("seconds from 0 to 3600 are accepted")
    return seconds


def _db(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", value):
        raise ValueError("a number is needed")
    return int(value)


def _existing(value: str) -> str:
    if not Path(value).is_file():
        raise ValueError("no such file")
    return value


def _secret(value: str) -> str:
    try:
        return Path(value).read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise ValueError(f"{value}: {exc.strerror}") from None


SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "db": ("db", _db),
    "prefix": ("prefix", _prefix),
    "settle": ("settle", _seconds),
    "password_file": ("password", _secret),
    "sentinel_password_file": ("sentinel_password", _secret),
    "ca_file": ("ca_file", _existing),
    "cert_file": ("cert_file", _existing),
    "key_file": ("key_file", _existing),
}
"""What a query may set: name in the URL -> the attribute of :class:`RedisTarget` and its reader.

The ``*password_file`` settings name a file that holds the password, so that it need not stand in a
URL.
"""


def parse_redis_url(url: str) -> RedisTarget:
    """Read a Redis URL.

    Raises:
        ConfigError: it says nothing usable; the message names the part, never a password.
    """
    scheme, _, _ = url.partition("://")
    if scheme not in _SCHEMES:
        raise ConfigError(f"registry: unknown Redis scheme; accepted: {', '.join(sorted(SCHEMES))}")
    kind, tls = _SCHEMES[scheme]
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError("registry: the brackets in the Redis URL do not match") from None
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    path = [unquote(piece) for piece in parts.path.split("/")[1:] if piece]
    values: dict[str, Any] = {
        "username": unquote(username) or None,
        "password": unquote(password) or None,
    }
    if kind == "unix":
        if hosts or not path:
            raise ConfigError("registry: a Unix socket is written unix:///path/to/socket")
        values["path"] = unquote(parts.path)
        path = []
    else:
        port = DEFAULT_SENTINEL_PORT if kind == "sentinel" else DEFAULT_PORT
        values["hosts"] = tuple(_split(host, port) for host in hosts.split(","))
    if kind == "single" and len(values["hosts"]) > 1:
        raise ConfigError("registry: several hosts need redis+sentinel:// or redis+cluster://")
    if kind == "sentinel":
        if not path:
            raise ConfigError("registry: redis+sentinel://host:port/NAME needs the master's name")
        values["service"] = path.pop(0)
    if path and kind != "cluster":
        values["db"] = _setting("database", _db, path.pop(0))
    if path:
        raise ConfigError("registry: the path of the Redis URL has too many parts")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in SETTINGS:
            raise ConfigError(
                f"registry: unknown setting {name!r} in the URL; accepted: {', '.join(SETTINGS)}"
            )
        attribute, read = SETTINGS[name]
        values[attribute] = _setting(name, read, value)
    if kind == "cluster" and values.get("db"):
        raise ConfigError("registry: a Redis Cluster has no databases but 0")
    return RedisTarget(kind=kind, tls=tls, **values)


def _setting(name: str, read: Callable[[str], Any], value: str) -> Any:
    try:
        return read(value)
    except ValueError as exc:
        raise ConfigError(f"registry: bad {name} in the URL: {exc}") from None


def _split(text: str, default_port: int) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:\s]+)(?::([0-9]{1,5}))?", text)
    if found is None or not 0 < int(found[2] or default_port) < 65536:
        raise ConfigError("registry: the URL needs hosts written as host or host:port")
    return found[1].strip("[]"), int(found[2] or default_port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
