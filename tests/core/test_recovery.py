"""A turn is carried to its end after its replica, its link or its client was lost."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway import errors
from gateway.core import binding as binding_module
from gateway.core import recovery
from tests.core.conftest import MakeStage
from tests.support.playbook import Actor, Ask, Line, Message, Stage, event
from tests.support.rpc import frame
from tests.support.wait import eventually

TOOLS = [{"name": "mine", "description": "d", "parameters": {"type": "object"}}]
TOLD = "11111111-0000-4000-8000-000000000001"
AGAIN = "22222222-0000-4000-8000-000000000002"
THIRD = "33333333-0000-4000-8000-000000000003"
CLASH = "External tool name clash: mine already registered by another connection"
RECOVERED = {"processing": False}


def user(message_id: str, text: str = "hi") -> Message:
    return {"type": "user.message", "data": {"messageId": message_id, "content": text}}


def said(event_id: str, text: str = "answer") -> Message:
    data = {"content": text, "toolRequests": []}
    return {"type": "assistant.message", "id": event_id, "data": data}


TURN_START = {"type": "assistant.turn_start", "data": {}}
EARLIER = [user("m0", "earlier"), TURN_START, said("e0", "earlier")]


async def with_history(stage: Stage, actor: Actor, **params: Any) -> Line:
    """Create a session that has had a turn; return its connection."""
    line = (await actor.creates("s", **params)).line
    await actor.prompts("s", "earlier")
    for one in EARLIER:
        line.says(event("s", one["type"], **one["data"]))
    line.emits("s", "session.idle")
    await actor.hears_event("session.idle")
    await stage.settle()
    actor.heard.messages.clear()
    return line


async def sends(stage: Stage, actor: Actor, message_id: str, prompt: str = "hi") -> Line:
    """Send a prompt that is acknowledged; return the connection."""
    actor.asks("session.send", sessionId="s", prompt=prompt)
    asked = await stage.anyone_gets("session.send")
    asked.answers({"messageId": message_id})
    await actor.hears_result()
    return asked.line


async def comes_back(stage: Stage, *, processing: bool = False) -> Ask:
    """Kill and restart the replica; answer the resume that follows."""
    stage.cli.dies()
    stage.cli.knows["session.metadata.isProcessing"] = lambda _: {"processing": processing}
    await stage.cli.returns()
    resumed = await stage.cli.gets("session.resume")
    resumed.answers({"sessionId": "s"})
    return resumed


async def tells_history(stage: Stage, *events: Message) -> Line:
    asked = await stage.cli.gets("session.getMessages")
    asked.answers({"events": [*EARLIER, *events]})
    return asked.line


def ago(stage: Stage, seconds: float) -> str:
    """Return a moment as the CLI writes it."""
    moment = datetime.fromtimestamp(stage.hub.wall_clock() - seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def events_of(actor: Actor) -> list[str]:
    """Types of the events heard and not taken."""
    return [
        one["params"]["event"]["type"] for one in actor.unheard if one["method"] == "session.event"
    ]


# What is done on the other side of a kill


async def test_a_model_call_that_was_cut_is_made_again(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    line = await sends(stage, alice, TOLD)
    line.says(event("s", "user.message", messageId=TOLD, content="hi"), event("s", "assistant.x"))
    await stage.settle()
    alice.heard.messages.clear()
    await comes_back(stage)
    await tells_history(stage, user(TOLD), TURN_START)
    again = await stage.cli.gets("session.sendMessages")
    assert again.params == {"sessionId": "s", "messages": []}
    again.answers({"messageIds": []})
    again.line.emits("s", "assistant.message")
    again.line.emits("s", "session.idle")
    await alice.hears_event("session.idle")
    assert events_of(alice) == ["assistant.message"]
    assert stage.cli.unanswered == []
    assert not stage.hub.sessions["s"].turn.busy


async def test_a_prompt_recorded_and_never_shown_is_shown(stage: Stage) -> None:
    """The event was written to the journal and died on the wire."""
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await sends(stage, alice, TOLD)
    await comes_back(stage)
    await tells_history(stage, user(TOLD))
    (await stage.cli.gets("session.sendMessages")).answers({})
    shown = await alice.hears_event("user.message")
    assert shown["event"]["data"]["messageId"] == TOLD


async def test_a_send_whose_answer_was_lost_is_answered_from_the_history(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="hi")
    await stage.cli.gets("session.send")
    await comes_back(stage)
    await tells_history(stage, user("m7"))
    assert await alice.hears_result() == {"messageId": "m7"}
    await stage.cli.gets("session.sendMessages")
    assert stage.cli.unanswered == []


async def test_a_send_that_left_no_trace_is_sent_again(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="hi", wait=True)
    await stage.cli.gets("session.send")
    await comes_back(stage)
    await tells_history(stage)
    again = await stage.cli.gets("session.send")
    assert again.params == {"sessionId": "s", "prompt": "hi", "wait": True}
    again.answers({"messageId": "m8"})
    assert await alice.hears_result() == {"messageId": "m8"}
    assert stage.cli.unanswered == []


async def test_an_acknowledged_prompt_that_was_lost_is_sent_once(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="hi", wait=True, mode="plan")
    (await stage.cli.gets("session.send")).answers({"messageId": TOLD})
    await alice.hears_result()
    heard = len(alice.heard.all)
    await comes_back(stage)
    await tells_history(stage)
    again = await stage.cli.gets("session.send")
    # Nobody waits for this answer any more.
    assert again.params == {"sessionId": "s", "prompt": "hi", "mode": "plan"}
    again.answers({"messageId": AGAIN})
    await stage.settle()
    assert alice.heard.all[heard:] == []
    assert stage.cli.unanswered == []


@pytest.mark.parametrize("step", [1, 7, 50, 10_000])
async def test_its_sender_goes_on_seeing_the_id_that_it_was_told(stage: Stage, step: int) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await sends(stage, alice, TOLD)
    await comes_back(stage)
    await tells_history(stage)
    again = await stage.cli.gets("session.send")
    stream = b"".join(
        frame(one)
        for one in (
            {"jsonrpc": "2.0", "id": again.id, "result": {"messageId": AGAIN}},
            event("s", "user.message", messageId=AGAIN, content="hi"),
            event("s", "assistant.message", originatingMessageId=AGAIN),
            event("s", "session.idle"),
        )
    )
    for start in range(0, len(stream), step):
        again.line.says_raw(stream[start : start + step])
    shown = await alice.hears_event("user.message")
    assert shown["event"]["data"]["messageId"] == TOLD
    answer = await alice.hears_event("assistant.message")
    assert answer["event"]["data"]["originatingMessageId"] == TOLD
    await alice.hears_event("session.idle")


async def test_a_second_death_does_not_send_it_a_third_time(stage: Stage) -> None:
    """In the journal it has the id of the second sending, which its sender never heard of."""
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await sends(stage, alice, TOLD)
    await comes_back(stage)
    await tells_history(stage)
    (await stage.cli.gets("session.send")).answers({"messageId": AGAIN})
    await stage.settle()
    await comes_back(stage)
    line = await tells_history(stage, user(AGAIN))
    shown = await alice.hears_event("user.message")
    assert shown["event"]["data"]["messageId"] == TOLD
    (await stage.cli.gets("session.sendMessages")).answers({})
    line.emits("s", "assistant.message", originatingMessageId=AGAIN)
    answer = await alice.hears_event("assistant.message")
    assert answer["event"]["data"]["originatingMessageId"] == TOLD
    assert stage.cli.unanswered == []


async def test_a_queue_is_worked_off_in_its_order(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await sends(stage, alice, TOLD, "1")
    await sends(stage, alice, AGAIN, "2")
    await sends(stage, alice, THIRD, "3")
    await comes_back(stage)
    await tells_history(stage, user(TOLD, "1"))
    (await stage.cli.gets("session.sendMessages")).answers({})
    for text in "23":
        again = await stage.cli.gets("session.send")
        assert again.params["prompt"] == text
        again.answers({"messageId": f"{text * 8}-0000-4000-8000-000000000009"})
    await stage.settle()
    assert stage.cli.unanswered == []


async def test_what_was_asked_meanwhile_comes_after(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await sends(stage, alice, TOLD)
    stage.cli.dies()
    alice.asks("session.send", sessionId="s", prompt="later")
    await stage.cli.returns()
    (await stage.cli.gets("session.resume")).answers({})
    await tells_history(stage)
    await stage.settle()
    assert stage.cli.unanswered == ["session.send"]
    again = await stage.cli.gets("session.send")
    assert again.params["prompt"] == "hi"
    again.answers({"messageId": AGAIN})
    assert (await stage.cli.gets("session.send")).params["prompt"] == "later"


async def test_a_complete_turn_lacks_only_its_end(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await sends(stage, alice, TOLD)
    await comes_back(stage)
    await tells_history(stage, user(TOLD), TURN_START, said("e1", "the end"))
    message = await alice.hears_event("assistant.message")
    assert message["event"]["data"]["content"] == "the end"
    idle = await alice.hears_event("session.idle")
    assert idle["event"]["ephemeral"] is True
    assert stage.cli.unanswered == []


async def test_an_abort_is_carried_out(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await sends(stage, alice, TOLD)
    alice.asks("session.abort", sessionId="s")
    await stage.cli.gets("session.abort")
    await comes_back(stage)
    await tells_history(stage, user(TOLD), TURN_START)
    idle = await alice.hears_event("session.idle")
    assert idle["event"]["data"] == {"aborted": True}
    (await stage.cli.gets("session.abort")).answers({"success": True})
    assert await alice.hears_result() == {"success": True}
    assert stage.cli.unanswered == []


async def test_the_replica_dies_again_meanwhile(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await sends(stage, alice, TOLD)
    await comes_back(stage)
    await stage.cli.gets("session.getMessages")
    await comes_back(stage)
    await tells_history(stage, user(TOLD))
    await stage.cli.gets("session.sendMessages")
    await comes_back(stage)
    await tells_history(stage, user(TOLD))
    (await stage.cli.gets("session.sendMessages")).answers({})
    await stage.settle()
    assert stage.cli.unanswered == []


# Pending requests


async def pending(stage: Stage, alice: Actor, *, told: bool) -> None:
    """Have a permission wait when the replica dies; carry on with it restored."""
    line = await sends(stage, alice, TOLD)
    line.emits("s", "user.message", messageId=TOLD, content="hi")
    if told:
        line.emits("s", "permission.requested", requestId="p")
        await alice.hears_event("permission.requested")


async def restored(stage: Stage) -> Line:
    await comes_back(stage, processing=True)
    line = await tells_history(stage, user(TOLD))
    asked = await stage.cli.gets("session.permissions.pendingRequests")
    asked.answers({"items": [{"requestId": "p", "request": {"kind": "custom-tool"}}]})
    (await stage.cli.gets("session.tools.listPendingRequests")).answers({"items": []})
    await stage.settle()
    return line


async def test_a_permission_that_was_asked_for_is_not_asked_for_again(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await pending(stage, alice, told=True)
    alice.heard.messages.clear()
    await restored(stage)
    assert events_of(alice) == []
    alice.asks(
        "session.permissions.handlePendingPermissionRequest",
        sessionId="s",
        requestId="p",
        result={},
    )
    asked = await stage.cli.gets("session.permissions.handlePendingPermissionRequest")
    asked.answers({"success": True})
    assert await alice.hears_result() == {"success": True}
    assert stage.cli.unanswered == []


async def test_a_permission_whose_question_was_lost_is_asked_for(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await pending(stage, alice, told=False)
    await restored(stage)
    asked = await alice.hears_event("permission.requested")
    assert asked["event"]["data"]["requestId"] == "p"


async def test_an_answer_that_was_acknowledged_and_lost_is_given_again(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await pending(stage, alice, told=True)
    answer = {"sessionId": "s", "requestId": "p", "result": {"kind": "approve-once"}}
    method = "session.permissions.handlePendingPermissionRequest"
    alice.asks(method, **answer)
    (await stage.cli.gets(method)).answers({"success": True})
    await alice.hears_result()
    await restored(stage)
    again = await stage.cli.gets(method)
    assert again.params == answer
    again.answers({"success": True})
    await stage.settle()
    assert stage.cli.unanswered == []


async def test_an_answer_on_its_way_is_given_once(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await pending(stage, alice, told=True)
    method = "session.permissions.handlePendingPermissionRequest"
    alice.asks(method, sessionId="s", requestId="p", result={})
    await stage.cli.gets(method)
    await restored(stage)
    (await stage.cli.gets(method)).answers({"success": True})
    assert await alice.hears_result() == {"success": True}
    assert stage.cli.unanswered == []


# Where a turn cannot be carried on


async def test_turn_recovery_fail_ends_the_turn_for_the_client(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", options={"recovers_turns": False})
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await sends(stage, alice, TOLD)
    alice.asks("session.send", sessionId="s", prompt="unanswered")
    await stage.cli.gets("session.send")
    await comes_back(stage)
    error = await alice.hears_error()
    assert error["code"] == errors.TURN_INTERRUPTED
    assert error["data"] == {"session": "s", "promptRecorded": None}
    failed = await alice.hears_event("session.error")
    assert failed["event"]["data"]["message"] == recovery.INTERRUPTED
    await alice.hears_event("session.idle")
    assert events_of(alice) == []
    assert stage.cli.unanswered == []
    await alice.prompts("s")


async def test_a_prompt_that_was_seen_is_known_to_be_recorded(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", options={"recovers_turns": False})
    alice = await stage.client("alice")
    line = await with_history(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="hi")
    await stage.cli.gets("session.send")
    line.emits("s", "user.message", messageId=TOLD, content="hi")
    await comes_back(stage)
    assert (await alice.hears_error())["data"]["promptRecorded"] is True


@pytest.mark.parametrize("lacking", ["session.getMessages", "session.sendMessages"])
async def test_a_cli_without_the_means(stage: Stage, lacking: str) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await sends(stage, alice, TOLD)
    await comes_back(stage)
    if lacking != "session.getMessages":
        await tells_history(stage, user(TOLD))
    (await stage.cli.gets(lacking)).refuses(f"Unhandled method {lacking}", -32601)
    await alice.hears_event("session.error")
    await alice.hears_event("session.idle")
    await stage.settle()
    await alice.prompts("s")


async def test_a_call_that_is_not_known_to_be_repeatable_is_not_repeated(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    alice.asks("session.sendMessages", sessionId="s", messages=[{"prompt": "x"}])
    await stage.cli.gets("session.sendMessages")
    await comes_back(stage)
    await tells_history(stage)
    assert (await alice.hears_error())["code"] == errors.TURN_INTERRUPTED
    await alice.hears_event("session.idle")
    assert stage.cli.unanswered == []


async def test_the_session_is_gone(stage: Stage) -> None:
    """Nothing hangs: what was asked is answered, and the turn ends."""
    alice = await stage.client("alice")
    await with_history(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="hi")
    await stage.cli.gets("session.send")
    stage.cli.dies()
    await stage.cli.returns()
    (await stage.cli.gets("session.resume")).refuses("Session not found: s")
    assert (await alice.hears_error())["code"] == errors.TURN_INTERRUPTED
    await alice.hears_event("session.error")
    await alice.hears_event("session.idle")


# Several clients of one session


async def two_clients(stage: Stage) -> tuple[Actor, Actor, Line]:
    alice, other = await stage.client("alice"), await stage.client("alice")
    line = await with_history(stage, alice)
    await other.resumes("s")
    await stage.settle()
    return alice, other, line


async def comes_first(stage: Stage, actor: Actor) -> Ask:
    """Let this of several clients resume first; they do one after the other."""
    while True:
        resumed = await stage.cli.gets("session.resume")
        if resumed.line.link.client is actor.core:
            return resumed
        resumed.line.breaks()


async def test_a_turn_of_two_clients_is_carried_on_once(stage: Stage) -> None:
    alice, other, _ = await two_clients(stage)
    line = await sends(stage, alice, TOLD)
    line.emits("s", "user.message", messageId=TOLD, content="hi")
    stage.cli.dies()
    await stage.cli.returns()
    for _ in "ab":
        (await stage.cli.gets("session.resume")).answers({})
    await tells_history(stage, user(TOLD))
    await stage.settle()
    assert stage.cli.unanswered == ["session.sendMessages"]
    (await stage.cli.gets("session.sendMessages")).answers({})
    await stage.settle()
    assert stage.cli.unanswered == []
    for actor in (alice, other):
        stage.cli.line_of(actor).emits("s", "session.idle")
        await actor.hears_event("session.idle")


async def test_the_one_that_comes_first_sends_for_the_other(stage: Stage) -> None:
    """Its ids are its own: the answer must not be taken for one of somebody else's."""
    first, other, _ = await two_clients(stage)
    request_id = other.asks("session.send", sessionId="s", prompt="of the other", wait=True)
    await stage.cli.gets("session.send")
    stage.cli.dies()
    await stage.cli.returns()
    resumed = await comes_first(stage, first)
    resumed.answers({})
    await tells_history(stage)
    again = await stage.cli.gets("session.send")
    assert again.line is resumed.line
    assert again.params == {"sessionId": "s", "prompt": "of the other"}
    again.answers({"messageId": AGAIN})
    assert await other.hears_result(request_id) == {"messageId": AGAIN}
    (await stage.cli.gets("session.resume")).answers({})
    await stage.settle()
    assert stage.cli.unanswered == []


async def test_all_that_lost_it_hear_what_is_said_next(stage: Stage) -> None:
    alice, other, _ = await two_clients(stage)
    await sends(stage, alice, TOLD)
    stage.cli.dies()
    await stage.cli.returns()
    (await comes_first(stage, alice)).answers({})
    await tells_history(stage, user(TOLD))
    late = await stage.cli.gets("session.resume")
    assert late.line.link.client is other.core
    await stage.settle()
    assert stage.cli.unanswered == []
    late.answers({})
    (await stage.cli.gets("session.sendMessages")).answers({})
    for actor in (alice, other):
        stage.cli.line_of(actor).says(event("s", "assistant.message"), event("s", "session.idle"))
        await actor.hears_event("assistant.message")
        await actor.hears_event("session.idle")


async def test_the_one_that_comes_after_the_end_hears_of_it(stage: Stage) -> None:
    alice, other, _ = await two_clients(stage)
    await sends(stage, alice, TOLD)
    stage.cli.dies()
    await stage.cli.returns()
    first = await comes_first(stage, alice)
    first.answers({})
    await tells_history(stage, user(TOLD))
    (await stage.cli.gets("session.sendMessages")).answers({})
    first.line.says(event("s", "assistant.message"), event("s", "session.idle"))
    await alice.hears_event("session.idle")
    late = await stage.cli.gets("session.resume")
    assert late.line.link.client is other.core
    late.answers({})
    await tells_history(stage, user(TOLD), said("e1", "the end"))
    message = await other.hears_event("assistant.message")
    assert message["event"]["data"]["content"] == "the end"
    await other.hears_event("session.idle")
    assert stage.cli.unanswered == []


async def test_only_one_clients_link_is_lost(stage: Stage) -> None:
    """The turn goes on for the other: nothing is repeated, and nobody waits for ever."""
    alice, other, line = await two_clients(stage)
    await sends(stage, alice, TOLD)
    request_id = alice.asks("session.send", sessionId="s", prompt="queued")
    await stage.cli.gets("session.send")
    line.breaks()
    (await stage.cli.gets("session.resume")).answers({})
    await tells_history(stage, user(TOLD))
    error = await alice.hears_error(request_id)
    assert (error["code"], error["data"]["promptRecorded"]) == (errors.TURN_INTERRUPTED, None)
    await stage.settle()
    assert stage.cli.unanswered == []
    assert events_of(alice) == []
    for actor in (alice, other):
        stage.cli.line_of(actor).emits("s", "session.idle")
        await actor.hears_event("session.idle")
    assert not stage.hub.sessions["s"].turn.busy


# Durable sends


async def test_a_durable_send_is_acknowledged_once_it_is_saved(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", options={"durable": True})
    alice = await stage.client("alice")
    await with_history_durably(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="hi")
    asked = await stage.cli.gets("session.send")
    asked.answers({"messageId": TOLD})
    await asyncio.sleep(0.05)
    # It may be in a queue: the journal does not have it, and a save would not help.
    assert stage.cli.unanswered == []
    asked.line.emits("s", "user.message", messageId=TOLD, content="hi")
    await alice.hears_event("user.message")
    saving = await stage.cli.gets("sessions.save")
    assert saving.params == {"sessionId": "s"}
    await stage.settle()
    assert alice.unheard == []
    saving.answers({})
    assert await alice.hears_result() == {"messageId": TOLD}


async def with_history_durably(stage: Stage, actor: Actor) -> None:
    await actor.creates("s")
    stage.hub.sessions["s"].stored = True


async def two_attached_durably(stage: Stage) -> tuple[Actor, Actor]:
    alice = await stage.client("alice")
    await with_history_durably(stage, alice)
    other = await stage.client("alice")
    await other.resumes("s")
    await stage.settle()
    return alice, other


async def test_a_refused_send_is_not_saved(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", options={"durable": True})
    alice = await stage.client("alice")
    await with_history_durably(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="hi")
    (await stage.cli.gets("session.send")).refuses("no")
    assert (await alice.hears_error())["message"] == "no"
    assert stage.cli.unanswered == []


async def test_a_replica_that_dies_while_it_saves(make_stage: MakeStage) -> None:
    """It was not acknowledged: what was not saved is sent again from memory, and then it is."""
    stage = await make_stage("cli-0", options={"durable": True})
    alice = await stage.client("alice")
    await with_history_durably(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="hi")
    asked = await stage.cli.gets("session.send")
    asked.answers({"messageId": TOLD})
    asked.line.emits("s", "user.message", messageId=TOLD, content="hi")
    await stage.cli.gets("sessions.save")
    await comes_back(stage)
    await tells_history(stage)
    again = await stage.cli.gets("session.send")
    assert again.params["prompt"] == "hi"
    again.answers({"messageId": AGAIN})
    again.line.emits("s", "user.message", messageId=AGAIN, content="hi")
    saved = await stage.cli.gets("sessions.save")
    assert events_of(alice).count("user.message") == 2
    assert not stage.hub.sessions["s"].turn.prompts[0].acknowledged
    saved.answers({})
    assert await alice.hears_result() == {"messageId": AGAIN}


async def test_a_replica_that_dies_while_it_saves_what_is_written(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", options={"durable": True})
    alice = await stage.client("alice")
    await with_history_durably(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="hi")
    asked = await stage.cli.gets("session.send")
    asked.answers({"messageId": TOLD})
    asked.line.says(
        event("s", "user.message", messageId=TOLD, content="hi"), event("s", "session.idle")
    )
    await stage.cli.gets("sessions.save")
    await comes_back(stage)
    await tells_history(stage, user(TOLD), said("e1"))
    (await stage.cli.gets("sessions.save")).answers({})
    assert await alice.hears_result() == {"messageId": TOLD}
    await stage.settle()
    assert stage.cli.unanswered == []
    assert not stage.hub.sessions["s"].turn.busy


async def test_what_is_found_after_a_cut_is_stored_before_it_is_acknowledged(
    make_stage: MakeStage,
) -> None:
    """A CLI that only lost its connection has it in memory, and perhaps not on disk."""
    stage = await make_stage("cli-0", options={"durable": True})
    alice = await stage.client("alice")
    await with_history_durably(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="hi")
    asked = await stage.cli.gets("session.send")
    asked.line.breaks()
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await tells_history(stage, user(TOLD), said("e1"))
    saved = await stage.cli.gets("sessions.save")
    await alice.hears_event("session.idle")
    assert [one for one in alice.unheard if "method" not in one] == []
    saved.line.breaks()
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await tells_history(stage, user(TOLD), said("e1"))
    (await stage.cli.gets("sessions.save")).answers({})
    assert await alice.hears_result() == {"messageId": TOLD}
    await eventually(lambda: not stage.hub.sessions["s"].turn.busy)


async def test_a_prompt_whose_client_has_gone_is_owed_to_nobody(make_stage: MakeStage) -> None:
    """Owed for ever, it would keep the session busy, and its replica from being drained."""
    stage = await make_stage("cli-0", options={"durable": True})
    alice, other = await two_attached_durably(stage)
    alice.asks("session.send", sessionId="s", prompt="hi")
    asked = await stage.cli.gets("session.send")
    asked.answers({"messageId": TOLD})
    asked.line.emits("s", "assistant.turn_start")
    alice.leaves()
    line = stage.cli.line_of(other)
    line.emits("s", "user.message", messageId=TOLD, content="hi")
    line.emits("s", "session.idle")
    await eventually(lambda: not stage.hub.sessions["s"].turn.busy)


async def test_a_save_that_hangs_is_asked_for_again(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", options={"durable": True}, ask_timeout=0.05)
    alice = await stage.client("alice")
    await with_history_durably(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="hi")
    asked = await stage.cli.gets("session.send")
    asked.answers({"messageId": TOLD})
    asked.line.emits("s", "user.message", messageId=TOLD, content="hi")
    await stage.cli.gets("sessions.save")
    again = await stage.cli.gets("sessions.save")
    assert alice.unheard == [one for one in alice.unheard if "method" in one]
    again.answers({})
    assert await alice.hears_result() == {"messageId": TOLD}


async def test_a_prompt_whose_sender_was_not_told_is_sent_again_once(make_stage: MakeStage) -> None:
    """Its replica had answered it and not stored it; then its sender left, and another stayed."""
    stage = await make_stage("cli-0", options={"durable": True})
    alice, _ = await two_attached_durably(stage)
    alice.asks("session.send", sessionId="s", prompt="hi")
    (await stage.cli.gets("session.send")).answers({"messageId": TOLD})
    await stage.settle()
    stage.cli.dies()
    await eventually(lambda: all(one.get_name() != "save s" for one in asyncio.all_tasks()))
    alice.leaves()
    stage.cli.knows["session.metadata.isProcessing"] = lambda _: {"processing": False}
    stage.cli.knows["sessions.save"] = lambda _: {}
    await stage.cli.returns()
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await tells_history(stage)
    again = await stage.cli.gets("session.send")
    again.answers({"messageId": AGAIN})
    [prompt] = stage.hub.sessions["s"].turn.prompts
    again.line.emits("s", "user.message", messageId=AGAIN, content="hi")
    await eventually(lambda: prompt.acknowledged)
    again.line.emits("s", "session.idle")
    await eventually(lambda: not stage.hub.sessions["s"].turn.runs)


async def test_a_prompt_behind_a_running_turn_is_acknowledged_when_its_own_begins(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CLI keeps its queue in memory alone."""
    stage = await make_stage("cli-0", options={"durable": True}, ask_timeout=0.05)
    alice = await stage.client("alice")
    await with_history_durably(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="long")
    first = await stage.cli.gets("session.send")
    first.answers({"messageId": TOLD})
    first.line.emits("s", "user.message", messageId=TOLD, content="long")
    (await stage.cli.gets("sessions.save")).answers({})
    assert await alice.hears_result() == {"messageId": TOLD}
    alice.asks("session.send", sessionId="s", prompt="behind")
    (await stage.cli.gets("session.send")).answers({"messageId": AGAIN})
    before = stage.now()
    await eventually(lambda: stage.now() > before + 4 * stage.hub.limits.ask_timeout)
    assert stage.cli.unanswered == []
    first.line.emits("s", "user.message", messageId=AGAIN, content="behind")
    (await stage.cli.gets("sessions.save")).answers({})
    assert await alice.hears_result() == {"messageId": AGAIN}


async def test_a_session_that_a_cli_ends_again_is_resumed_again(stage: Stage) -> None:
    """Two gateways that resume it at once were seen to bring that about."""
    alice = await stage.client("alice")
    await with_history(stage, alice)
    await sends(stage, alice, TOLD)
    await comes_back(stage)
    await tells_history(stage)
    (await stage.cli.gets("session.send")).refuses("Session not found for sessionId: s")
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await tells_history(stage)
    again = await stage.cli.gets("session.send")
    again.answers({"messageId": AGAIN})
    again.line.says(
        event("s", "user.message", messageId=AGAIN, content="hi"), event("s", "session.idle")
    )
    assert (await alice.hears_event("user.message"))["event"]["data"]["messageId"] == TOLD
    await alice.hears_event("session.idle")
    assert events_of(alice) == []


@pytest.mark.parametrize(
    "words",
    [
        "Session not found for sessionId: s",
        "Unknown session 's' for native host effect 'managed_plugin_admission'",
    ],
)
async def test_a_prompt_that_an_ending_replica_refuses_is_sent_again(
    stage: Stage, words: str
) -> None:
    """A CLI that ends lets go of its sessions before it closes its connections."""
    alice = await stage.client("alice")
    await with_history(stage, alice)
    stage.time_passes(2)
    alice.asks("session.send", sessionId="s", prompt="hi")
    (await stage.cli.gets("session.send")).refuses(words)
    stage.cli.knows["session.metadata.isProcessing"] = lambda _: {"processing": False}
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await tells_history(stage)
    (await stage.cli.gets("session.send")).answers({"messageId": TOLD})
    assert await alice.hears_result() == {"messageId": TOLD}


async def test_a_session_that_is_never_there_is_not_attached_to_for_ever(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="hi")
    (await stage.cli.gets("session.send")).refuses("Session not found for sessionId: s")
    assert "not found" in (await alice.hears_error())["message"]
    await stage.settle()
    assert stage.cli.unanswered == []
    assert not stage.hub.sessions["s"].turn.busy


async def test_any_other_refusal_of_a_prompt_is_told(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    stage.time_passes(2)
    alice.asks("session.send", sessionId="s", prompt="hi")
    (await stage.cli.gets("session.send")).refuses("Model not found")
    assert (await alice.hears_error())["message"] == "Model not found"


# A client that goes while its turn runs


async def leaves_in_a_turn(stage: Stage, **params: Any) -> Line:
    alice = await stage.client("alice")
    await with_history(stage, alice, **params)
    line = await sends(stage, alice, TOLD)
    line.emits("s", "assistant.turn_start")
    alice.leaves()
    await stage.settle()
    return line


async def test_the_turn_goes_on_and_then_the_link_ends(stage: Stage) -> None:
    line = await leaves_in_a_turn(stage)
    assert not line.link.closed
    line.emits("s", "assistant.message")
    line.emits("s", "session.idle")
    await stage.settle()
    assert line.link.closed
    assert stage.hub.sessions == {}
    assert stage.stats.sessions_live == 0


async def test_without_a_turn_the_link_ends_at_once(stage: Stage) -> None:
    alice = await stage.client("alice")
    line = await with_history(stage, alice)
    alice.leaves()
    assert line.link.closed


async def test_it_does_not_go_on_for_ever(stage: Stage) -> None:
    line = await leaves_in_a_turn(stage)
    stage.time_passes(stage.hub.limits.linger - 1)
    assert not line.link.closed
    stage.time_passes(1)
    await stage.settle()
    assert line.link.closed
    assert stage.hub.sessions == {}


async def test_nothing_is_in_flight_for_a_client_that_has_gone(stage: Stage) -> None:
    """A replica that drains would never be empty."""
    alice = await stage.client("alice")
    await with_history(stage, alice)
    alice.asks("session.send", sessionId="s", prompt="hi")
    asked = await stage.cli.gets("session.send")
    alice.leaves()
    await stage.settle()
    [replica] = stage.hub.replicas.values()
    assert not asked.line.link.closed
    assert replica.stats.in_flight == 0
    asked.answers({"messageId": TOLD})
    asked.line.says(event("s", "user.message", messageId=TOLD, content="hi"))
    asked.line.emits("s", "session.idle")
    await eventually(lambda: asked.line.link.closed)
    assert replica.stats.in_flight == 0


async def test_the_link_of_one_that_has_gone_ends_when_its_session_moves(stage: Stage) -> None:
    line = await leaves_in_a_turn(stage)
    [binding] = stage.hub.sessions["s"].bindings
    binding.move_away()
    assert line.link.closed
    assert stage.hub.sessions == {}


async def test_one_that_goes_while_it_attaches_keeps_nobody_waiting(stage: Stage) -> None:
    """Its link stays for the sake of another of its sessions."""
    await stage.recorded("t", "alice")
    stage.cli.live.add("t")
    other = await stage.client("alice")
    await other.resumes("t")
    alice = await stage.client("alice")
    await with_history(stage, alice)
    (await sends(stage, alice, TOLD)).emits("s", "assistant.turn_start")
    alice.asks("session.resume", sessionId="t")
    line = (await stage.cli.gets("session.resume")).line
    alice.leaves()
    await stage.settle()
    assert not line.link.closed
    again = await stage.client("alice")
    await again.resumes("t")


async def test_lingering_can_be_switched_off(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", linger=0.0)
    assert (await leaves_in_a_turn(stage)).link.closed


async def test_hooks_of_somebody_gone_hold_nothing_up(stage: Stage) -> None:
    line = await leaves_in_a_turn(stage)
    line.asks(7, "hooks.invoke", sessionId="s", hookType="preToolUse")
    answer = await stage.cli.hears(lambda m: m.get("id") == 7)
    assert answer["error"]["code"] == errors.REPLICA_UNAVAILABLE


async def test_questions_to_a_person_wait_for_one(stage: Stage) -> None:
    line = await leaves_in_a_turn(stage)
    line.asks(7, "userInput.request", sessionId="s", question="?")
    await stage.settle()
    assert [one for one in line.heard.all if one.get("id") == 7] == []


async def test_a_revoked_client_leaves_nothing_running(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    line = await sends(stage, alice, TOLD)
    alice.core.cut("revoked", "the token was revoked")
    assert line.link.closed


# A client that comes back for its turn


async def test_the_returning_client_takes_the_session_over(stage: Stage) -> None:
    """Tools are their connection's own: attach without any, have the old one leave, bring them."""
    old = await leaves_in_a_turn(stage, tools=TOOLS)
    stage.cli.knows["session.metadata.isProcessing"] = lambda _: {"processing": True}
    alice = await stage.client("alice")
    alice.asks("session.resume", sessionId="s", tools=TOOLS)
    bare = await stage.cli.gets("session.resume")
    assert bare.params == {"sessionId": "s", "disableResume": True}
    await stage.settle()
    assert stage.cli.unanswered == []
    bare.answers({"sessionId": "s"})
    detached = await stage.cli.gets("session.detach")
    assert (detached.line, bare.line is old) == (old, False)
    detached.answers({"success": True})
    full = await stage.cli.gets("session.resume")
    assert full.line is bare.line
    assert full.params == {"sessionId": "s", "tools": TOOLS, "continuePendingWork": True}
    assert old.link.closed
    full.answers({"sessionId": "s", "full": True})
    assert await alice.hears_result() == {"sessionId": "s", "full": True}


async def leaves_in_a_prompt(stage: Stage) -> Line:
    """Have a client go before its prompt was taken up; return the connection it leaves behind."""
    alice = await stage.client("alice")
    await with_history(stage, alice, tools=TOOLS)
    alice.asks("session.send", sessionId="s", prompt="hi")
    line = (await stage.cli.gets("session.send")).line
    alice.leaves()
    await stage.settle()
    return line


async def test_the_old_one_does_not_leave_while_the_cli_may_look_for_tools(stage: Stage) -> None:
    old = await leaves_in_a_prompt(stage)
    again = await stage.client("alice")
    again.asks("session.resume", sessionId="s", tools=TOOLS)
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await stage.settle()
    assert (stage.cli.unanswered, old.link.closed) == ([], False)
    old.emits("s", "user.message", messageId=TOLD, content="hi")
    assert (await stage.cli.gets("session.detach")).line is old


async def test_it_does_not_wait_for_long(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding_module, "_STEADY_PATIENCE", 0.02)
    await leaves_in_a_prompt(stage)
    again = await stage.client("alice")
    again.asks("session.resume", sessionId="s", tools=TOOLS)
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await stage.cli.gets("session.detach")


async def test_tools_stay_for_the_moment_where_somebody_else_stays(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice, tools=TOOLS)
    other = await stage.client("alice")
    await other.resumes("s")
    await stage.settle()
    alice.asks("session.send", sessionId="s", prompt="hi")
    line = (await stage.cli.gets("session.send")).line
    alice.leaves()
    await stage.settle()
    assert not line.link.closed
    line.emits("s", "user.message", messageId=TOLD, content="hi")
    await eventually(lambda: line.link.closed)


async def test_what_it_was_shown_on_its_new_connection_is_not_announced_again(
    stage: Stage,
) -> None:
    """Its tool would run twice."""
    await leaves_in_a_turn(stage, tools=TOOLS)
    pending = {"items": [{"requestId": name, "toolName": "mine"} for name in "tu"]}
    stage.cli.knows |= {
        "session.metadata.isProcessing": lambda _: {"processing": True},
        "session.detach": lambda _: {"success": True},
        "session.permissions.pendingRequests": lambda _: {"items": []},
        "session.tools.listPendingRequests": lambda _: pending,
    }
    again = await stage.client("alice")
    again.asks("session.resume", sessionId="s", tools=TOOLS)
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    full = await stage.cli.gets("session.resume")
    full.line.emits("s", "external_tool.requested", requestId="t", toolName="mine")
    full.answers({"sessionId": "s"})
    await again.hears_result()
    heard = [await again.hears_event("external_tool.requested") for _ in "ab"]
    assert [one["event"]["data"]["requestId"] for one in heard] == ["t", "u"]
    await stage.settle()
    assert events_of(again) == []


async def test_one_whose_end_is_noticed_late_is_taken_over_from(stage: Stage) -> None:
    """The next connection may come before the end of the last one is seen."""
    alice = await stage.client("alice")
    await with_history(stage, alice, tools=TOOLS)
    old = await sends(stage, alice, TOLD)
    old.emits("s", "assistant.turn_start")
    again = await stage.client("alice")
    again.asks("session.resume", sessionId="s", tools=TOOLS)
    asked = await stage.cli.gets("session.resume")
    alice.leaves()
    asked.refuses(CLASH)
    bare = await stage.cli.gets("session.resume")
    assert bare.params == {"sessionId": "s", "disableResume": True}
    bare.answers({"sessionId": "s"})
    detached = await stage.cli.gets("session.detach")
    assert detached.line is old
    detached.answers({"success": True})
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await again.hears_result()
    await stage.cli.gets("session.getMessages")  # what it left behind is looked at


async def test_pending_requests_are_announced_to_it(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice, tools=TOOLS)
    line = await sends(stage, alice, TOLD)
    line.emits("s", "permission.requested", requestId="p")
    line.emits("s", "external_tool.requested", requestId="t")
    alice.leaves()
    stage.cli.knows |= {
        "session.metadata.isProcessing": lambda _: {"processing": True},
        "session.detach": lambda _: {"success": True},
        "session.permissions.pendingRequests": lambda _: {"items": [{"requestId": "p"}]},
        "session.tools.listPendingRequests": lambda _: {
            "items": [{"requestId": "t", "toolName": "mine"}]
        },
    }
    again = await stage.client("alice")
    again.asks("session.resume", sessionId="s", tools=TOOLS)
    for _ in "ab":
        (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await again.hears_result()
    permission = await again.hears_event("permission.requested")
    assert permission["event"]["data"]["requestId"] == "p"
    call = await again.hears_event("external_tool.requested")
    assert call["event"]["data"]["toolName"] == "mine"
    assert stage.hub.sessions["s"].turn.busy


async def test_one_that_joins_a_running_turn_is_told_what_waits_for_it(stage: Stage) -> None:
    """Its connection of before is gone; another client has kept the session live."""
    alice = await stage.client("alice")
    await with_history(stage, alice, tools=TOOLS)
    other = await stage.client("alice")
    await other.resumes("s")
    await stage.settle()
    line = await sends(stage, alice, TOLD)
    line.emits("s", "permission.requested", requestId="p")
    alice.leaves()
    stage.cli.knows |= {
        "session.permissions.pendingRequests": lambda _: {"items": [{"requestId": "p"}]},
        "session.tools.listPendingRequests": lambda _: {
            "items": [
                {"requestId": "t", "toolName": "mine"},
                {"requestId": "u", "toolName": "somebody's"},
            ]
        },
    }
    again = await stage.client("alice")
    await again.resumes("s", tools=TOOLS)
    await again.hears_event("permission.requested")
    call = await again.hears_event("external_tool.requested")
    assert call["event"]["data"]["toolName"] == "mine"
    await stage.settle()
    assert events_of(again) == []
    assert stage.cli.unanswered == []


async def test_one_that_joins_an_idle_session_asks_nothing(stage: Stage) -> None:
    alice = await stage.client("alice")
    await with_history(stage, alice)
    other = await stage.client("alice")
    await other.resumes("s")
    await stage.settle()
    assert stage.cli.unanswered == []


async def test_somebody_else_does_not_get_the_session(stage: Stage) -> None:
    await leaves_in_a_turn(stage)
    mallory = await stage.client("mallory")
    mallory.asks("session.resume", sessionId="s")
    assert "not found" in (await mallory.hears_error())["message"]
    assert stage.cli.unanswered == []


async def test_a_turn_that_died_with_its_gateway_is_taken_up(stage: Stage) -> None:
    """Nothing is known of it here, but its journal was written to a moment ago."""
    await stage.recorded("s", "alice")
    stage.time_passes(1_800_000_000)
    stage.cli.stores("s", modified=ago(stage, 10))
    alice = await stage.client("alice")
    alice.asks("session.resume", sessionId="s", tools=TOOLS)
    resumed = await stage.cli.gets("session.resume")
    assert resumed.params["continuePendingWork"] is True
    resumed.answers({"sessionId": "s"})
    await alice.hears_result()
    await tells_history(stage, user("m1"), TURN_START)
    assert (await stage.cli.gets("session.sendMessages")).params["messages"] == []


async def test_a_session_that_a_cli_is_just_ending_is_looked_at(stage: Stage) -> None:
    """It is in no list for a moment."""
    await stage.recorded("s", "alice")
    alice = await stage.client("alice")
    resumed = await alice.resumes("s")
    assert resumed.params["continuePendingWork"] is True
    stage.cli.live.add("s")
    await tells_history(stage, user("m1"), TURN_START)
    assert (await stage.cli.gets("session.sendMessages")).params["messages"] == []


async def test_a_cli_without_lists_is_not_asked_further(stage: Stage) -> None:
    await stage.recorded("s", "alice")
    del stage.cli.knows["sessions.getMetadata"]
    alice = await stage.client("alice")
    alice.asks("session.resume", sessionId="s")
    listed = await stage.cli.gets("sessions.getMetadata")
    listed.refuses("Unhandled method sessions.getMetadata", errors.METHOD_NOT_FOUND)
    resumed = await stage.cli.gets("session.resume")
    assert resumed.params == {"sessionId": "s"}
    resumed.answers({"sessionId": "s"})
    await alice.hears_result()
    await stage.settle()
    assert stage.cli.unanswered == []


async def test_an_old_session_is_resumed_as_it_is(stage: Stage) -> None:
    await stage.recorded("s", "alice")
    stage.time_passes(1_800_000_000)
    stage.cli.stores("s", modified=ago(stage, 3600))
    alice = await stage.client("alice")
    alice.asks("session.resume", sessionId="s")
    resumed = await stage.cli.gets("session.resume")
    assert resumed.params == {"sessionId": "s"}
    resumed.answers({"sessionId": "s"})
    await alice.hears_result()
    await stage.settle()
    assert stage.cli.unanswered == []


async def test_two_that_come_back_together_ask_the_model_once(stage: Stage) -> None:
    await stage.recorded("s", "alice")
    stage.time_passes(1_800_000_000)
    stage.cli.stores("s", modified=ago(stage, 10))
    actors = [await stage.client("alice") for _ in "ab"]
    for actor in actors:
        actor.asks("session.resume", sessionId="s")
    for _ in "ab":
        (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    await tells_history(stage, user("m1"))
    asked = await stage.cli.gets("session.sendMessages")
    stage.cli.knows["session.metadata.isProcessing"] = lambda _: {"processing": True}
    stage.cli.knows["session.permissions.pendingRequests"] = lambda _: {"items": []}
    stage.cli.knows["session.tools.listPendingRequests"] = lambda _: {"items": []}
    asked.answers({})
    await stage.settle()
    assert stage.cli.unanswered == []


# What carried a turn on may die as well, unseen


def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_LOOK_EVERY", 0.002)
    monkeypatch.setattr(recovery, "OTHERS_PATIENCE", 0.002)
    monkeypatch.setattr(recovery, "_OTHERS_POLL", 0.001)


async def taken_up(stage: Stage) -> tuple[Actor, Line]:
    """Have a client come back to a turn that is at work; return it and its connection."""
    await stage.recorded("s", "alice")
    stage.cli.live.add("s")
    stage.cli.knows |= {
        "session.metadata.isProcessing": lambda _: {"processing": True},
        "session.permissions.pendingRequests": lambda _: {"items": []},
        "session.tools.listPendingRequests": lambda _: {"items": []},
    }
    alice = await stage.client("alice")
    line = (await alice.resumes("s")).line
    await stage.settle()
    assert stage.hub.sessions["s"].turn.busy
    return alice, line


async def test_a_turn_that_stalls_is_carried_on_once_more(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks_often(monkeypatch)
    alice, _ = await taken_up(stage)
    stage.cli.knows["session.metadata.isProcessing"] = lambda _: {"processing": False}
    (await stage.cli.gets("session.resume")).answers({"sessionId": "s"})
    for _ in "ab":
        line = await tells_history(stage, user("m1"), TURN_START)
    asked = await stage.cli.gets("session.sendMessages")
    stage.cli.knows["session.metadata.isProcessing"] = lambda _: {"processing": True}
    asked.answers({})
    line.emits("s", "session.idle")
    await alice.hears_event("session.idle")
    await stage.settle()
    assert stage.cli.unanswered == []
    await eventually(lambda: not stage.hub.sessions["s"].watched)


async def test_a_session_that_is_gone_meanwhile_is_resumed_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CLI ended it with the connection of the gateway that died."""
    looks_often(monkeypatch)
    alice, _ = await taken_up(stage)
    del stage.cli.knows["session.metadata.isProcessing"]
    (await stage.cli.gets("session.metadata.isProcessing")).refuses("Session not found: s")
    (await stage.cli.gets("session.metadata.isProcessing")).refuses("Session not found: s")
    resumed = await stage.cli.gets("session.resume")
    assert resumed.params["continuePendingWork"] is True
    stage.cli.knows["session.metadata.isProcessing"] = lambda _: {"processing": False}
    resumed.answers({"sessionId": "s"})
    await tells_history(stage, user("m1"), said("e1"))
    # Its answer was written, and nobody here has heard of it.
    assert (await alice.hears_event("assistant.message"))["event"]["id"] == "e1"
    await alice.hears_event("session.idle")


async def test_a_turn_that_always_stalls_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks_often(monkeypatch)
    alice, _ = await taken_up(stage)
    stage.cli.knows |= {
        "session.metadata.isProcessing": lambda _: {"processing": False},
        "session.resume": lambda _: {"sessionId": "s"},
        "session.getMessages": lambda _: {"events": [user("m1")]},
        "session.sendMessages": lambda _: {},
    }
    error = await alice.hears_event("session.error")
    assert "could not be finished" in error["event"]["data"]["message"]
    await alice.hears_event("session.idle")
    assert not stage.hub.sessions["s"].turn.busy


async def test_a_prompt_on_its_way_is_not_taken_for_a_stall(stage: Stage) -> None:
    alice, _ = await taken_up(stage)
    session = stage.hub.sessions["s"]
    stage.cli.knows["session.metadata.isProcessing"] = lambda _: {"processing": False}
    assert not await recovery._works(stage.hub, session)
    alice.asks("session.send", sessionId="s", prompt="more")
    sent = await stage.cli.gets("session.send")
    assert await recovery._works(stage.hub, session)
    sent.answers({"messageId": "m2"})
    assert not await recovery._works(stage.hub, session)


async def test_a_turn_that_ends_right_behind_the_question_has_ended(stage: Stage) -> None:
    """The answer and the end of the turn may come in one read."""
    await stage.recorded("s", "alice")
    stage.cli.live.add("s")
    del stage.cli.knows["session.metadata.isProcessing"]
    stage.cli.knows |= {
        "session.permissions.pendingRequests": lambda _: {"items": []},
        "session.tools.listPendingRequests": lambda _: {"items": []},
    }
    alice = await stage.client("alice")
    await alice.resumes("s")
    asked = await stage.cli.gets("session.metadata.isProcessing")
    answer = {"jsonrpc": "2.0", "id": asked.id, "result": {"processing": True}}
    asked.line.says(answer, event("s", "session.idle"))
    await alice.hears_event("session.idle")
    await stage.settle()
    assert not stage.hub.sessions["s"].turn.busy


# The clash of tool names between two gateways


async def test_a_clash_is_waited_out(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another gateway lingers on the session: it leaves when it sees somebody come."""
    monkeypatch.setattr(binding_module, "_CLASH_PAUSE", 0.001)
    await stage.recorded("s", "alice")
    alice = await stage.client("alice")
    alice.asks("session.resume", sessionId="s", tools=TOOLS)
    (await stage.cli.gets("session.resume")).refuses(CLASH)
    bare = await stage.cli.gets("session.resume")
    assert bare.params == {"sessionId": "s"}
    bare.answers({"sessionId": "s"})
    (await stage.cli.gets("session.resume")).refuses(CLASH)
    again = await stage.cli.gets("session.resume")
    assert again.params["tools"] == TOOLS
    again.answers({"sessionId": "s", "last": True})
    assert await alice.hears_result() == {"sessionId": "s", "last": True}


async def test_a_clash_that_stays_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding_module, "_CLASH_PAUSE", 0.001)
    await stage.recorded("s", "alice")
    stage.cli.knows["session.resume"] = _clashes
    alice = await stage.client("alice")
    alice.asks("session.resume", sessionId="s", tools=TOOLS)
    assert (await alice.hears_error())["message"] == CLASH


def _clashes(ask: Ask) -> Message:
    if "tools" in ask.params:
        raise LookupError(CLASH)
    return {"sessionId": "s"}


async def test_who_lingers_leaves_when_somebody_comes(stage: Stage) -> None:
    line = await leaves_in_a_turn(stage, tools=TOOLS)
    line.emits("s", "session.resume")
    await stage.settle()
    assert line.link.closed


async def test_who_lingers_stays_while_the_cli_may_look_for_tools(stage: Stage) -> None:
    line = await leaves_in_a_prompt(stage)
    line.emits("s", "session.resume")
    await stage.settle()
    assert not line.link.closed
    line.emits("s", "user.message", messageId=TOLD, content="hi")
    await eventually(lambda: line.link.closed)
