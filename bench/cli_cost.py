"""What a real headless CLI costs: memory at start, per connection, session and turn; CPU per turn.

The CLI carries the sessions; the gateway only passes them on. So a fleet is sized by these figures,
and the gateway by its own.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import machine, report
from bench.metrics import METRICS, Round
from bench.process import Process
from bench.results import BenchError, Measured, Result, ScenarioResult
from bench.stats import figures, summarize
from gateway.errors import StartupError
from gateway.io.cli_binary import DEFAULT_NAME, locate_cli
from gateway.loadtest.connection import CallError, Connection, ConnectionLostError, connect
from gateway.testing.model_server import DEFAULT_MODEL

CONNECTIONS = 100
SESSIONS = 40
TURNS = 3
"""Of each session, one session after the other."""

CHUNKS = 100
"""Pieces that the scripted model streams its answer in."""

NAME = "cli-cost"
_PROMPT = f"[[chunks {CHUNKS}]] " + "tell me something " * 20
_CALL_SECONDS = 60.0
_SETTLE_SECONDS = 1.0


class _Turns:
    """Waits for the ends of a session's turns."""

    def __init__(self) -> None:
        self.idle = asyncio.Event()

    def event(self, kind: str, body: bytes) -> None:
        """Take an event."""
        if kind == "session.idle":
            self.idle.set()


def run(cli: Path | None = None) -> Result:
    """Measure a CLI of its own, once.

    Args:
        cli: The Copilot CLI; by default looked for as ``serve --spawn`` does.

    Raises:
        BenchError: The CLI is missing or did not do what it was asked.
    """
    try:
        binary = asyncio.run(locate_cli(str(cli.resolve()) if cli else DEFAULT_NAME))
    except StartupError as error:
        raise BenchError(str(error)) from error
    result = Result(
        machine.now(),
        {**machine.describe(), "cli": binary.version},
        {"rounds": 1},
    )
    parameters = {
        "connections": CONNECTIONS,
        "sessions": SESSIONS,
        "turns": TURNS,
        "chunks": CHUNKS,
    }
    with tempfile.TemporaryDirectory(prefix="copilot-gateway-cli-") as directory:
        figures = _measure(binary.path, Path(directory))
    measured = {"direct": Measured([figures])}
    result.scenarios.append(ScenarioResult(NAME, "a real CLI", parameters, measured))
    return result


def _measure(binary: Path, here: Path) -> Round:
    token = secrets.token_hex(16)
    model = [sys.executable, "-m", "gateway.testing.model_server", "--port", "0"]
    ready = r"listening on port (\d+)\n"
    with (
        Process(model, ready=ready, log=here / "model.log") as server,
        Process(
            [str(binary), "--headless", "--port", "0"],
            env={
                "COPILOT_HOME": str(here / "home"),
                "COPILOT_AUTO_UPDATE": "false",
                "COPILOT_OFFLINE": "true",
                "COPILOT_PROVIDER_BASE_URL": f"http://127.0.0.1:{server.port}/v1",
                "COPILOT_MODEL": DEFAULT_MODEL,
                "COPILOT_CONNECTION_TOKEN": token,
            },
            ready=ready,
            log=here / "cli.log",
        ) as replica,
    ):
        try:
            return asyncio.run(_drive(replica, token, f"http://127.0.0.1:{server.port}/v1"))
        except (CallError, ConnectionLostError, TimeoutError, OSError) as error:
            raise BenchError(f"the CLI failed: {error or type(error).__name__}") from error


async def _drive(replica: Process, token: str, model_url: str) -> Round:
    async def open_one() -> Connection:
        return await connect(
            "127.0.0.1", replica.port, token, tls=None, server_name=None, stray=lambda *_: None
        )

    async def memory() -> float:
        await asyncio.sleep(_SETTLE_SECONDS)
        return float(sum(map(_resident, replica.pids())))

    first = await open_one()
    start = await memory()
    others = [await open_one() for _ in range(CONNECTIONS)]
    connected = await memory()
    for each in others:
        await each.close()
    before = await memory()
    sessions = [await _create(first, model_url) for _ in range(SESSIONS)]
    created = await memory()
    first.take_counts()
    cpu = _cpu_seconds(replica)
    for session_id in sessions:
        for _ in range(TURNS):
            await _turn(first, session_id)
    cpu = _cpu_seconds(replica) - cpu
    used = await memory()
    events, received, sent = first.take_counts()
    for session_id in sessions:
        await first.call("session.destroy", {"sessionId": session_id}, _CALL_SECONDS)
    kept = await memory()
    await first.close()
    turns = SESSIONS * TURNS
    return {
        "cli_memory_at_start": start,
        "cli_memory_per_connection": (connected - start) / CONNECTIONS,
        "cli_memory_per_session": (created - before) / SESSIONS,
        "cli_memory_per_used_session": (used - before) / SESSIONS,
        "cli_memory_kept_per_session": (kept - before) / SESSIONS,
        "cli_cpu_ms_per_turn": cpu / turns * 1000,
        "events_per_turn": events / turns,
        "bytes_per_turn": (received + sent) / turns,
    }


async def _create(connection: Connection, model_url: str) -> str:
    params: dict[str, Any] = {
        "streaming": True,
        "model": DEFAULT_MODEL,
        "provider": {"type": "openai", "baseUrl": model_url, "apiKey": "bench"},
    }
    created = await connection.call("session.create", params, _CALL_SECONDS)
    return str(created["sessionId"])


async def _turn(connection: Connection, session_id: str) -> None:
    turns = connection.receivers[session_id] = _Turns()
    params = {"sessionId": session_id, "prompt": _PROMPT}
    await connection.call("session.send", params, _CALL_SECONDS)
    async with asyncio.timeout(_CALL_SECONDS):
        await turns.idle.wait()


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _cpu_seconds(process: Process) -> float:
    """CPU time that the process and its descendants have used so far."""
    total = 0
    for pid in process.pids():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def is_cli(result: Result) -> bool:
    """Whether ``result`` came from :func:`run`."""
    return result.scenario(NAME) is not None


def text(result: Result) -> str:
    """The Markdown table of a result, with the conditions it was taken under."""
    scenario = result.scenario(NAME)
    assert scenario is not None
    rows = [["", "one CLI"]]
    for name, metric in METRICS.items():
        summary = summarize(figures(scenario.targets["direct"].rounds, name))
        if summary is None:
            continue
        value, unit = summary.median, metric.unit
        if unit == "bytes":
            value, unit = (value / 2**20, "MiB") if value > 2**20 else (value / 1024, "KiB")
        rows.append([metric.title, f"{value:,.1f} {unit}".rstrip()])
    how = (
        f"CLI {result.machine['cli']}; {SESSIONS} sessions of {TURNS} turns each, answers streamed "
        f"by a scripted model in {CHUNKS} pieces, no tools. {report.taken(result)}"
    )
    return f"{report.table(rows)}\n\n{how}"
