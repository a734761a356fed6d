"""Finds the Copilot CLI on this machine and makes sure that it runs.

npm's ``copilot`` is a small Node program that starts the native binary of the platform package and
waits for it. A signal to it does not reach the native binary, so the native one is used directly
wherever it is found beside the wrapper.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import StartupError

ENV_CLI = "COPILOT_CLI"
DEFAULT_NAME = "copilot"
HOW_TO_GET_IT = (
    "install it with `npm install -g @github/copilot`, "
    f"or set spawn.binary or ${ENV_CLI} to its path"
)
# Where `make setup` puts it in a checkout of this repository.
LOCAL_CLI = Path(__file__).resolve().parents[2] / ".cache/cli/node_modules/.bin/copilot"
# Seconds. It takes 0.1 s; a cold disk and a loaded machine take longer.
PROBE_TIMEOUT = 30.0

_WRAPPER = "npm-loader.js"
_ARCHITECTURES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
_VERSION = re.compile(r"\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]*[0-9A-Za-z])?")


@dataclass(frozen=True, slots=True)
class CliBinary:
    """A Copilot CLI that was started once and answered.

    Attributes:
        path: absolute path of what is executed.
        version: what ``--version`` says, for example ``1.0.102``.
        no_auto_update: whether it takes the flag ``--no-auto-update``.
    """

    path: Path
    version: str
    no_auto_update: bool


async def locate_cli(
    configured: str = DEFAULT_NAME, env: Mapping[str, str] = os.environ
) -> CliBinary:
    """Find the CLI and try it.

    Args:
        configured: a path, or a name to be found on ``PATH``; nothing else is tried then. The
            default name also looks at :data:`ENV_CLI` first and in the checkout last.
        env: environment to look up :data:`ENV_CLI` and ``PATH`` in.

    Raises:
        StartupError: there is none, or it does not run; says how to get one.
    """
    return await probe_cli(resolve_native(find_cli(configured, env)))


def find_cli(configured: str = DEFAULT_NAME, env: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the CLI, as :func:`locate_cli` does, without running it.

    Raises:
        StartupError: there is none, or what was asked for does not exist or is not executable.
    """
    if os.sep in configured:
        return _checked(Path(configured), "spawn.binary")
    if configured == DEFAULT_NAME and env.get(ENV_CLI):
        return _checked(Path(env[ENV_CLI]), f"${ENV_CLI}")
    found = shutil.which(configured, path=env.get("PATH", os.defpath))
    if found:
        return Path(found).absolute()
    if configured == DEFAULT_NAME and os.access(LOCAL_CLI, os.X_OK):
        return LOCAL_CLI
    raise StartupError(f"no Copilot CLI `{configured}` on PATH: {HOW_TO_GET_IT}")


def resolve_native(path: Path) -> Path:
    """Return the native binary that npm's wrapper at ``path`` would start; else ``path`` itself."""
    real = path.resolve()
    if real.name != _WRAPPER:
        return path
    for folder in real.parents:
        for package in _platform_packages():
            native = folder / "node_modules" / "@github" / package / "copilot"
            if os.access(native, os.X_OK):
                return native
    return path


async def probe_cli(path: Path) -> CliBinary:
    """Run ``path --version`` and ``--help`` and return what it says about itself.

    Raises:
        StartupError: it does not run, fails, takes too long or is something else.
    """
    with tempfile.TemporaryDirectory(prefix="copilot-gateway-") as home:
        # A pinned binary may otherwise start a newer one it once downloaded.
        env = {**os.environ, "COPILOT_HOME": home, "COPILOT_AUTO_UPDATE": "false"}
        code, output = await _run(path, "--version", env)
        version = _VERSION.search(output)
        if code != 0 or version is None:
            said = " ".join(output.split())[:200] or "nothing"
            raise StartupError(
                f"{path} is not a usable Copilot CLI (`--version`: exit status {code}, "
                f"it said: {said}): {HOW_TO_GET_IT}"
            )
        _, help_text = await _run(path, "--help", env)
    return CliBinary(path, version.group(), "--no-auto-update" in help_text)


def _checked(path: Path, source: str) -> Path:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise StartupError(f"no Copilot CLI at {path} ({source}): {HOW_TO_GET_IT}")
    if not os.access(path, os.X_OK):
        raise StartupError(f"the Copilot CLI at {path} ({source}) is not executable")
    return path


def _platform_packages() -> Iterator[str]:
    """Yield the names of the platform packages that can run here, the best first."""
    arch = _ARCHITECTURES.get(platform.machine().lower(), platform.machine().lower())
    if sys.platform != "linux":
        yield f"copilot-{sys.platform}-{arch}"
        return
    if platform.libc_ver()[0] != "glibc":
        yield f"copilot-linuxmusl-{arch}"
    yield f"copilot-linux-{arch}"


async def _run(path: Path, argument: str, env: Mapping[str, str]) -> tuple[int, str]:
    """Run the binary with one argument; return its exit status and all that it printed."""
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            argument,
            env=dict(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise StartupError(
            f"cannot run the Copilot CLI {path}: {reason}: {HOW_TO_GET_IT}"
        ) from error
    try:
        output, _ = await asyncio.wait_for(process.communicate(), PROBE_TIMEOUT)
    except TimeoutError:
        raise StartupError(
            f"the Copilot CLI {path} did not answer `{argument}` within {PROBE_TIMEOUT:g} s"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode("utf-8", "replace")
