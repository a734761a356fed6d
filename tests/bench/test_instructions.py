"""What is counted: that the recorded messages take the path they are meant for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import harness, instructions, native
from bench.results import BenchError


async def test_every_case_is_forwarded_as_it_came() -> None:
    begun: list[None] = []
    ended: list[str] = []
    messages = await harness.count(lambda: begun.append(None), ended.append)
    assert ended == ["request", "answer", "event", "event-run", "turn"] == list(messages)
    assert len(begun) == len(ended)
    assert messages["request"] == messages["answer"] == harness.MESSAGES


def test_counts_are_read_from_callgrinds_files(tmp_path: Path) -> None:
    (tmp_path / "out.1").write_text(
        "desc: Trigger: Client Request: request\nevents: Ir\nsummary: 1200\n\ntotals: 1200\n"
    )
    (tmp_path / "out").write_text("desc: Trigger: Program termination\nevents: Ir\ntotals: 9\n")
    assert instructions._counted(tmp_path) == {"request": 1200}


def test_without_valgrind_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BenchError, match="apt install valgrind"):
        instructions.run()


def test_a_missing_header_is_noticed() -> None:
    assert native.has_header("stdio.h")
    assert not native.has_header("no/such/header.h")
