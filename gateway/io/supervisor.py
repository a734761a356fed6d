"""Starts headless Copilot CLIs on this machine and keeps them running (``--spawn N``).

Each CLI has a stable name, a home directory, a loopback port and a connection token of its own.
One task per CLI starts it, awaits its ready line, watches it and starts it again when it ends.
:mod:`gateway.io.process` sees to it that none outlives the gateway.

Its home (:mod:`gateway.io.cli_home`) is locked for as long as the CLI may be using it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import random
import re
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.errors import StartupError
from gateway.io.cli_binary import CliBinary, probe_cli, resolve_native
from gateway.io.cli_home import SESSION_FOLDER, CliHome
from gateway.io.process import Exit, GuardedProcess
from gateway.types import ReplicaSpec

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
NAME = "cli-{}"
# A CLI that ends this often in a row without ever having been ready will not get better by itself.
START_ATTEMPTS = 3
# Lines of its standard error that explain why a CLI ended.
TAIL_LINES = 5
# Seconds to wait for a home whose last CLI is still ending, above the time that it is given.
_LOCK_MARGIN = 10.0
_GATEWAY_PREFIX = "COPILOT_GATEWAY_"
_READY = re.compile(r"listening on port (\d+)")
_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTHORIZATION|HEADERS", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"\b(?:gh[a-z]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|sk-[\w-]{16,})|(?<=[Bb]earer )[^\s\"']+"
)
# Shorter values would blank out ordinary words.
_SECRET_MIN_LENGTH = 6


class CliState(enum.StrEnum):
    """What a supervised CLI is doing."""

    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Exponential backoff with jitter and a cap.

    Attributes:
        delay: seconds before the first restart in a row; doubles with each.
        delay_max: longest pause, in seconds.
        stable_after: a CLI that ran this many seconds ended for a new reason: the row starts anew.
    """

    delay: float = 0.5
    delay_max: float = 30.0
    stable_after: float = 60.0

    def next_attempt(self, attempt: int, uptime: float) -> int:
        """Return the number of restarts in a row, this one included.

        Args:
            attempt: the number before.
            uptime: seconds for which the CLI was ready before it ended.
        """
        return 1 if uptime >= self.stable_after else attempt + 1

    def pause(self, attempt: int, jitter: float) -> float:
        """Return the seconds to wait before a restart.

        Args:
            attempt: number of restarts in a row, from 1.
            jitter: random, in [0, 1): takes up to half of the pause away, so that CLIs that fell
                together do not rise together.
        """
        # Beyond 2**32 the cap holds anyway, and a float would overflow.
        whole = min(self.delay_max, self.delay * 2.0 ** min(attempt - 1, 32))
        return whole * (1.0 - jitter / 2)


@dataclass(frozen=True, slots=True)
class SupervisorSettings:
    """How CLIs are run.

    Attributes:
        count: how many to start.
        state_dir: folder of their homes; created if missing.
        shared_storage: whether all of them keep their sessions in one folder.
        args: further command line arguments; visible to all users of the machine.
        env: environment on top of the gateway's own.
        cwd: working directory; None for the gateway's own.
        start_timeout: seconds after which a CLI that is not ready is stopped and tried again.
        patience: seconds that :meth:`Supervisor.start` waits for slow ones; they may become ready
            later.
        stop_timeout: seconds between SIGTERM and SIGKILL.
        restart: pauses between starts.
    """

    count: int
    state_dir: Path
    shared_storage: bool = False
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: Path | None = None
    start_timeout: float = 30.0
    patience: float = 15.0
    stop_timeout: float = 5.0
    restart: RestartPolicy = RestartPolicy()


@dataclass(frozen=True, slots=True)
class CliStatus:
    """A supervised CLI at one moment.

    Attributes:
        name: its stable name.
        state: what it is doing.
        pid: its process, or None.
        port: the port it listens on, or listened on last; 0 before it was ever ready.
        started_at: Unix time in seconds at which it was last ready, or None.
        restarts: how often it was started again, for whatever reason.
        last_exit: how it ended last, or None.
        version: version of the binary that it was started from.
    """

    name: str
    state: CliState
    pid: int | None
    port: int
    started_at: float | None
    restarts: int
    last_exit: Exit | None
    version: str


class Supervisor:
    """A set of supervised CLIs.

    ``on_change`` is called with what currently runs whenever that changes, from the event loop.
    """

    def __init__(
        self,
        settings: SupervisorSettings,
        binary: CliBinary,
        on_change: Callable[[list[ReplicaSpec]], None],
    ) -> None:
        self._settings = settings
        self._binary = binary
        self._on_change = on_change
        self._clis: dict[str, _Cli] = {}  # by name; everything that start() or add() made

    @property
    def binary(self) -> CliBinary:
        """What the next start of a CLI will execute."""
        return self._binary

    @property
    def replicas(self) -> list[CliStatus]:
        """The status of every CLI, in the order of their creation."""
        return [cli.status() for cli in self._clis.values()]

    @property
    def specs(self) -> list[ReplicaSpec]:
        """How to reach the CLIs that are running."""
        return [
            ReplicaSpec(name=cli.name, host=LOOPBACK, port=cli.port, token=cli.token)
            for cli in self._clis.values()
            if cli.state is CliState.RUNNING
        ]

    async def start(self) -> None:
        """Start all CLIs; return when each is ready, or slow enough to go on without it.

        Raises:
            StartupError: a CLI ends again and again, or a home cannot be used. None is left.
        """
        try:
            clis = [self._create(NAME.format(index)) for index in range(self._settings.count)]
            # All of them settle before the first failure is raised: none is left half started.
            for result in await asyncio.gather(
                *(self._launch(cli) for cli in clis), return_exceptions=True
            ):
                if isinstance(result, BaseException):
                    raise result
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop all CLIs, within a bounded time; idempotent."""
        results = await asyncio.gather(
            *(self.remove(name) for name in list(self._clis)), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def add(
        self,
        name: str | None = None,
        home: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Start one more CLI and return its name.

        Args:
            name: a name of its own; None for the next free ``cli-N``.
            home: its home directory; None for one named after it in the state directory.
            env: further environment variables, for this one only.

        Raises:
            StartupError: it ends again and again, or its home cannot be used. It is removed.
            ValueError: the name is taken.
        """
        if name is None:
            name = next(
                n for i in range(len(self._clis) + 1) if (n := NAME.format(i)) not in self._clis
            )
        if name in self._clis:
            raise ValueError(f"there is already a CLI named {name}")
        cli = self._create(name, home, env)
        try:
            await self._launch(cli)
        except BaseException:
            await self.remove(name)
            raise
        return name

    async def remove(self, name: str) -> None:
        """Stop a CLI for good; its home stays.

        Raises:
            KeyError: no such CLI.
        """
        cli = self._clis[name]
        await cli.stop()
        self._clis.pop(name, None)

    async def restart(self, name: str) -> None:
        """Stop a CLI gracefully and start it again; return when it is ready.

        Raises:
            KeyError: no such CLI.
            StartupError: it did not become ready; it is tried again in the background.
        """
        await self._clis[name].restart()

    async def replace_binary(self, path: Path) -> CliBinary:
        """Use another binary from the next start of each CLI on; those running go on.

        Raises:
            StartupError: it is not usable; nothing has changed.
        """
        self._binary = await probe_cli(resolve_native(path))
        logger.info("next CLIs start from %s, version %s", self._binary.path, self._binary.version)
        return self._binary

    def _create(
        self, name: str, home: Path | None = None, env: Mapping[str, str] | None = None
    ) -> _Cli:
        cli = _Cli(
            name=name,
            home=(home or self._settings.state_dir / name).absolute(),
            env={**_own_environment(), **self._settings.env, **(env or {})},
            supervisor=self,
            settings=self._settings,
        )
        self._clis[name] = cli
        return cli

    async def _launch(self, cli: _Cli) -> None:
        if not await cli.start(self._settings.patience):
            logger.warning("%s is slow to start; going on without it for now", cli.name)

    def changed(self) -> None:
        """Tell the owner; called by a CLI that began or ceased to run."""
        self._on_change(self.specs)


class _Cli:
    """One supervised CLI: its identity, which stays, and its process, which comes and goes."""

    def __init__(
        self,
        *,
        name: str,
        home: Path,
        env: Mapping[str, str],
        supervisor: Supervisor,
        settings: SupervisorSettings,
    ) -> None:
        self.name = name
        self.state = CliState.STOPPED
        self.port = 0
        # The same for life: links that race with a restart still fit the new process.
        self.token = secrets.token_urlsafe(32)
        self._home = CliHome(
            home, settings.state_dir / SESSION_FOLDER if settings.shared_storage else None
        )
        self._supervisor = supervisor
        self._settings = settings
        self._env = {
            **env,
            "COPILOT_HOME": str(home),
            "COPILOT_CONNECTION_TOKEN": self.token,
            "COPILOT_AUTO_UPDATE": "false",
        }
        self._scrub = scrubber(self._env)
        self._version = ""
        self._starts = 0
        self._started_at: float | None = None
        self._last_exit: Exit | None = None
        self._failure = ""  # why the last attempt did not become ready
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)  # of stderr, of the current process
        self._process: GuardedProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._restarting = False  # a restart was asked for: no pause, not a failure
        self._wake = asyncio.Event()  # ends a pause
        # Of the start that was asked for last: done when ready, or failed often enough.
        self._outcome: asyncio.Future[None] | None = None
        self._operation = asyncio.Lock()  # one restart() or stop() at a time

    def status(self) -> CliStatus:
        return CliStatus(
            name=self.name,
            state=self.state,
            pid=self._process.pid if self._process else None,
            port=self.port,
            started_at=self._started_at,
            restarts=max(0, self._starts - 1),
            last_exit=self._last_exit,
            version=self._version,
        )

    async def start(self, patience: float) -> bool:
        """Start it; True once it is ready, False if it is not within ``patience`` seconds.

        Raises:
            StartupError: it ended :data:`START_ATTEMPTS` times, or its home cannot be used.
        """
        await self._home.acquire(patience=self._settings.stop_timeout + _LOCK_MARGIN)
        if self._stopping:
            self._home.release()
            raise StartupError(f"{self.name} was stopped before it was started")
        outcome = self._expect()
        self._task = asyncio.create_task(self._supervise(), name=f"supervise-{self.name}")
        return await self._await(outcome, patience)

    async def restart(self) -> None:
        async with self._operation:
            if self._stopping:
                raise StartupError(f"{self.name} is being stopped")
            outcome = self._expect()
            self._restarting = True
            self._end("restart")
            limit = self._settings.stop_timeout + self._settings.start_timeout
            if not await self._await(outcome, limit):
                raise StartupError(f"{self.name} was not ready again within {limit:g} s")

    async def stop(self) -> None:
        self._stopping = True
        self._end("stop")
        async with self._operation:
            if self._task:
                await self._task
            self._home.release()

    def _end(self, why: str) -> None:
        """Tell that it is not to be used any more, then end the process or the pause."""
        if self.state is CliState.RUNNING:
            self._move(CliState.STOPPING, why)
        self._wake.set()
        if self._process:
            self._process.terminate()

    def _expect(self) -> asyncio.Future[None]:
        self._outcome = asyncio.get_running_loop().create_future()
        return self._outcome

    async def _await(self, outcome: asyncio.Future[None], patience: float) -> bool:
        done, _ = await asyncio.wait({outcome}, timeout=patience)
        if done:
            outcome.result()
        return bool(done)

    def _move(self, state: CliState, why: str) -> None:
        """Change the state: the only place that does."""
        was_running = self.state is CliState.RUNNING
        logger.log(
            logging.WARNING if state is CliState.BACKOFF else logging.INFO,
            "%s: %s -> %s: %s",
            self.name,
            self.state,
            state,
            why,
        )
        self.state = state
        if was_running or state is CliState.RUNNING:
            self._supervisor.changed()

    async def _supervise(self) -> None:
        attempt = failures = 0
        policy = self._settings.restart
        while not self._stopping:
            self._wake.clear()
            if self._restarting:
                self._restarting = False
                attempt = failures = 0
            uptime = await self._run_once()
            if self._stopping or self._restarting:
                continue
            attempt = policy.next_attempt(attempt, uptime or 0.0)
            failures = failures + 1 if uptime is None else 0
            if failures >= START_ATTEMPTS:
                self._fail(f"the Copilot CLI {self.name} does not start: {self._failure}")
            pause = policy.pause(attempt, random.random())  # noqa: S311 - jitter, not a secret
            self._move(CliState.BACKOFF, f"{self._failure}; next start in {pause:.1f} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
        self._move(CliState.STOPPED, "stopped")
        self._fail(f"{self.name} was stopped before it was ready")

    def _fail(self, message: str) -> None:
        """Tell whoever waits for the start, if anybody still does."""
        if self._outcome and not self._outcome.done():
            self._outcome.set_exception(StartupError(message))
            self._outcome.exception()  # seen: nobody may be waiting any more

    async def _run_once(self) -> float | None:
        """Run one process to its end; return for how many seconds it was ready, None: never."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[int] = loop.create_future()
        self._tail.clear()
        self._starts += 1
        binary = self._supervisor.binary
        self._version = binary.version
        self._move(CliState.STARTING, f"version {binary.version}")
        argv = [str(binary.path), "--headless", "--port", str(self._free_port())]
        if binary.no_auto_update:
            argv.append("--no-auto-update")

        def on_line(stream: str, line: str) -> None:
            line = self._scrub(line)
            logger.debug("%s %s: %s", self.name, stream, line)
            if stream == "stderr":
                self._tail.append(line)
            elif not ready.done() and (match := _READY.search(line)):
                ready.set_result(int(match.group(1)))

        try:
            process = await GuardedProcess.start(
                [*argv, *self._settings.args],
                env=self._env,
                cwd=self._settings.cwd,
                grace=self._settings.stop_timeout,
                on_line=on_line,
                lock_fd=self._home.lock_fd,
            )
        except OSError as error:
            self._failure = f"cannot start {binary.path}: {error.strerror or error}"
            return None
        self._process = process
        if self._stopping or self._restarting:
            process.terminate()  # asked for while it was being forked
        exited = asyncio.create_task(process.wait(), name=f"exit-{self.name}")
        ready_at: float | None = None
        slow = False
        both: set[asyncio.Future[Any]] = {ready, exited}
        try:
            await asyncio.wait(
                both,
                timeout=self._settings.start_timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if ready.done() and not (self._stopping or self._restarting or exited.done()):
                ready_at = loop.time()
                self._running(ready.result())
            elif not exited.done():
                slow = True
                await process.stop()
            self._last_exit = await exited
        finally:
            self._process = None
            exited.cancel()
            process.terminate()
        if slow:
            self._failure = f"not ready within {self._settings.start_timeout:g} s"
        else:
            self._failure = str(self._last_exit)
        if self._tail:
            self._failure += f": {' | '.join(self._tail)}"
        return None if ready_at is None else loop.time() - ready_at

    def _running(self, port: int) -> None:
        self.port = port
        self._started_at = time.time()
        pid = self._process.pid if self._process else None
        self._move(CliState.RUNNING, f"pid {pid}, port {port}")
        if self._outcome and not self._outcome.done():
            self._outcome.set_result(None)

    def _free_port(self) -> int:
        """Return the port it had, if nobody took it meanwhile; else 0: any."""
        if self.port:
            with socket.socket() as probe, contextlib.suppress(OSError):
                # As the CLI does: connections that linger in TIME_WAIT are no obstacle.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((LOOPBACK, self.port))
                return self.port
        return 0


def _own_environment() -> dict[str, str]:
    """Return the gateway's environment without its own settings.

    They hold its tokens, and what a CLI has in its environment, the tools it runs can read.
    """
    return {k: v for k, v in os.environ.items() if not k.startswith(_GATEWAY_PREFIX)}


def scrubber(env: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that blanks out the secrets of an environment, and what looks like one."""
    values = {
        value
        for name, value in env.items()
        if _SECRET_NAME.search(name) and len(value) >= _SECRET_MIN_LENGTH
    }
    # The longest first: one may be a part of another.
    known = [re.escape(value) for value in sorted(values, key=len, reverse=True)]
    pattern = re.compile("|".join([*known, _SECRET_TEXT.pattern]))
    return lambda line: pattern.sub("***", line)
