"""The method table, and the schema of the installed CLI that it must keep up with."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.policy.rules import Route
from gateway.wire.methods import METHODS, SERVER_METHODS, Access, Direction, MethodInfo

ROOT = Path(__file__).parents[2]
SCHEMA = (
    Path(
        os.environ.get(
            "COPILOT_SCHEMAS",
            ROOT / ".cache/cli/node_modules/@github/copilot-sdk-linux-x64/schemas",
        )
    )
    / "api.schema.json"
)
ALL = [*METHODS.values(), *SERVER_METHODS.values()]

SESSION_ID = re.compile(r"sessionIds?$", re.IGNORECASE)
NOT_OF_THIS_GATEWAY = {
    # An id in another system (Mission Control), not one of the CLI's sessions.
    "config.existingMcSession.mcSessionId",
}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    if not SCHEMA.exists():
        pytest.skip(f"no CLI package at {SCHEMA}; `make setup` installs it")
    loaded: dict[str, Any] = json.loads(SCHEMA.read_bytes())
    return loaded


def schema_methods(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the interface part and the definition of each method of the schema."""

    def walk(part: str, node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(node, dict):
            if "rpcMethod" in node:
                yield part, node
            else:
                for inner in node.values():
                    yield from walk(part, inner)

    for part in ("server", "session", "clientSession", "clientGlobal"):
        yield from walk(part, schema[part])


def id_paths(
    schema: dict[str, Any], node: Any, path: str = "", seen: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield the places in params or results where the schema has a session id."""
    if not isinstance(node, dict):
        return
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[-1]
        if name not in seen:
            yield from id_paths(schema, schema["definitions"].get(name), path, seen | {name})
        return
    for key in ("anyOf", "oneOf", "allOf"):
        for option in node.get(key, ()):
            yield from id_paths(schema, option, path, seen)
    for key, value in node.get("properties", {}).items():
        inner = f"{path}.{key}" if path else key
        if SESSION_ID.search(key):
            yield f"{inner}[]" if is_list(schema, value) else inner
        else:
            yield from id_paths(schema, value, inner, seen)
    if "items" in node:
        yield from id_paths(schema, node["items"], f"{path}[]", seen)
    if isinstance(node.get("additionalProperties"), dict):
        yield from id_paths(schema, node["additionalProperties"], f"{path}.*", seen)


def is_list(schema: dict[str, Any], node: dict[str, Any]) -> bool:
    while "$ref" in node:
        node = schema["definitions"][node["$ref"].rsplit("/", 1)[-1]]
    kinds = node.get("type", [])
    return "array" in ([kinds] if isinstance(kinds, str) else kinds)


def test_every_method_of_the_schema_is_classified(schema: dict[str, Any]) -> None:
    missing = []
    for part, method in schema_methods(schema):
        table = SERVER_METHODS if part.startswith("client") else METHODS
        if method["rpcMethod"] not in table:
            missing.append(method["rpcMethod"])
    assert missing == [], "classify these methods in gateway/wire/methods.json"


def test_the_schema_is_the_one_the_table_was_made_for(schema: dict[str, Any]) -> None:
    named = {method["rpcMethod"] for _, method in schema_methods(schema)}
    listed = {
        info.method
        for info in ALL
        if info.scope in ("server", "session", "clientSession", "clientGlobal")
    }
    assert listed - named == set()


def test_scope_is_the_part_of_the_schema(schema: dict[str, Any]) -> None:
    for part, method in schema_methods(schema):
        table = SERVER_METHODS if part.startswith("client") else METHODS
        assert table[method["rpcMethod"]].scope == part


def test_every_session_id_that_the_schema_has_in_params_is_listed(schema: dict[str, Any]) -> None:
    unlisted = []
    for part, method in schema_methods(schema):
        table = SERVER_METHODS if part.startswith("client") else METHODS
        info = table[method["rpcMethod"]]
        found = set(id_paths(schema, method.get("params"))) - NOT_OF_THIS_GATEWAY
        unlisted += [f"{info.method}: {path}" for path in found - set(info.session_paths)]
    assert unlisted == []


def test_every_session_method_takes_the_session_at_its_top(schema: dict[str, Any]) -> None:
    for part, method in schema_methods(schema):
        if part == "session":
            assert METHODS[method["rpcMethod"]].session_paths[0] == "sessionId"


@pytest.mark.parametrize("method", ["sessions.checkInUse", "sessions.list", "sessions.fork"])
def test_session_ids_in_results_are_listed(schema: dict[str, Any], method: str) -> None:
    definitions = {m["rpcMethod"]: m for _, m in schema_methods(schema)}
    found = set(id_paths(schema, definitions[method].get("result")))
    assert found <= set(METHODS[method].result_session_paths)


def test_the_walk_finds_ids_wherever_they_stand() -> None:
    made_up = {
        "definitions": {"Ids": {"type": "array"}, "Loop": {"items": {"$ref": "#/d/Loop"}}},
    }
    params = {
        "properties": {
            "a": {"anyOf": [{"properties": {"toSessionId": {}}}, {"type": "null"}]},
            "b": {"items": {"properties": {"sessionId": {}}}},
            "sessionIds": {"$ref": "#/definitions/Ids"},
            "c": {"additionalProperties": {"properties": {"sessionId": {}}}},
            "d": {"$ref": "#/d/Loop"},
        }
    }
    assert set(id_paths(made_up, params)) == {
        "a.toSessionId",
        "b[].sessionId",
        "sessionIds[]",
        "c.*.sessionId",
    }


def inconsistencies(info: MethodInfo) -> Iterator[str]:
    route = Route[info.route.upper()]
    everyone = info.access is Access.USER
    lone = {
        *(Route.SESSION, Route.CREATE, Route.RESUME, Route.DETACH),
        *(Route.CLOSE, Route.DELETE, Route.FORK),
    }
    if info.direction is not Direction.CLIENT:
        yield "the server sends it"
    if route is Route.DENY:
        yield "denying is a matter of access"
    if (info.reason == "") != everyone:
        yield "a reason belongs to exactly what is closed to somebody"
    if info.session_paths == ("sessionId",) and everyone and route not in lone:
        yield "its session is not looked for"
    if route in lone and info.access is not Access.NEVER and info.session_paths[0] != "sessionId":
        yield "it names no session to route by"
    if route is Route.SCATTER and not all("[]" in path for path in info.session_paths):
        yield "only lists can be split"
    if (route in (Route.ALL, Route.SINGLETON) or info.kind == "host-global") and everyone:
        yield "it would change the host for everybody"
    if info.starts_turn and (info.retry_safe or not info.mutates):
        yield "it would run twice"
    if info.sent_as is not None and info.sent_as not in METHODS:
        yield "it is sent as something unknown"


def test_every_client_method_is_classified_consistently() -> None:
    found = [f"{i.method}: {what}" for i in METHODS.values() for what in inconsistencies(i)]
    assert found == []


def test_requests_that_are_safe_to_repeat_change_nothing_or_are_idempotent() -> None:
    repeatable = {i.method for i in METHODS.values() if i.retry_safe and i.mutates}
    assert repeatable == {"sessions.close", "sessions.enrichMetadata", "sessions.save"}


def test_turns_are_started_by_what_sends_prompts() -> None:
    starting = {info.method for info in METHODS.values() if info.starts_turn}
    assert starting == {
        "session.send",
        "session.sendAndWait",
        "session.sendMessages",
        "session.fleet.start",
    }


def test_server_messages_name_no_route() -> None:
    assert {info.route for info in SERVER_METHODS.values()} == {""}
    assert {info.direction for info in SERVER_METHODS.values()} == {Direction.SERVER}


def test_the_same_name_may_go_both_ways() -> None:
    assert METHODS["$/cancelRequest"].notification
    assert SERVER_METHODS["$/cancelRequest"].notification


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        METHODS["ping"] = METHODS["connect"]  # type: ignore[index]
