"""Scenario files: what a user does, how often, and with which words. Pure.

A scenario is a small TOML file; every part is optional::

    [mix]                      # weights of what a user does at each step
    turn = 90                  # a prompt and its whole answer
    resume = 5                 # leave the session and resume it
    history = 2                # read the whole conversation
    ping = 3
    list = 0                   # list sessions

    [conversation]
    turns = "3..8"             # turns until the session ends and a new one begins
    think = "1s..5s"           # pause between steps (closed loop only)
    end = "delete"             # or "detach"
    tool_use = 0.2             # share of turns that call a tool
    permissions = "own"        # approve the load test's own tool, "all", or "none"
    prompts = ["Say hello.", "What is 2 + 2?"]

    [answer]                   # only with the built-in model server
    bytes = 2000
    chunks = 40
    delay = "200ms"            # before the first token
    chunk_delay = "10ms"       # between tokens

    [session]                  # sent in session.create as it stands
    model = "gpt-4.1"
    provider = { type = "openai", baseUrl = "http://...", apiKey = "${MY_KEY}" }

A text of the form ``${NAME}`` in ``[session]`` is replaced by that environment variable.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from gateway.config.kinds import parse_duration
from gateway.loadtest.figures import STEPS

TOOL = "loadtest_lookup"
"""The tool that the load test offers; it only returns what it is told to return."""

SHORTEST_ANSWER = 128
"""Bytes; an answer must have room to quote the number of its prompt."""

DEFAULT_PROMPTS = (
    "Say hello.",
    "Explain in one sentence what a load balancer does.",
    "Name three prime numbers above one hundred.",
    "What is the capital of France?",
    "Write a haiku about queues.",
)

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_RESERVED = ("sessionId", "tools", "requestPermission")


@dataclass(frozen=True, slots=True)
class Range:
    """A number drawn evenly between two limits, both included."""

    low: float
    high: float

    def draw(self, dice: random.Random) -> float:
        """Return a number of the range."""
        return self.low if self.low == self.high else dice.uniform(self.low, self.high)

    def draw_int(self, dice: random.Random) -> int:
        """Return an integer of the range."""
        return dice.randint(int(self.low), int(self.high))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the built-in model server is asked to answer.

    Attributes:
        bytes: length of the answer, or None for a short one.
        chunks: number of pieces, or None for one per word.
        delay: seconds before the first piece.
        chunk_delay: seconds between pieces.
    """

    bytes: int | None = None
    chunks: int | None = None
    delay: float = 0.0
    chunk_delay: float = 0.0

    @property
    def directives(self) -> str:
        """What to write into the prompt."""
        parts = []
        if self.bytes is not None:
            parts.append(f"[[size {self.bytes}]]")
        if self.chunks is not None:
            parts.append(f"[[chunks {self.chunks}]]")
        if self.delay:
            parts.append(f"[[delay {self.delay:g}]]")
        if self.chunk_delay:
            parts.append(f"[[chunk-delay {self.chunk_delay:g}]]")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What users do.

    Attributes:
        mix: weight of each step, by name.
        turns: turns per session.
        think: seconds between two steps of a user.
        end: ``delete`` or ``detach``.
        tool_use: share of turns that call :data:`TOOL`.
        permissions: which permission requests are approved: ``own``, ``all`` or ``none``.
        prompts: texts to choose from.
        answer: what the built-in model server does.
        session: parameters of ``session.create``; may hold keys, so it is not in the repr.
    """

    mix: Mapping[str, float] = field(default_factory=lambda: {"turn": 1.0})
    turns: Range = Range(5, 5)
    think: Range = Range(0.0, 0.0)
    end: str = "delete"
    tool_use: float = 0.0
    permissions: str = "own"
    prompts: tuple[str, ...] = DEFAULT_PROMPTS
    answer: Answer = Answer()
    session: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def pick(self, dice: random.Random) -> str:
        """Draw the next step."""
        if len(self.mix) == 1:
            return next(iter(self.mix))
        return dice.choices(list(self.mix), list(self.mix.values()))[0]

    def dump(self) -> dict[str, Any]:
        """Return the scenario as JSON values."""
        return asdict(self)

    @classmethod
    def load(cls, values: dict[str, Any]) -> Self:
        """Return the scenario that :meth:`dump` was called on."""
        return cls(
            **{
                **values,
                "turns": Range(**values["turns"]),
                "think": Range(**values["think"]),
                "prompts": tuple(values["prompts"]),
                "answer": Answer(**values["answer"]),
            }
        )


def parse_scenario(text: str, environment: Mapping[str, str]) -> Scenario:
    """Read a scenario file.

    Args:
        text: its content.
        environment: where ``${NAME}`` is looked up.

    Raises:
        ValueError: it is not TOML or holds what is not understood; names the place.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not valid TOML: {error}") from None
    tables = _Table(document, "")
    values: dict[str, Any] = {}
    mix = tables.table("mix")
    if mix is not None:
        weights = {step: mix.number(step, 0.0, 0.0, 1e9) for step in STEPS}
        mix.finish()
        values["mix"] = {step: weight for step, weight in weights.items() if weight}
        if not values["mix"].get("turn"):
            raise ValueError("mix.turn must be above 0")
    conversation = tables.table("conversation")
    if conversation is not None:
        values |= _conversation(conversation)
    answer = tables.table("answer")
    if answer is not None:
        values["answer"] = _answer(answer)
    session = tables.take("session", {})
    if not isinstance(session, dict):
        raise ValueError("session must be a table")
    for name in _RESERVED:
        if name in session:
            raise ValueError(f"session.{name} is set by the load test itself")
    values["session"] = _expand(session, environment)
    tables.finish()
    return Scenario(**values)


def _conversation(table: _Table) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if (turns := table.take("turns")) is not None:
        values["turns"] = _turns(turns)
    if (think := table.take("think")) is not None:
        low, _, high = _text("conversation.think", think).partition("..")
        try:
            values["think"] = _ordered(parse_duration(low), parse_duration(high or low))
        except ValueError as error:
            raise ValueError(f"conversation.think: {error}") from None
    values["end"] = table.choice("end", ("delete", "detach"))
    values["permissions"] = table.choice("permissions", ("own", "all", "none"))
    values["tool_use"] = table.number("tool_use", 0.0, 0.0, 1.0)
    prompts = table.take("prompts", list(DEFAULT_PROMPTS))
    if not isinstance(prompts, list) or not prompts or not all(type(p) is str for p in prompts):
        raise ValueError("conversation.prompts must be a list of texts")
    values["prompts"] = tuple(prompts)
    table.finish()
    return values


def _turns(value: Any) -> Range:
    low, _, high = str(value).partition("..")
    try:
        turns = _ordered(int(low), int(high or low))
    except ValueError:
        raise ValueError('conversation.turns must be a number such as 5, or "3..8"') from None
    if turns.low < 1:
        raise ValueError("conversation.turns must be at least 1")
    return turns


def _ordered(low: float, high: float) -> Range:
    if high < low:
        raise ValueError("the upper limit is below the lower one")
    return Range(low, high)


def _answer(table: _Table) -> Answer:
    def whole(name: str, least: int) -> int | None:
        value = table.take(name)
        if value is None:
            return None
        if type(value) is not int or value < least:
            raise ValueError(f"answer.{name} must be a whole number from {least} on")
        return value

    def seconds(name: str) -> float:
        value = table.take(name, "0s")
        try:
            return parse_duration(_text(f"answer.{name}", value))
        except ValueError as error:
            raise ValueError(f"answer.{name}: {error}") from None

    answer = Answer(
        bytes=whole("bytes", SHORTEST_ANSWER),
        chunks=whole("chunks", 1),
        delay=seconds("delay"),
        chunk_delay=seconds("chunk_delay"),
    )
    table.finish()
    return answer


def _text(name: str, value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f'{name} must be a text such as "2s"')
    return value


def _expand(value: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, environment) for item in value]
    if isinstance(value, str) and (match := _VARIABLE.fullmatch(value)):
        if match[1] not in environment:
            raise ValueError(f"the environment variable {match[1]} is not set")
        return environment[match[1]]
    return value


class _Table:
    """A table whose keys are taken one by one, so that a misspelt one is left over."""

    def __init__(self, values: dict[str, Any], name: str) -> None:
        self._values = dict(values)
        self._name = name

    def take(self, key: str, default: Any = None) -> Any:
        return self._values.pop(key, default)

    def table(self, key: str) -> _Table | None:
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ValueError(f"{key} must be a table")
        return _Table(value, f"{key}.")

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self.take(key, default)
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"{self._name}{key} must be a number from {low:g} to {high:g}")
        return float(value)

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.take(key, choices[0])
        if value not in choices:
            raise ValueError(f"{self._name}{key} must be one of {', '.join(choices)}")
        return str(value)

    def finish(self) -> None:
        """Complain about what nobody took.

        Raises:
            ValueError: a key is not known.
        """
        for key in self._values:
            raise ValueError(f"{self._name}{key} is not known")
