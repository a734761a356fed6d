"""The quick start: what it prints, and that what it prints works when it is pasted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli.quickstart import GITHUB_VARIABLES, banner, missing_credentials, snippet
from gateway.testing.model_server import ModelServer
from tests.support.stack import RealCli

REPOSITORY = Path(__file__).parents[2]
TOKEN = "not-a-secret"


def test_snippet_is_five_lines_of_python() -> None:
    code = snippet(
        "127.0.0.1:4321", TOKEN, {"GH_TOKEN": "x", "COPILOT_PROVIDER_BASE_URL": "http://x"}
    )
    assert len([line for line in code.splitlines() if line]) == 5
    assert max(map(len, code.splitlines())) <= 130
    assert "provider" not in code
    compile(code, "snippet", "exec")


def test_snippet_names_the_provider_but_not_its_key() -> None:
    env = {"COPILOT_PROVIDER_BASE_URL": "http://x/v1", "COPILOT_PROVIDER_API_KEY": "sk-1"}
    code = snippet("127.0.0.1:4321", TOKEN, env)
    assert '"base_url": "http://x/v1"' in code
    assert "sk-1" not in code
    compile(code, "snippet", "exec")


def test_banner_names_what_is_needed() -> None:
    env = {"COPILOT_GATEWAY_TOKEN": TOKEN, "GH_TOKEN": "ghp_x"}
    text = banner(4321, env)
    assert "cli_url: 127.0.0.1:4321\n" in text
    assert f"token:   {TOKEN}\n" in text
    assert snippet("127.0.0.1:4321", TOKEN, env) in text
    assert "ghp_x" not in text
    assert "no access to a model" not in text


@pytest.mark.parametrize("name", [*GITHUB_VARIABLES, "COPILOT_PROVIDER_BASE_URL"])
def test_any_credential_will_do(name: str) -> None:
    assert missing_credentials({name: "x"}) == ""
    assert name in missing_credentials({name: ""})
    assert name in banner(1, {"COPILOT_GATEWAY_TOKEN": TOKEN})


@pytest.fixture
def python_with_a_fake_gateway(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment in which ``gateway.cli`` is a stand-in that reports what it was given."""
    package = tmp_path / "gateway"
    (package / "cli").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli/__init__.py").touch()
    source = (REPOSITORY / "gateway/cli/quickstart.py").read_text()
    (package / "cli/quickstart.py").write_text(source)
    (package / "cli/__main__.py").write_text(
        "import os, signal, sys, time\n"
        "def stop(*_):\n"
        "    print('stopped', flush=True)\n"
        "    os._exit(5)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print(os.getpid(), *sys.argv[1:], flush=True)\n"
        "print(os.environ['COPILOT_GATEWAY_TOKEN'], flush=True)\n"
        "print('copilot-gateway listening on port 7', flush=True)\n"
        "time.sleep(60)\n"
    )
    env = {key: value for key, value in os.environ.items() if key != "COPILOT_GATEWAY_TOKEN"}
    yield {**env, "PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize("given", ["", TOKEN])
def test_it_becomes_the_gateway(python_with_a_fake_gateway: dict[str, str], given: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.quickstart", "--log-level", "debug"],
        env={**python_with_a_fake_gateway, "COPILOT_GATEWAY_TOKEN": given},
        cwd=python_with_a_fake_gateway["PYTHONPATH"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first, token, ready = (process.stdout.readline().strip() for _ in range(3))
        assert first == (f"{process.pid} serve --spawn 2 --listen 127.0.0.1:4321 --log-level debug")
        assert ready == "copilot-gateway listening on port 7"
        assert token == given if given else len(token) >= 32
        for line in process.stdout:
            if line.startswith("token:"):
                assert line.split() == ["token:", token]
            if "Ctrl-C" in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "stopped\n"
        assert process.wait() == 5


@pytest.mark.real
async def test_snippet_talks_to_the_real_cli(tmp_path: Path) -> None:
    async with (
        ModelServer() as model,
        RealCli(tmp_path / "home", model_url=model.base_url, token=TOKEN) as cli,
    ):
        env = {"COPILOT_PROVIDER_BASE_URL": model.base_url, "COPILOT_PROVIDER_API_KEY": "k"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-i",  # as if pasted at the prompt
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **env},
        )
        code = snippet(f"127.0.0.1:{cli.port}", TOKEN, env)
        output, _ = await asyncio.wait_for(process.communicate(code.encode()), 60)
    assert b"Say hello!" in output
