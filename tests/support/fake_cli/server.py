"""The fake CLI's sockets, and what a test may do to it as to a process."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import tempfile
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.fake_cli.journal import Storage
from tests.support.fake_cli.methods import METHODS, Request
from tests.support.fake_cli.model import ScriptedModel
from tests.support.fake_cli.session import Session
from tests.support.fake_cli.wire import Fault, FrameReader, FramingFault, Message, decode, encode
from tests.support.rpc import RpcClient

VERSION = "1.0.102"
JOURNAL_DELAY = 0.1
"""Seconds the journal is behind the wire."""
CLOSE_TIMEOUT = 0.5
"""Seconds that a stopping CLI gives its clients to read what was written."""
CALLS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it was received; ``connection`` numbers connections from 1."""

    connection: int
    method: str
    params: dict[str, Any]


class Connection(asyncio.Protocol):
    """One client.

    Attributes:
        number: counts connections from 1.
        authenticated: the handshake succeeded, or none is needed.
        gone: the connection has ended.
    """

    def __init__(self, cli: FakeCli) -> None:
        self._cli = cli
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._held: list[bytes] = []
        self.number = 0
        self.authenticated = cli.token is None
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.number = self._cli.opened(self)
        if self._cli.frozen:
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                try:
                    self._dispatch(decode(body))
                except Fault as fault:
                    self._refuse(None, fault)
        except FramingFault as fault:
            self._refuse(None, fault)
            assert self._transport is not None
            self._transport.close()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for future in self._asked.values():
            if not future.done():
                future.set_result(None)
        self._asked.clear()
        self._cli.closed(self)
        self.gone.set()

    def _dispatch(self, message: Message) -> None:
        if message.method is None:
            self._answered(message)
        elif message.id is not None:
            self._cli.calls.append(Received(self.number, message.method, message.params))
            self._cli.spawn(self._answer(message), message.method)

    def _answered(self, message: Message) -> None:
        future = self._asked.pop(message.id, None) if isinstance(message.id, int) else None
        if future is not None and not future.done():
            future.set_result(None if message.error is not None else message.result)

    async def _answer(self, message: Message) -> None:
        assert message.method is not None
        replied = False

        def reply(result: Any) -> None:
            nonlocal replied
            replied = True
            self.send({"jsonrpc": "2.0", "id": message.id, "result": result})

        try:
            if not self.authenticated and message.method != "connect":
                raise Fault(-32001, "AUTHENTICATION_REQUIRED")
            handler = METHODS.get(message.method)
            if handler is None:
                raise Fault(-32601, f"Unhandled method {message.method}")
            request = Request(self._cli, self, message.method, message.params, reply)
            result = await handler(request)
            if not replied:
                reply(result)
        except Fault as fault:
            self._refuse(message.id, fault)

    def _refuse(self, message_id: str | int | None, fault: Fault) -> None:
        error = {"code": fault.code, "message": fault.message}
        self.send({"jsonrpc": "2.0", "id": message_id, "error": error})

    def send(self, message: dict[str, Any]) -> None:
        """Write one message; dropped if the connection is gone, held while frozen."""
        if self._transport is None:
            return
        if self._cli.frozen:
            self._held.append(encode(message))
        else:
            self._transport.write(encode(message))

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification."""
        self.send({"jsonrpc": "2.0", "method": method, "params": params})

    async def request(self, method: str, params: dict[str, Any]) -> Any:
        """Ask the client; return its result, or None on an error or when it has left."""
        if self._transport is None:
            return None
        self._last_id += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[self._last_id] = future
        self.send({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params})
        return await future

    def hold(self) -> None:
        """Stop reading."""
        if self._transport is not None:
            self._transport.pause_reading()

    def let_go(self) -> None:
        """Read again, and write what was held."""
        if self._transport is not None:
            self._transport.write(b"".join(self._held))
            self._transport.resume_reading()
        self._held.clear()

    def close(self) -> None:
        """Close after what was written is sent."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Break the connection: the peer sees a reset."""
        if self._transport is None:
            return
        raw = self._transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


class FakeCli:
    """One fake CLI; an asynchronous context manager.

    Attributes:
        name: for humans.
        home: its ``COPILOT_HOME``; fakes that share one share storage.
        host: the address listened on.
        port: the port; kept over restarts.
        token: what clients must present, or None.
        signed_in: it has a model of its own, so that a session needs no provider.
        version: the version it claims.
        journal_delay: seconds the journal is behind the wire.
        create_delay: seconds that creating or resuming takes at least.
        model: the scripted model.
        sessions: live sessions by id.
        connections: open connections, oldest first.
        providers: holders of the process-wide registrations, by method.
        calls: the last requests received, oldest first.
        frozen: it reads and writes nothing.
        exited: set once ``runtime.shutdown`` was called.
    """

    def __init__(
        self,
        name: str = "cli-0",
        *,
        state_dir: Path | None = None,
        token: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        signed_in: bool = False,
        model: ScriptedModel | None = None,
        journal_delay: float = JOURNAL_DELAY,
    ) -> None:
        self._own_home = tempfile.TemporaryDirectory() if state_dir is None else None
        self.name = name
        self.home = state_dir or Path(self._own_home.name if self._own_home else ".")
        self.host = host
        self.port = port
        self.token = token
        self.signed_in = signed_in
        self.version = VERSION
        self.journal_delay = journal_delay
        self.create_delay = 0.003
        self.model = model or ScriptedModel()
        self.storage = Storage(self.home)
        self.sessions: dict[str, Session] = {}
        self.connections: list[Connection] = []
        self.providers: dict[str, Connection] = {}
        self.calls: deque[Received] = deque(maxlen=CALLS_KEPT)
        self.frozen = False
        self.exited = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opened = 0
        self._random = random.Random(name)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
        if self._own_home is not None:
            self._own_home.cleanup()

    # -- what a test does to it --------------------------------------------------------------

    async def start(self) -> None:
        """Listen on the port of the last run, or on any free one; idempotent.

        Raises:
            OSError: the port is taken.
        """
        if self._server is not None:
            return
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.exited.clear()
        self.storage.open()

    async def stop(self) -> None:
        """End as on SIGTERM: turns are cut, journals closed, clients see the end; idempotent."""
        self.unfreeze()
        for session in list(self.sessions.values()):
            session.shutdown(silent=True)
        for connection in list(self.connections):
            connection.close()
        await self._end()

    async def kill(self) -> None:
        """End as a crash does: unwritten journal lines are lost, connections are reset."""
        for session in list(self.sessions.values()):
            session.crash()
        self.sessions.clear()
        for connection in list(self.connections):
            connection.reset()
        self.frozen = False
        await self._end()

    async def restart(self) -> None:
        """Stop, if it runs, and start again on the same port with what is on disk."""
        await self.stop()
        await self.start()

    def freeze(self) -> None:
        """Accept connections and never answer."""
        self.frozen = True
        for connection in self.connections:
            connection.hold()

    def unfreeze(self) -> None:
        """Go on where :meth:`freeze` stopped."""
        if self.frozen:
            self.frozen = False
            for connection in self.connections:
                connection.let_go()

    async def connect(self, **handshake: object) -> RpcClient:
        """Open a connection and perform the handshake."""
        return await RpcClient.connect(
            self.host, self.port, token=self.token, handshake=dict(handshake)
        )

    def received(self, method: str) -> list[Received]:
        """Return the requests of a method, oldest first."""
        return [call for call in self.calls if call.method == method]

    async def _end(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._wait_closed()
        except TimeoutError:  # someone does not read what was written
            for connection in list(self.connections):
                connection.reset()
            await self._wait_closed()
        self.providers.clear()
        self.storage.close()

    async def _wait_closed(self) -> None:
        await asyncio.gather(*(connection.gone.wait() for connection in list(self.connections)))

    # -- what its parts use ------------------------------------------------------------------

    def exit(self) -> None:
        """End the process from within."""
        self.exited.set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run something that ends with the process."""
        task = asyncio.get_running_loop().create_task(work, name=f"{self.name} {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def jitter(self) -> float:
        """Return the seconds by which a request overtakes another."""
        return self._random.uniform(0, 0.002)

    def opened(self, connection: Connection) -> int:
        """Register a connection; return its number."""
        self.connections.append(connection)
        self._opened += 1
        return self._opened

    def closed(self, connection: Connection) -> None:
        """Forget a connection: the sessions it was the last of end."""
        self.connections.remove(connection)
        for session in list(self.sessions.values()):
            session.detach(connection, closed=True)

    def forget(self, session: Session) -> None:
        """A session has left memory."""
        self.sessions.pop(session.session_id, None)
        self.storage.unlock(session.session_id)

    def broadcast(self, method: str, params: dict[str, Any]) -> None:
        """Notify every connection that has shaken hands."""
        for connection in list(self.connections):
            if connection.authenticated:
                connection.notify(method, params)
