"""The command as a whole: processes, model server, reports, exit status."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.cli.main import main
from tests.support.fake_cli import FakeCli
from tests.support.fake_cli.session import Session
from tests.support.sessions import FAKE_MODEL_URL
from tests.support.stack import RealCli
from tests.support.wait import TIMEOUT, eventually


@dataclass
class Outcome:
    """What a command left behind."""

    status: int | None
    out: str
    err: str


async def start(
    *arguments: str | Path, token: str | None = "replica-token"
) -> asyncio.subprocess.Process:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COPILOT_GATEWAY")}
    if token is not None:
        environment["COPILOT_GATEWAY_TOKEN"] = token
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway.cli",
        "loadtest",
        *map(str, arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def finish(process: asyncio.subprocess.Process) -> Outcome:
    async with asyncio.timeout(2 * TIMEOUT):
        out, err = await process.communicate()
    return Outcome(process.returncode, out.decode(), err.decode())


async def test_two_processes_share_a_run_and_reports_are_written(
    fake_cli: FakeCli, tmp_path: Path
) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text("[mix]\nturn = 4\nping = 1\n[conversation]\ntool_use = 0.3\n")
    token = tmp_path / "token"
    token.write_text("replica-token\n")
    figures, page = tmp_path / "run.json", tmp_path / "run.html"
    process = await start(
        *("--url", f"http://{fake_cli.host}:{fake_cli.port}", "--model-url", FAKE_MODEL_URL),
        *("--connections", "4", "--processes", "2", "--steps", "24", "--scenario", scenario),
        *("--token-file", token, "--fail-if", "p99>20s", "--json", figures, "--html", page),
        token=None,
    )
    outcome = await finish(process)
    assert (outcome.status, outcome.out.splitlines()[-1]) == (0, "passed"), outcome
    values = json.loads(figures.read_bytes())
    assert values["load"]["processes"] == 2
    assert sum(tick["steps"] for tick in values["timeline"]) == 24
    assert values["counts"]["sessions"] >= 4
    assert values["faults"] == {}
    assert page.read_text().startswith("<!doctype html>")
    assert {call.connection for call in fake_cli.received("session.create")} == {1, 2, 3, 4}


async def test_broken_answers_fail_a_run(
    fake_cli: FakeCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Session._conversation
    monkeypatch.setattr(Session, "_conversation", lambda session: whole(session)[-1:])
    process = await start(
        *("--url", f"{fake_cli.host}:{fake_cli.port}", "--model-url", FAKE_MODEL_URL),
        *("--connections", "1", "--steps", "3", "--quiet"),
    )
    outcome = await finish(process)
    assert outcome.status == 1, outcome
    assert "2  forked session" in outcome.out
    assert outcome.out.splitlines()[-1] == "FAILED: 2 broken answers"
    assert outcome.err == ""


async def test_an_interrupt_ends_a_run_in_order(fake_cli: FakeCli) -> None:
    process = await start(
        *("--url", f"{fake_cli.host}:{fake_cli.port}", "--model-url", FAKE_MODEL_URL),
        *("--connections", "2", "--duration", "1h"),
    )
    await eventually(lambda: len(fake_cli.received("session.send")) > 4)
    process.send_signal(signal.SIGINT)
    outcome = await finish(process)
    assert (outcome.status, outcome.out.splitlines()[-1]) == (0, "passed"), outcome
    await eventually(lambda: not fake_cli.connections)
    assert fake_cli.storage.sessions() == []


async def test_workers_do_not_outlive_a_killed_runner(fake_cli: FakeCli) -> None:
    process = await start(
        *("--url", f"{fake_cli.host}:{fake_cli.port}", "--model-url", FAKE_MODEL_URL),
        *("--connections", "2", "--duration", "1h"),
    )
    await eventually(lambda: len(fake_cli.received("session.send")) > 4)
    process.kill()
    await finish(process)
    await eventually(lambda: not fake_cli.connections)


async def test_a_target_that_cannot_be_reached_is_exit_status_3(fake_cli: FakeCli) -> None:
    url = f"{fake_cli.host}:{fake_cli.port}"
    wrong = await finish(await start("--url", url, "--connections", "2", token="wrong-secret"))
    assert wrong.status == 3
    assert wrong.err == (
        f"copilot-gateway: cannot connect to {url}: -32002 AUTHENTICATION_FAILED\n"
    )
    await fake_cli.stop()
    refused = await finish(await start("--url", url, "--connections", "2"))
    assert (refused.status, refused.out) == (3, "")
    assert refused.err.count("\n") == 1
    assert f"cannot connect to {url}" in refused.err


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ([], "--url"),
        (["--url", "nowhere"], "--url"),
        (["--url", "h:1", "--fail-if", "p99"], "--fail-if"),
        (["--url", "h:1", "--stages", "10s"], "--stages"),
        (["--url", "h:1", "--stages", "10s:50"], "--connections"),
        (["--url", "h:1", "--rate", "5", "--stages", "10s:5"], "--rate 0"),
        (["--url", "h:1", "--rate", "0"], "--rate"),
        (["--url", "h:1", "--rate", "-1"], "--rate"),
        (["--url", "h:1", "--duration", "0s"], "--duration"),
        (["--url", "h:1", "--duration", "soon"], "--duration"),
        (["--url", "h:1", "--warmup", "30s"], "--warmup"),
        (["--url", "h:1", "--poisson"], "--poisson"),
        (["--url", "h:1", "--connections", "0"], "--connections"),
        (["--url", "h:1", "--processes", "11"], "--processes"),
        (["--url", "h:1", "--ca", "ca.pem"], "--tls"),
        (["--url", "h:1", "--scenario", "/nowhere.toml"], "/nowhere.toml"),
        (["--url", "h:1", "--token-file", "/nowhere"], "--token-file"),
        (["--url", "h:1", "--json", "/nowhere/x.json"], "/nowhere/x.json"),
        (["--url", "h:1", "--with-model", "--model-url", "http://h/v1"], "--model-url"),
    ],
)
def test_wrong_usage_is_exit_status_2_and_names_the_flag(
    arguments: list[str], culprit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["loadtest", *arguments]) == 2
    assert culprit in capsys.readouterr().err


@pytest.mark.real
async def test_the_real_cli_passes(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(
        "[mix]\nturn = 6\nresume = 1\nhistory = 1\nping = 1\n"
        '[conversation]\nturns = "2..4"\ntool_use = 0.3\n[answer]\nchunks = 5\n'
    )
    figures = tmp_path / "run.json"
    async with RealCli(tmp_path / "home", token="t", model_url=FAKE_MODEL_URL) as cli:
        process = await start(
            *("--url", f"{cli.host}:{cli.port}", "--with-model", "--scenario", scenario),
            *("--connections", "2", "--sessions", "2", "--steps", "40", "--json", figures),
            *("--fail-if", "errors>0", "--fail-if", "throughput<1/s"),
            token="t",
        )
        outcome = await finish(process)
    assert outcome.status == 0, outcome
    values = json.loads(figures.read_bytes())
    assert {"turn", "resume", "history", "ping", "tool", "delete"} <= values["actions"].keys()
    assert values["faults"] == {}
