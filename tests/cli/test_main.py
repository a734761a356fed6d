"""The command line: usage, exit status, one-line errors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gateway.cli import main as cli
from gateway.cli import serve
from gateway.config.settings import REPLICAS, SETTINGS
from gateway.errors import EXIT_FAILURE, EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE, StartupError


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("COPILOT_GATEWAY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_version(capsys):
    assert cli.main(["--version"]) == EXIT_OK
    assert capsys.readouterr().out.startswith("copilot-gateway 0.")


@pytest.mark.parametrize(
    "argv", [[], ["nope"], ["serve", "--nope"], ["serve", "--work", "2"], ["token"], ["check", "x"]]
)
def test_wrong_usage_is_2(argv, capsys):
    assert cli.main(argv) == EXIT_USAGE
    captured = capsys.readouterr()
    assert "usage: copilot-gateway" in captured.err and captured.out == ""


def test_every_flag_of_a_setting_is_in_the_help(capsys):
    assert cli.main(["serve", "--help"]) == EXIT_OK
    text = capsys.readouterr().out
    for one in [*SETTINGS.values(), REPLICAS]:
        if one.flag:
            assert one.flag in text and f"[{one.name}]" in "".join(text.split())


# --- check ----------------------------------------------------------------------------------------


def test_check_accepts_a_good_configuration(capsys):
    assert cli.main(["check", "--spawn", "2"]) == EXIT_OK
    assert capsys.readouterr().out == "configuration ok\n"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--spawn", "x"], "copilot-gateway: --spawn must be a whole number"),
        ([], "copilot-gateway: no replicas"),
        (["--replica", "a=b"], "copilot-gateway: --replica must be [NAME=]HOST:PORT"),
        (
            ["--spawn", "1", "--auth", "none", "--listen", "0.0.0.0:4321"],
            "copilot-gateway: auth.mode = none lets anyone who reaches 0.0.0.0:4321",
        ),
        (["--config", "/nope.toml"], "copilot-gateway: cannot read /nope.toml"),
    ],
)
@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_wrong_configuration_is_2_and_one_line(command, argv, expected, capsys):
    assert cli.main([command, *argv]) == EXIT_USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(expected)
    assert captured.err.count("\n") == 1


def test_repeated_flags_add_up(capsys):
    argv = [
        "--listen",
        "127.0.0.1:1",
        "--listen",
        "[::1]:2",
        "--replica",
        "a:1",
        "--replica",
        "x=b:2",
    ]
    assert cli.main(["check", "--print", *argv]) == EXIT_OK
    text = capsys.readouterr().out
    assert 'listen = ["127.0.0.1:1", "[::1]:2"]  # flag' in text
    assert 'name = "a:1"' in text and 'name = "x"' in text


def test_the_file_may_be_named_by_the_environment(monkeypatch, tmp_path, capsys):
    file = tmp_path / "gateway.toml"
    file.write_text("[spawn]\ncount = 3\n")
    monkeypatch.setenv("COPILOT_GATEWAY_CONFIG", str(file))
    assert cli.main(["check", "--print"]) == EXIT_OK
    assert "count = 3  # file" in capsys.readouterr().out


def test_check_print_shows_no_secret_and_is_a_configuration_itself(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COPILOT_GATEWAY_TOKEN", "hush-static")
    monkeypatch.setenv("COPILOT_GATEWAY_REPLICA_TOKEN", "hush-replica")
    monkeypatch.setenv("COPILOT_GATEWAY_SPAWN_ENV", "KEY=hush-env")
    argv = ["--replica", "a:1", "--registry", "redis://u:hush-url@h"]
    assert cli.main(["check", "--print", *argv]) == EXIT_OK
    text = capsys.readouterr().out
    assert "hush" not in text
    assert "# COPILOT_GATEWAY_TOKEN is set" in text
    file = tmp_path / "again.toml"
    file.write_text(text.removesuffix("configuration ok\n"))
    assert cli.main(["check", "--config", str(file)]) == EXIT_OK


# --- what main does with the outcome of a command -------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "status", "line"),
    [
        (0, EXIT_OK, ""),
        (1, EXIT_FAILURE, ""),
        (
            StartupError("port 1 is taken", EXIT_UNAVAILABLE),
            EXIT_UNAVAILABLE,
            "copilot-gateway: port 1 is taken\n",
        ),
        (
            StartupError("bad\n\x1b[2Jname"),
            EXIT_UNAVAILABLE,
            "copilot-gateway: bad\\n\\x1b[2Jname\n",
        ),
        (KeyboardInterrupt(), EXIT_FAILURE, ""),
        (KeyError("x"), EXIT_FAILURE, "copilot-gateway: internal error: KeyError: 'x'\n"),
    ],
)
def test_outcomes(monkeypatch, capsys, outcome, status, line):
    def run(_: object) -> int:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(serve, "run_check", run)
    assert cli.main(["check"]) == status
    assert capsys.readouterr().err == line


def test_a_reader_that_leaves_early_is_no_traceback():
    # The pipe's reading end is closed before the program writes to it.
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", "check", "--print", "--spawn", "1"],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (EXIT_FAILURE, b"")


def test_small_commands_do_not_load_the_server(tmp_path):
    script = (
        "import sys; from gateway.cli.main import main; "
        f"main(['token', 'list', '--token-file', {str(tmp_path / 'tokens.json')!r}]); "
        "print([m for m in ('aiohttp', 'redis', 'opentelemetry', 'uvloop') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
