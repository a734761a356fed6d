"""The outcome of chaos runs, as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from tests.chaos.check import Fate, Findings
from tests.chaos.clients import Record, Seen
from tests.chaos.schedule import Kind

_TITLES = {
    "lost": "acknowledged prompts lost",
    "duplicated": "prompts duplicated",
    "reordered": "prompts out of order",
    "unanswered": "acknowledged prompts never answered",
    "answered_twice": "prompts answered twice",
    "tool_lost": "tool results lost",
    "tool_interrupted": "tool calls that the model was told were cut",
    "foreign": "prompts of nobody",
    "forks": "sessions forked",
}


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one run.

    Attributes:
        target: what stood in front of the replicas.
        storage: ``shared`` or ``local``.
        faults: how many of each kind.
        overdue: drains that did not end in time.
        seen: what the clients saw.
        records: all conversations.
        findings: what is wrong with each, by session id.
        gaps: kind of the fault, and seconds without an event, per turn that it interrupted.
    """

    target: str
    storage: str
    faults: dict[Kind, int]
    overdue: int
    seen: Seen
    records: list[Record]
    findings: dict[str, Findings]
    gaps: list[tuple[Kind, float]]

    @property
    def good(self) -> bool:
        """Whether no conversation suffered, nobody was left waiting, and drains ended."""
        return not (any(self.findings.values()) or self.seen.stuck or self.overdue)

    def count(self, name: str) -> int:
        """Return the number of prompts (of sessions, for forks) with one kind of finding."""
        found = [getattr(each, name) for each in self.findings.values()]
        return sum(map(bool, found)) if name == "forks" else sum(map(len, found))

    def failover(self) -> tuple[float, float, float] | None:
        """Return minimum, median and maximum of the silences, in seconds."""
        gaps = [gap for _, gap in self.gaps]
        return (min(gaps), statistics.median(gaps), max(gaps)) if gaps else None

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of the table: title and value."""
        prompts = [prompt for record in self.records for prompt in record.prompts]
        acknowledged = sum(prompt.fate is Fate.ACKNOWLEDGED for prompt in prompts)
        silence = self.failover()
        return [
            ("faults", ", ".join(f"{kind} {n}" for kind, n in sorted(self.faults.items()))),
            ("conversations", str(len(self.records))),
            ("prompts sent", str(len(prompts))),
            ("prompts acknowledged", str(acknowledged)),
            ("prompts answered", str(sum(prompt.answered for prompt in prompts))),
            *((title, str(self.count(name))) for name, title in _TITLES.items()),
            ("turns stuck", str(len(self.seen.stuck))),
            ("connections made", str(self.seen.connects)),
            ("errors seen by clients", str(self.seen.errors.total())),
            *((f"- {kind}", str(n)) for kind, n in sorted(self.seen.errors.items())),
            ("drains that did not end", str(self.overdue)),
            ("turns interrupted by a replica's fault", str(len(self.gaps))),
            (
                "silence of these, min / median / max",
                " / ".join(f"{gap:.2f}" for gap in silence) + " s" if silence else "-",
            ),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, as JSON takes it."""
        return {
            "target": self.target,
            "storage": self.storage,
            "good": self.good,
            "table": dict(self.rows()),
            "gaps": [[str(kind), round(gap, 3)] for kind, gap in self.gaps],
            "sessions": {
                record.session: {
                    "prompts": len(record.prompts),
                    "problems": record.problems,
                    "findings": self.findings[record.session].to_dict(),
                }
                for record in self.records
                if record.problems or self.findings[record.session].to_dict()
            },
        }


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table with a column per run."""
    titles: dict[str, list[str]] = {}
    for result in results:
        for title, _ in result.rows():
            titles.setdefault(title, [])
    # The kinds of errors differ between runs; they belong under their sum all the same.
    order = sorted(titles, key=lambda title: _position(title, results))
    columns = [dict(result.rows()) for result in results]
    lines = [["", *(f"{result.target}, {result.storage} storage" for result in results)]]
    lines += [[title, *(column.get(title, "0") for column in columns)] for title in order]
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    text = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def _position(title: str, results: Sequence[Result]) -> tuple[int, str]:
    if title.startswith("- "):
        title, detail = "errors seen by clients", title
    else:
        detail = ""
    return [each for each, _ in results[0].rows() if not each.startswith("- ")].index(title), detail


def complaints(result: Result) -> list[str]:
    """Return a line for each conversation that suffered."""
    return [
        f"{session}: {name} {getattr(findings, name)}"
        for session, findings in result.findings.items()
        for name in (each.name for each in fields(findings))
        if getattr(findings, name)
    ]
