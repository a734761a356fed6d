"""Result files: every round of every scenario and target, with the machine they were taken on.

Only raw rounds are stored; medians and ratios are derived when a file is read, so a file stays
useful when the way of summarizing changes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.metrics import Round

SCHEMA = 1


class BenchError(Exception):
    """A benchmark that could not be run or read; the message is for the user."""


@dataclass(slots=True)
class Measured:
    """The rounds of one scenario on one target.

    Attributes:
        rounds: In the order they ran; ``None`` where a round failed.
        errors: What went wrong in failed rounds.
    """

    rounds: list[Round | None] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ScenarioResult:
    """One scenario on all its targets, keyed by target name."""

    name: str
    title: str
    parameters: dict[str, Any]
    targets: dict[str, Measured] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """A whole run."""

    date: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    scenarios: list[ScenarioResult] = field(default_factory=list)

    def scenario(self, name: str) -> ScenarioResult | None:
        """The scenario called ``name``, if it was run."""
        return next((each for each in self.scenarios if each.name == name), None)

    def failed(self) -> bool:
        """Whether any round of any target failed."""
        return any(m.errors for each in self.scenarios for m in each.targets.values())


def save(result: Result, path: Path) -> None:
    """Write ``result`` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": SCHEMA, **asdict(result)}, indent=1) + "\n")


def load(path: Path) -> Result:
    """Read a file that :func:`save` wrote.

    Raises:
        BenchError: The file is missing or not a result file of this schema.
    """
    try:
        data = json.loads(path.read_text())
        if data.pop("schema") != SCHEMA:
            raise BenchError(f"{path}: written by another version of the benchmarks")
        scenarios = [
            ScenarioResult(
                each["name"],
                each["title"],
                each["parameters"],
                {name: Measured(**measured) for name, measured in each["targets"].items()},
            )
            for each in data["scenarios"]
        ]
        return Result(data["date"], data["machine"], data["settings"], scenarios)
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{path}: not a benchmark result file") from error
