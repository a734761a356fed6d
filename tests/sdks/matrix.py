"""Which SDK works with which CLI: directly, through the gateway, and through the connector.

usage: python -m tests.sdks.matrix [--sdk PATTERN]... [--cli VERSION]... [--cache FOLDER]

Every cell is one conversation (ping, tool call, resume) by a real SDK in an environment of its own,
which is installed into the cache when it is first needed. The CLIs of earlier generations are those
that the Python SDKs of their time carry; ``today`` is the one the tests run. SDKs that cannot send
a token meet a gateway with ``--auth none``; the connector always leads to one that wants a token.
In the column ``stdio`` the SDK starts the connector as if it were the CLI.

Ends with status 1 if a cell that should work does not: those of today's CLI, save where
:data:`KNOWN` says why not.
"""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.testing.model_server import ModelServer
from tests.support.stack import REPOSITORY, cli_environment, real_cli

HERE = Path(__file__).parent
COMMAND = (sys.executable, "-m", "gateway.cli")
TURN_SECONDS = 120.0
INSTALL_SECONDS = 900.0
START_SECONDS = 60.0
COLUMNS = ("direct", "gateway", "connector", "stdio")

CLI_OF_SDK = {"1.0.57": "1.0.0", "1.0.36": "0.3.0", "1.0.21": "0.2.3", "1.0.2": "0.1.32"}
"""CLI version to the Python SDK version whose wheel carries it."""

TOKEN = "matrix-token"
REPLICA_TOKEN = "matrix-replica-token"


class UnavailableError(Exception):
    """An SDK cannot be installed, or a program does not start; the message says why."""


@dataclass(frozen=True)
class Sdk:
    """One SDK version.

    Attributes:
        language: ``python``, ``node`` or ``rust``.
        version: its version.
        sends_token: whether it can present a token, directly to a gateway.
        starts_cli: whether it can start a CLI.
    """

    language: str
    version: str
    sends_token: bool
    starts_cli: bool = True

    @property
    def name(self) -> str:
        """How it is called in the table."""
        return f"{self.language} {self.version}"


SDKS = (
    Sdk("python", "0.1.32", False),
    Sdk("python", "0.2.3", False),
    Sdk("python", "0.3.0", False),
    Sdk("python", "1.0.0", True),
    Sdk("python", "1.0.27", True),
    Sdk("node", "0.1.32", False),
    Sdk("node", "0.2.2", False),
    Sdk("node", "0.3.0", False),
    Sdk("node", "1.0.0", True),
    Sdk("node", "1.0.14", True),
    Sdk("rust", "1.0.28", False, starts_cli=False),
)

KNOWN = {
    (f"python {version}", "direct"): "reads a ping's timestamp as an integer"
    for version in ("0.1.32", "0.2.3", "0.3.0")
}
"""Cells of today's CLI that cannot work without a bridge, and why."""


async def run(
    args: Sequence[str | Path], within: float, env: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run a program to its end; return its status and the last line it said."""
    process = await asyncio.create_subprocess_exec(
        *map(str, args),
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(within):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return 1, f"no end within {within:.0f} s"
    lines = output.decode(errors="replace").strip().splitlines() or [""]
    assert process.returncode is not None
    return process.returncode, lines[-1]


async def need(args: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
    """Run an installing program.

    Raises:
        UnavailableError: it is not there, or fails.
    """
    try:
        status, said = await run(args, INSTALL_SECONDS, env)
    except FileNotFoundError:
        raise UnavailableError(f"{args[0]} is not installed") from None
    if status != 0:
        raise UnavailableError(said)


class Cache:
    """Installed SDKs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def turn(self, sdk: Sdk) -> list[str | Path]:
        """Install an SDK if need be; return the command that has a conversation by it.

        Raises:
            UnavailableError: it cannot be installed.
        """
        folder = self._folder / f"{sdk.language}-{sdk.version}"
        done = folder / ".installed"
        if sdk.language == "python":
            if not done.exists():
                await need([sys.executable, "-m", "venv", folder])
                package = f"github-copilot-sdk=={sdk.version}"
                await need([folder / "bin" / "pip", "install", "--quiet", package])
            command: list[str | Path] = [folder / "bin" / "python", HERE / "python" / "turn.py"]
        elif sdk.language == "node":
            if not done.exists():
                folder.mkdir(parents=True, exist_ok=True)
                package = f"@github/copilot-sdk@{sdk.version}"
                await need(["npm", "install", "--silent", "--prefix", folder, package])
            command = ["node", HERE / "node" / "turn.mjs", folder]
        else:
            if not done.exists():
                manifest = HERE / "rust" / "Cargo.toml"
                env = {**os.environ, "CARGO_TARGET_DIR": str(folder)}
                await need(["cargo", "build", "--quiet", "--manifest-path", manifest], env)
            command = [folder / "debug" / "turn"]
        done.touch()
        return command

    async def cli(self, version: str) -> Path:
        """Return a CLI binary by its version, or ``today``.

        Raises:
            UnavailableError: the SDK that carries it cannot be installed.
        """
        if version == "today":
            return real_cli()
        sdk = Sdk("python", CLI_OF_SDK[version], False)
        await self.turn(sdk)
        [binary] = (self._folder / f"python-{sdk.version}").glob(
            "lib/*/site-packages/copilot/bin/copilot"
        )
        return binary


@asynccontextmanager
async def listening(
    args: Sequence[str | Path], env: dict[str, str], folder: Path
) -> AsyncIterator[int]:
    """Run a server for the time of the block; gives its port.

    Raises:
        UnavailableError: it does not come to listen.
    """
    process = await asyncio.create_subprocess_exec(
        *map(str, args),
        env=env,
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    said = ""
    drain: asyncio.Task[bytes] | None = None
    try:
        async with asyncio.timeout(START_SECONDS):
            while line := (await process.stdout.readline()).decode(errors="replace"):
                if match := re.search(r"listening on port (\d+)", line):
                    break
                said = line.strip() or said
            else:
                raise UnavailableError(said or "it ended without a word")
        drain = asyncio.create_task(process.stdout.read())
        yield int(match[1])
    except TimeoutError:
        raise UnavailableError("it did not listen in time") from None
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
        await process.wait()
        if drain is not None:
            await drain


class Stand:
    """One CLI version with all ways to it.

    Attributes:
        ways: column to address; ``open`` is the gateway that wants no token.
        missing: column to the reason it is not there.
    """

    def __init__(self) -> None:
        self.ways: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def way(self, sdk: Sdk, column: str) -> tuple[str | None, str | None]:
        """Return the address for a cell, and the token to present there."""
        if column == "stdio" and not sdk.starts_cli:
            return None, None
        if column != "gateway":
            return self.ways.get(column), None
        if sdk.sends_token:
            return self.ways.get("gateway"), TOKEN
        return self.ways.get("open"), None


@asynccontextmanager
async def stand(binary: Path, model: ModelServer) -> AsyncIterator[Stand]:
    """Start a CLI, two gateways before it and a connector before one of them."""
    found = Stand()
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        flags = ("--headless", "--no-auto-update", "--port", "0")

        async def start(column: str, args: Sequence[str | Path], env: dict[str, str]) -> int | None:
            folder = root / column
            folder.mkdir()
            try:
                port = await stack.enter_async_context(listening(args, env, folder))
            except UnavailableError as error:
                found.missing[column] = str(error)
                return None
            found.ways[column] = f"127.0.0.1:{port}"
            return port

        url = model.base_url
        await start("direct", [binary, *flags], cli_environment(root / "home-direct", url))
        home = root / "home-replica"
        replica = await start(
            "replica", [binary, *flags], cli_environment(home, url, REPLICA_TOKEN)
        )
        if replica is not None:
            base = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            base["COPILOT_GATEWAY_REPLICA_TOKEN"] = REPLICA_TOKEN
            serve = (*COMMAND, "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
            serve = (*serve, "--replica", f"cli=127.0.0.1:{replica}", "--state-dir")
            await start("open", [*serve, str(root / "s1"), "--auth", "none"], base)
            gateway = await start(
                "gateway", [*serve, str(root / "s2")], {**base, "COPILOT_GATEWAY_TOKEN": TOKEN}
            )
            # Without a gateway, the connector is tried on the CLI, which wants a token as well.
            token = root / "token"
            token.touch(0o600)
            token.write_text(REPLICA_TOKEN if gateway is None else TOKEN)
            connect = (*COMMAND, "connect", "--gateway", f"127.0.0.1:{gateway or replica}")
            connect = (*connect, "--token-file", str(token))
            await start("connector", [*connect, "--listen", "127.0.0.1:0"], base)
            script = root / "copilot"
            script.write_text(
                f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(REPOSITORY))} "
                f"exec {shlex.join(connect)} --stdio\n"
            )
            script.chmod(0o755)
            found.ways["stdio"] = f"stdio:{script}"
        yield found


async def cell(stand: Stand, sdk: Sdk, column: str, command: list[str | Path], url: str) -> str:
    """Have one conversation; return ``ok`` or what went wrong."""
    address, token = stand.way(sdk, column)
    if address is None:
        return "-"
    env = {name: value for name, value in os.environ.items() if not name.startswith("COPILOT_")}
    if token is not None:
        env["COPILOT_CONNECTION_TOKEN"] = token
    status, said = await run([*command, address, url], TURN_SECONDS, env)
    return "ok" if status == 0 and said == "ok" else said or f"status {status}"


async def main() -> int:
    """Print the matrix; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sdk", action="append", help="only SDKs like this, such as 'node *'")
    parser.add_argument(
        "--cli", action="append", choices=["today", *CLI_OF_SDK], help="CLI versions to try"
    )
    parser.add_argument("--cache", type=Path, default=REPOSITORY / ".cache" / "sdks")
    args = parser.parse_args()
    sdks = [s for s in SDKS if any(fnmatch.fnmatch(s.name, p) for p in args.sdk or ["*"])]
    cache = Cache(args.cache)
    failed = False
    async with ModelServer() as model:
        for version in args.cli or ["today", "1.0.57"]:
            notes: list[str] = []
            print(f"\nCLI {version}")
            print(f"{'SDK':<16}" + "".join(f"{column:<12}" for column in COLUMNS))
            async with stand(await cache.cli(version), model) as ways:
                notes += [f"{column}: {why}" for column, why in ways.missing.items()]
                failed |= version == "today" and bool(ways.missing)
                for sdk in sdks:
                    try:
                        command = await cache.turn(sdk)
                    except UnavailableError as error:
                        print(f"{sdk.name:<16}not available: {error}")
                        continue
                    print(f"{sdk.name:<16}", end="", flush=True)
                    for column in COLUMNS:
                        outcome = await cell(ways, sdk, column, command, model.base_url)
                        good = outcome in ("ok", "-")
                        print(f"{outcome if good else 'FAILS':<12}", end="", flush=True)
                        if not good:
                            known = KNOWN.get((sdk.name, column)) if version == "today" else None
                            notes.append(f"{sdk.name}, {column}: {known or outcome[:160]}")
                            failed |= version == "today" and known is None
                    print()
            print("".join(f"  {note}\n" for note in notes), end="")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
