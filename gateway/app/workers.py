"""Workers in processes of their own, and the channel by which they are asked.

Main process and worker share a socket pair. On it travel pickled tuples behind a 4-byte length:
``(number, method, args)`` one way, ``(number, error, result)`` the other. The pair is private to
the two processes, so what comes from it is trusted. When the main process ends, however it ends,
its side closes and the worker ends too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from gateway.app.auditing import open_audit
from gateway.app.policies import secrets_of
from gateway.app.worker import Worker, WorkerControl
from gateway.config.settings import Settings
from gateway.core.stats import Stats
from gateway.errors import EXIT_FAILURE, EXIT_OK, StartupError
from gateway.io.allocator import keep_freed_memory
from gateway.io.audit import STDOUT
from gateway.io.logs import configure

log = logging.getLogger("gateway")

_LENGTH = struct.Struct(">I")
_START_TIMEOUT = 30.0


async def _send(writer: asyncio.StreamWriter, message: Any) -> None:
    data = pickle.dumps(message)
    writer.write(_LENGTH.pack(len(data)) + data)
    await writer.drain()


async def _receive(reader: asyncio.StreamReader) -> Any:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))  # noqa: S301 - see the module docstring


class WorkerProcess:
    """The main process's side: offers the methods of ``WorkerControl`` by :meth:`call`.

    Attributes:
        index: number of the worker, from 0.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._count = 0

    def __repr__(self) -> str:
        """Return a diagnosis."""
        pid = self._process.pid if self._process else None
        return f"<WorkerProcess {self.index} pid={pid} asked={len(self._asked)}>"

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    async def start(self, settings: Settings, sockets: Sequence[socket.socket]) -> None:
        """Start the process, let it accept clients on ``sockets`` and await that.

        Raises:
            StartupError: it could not start.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gateway.app.workers",
                str(theirs.fileno()),
                ",".join(str(sock.fileno()) for sock in sockets),
                pass_fds=[theirs.fileno(), *(sock.fileno() for sock in sockets)],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=None if settings.audit.path == STDOUT else asyncio.subprocess.DEVNULL,
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        await _send(self._writer, (self.index, settings))
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                error = await _receive(reader)
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
            raise StartupError(f"worker {self.index} did not start") from None
        if error is not None:
            raise StartupError(*error)
        self._reading = asyncio.create_task(self._read(reader), name=f"worker {self.index}")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                number, error, result = await _receive(reader)
                answer = self._asked.pop(number, None)
                if answer is None or answer.done():
                    continue
                if error is None:
                    answer.set_result(result)
                else:
                    answer.set_exception(error)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError(f"worker {self.index} has ended"))
        self._asked.clear()

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the worker's ``WorkerControl``.

        Raises:
            ConnectionError: the worker has ended.
        """
        if self._writer is None or self._reading is None or self._reading.done():
            raise ConnectionResetError(f"worker {self.index} has ended")
        self._count += 1
        number = self._count
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            await _send(self._writer, (number, method, args))
            return await answer
        finally:
            self._asked.pop(number, None)

    async def wait(self) -> int:
        """Return the exit status once the process has ended."""
        assert self._process is not None
        return await self._process.wait()

    async def close(self, patience: float) -> None:
        """End the process: by itself, or killed after ``patience`` seconds."""
        if self._writer is not None:
            self._writer.close()
        if self._process is not None and self._process.returncode is None:
            try:
                async with asyncio.timeout(patience):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


class LocalWorker:
    """A worker in the main process, with the interface of :class:`WorkerProcess`."""

    index = 0

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._control = WorkerControl(worker)

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of ``WorkerControl``."""
        return await getattr(self._control, method)(*args)

    async def close(self, patience: float) -> None:
        """End the worker."""
        await self._worker.close()


async def _serve(channel: socket.socket, sockets: Sequence[socket.socket]) -> int:
    """Run a worker for the main process at the other end of ``channel``."""
    reader, writer = await asyncio.open_connection(sock=channel)
    index, settings = await _receive(reader)
    configure(settings.log, secrets_of(settings))
    stats = Stats()
    try:
        audit = open_audit(settings, stats)
        worker = Worker(settings, audit, settings.server.state_dir, stats)
        await worker.start()
        await worker.listen(sockets)
    except StartupError as error:
        await _send(writer, (str(error), error.exit_status))
        return error.exit_status
    await _send(writer, None)
    log.info("worker started", extra={"worker": index, "pid": os.getpid()})
    control = WorkerControl(worker)
    answering: set[asyncio.Task[None]] = set()

    async def answer(number: int, method: str, args: tuple[Any, ...]) -> None:
        try:
            result, error = await getattr(control, method)(*args), None
        except Exception as raised:
            log.exception("worker could not do as asked")
            result, error = None, RuntimeError(f"{type(raised).__name__}: {raised}")
        await _send(writer, (number, error, result))

    try:
        while True:
            task = asyncio.create_task(answer(*await _receive(reader)))
            answering.add(task)
            task.add_done_callback(answering.discard)
    except (asyncio.IncompleteReadError, ConnectionError):
        # The main process has told us to end, or has ended.
        pass
    await worker.close()
    audit.close()
    return EXIT_OK


def main(arguments: Sequence[str]) -> int:
    """Run as ``python -m gateway.app.workers CHANNEL_FD SOCKET_FD,...``."""
    import signal  # noqa: PLC0415

    # Signals go to the main process, which tells the workers; a terminal sends them to all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    keep_freed_memory()
    channel = socket.socket(fileno=int(arguments[0]))
    sockets = [socket.socket(fileno=int(number)) for number in arguments[1].split(",")]
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(channel, sockets))
    except (asyncio.IncompleteReadError, ConnectionError, KeyboardInterrupt):
        return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
