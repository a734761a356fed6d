"""What callers are shown of sessions: only their own, as if those were all there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gateway.errors import INTERNAL_ERROR, RpcError
from gateway.policy.results import (
    MERGED_METHODS,
    may_see_notification,
    merge,
    missing_session,
    plan,
    unknown_session,
)
from gateway.policy.rules import Route
from gateway.wire.methods import METHODS, Access

OWN = {"own-1": "cli-0", "own-2": "cli-1", "own-3": "cli-0"}
UUIDS = {
    "aaaaaaaa-0000-4000-8000-000000000001": "cli-0",
    "aaaaaaaa-1111-4000-8000-000000000001": "cli-0",
}
FOREIGN = "bbbbbbbb-0000-4000-8000-00000000000f"


def entry(session_id: str, minute: int = 0, **more: Any) -> dict[str, Any]:
    modified = f"2026-01-01T10:{minute:02}:00.000Z"
    return {"sessionId": session_id, "modifiedTime": modified, **more}


def ask(
    method: str, params: dict[str, Any], *results: Any, own: dict[str, str] | None = None
) -> Any:
    mine = OWN if own is None else own
    named = [(f"cli-{number}", result) for number, result in enumerate(results)]
    return merge(method, params, named, mine.__contains__, mine.get)


def ids(result: dict[str, Any]) -> list[str]:
    return [one["sessionId"] for one in result["sessions"]]


LISTS = ("session.list", "sessions.list")


def test_every_method_that_several_replicas_answer_can_be_merged() -> None:
    several = {
        info.method
        for info in METHODS.values()
        if Route[info.route.upper()] in (Route.MERGE, Route.SCATTER)
        and info.access is not Access.NEVER
    }
    assert several == MERGED_METHODS


@pytest.mark.parametrize("method", LISTS)
def test_lists_hold_only_the_callers_sessions_latest_first(method: str) -> None:
    result = ask(
        method,
        {},
        {"sessions": [entry("own-1", 5), entry(FOREIGN, 4), entry("own-3", 1)]},
        {"sessions": [entry("foreign", 9), entry("own-2", 3)]},
    )
    assert ids(result) == ["own-1", "own-2", "own-3"]


@pytest.mark.parametrize("method", LISTS)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_replica_that_holds_a_session_describes_it(method: str, order: Sequence[int]) -> None:
    stale = ("cli-0", {"sessions": [entry("own-2", 9, name="stale")]})
    placed = ("cli-1", {"sessions": [entry("own-2", 3, name="placed")]})
    both = [(stale, placed)[place] for place in order]
    result = merge(method, {}, both, OWN.__contains__, OWN.get)
    assert result["sessions"] == [entry("own-2", 3, name="placed")]


def test_of_two_other_replicas_the_later_entry_counts() -> None:
    old, new = entry("own-2", 1, name="old"), entry("own-2", 2, name="new")
    results = [("cli-7", {"sessions": [old]}), ("cli-8", {"sessions": [new]})]
    assert merge("session.list", {}, results, OWN.__contains__, OWN.get) == {"sessions": [new]}


@pytest.mark.parametrize("method", LISTS)
def test_what_cannot_be_attributed_is_dropped(method: str) -> None:
    result = ask(
        method,
        {},
        {
            "sessions": [{"id": "own-1"}, {"sessionId": 5}, "own-1", None, entry("own-1")],
            "alsoRecent": [FOREIGN],
        },
        {"sessions": "own-2"},
        ["own-2"],
        None,
    )
    assert result == {"sessions": [entry("own-1")]}


def test_details_are_limited_among_the_callers_sessions() -> None:
    params = {"metadataLimit": 1, "source": "local"}
    assert plan("sessions.list", params) == ("sessions.list", {"source": "local"})
    result = ask(
        "sessions.list",
        params,
        {
            "sessions": [
                entry(FOREIGN, 9, name="f"),
                entry("own-1", 5, name="a", context={"cwd": "/"}),
                entry("own-3", 4, name="b", isRemote=False, context={"cwd": "/"}),
            ]
        },
    )
    assert result["sessions"] == [
        entry("own-1", 5, name="a", context={"cwd": "/"}),
        entry("own-3", 4, isRemote=False),
    ]


def test_the_last_session_is_the_callers_last() -> None:
    assert plan("session.getLastId", {}) == ("session.list", {})
    everybodys = {"sessions": [entry(FOREIGN, 9), entry("own-1", 5), entry("own-3", 6)]}
    assert ask("session.getLastId", {}, everybodys) == {"sessionId": "own-3"}
    assert ask("session.getLastId", {}, {"sessions": [entry(FOREIGN)]}) == {}
    assert ask("session.getLastId", {}, {"sessionId": FOREIGN}) == {}


@pytest.mark.parametrize(
    ("context", "found"),
    [
        ({"cwd": "/a"}, "own-1"),
        ({"cwd": "/a/b"}, "own-3"),
        ({"cwd": "/nowhere"}, "own-3"),
        ({"cwd": "/b", "gitRoot": "/a"}, "own-1"),
        ({"cwd": "/b", "gitRoot": "/a", "repository": "o/r"}, "own-2"),
        ({"cwd": "/b", "repository": "o/r", "branch": "dev"}, "own-1"),
        ({"cwd": "/b", "branch": "dev"}, "own-3"),
        ({}, "own-3"),
        (None, "own-3"),
        ("/a", "own-3"),
    ],
)
def test_the_last_session_for_a_context(context: Any, found: str) -> None:
    method, asked = plan("sessions.getLastForContext", {"context": context})
    assert (method, asked) == ("sessions.list", {"source": "local"})
    listed = {
        "sessions": [
            entry(FOREIGN, 9, context={"cwd": "/a", "repository": "o/r", "branch": "dev"}),
            entry("own-3", 6, context={"cwd": "/b"}),
            entry("own-2", 5, context={"cwd": "/c", "repository": "o/r", "branch": "main"}),
            entry(
                "own-1",
                4,
                context={"cwd": "/a", "gitRoot": "/a", "repository": "o/r", "branch": "dev"},
            ),
        ]
    }
    params = {"context": context}
    assert ask("sessions.getLastForContext", params, listed) == {"sessionId": found}


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("aaaaaaaa-0", "aaaaaaaa-0000-4000-8000-000000000001"),
        ("AAAAAAAA-1", "aaaaaaaa-1111-4000-8000-000000000001"),
        ("aaaaaaaa", None),
        ("aaaaaa", None),
        ("bbbbbbbb", None),
        ("aaaaaaaa-0000-4000-8000-000000000001", None),
        ("zzzzzzzz", None),
        ("", None),
        (None, None),
        (5, None),
    ],
)
def test_a_prefix_is_unique_among_the_callers_sessions(prefix: Any, found: str | None) -> None:
    params = {"prefix": prefix}
    listed = {"sessions": [entry(FOREIGN), *map(entry, UUIDS)]}
    answer = ask("sessions.findByPrefix", params, listed, own=UUIDS)
    assert answer == ({} if found is None else {"sessionId": found})


def test_somebody_elses_session_does_not_make_a_prefix_ambiguous() -> None:
    twin = "aaaaaaaa-0000-4000-8000-00000000000f"
    listed = {"sessions": [entry(twin), *map(entry, UUIDS)]}
    assert plan("sessions.findByPrefix", {"prefix": "aaaaaaaa-0"})[0] == "sessions.list"
    answer = ask("sessions.findByPrefix", {"prefix": "aaaaaaaa-0"}, listed, own=UUIDS)
    assert answer == {"sessionId": "aaaaaaaa-0000-4000-8000-000000000001"}


def test_a_task_is_looked_for_in_the_callers_sessions() -> None:
    listed = {"sessions": [entry(FOREIGN, 9, mcTaskId="t"), entry("own-1", mcTaskId="t")]}
    assert ask("sessions.findByTaskId", {"taskId": "t"}, listed) == {"sessionId": "own-1"}
    assert ask("sessions.findByTaskId", {"taskId": "u"}, listed) == {}
    assert ask("sessions.findByTaskId", {}, listed) == {}


@pytest.mark.parametrize(
    ("limit", "count"), [({"limit": 3}, 3), ({"limit": 0}, 0), ({}, 2), ({"limit": -1}, 2)]
)
def test_recent_ids_are_cut_after_foreign_ones_are_gone(limit: dict[str, int], count: int) -> None:
    method, asked = plan("sessions.listNonEmptySessionIds", limit)
    assert method == "sessions.listNonEmptySessionIds"
    assert asked["limit"] > 10_000
    answer = ask(
        method,
        limit,
        {"sessionIds": [FOREIGN, "own-1", "own-3"]},
        {"sessionIds": ["own-2", "own-1"]},
    )
    assert answer == {"sessionIds": ["own-2", "own-1", "own-3"][:count]}


def test_sizes_are_those_of_the_callers_sessions() -> None:
    answer = ask(
        "sessions.getSizes",
        {},
        {"sizes": {"own-1": 10, FOREIGN: 99, "own-2": 1}, "total": 110},
        {"sizes": {"own-1": 11, "own-2": 20}},
    )
    assert answer == {"sizes": {"own-1": 10, "own-2": 20}}


def test_the_foreground_session_is_shown_to_its_owner() -> None:
    shown = {"sessionId": "own-2", "workspacePath": "/w", "next": FOREIGN}
    assert ask("session.getForeground", {}, {"sessionId": FOREIGN}, shown) == {
        "sessionId": "own-2",
        "workspacePath": "/w",
    }
    assert ask("session.getForeground", {}, {"sessionId": FOREIGN}, {}) == {}


def test_client_metadata_keeps_the_order_and_hides_what_is_foreign() -> None:
    params = {"sessionIds": ["own-2", FOREIGN, "nope", "own-1"]}
    one, two = (
        {"sessionId": sid, "status": "ok", "metadata": {"k": sid}} for sid in ("own-1", "own-2")
    )
    foreign = {"sessionId": FOREIGN, "status": "ok", "metadata": {"k": "secret"}}
    assert ask("sessions.getClientMetadata", params, [one, foreign], [two]) == [
        two,
        {"sessionId": FOREIGN, "status": "notFound"},
        {"sessionId": "nope", "status": "notFound"},
        one,
    ]


def test_in_use_checks_answer_for_own_sessions_only() -> None:
    params = {"sessionIds": ["own-2", FOREIGN, "own-1", "own-3"]}
    answer = ask(
        "sessions.checkInUse", params, {"inUse": [FOREIGN, "own-1"]}, {"inUse": ["own-2", "other"]}
    )
    assert answer == {"inUse": ["own-2", "own-1"]}


def test_deleting_frees_nothing_of_what_is_foreign_or_unknown() -> None:
    params = {"sessionIds": ["own-1", FOREIGN, "nope", "own-2"]}
    answer = ask(
        "sessions.bulkDelete",
        params,
        {"freedBytes": {"own-1": 5, FOREIGN: 7}},
        {"freedBytes": {"own-2": 6}},
    )
    assert answer == {"freedBytes": {"own-1": 5, FOREIGN: 0, "nope": 0, "own-2": 6}}


def test_metadata_is_enriched_for_own_sessions_only() -> None:
    given = [entry("own-1"), entry(FOREIGN), entry("nope")]
    full = {"sessions": [entry("own-1", name="mine"), entry(FOREIGN, name="secret")]}
    answer = ask("sessions.enrichMetadata", {"sessions": given}, full)
    assert answer == {
        "sessions": [
            entry("own-1", name="mine"),
            entry(FOREIGN, isDetached=False),
            entry("nope", isDetached=False),
        ]
    }


@pytest.mark.parametrize("method", sorted(MERGED_METHODS))
@pytest.mark.parametrize("strange", [None, 5, "x", [], {}, [[]], {"sessions": {}, "sizes": []}])
def test_strange_results_merge_to_nothing(method: str, strange: Any) -> None:
    empty: Callable[[], Any] = lambda: ask(method, {}, strange)  # noqa: E731
    assert FOREIGN not in repr(empty())
    assert "own" not in repr(empty())


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("session.detach", {"success": True}),
        ("session.destroy", {"success": False}),
        ("session.delete", {"success": False, "error": "Session file not found for x-1"}),
        ("session.getMetadata", {}),
        ("sessions.getMetadata", {}),
        ("sessions.close", {}),
        ("sessions.save", {}),
    ],
)
def test_some_methods_answer_for_unknown_sessions(method: str, answer: Any) -> None:
    assert unknown_session(method, "x-1") == answer


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("session.send", "Session not found for sessionId: x-1"),
        ("session.resume", "Failed to load session events: Session not found: x-1"),
        ("session.getMessages", "Session not found: x-1"),
        (
            "sessions.fork",
            "Cannot fork session x-1: no persisted or in-memory events found",
        ),
        ("sessions.getEventFilePath", "Session not found for sessionId: x-1"),
    ],
)
def test_unknown_sessions_are_refused_in_the_words_of_the_cli(method: str, words: str) -> None:
    with pytest.raises(RpcError) as refused:
        unknown_session(method, "x-1")
    assert refused.value.to_object() == {
        "code": INTERNAL_ERROR,
        "message": f"Request {method} failed with message: {words}",
    }


def test_ids_with_braces_and_great_length_are_harmless() -> None:
    with pytest.raises(RpcError) as refused:
        unknown_session("session.send", "{0}{x")
    assert refused.value.message.endswith("sessionId: {0}{x")
    with pytest.raises(RpcError) as refused:
        unknown_session("session.send", "x" * 100_000)
    assert len(refused.value.message) < 1000


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("session.send", "Missing sessionId in session.send request"),
        ("session.resume", "Missing sessionId parameter"),
        ("session.getMetadata", "Missing sessionId parameter"),
    ],
)
def test_a_missing_id_is_refused_in_the_words_of_the_cli(method: str, words: str) -> None:
    assert missing_session(method).message == f"Request {method} failed with message: {words}"


@pytest.mark.parametrize(
    ("method", "params", "seen"),
    [
        ("session.lifecycle", {"type": "session.created", "sessionId": "own-1"}, True),
        ("session.lifecycle", {"type": "session.created", "sessionId": FOREIGN}, False),
        ("session.lifecycle", {"type": "session.created"}, False),
        ("session.event", {"sessionId": "own-1", "event": {}}, True),
        ("host.event", {"scope": {"sessionId": "own-1"}}, True),
        ("host.event", {"scope": {"sessionId": FOREIGN}}, False),
        ("host.event", {"scope": "own-1"}, False),
        ("host.event", {}, False),
        ("gitHubTelemetry.event", {"sessionId": "own-1", "event": {"session_id": FOREIGN}}, False),
        ("host.exited", {"sessionId": "own-1"}, False),
        ("brand.new", {"sessionId": "own-1"}, False),
        ("session.lifecycle", ["own-1"], False),
        ("session.lifecycle", None, False),
    ],
)
def test_notifications_reach_whom_they_are_about(method: str, params: Any, seen: bool) -> None:
    assert may_see_notification(method, params, OWN.__contains__) is seen
