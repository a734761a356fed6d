"""One process of a load test: some connections, their users, and the figures sent to the runner.

Run as ``python -m gateway.loadtest.worker`` it takes the plan as a line of JSON on standard input,
then the words ``start`` and ``stop`` on lines of their own; it tells on standard output, also in
lines of JSON, that it is ready, what it has measured since it last told, and that it is done. It
ends when its input does, so that it never outlives the runner.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import uvloop

from gateway.errors import EXIT_FAILURE, StartupError
from gateway.io.tls import client_context
from gateway.loadtest.pace import Pace
from gateway.loadtest.plan import Plan, Share
from gateway.loadtest.recorder import Recorder
from gateway.loadtest.user import FAILURES, Link, User, explain

INTERVAL = 0.5
"""Seconds between two messages to the runner."""

AT_ONCE = 32
"""Connections and sessions that a process opens at the same time before the run begins."""

MAX_LINE = 1 << 26
"""Bytes of a line from the runner; a scenario may hold long prompts."""

Emit = Callable[[dict[str, Any]], None]


class Worker:
    """The users of one process."""

    def __init__(self, share: Share, emit: Emit) -> None:
        """Prepare the users.

        Args:
            share: what this process does.
            emit: called with each message to the runner.

        Raises:
            ConfigError: a TLS file is unusable.
        """
        plan = share.plan
        tls = None
        if plan.tls is not None:
            files = (plan.tls.ca, plan.tls.certificate, plan.tls.key)
            tls = client_context(*(Path(file) if file is not None else None for file in files))
        self._share = share
        self._plan = plan
        self._emit = emit
        self._recorder = Recorder(time.monotonic, plan.warmup)
        self._pace = Pace(share)
        self._links = [Link(plan, tls, self._recorder) for _ in range(share.connections)]
        # Neighbouring users are on different connections, so that a ramp fills them evenly.
        self._users = [
            User(
                number,
                self._links[number % share.connections],
                plan,
                pace=self._pace,
                recorder=self._recorder,
                name=f"lt-{plan.run}-{share.process}-{number}",
            )
            for number in range(share.connections * plan.sessions)
        ]
        self._cpu = time.process_time(), time.monotonic()
        self._telling: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        """Open all connections, and in an open loop the sessions; tells how far it has come.

        Raises:
            StartupError: a connection cannot be opened.
        """
        gate = asyncio.Semaphore(AT_ONCE)
        self._telling = asyncio.create_task(self._tell_regularly(), name="loadtest-tell")

        async def open_link(link: Link) -> None:
            async with gate:
                await link.ready()

        async def open_session(user: User) -> None:
            async with gate:
                await user.prepare()

        opening = asyncio.gather(*(open_link(link) for link in self._links))
        try:
            await opening
        except FAILURES as error:
            opening.cancel()
            where = f"{self._plan.host}:{self._plan.port}"
            raise StartupError(f"cannot connect to {where}: {explain(error)}") from None
        if self._plan.open_loop:
            await asyncio.gather(*(open_session(user) for user in self._users))

    async def run(self) -> None:
        """Do the run, from its start to its cleaning up."""
        now = self._pace.now()
        self._recorder.start(now, self._plan.shape.seconds)
        self._pace.start(now)
        tasks = [
            asyncio.create_task(user.run(), name=f"loadtest-user-{number}")
            for number, user in enumerate(self._users)
        ]
        await self._until_done(tasks)
        self._pace.finish()
        self._recorder.count("unstarted", self._pace.unstarted)
        gate = asyncio.Semaphore(AT_ONCE)

        async def clean_up(link: Link) -> None:
            async with gate:
                await link.clean_up()

        await asyncio.gather(*(clean_up(link) for link in self._links))
        await self.close()

    async def _until_done(self, tasks: list[asyncio.Task[None]]) -> None:
        """Wait for the users; those that are busy when the grace is over are cut short."""
        running = set(tasks)
        over: float | None = None
        while running:
            done, running = await asyncio.wait(running, timeout=INTERVAL)
            for task in done:
                task.result()  # a defect of the load test itself is not to pass unnoticed
            if over is None and self._pace.over:
                over = self._pace.now()
            if over is not None and self._pace.now() - over > self._plan.grace:
                break
        for task in running:
            task.cancel()
            self._recorder.error("turn", "not finished when the run ended")
        await asyncio.gather(*running, return_exceptions=True)

    @property
    def seconds(self) -> float:
        """When the last step succeeded, in seconds from the start."""
        return self._recorder.last

    def stop(self) -> None:
        """Start no more steps."""
        self._pace.stop()

    async def close(self) -> None:
        """Stop telling and tell what is left; idempotent."""
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            self._tell()

    async def _tell_regularly(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            self._tell()

    def _tell(self) -> None:
        for link in self._links:
            link.collect()
        cpu, moment = time.process_time(), time.monotonic()
        spent, passed = cpu - self._cpu[0], moment - self._cpu[1]
        self._cpu = cpu, moment
        self._emit(
            {
                "figures": self._recorder.take().dump(),
                "active": sum(user.active for user in self._users),
                "cpu": spent / passed if passed > 0 else 0.0,
            }
        )


def _emit(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(message) + b"\n")
    sys.stdout.buffer.flush()


async def _serve() -> int:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    order = orjson.loads(await reader.readline())
    share = Plan.load(order["plan"]).share(order["process"])
    try:
        worker = Worker(share, _emit)
        await worker.prepare()
    except StartupError as error:
        _emit({"failed": str(error), "status": error.exit_status})
        return 0
    _emit({"ready": True})
    if (await reader.readline()).strip() != b"start":
        return 0
    running = asyncio.create_task(worker.run(), name="loadtest-run")
    listening = asyncio.create_task(_listen(reader, worker), name="loadtest-orders")
    await asyncio.wait({running, listening}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        os._exit(1)  # the runner is gone: nobody wants what is left to be told
    listening.cancel()
    running.result()
    _emit({"done": True, "seconds": worker.seconds})
    return 0


async def _listen(reader: asyncio.StreamReader, worker: Worker) -> None:
    """Follow orders until there are no more."""
    while line := await reader.readline():
        if line.strip() == b"stop":
            worker.stop()


def main() -> int:
    """Serve one runner; return the exit status."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve())
    except Exception as error:
        cause = f"load test: internal error: {type(error).__name__}: {error}"
        _emit({"failed": cause, "status": EXIT_FAILURE})
        return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
