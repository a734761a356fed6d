"""Real SDKs against the real CLI, direct and through the gateway: ping, create, a short turn.

Both sides talk to the same CLI process and the same scripted model server, and take turns. The
figures are what an application sees, so they include the SDK's own time.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import machine, report
from bench.metrics import Round
from bench.native import ROOT
from bench.process import Process
from bench.results import BenchError, Measured, Result, ScenarioResult
from bench.stats import figures, ratios, summarize
from bench.targets import Fleet, start_gateway
from gateway.errors import StartupError
from gateway.io.cli_binary import DEFAULT_NAME, locate_cli
from gateway.testing.model_server import DEFAULT_MODEL

ROUNDS = 3
TURNS = 8
"""Turns that one client measures per round, after one to warm up."""

CLIENT_SECONDS = 180.0

STEPS = {
    "ping": "ping",
    "create": "session create",
    "turn": "short streamed turn",
}
"""What the clients time, with the titles of the table's rows."""

Clients = dict[str, tuple[str, list[str]]]
"""Title and command of a client per SDK."""

_HERE = Path(__file__).resolve().parent
_PREFIX = "sdk-"
_NODE_MODULES = (
    ROOT / ".cache" / "cli" / "node_modules",
    ROOT / ".cache" / "sdk" / "node_modules",
    ROOT / "node_modules",
)


def run(rounds: int = ROUNDS, cli: Path | None = None) -> Result:
    """Measure every SDK that is installed here.

    Args:
        rounds: How often each side is measured.
        cli: The Copilot CLI; by default looked for as ``serve --spawn`` does.

    Raises:
        BenchError: The CLI or the Python SDK is missing, or a client failed.
    """
    try:
        binary = asyncio.run(locate_cli(str(cli.resolve()) if cli else DEFAULT_NAME))
    except StartupError as error:
        raise BenchError(str(error)) from error
    clients = _clients(binary.path)
    result = Result(
        machine.now(),
        {**machine.describe(), "cli": binary.version},
        {"rounds": rounds, "turns": TURNS},
    )
    for name, (title, _) in clients.items():
        for step, meaning in STEPS.items():
            sides = {"direct": Measured(), "gateway": Measured()}
            result.scenarios.append(
                ScenarioResult(
                    f"{_PREFIX}{name}-{step}", f"{title}: {meaning}", {"sdk": name}, sides
                )
            )
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="copilot-gateway-sdk-"))
        _measure(result, binary.path, clients, stack, Path(directory))
    return result


def _measure(result: Result, binary: Path, clients: Clients, stack: ExitStack, here: Path) -> None:
    model = stack.enter_context(
        Process(
            [sys.executable, "-m", "gateway.testing.model_server", "--port", "0"],
            ready=r"listening on port (\d+)\n",
            log=here / "model.log",
        )
    )
    model_url = f"http://127.0.0.1:{model.port}/v1"
    cli_token = secrets.token_hex(16)
    replica = stack.enter_context(
        Process(
            [str(binary), "--headless", "--port", "0"],
            env={
                "COPILOT_HOME": str(here / "home"),
                "COPILOT_AUTO_UPDATE": "false",
                "COPILOT_OFFLINE": "true",
                "COPILOT_PROVIDER_BASE_URL": model_url,
                "COPILOT_MODEL": DEFAULT_MODEL,
                "COPILOT_CONNECTION_TOKEN": cli_token,
            },
            ready=r"listening on port (\d+)\n",
            log=here / "cli.log",
        )
    )
    address = f"127.0.0.1:{replica.port}"
    fleet = Fleet((address,), cli_token, secrets.token_hex(16), None, None, here)
    gateway = stack.enter_context(start_gateway(fleet))
    sides = {
        "direct": (address, cli_token),
        "gateway": (f"127.0.0.1:{gateway.port}", fleet.client_token),
    }
    for number in range(result.settings["rounds"]):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for side in order:
            for client, (_, command) in clients.items():
                print(f"{client} SDK, round {number + 1}: {side}", file=sys.stderr, flush=True)
                samples = _client(command, *sides[side], model_url)
                for step in STEPS:
                    scenario = result.scenario(f"{_PREFIX}{client}-{step}")
                    assert scenario is not None
                    scenario.targets[side].rounds.append(_round(samples[step]))


def _round(milliseconds: Sequence[float]) -> Round:
    ordered = sorted(milliseconds)
    return {
        "p50_us": statistics.median(ordered) * 1000,
        "p99_us": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1000,
    }


def _clients(binary: Path) -> Clients:
    if importlib.util.find_spec("copilot") is None:
        raise BenchError("the Python SDK is missing: pip install 'copilot-gateway[demo]'")
    clients = {"python": ("Python SDK", [sys.executable, str(_HERE / "sdk_client.py")])}
    node, entry = shutil.which("node"), _node_sdk(binary)
    if node and entry:
        clients["node"] = ("Node SDK", [node, str(_HERE / "sdk_client.mjs"), str(entry)])
    else:
        print("left out: Node SDK: needs node and @github/copilot-sdk", file=sys.stderr)
    return clients


def _node_sdk(binary: Path) -> Path | None:
    """The Node SDK's entry point: beside the CLI's npm package, or where `make setup` puts it."""
    beside = [folder for folder in binary.resolve().parents if folder.name == "node_modules"]
    for folder in (*beside, *_NODE_MODULES):
        entry = folder / "@github" / "copilot-sdk" / "dist" / "index.js"
        if entry.is_file():
            return entry
    return None


def _client(
    command: Sequence[str], address: str, token: str, model_url: str
) -> dict[str, list[float]]:
    try:
        done = subprocess.run(
            [*command, address, model_url, str(TURNS)],
            env={**os.environ, "COPILOT_CONNECTION_TOKEN": token},
            capture_output=True,
            text=True,
            check=False,
            timeout=CLIENT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{command[1]} did not finish within {CLIENT_SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise BenchError(f"{command[1]} failed on {address}:\n{done.stderr.strip()[-1500:]}")
    samples: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return samples


def is_sdk(result: Result) -> bool:
    """Whether ``result`` came from :func:`run`."""
    return bool(result.scenarios) and all(
        each.name.startswith(_PREFIX) for each in result.scenarios
    )


def text(result: Result) -> str:
    """The Markdown table of a result, with the conditions it was taken under."""
    rows = [["", "direct, ms", "through the gateway, ms", "gateway / direct"]]
    for scenario in result.scenarios:
        direct, gateway = scenario.targets["direct"], scenario.targets["gateway"]
        row = [scenario.title]
        for side in (direct, gateway):
            summary = summarize(figures(side.rounds, "p50_us"))
            row.append(f"{summary.median / 1000:.2f}" if summary else "-")
        row.append(report.ratio_cell(ratios(gateway.rounds, direct.rounds, "p50_us")))
        rows.append(row)
    return f"{report.table(rows)}\n\nCLI {result.machine['cli']}. {report.conditions(result)}"
