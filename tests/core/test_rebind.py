"""A replica or a link is lost: sessions come back with all that the CLI does not persist."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway import errors
from tests.core.conftest import MakeStage
from tests.support.playbook import NOT_FOUND, Actor, Ask, Stage

TOOLS = [{"name": "mine", "description": "d", "parameters": {"type": "object"}}]
PARAMS: dict[str, Any] = {
    "tools": TOOLS,
    "provider": {"type": "openai", "baseUrl": "http://x", "apiKey": "k"},
    "model": "m",
    "availableTools": ["mine"],
    "excludedTools": ["bash"],
    "hooks": True,
    "requestPermission": True,
    "requestUserInput": True,
    "systemMessage": {"mode": "append", "content": "c"},
    "streaming": True,
    "mcpServers": {"a": {"command": "b"}},
}


async def had_a_turn(stage: Stage, actor: Actor, session_id: str = "s", **params: Any) -> Ask:
    """Create a session and run a turn in it, so that it is on disk."""
    created = await actor.creates(session_id, **params)
    await actor.prompts(session_id)
    for kind in ("user.message", "assistant.turn_start", "assistant.message", "session.idle"):
        created.line.emits(session_id, kind)
        await actor.hears_event(kind)
    stage.replicas[created.line.replica.name].stores(session_id)
    await stage.settle()
    return created


async def test_a_session_is_resumed_with_its_whole_recipe(stage: Stage) -> None:
    alice = await stage.client("alice")
    await had_a_turn(stage, alice, **PARAMS)
    stage.cli.dies()
    await stage.cli.returns()
    resumed = await stage.cli.gets("session.resume")
    assert resumed.params == {
        **PARAMS,
        "sessionId": "s",
        "disableResume": True,
        "continuePendingWork": True,
    }


async def test_for_the_client_nothing_has_happened(stage: Stage) -> None:
    alice = await stage.client("alice")
    await had_a_turn(stage, alice)
    heard = len(alice.heard.all)
    stage.cli.dies()
    await stage.cli.returns()
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await stage.settle()
    assert alice.heard.all[heard:] == []
    assert not alice.core.closed
    await alice.prompts("s")
    assert stage.stats.sessions_rebound == 1


async def test_requests_wait_while_the_session_comes_back(stage: Stage) -> None:
    alice = await stage.client("alice")
    await had_a_turn(stage, alice)
    stage.cli.dies()
    for prompt in "123":
        alice.asks("session.send", sessionId="s", prompt=prompt)
    await stage.settle()
    await stage.cli.returns()
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    prompts = [(await stage.cli.gets("session.send")).params["prompt"] for _ in "123"]
    assert prompts == ["1", "2", "3"]


async def test_a_new_handshake_carries_the_connections_parameters(stage: Stage) -> None:
    alice = await stage.client("alice", supportedTaskKinds=["client"])
    await had_a_turn(stage, alice)
    stage.cli.dies()
    await stage.cli.returns()
    resumed = await stage.cli.gets("session.resume")
    assert resumed.line.hello == {"token": "cli-0-secret", "supportedTaskKinds": ["client"]}


async def test_later_calls_change_the_recipe(stage: Stage) -> None:
    alice = await stage.client("alice")
    await had_a_turn(stage, alice, model="old", reasoningEffort="low", tools=TOOLS)
    await alice.resumes("s", tools=[], streaming=True, traceparent="00-1")
    alice.asks("session.model.switchTo", sessionId="s", modelId="new")
    (await stage.cli.gets("session.model.switchTo")).answers({})
    await alice.hears_result()
    stage.cli.dies()
    await stage.cli.returns()
    params = (await stage.cli.gets("session.resume")).params
    assert (params["tools"], params["streaming"]) == ([], True)
    assert not {"model", "reasoningEffort", "traceparent"} & params.keys()


async def test_a_change_that_was_refused_does_not_change_the_recipe(stage: Stage) -> None:
    alice = await stage.client("alice")
    await had_a_turn(stage, alice, model="old")
    alice.asks("session.model.switchTo", sessionId="s", modelId="new")
    (await stage.cli.gets("session.model.switchTo")).refuses("no")
    await alice.hears_error()
    stage.cli.dies()
    await stage.cli.returns()
    assert (await stage.cli.gets("session.resume")).params["model"] == "old"


async def test_a_session_that_never_had_a_message_is_made_anew(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s", tools=TOOLS)
    stage.cli.dies()
    await stage.cli.returns()
    (await stage.cli.gets("session.resume")).refuses(NOT_FOUND.format("s"))
    created = await stage.cli.gets("session.create")
    assert created.params == {"tools": TOOLS, "sessionId": "s"}
    created.answers({"sessionId": "s"})
    await stage.settle()
    await alice.prompts("s")


async def test_a_session_that_had_one_is_never_made_anew(stage: Stage) -> None:
    """An empty conversation in place of a lost one would be a lie."""
    alice = await stage.client("alice")
    await had_a_turn(stage, alice)
    stage.cli.dies()
    alice.asks("session.send", sessionId="s", prompt="x")
    await stage.cli.returns()
    (await stage.cli.gets("session.resume")).refuses(NOT_FOUND.format("s"))
    assert "error" in await alice.hears_answer()
    await stage.settle()
    assert stage.cli.unanswered == []


async def test_every_client_of_a_session_is_bound_again_with_its_own_recipe(stage: Stage) -> None:
    one, other = await stage.client("alice"), await stage.client("alice")
    await had_a_turn(stage, one, tools=TOOLS)
    await other.resumes("s", hooks=True)
    stage.cli.dies()
    await stage.cli.returns()
    asked = {}
    for _ in "ab":
        ask = await stage.cli.gets("session.resume")
        ask.answers({"sessionId": "s"})
        asked[ask.line.link.client] = ask.params
    assert asked[one.core]["tools"] == TOOLS
    assert asked[other.core]["hooks"] is True
    assert "tools" not in asked[other.core]


async def test_unattached_clients_are_not_attached_by_it(stage: Stage) -> None:
    one, other = await stage.client("alice"), await stage.client("alice")
    created = await had_a_turn(stage, one)
    await other.prompts("s")
    created.line.emits("s", "session.idle")
    stage.cli.dies()
    await stage.cli.returns()
    asked = await stage.cli.gets("session.resume")
    assert asked.line.link.client is one.core
    asked.answers({"sessionId": "s"})
    await stage.settle()
    assert stage.cli.unanswered == []
    await other.prompts("s")


async def test_sessions_of_other_replicas_notice_nothing(two: Stage) -> None:
    alice = await two.client("alice")
    homes = {}
    number = 0
    while len(homes) < 2:
        created = await had_a_turn(two, alice, f"s{number}")
        homes[created.line.replica.name] = f"s{number}"
        number += 1
    two.replicas["cli-0"].dies()
    assert (await alice.prompts(homes["cli-1"])).line.replica.name == "cli-1"
    assert not two.replicas["cli-1"].unanswered


async def test_only_the_link_is_lost(stage: Stage) -> None:
    alice, bob = await stage.client("alice"), await stage.client("bob")
    line = (await had_a_turn(stage, alice)).line
    await bob.creates("b")
    line.breaks()
    asked = await stage.cli.gets("session.resume")
    assert asked.params["sessionId"] == "s"
    asked.answers({"sessionId": "s"})
    await stage.settle()
    assert stage.hub.replicas["cli-0"].reachable
    await alice.prompts("s")
    await bob.prompts("b")
    assert stage.cli.unanswered == []


async def test_a_safe_request_that_was_under_way_is_sent_again(stage: Stage) -> None:
    alice = await stage.client("alice")
    await had_a_turn(stage, alice)
    alice.asks("session.getMessages", sessionId="s")
    await stage.cli.gets("session.getMessages")
    stage.cli.dies()
    await stage.cli.returns()
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    (await stage.cli.gets("session.getMessages")).answers({"events": [1]})
    assert await alice.hears_result() == {"events": [1]}


async def test_other_requests_that_were_under_way_are_answered(stage: Stage) -> None:
    """Whether they took effect nobody can know: they are not repeated."""
    alice = await stage.client("alice")
    await had_a_turn(stage, alice)
    alice.asks("session.mode.set", sessionId="s", mode="plan")
    await stage.cli.gets("session.mode.set")
    stage.cli.dies()
    error = await alice.hears_error()
    assert error["code"] == errors.REPLICA_UNAVAILABLE
    assert error["data"]["session"] == "s"
    await stage.cli.returns()
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await stage.settle()
    assert stage.cli.unanswered == []


async def test_a_create_that_was_under_way_is_asked_again(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.asks("session.create", sessionId="s", tools=TOOLS)
    await stage.cli.gets("session.create")
    stage.cli.dies()
    await stage.cli.returns()
    again = await stage.cli.gets("session.create")
    assert again.params == {"sessionId": "s", "tools": TOOLS}
    again.answers({"sessionId": "s"})
    await alice.hears_result()


async def test_pings_under_way_are_answered_by_who_is_left(two: Stage) -> None:
    alice = await two.client("alice")
    for replica in two.replicas.values():
        del replica.knows["ping"]
    alice.asks("ping")
    asked = await two.anyone_gets("ping")
    asked.line.replica.dies()
    again = await two.anyone_gets("ping")
    assert again.line.replica is not asked.line.replica
    again.answers({"message": "pong"})
    await alice.hears_result()


async def test_a_replica_that_stays_away_is_told_in_time(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", rebind_timeout=0.05)
    alice = await stage.client("alice")
    await had_a_turn(stage, alice)
    stage.cli.dies()
    ids = [alice.asks("session.send", sessionId="s", prompt="x") for _ in range(3)]
    for request_id in ids:
        error = await alice.hears_error(request_id)
        assert error["code"] == errors.REPLICA_UNAVAILABLE
        assert error["data"]["retryAfterMs"] > 0
    assert not alice.core.closed


async def test_later_it_may_be_resumed_again(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", rebind_timeout=0.05)
    alice = await stage.client("alice")
    await had_a_turn(stage, alice)
    stage.cli.dies()
    alice.asks("session.send", sessionId="s", prompt="x")
    await alice.hears_error()
    await asyncio.sleep(0.06)
    await stage.cli.returns()
    alice.asks("session.resume", sessionId="s")
    # Once with all that the session had, which the client need not know, then as it says.
    for _ in "ab":
        (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await alice.hears_result()
    await alice.prompts("s")


async def test_what_waits_for_a_dead_replica_is_bounded(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", queue_frames=3)
    alice = await stage.client("alice")
    await had_a_turn(stage, alice)
    stage.cli.dies()
    ids = [alice.asks("session.send", sessionId="s", prompt=str(n)) for n in range(5)]
    for request_id in ids[3:]:
        assert (await alice.hears_error(request_id))["code"] == errors.OVERLOADED
    await stage.cli.returns()
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    for _ in range(3):
        await stage.cli.gets("session.send")


async def test_a_replica_that_dies_again_during_the_resume(stage: Stage) -> None:
    alice = await stage.client("alice")
    await had_a_turn(stage, alice)
    stage.cli.dies()
    alice.asks("session.send", sessionId="s", prompt="x")
    for _ in range(3):
        await stage.cli.returns()
        await stage.cli.gets("session.resume")
        stage.cli.dies()
    await stage.cli.returns()
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    (await stage.cli.gets("session.send")).answers({"messageId": "m"})
    await alice.hears_result()


async def test_a_client_that_leaves_meanwhile_is_not_bound_again(stage: Stage) -> None:
    alice = await stage.client("alice")
    await had_a_turn(stage, alice)
    stage.cli.dies()
    alice.leaves()
    await stage.cli.returns()
    await stage.settle()
    assert stage.cli.unanswered == []
    assert stage.hub.sessions == {}


async def test_a_replica_that_moves_is_followed(stage: Stage) -> None:
    """It came back under its name at another address, as a supervised one does."""
    alice = await stage.client("alice")
    await had_a_turn(stage, alice)
    replica = stage.hub.replicas["cli-0"]
    from dataclasses import replace

    stage.cli.live.clear()
    stage.hub.set_replicas([replace(replica.spec, port=5999)])
    await stage.probe("cli-0")
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await stage.settle()
    await alice.prompts("s")


@pytest.mark.parametrize("order", [1, -1])
async def test_a_resume_of_the_clients_own_during_the_rebind(stage: Stage, order: int) -> None:
    """An SDK that noticed something may resume by itself; both end in one attached session."""
    alice = await stage.client("alice")
    await had_a_turn(stage, alice, tools=TOOLS)
    stage.cli.dies()
    if order == 1:
        alice.asks("session.resume", sessionId="s", tools=[])
    await stage.cli.returns()
    if order == -1:
        alice.asks("session.resume", sessionId="s", tools=[])
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    own = await stage.cli.gets("session.resume")
    assert own.params == {"sessionId": "s", "tools": []}
    own.answers({"sessionId": "s"})
    await alice.hears_result()
    await alice.prompts("s")
    assert stage.stats.sessions_live == 1
