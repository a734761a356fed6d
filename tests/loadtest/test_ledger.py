"""The ledger: silent on what a correct server sends, and naming each thing that goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.loadtest import ledger as faults
from gateway.loadtest.ledger import Ledger, Turn

Event = dict[str, Any]


class Talk:
    """A session that behaves: holds conversations and feeds them to a ledger.

    Attributes:
        found: kinds of faults, in order.
        history: durable events so far.
        mangle: what becomes of the events of a turn before the ledger sees them.
    """

    def __init__(self, *, echo: bool = True) -> None:
        self.found: list[str] = []
        self.details: list[str] = []
        self.ledger = Ledger("s-1", self._report, echo=echo, streaming=True)
        self.history: list[Event] = []
        self.mangle: Callable[[list[Event]], list[Event]] = lambda events: events
        self.seen_prompts: int | None = None
        self._count = 0
        self._new("session.start", {})
        self._feed(self.history[-1])

    def _report(self, kind: str, detail: str) -> None:
        self.found.append(kind)
        self.details.append(detail)

    def _new(
        self, kind: str, data: Event, *, ephemeral: bool = False, hidden: bool = False
    ) -> Event:
        self._count += 1
        parent = f"hidden-{self._count}" if hidden else None
        if parent is None and self.history:
            parent = self.history[-1]["id"]
        event = {"type": kind, "data": data, "id": f"e{self._count}", "parentId": parent}
        if ephemeral:
            event["ephemeral"] = True
        else:
            self.history.append(event)
        return event

    def _feed(self, event: Event) -> None:
        kind, data, ledger = event["type"], event["data"], self.ledger
        ledger.event(kind, event["id"], event["parentId"], ephemeral="ephemeral" in event)
        if kind == "user.message":
            ledger.prompted(data["content"])
        elif kind == "assistant.message_delta":
            ledger.piece(data["messageId"], data["deltaContent"])
        elif kind == "assistant.message":
            ledger.answered(data["messageId"], data["content"], final=True)

    def turn(self, *, complete: bool = True) -> Turn:
        """Hold a turn."""
        turn = self.ledger.begin(tool=False)
        turn.certain = True
        number = self.seen_prompts or turn.number
        content = f"{turn.marker} hello"
        answer = f"echo: {content} [user messages: {number}]"
        message = f"m{turn.number}"
        events = [
            self._new("user.message", {"content": content}),
            self._new("assistant.turn_start", {}),
            *(
                self._new(
                    "assistant.message_delta",
                    {"messageId": message, "deltaContent": piece},
                    ephemeral=True,
                )
                for piece in (answer[:10], answer[10:20], answer[20:])
            ),
            # As the real CLI does it: an event between these two is kept to itself.
            self._new("assistant.message", {"messageId": message, "content": answer}, hidden=True),
            self._new("assistant.turn_end", {}),
        ]
        for event in self.mangle(events):
            self._feed(event)
        if complete:
            self.ledger.complete(turn)
        return turn

    def check(self) -> list[str]:
        """Compare with the history; return the kinds of faults found in all."""
        self.ledger.check_history(self.history)
        return self.found


@pytest.fixture
def talk() -> Talk:
    """A talk two turns long."""
    talk = Talk()
    talk.turn()
    talk.turn()
    return talk


def drop(kind: str) -> Callable[[list[Event]], list[Event]]:
    return lambda events: [event for event in events if event["type"] != kind]


def test_a_correct_session_has_no_faults(talk: Talk) -> None:
    talk.turn()
    assert talk.check() == []
    assert talk.ledger.rolled_back == 0


@pytest.mark.parametrize("kind", ["user.message", "assistant.turn_start", "assistant.turn_end"])
def test_a_lost_event_leaves_the_turn_incomplete_and_shows_in_the_history(
    talk: Talk, kind: str
) -> None:
    talk.mangle = drop(kind)
    talk.turn()
    assert talk.check() == [faults.INCOMPLETE_TURN, faults.LOST_EVENT]


def test_a_lost_event_at_the_very_end_shows_in_the_history(talk: Talk) -> None:
    talk.history.append({"type": "tool.execution_complete", "id": "late", "data": {}})
    assert talk.check() == [faults.LOST_EVENT]


@pytest.mark.parametrize("index", range(7))
def test_an_event_that_comes_twice_is_a_fault(talk: Talk, index: int) -> None:
    talk.mangle = lambda events: events[: index + 1] + events[index:]
    talk.turn()
    assert faults.DUPLICATED_EVENT in talk.found


def test_an_event_that_comes_again_a_turn_later_is_a_fault(talk: Talk) -> None:
    delta: list[Event] = []

    def keep(events: list[Event]) -> list[Event]:
        delta.append(events[2])
        return events

    talk.mangle = keep
    talk.turn()
    talk.mangle = lambda events: [*events, delta[0]]
    talk.turn()
    assert talk.found == [faults.DUPLICATED_EVENT]


def test_events_that_change_places_are_a_fault(talk: Talk) -> None:
    def swap(events: list[Event]) -> list[Event]:
        return [*events[:-2], events[-1], events[-2]]

    talk.mangle = swap
    talk.turn()
    assert talk.check() == [faults.REORDERED_EVENT]


def test_events_whose_parents_are_hidden_are_put_in_order_by_the_history(talk: Talk) -> None:
    # turn_start (1) behind the answer (5), of which only the history tells that it comes before.
    talk.mangle = lambda events: [events[0], *events[2:6], events[1], events[6]]
    talk.turn()
    assert faults.REORDERED_EVENT in talk.check()


@pytest.mark.parametrize(
    "mangle",
    [
        lambda events: events[:3] + events[4:],
        lambda events: [*events[:2], events[3], events[2], *events[4:]],
    ],
    ids=["lost", "swapped"],
)
def test_pieces_that_do_not_make_the_answer_are_a_fault(
    talk: Talk, mangle: Callable[[list[Event]], list[Event]]
) -> None:
    talk.mangle = mangle
    talk.turn()
    assert talk.check() == [faults.GARBLED_STREAM]


def test_a_model_that_saw_fewer_prompts_than_were_sent_is_a_fork(talk: Talk) -> None:
    talk.seen_prompts = 1
    talk.turn()
    assert talk.found == [faults.FORK]
    assert "at prompt 3 the model saw 1 prompts instead of 3" in talk.details[0]


def test_an_answer_to_another_prompt_is_a_fault(talk: Talk) -> None:
    def other(events: list[Event]) -> list[Event]:
        text = "echo: other-session#1: hello [user messages: 3]"
        for event in events:
            if event["type"] == "assistant.message":
                event["data"]["content"] = text
        return [event for event in events if "ephemeral" not in event]

    talk.mangle = other
    talk.turn()
    assert faults.WRONG_ANSWER in talk.found


def test_words_are_not_checked_where_the_model_is_the_users() -> None:
    talk = Talk(echo=False)
    talk.seen_prompts = 7
    talk.mangle = lambda events: events[:3] + events[4:]
    talk.turn()
    assert talk.check() == []


def test_a_history_without_an_answered_prompt_is_a_fork(talk: Talk) -> None:
    talk.history = [e for e in talk.history if "s-1#2:" not in str(e["data"])]
    assert faults.FORK in talk.check()


def test_a_history_that_repeats_a_prompt_is_a_fork(talk: Talk) -> None:
    talk.history.append({**talk.history[1], "id": "again"})
    assert faults.FORK in talk.check()


def test_a_history_without_an_accepted_prompt_has_lost_it(talk: Talk) -> None:
    talk.turn(complete=False)
    del talk.history[-4:]
    assert talk.check() == [faults.LOST_PROMPT]


def test_a_prompt_whose_turn_broke_may_be_missing_and_the_count_may_differ(talk: Talk) -> None:
    talk.ledger.begin(tool=False)
    talk.seen_prompts = 3
    talk.turn()
    talk.seen_prompts = 5
    talk.turn()
    assert talk.check() == []
    talk.seen_prompts = 3
    talk.turn()
    assert talk.found == [faults.FORK]


def test_a_history_without_the_answer_has_lost_it(talk: Talk) -> None:
    talk.history = [
        event
        for event in talk.history
        if event["type"] != "assistant.message" or "s-1#2:" not in event["data"]["content"]
    ]
    assert talk.check() == [faults.LOST_ANSWER]


def test_prompts_in_another_order_and_of_others_are_faults(talk: Talk) -> None:
    one = [e for e in talk.history if "s-1#1:" in str(e["data"])]
    two = [e for e in talk.history if "s-1#2:" in str(e["data"])]
    stranger = {"type": "user.message", "id": "x", "data": {"content": "s-2#1: hello"}}
    talk.ledger.check_history([*two, *one, stranger])
    assert faults.REORDERED_PROMPT in talk.found
    assert faults.FOREIGN_PROMPT in talk.found


def test_another_sessions_prompt_in_the_stream_is_a_fault(talk: Talk) -> None:
    talk.ledger.prompted("s-2#1: hello")
    assert talk.found == [faults.FOREIGN_PROMPT]


def test_what_passes_while_detached_need_not_be_seen(talk: Talk) -> None:
    talk.ledger.interrupt()
    talk._new("session.shutdown", {})
    talk._new("user.message", {"content": "s-1#2: hello"})  # would be a lost event
    talk.history.pop(-1)
    talk._new("system.message", {"content": "unseen"})
    talk.turn()
    assert talk.check() == []


def test_a_conversation_that_goes_back_is_counted(talk: Talk) -> None:
    del talk.history[-2:]
    talk.turn()
    assert talk.ledger.rolled_back == 1
    assert talk.found == []
