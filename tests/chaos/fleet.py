"""The processes of a chaos run: model, replicas, Redis, and gateways or HAProxy in front."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import aiohttp

from gateway.testing.model_server import ModelRequest, ModelServer
from tests.chaos.check import Said
from tests.support.stack import REPOSITORY, RealCli

READY_SECONDS = 30.0
SESSIONS = "session-state"
"""The folder of a CLI's home that holds its conversations."""

_HAPROXY = """\
global
    nbthread 1
defaults
    mode tcp
    option redispatch
    retries 3
    timeout connect 2s
    timeout client 1h
    timeout server 1h
listen replicas
    bind 127.0.0.1:{port}
    balance roundrobin
    default-server check inter 1s fall 2 rise 1 on-marked-down shutdown-sessions
{servers}
"""


class MissingProgramError(Exception):
    """A program that the run needs is not installed."""


def program(name: str) -> str:
    """Return the path of a server program.

    Raises:
        MissingProgramError: it is not installed.
    """
    # Debian keeps servers where an ordinary user's PATH does not look.
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which(name, path=path)
    if found is None:
        raise MissingProgramError(f"{name} is not installed")
    return found


def free_port() -> int:
    """Return a loopback port that nobody listens on, for programs that cannot pick one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A program that listens on a known port of loopback.

    Attributes:
        name: for humans.
        port: where it listens, over all its restarts.
    """

    def __init__(
        self,
        name: str,
        port: int,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.port = port
        self._command = command
        self._log = log
        self._environment = {**os.environ, **(environment or {})}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start and wait until it accepts connections.

        Raises:
            AssertionError: it ended, or does not listen.
        """
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=REPOSITORY,
            )
        deadline = asyncio.get_running_loop().time() + READY_SECONDS
        while asyncio.get_running_loop().time() < deadline and self.running:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
        raise AssertionError(f"{self.name} did not start: {self.tail()}")

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal and wait for its end; by force if it takes too long. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.send_signal(number)
            try:
                async with asyncio.timeout(15):
                    await process.wait()
            except TimeoutError:
                process.kill()
        await process.wait()

    def tail(self) -> str:
        """Return the last lines of its log."""
        return self._log.read_text(errors="replace")[-1500:]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.end()


class Redis(Server):
    """A Redis that keeps what it has over a restart, unless told to lose it."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self._data = folder / "redis"
        command = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self._data), "--save", "", "--appendonly", "yes"]
        command += ["--appendfsync", "always"]
        super().__init__("redis", port, command, folder / "redis.log")

    @property
    def url(self) -> str:
        """What ``--registry`` takes."""
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start."""
        self._data.mkdir(exist_ok=True)
        await super().start()

    def lose(self) -> None:
        """Drop all that it keeps; it must not run."""
        shutil.rmtree(self._data)


class Gateway(Server):
    """One gateway of several on one Redis, or alone on its own registry."""

    def __init__(
        self,
        name: str,
        folder: Path,
        replicas: Iterable[RealCli],
        *,
        token: str,
        replica_token: str,
        storage: str,
        durable: bool,
        registry: str | None,
    ) -> None:
        port, admin = free_port(), free_port()
        self._admin = f"http://127.0.0.1:{admin}"
        self._token = token
        command = [sys.executable, "-m", "gateway.cli", "serve", "--storage", storage]
        command += ["--routing", "free" if storage == "shared" else "sticky"]
        command += ["--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"]
        if registry is not None:
            command += ["--registry", registry]
        for replica in replicas:
            command += ["--replica", f"{replica.name}={replica.host}:{replica.port}"]
        environment = {
            "COPILOT_GATEWAY_TOKEN": token,
            "COPILOT_GATEWAY_REPLICA_TOKEN": replica_token,
            "COPILOT_GATEWAY_SERVER_STATE_DIR": str(folder / name),
            "COPILOT_GATEWAY_SESSIONS_DURABLE": str(durable).lower(),
            # What a killed gateway held cannot be moved until its lease has ended.
            "COPILOT_GATEWAY_REGISTRY_LEASE": "10s",
            # A replica that hangs is found in about two seconds, as HAProxy finds it here.
            "COPILOT_GATEWAY_HEALTH_PROBE_INTERVAL": "1s",
            "COPILOT_GATEWAY_HEALTH_PROBE_TIMEOUT": "1s",
            "COPILOT_GATEWAY_HEALTH_FAILURES": "2",
            "COPILOT_GATEWAY_HEALTH_BAN_BASE": "1s",
            "COPILOT_GATEWAY_HEALTH_BAN_MAX": "5s",
        }
        super().__init__(name, port, command, folder / f"{name}.log", environment)

    async def ask(self, method: str, path: str) -> object:
        """Call the admin API; return the answer's JSON.

        Raises:
            OSError: it cannot be reached, or refuses.
        """
        headers = {"Authorization": f"Bearer {self._token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.request(
                method, self._admin + path, timeout=aiohttp.ClientTimeout(total=10)
            ) as answer,
        ):
            if answer.status >= 400:
                raise OSError(f"{self.name}: {path}: {answer.status} {await answer.text()}")
            return await answer.json()

    async def drained(self, replica: str) -> bool:
        """Whether this gateway has nothing left on a replica that drains."""
        page = await self.ask("GET", "/replicas")
        assert isinstance(page, dict)
        return all(one["drained"] for one in page["replicas"] if one["name"] == replica)


class Balancer(Server):
    """HAProxy: TCP, round robin, health checks that close the connections of a dead server."""

    def __init__(self, name: str, folder: Path, replicas: Iterable[RealCli]) -> None:
        port = free_port()
        servers = "\n".join(
            f"    server {replica.name} {replica.host}:{replica.port}" for replica in replicas
        )
        config = folder / f"{name}.cfg"
        config.write_text(_HAPROXY.format(port=port, servers=servers))
        command = [program("haproxy"), "-db", "-f", str(config)]
        super().__init__(name, port, command, folder / f"{name}.log")


class Fleet:
    """Everything that runs besides the clients; an asynchronous context manager.

    Attributes:
        target: ``gateway`` or ``haproxy``.
        storage: ``shared`` or ``local``.
        replicas: the CLIs.
        fronts: what clients connect to.
        redis: the registry of several gateways, or None.
        token: what clients present.
        calls: user messages of every model call so far, in the order of time.
    """

    def __init__(
        self,
        target: str,
        folder: Path,
        *,
        replicas: int,
        fronts: int,
        storage: str,
        durable: bool,
    ) -> None:
        self.target = target
        self._durable = durable
        self.storage = storage
        self.folder = folder
        self.token = secrets.token_hex(16)
        self.fronts: list[Gateway] | list[Balancer] = []
        self.redis: Redis | None = None
        self.calls: list[list[str]] = []
        self.model = ModelServer()
        self.model.requests = _Tap(self.calls)
        self._stack = AsyncExitStack()
        self._front_count = fronts
        self._replica_token = secrets.token_hex(16) if target == "gateway" else self.token
        self.replicas: list[RealCli] = []
        self._replica_count = replicas

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        enter = self._stack.enter_async_context
        await enter(self.model)
        shared = self.folder / SESSIONS
        shared.mkdir()
        for number in range(self._replica_count):
            name = f"cli-{number}"
            replica = RealCli(
                self.folder / name,
                name=name,
                model_url=self.model.base_url,
                token=self._replica_token,
            )
            replica.home.mkdir()
            self.replicas.append(replica)
            if self.storage == "shared":
                (replica.home / SESSIONS).symlink_to(shared)
            await enter(replica)
        names = [f"{self.target}-{number}" for number in range(self._front_count)]
        if self.target == "haproxy":
            self.fronts = [
                await enter(Balancer(name, self.folder, self.replicas)) for name in names
            ]
            return
        if len(names) > 1:
            self.redis = await enter(Redis(self.folder))
        self.fronts = [
            await enter(
                Gateway(
                    name,
                    self.folder,
                    self.replicas,
                    token=self.token,
                    replica_token=self._replica_token,
                    storage=self.storage,
                    durable=self._durable,
                    registry=self.redis.url if self.redis is not None else None,
                )
            )
            for name in names
        ]

    @property
    def gateways(self) -> list[Gateway]:
        """The gateways that run."""
        return [each for each in self.fronts if isinstance(each, Gateway) and each.running]

    def live_on(self, replica: RealCli) -> set[str]:
        """Return the sessions that a running replica holds, by its lock files."""
        try:
            lock = f"inuse.{replica.pid}.lock"
        except AssertionError:
            return set()
        return {path.parent.name for path in (replica.home / SESSIONS).glob(f"*/{lock}")}

    def journals(self, session: str) -> Iterator[list[Said]]:
        """Yield the history in each journal that a session has on the replicas' disks."""
        folders = {(replica.home / SESSIONS).resolve() for replica in self.replicas}
        for folder in sorted(folders):
            path = folder / session / "events.jsonl"
            if path.is_file():
                yield list(_said(path.read_text(errors="replace")))


class _Tap(deque[ModelRequest]):
    """In place of the model server's short memory: keeps the user messages of every call."""

    def __init__(self, calls: list[list[str]]) -> None:
        super().__init__()
        self._calls = calls

    def append(self, request: ModelRequest) -> None:
        self._calls.append(request.user_messages)


def _said(journal: str) -> Iterator[Said]:
    for line in journal.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a line cut by SIGKILL; the CLI skips it too
        data = event.get("data", {})
        if event.get("type") == "user.message":
            yield Said(True, data["content"])
        elif event.get("type") == "assistant.message" and data.get("content"):
            yield Said(False, data["content"])
