"""The gateway as tests run it: the whole program as a process, or one worker in this process."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import aiohttp

from gateway.app.auditing import NoAudit
from gateway.app.worker import Worker
from gateway.app.workers import LocalWorker
from gateway.config.kinds import Address
from gateway.config.settings import SECTIONS, PoolSettings, Settings
from gateway.io.token_file import edit_tokens
from gateway.policy.tokens import ENTROPY_BYTES, make_record, make_token
from gateway.types import ReplicaSpec, Role
from tests.support.fake_cli import FakeCli
from tests.support.rpc import RpcClient
from tests.support.stack import REPOSITORY, RealCli
from tests.support.wait import TIMEOUT, eventually

ADMIN_TOKEN = "static-admin-token"
"""The static token of gateways under test: an admin of tenant ``default``."""

_READY = re.compile(r"listening on port (\d+)")
_ADMIN = re.compile(r"admin listens.*port=(\d+)")
START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0


def add_token(path: Path, tenant: str, user: str, role: str = "user", **more: Any) -> str:
    """Store a new token in a token file; return it."""
    token_id, token = make_token(secrets.token_bytes(ENTROPY_BYTES))
    record = make_record(
        token, tenant=tenant, user=user, role=Role(role), created=time.time(), **more
    )
    with edit_tokens(path) as records:
        records[token_id] = record
    return token


def remove_tokens(path: Path, *, user: str) -> None:
    """Revoke all tokens of a user."""
    with edit_tokens(path) as records:
        for token_id in [one for one, record in records.items() if record.user == user]:
            del records[token_id]


def replica_flags(replicas: Iterable[FakeCli | RealCli]) -> list[str]:
    """Return the flags that put a gateway in front of CLIs."""
    return [part for one in replicas for part in ("--replica", f"{one.name}={one.host}:{one.port}")]


class GatewayProcess:
    """``copilot-gateway serve`` as a process of its own.

    Attributes:
        port: where clients connect.
        folder: its state directory.
        stderr: its last lines of log.
        tokens: its token file.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        folder: Path,
        *args: str,
        replicas: Iterable[FakeCli | RealCli] = (),
        env: Mapping[str, str] | None = None,
        config: str = "",
        token: str = ADMIN_TOKEN,
        admin: bool = False,
    ) -> None:
        self.folder = folder
        self.port = 0
        self.token = token
        self.tokens = folder / "tokens.json"
        self.config = folder / "gateway.toml"
        self.stderr: deque[str] = deque(maxlen=5000)
        self.stdout: deque[str] = deque(maxlen=100)
        self._replicas = list(replicas)
        self._args = [*args, "--state-dir", str(folder), "--listen", "127.0.0.1:0"]
        self._args += replica_flags(self._replicas)
        if admin:
            self._args += ["--admin", "127.0.0.1:0"]
        if config:
            folder.mkdir(parents=True, exist_ok=True)
            self.config.write_text(config)
            self._args += ["--config", str(self.config)]
        self._env = dict(env or {})
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        status = await self.stop()
        if kind is None:
            assert status in (0, None), self.text
            assert "Traceback" not in self.text, self.text

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None, "not running"
        return self._process.pid

    @property
    def text(self) -> str:
        """What it said on standard error."""
        return "\n".join(self.stderr)

    def environment(self) -> dict[str, str]:
        """Return the environment it runs in: the tests' own, without settings of a gateway."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("COPILOT_")}
        env["COPILOT_GATEWAY_TOKEN"] = self.token
        given = {one.token for one in self._replicas if one.token is not None}
        if given:
            (env["COPILOT_GATEWAY_REPLICA_TOKEN"],) = given
        return {**env, **self._env}

    async def launch(self) -> None:
        """Start the process without waiting for anything."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway.cli",
            "serve",
            *self._args,
            env=self.environment(),
            cwd=REPOSITORY,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            asyncio.create_task(_keep(self._process.stdout, self.stdout)),
            asyncio.create_task(_keep(self._process.stderr, self.stderr)),
        ]

    async def start(self, *, replicas_up: bool = True) -> None:
        """Start and wait for the ready line, and for all its replicas unless told otherwise.

        Raises:
            AssertionError: it ended or did not get ready; quotes its log.
        """
        await self.launch()
        assert self._process is not None

        def ready() -> Any:
            assert self._process is not None
            assert self._process.returncode is None, f"ended: {self.text}"
            return next((m for line in self.stdout if (m := _READY.search(line))), None)

        match = await eventually(ready, START_TIMEOUT)
        self.port = int(match[1])
        if replicas_up and self._replicas:
            await self.until_up(len(self._replicas))

    async def until_up(self, count: int) -> None:
        """Wait until that many replicas were seen up."""
        found: set[str] = set()

        def seen() -> bool:
            for line in list(self.stderr):
                if "replica state" in line and "state=up" in line:
                    found.update(re.findall(r"replica=(\S+)", line))
            return len(found) >= count

        try:
            await eventually(seen, START_TIMEOUT)
        except AssertionError:
            raise AssertionError(f"only {found} came up: {self.text}") from None

    async def said(self, text: str, within: float = TIMEOUT) -> None:
        """Wait until the log holds a text."""
        try:
            await eventually(lambda: text in self.text, within)
        except AssertionError:
            raise AssertionError(f"never said {text!r}: {self.text}") from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def wait(self, within: float = STOP_TIMEOUT) -> int:
        """Wait for the end; return the exit status."""
        assert self._process is not None
        async with asyncio.timeout(within):
            status = await self._process.wait()
        await asyncio.gather(*self._readers)
        return status

    async def stop(self) -> int | None:
        """End it by SIGTERM; return the exit status, or None if it had ended before; idempotent."""
        process, status = self._process, None
        if process is None:
            return None
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                status = await self.wait()
            except TimeoutError:
                process.kill()
                status = -9
        await process.wait()
        await asyncio.gather(*self._readers)
        self._process = None
        return status

    async def kill(self) -> None:
        """End it by SIGKILL."""
        self.signal(signal.SIGKILL)
        await self.wait()
        self._process = None

    def add_token(self, tenant: str, user: str, role: str = "user", **more: Any) -> str:
        """Store a new token; it is good once the file was read again."""
        return add_token(self.tokens, tenant, user, role, **more)

    async def connect(self, token: str | None = None, **handshake: Any) -> RpcClient:
        """Return an authenticated client; the caller closes it."""
        return await RpcClient.connect(
            self.host, self.port, token or self.token, handshake=handshake
        )

    async def bare(self) -> RpcClient:
        """Return a client that has said nothing; the caller closes it."""
        return await RpcClient.connect(self.host, self.port)

    @property
    def admin_port(self) -> int:
        """The port of the admin listener."""
        for line in self.stderr:
            if match := _ADMIN.search(line):
                return int(match[1])
        raise AssertionError(f"no admin listener: {self.text}")

    async def admin(
        self, path: str, method: str = "GET", token: str | None = ADMIN_TOKEN
    ) -> tuple[int, str]:
        """Call the admin API; return status and body."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, headers=headers) as response,
        ):
            return response.status, await response.text()


async def _keep(stream: asyncio.StreamReader, lines: deque[str]) -> None:
    while line := await stream.readline():
        lines.append(line.decode(errors="replace").rstrip())


class LocalGateway:
    """One worker of the gateway in this process, with sockets and without the command line.

    Attributes:
        worker: the worker.
        port: where clients connect.
        tokens: its token file.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        folder: Path,
        *replicas: FakeCli | RealCli,
        registry: str | Mapping[str, Any] = "memory://",
        pools: Iterable[PoolSettings] = (),
        **sections: Any,
    ) -> None:
        """``sections`` holds settings by section: ``limits={"max_frame": 100_000}``."""
        self._folder = folder
        self._replicas = replicas
        self.tokens = folder / "tokens.json"
        self.port = 0
        defaults: dict[str, dict[str, Any]] = {
            "server": {"state_dir": folder, "listen": (Address("127.0.0.1", 0),)},
            "auth": {"static_token": ADMIN_TOKEN, "source_failures": 100_000, "token_poll": 0.05},
            "registry": {"url": registry} if isinstance(registry, str) else dict(registry),
            "health": {"probe_interval": 0.2, "probe_timeout": 2.0, "ban_base": 0.2},
        }
        built = {
            name: replace(SECTIONS[name](), **{**defaults.get(name, {}), **sections.get(name, {})})
            for name in SECTIONS
            if name in defaults or name in sections
        }
        self.settings = Settings(**built, pools=tuple(pools))
        self._sock: Any = None
        self.worker: Worker = None  # type: ignore[assignment]

    async def __aenter__(self) -> Self:
        import socket

        self.worker = Worker(self.settings, NoAudit(), self._folder)
        await self.worker.start()
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._sock.setblocking(False)
        self.port = self._sock.getsockname()[1]
        await self.worker.listen([self._sock])
        self.worker.set_replicas([spec_of(one) for one in self._replicas])
        await eventually(
            lambda: all(r.reachable for hub in self.worker.hubs for r in hub.replicas.values())
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await LocalWorker(self.worker).close(0)
        self._sock.close()

    def add_token(self, tenant: str, user: str, role: str = "user", **more: Any) -> str:
        """Store a new token and make it good at once."""
        token = add_token(self.tokens, tenant, user, role, **more)
        self.worker.apply(self.settings)
        return token

    async def connect(self, token: str = ADMIN_TOKEN, **handshake: Any) -> RpcClient:
        """Return an authenticated client; the caller closes it."""
        return await RpcClient.connect(self.host, self.port, token, handshake=handshake)

    async def bare(self) -> RpcClient:
        """Return a client that has said nothing; the caller closes it."""
        return await RpcClient.connect(self.host, self.port)

    def replica_of(self, session_id: str) -> str:
        """Return the name of the replica where a session in use lives."""
        return next(
            hub.sessions[session_id].placement.replica
            for hub in self.worker.hubs
            if session_id in hub.sessions
        )


def spec_of(cli: FakeCli | RealCli) -> ReplicaSpec:
    """Return a CLI as the gateway knows it."""
    return ReplicaSpec(cli.name, cli.host, cli.port, cli.token)


def children(pid: int) -> list[int]:
    """Return the pids of all living descendants of a process."""
    found: list[int] = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            child = int(status.parent.name)
            found += [child, *children(child)]
    return found


def alive(pid: int) -> bool:
    """Tell whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
