"""The ``demo`` command: the whole of it on the real CLI, and what it says when it cannot run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gateway.errors import EXIT_FAILURE, EXIT_OK, EXIT_UNAVAILABLE
from tests.support.stack import real_cli

COMMAND = (sys.executable, "-m", "gateway.cli", "demo")
SESSIONS = 6


def run(
    env: Mapping[str, str] | None = None, command: Sequence[str] = COMMAND, timeout: float = 90
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


@pytest.mark.real
def test_it_all_happens() -> None:
    done = run({"COPILOT_CLI": str(real_cli()), "GH_TOKEN": "hush", "COPILOT_GATEWAY_WRONG": "1"})
    text = done.stdout
    assert (done.returncode, done.stderr) == (EXIT_OK, ""), text
    assert "✗" not in text and "\x1b" not in text and "hush" not in text

    served = re.findall(r'✓ (\S{8}) +(cli-\d) +"The fence', text)
    again = re.findall(r"✓ (\S{8}) +(cli-\d) +2 messages in its history, tool painted", text)
    assert len(served) == len(again) == SESSIONS
    assert {one for one, _ in served} == {one for one, _ in again}
    assert {replica for _, replica in served} == {"cli-0", "cli-1"}

    assert "-32002: Authentication failed" in text
    assert "acme/ann    lists 6 sessions" in text
    assert "globex/bob  lists 0 sessions" in text
    assert text.count("Session not found") == 2
    assert "got SIGKILL" in text and "up again" in text
    for pid in re.findall(r"pid (\d+)", text):
        assert not Path(f"/proc/{pid}/exe").exists(), f"{pid} still runs"


def test_a_missing_cli_is_one_line(tmp_path: Path) -> None:
    done = run({"COPILOT_CLI": str(tmp_path / "nothing")})
    assert (done.returncode, done.stdout) == (EXIT_UNAVAILABLE, "")
    assert done.stderr.startswith(f"copilot-gateway: no Copilot CLI at {tmp_path}/nothing")
    assert "npm install -g @github/copilot" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_sdk_is_one_line() -> None:
    script = (
        "import sys; sys.modules['copilot'] = None; "
        "from gateway.cli.main import main; sys.exit(main(['demo']))"
    )
    done = run(command=[sys.executable, "-c", script])
    assert (done.returncode, done.stdout) == (EXIT_UNAVAILABLE, "")
    assert done.stderr.startswith("copilot-gateway: the demo speaks through the Copilot SDK")
    assert "pip install 'github-copilot-sdk" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_step_that_fails_is_shown_with_the_log(tmp_path: Path) -> None:
    broken = tmp_path / "copilot"
    broken.write_text(
        '#!/bin/sh\ncase "$1" in --version) echo 1.0.102;; --help) ;; *) echo no luck >&2; exit 9;;'
        " esac\n"
    )
    broken.chmod(0o755)
    done = run({"COPILOT_CLI": str(broken)})
    assert (done.returncode, done.stderr) == (EXIT_FAILURE, "")
    assert "✗ the gateway did not start" in done.stdout
    assert "exit status 9: no luck" in done.stdout
    assert "All of this has just happened" not in done.stdout
