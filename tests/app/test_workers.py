"""A worker in a process of its own, and the channel to it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.app.workers import WorkerProcess
from gateway.config.settings import AuthSettings, RegistrySettings, ServerSettings, Settings
from gateway.errors import StartupError
from tests.support.fake_cli import FakeCli
from tests.support.gateway import ADMIN_TOKEN, spec_of
from tests.support.rpc import RpcClient
from tests.support.wait import eventually


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a worker with a registry of its own."""
    return Settings(
        server=ServerSettings(state_dir=tmp_path),
        auth=AuthSettings(static_token=ADMIN_TOKEN),
        registry=RegistrySettings(url=f"sqlite:///{tmp_path / 'registry.db'}"),
    )


@pytest.fixture
def listener() -> socket.socket:
    """A bound socket."""
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


@pytest.fixture
async def worker(settings: Settings, listener: socket.socket) -> AsyncIterator[WorkerProcess]:
    """A worker that runs."""
    worker = WorkerProcess(3)
    with listener:
        try:
            await worker.start(settings, [listener])
            yield worker
        finally:
            await worker.close(5)


async def test_it_serves_and_answers(
    worker: WorkerProcess, listener: socket.socket, fake_cli: FakeCli
) -> None:
    await worker.call("set_replicas", [spec_of(fake_cli)], [])
    async with await RpcClient.connect(*listener.getsockname(), ADMIN_TOKEN) as client:
        await client.request("ping")
        (info,) = await worker.call("replicas")
        assert (info.name, info.state) == ("cli-0", "up")
        assert b"copilot_gateway" in await worker.call("metrics")
    assert "pid=" in repr(worker)


async def test_many_questions_at_once_are_told_apart(worker: WorkerProcess) -> None:
    answers = await asyncio.gather(
        *(worker.call("readiness") for _ in range(20)),
        *(worker.call("sessions", None, None, None) for _ in range(20)),
    )
    assert [answer.replicas for answer in answers[:20]] == [0] * 20
    assert answers[20:] == [[]] * 20


async def test_what_fails_there_is_told_here(worker: WorkerProcess) -> None:
    with pytest.raises(RuntimeError, match="no_such_method"):
        await worker.call("no_such_method")
    assert (await worker.call("readiness")).accepting


async def test_it_ends_when_it_is_closed(worker: WorkerProcess) -> None:
    await worker.close(10)
    assert await worker.wait() == 0
    with pytest.raises(ConnectionError):
        await worker.call("readiness")


async def test_questions_to_one_that_dies_are_answered(worker: WorkerProcess) -> None:
    os.kill(worker.pid, signal.SIGSTOP)
    asked = asyncio.ensure_future(worker.call("readiness"))
    await asyncio.sleep(0)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ConnectionError):
        await asked
    assert await worker.wait() == -signal.SIGKILL


async def test_one_that_does_not_end_is_killed(worker: WorkerProcess) -> None:
    os.kill(worker.pid, signal.SIGSTOP)
    await worker.close(0.1)
    assert await worker.wait() == -signal.SIGKILL


async def test_signals_of_a_terminal_are_left_to_the_main_process(worker: WorkerProcess) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker.pid, number)
    assert (await worker.call("readiness")).accepting


async def test_one_that_cannot_start_says_why(
    settings: Settings, listener: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "tokens.json").write_text("{broken")
    worker = WorkerProcess(0)
    with listener:
        with pytest.raises(StartupError, match=r"tokens\.json"):
            await worker.start(settings, [listener])
        await worker.close(5)


async def test_it_ends_with_its_main_process(
    settings: Settings, listener: socket.socket, worker: WorkerProcess
) -> None:
    """All that a killed main process leaves behind is the end of the channel."""
    assert worker._writer is not None
    worker._writer.transport.abort()
    assert await worker.wait() == 0


async def test_two_share_a_registry(settings: Settings, fake_cli: FakeCli) -> None:
    sockets = []
    for _ in range(2):
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        sockets.append(sock)
    workers = [WorkerProcess(number) for number in range(2)]
    try:
        for worker, sock in zip(workers, sockets, strict=True):
            await worker.start(replace(settings), [sock])
            await worker.call("set_replicas", [spec_of(fake_cli)], [])
        clients = [await RpcClient.connect(*sock.getsockname(), ADMIN_TOKEN) for sock in sockets]
        await clients[0].request("session.create", {"sessionId": "s"})
        await clients[1].request("session.resume", {"sessionId": "s"})
        found = [await worker.call("sessions", None, None, None) for worker in workers]
        assert [[one.session for one in page] for page in found] == [["s"], ["s"]]
        for client in clients:
            await client.close()
        await eventually(lambda: len(fake_cli.connections) == 2)
    finally:
        for worker, sock in zip(workers, sockets, strict=True):
            await worker.close(5)
            sock.close()
