"""A JSON-RPC client that speaks raw frames, so that a test sees and sends exactly what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from tests.support.wait import TIMEOUT

Message = dict[str, Any]
Predicate = Callable[[Message], Any]


class RpcFault(Exception):
    """A JSON-RPC error answer."""

    def __init__(self, error: Message) -> None:
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.code: int = error["code"]
        self.message: str = error.get("message", "")
        self.data: Any = error.get("data")


class ConnectionEnded(Exception):
    """The peer closed the connection while something was awaited from it."""


def frame(message: Any) -> bytes:
    """Encode one message with its header."""
    body = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


@dataclass(slots=True)
class _Waiter:
    predicate: Predicate
    future: asyncio.Future[Message]


@dataclass(slots=True)
class Inbox:
    """Messages of one kind in order of arrival, and who waits for one of them.

    Attributes:
        messages: those nobody has taken; ``all`` keeps every one.
    """

    messages: list[Message] = field(default_factory=list)
    all: list[Message] = field(default_factory=list)
    _waiters: list[_Waiter] = field(default_factory=list)
    _ended: bool = False

    def put(self, message: Message) -> None:
        self.all.append(message)
        for waiter in self._waiters:
            if not waiter.future.done() and waiter.predicate(message):
                waiter.future.set_result(message)
                return
        self.messages.append(message)

    def end(self) -> None:
        self._ended = True
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_exception(ConnectionEnded("connection closed while waiting"))

    async def wait_for(self, predicate: Predicate, within: float = TIMEOUT) -> Message:
        """Take the first message that satisfies ``predicate``, arrived or yet to come.

        Raises:
            TimeoutError: none came in ``within`` seconds; names what did come.
            ConnectionEnded: the connection closed first.
        """
        for index, message in enumerate(self.messages):
            if predicate(message):
                return self.messages.pop(index)
        if self._ended:
            raise ConnectionEnded("connection closed")
        waiter = _Waiter(predicate, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(within):
                return await waiter.future
        except TimeoutError:
            last = [_brief(message) for message in self.messages[-20:]]
            raise TimeoutError(f"not received; the last others: {last}") from None
        finally:
            self._waiters.remove(waiter)


def _brief(message: Message) -> str:
    params = message.get("params")
    event = params.get("event") if isinstance(params, dict) else None
    kind = event.get("type") if isinstance(event, dict) else None
    return kind or message.get("method") or f"answer {message.get('id')!r}"


class RpcClient:
    """One connection.

    Attributes:
        notifications: what came without an id.
        requests: what the peer asks; answer with :meth:`reply` or :meth:`reply_error`.
        strays: answers that match no request made with :meth:`request` (``id`` null, raw frames).
        hello: the result of ``connect``, when :meth:`connect` was given a token or parameters.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._next_id = 0
        self._pending: dict[str | int, asyncio.Future[Any]] = {}
        self.notifications = Inbox()
        self.requests = Inbox()
        self.strays = Inbox()
        self._recorded: bytearray | None = None
        self.hello: Message = {}
        self.ended = asyncio.Event()
        self._task = asyncio.create_task(self._read(), name="rpc-client-reader")

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        token: str | None = None,
        *,
        handshake: Message | None = None,
        ssl: Any = None,
        limit: int = 1 << 28,
    ) -> Self:
        """Open a connection; perform the handshake if ``token`` or ``handshake`` is given.

        Args:
            host: where to connect to.
            port: where to connect to.
            token: connection token, or None to leave it out.
            handshake: further parameters of ``connect``; ``{}`` for a bare handshake.
            ssl: an SSL context, or None.
            limit: largest header block in bytes.

        Raises:
            RpcFault: the handshake was refused; the connection is closed again.
        """
        reader, writer = await asyncio.open_connection(host, port, ssl=ssl, limit=limit)
        client = cls(reader, writer)
        if token is not None or handshake is not None:
            params = dict(handshake or {})
            if token is not None:
                params["token"] = token
            try:
                client.hello = await client.request("connect", params)
            except BaseException:
                await client.close()
                raise
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def transport(self) -> asyncio.WriteTransport:
        """The transport, to pause reading or to look at the socket."""
        return self._writer.transport

    def post(self, method: str, params: Any = None, id: Any = None) -> asyncio.Future[Any]:
        """Send a request and return the future of its result; ``params`` None leaves it out."""
        if id is None:
            self._next_id += 1
            id = self._next_id
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[id] = future
        message: Message = {"jsonrpc": "2.0", "id": id, "method": method}
        if params is not None:
            message["params"] = params
        self.send_raw(frame(message))
        if self.ended.is_set():
            self._fail_pending()
        return future

    async def request(
        self, method: str, params: Any = None, within: float = TIMEOUT, id: Any = None
    ) -> Any:
        """Send a request and return its result.

        Raises:
            RpcFault: the answer is an error.
            TimeoutError: no answer in ``within`` seconds.
            ConnectionEnded: the connection closed first.
        """
        future = self.post(method, {} if params is None else params, id)
        async with asyncio.timeout(within):
            return await future

    def notify(self, method: str, params: Any = None) -> None:
        """Send a notification."""
        self.send_raw(frame({"jsonrpc": "2.0", "method": method, "params": params or {}}))

    def reply(self, request: Message, result: Any) -> None:
        """Answer a request of the peer."""
        self.send_raw(frame({"jsonrpc": "2.0", "id": request["id"], "result": result}))

    def reply_error(self, request: Message, code: int, message: str) -> None:
        """Answer a request of the peer with an error."""
        error = {"code": code, "message": message}
        self.send_raw(frame({"jsonrpc": "2.0", "id": request["id"], "error": error}))

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)

    async def drain(self) -> None:
        """Wait until what was sent is with the kernel, or nearly."""
        await self._writer.drain()

    def record(self) -> bytearray:
        """Return a buffer to which all bytes received from now on are appended."""
        self._recorded = bytearray()
        return self._recorded

    async def wait_event(
        self,
        session_id: str,
        kind: str | Callable[[str], Any],
        within: float = TIMEOUT,
    ) -> Message:
        """Take the next ``session.event`` of a session with that type; return the event."""

        def matches(message: Message) -> bool:
            if message["method"] != "session.event":
                return False
            params = message["params"]
            found = params["event"]["type"]
            return params["sessionId"] == session_id and bool(
                found == kind if isinstance(kind, str) else kind(found)
            )

        message = await self.notifications.wait_for(matches, within)
        event: Message = message["params"]["event"]
        return event

    def events(self, session_id: str) -> list[Message]:
        """Return every event of a session received so far, taken or not."""
        return [
            message["params"]["event"]
            for message in self.notifications.all
            if message["method"] == "session.event" and message["params"]["sessionId"] == session_id
        ]

    async def wait_ended(self, within: float = TIMEOUT) -> None:
        """Wait until the peer has closed the connection."""
        async with asyncio.timeout(within):
            await self.ended.wait()

    async def close(self) -> None:
        """Close the connection and stop reading; idempotent."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def abort(self) -> None:
        """Drop the connection with a reset."""
        self._writer.transport.abort()

    async def _read(self) -> None:
        try:
            while True:
                header = await self._reader.readuntil(b"\r\n\r\n")
                name, _, value = header.partition(b":")
                assert name == b"Content-Length", header
                body = await self._reader.readexactly(int(value))
                if self._recorded is not None:
                    self._recorded += header + body
                self._dispatch(json.loads(body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.ended.set()
            self._fail_pending()
            for inbox in (self.notifications, self.requests, self.strays):
                inbox.end()

    def _dispatch(self, message: Message) -> None:
        if "method" in message:
            (self.requests if "id" in message else self.notifications).put(message)
            return
        future = self._pending.pop(message["id"], None) if message["id"] is not None else None
        if future is None:
            self.strays.put(message)
        elif not future.done():
            if "error" in message:
                future.set_exception(RpcFault(message["error"]))
            else:
                future.set_result(message["result"])

    def _fail_pending(self) -> None:
        for future in self._pending.values():
            if not future.done():
                future.set_exception(ConnectionEnded("connection closed before the answer"))
                future.exception()  # marks it as seen: nobody may be waiting
        self._pending.clear()
