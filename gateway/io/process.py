"""A child process that cannot outlive the gateway: the parent's side of :mod:`gateway.io.reaper`.

The reaper runs the command; this module starts the reaper, reads what both of them say and asks
for the end. Its output is drained always, so that a child never blocks on a full pipe.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REAPER = str(Path(__file__).with_name("reaper.py"))
_READ_SIZE = 65536
# Characters of one output line that are kept; a CLI may print a whole stack or document in one.
MAX_LINE = 2000
# Beyond the grace period, the seconds the reaper has to kill what is left and report.
_REAPER_MARGIN = 8.0
# Seconds to read what the pipes still hold once the reaper has ended.
_DRAIN_TIMEOUT = 1.0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended.

    Attributes:
        code: exit status, or None if a signal ended it.
        signal: number of the signal, or None.
    """

    code: int | None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by signal {self.signal}"
        return f"exit status {self.code}"


class LineSplitter:
    """Cuts a byte stream into text lines of bounded length; what is too long is cut off."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._pending = bytearray()  # never longer than the limit plus one
        self._skipping = False  # the rest of a line that was cut off

    def feed(self, data: bytes) -> list[str]:
        """Take more bytes; return the lines they complete, without line ends or empty ones."""
        *complete, rest = data.split(b"\n")
        lines = []
        for part in complete:
            self._append(part)
            lines.extend(self.flush())
        self._append(rest)
        return lines

    def flush(self) -> list[str]:
        """Return what is pending as a line, at the end of the stream."""
        line = bytes(self._pending[: self._limit]).decode("utf-8", "replace").rstrip()
        if self._skipping:
            line += " [...]"
        self._pending.clear()
        self._skipping = False
        return [line] if line else []

    def _append(self, part: bytes) -> None:
        room = self._limit - len(self._pending)
        self._pending += part[:room]
        self._skipping = self._skipping or len(part) > room


class GuardedProcess:
    """One command under a reaper.

    Attributes:
        pid: pid of the command itself, not of its reaper.
    """

    def __init__(
        self,
        *,
        reaper: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pid: int,
        grace: float,
        on_line: Callable[[str, str], None],
    ) -> None:
        self.pid = pid
        self._reaper = reaper
        self._reader = reader
        self._writer = writer
        self._grace = grace
        self._on_line = on_line
        self._watcher = asyncio.create_task(self._watch(), name=f"watch-{pid}")

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None,
        grace: float,
        on_line: Callable[[str, str], None],
        lock_fd: int | None = None,
    ) -> GuardedProcess:
        """Start a command.

        Args:
            argv: absolute path of the executable, and its arguments. Visible to all users of the
                machine: no secrets.
            env: the whole environment.
            cwd: working directory, or None for the gateway's own.
            grace: seconds between SIGTERM and SIGKILL when it is stopped.
            on_line: called as ``on_line("stdout" | "stderr", text)`` with each line it prints.
            lock_fd: a locked file that the reaper keeps open until the command and all its
                descendants are gone, even if the gateway is not there any more to see it.

        Raises:
            OSError: it could not be executed.
        """
        ours, theirs = socket.socketpair()
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        try:
            reaper = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                _REAPER,
                str(grace),
                str(os.getpid()),
                str(-1 if lock_fd is None else lock_fd),
                *argv,
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                pass_fds=() if lock_fd is None else (lock_fd,),
            )
            theirs.close()  # the reaper's copy is the only one: its end is our end of file
            word, _, number = (await reader.readline()).decode().partition(" ")
        except BaseException:
            writer.close()
            raise
        finally:
            theirs.close()
        process = cls(
            reaper=reaper,
            reader=reader,
            writer=writer,
            pid=int(number) if word == "pid" else 0,
            grace=grace,
            on_line=on_line,
        )
        if word == "pid":
            return process
        await process.wait()
        code = int(number or errno.EIO)
        raise OSError(code, os.strerror(code), argv[0])

    def terminate(self) -> None:
        """Ask for the end: SIGTERM, then SIGKILL after the grace period; returns at once."""
        if not self._writer.is_closing():
            self._writer.write_eof()

    async def stop(self) -> Exit:
        """End it, within a bounded time, and return how it ended."""
        self.terminate()
        waiter = asyncio.ensure_future(self.wait())
        done, _ = await asyncio.wait({waiter}, timeout=self._grace + _REAPER_MARGIN)
        if not done:
            self.kill()
        return await waiter

    def kill(self) -> None:
        """Kill it at once, by killing its reaper: the kernel kills the command with it."""
        try:
            self._reaper.kill()
        except ProcessLookupError:
            pass

    async def wait(self) -> Exit:
        """Wait until it has ended, all its descendants with it, and return how it ended."""
        return await asyncio.shield(self._watcher)

    async def _watch(self) -> Exit:
        drains: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._drain(name, stream), name=f"{name}-{self.pid}")
            for name, stream in (("stdout", self._reaper.stdout), ("stderr", self._reaper.stderr))
            if stream is not None
        ]
        try:
            result: Exit | None = None
            while line := await self._reader.readline():
                word, _, number = line.decode().partition(" ")
                if word == "exit":
                    result = Exit(int(number))
                elif word == "signal":
                    result = Exit(None, int(number))
            # Bounded: a descendant that could not be killed may keep the pipes open for ever.
            drains.append(asyncio.create_task(self._reaper.wait(), name=f"reaper-{self.pid}"))
            await asyncio.wait(drains, timeout=_DRAIN_TIMEOUT)
            # A reaper that ended without a report was killed, and its command with it.
            return result or Exit(None, -(self._reaper.returncode or -signal.SIGKILL))
        finally:
            for task in drains:
                task.cancel()
            self._writer.close()

    async def _drain(self, name: str, stream: asyncio.StreamReader) -> None:
        splitter = LineSplitter()
        while data := await stream.read(_READ_SIZE):
            for line in splitter.feed(data):
                self._on_line(name, line)
        for line in splitter.flush():
            self._on_line(name, line)
