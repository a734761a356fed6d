"""Finding session ids in params, wherever they stand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import INVALID_PARAMS
from gateway.policy.session_ids import (
    MAX_SESSION_IDS,
    SessionIdError,
    is_valid_session_id,
    lone_session_ids,
    select_ids,
    session_ids,
)
from gateway.wire.methods import METHODS


@pytest.mark.parametrize(
    ("paths", "params", "found"),
    [
        (("sessionId",), {"sessionId": "a"}, ["a"]),
        (("sessionId",), {}, []),
        (("sessionId",), {"sessionId": None}, []),
        (("sessionId",), {"sessionId": ""}, [""]),
        (("options.sessionId",), {"options": {"sessionId": "b"}}, ["b"]),
        (("options.sessionId",), {"options": None}, []),
        (("sessionIds[]",), {"sessionIds": ["a", "b", "a"]}, ["a", "b"]),
        (("sessions[].sessionId",), {"sessions": [{"sessionId": "a"}, {}]}, ["a"]),
        (("a.b[].c[]",), {"a": {"b": [{"c": ["x"]}, {"c": []}, {"c": ["y"]}]}}, ["x", "y"]),
        (("to", "from"), {"from": "a", "to": "b"}, ["b", "a"]),
    ],
)
def test_ids_are_found(paths: tuple[str, ...], params: dict[str, Any], found: list[str]) -> None:
    assert session_ids(paths, params) == found


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("sessionId", {"sessionId": 5}),
        ("sessionId", {"sessionId": ["a"]}),
        ("sessionId", {"sessionId": {"toString": "a"}}),
        ("sessionId", {"sessionId": True}),
        ("sessionId", []),
        ("options.sessionId", {"options": "a"}),
        ("options.sessionId", {"options": [{"sessionId": "a"}]}),
        ("sessionIds[]", {"sessionIds": "a"}),
        ("sessionIds[]", {"sessionIds": {"0": "a"}}),
        ("sessionIds[]", {"sessionIds": ["a", 5]}),
        ("sessionIds[]", {"sessionIds": [None]}),
        ("sessions[].sessionId", {"sessions": ["a"]}),
    ],
)
def test_other_types_are_refused(path: str, params: Any) -> None:
    with pytest.raises(SessionIdError) as refused:
        session_ids((path,), params)
    assert refused.value.code == INVALID_PARAMS
    assert refused.value.path == path


def test_the_number_of_ids_is_limited() -> None:
    many = [str(n) for n in range(MAX_SESSION_IDS)]
    assert session_ids(("sessionIds[]",), {"sessionIds": many}) == many
    with pytest.raises(SessionIdError, match="more than"):
        session_ids(("sessionIds[]",), {"sessionIds": [*many, "one more"]})


def test_ids_that_stand_alone_are_told_from_ids_in_lists() -> None:
    paths = ("sessionId", "sessionIds[]", "options.sessionId")
    params = {"sessionId": "a", "sessionIds": ["b"], "options": {"sessionId": "c"}}
    assert lone_session_ids(paths, params) == ["a", "c"]


@pytest.mark.parametrize(
    ("paths", "params", "kept"),
    [
        (("sessionIds[]",), {"sessionIds": ["a", "b"], "x": 1}, {"sessionIds": ["a"], "x": 1}),
        (
            ("sessions[].sessionId",),
            {"sessions": [{"sessionId": "b"}, {"sessionId": "a", "n": 1}, {"n": 2}]},
            {"sessions": [{"sessionId": "a", "n": 1}]},
        ),
        (("a.b[]",), {"a": {"b": ["b", "a"], "c": 1}}, {"a": {"b": ["a"], "c": 1}}),
        (("a.b[]",), {"a": None}, {"a": None}),
        (("sessionIds[]",), {}, {}),
        (("sessionId",), {"sessionId": "b"}, {"sessionId": "b"}),
    ],
)
def test_lists_are_narrowed_in_a_copy(
    paths: tuple[str, ...], params: dict[str, Any], kept: dict[str, Any]
) -> None:
    before = copy.deepcopy(params)
    assert select_ids(paths, params, {"a"}.__contains__) == kept
    assert params == before


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["sessionId", "sessionIds", "sessions", "options", "metadata"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    info=st.sampled_from([i for i in METHODS.values() if i.session_paths]),
    params=json_values,
    kept=st.sets(st.text(max_size=3)),
)
def test_any_params_give_ids_or_a_typed_error(info: Any, params: Any, kept: set[str]) -> None:
    try:
        found = session_ids(info.session_paths, params)
    except SessionIdError:
        return
    lists = [path for path in info.session_paths if "[]" in path]
    narrowed = select_ids(info.session_paths, params, kept.__contains__)
    assert set(session_ids(lists, narrowed)) == set(session_ids(lists, params)) & kept
    assert set(found) >= set(session_ids(lists, narrowed))


@pytest.mark.parametrize("good", ["a", "-rf", "A_b-9", "x" * 250])
def test_ids_that_the_cli_accepts(good: str) -> None:
    assert is_valid_session_id(good)


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a b", "é", "a\n", "x" * 251, "a\0"])
def test_ids_that_the_cli_refuses(bad: str) -> None:
    assert not is_valid_session_id(bad)
