"""Starting, placing and stopping the processes of a benchmark."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.results import BenchError

READY_SECONDS = 30.0
"""How long a process may take until it is ready; a gateway on a busy machine takes a few."""

STOP_SECONDS = 5.0


def placed(command: Sequence[str], cores: Sequence[int] | None) -> list[str]:
    """``command`` bound to ``cores`` and to our own life: it dies when we do."""
    prefix = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    if cores:
        prefix += ["taskset", "-c", ",".join(map(str, cores))]
    return [*prefix, *command]


class Process:
    """A server that is part of a benchmark. Use it as a context manager.

    Attributes:
        port: The port it announced, if it was started with a ready pattern.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cores: Sequence[int] | None = None,
        env: Mapping[str, str] | None = None,
        ready: str | None = None,
        log: Path,
    ) -> None:
        """Start ``command`` and wait until it is ready.

        Args:
            command: Program and arguments.
            cores: CPU cores to bind it to; ``None`` leaves it to the scheduler.
            env: Additional environment.
            ready: Pattern of the line on standard output that says it is ready; its first group is
                the port.
            log: File for standard error (and for standard output without ``ready``).

        Raises:
            BenchError: It did not start, or was not ready in time.
        """
        self.name = Path(command[0]).name
        self.port = 0
        self._log = log
        with log.open("ab") as stream:
            try:
                self._process = subprocess.Popen(
                    placed(command, cores),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if ready else stream,
                    stderr=stream,
                    env={**os.environ, **(env or {})},
                )
            except OSError as error:
                raise BenchError(f"cannot start {self.name}: {error.strerror}") from error
        if ready:
            try:
                self.port = self._await_line(re.compile(ready.encode()))
            except BaseException:
                self.stop()
                raise

    def _await_line(self, pattern: re.Pattern[bytes]) -> int:
        assert self._process.stdout is not None
        output, seen = self._process.stdout, b""
        deadline = time.monotonic() + READY_SECONDS
        os.set_blocking(output.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                if not selector.select(left):
                    continue
                chunk = output.read(4096)
                if not chunk:
                    raise BenchError(f"{self.name} ended before it was ready{self._tail()}")
                seen += chunk
                if match := pattern.search(seen):
                    return int(match[1])
        raise BenchError(f"{self.name} was not ready within {READY_SECONDS:.0f} s{self._tail()}")

    def _tail(self) -> str:
        text = self._log.read_text(errors="replace").strip()
        return f":\n{text[-1000:]}" if text else ""

    def await_port(self, port: int) -> None:
        """Wait until a TCP connection to ``port`` is accepted.

        Raises:
            BenchError: The process ended, or did not listen in time.
        """
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BenchError(f"{self.name} ended before it was ready{self._tail()}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                self.port = port
                return
        raise BenchError(f"{self.name} did not listen within {READY_SECONDS:.0f} s{self._tail()}")

    def pids(self) -> list[int]:
        """The process and all its descendants."""
        found = [self._process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    found += map(int, children.read_text().split())
                except OSError:
                    continue  # a thread that ended meanwhile
        return found

    def stop(self) -> None:
        """End the process: politely, then by force. Its descendants follow it."""
        family = self.pids()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                for pid in reversed(family):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def free_port() -> int:
    """A loopback port that nobody listens on, for programs that cannot pick one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
