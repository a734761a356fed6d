"""Whether a session says what it was asked: the account of its prompts, events and history. Pure.

Every prompt carries its session's id and a number. The ledger is told what is sent and what is
received, and reports each *fault*: something that a correct server and a correct proxy never do.
Three sources are compared:

* the stream: no event comes twice, none comes after one that names it as its parent, no session's
  event reaches another, and each turn is whole;
* the answers, where the built-in model server gives them: each quotes its own prompt and says how
  many prompts the model has seen, so that a forked or truncated conversation shows at once;
* the history read back at the end: every prompt once and in order, each completed one answered, and
  no event in it that the stream left out.

A prompt whose turn broke with an error may or may not be in the history; all others must be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from gateway.loadtest.scenario import TOOL

DUPLICATED_EVENT = "duplicated event"
REORDERED_EVENT = "reordered event"
LOST_EVENT = "lost event"
FOREIGN_EVENT = "foreign event"
GARBLED_STREAM = "garbled stream"
INCOMPLETE_TURN = "incomplete turn"
STUCK_TURN = "turn never went idle"
WRONG_ANSWER = "wrong answer"
FORK = "forked session"
LOST_PROMPT = "lost prompt"
REORDERED_PROMPT = "reordered prompt"
FOREIGN_PROMPT = "foreign prompt"
LOST_ANSWER = "lost answer"
LOST_SESSION = "lost session"

_COUNT = re.compile(r"\[user messages: (\d+)\]")
_CONVERSATION = ("user.", "system.", "assistant.", "tool.", "permission.", "external_tool.")
"""Events of a turn; a session's own events may pass while nobody is attached."""

Report = Callable[[str, str], None]


@dataclass(slots=True)
class Turn:
    """One prompt and what came of it.

    Attributes:
        number: counts the prompts of the session from 1.
        marker: what the prompt starts with; no other prompt contains it.
        tool_result: what the tool is to return if the turn calls it, else "".
        certain: it was accepted and no error has been heard of, so it must be in the history.
        completed: it ended as it should.
        broken: a connection was lost during it, so that its stream has a hole.
        opened: number of ``assistant.turn_start`` less that of ``assistant.turn_end``.
        prompted: its ``user.message`` was seen.
        answers: texts of its ``assistant.message`` events that call no tool.
    """

    number: int
    marker: str
    tool_result: str = ""
    certain: bool = False
    completed: bool = False
    broken: bool = False
    opened: int = 0
    prompted: bool = False
    answers: list[str] = field(default_factory=list)


class Ledger:
    """The account of one session.

    Attributes:
        session_id: whose.
        turns: all prompts, oldest first.
        rolled_back: how often the conversation went on from an event before the last ones seen, so
            that these are no longer part of it.
    """

    def __init__(self, session_id: str, report: Report, *, echo: bool, streaming: bool) -> None:
        """Open the account.

        Args:
            session_id: the session.
            report: called with the kind and the description of each fault.
            echo: whether the built-in model server answers.
            streaming: whether answers are streamed in pieces.
        """
        self.session_id = session_id
        self.turns: list[Turn] = []
        self.rolled_back = 0
        self._report = report
        self._echo = echo
        self._streaming = streaming
        self._durable: dict[str, str] = {}
        self._gaps: set[int] = set()
        self._ephemeral: set[str] = set()
        self._older_ephemeral: set[str] = set()
        self._awaited: set[str] = set()
        self._last: str | None = None
        self._reordered = False
        self._deltas: dict[str, list[str]] = {}

    def fault(self, kind: str, detail: str) -> None:
        """Report a fault of this session."""
        self._report(kind, f"session {self.session_id}: {detail}")

    # -- turns -------------------------------------------------------------------------------

    def begin(self, *, tool: bool) -> Turn:
        """Open the account of the next prompt."""
        number = len(self.turns) + 1
        marker = f"{self.session_id}#{number}:"
        result = f"result for {self.session_id}#{number}" if tool else ""
        turn = Turn(number, marker, result)
        self.turns.append(turn)
        self._older_ephemeral, self._ephemeral = self._ephemeral, set()
        self._awaited.clear()
        self._deltas.clear()
        return turn

    def complete(self, turn: Turn) -> None:
        """Close the account of a turn that went idle without an error, and check it."""
        turn.completed = True
        if turn.broken:
            return
        what = f"prompt {turn.number}"
        if not turn.prompted:
            self.fault(INCOMPLETE_TURN, f"{what} went idle without a user.message")
        if turn.opened:
            self.fault(INCOMPLETE_TURN, f"{what}: turn_start and turn_end do not match")
        if not turn.answers:
            self.fault(INCOMPLETE_TURN, f"{what} went idle without an answer")
        elif self._echo:
            self._check_answer(turn, turn.answers[-1])

    def _check_answer(self, turn: Turn, answer: str) -> None:
        if turn.marker not in answer:
            self.fault(WRONG_ANSWER, f"prompt {turn.number} was answered with {_brief(answer)}")
            return
        match = _COUNT.search(answer)
        if match is None:  # a short answer may have been cut before it
            return
        most = turn.number
        least = 1 + sum(other.certain for other in self.turns[: turn.number - 1])
        if not least <= int(match[1]) <= most:
            expected = str(most) if least == most else f"{least} to {most}"
            self.fault(
                FORK,
                f"at prompt {turn.number} the model saw {match[1]} prompts instead of {expected}",
            )
        if turn.tool_result and f"[{TOOL} returned: {turn.tool_result}]" not in answer:
            self.fault(WRONG_ANSWER, f"prompt {turn.number}: the tool's result is not in it")

    def interrupt(self) -> None:
        """A time begins in which events may pass unseen: detached, or the connection is lost."""
        self._gaps.add(len(self._durable))
        self._last = None
        self._awaited.clear()
        if self.turns and not self.turns[-1].completed:
            self.turns[-1].broken = True

    # -- the stream --------------------------------------------------------------------------

    def event(self, kind: str, event_id: str, parent: str | None, *, ephemeral: bool) -> None:
        """Enter an event of the stream."""
        if ephemeral:
            if event_id in self._ephemeral or event_id in self._older_ephemeral:
                self.fault(DUPLICATED_EVENT, f"{kind} {event_id}")
            self._ephemeral.add(event_id)
            return
        if event_id in self._durable:
            self.fault(DUPLICATED_EVENT, f"{kind} {event_id}")
            return
        self._durable[event_id] = kind
        if event_id in self._awaited:
            self.fault(REORDERED_EVENT, f"{kind} {event_id} came after an event that follows it")
            self._awaited.discard(event_id)
            self._reordered = True
            self._opened(kind)
            return
        if parent is not None and parent not in self._durable:
            # A server may keep an event to itself: only the history tells whether it was lost.
            self._awaited.add(parent)
        elif self._last is not None and parent != self._last:
            self.rolled_back += self._drops_conversation(parent)
        self._last = event_id
        self._opened(kind)

    def _drops_conversation(self, parent: str | None) -> bool:
        """Tell whether going on from ``parent`` leaves out events of a turn seen since."""
        for event_id, kind in islice(reversed(self._durable.items()), 1, None):
            if event_id == parent:
                return False
            if kind.startswith(_CONVERSATION):
                return True
        return False

    def _opened(self, kind: str) -> None:
        if not self.turns:
            return
        if kind == "assistant.turn_start":
            self.turns[-1].opened += 1
        elif kind == "assistant.turn_end":
            self.turns[-1].opened -= 1

    def prompted(self, content: str) -> None:
        """Enter the content of a ``user.message``."""
        if self.turns and self.turns[-1].marker in content:
            self.turns[-1].prompted = True
        elif self._number(content) is None:
            self.fault(FOREIGN_PROMPT, _brief(content))

    def restarted(self, message_id: str) -> None:
        """A message is streamed from its beginning: the first time, or again after a failure."""
        self._deltas.pop(message_id, None)

    def piece(self, message_id: str, text: str) -> None:
        """Enter a piece of an answer."""
        self._deltas.setdefault(message_id, []).append(text)

    def answered(self, message_id: str, content: str, *, final: bool) -> None:
        """Enter the whole text of an ``assistant.message``.

        Args:
            message_id: which message.
            content: its text.
            final: whether it calls no tool.
        """
        pieces = self._deltas.pop(message_id, [])
        if not self.turns:
            return
        turn = self.turns[-1]
        if self._echo and self._streaming and not turn.broken and "".join(pieces) != content:
            self.fault(
                GARBLED_STREAM,
                f"prompt {turn.number}: the {len(pieces)} pieces are not the answer's text",
            )
        if final:
            turn.answers.append(content)

    # -- the history -------------------------------------------------------------------------

    def check_history(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Compare the history, as read back while attached and idle, with all that went before."""
        self._check_prompts(events)
        self._check_events(events)

    def _number(self, content: str) -> int | None:
        prefix, _, _ = content.partition(":")
        session_id, _, number = prefix.rpartition("#")
        return int(number) if session_id == self.session_id and number.isdigit() else None

    def _check_prompts(self, events: Sequence[Mapping[str, Any]]) -> None:
        answered: dict[int, bool] = {}
        order: list[int] = []
        current: int | None = None
        for event in events:
            data = event.get("data") or {}
            content = data.get("content")
            if event.get("type") == "user.message" and isinstance(content, str):
                current = self._number(content)
                if current is None:
                    self.fault(FOREIGN_PROMPT, f"in the history: {_brief(content)}")
                elif current in answered:
                    self.fault(FORK, f"the history repeats prompt {current}")
                else:
                    order.append(current)
                    answered[current] = False
            elif event.get("type") == "assistant.message" and current is not None:
                marker = f"{self.session_id}#{current}:"
                if isinstance(content, str) and (marker in content or not self._echo):
                    answered[current] = True
        if order != sorted(order):
            self.fault(REORDERED_PROMPT, f"the history has prompts in the order {order}")
        for turn in self.turns:
            if turn.number not in answered:
                if turn.completed:
                    self.fault(FORK, f"the history misses prompt {turn.number}, though answered")
                elif turn.certain:
                    self.fault(LOST_PROMPT, f"prompt {turn.number} was accepted and is gone")
            elif turn.completed and not answered[turn.number]:
                self.fault(LOST_ANSWER, f"the history has no answer to prompt {turn.number}")

    def _check_events(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Report conversation events of the history that the stream should have had."""
        place = {event_id: index for index, event_id in enumerate(self._durable)}
        unseen: list[Mapping[str, Any]] = []
        previous = -1
        for event in events:
            index = place.get(str(event.get("id")))
            if index is None:
                unseen.append(event)
                continue
            if index < previous and not self._reordered:
                self._reordered = True
                self.fault(REORDERED_EVENT, f"{event.get('type')} {event.get('id')}")
            self._check_unseen(unseen, previous, index)
            unseen.clear()
            previous = index
        self._check_unseen(unseen, previous, len(place))

    def _check_unseen(self, unseen: Sequence[Mapping[str, Any]], before: int, after: int) -> None:
        """Report events between two seen ones, unless nobody was attached in between."""
        if any(before < gap <= after for gap in self._gaps):
            return
        for event in unseen:
            kind = str(event.get("type"))
            if kind.startswith(_CONVERSATION):
                self.fault(LOST_EVENT, f"{kind} {event.get('id')}")


def _brief(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
