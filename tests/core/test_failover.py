"""How a cut turn is carried on: every row of what a kill leaves behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.core.failover import Event, Plan, is_cut, open_requests, pending_events, plan
from gateway.core.turn import Prompt, Turn


def user(message_id: str, text: str = "hi") -> Event:
    return {"type": "user.message", "data": {"messageId": message_id, "content": text}}


def model(event_id: str = "a1", *, tools: bool = False) -> Event:
    requests = [{"name": "mine"}] if tools else []
    return {"type": "assistant.message", "id": event_id, "data": {"toolRequests": requests}}


def other(kind: str, **data: Any) -> Event:
    return {"type": kind, "data": data}


START = other("session.start")
TURN_START, TURN_END = other("assistant.turn_start"), other("assistant.turn_end")
EARLIER = [START, user("m0", "earlier"), TURN_START, model("a0"), TURN_END]
"""A turn that was over before."""


def turn_with(*prompts: tuple[str | None, str], seen: bool = False) -> Turn:
    """Return a turn with prompts (id if known, text), each answered if its id is known."""
    turn = Turn()
    turn.last_prompt = "m0"
    for message_id, text in prompts:
        params = {"sessionId": "s", "prompt": text}
        prompt = turn.sent("sender", SimpleNamespace(method="session.send", params=params, size=1))
        if message_id is not None:
            turn.accepted(prompt, message_id)
        prompt.seen = seen
    return turn


def texts(prompts: list[Prompt]) -> list[object]:
    return [prompt.text for prompt in prompts]


# The table of kills


def test_before_the_model_answers() -> None:
    turn = turn_with(("m1", "hi"))
    decided = plan(turn, [*EARLIER, user("m1"), TURN_START], processing=False)
    assert (decided.rerun, decided.missing, decided.complete) == (True, [], False)
    assert [event["data"]["messageId"] for _, event in decided.recorded] == ["m1"]


def test_while_it_streams() -> None:
    """Deltas are in no journal: what it leaves is the same."""
    turn = turn_with(("m1", "hi"), seen=True)
    decided = plan(turn, [*EARLIER, user("m1"), TURN_START], processing=False)
    assert (decided.rerun, decided.missing) == (True, [])


def test_with_a_permission_or_tool_pending_that_was_restored() -> None:
    turn = turn_with(("m1", "hi"), seen=True)
    history = [*EARLIER, user("m1"), TURN_START, model(tools=True), other("permission.requested")]
    decided = plan(turn, history, processing=True)
    assert (decided.rerun, decided.missing, decided.complete) == (False, [], False)
    assert texts([prompt for prompt, _ in decided.recorded]) == ["hi"]


def test_with_a_tool_call_that_could_not_be_restored() -> None:
    """The CLI gave the call its failed result at the resume; the model hears of it."""
    turn = turn_with(("m1", "hi"), seen=True)
    failed = other("tool.execution_complete", success=False)
    history = [*EARLIER, user("m1"), TURN_START, model(tools=True), failed]
    assert plan(turn, history, processing=False).rerun


def test_just_acknowledged_and_not_yet_in_the_journal() -> None:
    turn = turn_with(("m1", "hi"))
    decided = plan(turn, EARLIER, processing=False)
    assert (texts(decided.missing), decided.rerun, decided.recorded) == (["hi"], False, [])


def test_not_even_acknowledged() -> None:
    decided = plan(turn_with((None, "hi")), EARLIER, processing=False)
    assert (texts(decided.missing), decided.rerun) == (["hi"], False)


def test_recorded_and_not_acknowledged() -> None:
    turn = turn_with((None, "hi"))
    decided = plan(turn, [*EARLIER, user("m1", "hi")], processing=False)
    assert (decided.missing, decided.rerun) == ([], True)
    assert decided.recorded[0][1]["data"]["messageId"] == "m1"


def test_an_equal_text_of_an_earlier_turn_is_not_this_prompt() -> None:
    turn = turn_with((None, "earlier"))
    decided = plan(turn, EARLIER, processing=False)
    assert (texts(decided.missing), decided.recorded) == (["earlier"], [])


def test_equal_texts_are_matched_one_by_one() -> None:
    turn = turn_with((None, "same"), (None, "same"))
    decided = plan(turn, [*EARLIER, user("m1", "same")], processing=False)
    assert (len(decided.recorded), len(decided.missing)) == (1, 1)
    both = plan(turn, [*EARLIER, user("m1", "same"), user("m2", "same")], processing=False)
    assert [event["data"]["messageId"] for _, event in both.recorded] == ["m1", "m2"]


def test_an_id_known_of_one_prompt_is_not_given_to_another() -> None:
    turn = turn_with((None, "same"), ("m1", "same"))
    decided = plan(turn, [*EARLIER, user("m1", "same")], processing=False)
    assert [prompt.message_id for prompt, _ in decided.recorded] == ["m1"]
    assert [prompt.message_id for prompt in decided.missing] == [None]


def test_a_queue_of_which_the_first_was_recorded() -> None:
    turn = turn_with(("m1", "1"), ("m2", "2"), (None, "3"))
    decided = plan(turn, [*EARLIER, user("m1", "1"), TURN_START], processing=False)
    assert (decided.rerun, texts(decided.missing)) == (True, ["2", "3"])


def test_a_queue_of_which_the_first_was_worked_off() -> None:
    turn = turn_with(("m1", "1"), ("m2", "2"), seen=True)
    turn.last_message = "a1"
    history = [*EARLIER, user("m1", "1"), model("a1"), TURN_END]
    decided = plan(turn, history, processing=False)
    assert (decided.rerun, texts(decided.missing), decided.missed) == (False, ["2"], None)


def test_while_aborting() -> None:
    turn = turn_with(("m1", "hi"), seen=True)
    turn.called("session.abort", {})
    decided = plan(turn, [*EARLIER, user("m1"), TURN_START], processing=False)
    assert (decided.rerun, decided.complete, decided.missing) == (False, True, [])


def test_complete_and_the_final_message_was_not_seen() -> None:
    turn = turn_with(("m1", "hi"), seen=True)
    turn.last_message = "a0"
    decided = plan(turn, [*EARLIER, user("m1"), TURN_START, model("a1")], processing=False)
    assert (decided.rerun, decided.complete) == (False, True)
    assert decided.missed is not None
    assert decided.missed["id"] == "a1"


def test_complete_and_only_idle_is_missing() -> None:
    turn = turn_with(("m1", "hi"), seen=True)
    turn.last_message = "a1"
    history = [*EARLIER, user("m1"), TURN_START, model("a1"), TURN_END]
    decided = plan(turn, history, processing=False)
    assert (decided.rerun, decided.complete, decided.missed) == (False, True, None)


@pytest.mark.parametrize("kind", ["abort", "session.error"])
def test_a_turn_that_was_given_up_is_not_begun_again(kind: str) -> None:
    turn = turn_with(("m1", "hi"), seen=True)
    history = [*EARLIER, user("m1"), TURN_START, other(kind)]
    decided = plan(turn, history, processing=False)
    assert (decided.rerun, decided.complete, decided.missed) == (False, True, None)


def test_tools_were_called_and_the_model_has_the_word() -> None:
    turn = turn_with(("m1", "hi"), seen=True)
    done = other("tool.execution_complete", success=True)
    history = [*EARLIER, user("m1"), TURN_START, model("a1", tools=True), done, TURN_END]
    assert plan(turn, history, processing=False).rerun


def test_somebody_elses_turn_is_carried_on() -> None:
    """Prompts of clients on other gateways are not known here; that it ran is."""
    turn = Turn()
    turn.busy = True
    assert plan(turn, [*EARLIER, user("m9"), TURN_START], processing=False).rerun


@pytest.mark.parametrize("history", [[], [START]])
def test_an_empty_history(history: list[Event]) -> None:
    decided = plan(turn_with(("m1", "hi")), history, processing=False)
    assert (texts(decided.missing), decided.rerun, decided.recorded) == (["hi"], False, [])
    busy = Turn()
    busy.busy = True
    assert plan(busy, history, processing=False) == Plan(complete=True)


def test_damaged_events_of_a_history_are_passed_over() -> None:
    history: list[Event] = [{"type": "user.message"}, {"type": "user.message", "data": 7}, {}]
    decided = plan(turn_with(("m1", "hi")), history, processing=False)
    assert texts(decided.missing) == ["hi"]


# A cut turn that this gateway knows nothing of


@pytest.mark.parametrize(
    ("tail", "cut"),
    [
        ([user("m1")], True),
        ([user("m1"), TURN_START], True),
        ([user("m1"), model(tools=True)], True),
        ([user("m1"), model(tools=True), other("tool.execution_complete")], True),
        ([user("m1"), model()], False),
        ([user("m1"), model(tools=True), model("a2"), TURN_END], False),
        ([user("m1"), other("abort")], False),
        ([user("m1"), other("session.error")], False),
        ([user("m1"), TURN_START, other("session.shutdown")], True),
        ([], False),
    ],
)
def test_whether_the_last_prompt_was_answered(tail: list[Event], cut: bool) -> None:
    assert is_cut([*EARLIER, *tail]) is cut


def test_nothing_was_cut_in_an_empty_history() -> None:
    assert not is_cut([])


# Pending requests that the CLI has restored without a word

PERMISSIONS = {"items": [{"requestId": "p", "request": {"kind": "custom-tool"}}]}
TOOLS = {"items": [{"requestId": "t", "toolCallId": "c", "toolName": "mine", "arguments": {}}]}


def test_requests_that_clients_were_shown_are_not_shown_again() -> None:
    assert pending_events("s", PERMISSIONS, TOOLS, Turn(), {"p", "t"}) == ([], [])


def test_requests_that_they_were_not_shown_are_announced() -> None:
    events, lost = pending_events("s", PERMISSIONS, TOOLS, Turn(), ())
    assert lost == []
    assert events == [
        {
            "type": "permission.requested",
            "data": {
                "requestId": "p",
                "permissionRequest": {"kind": "custom-tool"},
                "promptRequest": {"kind": "custom-tool"},
                "ownerSessionId": "s",
            },
        },
        {
            "type": "external_tool.requested",
            "data": {
                "requestId": "t",
                "toolCallId": "c",
                "toolName": "mine",
                "arguments": {},
                "sessionId": "s",
            },
        },
    ]


def test_answers_that_were_lost_are_given_again() -> None:
    turn = Turn()
    turn.answers = {"p": ("permit", {"requestId": "p"}), "t": ("tool", {"requestId": "t"})}
    events, lost = pending_events("s", PERMISSIONS, TOOLS, turn, {"p", "t"})
    assert (events, lost) == ([], [("permit", {"requestId": "p"}), ("tool", {"requestId": "t"})])


@pytest.mark.parametrize("result", [None, [], {}, {"items": None}, {"items": [7]}])
def test_strange_results_hold_nothing(result: Any) -> None:
    assert pending_events("s", result, result, Turn(), ()) == ([], [])


def test_what_was_said_before_is_not_taken_for_an_unheard_prompt() -> None:
    """People say the same thing twice."""
    turn = turn_with((None, "go on"))
    turn.last_prompt = "m5"
    history = [START, user("m4", "go on"), model("a4"), user("m5", "go on"), model("a5")]
    assert texts(plan(turn, history, processing=False).missing) == ["go on"]
    recorded = plan(turn, [*history, user("m6", "go on")], processing=False).recorded
    assert [event["data"]["messageId"] for _, event in recorded] == ["m6"]


def test_open_requests_are_those_that_nobody_has_answered() -> None:
    turn = Turn()
    turn.answers["t"] = ("session.tools.handlePendingToolCall", {})
    permissions = {"items": [{"requestId": "p", "request": {"kind": "read"}}]}
    tools = {"items": [{"requestId": "t", "toolName": "mine"}, {"requestId": "u"}]}
    found = open_requests("s", permissions, tools, turn)
    assert [(one["type"], one["data"]["requestId"]) for one in found] == [
        ("permission.requested", "p"),
        ("external_tool.requested", "u"),
    ]
