"""What is known of a turn: which prompts are in it, what was asked, when it is over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from gateway.core.turn import TRACKED_EVENTS, Prompt, Turn

PERMISSION = "session.permissions.handlePendingPermissionRequest"
TOOL = "session.tools.handlePendingToolCall"


def request(prompt: Any = "hi", method: str = "session.send") -> Any:
    return SimpleNamespace(method=method, params={"sessionId": "s", "prompt": prompt}, size=100)


def sent(turn: Turn, prompt: Any = "hi") -> Prompt:
    return turn.sent("sender", request(prompt))


def hears(turn: Turn, kind: str, id: str = "e", **data: Any) -> None:
    """Tell a turn of an event as a link does."""
    event = {"type": kind, "id": id, "data": data}
    body = orjson.dumps({"method": "session.event", "params": {"sessionId": "s", "event": event}})
    turn.event("binding", kind, body if kind in TRACKED_EVENTS else b"")


# From a prompt to idle


def test_a_turn_runs_from_the_prompt_to_idle() -> None:
    turn = Turn()
    prompt = sent(turn)
    assert turn.busy
    turn.accepted(prompt, "m1")
    hears(turn, "user.message", messageId="m1", content="hi")
    hears(turn, "assistant.turn_start")
    hears(turn, "assistant.message")
    hears(turn, "assistant.turn_end")
    assert (turn.busy, turn.prompts) == (True, [prompt])
    hears(turn, "session.idle")
    assert (turn.busy, turn.prompts, turn.started) == (False, [], False)


def test_a_turn_that_somebody_else_began_is_seen_by_its_events() -> None:
    turn = Turn()
    hears(turn, "user.message", messageId="m", content="theirs")
    assert turn.busy
    hears(turn, "session.idle")
    assert not turn.busy


def test_a_turn_that_begins_without_a_prompt() -> None:
    turn = Turn()
    hears(turn, "assistant.turn_start")
    assert turn.busy


def test_queued_prompts_are_one_turn() -> None:
    turn = Turn()
    first, second = sent(turn, "1"), sent(turn, "2")
    turn.accepted(first, "m1")
    turn.accepted(second, "m2")
    hears(turn, "user.message", messageId="m1", content="1")
    hears(turn, "assistant.message")
    assert turn.prompts == [first, second]
    hears(turn, "user.message", messageId="m2", content="2")
    hears(turn, "session.idle")
    assert not turn.busy


def test_a_prompt_on_its_way_while_the_turn_ends_begins_the_next() -> None:
    """The idle is older than the prompt, and says nothing about it."""
    turn = Turn()
    turn.accepted(sent(turn, "1"), "m1")
    late = sent(turn, "2")
    hears(turn, "session.idle")
    assert (turn.busy, turn.prompts) == (True, [late])
    turn.accepted(late, "m2")
    hears(turn, "session.idle")
    assert not turn.busy


def test_a_prompt_that_was_seen_and_not_answered_is_over_at_idle() -> None:
    """The CLI's answer may come after all that the prompt brought about."""
    turn = Turn()
    prompt = sent(turn)
    hears(turn, "user.message", messageId="m1", content="hi")
    hears(turn, "session.idle")
    assert not turn.busy
    turn.accepted(prompt, "m1")
    assert not turn.busy


def test_a_prompt_that_is_still_to_be_sent_again_outlives_the_turn() -> None:
    turn = Turn()
    done, lost = sent(turn, "1"), sent(turn, "2")
    for prompt in (done, lost):
        turn.accepted(prompt, "m" + str(prompt.text))
    lost.missing = True
    hears(turn, "session.idle")
    assert (turn.busy, turn.prompts) == (True, [lost])


def test_a_refused_prompt_is_no_turn() -> None:
    turn = Turn()
    turn.refused(sent(turn))
    assert (turn.busy, turn.prompts) == (False, [])


def test_a_refused_prompt_does_not_end_the_turn_that_runs() -> None:
    turn = Turn()
    hears(turn, "assistant.turn_start")
    turn.refused(sent(turn))
    assert turn.busy


def test_one_of_two_prompts_is_refused() -> None:
    turn = Turn()
    one, other = sent(turn), sent(turn)
    turn.refused(one)
    assert (turn.busy, turn.prompts) == (True, [other])
    turn.refused(one)
    assert turn.prompts == [other]


def test_a_turn_can_be_declared_over() -> None:
    turn = Turn()
    sent(turn)
    hears(turn, "permission.requested", requestId="r")
    turn.called("session.abort", {})
    turn.ended()
    assert not (turn.busy or turn.prompts or turn.asked or turn.answers or turn.aborting)


# Which message is whose


def test_a_prompt_is_known_by_the_id_in_its_answer() -> None:
    turn = Turn()
    one, other = sent(turn, "same"), sent(turn, "same")
    turn.accepted(one, "m1")
    turn.accepted(other, "m2")
    hears(turn, "user.message", messageId="m2", content="same")
    assert (one.seen, other.seen) == (False, True)


def test_before_its_answer_a_prompt_is_known_by_its_text() -> None:
    turn = Turn()
    one, other = sent(turn, "1"), sent(turn, "2")
    hears(turn, "user.message", messageId="m2", content="2")
    assert (one.message_id, other.message_id, other.seen) == (None, "m2", True)


def test_of_equal_texts_the_first_unanswered_is_meant() -> None:
    turn = Turn()
    one, other = sent(turn, "same"), sent(turn, "same")
    turn.accepted(one, "m1")
    hears(turn, "user.message", messageId="m2", content="same")
    assert (one.seen, other.message_id) == (False, "m2")


def test_an_id_from_the_event_is_not_replaced_by_that_of_the_answer() -> None:
    turn = Turn()
    prompt = sent(turn)
    hears(turn, "user.message", messageId="m1", content="hi")
    turn.accepted(prompt, None)
    assert (prompt.message_id, prompt.answered) == ("m1", True)


def test_ids_of_all_user_messages_are_remembered() -> None:
    turn = Turn()
    hears(turn, "user.message", messageId="m1", content="hi")
    hears(turn, "session.idle")
    assert turn.last_prompt == "m1"


def test_the_last_word_of_the_model_is_remembered_by_its_event() -> None:
    turn = Turn()
    hears(turn, "assistant.message", "e1")
    hears(turn, "assistant.message", "e2")
    hears(turn, "session.idle")
    assert turn.last_message == "e2"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"params":null}', b'{"params":{"event":{}}}',
     b'{"params":{"event":{"data":7}}}', b'{"params":{"event":{"data":{"messageId":7}}}}'],
)  # fmt: skip
def test_damaged_events_teach_nothing_and_hurt_nobody(body: bytes) -> None:
    turn = Turn()
    prompt = sent(turn)
    turn.event("binding", "user.message", body)
    assert (prompt.seen, prompt.message_id, turn.last_prompt) == (False, None, None)


# What was asked and answered


def test_pending_requests_are_those_asked_and_not_completed() -> None:
    turn = Turn()
    hears(turn, "permission.requested", requestId="p1")
    hears(turn, "permission.requested", requestId="p2")
    hears(turn, "external_tool.requested", requestId="t1")
    hears(turn, "permission.completed", requestId="p1")
    assert turn.asked == {"p2": {"binding"}, "t1": {"binding"}}
    hears(turn, "external_tool.completed", requestId="t1")
    assert set(turn.asked) == {"p2"}
    hears(turn, "session.idle")
    assert turn.asked == {}


@pytest.mark.parametrize(("kind", "method"), [("permission", PERMISSION), ("external_tool", TOOL)])
def test_an_answer_is_kept_until_the_cli_has_acted_on_it(kind: str, method: str) -> None:
    turn = Turn()
    params = {"requestId": "r", "result": "x"}
    hears(turn, f"{kind}.requested", requestId="r")
    turn.called(method, params)
    assert turn.answers == {"r": (method, params)}
    hears(turn, f"{kind}.completed", requestId="r")
    assert turn.answers == {}


def test_an_answer_that_is_given_again_is_not_made_up_for() -> None:
    turn = Turn()
    hears(turn, "permission.requested", requestId="r")
    turn.called(PERMISSION, {"requestId": "r"})
    turn.uncalled({"requestId": "r"})
    assert (turn.answers, set(turn.asked)) == ({}, {"r"})


@pytest.mark.parametrize("request_id", [None, 7, "other"])
def test_answers_to_nothing_are_not_kept(request_id: Any) -> None:
    turn = Turn()
    hears(turn, "permission.requested", requestId="r")
    turn.called(PERMISSION, {"requestId": request_id})
    turn.called("session.mode.set", {"requestId": "r"})
    assert turn.answers == {}


# Whether the CLI may be looking for tools


def test_it_may_be_from_a_prompt_to_its_event() -> None:
    turn = Turn()
    assert not turn.about_to_ask
    prompt = sent(turn)
    turn.accepted(prompt, "m1")
    assert turn.about_to_ask
    hears(turn, "user.message", messageId="m1")
    assert not turn.about_to_ask
    sent(turn, "behind it")
    assert not turn.about_to_ask


@pytest.mark.parametrize("event", ["external_tool.completed", "tool.execution_complete"])
def test_it_may_be_from_the_result_of_a_tool_to_the_next_turn_start(event: str) -> None:
    turn = Turn()
    sent(turn)
    hears(turn, "user.message", messageId="m1", content="hi")
    hears(turn, "assistant.message", toolRequests=[{}])
    hears(turn, "external_tool.requested", requestId="t")
    assert not turn.about_to_ask
    turn.called(TOOL, {"requestId": "t"})
    hears(turn, "external_tool.completed", requestId="t")
    hears(turn, event)
    assert turn.about_to_ask
    hears(turn, "assistant.turn_start")
    assert not turn.about_to_ask


def test_it_is_not_while_another_result_is_missing() -> None:
    turn = Turn()
    sent(turn)
    hears(turn, "user.message", messageId="m1", content="hi")
    for request_id in ("t", "u"):
        hears(turn, "external_tool.requested", requestId=request_id)
    turn.called(TOOL, {"requestId": "t"})
    hears(turn, "external_tool.completed", requestId="t")
    assert not turn.about_to_ask
    hears(turn, "external_tool.completed", requestId="u")
    assert turn.about_to_ask


def test_it_may_be_once_the_prompt_before_was_answered() -> None:
    turn = Turn()
    sent(turn)
    hears(turn, "user.message", messageId="m1", content="hi")
    hears(turn, "assistant.message", toolRequests=[])
    assert not turn.about_to_ask
    sent(turn, "behind it")
    hears(turn, "assistant.message", toolRequests=[])
    assert turn.about_to_ask
    hears(turn, "user.message", messageId="m2", content="behind it")
    assert not turn.about_to_ask


def test_it_is_not_once_the_turn_was_aborted() -> None:
    turn = Turn()
    sent(turn)
    hears(turn, "user.message", messageId="m1", content="hi")
    hears(turn, "tool.execution_complete")
    hears(turn, "session.idle")
    assert not turn.about_to_ask


def test_an_abort_holds_until_idle() -> None:
    turn = Turn()
    sent(turn)
    turn.called("session.abort", {})
    assert turn.aborting
    hears(turn, "session.idle")
    assert not turn.aborting


def test_what_can_be_sent_again() -> None:
    assert Prompt("x", request()).repeatable
    assert not Prompt("x", request(method="session.sendMessages")).repeatable


def test_what_is_kept_of_prompts_is_bounded() -> None:
    turn = Turn()
    assert turn.takes(1000, 2, 250), "a single one always may"
    sent(turn)
    assert turn.takes(150, 2, 250)
    assert not turn.takes(151, 2, 250)
    sent(turn)
    assert not turn.takes(1, 2, 250)
    turn.ended()
    assert turn.takes(1000, 2, 250)
