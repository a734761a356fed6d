"""What a caller is shown of sessions: merged lists, answers about unknown sessions, notifications.

A query over several sessions is asked of several replicas and answered as if the caller's sessions
were all there are. That takes more than dropping entries from a result: a CLI that names the *last*
session, or the only one with a prefix, has already chosen among everybody's. :func:`plan` therefore
says what to ask instead, and :func:`merge` answers from that.

Whatever cannot be attributed to a session of the caller is dropped, fields of later CLI versions
included.

Orders and rankings are those of CLI 1.0.102: lists run from the latest ``modifiedTime``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

from gateway.errors import INTERNAL_ERROR, RpcError
from gateway.policy.session_ids import session_ids
from gateway.wire.methods import METHODS

Visible = Callable[[str], bool]
Preferred = Callable[[str], str | None]
Results = Sequence[tuple[str, Any]]
Entry = dict[str, Any]

_ALL: Final = 1_000_000
"""A limit that no CLI reaches, for asking what is cut only after foreign entries are gone."""

_DEFAULT_NON_EMPTY_LIMIT: Final = 2
"""Ids that ``sessions.listNonEmptySessionIds`` returns unless told otherwise."""

_PREFIX: Final = re.compile(r"[0-9a-f-]{7,35}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""``sessions.findByPrefix`` looks at UUIDs only, and at no fewer than seven characters."""

_DETAILS: Final = frozenset({"summary", "name", "clientName", "context", "mcTaskId"})
"""What ``metadataLimit`` leaves out of the later entries of ``sessions.list``."""


def plan(method: str, params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the method and params to send to each replica for a MERGE or SCATTER request."""
    match method:
        case "sessions.getLastForContext" | "sessions.findByTaskId":
            return "sessions.list", {"source": "local"}
        case "sessions.findByPrefix":
            return "sessions.list", {"source": "local", "metadataLimit": 0}
        case "session.getLastId":
            return "session.list", {}
        case "sessions.list":
            return method, {key: value for key, value in params.items() if key != "metadataLimit"}
        case "sessions.listNonEmptySessionIds":
            return method, {**params, "limit": _ALL}
        case _:
            return method, dict(params)


def merge(
    method: str,
    params: Mapping[str, Any],
    results: Results,
    visible: Visible,
    preferred: Preferred,
) -> Any:
    """Return the caller's answer from the replicas' answers.

    Args:
        method: the method that the caller called.
        params: the params that the caller gave, before :func:`plan` and before ids were dropped.
        results: the name of each replica that answered what :func:`plan` said, and its result.
        visible: tells whether a session is the caller's.
        preferred: the replica where a session is placed; its entry wins over those that other
            replicas give for the same session on shared storage.

    Raises:
        KeyError: for a method that is not merged.
    """
    return _MERGERS[method](params, results, visible, preferred)


def _entries(results: Results, visible: Visible, preferred: Preferred) -> list[Entry]:
    """Return one entry per visible session, latest first; the placed replica's entry wins."""
    best: dict[str, tuple[bool, str, Entry]] = {}
    for replica, result in results:
        for entry in _list(result, "sessions"):
            session_id = entry.get("sessionId") if isinstance(entry, dict) else None
            if not isinstance(session_id, str) or not visible(session_id):
                continue
            rank = (preferred(session_id) == replica, _modified(entry))
            known = best.get(session_id)
            if known is None or rank > known[:2]:
                best[session_id] = (*rank, entry)
    entries = [entry for _, _, entry in best.values()]
    entries.sort(key=_modified, reverse=True)
    return entries


def _modified(entry: Entry) -> str:
    """Return the time an entry is sorted by: ISO 8601 in UTC, so it sorts as text."""
    modified = entry.get("modifiedTime")
    return modified if isinstance(modified, str) else ""


def _list(result: Any, key: str) -> list[Any]:
    value = result.get(key) if isinstance(result, dict) else None
    return value if isinstance(value, list) else []


def _map(result: Any, key: str) -> dict[str, Any]:
    value = result.get(key) if isinstance(result, dict) else None
    return value if isinstance(value, dict) else {}


def _limit(params: Mapping[str, Any], key: str) -> int | None:
    """Return a count that the caller gave, or None."""
    value = params.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return value


def _one(session_id: str | None) -> Entry:
    return {} if session_id is None else {"sessionId": session_id}


def _session_list(
    params: Mapping[str, Any], results: Results, visible: Visible, preferred: Preferred
) -> Any:
    return {"sessions": _entries(results, visible, preferred)}


def _sessions_list(
    params: Mapping[str, Any], results: Results, visible: Visible, preferred: Preferred
) -> Any:
    entries = _entries(results, visible, preferred)
    limit = _limit(params, "metadataLimit")
    if limit is not None:
        entries[limit:] = [
            {key: value for key, value in entry.items() if key not in _DETAILS}
            for entry in entries[limit:]
        ]
    return {"sessions": entries}


def _last_id(
    params: Mapping[str, Any], results: Results, visible: Visible, preferred: Preferred
) -> Any:
    entries = _entries(results, visible, preferred)
    return _one(entries[0]["sessionId"] if entries else None)


def _last_for_context(
    params: Mapping[str, Any], results: Results, visible: Visible, preferred: Preferred
) -> Any:
    """Return the latest session of the best matching context, any other one failing that."""
    wanted = _map(params, "context")
    entries = _entries(results, visible, preferred)
    best = max(entries, key=lambda entry: _closeness(wanted, _map(entry, "context")), default=None)
    return _one(None if best is None else best["sessionId"])


def _closeness(wanted: Mapping[str, Any], context: Mapping[str, Any]) -> int:
    """Rank a session's context: repository and branch, repository, git root, directory, none."""

    def same(key: str) -> bool:
        return isinstance(wanted.get(key), str) and wanted[key] == context.get(key)

    if same("repository"):
        return 4 if same("branch") else 3
    if same("gitRoot"):
        return 2
    return 1 if same("cwd") else 0


def _find_by_prefix(
    params: Mapping[str, Any], results: Results, visible: Visible, preferred: Preferred
) -> Any:
    prefix = params.get("prefix")
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix.lower()):
        return {}
    found = [
        entry["sessionId"]
        for entry in _entries(results, visible, preferred)
        if _UUID.fullmatch(entry["sessionId"].lower())
        and entry["sessionId"].lower().startswith(prefix.lower())
    ]
    return _one(found[0] if len(found) == 1 else None)


def _find_by_task_id(
    params: Mapping[str, Any], results: Results, visible: Visible, preferred: Preferred
) -> Any:
    task_id = params.get("taskId")
    for entry in _entries(results, visible, preferred):
        if isinstance(task_id, str) and entry.get("mcTaskId") == task_id:
            return _one(entry["sessionId"])
    return {}


def _non_empty(
    params: Mapping[str, Any], results: Results, visible: Visible, preferred: Preferred
) -> Any:
    """Interleave the replicas' lists, each latest first: the ids come without their times."""
    lists = [_list(result, "sessionIds") for _, result in results]
    ids = dict.fromkeys(
        session_id
        for rank in zip_longest(*lists)
        for session_id in rank
        if isinstance(session_id, str) and visible(session_id)
    )
    limit = _limit(params, "limit")
    return {"sessionIds": list(ids)[: _DEFAULT_NON_EMPTY_LIMIT if limit is None else limit]}


def _sizes(
    params: Mapping[str, Any], results: Results, visible: Visible, preferred: Preferred
) -> Any:
    sizes: dict[str, Any] = {}
    for replica, result in results:
        for session_id, size in _map(result, "sizes").items():
            if visible(session_id) and (
                session_id not in sizes or preferred(session_id) == replica
            ):
                sizes[session_id] = size
    return {"sizes": sizes}


def _foreground(
    params: Mapping[str, Any], results: Results, visible: Visible, preferred: Preferred
) -> Any:
    for replica, result in results:
        session_id = result.get("sessionId") if isinstance(result, dict) else None
        if (
            isinstance(session_id, str)
            and visible(session_id)
            and preferred(session_id) in (replica, None)
        ):
            return {key: result[key] for key in ("sessionId", "workspacePath") if key in result}
    return {}


def _asked(method: str, params: Mapping[str, Any]) -> list[str]:
    return session_ids(METHODS[method].session_paths, params)


def _client_metadata(
    params: Mapping[str, Any], results: Results, visible: Visible, preferred: Preferred
) -> Any:
    found = {
        entry["sessionId"]: entry
        for _, result in results
        for entry in (result if isinstance(result, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("sessionId"), str)
    }
    return [
        found[session_id]
        if session_id in found and visible(session_id)
        else {"sessionId": session_id, "status": "notFound"}
        for session_id in params.get("sessionIds") or ()
    ]


def _in_use(
    params: Mapping[str, Any], results: Results, visible: Visible, preferred: Preferred
) -> Any:
    held = {
        session_id
        for _, result in results
        for session_id in _list(result, "inUse")
        if isinstance(session_id, str)
    }
    asked = _asked("sessions.checkInUse", params)
    return {
        "inUse": [session_id for session_id in asked if session_id in held and visible(session_id)]
    }


def _bulk_delete(
    params: Mapping[str, Any], results: Results, visible: Visible, preferred: Preferred
) -> Any:
    freed: dict[str, Any] = {}
    for _, result in results:
        freed.update(_map(result, "freedBytes"))
    return {
        "freedBytes": {
            session_id: freed.get(session_id, 0) if visible(session_id) else 0
            for session_id in _asked("sessions.bulkDelete", params)
        }
    }


def _enrich(
    params: Mapping[str, Any], results: Results, visible: Visible, preferred: Preferred
) -> Any:
    """Keep the caller's order; a record of an unknown session comes back as it was given."""
    enriched = {
        entry["sessionId"]: entry
        for _, result in results
        for entry in _list(result, "sessions")
        if isinstance(entry, dict) and isinstance(entry.get("sessionId"), str)
    }
    records = [record for record in params.get("sessions") or () if isinstance(record, dict)]
    return {
        "sessions": [
            enriched[record["sessionId"]]
            if record.get("sessionId") in enriched and visible(record["sessionId"])
            else {**record, "isDetached": record.get("isDetached", False)}
            for record in records
        ]
    }


_MERGERS: Final[dict[str, Callable[[Mapping[str, Any], Results, Visible, Preferred], Any]]] = {
    "session.list": _session_list,
    "session.getLastId": _last_id,
    "session.getForeground": _foreground,
    "sessions.list": _sessions_list,
    "sessions.getLastForContext": _last_for_context,
    "sessions.findByPrefix": _find_by_prefix,
    "sessions.findByTaskId": _find_by_task_id,
    "sessions.listNonEmptySessionIds": _non_empty,
    "sessions.getSizes": _sizes,
    "sessions.getClientMetadata": _client_metadata,
    "sessions.checkInUse": _in_use,
    "sessions.bulkDelete": _bulk_delete,
    "sessions.enrichMetadata": _enrich,
}

MERGED_METHODS: Final = frozenset(_MERGERS)
"""Methods that :func:`merge` knows."""


_UNKNOWN_RESULTS: Final[dict[str, Callable[[str], Any]]] = {
    "session.detach": lambda _: {"success": True},
    "session.destroy": lambda _: {"success": False},
    "session.delete": lambda session_id: {
        "success": False,
        "error": f"Session file not found for {session_id}",
    },
    "session.getMetadata": lambda _: {},
    "session.setForeground": lambda _: {
        "success": False,
        "error": "Not running in TUI+server mode - no foreground session change handler registered",
    },
    "sessions.close": lambda _: {},
    "sessions.getBoardEntryCount": lambda _: {},
    "sessions.getMetadata": lambda _: {},
    "sessions.getPersistedRemoteSteerable": lambda _: {},
    "sessions.loadDeferredRepoHooks": lambda _: {"startupPrompts": [], "hookCount": 0},
    "sessions.releaseLock": lambda _: {},
    "sessions.reloadPluginHooks": lambda _: {},
    "sessions.save": lambda _: {},
}

_UNKNOWN_ERRORS: Final[dict[str, str]] = {
    "session.getMessages": "Session not found: {}",
    "session.resume": "Failed to load session events: Session not found: {}",
    "sessions.delete": "Session file not found for {}",
    "sessions.fork": "Cannot fork session {}: no persisted or in-memory events found",
    "sessions.readPersistedEvents": "Persisted event journal is unavailable for session {}",
}

MAX_ECHOED_ID: Final = 300
"""Characters of an id that an answer repeats: ids come from clients."""


def unknown_session(method: str, session_id: str) -> Any:
    """Return what the CLI answers to ``method`` for a session that does not exist.

    The gateway answers the same for a session of somebody else, without asking a replica.

    Raises:
        RpcError: where the CLI answers with an error.
    """
    shown = session_id[:MAX_ECHOED_ID]
    result = _UNKNOWN_RESULTS.get(method)
    if result is not None:
        return result(shown)
    text = _UNKNOWN_ERRORS.get(method, "Session not found for sessionId: {}").format(shown)
    raise failed(method, text)


def missing_session(method: str) -> RpcError:
    """Return what the CLI answers to ``method`` when the params hold no session id."""
    if method in _UNKNOWN_RESULTS or method in _UNKNOWN_ERRORS:
        return failed(method, "Missing sessionId parameter")
    return failed(method, f"Missing sessionId in {method} request")


def failed(method: str, text: str) -> RpcError:
    """Return an error in the words of the CLI for a request that it could not carry out."""
    return RpcError(INTERNAL_ERROR, f"Request {method} failed with message: {text}")


_NOTIFICATION_PATHS: Final[dict[str, tuple[str, ...]]] = {
    "session.event": ("sessionId",),
    "session.lifecycle": ("sessionId",),
    "host.event": ("scope.sessionId",),
    "gitHubTelemetry.event": ("sessionId", "event.session_id"),
}


def may_see_notification(method: str, params: Any, visible: Visible) -> bool:
    """Return True if a message that a replica sends to all may reach a client.

    Every session that it is about must be the client's; a message about no session, or of a kind
    that is not known to be about one, is kept from clients.
    """
    paths: Iterable[str] = _NOTIFICATION_PATHS.get(method, ())
    try:
        ids = session_ids(paths, params)
    except RpcError:
        return False
    return bool(ids) and all(map(visible, ids))
