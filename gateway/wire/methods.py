"""The method table: what is known about every JSON-RPC method between SDKs and the CLI.

The facts live in ``methods.json`` beside this module, one method per line; this module only loads
them. :mod:`gateway.policy.rules` turns the facts into decisions for an identity, and a test holds
the table against the schema file that the CLI's npm package ships, so that a CLI with methods that
nobody classified is noticed.
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Final


class Direction(enum.StrEnum):
    """Who sends the message."""

    CLIENT = "client"
    SERVER = "server"


class Access(enum.StrEnum):
    """Who may call a method unless the operator says otherwise.

    Attributes:
        USER: every identity.
        TENANT: users where the pool serves one tenant only; administrators anywhere.
        ADMIN: administrators.
        NEVER: nobody, whatever the operator's rules say.
    """

    USER = "user"
    TENANT = "tenant"
    ADMIN = "admin"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What is known about one method.

    Attributes:
        method: the name on the wire.
        direction: who sends it.
        notification: True if it has no answer.
        scope: the part of the CLI's interface that it belongs to: ``server``, ``session``,
            ``clientSession`` and ``clientGlobal`` as in the CLI's schema, ``sdk`` for what the SDKs
            use without a schema, ``transport``, and ``undocumented``.
        documented: False for methods that the CLI answers but nothing published names.
        kind: what it touches: ``session``, ``sessions-query`` (several sessions at once),
            ``read-only-global``, ``host-global`` or ``connection``.
        mutates: True if it changes something.
        sensitive: True if params or result may hold contents, credentials or host paths.
        session_paths: where session ids stand in the params (see
            :mod:`gateway.policy.session_ids` for the syntax).
        result_session_paths: where session ids stand in the result.
        route: how the gateway serves it: a name of :class:`gateway.policy.rules.Route` in lower
            case; empty for messages that the server sends.
        access: who may call it by default.
        retry_safe: True if it may be sent again when its replica died before answering.
        starts_turn: True if it makes the agent work.
        live: False if the session need not be in a replica's memory to be asked.
        sent_as: the method that is sent to the replica instead, or None for the same.
        reason: why not every user may call it, in words for an operator; empty if every user may.
    """

    method: str
    direction: Direction
    notification: bool
    scope: str
    documented: bool
    kind: str
    mutates: bool
    sensitive: bool
    session_paths: tuple[str, ...]
    result_session_paths: tuple[str, ...]
    route: str
    access: Access
    retry_safe: bool
    starts_turn: bool
    live: bool
    sent_as: str | None
    reason: str


@cache
def _paths(*paths: str) -> tuple[str, ...]:
    """Return one shared tuple per distinct list of paths; nearly all methods share two."""
    return tuple(map(sys.intern, paths))


def _info(entry: dict[str, Any]) -> MethodInfo:
    return MethodInfo(
        method=sys.intern(entry["method"]),
        direction=Direction(entry.get("direction", "client")),
        notification=entry.get("notification", False),
        scope=sys.intern(entry["scope"]),
        documented=entry.get("documented", True),
        kind=sys.intern(entry["kind"]),
        mutates=entry.get("mutates", False),
        sensitive=entry.get("sensitive", False),
        session_paths=_paths(*entry.get("session_paths", ())),
        result_session_paths=_paths(*entry.get("result_session_paths", ())),
        route=sys.intern(entry.get("route", "")),
        access=Access(entry.get("access", "never")),
        retry_safe=entry.get("retry_safe", False),
        starts_turn=entry.get("starts_turn", False),
        live=entry.get("live", True),
        sent_as=entry.get("sent_as"),
        reason=sys.intern(entry.get("reason", "")),
    )


def _load() -> tuple[str, dict[Direction, dict[str, MethodInfo]]]:
    table = json.loads(resources.files("gateway.wire").joinpath("methods.json").read_bytes())
    methods: dict[Direction, dict[str, MethodInfo]] = {d: {} for d in Direction}
    for entry in table["methods"]:
        info = _info(entry)
        methods[info.direction][info.method] = info
    return table["cli"], methods


_cli_version, _by_direction = _load()

CLI_VERSION: Final = _cli_version
"""Version of the CLI whose methods the table describes."""

METHODS: Final[Mapping[str, MethodInfo]] = MappingProxyType(_by_direction[Direction.CLIENT])
"""Methods that clients send, by name."""

SERVER_METHODS: Final[Mapping[str, MethodInfo]] = MappingProxyType(_by_direction[Direction.SERVER])
"""Methods that the CLI sends, by name."""
