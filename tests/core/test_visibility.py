"""What a client can notice of sessions that are not its own: nothing."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.policy.rules import MethodPolicy, OperatorRule, Route
from gateway.wire.methods import METHODS
from tests.core.conftest import MakeStage
from tests.support.playbook import IDENTITIES, Actor, Stage, lifecycle

EVERYTHING = MethodPolicy(rules=(OperatorRule("allow", ("session.*", "sessions.*")),))
"""A policy under which only ownership protects sessions."""

ROUTES = (Route.SESSION, Route.RESUME, Route.DETACH, Route.CLOSE, Route.DELETE, Route.FORK)
BY_SESSION = sorted(
    method
    for method in METHODS
    if EVERYTHING.rule_for(method, IDENTITIES["mallory"]).route in ROUTES
)


async def said(actor: Actor, method: str, session_id: str) -> bytes:
    """Return the bytes of the answer, with the id replaced."""
    before = len(actor.sink.written)
    actor.asks(method, id="q", **params_for(method, session_id))
    await actor.hears_answer("q")
    return bytes(actor.sink.written[before:]).replace(session_id.encode(), b"SESSION")


def params_for(method: str, session_id: str) -> dict[str, Any]:
    """Return params that name the session wherever the method takes one."""
    params: dict[str, Any] = {"sessionId": session_id}
    for path in METHODS[method].session_paths:
        *parents, last = path.split(".")
        inner = params
        for key in parents:
            inner = inner.setdefault(key.removesuffix("[]"), {})
            if isinstance(inner, list):
                break
        else:
            inner[last.removesuffix("[]")] = [session_id] if last.endswith("[]") else session_id
    return params


def test_most_methods_are_about_one_session() -> None:
    assert len(BY_SESSION) > 250


@pytest.mark.parametrize("who", ["mallory", "eve", "bob"])
async def test_a_foreign_session_reads_as_an_unknown_one(make_stage: MakeStage, who: str) -> None:
    """Byte for byte, for every method, live or stored, for users, admins and neighbours."""
    stage = await make_stage("cli-0", options={"policy": EVERYTHING, "adopt": "never"})
    alice, other = await stage.client("alice"), await stage.client(who)
    await alice.creates("a-live-one")
    await stage.recorded("a-cold-one", "alice")
    stage.cli.stores("a-live-one", "a-cold-one", "nobodys-00")
    differing = []
    for method in BY_SESSION:
        unknown = await said(other, method, "not-there0")
        for session_id in ("a-live-one", "a-cold-one"):
            if await said(other, method, session_id) != unknown:
                differing.append((method, session_id))
        if await said(other, method, "nobodys-00") != unknown:
            differing.append((method, "nobodys"))
    assert not differing
    assert stage.cli.unanswered == []
    assert not [m for m in stage.cli.told.all if "a-live-one" in str(m)]


async def test_an_admin_sees_the_sessions_of_the_tenant(stage: Stage) -> None:
    alice, boss = await stage.client("alice"), await stage.client("boss")
    await alice.creates("s")
    await boss.prompts("s")
    await boss.resumes("s")


async def test_a_notification_for_a_foreign_session_does_nothing(stage: Stage) -> None:
    alice, mallory = await stage.client("alice"), await stage.client("mallory")
    await alice.creates("s")
    mallory.notifies("session.send", sessionId="s", prompt="x")
    mallory.notifies("session.abort", sessionId="s")
    await stage.settle()
    assert mallory.unheard == []
    assert not [
        m for m in stage.cli.told.all if m.get("method") in ("session.send", "session.abort")
    ]


async def test_a_second_session_in_the_params_must_be_the_callers(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", options={"policy": EVERYTHING})
    alice, mallory = await stage.client("alice"), await stage.client("mallory")
    await alice.creates("hers")
    await mallory.creates("mine")
    tried = 0
    for method, info in METHODS.items():
        extra = [
            p for p in info.session_paths if p != "sessionId" and "[]" not in p and "." not in p
        ]
        route = EVERYTHING.rule_for(method, IDENTITIES["mallory"]).route
        if "sessionId" not in info.session_paths or not extra or route not in ROUTES:
            continue
        for name in extra:
            mallory.asks(method, **{"sessionId": "mine", name: "hers"})
            assert "error" in await mallory.hears_answer() or method == "session.getMetadata"
            tried += 1
    assert tried > 0
    assert stage.cli.unanswered == []


# Lifecycle


async def test_lifecycle_reaches_the_owner_and_the_tenants_admin_only(stage: Stage) -> None:
    actors = {name: await stage.client(name) for name in IDENTITIES}
    for name, actor in actors.items():
        await actor.creates(f"{name}s")
    await stage.settle()
    stage.cli.broadcasts(lifecycle("alices"))
    await stage.settle()
    heard = {
        name
        for name, actor in actors.items()
        if [m for m in actor.heard.all if m.get("method") == "session.lifecycle"]
    }
    assert heard == {"alice", "boss"}


async def test_lifecycle_of_an_unknown_session_reaches_nobody(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("a")
    stage.cli.broadcasts(lifecycle("nobodys"))
    for params in ({}, {"type": "x"}, {"type": "x", "sessionId": 5}, {"sessionId": None}):
        stage.cli.lines[-1].notifies("session.lifecycle", **params)
    await stage.settle()
    assert not [m for m in alice.heard.all if m.get("method") == "session.lifecycle"]


async def test_lifecycle_of_a_session_that_only_the_registry_knows(stage: Stage) -> None:
    alice, mallory = await stage.client("alice"), await stage.client("mallory")
    await alice.creates("a")
    await mallory.creates("m")
    await stage.recorded("elsewhere", "alice")
    line = stage.cli.line_of(alice)
    line.says(lifecycle("elsewhere"))
    stage.cli.line_of(mallory).says(lifecycle("elsewhere"))
    await alice.hears("session.lifecycle")
    await stage.settle()
    assert not [m for m in mallory.heard.all if m.get("method") == "session.lifecycle"]


async def test_lifecycle_reaches_an_owner_without_a_link_to_that_replica(two: Stage) -> None:
    alice = await two.client("alice")
    await two.recorded("far", "alice", "cli-1")
    alice.asks("ping")
    await alice.hears_result()
    replica = two.replicas["cli-1"]
    if any(line.link.client is alice.core for line in replica.lines):
        pytest.fail("the ping was to go to the other replica")
    await two.hub.authorize(alice.core, "far")
    replica.broadcasts(lifecycle("far", "session.deleted"))
    assert (await alice.hears("session.lifecycle"))["params"]["type"] == "session.deleted"


async def test_lifecycle_is_heard_once(two: Stage) -> None:
    alice = await two.client("alice")
    created = await alice.creates("s")
    created.line.replica.broadcasts(lifecycle("s"))
    await two.settle()
    assert len([m for m in alice.heard.all if m.get("method") == "session.lifecycle"]) == 1


async def test_lifecycle_before_the_answer_to_create_is_heard(stage: Stage) -> None:
    """The CLI announces a session before it answers the request that makes it."""
    alice = await stage.client("alice")
    alice.asks("session.create", sessionId="s")
    asked = await stage.cli.gets("session.create")
    asked.line.says(lifecycle("s", "session.created"))
    asked.answers({"sessionId": "s"})
    await alice.hears("session.lifecycle")


# Lists


async def test_a_list_is_merged_and_shows_only_the_callers(two: Stage) -> None:
    for number, name in enumerate(["alice", "bob", "mallory"]):
        for replica in ("cli-0", "cli-1"):
            session_id = f"{name}-{replica}"
            await two.recorded(session_id, name, replica)
            stamp = f"2026-01-0{number + 1}T00:00:00.000Z"
            two.replicas[replica].stores(session_id, modified=stamp)
    two.replicas["cli-0"].stores("nobodys")
    for name, expected in (
        ("alice", {"alice-cli-0", "alice-cli-1"}),
        ("mallory", {"mallory-cli-0", "mallory-cli-1"}),
        ("boss", {f"{n}-{r}" for n in ("alice", "bob") for r in ("cli-0", "cli-1")}),
    ):
        actor = await two.client(name)
        actor.asks("session.list")
        sessions = (await actor.hears_result())["sessions"]
        assert {one["sessionId"] for one in sessions} == expected


async def test_the_last_session_is_the_callers_last(two: Stage) -> None:
    await two.recorded("old", "alice", "cli-0")
    await two.recorded("new", "alice", "cli-1")
    await two.recorded("newest", "mallory", "cli-1")
    two.replicas["cli-0"].stores("old", modified="2026-01-01T00:00:00.000Z")
    two.replicas["cli-1"].stores("new", modified="2026-01-02T00:00:00.000Z")
    two.replicas["cli-1"].stores("newest", modified="2026-01-03T00:00:00.000Z")
    alice, bob = await two.client("alice"), await two.client("bob")
    alice.asks("session.getLastId")
    assert await alice.hears_result() == {"sessionId": "new"}
    bob.asks("session.getLastId")
    assert await bob.hears_result() == {}


async def test_a_dead_replica_is_left_out_of_a_list(two: Stage) -> None:
    await two.recorded("kept", "alice", "cli-1")
    two.replicas["cli-1"].stores("kept")
    alice = await two.client("alice")
    two.replicas["cli-0"].dies()
    alice.asks("session.list")
    sessions = (await alice.hears_result())["sessions"]
    assert [one["sessionId"] for one in sessions] == ["kept"]


async def test_a_list_without_any_replica_is_an_error(stage: Stage) -> None:
    alice = await stage.client("alice")
    stage.cli.dies()
    alice.asks("session.list")
    assert (await alice.hears_error())["code"] == -32010


async def test_metadata_of_several_sessions_drops_what_is_not_the_callers(stage: Stage) -> None:
    alice = await stage.client("alice")
    await stage.recorded("mine", "alice")
    await stage.recorded("theirs", "mallory")
    alice.asks("sessions.checkInUse", sessionIds=["mine", "theirs", "nobodys"])
    asked = await stage.cli.gets("sessions.checkInUse")
    assert asked.params == {"sessionIds": ["mine"]}
    asked.answers({"inUse": ["mine", "theirs"]})
    assert await alice.hears_result() == {"inUse": ["mine"]}


async def test_a_bulk_delete_deletes_only_the_callers(stage: Stage) -> None:
    alice = await stage.client("alice")
    await stage.recorded("mine", "alice")
    await stage.recorded("theirs", "mallory")
    alice.asks("sessions.bulkDelete", sessionIds=["mine", "theirs"])
    asked = await stage.cli.gets("sessions.bulkDelete")
    assert asked.params == {"sessionIds": ["mine"]}
    asked.answers({"freedBytes": {"mine": 5}})
    assert await alice.hears_result() == {"freedBytes": {"mine": 5, "theirs": 0}}
    await stage.settle()
    assert await stage.registry.get("mine") is None
    assert await stage.registry.get("theirs") is not None


async def test_events_reach_only_those_on_whose_link_they_come(stage: Stage) -> None:
    alice, mallory = await stage.client("alice"), await stage.client("mallory")
    line = (await alice.creates("s")).line
    await mallory.creates("m")
    line.emits("s", "assistant.message", content="secret")
    await alice.hears_event("assistant.message")
    assert not [m for m in mallory.heard.all if "secret" in str(m)]
