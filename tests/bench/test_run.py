"""The stub replica and the load generator, run for a moment: every message is accounted for."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import runner
from bench.certificate import Certificate
from bench.native import program, speaks_tls
from bench.process import Process
from bench.results import BenchError
from bench.scenarios import Scenario
from bench.targets import TARGETS

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="the benchmark programs need a C compiler"
)

TOKEN = "stub-token"
BRIEF = runner.Settings(rounds=1, seconds=0.3, warmup=0.1, pinned=False)


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Process]:
    with Process(
        [str(program("stub_replica")), "0"],
        env={"COPILOT_CONNECTION_TOKEN": TOKEN},
        ready=r"listening on port (\d+)\n",
        log=tmp_path / "stub.log",
    ) as process:
        yield process


def loadgen(port: int, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(program("loadgen")),
            f"--target=127.0.0.1:{port}",
            "--warmup=0.1",
            "--seconds=0.3",
            *arguments,
        ],
        env={**os.environ, "COPILOT_CONNECTION_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_requests_are_answered_one_for_one(stub: Process) -> None:
    found = report(loadgen(stub.port, "--work=request", "--connections=3", "--sessions=2"))
    totals = found["totals"]
    assert totals["sessions"] == 6
    assert totals["requests"] == totals["responses"] > 9  # 3 connects and 6 creates are among them
    assert totals["events"] == 0
    assert found["latency_us"]["p50"] <= found["latency_us"]["p99"] <= found["latency_us"]["max"]


def test_bursts_are_complete(stub: Process) -> None:
    found = report(loadgen(stub.port, "--work=stream", "--connections=2", "--events=7"))
    totals = found["totals"]
    turns = totals["requests"] - 2 - 2  # connects and creates
    assert turns == totals["idles"] > 0
    assert totals["events"] == 7 * turns


def test_a_wrong_token_fails_the_run(stub: Process) -> None:
    done = loadgen(stub.port, "--work=request", token="wrong")
    assert done.returncode == 1
    assert "AUTHENTICATION_FAILED" in done.stderr


async def test_answers_may_overtake_one_another(stub: Process) -> None:
    """An answer is held back: its session is still busy when its turn comes again."""
    held: list[bytes] = []
    seen = 0

    def edit(frame: bytes) -> bytes:
        nonlocal seen
        if b'"events":' not in frame:
            return frame
        seen += 1
        if seen == 7:
            held.append(frame)
            return b""
        return frame + held.pop() if seen == 30 else frame

    done = await relay(edit, stub.port, "--work=request", "--sessions=10", "--outstanding=8")
    assert report(done)["totals"]["responses"] > 20


def test_watched_processes_report_cpu_and_memory(stub: Process) -> None:
    (pid,) = stub.pids()
    (watched,) = report(loadgen(stub.port, "--work=request", f"--watch={pid}"))["watched"]
    assert watched["pid"] == pid
    assert 0 < watched["cpu_seconds"] < 0.35
    assert watched["memory_ready"] > 0


Edit = Callable[[bytes], bytes]


async def relay(edit: Edit, port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the load generator through a relay that edits what the replica sends."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, sink = await asyncio.open_connection("127.0.0.1", port)

        async def forward() -> None:
            while data := await reader.read(65536):
                sink.write(data)

        client = asyncio.create_task(forward())
        try:
            while True:
                head = await upstream.readuntil(b"\r\n\r\n")
                body = await upstream.readexactly(int(head.split(b":")[1]))
                writer.write(edit(head + body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            client.cancel()
            sink.close()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        chosen: int = server.sockets[0].getsockname()[1]
        return await asyncio.to_thread(loadgen, chosen, *arguments)


def once(where: bytes, instead: Edit) -> Edit:
    """An edit that changes the first frame that holds ``where``, and no other."""
    done = False

    def edit(frame: bytes) -> bytes:
        nonlocal done
        if done or where not in frame:
            return frame
        done = True
        return instead(frame)

    return edit


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (once(b'"#000003', lambda frame: b""), "event lost, repeated or out of order"),
        (once(b'"#000003', lambda frame: frame * 2), "event lost, repeated or out of order"),
        (once(b'"#000006', lambda frame: b""), "events lost before the end"),
        (once(b"messageId", lambda frame: frame * 2), "answer to nothing that was asked"),
        (once(b"messageId", lambda frame: b"X" + frame), "broken frame header"),
    ],
    ids=["lost", "repeated", "cut", "answered-twice", "broken-frame"],
)
async def test_what_a_proxy_could_do_wrong_fails_the_run(
    stub: Process, edit: Edit, complaint: str
) -> None:
    done = await relay(edit, stub.port, "--work=stream", "--events=7")
    assert done.returncode == 1
    assert complaint in done.stderr


async def test_an_honest_relay_passes(stub: Process) -> None:
    done = await relay(lambda frame: frame, stub.port, "--work=stream", "--events=7")
    assert report(done)["totals"]["events"] > 0


@pytest.mark.skipif(not speaks_tls(), reason="needs OpenSSL's headers")
@pytest.mark.parametrize("work", ["connect", "request", "stream"])
async def test_tls_is_spoken_end_to_end(stub: Process, tmp_path: Path, work: str) -> None:
    certificate = Certificate.make(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.path, certificate.key)
    versions = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        versions.add(writer.get_extra_info("ssl_object").version())
        upstream, sink = await asyncio.open_connection("127.0.0.1", stub.port)
        await asyncio.gather(forward(reader, sink), forward(upstream, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        port: int = server.sockets[0].getsockname()[1]
        arguments = [f"--work={work}", "--connections=3", "--events=40", "--event-bytes=20000"]
        done = await asyncio.to_thread(loadgen, port, "--tls", *arguments)
    totals = report(done)["totals"]
    assert totals["requests"] == totals["responses"] > 3
    assert versions == {"TLSv1.3"}


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario("request", "", "request", connections=2),
        Scenario("stream", "", "stream", connections=2, events=5, per_write=1),
        Scenario("large", "", "stream", events=2, event_bytes=200_000),
        Scenario("slow", "", "stream", connections=3, events=50, slow=1),
        Scenario("connect", "", "connect", connections=2),
        Scenario("create", "", "create", connections=2),
        Scenario("idle", "", "idle", connections=20),
        Scenario("sessions", "", "request", sessions=20, outstanding=4, replicas=1),
    ],
    ids=lambda scenario: scenario.name,
)
def test_every_kind_of_work_runs_direct(scenario: Scenario) -> None:
    found = runner.measure(scenario, TARGETS["direct"], BRIEF)
    if scenario.work != "idle":
        assert found["messages_per_second"] > 0
        assert found["p50_us"] > 0
    assert "cpu_us_per_message" not in found


def test_a_target_that_does_not_start_is_an_error_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="ended before it was ready"):
        Process(["false"], ready=r"port (\d+)", log=tmp_path / "false.log")
