"""Session ids inside params: finding them wherever they stand, and narrowing lists of them.

A place is a path as in ``methods.json``: keys joined by dots, with ``[]`` after a key whose value
is a list. ``options.sessionId`` is a string two levels down, ``sessionIds[]`` each string of a
list, ``sessions[].sessionId`` a string in each object of a list.

An id that stands alone and is not the caller's makes the whole request fail like one that does not
exist (:func:`gateway.policy.results.unknown_session`). Ids in lists are dropped instead: the
methods that take lists answer for each id by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final

from gateway.errors import INVALID_PARAMS, RpcError

MAX_SESSION_IDS: Final = 10_000
"""Session ids in one request: each costs a look-up in the registry."""

_VALID_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,250}")


class SessionIdError(RpcError):
    """Params hold something else where a session id belongs.

    Attributes:
        path: where it stands.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(INVALID_PARAMS, f"Invalid params: {path} {problem}", {"path": path})
        self.path = path


def is_valid_session_id(session_id: str) -> bool:
    """Return True if the CLI would accept ``session_id`` for a new session."""
    return _VALID_ID.fullmatch(session_id) is not None


@cache
def _steps(path: str) -> tuple[tuple[str, bool], ...]:
    """Split a path into keys, each with whether its value is a list."""
    return tuple((part.removesuffix("[]"), part.endswith("[]")) for part in path.split("."))


def session_ids(paths: Iterable[str], params: Mapping[str, Any]) -> list[str]:
    """Return every session id in ``params``, in the order of ``paths``, without repetitions.

    What is absent or null is skipped: whether an id is required is the method's business.

    Args:
        paths: the places, as in :attr:`gateway.policy.rules.MethodRule.session_paths`.
        params: the request's params.

    Raises:
        SessionIdError: if a value on the way is of the wrong type, or there are more than
            :data:`MAX_SESSION_IDS`.
    """
    found: dict[str, None] = {}
    for path in paths:
        _collect(path, _steps(path), params, found)
    return list(found)


def _collect(
    path: str, steps: tuple[tuple[str, bool], ...], value: Any, found: dict[str, None]
) -> None:
    if not steps:
        if not isinstance(value, str):
            raise SessionIdError(path, "must be a string")
        found[value] = None
        if len(found) > MAX_SESSION_IDS:
            raise SessionIdError(path, f"names more than {MAX_SESSION_IDS} sessions")
        return
    if not isinstance(value, Mapping):
        raise SessionIdError(path, "must be inside an object")
    (key, is_list), rest = steps[0], steps[1:]
    inner = value.get(key)
    if inner is None:
        return
    if not is_list:
        _collect(path, rest, inner, found)
        return
    if not isinstance(inner, list):
        raise SessionIdError(path, "must be in a list")
    for item in inner:
        _collect(path, rest, item, found)


def lone_session_ids(paths: Iterable[str], params: Mapping[str, Any]) -> list[str]:
    """Return the session ids that stand alone: each must be the caller's, or the request fails.

    Raises:
        SessionIdError: as :func:`session_ids`.
    """
    return session_ids((path for path in paths if "[]" not in path), params)


def select_ids(
    paths: Iterable[str], params: Mapping[str, Any], keep: Callable[[str], bool]
) -> dict[str, Any]:
    """Return a copy of ``params`` whose lists hold only the entries whose id passes ``keep``.

    It drops ids that are not the caller's, and splits a request over the replicas that hold its
    sessions. Ids that stand alone stay. ``params`` must have passed :func:`session_ids`.
    """
    selected = dict(params)
    for path in paths:
        steps = _steps(path)
        for depth, (_, is_list) in enumerate(steps):
            if is_list:
                _narrow(selected, steps[: depth + 1], steps[depth + 1 :], keep)
                break
    return selected


def _narrow(
    params: dict[str, Any],
    to_list: tuple[tuple[str, bool], ...],
    in_entry: tuple[tuple[str, bool], ...],
    keep: Callable[[str], bool],
) -> None:
    """Replace the list at ``to_list``, copying the objects on the way to it."""
    parent = params
    for key, _ in to_list[:-1]:
        inner = parent.get(key)
        if inner is None:
            return
        parent[key] = inner = dict(inner)
        parent = inner
    key = to_list[-1][0]
    entries = parent.get(key)
    if entries is not None:
        parent[key] = [entry for entry in entries if _passes(entry, in_entry, keep)]


def _passes(entry: Any, steps: tuple[tuple[str, bool], ...], keep: Callable[[str], bool]) -> bool:
    found: dict[str, None] = {}
    _collect("", steps, entry, found)
    return bool(found) and all(map(keep, found))
