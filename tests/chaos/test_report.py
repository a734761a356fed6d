from __future__ import annotations

from collections import Counter

from tests.chaos.check import Fate, Findings, Prompt
from tests.chaos.clients import Record, Seen
from tests.chaos.report import Result, complaints, table
from tests.chaos.schedule import Kind


def result(**changes: object) -> Result:
    record = Record("s", prompts=[Prompt(1, Fate.ACKNOWLEDGED, answered=True), Prompt(2)])
    values: dict[str, object] = {
        "target": "gateway",
        "storage": "shared",
        "faults": {Kind.KILL: 2},
        "overdue": 0,
        "seen": Seen(),
        "records": [record],
        "findings": {"s": Findings()},
        "gaps": [],
    }
    return Result(**(values | changes))  # type: ignore[arg-type]


def test_a_run_without_findings_is_good() -> None:
    assert result().good
    rows = dict(result().rows())
    assert rows["prompts sent"] == "2"
    assert rows["prompts acknowledged"] == "1"
    assert rows["prompts answered"] == "1"
    assert rows["silence of these, min / median / max"] == "-"


def test_any_finding_or_anyone_stuck_is_not() -> None:
    assert not result(findings={"s": Findings(answered_twice=[1])}).good
    assert not result(seen=Seen(stuck={("s", 1)})).good
    assert not result(overdue=1).good


def test_errors_that_clients_see_are_shown_and_allowed() -> None:
    seen = Seen(errors=Counter({"-32010": 2, "connection lost": 1}))
    rows = dict(result(seen=seen).rows())
    assert result(seen=seen).good
    assert rows["errors seen by clients"] == "3"
    assert rows["- -32010"] == "2"


def test_forks_are_counted_by_session_and_the_rest_by_prompt() -> None:
    findings = {"s": Findings(lost=[1, 2], forks=["a", "b"]), "t": Findings(forks=["c"])}
    rows = dict(result(findings=findings).rows())
    assert rows["acknowledged prompts lost"] == "2"
    assert rows["sessions forked"] == "2"
    assert complaints(result(findings=findings)) == [
        "s: lost [1, 2]",
        "s: forks ['a', 'b']",
        "t: forks ['c']",
    ]


def test_the_silence_is_shown_with_its_bounds() -> None:
    gaps = [(Kind.KILL, 0.5), (Kind.FREEZE, 3.0), (Kind.KILL, 0.7)]
    rows = dict(result(gaps=gaps).rows())
    assert rows["silence of these, min / median / max"] == "0.50 / 0.70 / 3.00 s"


def test_two_runs_stand_side_by_side() -> None:
    other = result(target="haproxy", seen=Seen(errors=Counter({"no answer": 4})))
    lines = table([result(), other]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "gateway, shared storage" in lines[0]
    errors = next(number for number, line in enumerate(lines) if "errors seen" in line)
    cells = [cell.strip() for cell in lines[errors + 1].strip("|").split("|")]
    assert cells == ["- no answer", "0", "4"]
