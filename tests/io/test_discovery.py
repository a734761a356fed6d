from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from gateway.io import discovery
from gateway.io.discovery import Discovery, SourceError, parse_list
from gateway.routing.discovery import DnsSource, FileSource, SrvSource
from gateway.types import ReplicaSpec
from tests.support.wait import eventually

SERVICE = "_copilot._tcp.cli.test."


class NameServer(asyncio.DatagramProtocol):
    """A name server on loopback that answers SRV questions.

    Attributes:
        targets: host names and ports.
        ttl: of the answers, in seconds.
        rcode: of the answers.
        silent: it does not answer at all.
        asked: number of questions so far.
    """

    def __init__(self) -> None:
        self.targets: list[tuple[str, int]] = []
        self.ttl = 5
        self.rcode = dns.rcode.NOERROR
        self.silent = False
        self.asked = 0
        self.transport: asyncio.DatagramTransport | None = None

    @property
    def address(self) -> tuple[str, int]:
        assert self.transport is not None
        host, port = self.transport.get_extra_info("sockname")
        return host, port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        self.asked += 1
        if self.silent:
            return
        assert self.transport is not None
        question = dns.message.from_wire(data)
        answer = dns.message.make_response(question)
        answer.flags |= dns.flags.AA
        answer.set_rcode(self.rcode)
        if self.targets and self.rcode == dns.rcode.NOERROR:
            records = [f"0 10 {port} {host}" for host, port in self.targets]
            name = question.question[0].name
            answer.answer.append(dns.rrset.from_text(name, self.ttl, "IN", "SRV", *records))
        self.transport.sendto(answer.to_wire(), peer)


@pytest.fixture
async def name_server() -> AsyncIterator[NameServer]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    yield server
    transport.close()


class Told:
    """What a discovery said, and how to make one that is stopped at the end."""

    def __init__(self) -> None:
        self.lists: list[list[ReplicaSpec]] = []
        self.made: list[Discovery] = []

    def __call__(self, replicas: list[ReplicaSpec]) -> None:
        self.lists.append(replicas)

    def discovery(self, *sources: Any, **options: Any) -> Discovery:
        self.made.append(Discovery(sources, self, **options))
        return self.made[-1]

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.lists[-1]]


@pytest.fixture
async def told(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Told]:
    monkeypatch.setattr(discovery, "FILE_POLL", 0.01)
    told = Told()
    yield told
    for each in told.made:
        await each.stop()


def replace(path: Path, content: str) -> None:
    """Replace a file as careful programs do: readers see the old one or the new one."""
    fresh = path.with_suffix(".new")
    fresh.write_text(content)
    fresh.rename(path)


class TestLists:
    def test_one_replica_per_line(self) -> None:
        text = "# ours\ncli-0=10.0.0.1:4321\n\n  10.0.0.2:4321 # unnamed\n[::1]:1\n"
        assert parse_list("replicas", text, "secret") == [
            ReplicaSpec("cli-0", "10.0.0.1", 4321, "secret"),
            ReplicaSpec("10.0.0.2:4321", "10.0.0.2", 4321, "secret"),
            ReplicaSpec("[::1]:1", "::1", 1, "secret"),
        ]

    def test_toml(self) -> None:
        text = '[[replicas]]\nname = "cli-0"\naddress = "a:1"\n[[replicas]]\naddress = "b:2"\n'
        expected = [ReplicaSpec("cli-0", "a", 1), ReplicaSpec("b:2", "b", 2)]
        assert parse_list("replicas.toml", text) == expected

    def test_json(self) -> None:
        text = json.dumps({"replicas": [{"name": "cli-0", "address": "a:1"}, "b:2"]})
        expected = [ReplicaSpec("cli-0", "a", 1), ReplicaSpec("b:2", "b", 2)]
        assert parse_list("replicas.JSON", text) == expected

    def test_an_empty_list_is_one(self) -> None:
        assert parse_list("replicas", "# none\n") == []
        assert parse_list("replicas.json", '{"replicas": []}') == []

    @pytest.mark.parametrize(
        ("path", "text", "reason"),
        [
            ("r", "a:1\nnonsense\n", "line 2 must be"),
            ("r", "a:0\n", "line 1 must have a port above 0"),
            ("r", "x=a:1\nx=b:1\n", "two replicas have the name x"),
            ("r", "x=a:1\ny=a:1\n", "replicas x and y have the same address a:1"),
            ("r", "x=a:1\nx=a:1\n", "a replica is listed twice"),
            ("r.toml", "replicas = 1", "must hold a list named replicas"),
            ("r.toml", "[[", ""),
            ("r.json", "[]", "must hold a list named replicas"),
            ("r.json", "[" * 100_000, ""),
            ("r.json", '{"replicas": [1]}', "replicas[0] must be a table"),
            ("r.json", '{"replicas": [{"name": "x"}]}', "replicas[0] must"),
            ("r.json", '{"replicas": [{"address": "a:1", "name": 7}]}', "replicas[0] must have"),
            ("r.json", '{"replicas": [{"adress": "a:1"}]}', "replicas[0] has an unknown key"),
        ],
    )
    def test_mistakes_are_named(self, path: str, text: str, reason: str) -> None:
        with pytest.raises(SourceError) as caught:
            parse_list(path, text)
        assert reason in str(caught.value)


class TestFiles:
    async def test_a_change_is_noticed(self, told: Told, tmp_path: Path) -> None:
        path = tmp_path / "replicas"
        path.write_text("cli-0=a:1\n")
        await told.discovery(FileSource(str(path))).start()
        assert told.names == ["cli-0"]
        replace(path, "cli-0=a:1\ncli-1=b:1\n")
        await eventually(lambda: told.names == ["cli-0", "cli-1"])
        replace(path, "cli-1=b:1\n")
        await eventually(lambda: told.names == ["cli-1"])
        replace(path, "")
        await eventually(lambda: told.names == [])

    async def test_a_change_that_leaves_size_and_time_alone(
        self, told: Told, tmp_path: Path
    ) -> None:
        path = tmp_path / "replicas"
        path.write_text("cli-0=a:1\n")
        await told.discovery(FileSource(str(path))).start()
        status = path.stat()
        path.write_text("cli-0=a:2\n")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        await eventually(lambda: told.lists[-1] == [ReplicaSpec("cli-0", "a", 2)])

    async def test_a_link_that_is_pointed_elsewhere(self, told: Told, tmp_path: Path) -> None:
        for number in (0, 1):
            (tmp_path / f"list-{number}").write_text(f"cli-{number}=a:1\n")
        path = tmp_path / "replicas"
        path.symlink_to(tmp_path / "list-0")
        await told.discovery(FileSource(str(path))).start()
        fresh = tmp_path / "fresh"
        fresh.symlink_to(tmp_path / "list-1")
        fresh.rename(path)
        await eventually(lambda: told.names == ["cli-1"])

    async def test_a_broken_file_keeps_the_last_list_and_is_logged_once(
        self, told: Told, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        path = tmp_path / "replicas"
        path.write_text("cli-0=a:1\n")
        watching = told.discovery(FileSource(str(path)))
        await watching.refresh()
        replace(path, "nonsense\n")
        for _ in range(3):
            await watching.refresh()
        assert told.lists == [[ReplicaSpec("cli-0", "a", 1)]]
        warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
        [reason] = [each.__dict__["reason"] for each in warnings]
        assert reason.startswith("line 1 must be [NAME=]HOST:PORT")
        path.unlink()
        await watching.refresh()
        assert told.names == ["cli-0"]
        replace(path, "cli-1=a:1\n")
        await watching.refresh()
        assert told.names == ["cli-1"]
        assert "works again" in caplog.text

    async def test_an_absent_file_is_no_error(self, told: Told, tmp_path: Path) -> None:
        path = tmp_path / "replicas"
        await told.discovery(FileSource(str(path)), static=[ReplicaSpec("own", "a", 9)]).start()
        assert told.names == ["own"]
        path.write_text("cli-0=a:1\n")
        await eventually(lambda: told.names == ["own", "cli-0"])

    @pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * (discovery.MAX_FILE + 1)])
    async def test_what_is_no_list_is_refused(
        self, told: Told, tmp_path: Path, content: bytes
    ) -> None:
        path = tmp_path / "replicas"
        path.write_bytes(content)
        await told.discovery(FileSource(str(path))).refresh()
        assert told.lists == [[]]


def addresses(*found: str) -> Callable[..., list[tuple[Any, ...]]]:
    return lambda host, port, **_: [(0, 0, 0, "", (one, port)) for one in found]


class TestHosts:
    async def test_addresses_are_replicas(self, told: Told) -> None:
        source = DnsSource("cli.test", 4321)
        watching = told.discovery(
            source, token="secret", getaddrinfo=addresses("10.0.0.2", "10.0.0.1")
        )
        await watching.start()
        assert told.names == ["10.0.0.1:4321", "10.0.0.2:4321"]
        assert told.lists[-1][0].token == "secret"

    async def test_the_system_resolves(self, told: Told) -> None:
        await told.discovery(DnsSource("localhost", 4321)).refresh()
        assert told.names in (["127.0.0.1:4321"], ["[::1]:4321"])

    async def test_a_failure_keeps_the_last_list(self, told: Told) -> None:
        answers: list[Any] = [addresses("10.0.0.1"), socket.gaierror(-2, "no such host")]

        def getaddrinfo(*args: Any, **options: Any) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer(*args, **options)

        watching = told.discovery(DnsSource("cli.test", 1), getaddrinfo=getaddrinfo)
        await watching.refresh()
        await watching.refresh()
        assert not answers
        assert told.names == ["10.0.0.1:1"]

    async def test_a_resolver_that_hangs_is_not_waited_for_nor_asked_again(
        self, told: Told, caplog: pytest.LogCaptureFixture
    ) -> None:
        let_go, asked = threading.Event(), []

        def getaddrinfo(host: str, port: int, **_: Any) -> Any:
            asked.append(host)
            let_go.wait(30)
            return addresses("10.0.0.1")(host, port)

        watching = told.discovery(DnsSource("cli.test", 1), getaddrinfo=getaddrinfo, timeout=0.05)
        await watching.refresh()
        await watching.refresh()
        assert len(asked) == 1
        assert told.lists == [[]]
        reasons = [each.__dict__.get("reason") for each in caplog.records]
        assert "no answer within 0.05 s" in reasons
        assert "the system has not answered the last question yet" in reasons
        let_go.set()

        async def found() -> bool:
            await watching.refresh()
            return told.names == ["10.0.0.1:1"]

        await eventually(found)


class TestSrv:
    async def test_targets_are_replicas(self, told: Told, name_server: NameServer) -> None:
        name_server.targets = [("cli-1.cli.test.", 4321), ("cli-0.cli.test.", 4321)]
        source = SrvSource(SERVICE.rstrip("."))
        watching = told.discovery(source, nameserver=name_server.address, token="secret")
        await watching.start()
        assert told.lists == [
            [
                ReplicaSpec("cli-0", "cli-0.cli.test", 4321, "secret"),
                ReplicaSpec("cli-1", "cli-1.cli.test", 4321, "secret"),
            ]
        ]

    async def test_more_targets_than_a_datagram_holds(
        self, told: Told, name_server: NameServer
    ) -> None:
        name_server.targets = [(f"cli-{n}.cli.test.", 4321) for n in range(40)]
        watching = told.discovery(SrvSource(SERVICE), nameserver=name_server.address)
        await watching.refresh()
        assert len(told.lists[-1]) == 40

    async def test_the_ttl_says_when_to_ask_again(
        self, told: Told, name_server: NameServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits: list[tuple[float, float | None, int]] = []

        def note(interval: float, ttl: float | None, failures: int, chance: float) -> float:
            waits.append((interval, ttl, failures))
            return 0.01

        monkeypatch.setattr(discovery, "next_look", note)
        name_server.targets = [("cli-0.cli.test.", 1)]
        name_server.ttl = 7
        await told.discovery(SrvSource(SERVICE), nameserver=name_server.address).start()
        await eventually(lambda: name_server.asked >= 3)
        assert waits[0] == (30.0, 7.0, 0)

    async def test_changes_arrive_by_themselves(
        self, told: Told, name_server: NameServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(discovery, "next_look", lambda *_: 0.01)
        name_server.targets = [("cli-0.cli.test.", 1)]
        watching = told.discovery(SrvSource(SERVICE), nameserver=name_server.address, grace=0.0)
        await watching.start()
        name_server.targets = [("cli-1.cli.test.", 1)]
        await eventually(lambda: told.names == ["cli-1"])

    async def test_who_is_missing_stays_for_the_grace_period(
        self, told: Told, name_server: NameServer
    ) -> None:
        name_server.targets = [("cli-0.cli.test.", 1), ("cli-1.cli.test.", 1)]
        watching = told.discovery(SrvSource(SERVICE), nameserver=name_server.address, grace=3600)
        await watching.refresh()
        name_server.targets = [("cli-1.cli.test.", 1)]
        await watching.refresh()
        assert name_server.asked == 2
        assert told.names == ["cli-0", "cli-1"]

    @pytest.mark.parametrize("trouble", ["servfail", "nxdomain", "empty", "silence"])
    async def test_trouble_keeps_the_last_list(
        self,
        told: Told,
        name_server: NameServer,
        trouble: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        name_server.targets = [("cli-0.cli.test.", 1)]
        watching = told.discovery(
            SrvSource(SERVICE), nameserver=name_server.address, grace=0.0, timeout=0.3
        )
        await watching.refresh()
        match trouble:
            case "servfail":
                name_server.rcode = dns.rcode.SERVFAIL
            case "nxdomain":
                name_server.rcode = dns.rcode.NXDOMAIN
            case "empty":
                name_server.targets = []
            case "silence":
                name_server.silent = True
        await watching.refresh()
        await watching.refresh()
        assert told.lists == [[ReplicaSpec("cli-0", "cli-0.cli.test", 1)]]
        assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 1
        name_server.rcode, name_server.silent = dns.rcode.NOERROR, False
        name_server.targets = [("cli-1.cli.test.", 1)]
        await watching.refresh()
        assert told.names == ["cli-1"]


class TestTogether:
    async def test_earlier_sources_win_and_conflicts_are_logged_once(
        self, told: Told, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "replicas"
        path.write_text("own=b:2\ncli-0=a:1\n")
        watching = told.discovery(FileSource(str(path)), static=[ReplicaSpec("own", "a", 9)])
        await watching.refresh()
        replace(path, "own=b:2\ncli-0=a:1\ncli-1=a:2\n")
        await watching.refresh()
        assert told.names == ["own", "cli-0", "cli-1"]
        left_out = [each for each in caplog.records if "left out" in each.message]
        assert [each.__dict__["reason"] for each in left_out] == ["two replicas have the name own"]

    async def test_nothing_is_told_twice(self, told: Told, tmp_path: Path) -> None:
        path = tmp_path / "replicas"
        path.write_text("a=a:1\nb=b:1\n")
        watching = told.discovery(FileSource(str(path)))
        await watching.refresh()
        replace(path, "b=b:1\na=a:1\n")
        await watching.refresh()
        assert len(told.lists) == 1

    async def test_a_callback_that_fails_does_not_end_the_watch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(discovery, "FILE_POLL", 0.01)
        path = tmp_path / "replicas"
        path.write_text("a=a:1\n")
        seen: list[int] = []

        def fail(replicas: list[ReplicaSpec]) -> None:
            seen.append(len(replicas))
            if len(replicas) == 2:
                raise RuntimeError("broken")

        watching = Discovery([FileSource(str(path))], fail)
        await watching.start()
        replace(path, "a=a:1\nb=b:1\n")
        await eventually(lambda: seen[-1] == 2)
        replace(path, "a=a:1\nb=b:1\nc=c:1\n")
        await eventually(lambda: seen[-1] == 3)
        await watching.stop()
        assert "broken" in caplog.text

    async def test_stop_ends_it_and_may_be_repeated(self, told: Told, tmp_path: Path) -> None:
        path = tmp_path / "replicas"
        path.write_text("a=a:1\n")
        watching = told.discovery(FileSource(str(path)))
        await watching.start()
        await watching.stop()
        await watching.stop()
        assert not [task for task in asyncio.all_tasks() if "discovery" in task.get_name()]

    async def test_a_diagnosis_names_sources_not_tokens(self, told: Told, tmp_path: Path) -> None:
        path = tmp_path / "replicas"
        path.write_text("a=a:1\n")
        watching = told.discovery(FileSource(str(path)), token="secret")
        await watching.refresh()
        assert repr(watching) == f"<Discovery file://{path} (1) replicas=1>"
