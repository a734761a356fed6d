"""A stand-in for whatever a connector dials: a scripted peer that authenticates and echoes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Self

import orjson

from gateway.wire import framing
from gateway.wire.envelope import encode

PING_TIMESTAMP = "2026-11-20T21:37:02.304209808Z"
PING_MILLISECONDS = 1795210622304

Message = dict[str, Any]


class Link:
    """One connection to the stand-in.

    Attributes:
        received: every byte that came.
        messages: every message that came.
        ended: set when the peer has left.
        certificate: what the peer showed in the TLS handshake, or None.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.received = b""
        self.messages: list[Message] = []
        self.ended = asyncio.Event()
        self.certificate = writer.get_extra_info("peercert")

    def send(self, message: Message) -> None:
        """Send a message."""
        self.writer.write(encode(message))


class StandIn:
    """A scripted gateway.

    Attributes:
        port: where it listens; kept over restarts.
        token: what a ``connect`` must present.
        links: every connection so far.
        respond: what to do with a message instead of the usual, or None.
        listening: whether it takes messages off the wire.
    """

    def __init__(self, token: str = "secret", tls: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.token = token
        self.links: list[Link] = []
        self.respond: Callable[[Link, Message], None] | None = None
        self.listening = asyncio.Event()
        self.listening.set()
        self._tls = tls
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the port of the last run if there was one."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and drop every connection; idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        self.listening.set()
        for link in self.links:
            link.writer.transport.abort()
            await link.ended.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer)
        self.links.append(link)
        decoder = framing.FrameDecoder(1 << 30)
        try:
            while data := await reader.read(1 << 16):
                link.received += data
                for body in decoder.feed(data):
                    message = orjson.loads(body)
                    link.messages.append(message)
                    (self.respond or self.answer)(link, message)
                await self.listening.wait()
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()
            link.ended.set()

    def answer(self, link: Link, message: Message) -> None:
        """Answer as a gateway would: check the token, echo everything else."""
        if "id" not in message or "method" not in message:
            return
        reply: Message = {"jsonrpc": "2.0", "id": message["id"]}
        params = message.get("params") or {}
        if message["method"] == "connect":
            if params.get("token") == self.token:
                reply["result"] = {"ok": True, "protocolVersion": 3, "version": "1.0.102"}
            else:
                reply["error"] = {"code": -32002, "message": "AUTHENTICATION_FAILED"}
        elif message["method"] == "ping":
            reply["result"] = {
                "message": f"pong: {params.get('message', '')}",
                "timestamp": PING_TIMESTAMP,
                "protocolVersion": 3,
            }
        else:
            reply["result"] = {"method": message["method"], "params": params}
        link.send(reply)
