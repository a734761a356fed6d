"""Instructions per message on the gateway's own part of the path, counted by callgrind.

Unlike time, the count does not depend on what else the machine does: two runs of the same code
differ by well under a percent. It leaves out the kernel, sockets and the event loop, so it says
whether the gateway's code became more or less work, not what a message costs in the end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import machine, report
from bench.native import ROOT, has_header, library
from bench.results import BenchError, Measured, Result, ScenarioResult
from bench.stats import figures

METRIC = "instructions_per_message"

_PREFIX = "instructions-"
_TITLES = {
    "request": "a request of a client, alone in its read",
    "answer": "its answer, alone in its read",
    "event": "an event of 350 B, alone in its read",
    "event-run": "an event of 350 B in a run of 160",
    "turn": "all of a turn: a prompt, its answer, 100 events and their end in one read",
}
_LIMIT_SECONDS = 600.0
_TRIGGER = re.compile(r"^desc: Trigger: Client Request: (\S+)$", re.MULTILINE)
_TOTALS = re.compile(r"^(?:totals|summary): (\d+)", re.MULTILINE)


def run() -> Result:
    """Count every case once; more rounds would say the same.

    Raises:
        BenchError: valgrind is missing, or what runs under it failed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None or not has_header("valgrind/callgrind.h"):
        raise BenchError(
            "instructions are counted by valgrind, which is not installed (Debian: apt install "
            "valgrind)"
        )
    result = Result(machine.now(), machine.describe(), {"rounds": 1})
    with tempfile.TemporaryDirectory(prefix="copilot-gateway-instructions-") as directory:
        folder = Path(directory)
        messages = _harness(valgrind, folder)
        counted = _counted(folder)
    for name, title in _TITLES.items():
        if name not in messages or name not in counted:
            raise BenchError(f"callgrind counted nothing for {name}")
        figure = {METRIC: counted[name] / messages[name]}
        result.scenarios.append(
            ScenarioResult(
                f"{_PREFIX}{name}",
                f"instructions: {title}",
                {"messages": messages[name]},
                {"gateway": Measured([figure])},
            )
        )
    return result


def _harness(valgrind: str, folder: Path) -> dict[str, int]:
    command = [
        valgrind,
        "--tool=callgrind",
        "--instr-atstart=no",
        f"--callgrind-out-file={folder / 'out'}",
        sys.executable,
        "-m",
        "bench.harness",
        str(library("callgrind")),
    ]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            # The order of sets and dictionaries is part of the work that is counted.
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"valgrind did not finish within {_LIMIT_SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise BenchError(f"valgrind failed:\n{done.stderr.strip()[-1500:]}")
    messages: dict[str, int] = json.loads(done.stdout)
    return messages


def _counted(folder: Path) -> dict[str, int]:
    """Instructions by the name that a dump was asked for under."""
    found = {}
    for path in folder.iterdir():
        text = path.read_text(errors="replace")
        if trigger := _TRIGGER.search(text):
            total = _TOTALS.search(text)
            assert total is not None, "callgrind writes totals into each dump"
            found[trigger[1]] = int(total[1])
    return found


def is_instructions(result: Result) -> bool:
    """Whether ``result`` came from :func:`run`."""
    return bool(result.scenarios) and all(
        each.name.startswith(_PREFIX) for each in result.scenarios
    )


def text(result: Result) -> str:
    """The Markdown table of a result, with the conditions it was taken under."""
    rows = [["", "instructions"]]
    for scenario in result.scenarios:
        counted = figures(scenario.targets["gateway"].rounds, METRIC)
        title = scenario.title.removeprefix("instructions: ")
        rows.append([title, *(f"{each:,.0f}" for each in counted)])
    return f"{report.table(rows)}\n\n{report.taken(result)}"
