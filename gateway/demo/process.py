"""The demo's gateway: the real program with two CLIs, in an environment of its own."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import aiohttp

from gateway.io.process import GuardedProcess
from gateway.testing.model_server import DEFAULT_MODEL

CLIS = 2
STOP_TIMEOUT = 10.0
"""Seconds that the gateway has to end once it is told to."""

LOG_LINES = 15
"""Lines of its log that are kept, for when something goes wrong."""

_READY = re.compile(r"listening on port (\d+)")
_PROXY = re.compile(r"(?:https?|all|no)_proxy", re.IGNORECASE)
_GITHUB_TOKENS = frozenset({"GH_TOKEN", "GITHUB_TOKEN"})


Replicas = dict[str, dict[str, Any]]
"""What the admin API says of each replica, by name."""


class GatewayEndedError(Exception):
    """The gateway ended, or said nothing usable."""


def clean_environment(env: Mapping[str, str], model_url: str, cli: Path) -> dict[str, str]:
    """Return an environment in which the CLIs know the demo's model and nobody's credentials.

    Args:
        env: the environment of the caller.
        model_url: the model server's base URL.
        cli: the Copilot CLI to run.
    """
    kept = {
        name: value
        for name, value in env.items()
        # Settings of another gateway, credentials, and proxies that loopback would go through.
        if not name.startswith("COPILOT_")
        and name not in _GITHUB_TOKENS
        and not _PROXY.fullmatch(name)
    }
    return {
        **kept,
        "COPILOT_CLI": str(cli),
        "COPILOT_OFFLINE": "true",
        "COPILOT_PROVIDER_BASE_URL": model_url,
        "COPILOT_MODEL": DEFAULT_MODEL,
    }


class DemoGateway:
    """``copilot-gateway serve --spawn 2`` with its state in ``folder``; an async context manager.

    Attributes:
        port: where clients connect, once started.
        log: the last lines of its log.
    """

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.port = 0
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._folder = folder
        self._admin_token = secrets.token_urlsafe(24)
        self._env = {**env, "COPILOT_GATEWAY_ADMIN_TOKEN": self._admin_token}
        self._admin_port = 0
        self._ready = asyncio.Event()
        self._process: GuardedProcess | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def create_token(self, tenant: str, user: str) -> str:
        """Return a new token, made by the command that an operator uses.

        Raises:
            GatewayEndedError: the command failed.
        """
        process = await asyncio.create_subprocess_exec(
            *self._command("token", "create", "--tenant", tenant, "--user", user),
            env=self._env,
            cwd=self._folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        token, said = await process.communicate()
        if process.returncode != 0:
            raise GatewayEndedError(said.decode(errors="replace").strip())
        return token.decode().strip()

    async def start(self) -> None:
        """Start it and wait until it accepts connections.

        Raises:
            GatewayEndedError: it ended instead.
        """
        self._process = await GuardedProcess.start(
            self._command(
                "serve",
                "--spawn",
                str(CLIS),
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
                "--log-format",
                "json",
            ),
            env=self._env,
            cwd=self._folder,
            grace=STOP_TIMEOUT,
            on_line=self._said,
        )
        ended = asyncio.ensure_future(self._process.wait())
        ready = asyncio.ensure_future(self._ready.wait())
        await asyncio.wait([ended, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if not self._ready.is_set():
            raise GatewayEndedError("the gateway did not start")

    async def stop(self) -> str:
        """End it and return how it ended, as words; idempotent."""
        process, self._process = self._process, None
        return str(await process.stop()) if process is not None else ""

    async def replicas(self) -> Replicas:
        """Return what the admin API says of the replicas, by name."""
        answer = await self._get("/replicas")
        return {one["name"]: one for one in answer["replicas"]}

    async def placements(self) -> dict[str, str]:
        """Return the replica of each session in use, by session id."""
        answer = await self._get("/sessions")
        return {one["session"]: one["replica"] for one in answer["sessions"]}

    async def _get(self, path: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self._admin_port}{path}"
        headers = {"Authorization": f"Bearer {self._admin_token}"}
        async with (
            aiohttp.ClientSession(raise_for_status=True) as session,
            session.get(url, headers=headers) as response,
        ):
            answer: dict[str, Any] = await response.json()
            return answer

    def _command(self, *arguments: str) -> list[str]:
        state = str(self._folder / "state")
        return [sys.executable, "-m", "gateway.cli", *arguments, "--state-dir", state]

    def _said(self, stream: str, line: str) -> None:
        if stream == "stdout":
            if match := _READY.search(line):
                self.port = int(match[1])
        else:
            self.log.append(line)
            self._admin_port = self._admin_port or _admin_port(line)
        # Two pipes: either may be read first.
        if self.port and self._admin_port:
            self._ready.set()


def _admin_port(line: str) -> int:
    """Return the port of the admin API if this line of the log tells it, else 0."""
    try:
        record = json.loads(line)
    except ValueError:
        return 0  # the one line of an error
    if not isinstance(record, dict) or record.get("message") != "admin listens":
        return 0
    port: int = record["port"]
    return port
