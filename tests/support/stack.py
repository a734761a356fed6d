"""The real Copilot CLI as a test peer: finding, starting, stopping, killing and restarting it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import Self

from gateway.io.cli_binary import resolve_native
from gateway.testing.model_server import DEFAULT_MODEL
from tests.support.rpc import RpcClient

REPOSITORY = Path(__file__).resolve().parents[2]
INSTALLED_CLI = (
    REPOSITORY / ".cache" / "cli" / "node_modules" / "@github" / "copilot-linux-x64" / "copilot"
)
START_TIMEOUT = 60.0
"""Seconds for the CLI to listen; it takes 0.4 s when the machine is idle."""

_READY = re.compile(r"listening on port (\d+)")


class CliMissingError(Exception):
    """The real CLI is not installed; a test that needs it fails with this message."""


def real_cli() -> Path:
    """Return the real CLI's binary: ``COPILOT_CLI``, else on ``PATH``, else in the cache.

    The native one: npm's wrapper passes no signal on, so what it started would go on.

    Raises:
        CliMissingError: there is none.
    """
    configured = os.environ.get("COPILOT_CLI")
    if configured:
        path = Path(configured)
        if not path.is_file():
            raise CliMissingError(f"COPILOT_CLI={configured} is not a file")
        return resolve_native(path)
    found = shutil.which("copilot")
    if found:
        return resolve_native(Path(found))
    if INSTALLED_CLI.is_file():
        return INSTALLED_CLI
    raise CliMissingError(
        "the real Copilot CLI is needed: run `make setup`, or set COPILOT_CLI to its binary"
    )


def cli_environment(
    home: Path, model_url: str | None = None, token: str | None = None
) -> dict[str, str]:
    """Return the environment of a CLI that needs neither network nor credentials.

    Args:
        home: its ``COPILOT_HOME``.
        model_url: base URL of the model endpoint, or None for none.
        token: its connection token, or None for none.
    """
    keep = ("PATH", "HOME", "LANG", "TMPDIR")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    environment |= {
        "COPILOT_HOME": str(home),
        "COPILOT_AUTO_UPDATE": "false",
        "COPILOT_OFFLINE": "true",
        "COPILOT_MODEL": DEFAULT_MODEL,
    }
    if model_url is not None:
        environment["COPILOT_PROVIDER_BASE_URL"] = model_url
    if token is not None:
        environment["COPILOT_CONNECTION_TOKEN"] = token
    return environment


class RealCli:
    """One real headless CLI.

    Attributes:
        name: for humans.
        home: its ``COPILOT_HOME``; two CLIs given one share storage.
        host: always loopback.
        port: the port it listens on; kept over restarts.
        output: its last lines of output.
    """

    def __init__(
        self,
        home: Path,
        *,
        name: str = "cli-0",
        model_url: str | None = None,
        token: str | None = None,
    ) -> None:
        self.name = name
        self.home = home
        self.token = token
        self.host = "127.0.0.1"
        self.port = 0
        self.output: deque[str] = deque(maxlen=200)
        self._model_url = model_url
        self._process: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def pid(self) -> int:
        """The process id of the running CLI."""
        assert self._process is not None, "not running"
        return self._process.pid

    async def start(self) -> None:
        """Start on the port of the last run, or on any free one.

        Raises:
            CliMissingError: there is no binary.
            AssertionError: it did not come to listen.
        """
        binary = real_cli()
        self.home.mkdir(parents=True, exist_ok=True)
        work = self.home / "work"
        work.mkdir(exist_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            str(binary),
            "--headless",
            "--port",
            str(self.port),
            env=cli_environment(self.home, self._model_url, self.token),
            cwd=work,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT):
                self.port = await self._ready(self._process.stdout)
        except (TimeoutError, EOFError) as error:
            await self.stop()
            raise AssertionError(f"{binary} did not listen: {list(self.output)}") from error
        self._drain = asyncio.create_task(
            self._keep_output(self._process.stdout), name=f"{self.name}-output"
        )

    async def _ready(self, stdout: asyncio.StreamReader) -> int:
        while line := await stdout.readline():
            self.output.append(line.decode(errors="replace").rstrip())
            if match := _READY.search(self.output[-1]):
                return int(match[1])
        raise EOFError

    async def _keep_output(self, stdout: asyncio.StreamReader) -> None:
        while line := await stdout.readline():
            self.output.append(line.decode(errors="replace").rstrip())

    async def stop(self) -> None:
        """Stop it politely; idempotent."""
        await self._signal(signal.SIGTERM)

    async def kill(self) -> None:
        """End it as a crash would: nothing is flushed, peers see the connection break."""
        await self._signal(signal.SIGKILL)

    async def restart(self) -> None:
        """Start again with the same home on the same port."""
        await self.stop()
        await self.start()

    def freeze(self) -> None:
        """Stop its process: it accepts (the kernel does) and never answers."""
        os.kill(self.pid, signal.SIGSTOP)
        while not self._all_threads_stopped():
            time.sleep(0.001)

    def _all_threads_stopped(self) -> bool:
        stats = Path(f"/proc/{self.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in stats)

    def unfreeze(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    async def connect(self, **handshake: object) -> RpcClient:
        """Open a connection and perform the handshake."""
        return await RpcClient.connect(
            self.host, self.port, token=self.token, handshake=dict(handshake)
        )

    async def _signal(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.send_signal(number)
            if number is not signal.SIGKILL:
                process.send_signal(signal.SIGCONT)  # in case it is frozen
                try:
                    async with asyncio.timeout(10):
                        await process.wait()
                except TimeoutError:
                    process.kill()
        await process.wait()
        if self._drain is not None:
            await self._drain
            self._drain = None


def fake_cli_executable(directory: Path) -> Path:
    """Write a program that runs the fake CLI with the real one's command line; return its path."""
    path = directory / "copilot"
    path.write_text(
        "#!/bin/sh\n"
        f'PYTHONPATH="{REPOSITORY}" exec "{sys.executable}" -m tests.support.fake_cli "$@"\n'
    )
    path.chmod(0o755)
    return path
