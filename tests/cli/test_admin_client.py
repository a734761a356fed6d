"""The admin commands against a running admin API: tables, JSON, waiting, errors, exit status."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.cli import admin_client
from gateway.cli.admin_client import (
    TOKEN_VARIABLES,
    Interval,
    Sample,
    _amount,
    _duration,
    _table,
    add_commands,
    screen,
)
from gateway.config.kinds import Address
from gateway.core.stats import Stats
from gateway.errors import EXIT_FAILURE, EXIT_UNAVAILABLE, EXIT_USAGE, ConfigError, StartupError
from gateway.io.admin import (
    AdminServer,
    ConflictError,
    Readiness,
    ReplicaInfo,
    SessionInfo,
    SessionPage,
    UnknownReplicaError,
    build_admin_app,
)
from gateway.io.telemetry import Telemetry
from gateway.types import ReplicaState

TOKEN = "adm1n-token"


class View:
    """A gateway whose replicas take a few looks to drain or restart."""

    def __init__(self) -> None:
        self.facts = Readiness(accepting=True, draining=False, replicas_up=2, replicas=2)
        self.stats = Stats()
        self.telemetry = Telemetry(self.stats, version="1.2.3")
        self.infos = {
            name: ReplicaInfo(
                name, "127.0.0.1:4000", "default", "up", supervised=True, sessions=3, version="1.0"
            )
            for name in ("cli-0", "cli-1")
        }
        self.all = [
            SessionInfo(
                f"s{n:04}", "acme", "ann", f"cli-{n % 2}", 1, live=n % 3 > 0, busy=n % 3 > 1
            )
            for n in range(1200)
        ]
        self.looks = 0
        self.on_look: Callable[[], None] = lambda: None
        self.log: list[str] = []
        self.changes = ["replica cli-2 added"]

    async def readiness(self) -> Readiness:
        return self.facts

    async def metrics(self) -> bytes:
        self.stats.method("session.send").ok += 3
        self.stats.method("session.send").duration.observe(0.015, n=3)
        self.stats.clients_open = 7
        return self.telemetry.render()

    async def replicas(self) -> list[ReplicaInfo]:
        self.looks += 1
        self.on_look()
        return list(self.infos.values())

    async def sessions(
        self, *, limit: int, cursor: str | None, tenant: str | None, replica: str | None
    ) -> SessionPage:
        found = [
            one
            for one in self.all
            if one.session > (cursor or "")
            and tenant in (None, one.tenant)
            and replica in (None, one.replica)
        ]
        return SessionPage(found[:limit], found[limit - 1].session if len(found) > limit else None)

    def set(self, name: str, **changes: object) -> ReplicaInfo:
        if name not in self.infos:
            raise UnknownReplicaError(name)
        self.infos[name] = replace(self.infos[name], **changes)  # type: ignore[arg-type]
        return self.infos[name]

    async def drain(self, name: str) -> ReplicaInfo:
        return self.set(name, state="draining")

    async def undrain(self, name: str) -> ReplicaInfo:
        return self.set(name, state="up")

    async def recycle(self, name: str) -> ReplicaInfo:
        if not self.infos[name].supervised:
            raise ConflictError(f"{name} was not started by the gateway")
        self.log.append(name)
        return self.set(name, state="draining")

    async def reload(self) -> list[str]:
        return self.changes


class Gateway:
    """A running admin API."""

    def __init__(self, view: View, port: int) -> None:
        self.view = view
        self.port = port

    def arguments(self, *line: str) -> list[str]:
        return [*line, "--admin", f"127.0.0.1:{self.port}"]

    async def run(self, *line: str) -> int:
        """Run a command as the program would, in a thread."""
        return await asyncio.to_thread(_run, self.arguments(*line))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="copilot-gateway")
    add_commands(parser.add_subparsers(required=True))
    return parser


def _run(line: list[str]) -> int:
    args = _parser().parse_args(line)
    status: int = args.run(args)
    return status


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("COPILOT_GATEWAY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COPILOT_GATEWAY_ADMIN_TOKEN", TOKEN)
    monkeypatch.setattr(admin_client, "POLL_INTERVAL", 0.01)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    view = View()
    server = AdminServer(build_admin_app(view, TOKEN))
    yield Gateway(view, await server.start_tcp("127.0.0.1", 0))
    await server.close()


Capture = pytest.CaptureFixture[str]


async def test_status(gateway: Gateway, capsys: Capture) -> None:
    assert await gateway.run("status") == 0
    assert capsys.readouterr().out == "ready\nreplicas: 2 of 2 up\n"
    gateway.view.facts = Readiness(True, True, 0, 2)
    assert await gateway.run("status") == EXIT_FAILURE
    assert capsys.readouterr().out == (
        "not ready\n  the gateway is shutting down\n  none of 2 replicas is up\n"
        "replicas: 0 of 2 up\n"
    )
    assert await gateway.run("status", "--json") == EXIT_FAILURE
    assert json.loads(capsys.readouterr().out)["ready"] is False


async def test_replicas(gateway: Gateway, capsys: Capture) -> None:
    gateway.view.set("cli-1", state="ejected", reason="3 failed probes", probe_seconds=0.0123)
    assert await gateway.run("replicas") == 0
    assert capsys.readouterr().out.splitlines() == [
        "NAME   STATE    POOL     ADDRESS         VERSION  LINKS  SESSIONS  IN-FLIGHT  PROBE    "
        "EJECTIONS  RESTARTS  NOTE",
        "cli-0  up       default  127.0.0.1:4000  1.0          0         3          0  -        "
        "        0         0",
        "cli-1  ejected  default  127.0.0.1:4000  1.0          0         3          0  12.3 ms  "
        "        0         0  3 failed probes",
    ]
    assert await gateway.run("replicas", "--json") == 0
    replicas = json.loads(capsys.readouterr().out)["replicas"]
    assert [one["probe_seconds"] for one in replicas] == [None, 0.0123]


async def test_sessions(gateway: Gateway, capsys: Capture) -> None:
    assert await gateway.run("sessions", "--limit", "3") == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "SESSION  TENANT  USER  REPLICA  EPOCH  STATE   CLIENTS",
        "s0000    acme    ann   cli-0        1  stored        0",
        "s0001    acme    ann   cli-1        1  live          0",
        "s0002    acme    ann   cli-0        1  busy          0",
    ]
    assert "--all" in shown.err


async def test_sessions_of_several_pages(gateway: Gateway, capsys: Capture) -> None:
    assert await gateway.run("sessions", "--all", "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert [one["session"] for one in body["sessions"]] == [f"s{n:04}" for n in range(1200)]
    assert body["cursor"] is None
    assert await gateway.run("sessions", "--limit", "700", "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert (len(body["sessions"]), body["cursor"]) == (700, "s0699")


async def test_sessions_are_filtered(gateway: Gateway, capsys: Capture) -> None:
    assert await gateway.run("sessions", "--replica", "cli-1", "--tenant", "acme", "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert {one["replica"] for one in body["sessions"]} == {"cli-1"}
    assert await gateway.run("sessions", "--tenant", "nobody") == 0
    assert capsys.readouterr().out.splitlines() == [
        "SESSION  TENANT  USER  REPLICA  EPOCH  STATE  CLIENTS"
    ]


async def test_names_cannot_drive_the_terminal(gateway: Gateway, capsys: Capture) -> None:
    gateway.view.all = [SessionInfo("s\x1b[2J\n", "\u202eacme", "ann\x9b", "cli-0", 1, True)]
    assert await gateway.run("sessions") == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith(r"s\x1b[2J\n  \u202eacme  ann\x9b")


async def test_drain_returns_at_once(gateway: Gateway, capsys: Capture) -> None:
    assert await gateway.run("drain", "cli-0") == 0
    assert capsys.readouterr().out == (
        "cli-0 is draining: 3 sessions and 0 requests are left on it\n"
    )
    assert await gateway.run("undrain", "cli-0", "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "up"
    assert await gateway.run("undrain", "cli-0") == 0
    assert capsys.readouterr().out == "cli-0 is up\n"


async def test_drain_waits(gateway: Gateway, capsys: Capture) -> None:
    view = gateway.view

    def leave() -> None:
        left = view.infos["cli-0"].sessions - 1
        view.set("cli-0", sessions=max(0, left), drained=left <= 0)

    view.on_look = leave
    assert await gateway.run("drain", "cli-0", "--wait") == 0
    assert capsys.readouterr().out == "cli-0 is drained\n"
    assert view.looks == 3


async def test_drain_gives_up(gateway: Gateway) -> None:
    with pytest.raises(
        StartupError, match=r"cli-0 is draining after 0\.05 s: 3 sessions"
    ) as caught:
        await gateway.run("drain", "cli-0", "--wait", "--timeout", "0.05")
    assert caught.value.exit_status == EXIT_FAILURE


async def test_drain_notices_that_somebody_undrained(gateway: Gateway) -> None:
    gateway.view.on_look = lambda: gateway.view.set("cli-0", state="up") and None
    with pytest.raises(StartupError, match="cli-0 is no longer draining: it is up"):
        await gateway.run("drain", "cli-0", "--wait")


async def test_drain_notices_that_the_replica_left(gateway: Gateway) -> None:
    gateway.view.on_look = lambda: gateway.view.infos.pop("cli-0", None) and None
    with pytest.raises(StartupError, match="no replica is named 'cli-0'"):
        await gateway.run("drain", "cli-0", "--wait")


async def test_recycle_all_goes_one_by_one(gateway: Gateway, capsys: Capture) -> None:
    view = gateway.view
    view.infos["cli-9"] = ReplicaInfo("cli-9", "10.0.0.9:1", "default", "up", supervised=False)
    down: list[int] = []

    def progress() -> None:
        away = [one for one in view.infos.values() if one.state != "up"]
        down.append(len(away))
        for one in away:
            following = {"draining": "starting", "starting": "up"}[one.state]
            view.set(one.name, state=following, restarts=one.restarts + (following == "up"))

    view.on_look = progress
    assert await gateway.run("recycle", "--all") == 0
    assert capsys.readouterr().out.splitlines() == [
        "cli-0 is being recycled",
        "cli-0 is up again",
        "cli-1 is being recycled",
        "cli-1 is up again",
    ]
    assert view.log == ["cli-0", "cli-1"]
    assert max(down) == 1


async def test_recycle_one(gateway: Gateway, capsys: Capture) -> None:
    assert await gateway.run("recycle", "cli-1") == 0
    assert capsys.readouterr().out == "cli-1 is being recycled\n"
    gateway.view.set("cli-0", supervised=False)
    gateway.view.set("cli-1", supervised=False)
    with pytest.raises(StartupError, match="409: cli-0 was not started by the gateway"):
        await gateway.run("recycle", "cli-0")
    with pytest.raises(StartupError, match="no replica was spawned"):
        await gateway.run("recycle", "--all")


async def test_reload(gateway: Gateway, capsys: Capture) -> None:
    assert await gateway.run("reload") == 0
    assert capsys.readouterr().out == "replica cli-2 added\n"
    gateway.view.changes = []
    assert await gateway.run("reload") == 0
    assert capsys.readouterr().out == "nothing has changed\n"
    assert await gateway.run("reload", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"changes": []}


async def test_an_unknown_replica(gateway: Gateway) -> None:
    with pytest.raises(StartupError, match="404: no replica is named 'a/b c'") as caught:
        await gateway.run("drain", "a/b c")
    assert caught.value.exit_status == EXIT_FAILURE


async def test_where_the_token_comes_from(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(f"{TOKEN}\n")
    bad.write_text("wrong")
    monkeypatch.setenv(TOKEN_VARIABLES[0], "wrong")
    assert await gateway.run("replicas", "--token-file", str(good)) == 0
    monkeypatch.setenv("COPILOT_GATEWAY_ADMIN_TOKEN_FILE", str(good))
    assert await gateway.run("replicas") == 0
    with pytest.raises(StartupError, match="401: the admin token is wrong"):
        await gateway.run("replicas", "--token-file", str(bad))
    monkeypatch.delenv("COPILOT_GATEWAY_ADMIN_TOKEN_FILE")
    with pytest.raises(StartupError, match="401: the admin token is wrong"):
        await gateway.run("replicas")
    monkeypatch.delenv(TOKEN_VARIABLES[0])
    monkeypatch.setenv(TOKEN_VARIABLES[1], TOKEN)
    assert await gateway.run("replicas") == 0
    monkeypatch.delenv(TOKEN_VARIABLES[1])
    with pytest.raises(
        StartupError, match=r"401: an admin token is needed \(set COPILOT"
    ) as caught:
        await gateway.run("replicas")
    assert caught.value.exit_status == EXIT_FAILURE
    assert await gateway.run("status") == 0


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff\xfe", "caf\u00e9".encode()])
def test_token_files_that_hold_no_token(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="token file") as caught:
        _run(["replicas", "--token-file", str(file)])
    assert caught.value.exit_status == EXIT_USAGE
    assert "caf" not in str(caught.value)


def test_a_missing_token_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        _run(["replicas", "--token-file", str(tmp_path / "none")])


def test_the_address_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPILOT_GATEWAY_ADMIN_LISTEN", "nonsense")
    with pytest.raises(ConfigError, match="COPILOT_GATEWAY_ADMIN_LISTEN"):
        _run(["status"])


@pytest.mark.parametrize(
    "line",
    [
        ["status", "--admin", "nonsense"],
        ["drain"],
        ["recycle"],
        ["recycle", "cli-0", "--all"],
        ["sessions", "--limit", "0"],
        ["sessions", "--limit", "3", "--all"],
        ["top", "--interval", "0"],
        ["top", "--interval", "nan"],
        ["drain", "cli-0", "--timeout", "-1"],
        ["replicas", "--token", "secret"],
    ],
)
def test_usage_errors(line: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        _parser().parse_args(line)
    assert caught.value.code == EXIT_USAGE
    assert "usage:" in capsys.readouterr().err


async def test_nobody_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with pytest.raises(StartupError) as caught:
            await Gateway(View(), port).run("status")
    assert str(caught.value) == (
        f"cannot reach the admin API at 127.0.0.1:{port}: Connection refused"
    )
    assert caught.value.exit_status == EXIT_UNAVAILABLE


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"Content-Length: 2\r\n\r\n{}", "this is not HTTP"),
        (b"", "cannot reach the admin API"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "not the admin API of a gateway"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "not the admin API of a gateway"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\nhello", "404: this is not the admin API"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", "cannot reach the admin API"),
    ],
)
async def test_something_else_listens(answer: bytes, message: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        with pytest.raises(StartupError, match=message):
            await Gateway(View(), server.sockets[0].getsockname()[1]).run("status")


async def test_an_answer_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_client, "ANSWER_TIMEOUT", 0.05)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(StartupError, match="no answer in time") as caught,
    ):
        await Gateway(View(), silent.getsockname()[1]).run("replicas")
    assert caught.value.exit_status == EXIT_UNAVAILABLE


# top


async def test_top_once(gateway: Gateway, capsys: Capture) -> None:
    gateway.view.stats.replica("cli-0").state = ReplicaState.UP
    assert await gateway.run("top", "--once", "--interval", "0.1") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0] == f"copilot-gateway 1.2.3 at 127.0.0.1:{gateway.port}  ready"
    assert "7 open" in out
    (send,) = [line.split() for line in lines if line.startswith("session.send")]
    assert send[1] != "0"
    assert send[3:] == ["<=20", "ms", "<=20", "ms"]
    assert any(line.split()[:2] == ["cli-0", "up"] for line in lines)


async def test_top_without_metrics_that_can_be_read(gateway: Gateway) -> None:
    async def metrics() -> bytes:
        return b"clients many\n"

    gateway.view.metrics = metrics  # type: ignore[method-assign]
    with pytest.raises(StartupError, match="metrics cannot be read"):
        await gateway.run("top", "--once", "--interval", "0.1")


def _start(gateway: Gateway, *line: str, stdout: int) -> subprocess.Popen[str]:
    """Run one of our commands in a process of its own."""
    program = """
        import argparse, sys
        from gateway.cli.admin_client import add_commands
        parser = argparse.ArgumentParser()
        add_commands(parser.add_subparsers())
        args = parser.parse_args()
        sys.exit(args.run(args))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), *gateway.arguments(*line)]
    return subprocess.Popen(command, stdout=stdout, text=True)


async def test_top_on_a_pipe_prints_screens_until_interrupted(gateway: Gateway) -> None:
    process = _start(gateway, "top", "--interval", "0.05", stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        heads = 0
        while heads < 3:
            line = await asyncio.to_thread(process.stdout.readline)
            assert line, "top ended by itself"
            heads += line.startswith("copilot-gateway 1.2.3")
            assert "\x1b" not in line
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 15) == 0
    finally:
        process.kill()
        process.communicate()


async def test_top_on_a_terminal_restores_it_and_outlives_the_gateway() -> None:
    view = View()
    server = AdminServer(build_admin_app(view, TOKEN))
    gateway = Gateway(view, await server.start_tcp("127.0.0.1", 0))
    master, slave = pty.openpty()
    process = _start(gateway, "top", "--interval", "0.05", stdout=slave)
    os.close(slave)
    seen = b""
    grown = threading.Condition()

    def read() -> None:
        nonlocal seen
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # how a terminal says that its last user is gone
                return
            with grown:
                seen += data
                grown.notify()

    def wait_for(text: bytes) -> bool:
        with grown:
            return grown.wait_for(lambda: text in seen, 15)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert await asyncio.to_thread(wait_for, b"\x1b[?1049h")
        assert await asyncio.to_thread(wait_for, b"session.send")
        await server.close()
        assert await asyncio.to_thread(wait_for, b"cannot reach the admin API")
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 15) == 0
        await asyncio.to_thread(reader.join, 15)
        assert seen.endswith(b"\x1b[?25h\x1b[?1049l")
    finally:
        process.kill()
        process.wait()
        await asyncio.to_thread(reader.join, 15)
        os.close(master)
        await server.close()


def _sample(at: float, stats: Stats) -> Sample:
    class Api:
        address = Address("127.0.0.1", 1)

        def readiness(self) -> dict[str, object]:
            return {"ready": False, "reasons": ["none of 1 replicas is up"]}

        def metrics(self) -> str:
            return Telemetry(stats, version="1").render().decode()

    return replace(Sample.take(Api()), at=at)  # type: ignore[arg-type]


def test_rates_and_quantiles() -> None:
    stats = Stats()
    stats.clients_accepted = 10
    stats.method("ping").duration.observe(0.3)
    before = _sample(100.0, stats)
    stats.clients_accepted = 30
    ping = stats.method("ping")
    ping.duration.observe(0.001, n=98)
    ping.duration.observe(0.04)
    ping.duration.observe(1e6)
    interval = Interval(before, _sample(110.0, stats))
    assert interval.rate("copilot_gateway_clients_accepted_total") == pytest.approx(2.0)
    name = "copilot_gateway_request_duration_seconds"
    assert interval.quantile(name, 0.5, method="ping") == 0.001
    assert interval.quantile(name, 0.99, method="ping") == 0.05
    assert interval.quantile(name, 1.0, method="ping") == float("inf")
    assert interval.quantile(name, 0.5, method="connect") is None


def test_a_restart_of_the_gateway_is_no_negative_rate() -> None:
    stats = Stats()
    stats.clients_accepted = 10
    stats.method("ping").duration.observe(0.3)
    interval = Interval(_sample(1.0, stats), _sample(2.0, Stats()))
    assert interval.rate("copilot_gateway_clients_accepted_total") == 0
    assert interval.quantile("copilot_gateway_request_duration_seconds", 0.5) is None
    assert "NOT READY: none of 1 replicas is up" in screen(interval, "here")[0]


def test_numbers_for_people() -> None:
    assert [_duration(s) for s in (0.0, 0.0000123, 0.00123, 12.5)] == [
        "0 us",
        "12.3 us",
        "1.23 ms",
        "12.5 s",
    ]
    assert [_amount(n) for n in (0, 0.5, 9.96, 12, 1234, 5.6e6, 7e9)] == [
        "0",
        "0.5",
        "10",
        "12",
        "1.23k",
        "5.6M",
        "7G",
    ]


def test_table_alignment() -> None:
    assert _table(("A", "LONG"), [("x", 1), ("yyy", 10)]) == [
        "A    LONG",
        "x       1",
        "yyy    10",
    ]
    assert _table(("A", "B"), []) == ["A  B"]
