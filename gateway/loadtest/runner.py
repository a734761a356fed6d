"""All processes of a run together: starts them, gathers their figures, ends them."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from gateway.errors import EXIT_FAILURE, StartupError
from gateway.loadtest.figures import Figures
from gateway.loadtest.plan import Plan

MAX_LINE = 1 << 26
"""Bytes of a message from a worker."""

STOP_TIMEOUT = 5.0
"""Seconds a worker is given to end after its input was closed."""

REFRESH = 0.5
"""Seconds between two updates of what is shown."""


@dataclass(slots=True)
class Status:
    """A run as it stands.

    Attributes:
        plan: what is being done.
        figures: all that was measured so far.
        elapsed: seconds since the start, or None before it.
        active: sessions that exist.
        cpu: CPU share of the busiest process, 0 to 1.
        peak_cpu: the highest ``cpu`` while running.
        stopping: it was asked to stop.
        seconds: length of the measured time, known at the end.
    """

    plan: Plan
    figures: Figures = field(default_factory=Figures)
    elapsed: float | None = None
    active: int = 0
    cpu: float = 0.0
    peak_cpu: float = 0.0
    stopping: bool = False
    seconds: float = 0.0


class Display(Protocol):
    """Who is shown the run while it is on."""

    def show(self, status: Status) -> None:
        """Show how things stand; called about twice a second."""

    def close(self) -> None:
        """The run is over."""


class _Process:
    """One worker process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.active = 0
        self.cpu = 0.0
        self.seconds = 0.0

    def write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        if not self.process.stdin.is_closing():
            self.process.stdin.write(line + b"\n")


class Runner:
    """One run.

    Attributes:
        status: how it stands.
    """

    def __init__(self, plan: Plan, display: Display) -> None:
        self.status = Status(plan)
        self._plan = plan
        self._display = display
        self._processes: list[_Process] = []
        self._start: float | None = None

    async def run(self) -> Status:
        """Do the run and return what came of it.

        Raises:
            StartupError: a process could not connect, or has failed.
        """
        try:
            async with asyncio.TaskGroup() as group:
                showing = group.create_task(self._show(), name="loadtest-show")
                for number in range(self._plan.processes):
                    process = await self._spawn(number)
                    self._processes.append(process)
                    group.create_task(self._read(process), name=f"loadtest-read-{number}")
                await asyncio.gather(*(process.ready for process in self._processes))
                self._begin()
                await asyncio.gather(*(process.done for process in self._processes))
                showing.cancel()
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            await self._end()
            self._display.close()
        self._measure()
        return self.status

    def stop(self) -> None:
        """Start no more steps; a second call ends the run at once."""
        again, self.status.stopping = self.status.stopping, True
        if again or self._start is None:
            for process in self._processes:
                if process.process.returncode is None:
                    process.process.kill()
            return
        for process in self._processes:
            process.write(b"stop")

    async def _spawn(self, number: int) -> _Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway.loadtest.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE,
            start_new_session=True,  # ^C is for the runner, which stops the workers in order
        )
        worker = _Process(process)
        # On standard input, where nobody else can read the token.
        worker.write(orjson.dumps({"plan": self._plan.dump(), "process": number}))
        return worker

    def _begin(self) -> None:
        self._start = asyncio.get_running_loop().time()
        self.status.peak_cpu = 0.0
        for process in self._processes:
            process.write(b"start")

    async def _read(self, worker: _Process) -> None:
        assert worker.process.stdout is not None
        while line := await worker.process.stdout.readline():
            self._take(worker, orjson.loads(line))
            if worker.done.done():
                return
        cause = "interrupted" if self.status.stopping else "a process has ended before its time"
        raise StartupError(f"load test: {cause}", EXIT_FAILURE)

    def _take(self, worker: _Process, message: dict[str, Any]) -> None:
        """Take a message from a worker.

        Raises:
            StartupError: it could not connect.
        """
        status = self.status
        if "figures" in message:
            status.figures.merge(Figures.load(message["figures"]))
            worker.active, worker.cpu = message["active"], message["cpu"]
            status.active = sum(each.active for each in self._processes)
            status.cpu = max(each.cpu for each in self._processes)
            status.peak_cpu = max(status.peak_cpu, status.cpu)
        elif "failed" in message:
            raise StartupError(message["failed"], message["status"])
        elif "ready" in message:
            worker.ready.set_result(None)
        elif "done" in message:
            worker.seconds = message["seconds"]
            worker.done.set_result(None)

    async def _show(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._start is not None:
                self.status.elapsed = loop.time() - self._start
            self._display.show(self.status)
            await asyncio.sleep(REFRESH)

    async def _end(self) -> None:
        """Let every worker end; those that do not are killed."""
        for process in self._processes:
            assert process.process.stdin is not None
            process.process.stdin.close()
            process.ready.cancel()
            process.done.cancel()
        for process in self._processes:
            try:
                async with asyncio.timeout(STOP_TIMEOUT):
                    await process.process.wait()
            except TimeoutError:
                process.process.kill()
                await process.process.wait()

    def _measure(self) -> None:
        """Work out how long was measured: to the end of the plan, or to the last step before it."""
        seconds = self._plan.shape.seconds
        if self._plan.steps is not None or self.status.stopping:
            seconds = min(seconds, max(process.seconds for process in self._processes))
        self.status.seconds = max(seconds - self._plan.warmup, 0.0)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that tells most: the one meant for people, if there is one."""
    for error in errors.exceptions:
        if isinstance(error, StartupError):
            return error
    return errors.exceptions[0]
