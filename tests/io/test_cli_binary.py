"""Finding the CLI: where it is looked for, npm's wrapper, and what does not run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gateway.errors import EXIT_UNAVAILABLE, StartupError
from gateway.io import cli_binary
from gateway.io.cli_binary import find_cli, locate_cli, probe_cli, resolve_native
from tests.io.standin import make_standin


@pytest.fixture(autouse=True)
def no_checkout_cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli_binary, "LOCAL_CLI", tmp_path / "none")


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return make_standin(path)


def test_order_of_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explicit = executable(tmp_path / "a/cli")
    by_env = executable(tmp_path / "b/cli")
    on_path = executable(tmp_path / "c/copilot")
    local = executable(tmp_path / "d/copilot")
    monkeypatch.setattr(cli_binary, "LOCAL_CLI", local)
    env = {"COPILOT_CLI": str(by_env), "PATH": str(on_path.parent)}
    assert find_cli(str(explicit), env) == explicit
    assert find_cli(env=env) == by_env
    env.pop("COPILOT_CLI")
    assert find_cli(env=env) == on_path
    assert find_cli(env={"PATH": str(tmp_path)}) == local


def test_configured_name_is_looked_up_on_path_only(tmp_path: Path) -> None:
    named = executable(tmp_path / "bin/copilot-next")
    env = {"COPILOT_CLI": str(executable(tmp_path / "other")), "PATH": str(named.parent)}
    assert find_cli("copilot-next", env) == named


@pytest.mark.parametrize(
    ("configured", "env"),
    [
        ("copilot", {"PATH": ""}),
        ("./no/such/copilot", {"PATH": ""}),
        ("copilot", {"PATH": "", "COPILOT_CLI": "/no/such/copilot"}),
        ("other-name", {"PATH": ""}),
    ],
)
def test_missing_says_how_to_get_it(configured: str, env: dict[str, str]) -> None:
    with pytest.raises(StartupError) as caught:
        find_cli(configured, env)
    message = str(caught.value)
    assert "npm install -g @github/copilot" in message
    assert "spawn.binary" in message
    assert "\n" not in message
    assert caught.value.exit_status == EXIT_UNAVAILABLE


def test_not_executable(tmp_path: Path) -> None:
    path = tmp_path / "copilot"
    path.write_text("#!/bin/sh\n")
    with pytest.raises(StartupError, match="not executable"):
        find_cli(str(path), {})


def npm_tree(root: Path, package: str, *, nested: bool) -> tuple[Path, Path]:
    """Lay out what npm installs; return the ``.bin`` link and the native binary."""
    modules = root / "node_modules"
    wrapper = executable(modules / "@github/copilot/npm-loader.js")
    where = modules / "@github/copilot/node_modules" if nested else modules
    native = executable(where / "@github" / package / "copilot")
    link = modules / ".bin/copilot"
    link.parent.mkdir()
    link.symlink_to("../@github/copilot/npm-loader.js")
    assert link.resolve() == wrapper
    return link, native


@pytest.mark.parametrize("nested", [False, True], ids=["hoisted", "nested"])
@pytest.mark.parametrize(
    ("machine", "libc", "package"),
    [
        ("x86_64", "glibc", "copilot-linux-x64"),
        ("aarch64", "glibc", "copilot-linux-arm64"),
        ("x86_64", "", "copilot-linuxmusl-x64"),
        ("x86_64", "", "copilot-linux-x64"),
    ],
)
def test_npm_wrapper_gives_the_native_binary(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    libc: str,
    package: str,
    nested: bool,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.libc_ver", lambda: (libc, ""))
    link, native = npm_tree(tmp_path, package, nested=nested)
    assert resolve_native(link) == native


def test_wrapper_without_a_native_binary_is_used_itself(tmp_path: Path) -> None:
    link, _ = npm_tree(tmp_path, "copilot-plan9-mips", nested=False)
    assert resolve_native(link) == link


def test_other_programs_are_left_alone(tmp_path: Path) -> None:
    path = executable(tmp_path / "copilot")
    assert resolve_native(path) == path


async def test_probe(tmp_path: Path) -> None:
    found = await probe_cli(executable(tmp_path / "copilot"))
    assert (found.version, found.no_auto_update) == ("9.8.7", True)


async def test_probe_leaves_the_real_home_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "copilot"
    path.write_text('#!/bin/sh\ntouch "$COPILOT_HOME/seen"\necho 1.2.3\n')
    path.chmod(0o755)
    monkeypatch.setenv("COPILOT_HOME", str(tmp_path))
    await probe_cli(path)
    assert not (tmp_path / "seen").exists()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("#!/bin/sh\necho broken; exit 3\n", "exit status 3, it said: broken"),
        ("#!/bin/sh\necho hello\n", "exit status 0, it said: hello"),
        ("#!/bin/sh\n", "it said: nothing"),
        ("#!/no/such/interpreter\n", "cannot run"),
        ("\x7fELF nonsense", "cannot run"),
    ],
)
async def test_unusable_is_one_clear_line(tmp_path: Path, script: str, expected: str) -> None:
    path = tmp_path / "copilot"
    path.write_text(script)
    path.chmod(0o755)
    with pytest.raises(StartupError) as caught:
        await locate_cli(str(path))
    message = str(caught.value)
    assert expected in message
    assert str(path) in message
    assert "npm install -g @github/copilot" in message
    assert "\n" not in message


async def test_probe_gives_up_on_a_binary_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_binary, "PROBE_TIMEOUT", 0.2)
    path = tmp_path / "copilot"
    path.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    path.chmod(0o755)
    with pytest.raises(StartupError, match="did not answer"):
        await probe_cli(path)
    pid_file = tmp_path / "pid"
    if pid_file.exists() and (pid := pid_file.read_text().strip()):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.real
async def test_real_cli_by_way_of_its_wrapper() -> None:
    found = shutil.which("copilot") or str(
        Path(__file__).parents[2] / ".cache/cli/node_modules/.bin/copilot"
    )
    native = resolve_native(Path(found))
    assert native.read_bytes()[:4] == b"\x7fELF"
    assert (await probe_cli(native)).no_auto_update
