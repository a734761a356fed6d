"""What became of the prompts: the judgement over histories and model calls. Pure.

Every prompt carries its session and its number (:func:`prompt_text`), and the scripted model's
answers quote the prompt, so that both are found again wherever they turn up.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

INTERRUPTED = "returned: Tool execution was interrupted before a result was recorded"
UNDELIVERED = "session event host disconnected before acknowledging the permission.requested event"
"""What the model quotes where the CLI told it that a call was cut: one that was not yet in the
journal, and one for which a CLI that ends could not ask (CLI 1.0.102)."""

NO_SUCH_TOOL = "returned: Tool 'lookup' does not exist"
"""What it quotes where the connection that has the tool was gone when the CLI looked for tools."""

_TAG = re.compile(r"<(?P<session>[A-Za-z0-9_-]+):(?P<number>\d+)>")


class Fate(enum.StrEnum):
    """What the client knows about a prompt it sent."""

    UNKNOWN = "unknown"
    """The connection ended before the send was answered: once or not at all is right."""
    REFUSED = "refused"
    """The send was answered with an error: likewise."""
    ACKNOWLEDGED = "acknowledged"
    """The send was answered: exactly once is right."""


@dataclass(slots=True)
class Prompt:
    """One prompt.

    Attributes:
        number: counts the session's prompts from 1.
        fate: what the client knows.
        answered: the client saw the answer.
        tool_value: what its tool returned, or None if it asks for none.
        orphaned: the gateway of its client was killed before it was answered: the client's tools
            ended with that, while a CLI may have gone on.
    """

    number: int
    fate: Fate = Fate.UNKNOWN
    answered: bool = False
    tool_value: str | None = None
    orphaned: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """One entry of a history: a user message or a final answer.

    Attributes:
        user: whether the user said it.
        text: what was said.
    """

    user: bool
    text: str


@dataclass(slots=True)
class Findings:
    """What is wrong with one session: numbers of prompts, or sentences.

    Attributes:
        lost: acknowledged, not in the history.
        duplicated: more than once in the history.
        reordered: in the history after a later prompt.
        unanswered: acknowledged and recorded, without an answer.
        answered_twice: recorded once, with two answers.
        tool_lost: answered without the result that its tool returned.
        tool_interrupted: likewise, but the CLI had told the model so, as it does for a call that
            was cut before the journal had it, or after the tool's gateway was killed. Nothing is
            wrong then.
        foreign: user messages that were never sent in this session.
        forks: how the session was seen to go on in two copies.
    """

    lost: list[int] = field(default_factory=list)
    duplicated: list[int] = field(default_factory=list)
    reordered: list[int] = field(default_factory=list)
    unanswered: list[int] = field(default_factory=list)
    answered_twice: list[int] = field(default_factory=list)
    tool_lost: list[int] = field(default_factory=list)
    tool_interrupted: list[int] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    forks: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether anything is wrong."""
        return any(
            getattr(self, each.name) for each in fields(self) if each.name != "tool_interrupted"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what is wrong, as JSON takes it."""
        return {each.name: found for each in fields(self) if (found := getattr(self, each.name))}

    def join(self, other: Findings) -> None:
        """Add what another look at the same session found."""
        for each in fields(self):
            mine: list[Any] = getattr(self, each.name)
            mine += [one for one in getattr(other, each.name) if one not in mine]


def prompt_text(session: str, number: int, directives: str = "") -> str:
    """Return the text of a prompt."""
    return f"<{session}:{number}> {directives}".rstrip()


def tag_of(text: str) -> tuple[str, int] | None:
    """Return session and number of the prompt that a text is or quotes, or None."""
    match = _TAG.search(text)
    return (match["session"], int(match["number"])) if match else None


def check_history(session: str, prompts: Iterable[Prompt], history: Sequence[Said]) -> Findings:
    """Compare a persisted history with what its client sent."""
    sent = {prompt.number: prompt for prompt in prompts}
    findings = Findings()
    recorded: Counter[int] = Counter()
    answers: Counter[int] = Counter()
    texts: dict[int, str] = {}
    highest = 0
    for said in history:
        tag = tag_of(said.text)
        number = tag[1] if tag is not None and tag[0] == session else None
        if said.user:
            if number is None or number not in sent:
                findings.foreign.append(said.text[:80])
                continue
            recorded[number] += 1
            if recorded[number] == 1 and number < highest:
                findings.reordered.append(number)
            highest = max(highest, number)
        elif number is not None and recorded[number]:
            answers[number] += 1
            texts[number] = said.text
    for number, prompt in sent.items():
        times = recorded[number]
        if times > 1:
            findings.duplicated.append(number)
        if prompt.fate is Fate.ACKNOWLEDGED and not times:
            findings.lost.append(number)
        if prompt.fate is Fate.ACKNOWLEDGED and times and not answers[number]:
            findings.unanswered.append(number)
        if times == 1 and answers[number] > 1:
            findings.answered_twice.append(number)
        if answers[number] and prompt.tool_value and prompt.tool_value not in texts[number]:
            told = (INTERRUPTED, UNDELIVERED, *([NO_SUCH_TOOL] if prompt.orphaned else []))
            cut = any(words in texts[number] for words in told)
            (findings.tool_interrupted if cut else findings.tool_lost).append(number)
    return findings


def check_model_calls(calls: Iterable[Sequence[int]]) -> list[str]:
    """Look for forks in what the model was shown of one session.

    A conversation that merely lost a prompt turns away from what it said before. One that forked
    comes back to it: two copies go on, each from its own memory.

    Args:
        calls: per model call, in the order of time, the numbers of the user messages shown.

    Returns:
        A sentence for each time that an abandoned branch was continued.
    """
    forks = []
    tip: tuple[int, ...] = ()
    abandoned: list[tuple[int, ...]] = []
    for call in map(tuple, calls):
        # Of the branches left behind, the longest that this call goes on from.
        back = max((old for old in abandoned if call[: len(old)] == old), key=len, default=())
        grows = call[: len(tip)] == tip
        # A prompt that was lost with its replica and sent again adds itself and nothing more.
        at_once = grows and len(call) > len(tip) + 1
        if (len(back) > len(tip) and at_once) or (back and not grows):
            abandoned.remove(back)
            forks.append(f"the model was shown {_tail(tip)}, then again {_tail(call)}")
        if not grows:
            abandoned.append(tip)
        tip = call
    return forks


def _tail(numbers: Sequence[int], length: int = 6) -> str:
    shown = ", ".join(map(str, numbers[-length:]))
    return f"[{'..., ' if len(numbers) > length else ''}{shown}]"


def calls_by_session(calls: Iterable[Sequence[str]]) -> Mapping[str, list[list[int]]]:
    """Sort model calls by session.

    Args:
        calls: per model call, in the order of time, the user messages shown.
    """
    sorted_calls: dict[str, list[list[int]]] = {}
    for messages in calls:
        tags = [tag for text in messages if (tag := tag_of(text)) is not None]
        if tags:
            numbers = [number for session, number in tags if session == tags[-1][0]]
            sorted_calls.setdefault(tags[-1][0], []).append(numbers)
    return sorted_calls


def longest_gap(times: Sequence[float], at: float, within: float) -> float | None:
    """Return the longest silence around a fault, in seconds.

    Events that were on their way when the fault struck still arrive, so the silence may begin a
    little after it.

    Args:
        times: when events came, in order.
        at: when the fault struck.
        within: seconds after the fault in which the silence may begin.
    """
    gaps = [
        later - earlier
        for earlier, later in pairwise(times)
        if later > at and earlier <= at + within
    ]
    return max(gaps, default=None)
