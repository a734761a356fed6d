"""A scripted, deterministic model endpoint that speaks the OpenAI chat completions protocol.

A Copilot CLI pointed at it needs neither network nor credentials. The answer is a function of the
conversation: by default it echoes the last user message and says how many user messages the
conversation holds, so that lost or forked history shows. Directives inside the last user message
select other behaviour:

======================== ==========================================================================
``[[tool NAME {json}]]``  call a tool, then answer quoting its result; several are called in turn
``[[chunks N]]``          stream the answer in exactly N pieces
``[[size BYTES]]``        make the answer exactly BYTES bytes long
``[[delay SECONDS]]``     wait before the first piece
``[[chunk-delay SECONDS]]`` wait between pieces
``[[gate NAME]]``         wait before the first piece until :meth:`ModelServer.release`
``[[gate-mid NAME]]``     the same in the middle of the stream
``[[error STATUS]]``      answer with that HTTP status
``[[break]]``             cut the connection in the middle of the answer
======================== ==========================================================================

Anything else in double brackets is ordinary text.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self

import orjson
from aiohttp import web

DEFAULT_MODEL = "gpt-4.1"

MAX_REQUEST_BYTES = 1 << 28
"""Prompts of many megabytes are legal; this is far above what a test sends."""

REQUESTS_KEPT = 200
"""How many requests :attr:`ModelServer.requests` remembers; each may hold a whole conversation."""

_DATETIME_PREFIX = re.compile(r"\A<current_datetime>[^<]*</current_datetime>\s*")
_OPEN = re.compile(r"\[\[([a-z-]+)(?:\s+|(?=\]\]))")
_JSON = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that a prompt asks for."""

    name: str
    arguments: dict[str, Any]


@dataclass(slots=True)
class Script:
    """What a prompt asks of the model.

    Attributes:
        text: the prompt without its directives.
        tools: tool calls, to be made one after the other.
        chunks: number of pieces, or None for one per word.
        size: length of the answer in bytes, or None for its natural length.
        delay: seconds before the first piece.
        chunk_delay: seconds between pieces.
        gate: gate to pass before the first piece.
        gate_mid: gate to pass in the middle.
        error: HTTP status to fail with.
        broken: cut the connection in the middle.
    """

    text: str = ""
    tools: list[ToolCall] = field(default_factory=list)
    chunks: int | None = None
    size: int | None = None
    delay: float = 0.0
    chunk_delay: float = 0.0
    gate: str | None = None
    gate_mid: str | None = None
    error: int | None = None
    broken: bool = False

    @classmethod
    def parse(cls, prompt: str) -> Script:
        """Read the directives out of a prompt; what is not a well-formed directive is text."""
        script = cls()
        text: list[str] = []
        position = 0
        while (match := _OPEN.search(prompt, position)) is not None:
            end = script._take(match[1], prompt, match.end())
            if end is None:
                text.append(prompt[position : match.end()])
                position = match.end()
            else:
                text.append(prompt[position : match.start()])
                position = end
        text.append(prompt[position:])
        script.text = "".join(text).strip()
        return script

    def _take(self, name: str, prompt: str, start: int) -> int | None:
        """Apply the directive whose argument starts at ``start``; return where it ends."""
        if name == "tool":
            return self._take_tool(prompt, start)
        end = prompt.find("]]", start)
        if end < 0:
            return None
        argument = prompt[start:end].strip()
        try:
            match name:
                case "chunks":
                    self.chunks = max(1, int(argument))
                case "size":
                    self.size = max(0, int(argument))
                case "delay":
                    self.delay = float(argument)
                case "chunk-delay":
                    self.chunk_delay = float(argument)
                case "gate":
                    self.gate = argument
                case "gate-mid":
                    self.gate_mid = argument
                case "error":
                    self.error = int(argument)
                case "break":
                    self.broken = True
                case _:
                    return None
        except ValueError:
            return None
        return end + 2

    def _take_tool(self, prompt: str, start: int) -> int | None:
        name, space, _ = prompt[start:].partition(" ")
        if not space:
            return None
        try:
            arguments, end = _JSON.raw_decode(prompt, start + len(name) + 1)
        except ValueError:
            return None
        if not isinstance(arguments, dict) or not prompt.startswith("]]", end):
            return None
        self.tools.append(ToolCall(name, arguments))
        return end + 2

    def answer(self, user_messages: int, tool_results: list[str]) -> str:
        """Return the whole text of the final answer.

        Args:
            user_messages: how many user messages the conversation holds, this one included.
            tool_results: what the tools called for this prompt returned.
        """
        text = f"echo: {self.text} [user messages: {user_messages}]"
        for call, result in zip(self.tools, tool_results, strict=False):
            text += f" [{call.name} returned: {result}]"
        if self.size is None:
            return text
        raw = text.encode()[: self.size].decode(errors="ignore").encode()
        return (raw + b"." * (self.size - len(raw))).decode()

    def pieces(self, answer: str) -> list[str]:
        """Cut an answer into the pieces it is streamed in; some may be empty."""
        if self.chunks is None:
            return re.findall(r"\S+\s*|\s+", answer) or [""]
        step, extra = divmod(len(answer), self.chunks)
        cuts = [step * i + min(i, extra) for i in range(self.chunks + 1)]
        return [answer[a:b] for a, b in itertools.pairwise(cuts)]


class Gates:
    """Named points at which answers wait for the test."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._arrivals: dict[str, int] = {}
        self._changed = asyncio.Condition()

    async def enter(self, name: str) -> None:
        """Arrive at a gate and wait until it is open."""
        async with self._changed:
            self._arrivals[name] = self._arrivals.get(name, 0) + 1
            self._changed.notify_all()
            await self._changed.wait_for(lambda: name in self._open)

    async def waiting(self, name: str, count: int = 1) -> None:
        """Wait until ``count`` arrivals have been seen, released or not."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._arrivals.get(name, 0) >= count)

    async def release(self, name: str) -> None:
        """Let through who waits at a gate and whoever comes later."""
        async with self._changed:
            self._open.add(name)
            self._changed.notify_all()


@dataclass(slots=True)
class ModelRequest:
    """One chat completion request as it was received.

    Attributes:
        model: the model asked for.
        prompt: the last user message, directives included, without the CLI's time prefix.
        user_messages: all user messages of the conversation, likewise.
        tool_results: results of the tools called for the last user message.
        tools: names of the tools offered.
        authorization: the ``Authorization`` header, or "".
        outcome: ``running``, ``answered``, ``error``, ``cut`` or ``abandoned`` (the caller left).
    """

    model: str
    prompt: str
    user_messages: list[str] = field(repr=False)
    tool_results: list[str] = field(repr=False)
    tools: list[str] = field(repr=False)
    authorization: str = field(repr=False)
    outcome: str = "running"


class ModelServer:
    """The scripted endpoint; an asynchronous context manager.

    Attributes:
        requests: the last requests received, oldest first (bounded by :data:`REQUESTS_KEPT`).
        served: number of chat completion requests received since the start.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._host = host
        self._port = port
        self._gates = Gates()
        self._runner: web.AppRunner | None = None
        self.requests: deque[ModelRequest] = deque(maxlen=REQUESTS_KEPT)
        self.served = 0

    @property
    def port(self) -> int:
        """The port listened on; the one asked for until the server has started."""
        return self._port

    @property
    def base_url(self) -> str:
        """What an OpenAI client or ``COPILOT_PROVIDER_BASE_URL`` takes."""
        return f"http://{self._host}:{self._port}/v1"

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
        """
        app = web.Application(client_max_size=MAX_REQUEST_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        # A caller that leaves must not leave its answer waiting at a gate, and neither may close().
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05
        )
        await runner.setup()
        site = web.TCPSite(runner, self._host, self._port)
        try:
            await site.start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def close(self) -> None:
        """Stop listening and cut what is being answered; idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def waiting(self, gate: str, count: int = 1) -> None:
        """Wait until ``count`` requests have arrived at a gate since the start."""
        await self._gates.waiting(gate, count)

    async def release(self, gate: str) -> None:
        """Open a gate, for who waits at it and for all later."""
        await self._gates.release(gate)

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": DEFAULT_MODEL, "object": "model", "owned_by": "copilot-gateway"}
        return web.json_response({"object": "list", "data": [model]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        try:
            body = orjson.loads(await request.read())
            record = _read_request(body, request.headers.get("Authorization", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return _error(400, "not a chat completion request")
        self.served += 1
        self.requests.append(record)
        try:
            return await self._answer(request, record, body)
        except (asyncio.CancelledError, ConnectionError):
            record.outcome = "abandoned"
            raise

    async def _answer(
        self, request: web.Request, record: ModelRequest, body: dict[str, Any]
    ) -> web.StreamResponse:
        script = Script.parse(record.prompt)
        if script.delay:
            await asyncio.sleep(script.delay)
        if script.gate is not None:
            await self._gates.enter(script.gate)
        if script.error is not None:
            record.outcome = "error"
            return _error(script.error, "scripted failure")
        completion = _Completion(f"chatcmpl-{self.served}", record.model)
        done = len(record.tool_results)
        call = script.tools[done] if done < len(script.tools) else None
        answer = script.answer(len(record.user_messages), record.tool_results)
        if not body.get("stream"):
            record.outcome = "answered"
            return web.json_response(completion.whole(answer, call))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if call is not None:
            await response.write(completion.tool_call(call))
        else:
            pieces = [completion.text(piece) for piece in script.pieces(answer)]
            middle = (len(pieces) + 1) // 2
            await _write(response, pieces[:middle], script.chunk_delay)
            if script.gate_mid is not None:
                await self._gates.enter(script.gate_mid)
            if script.broken:
                record.outcome = "cut"
                if request.transport is not None:
                    request.transport.abort()
                return response
            if script.chunk_delay:
                await asyncio.sleep(script.chunk_delay)
            await _write(response, pieces[middle:], script.chunk_delay)
        await response.write(completion.end("stop" if call is None else "tool_calls"))
        await response.write_eof()
        record.outcome = "answered"
        return response


async def _write(response: web.StreamResponse, pieces: list[bytes], delay: float) -> None:
    """Write pieces with ``delay`` seconds between them, or all at once if there is none."""
    if not delay:
        await response.write(b"".join(pieces))
        return
    for number, piece in enumerate(pieces):
        if number:
            await asyncio.sleep(delay)
        await response.write(piece)


class _Completion:
    """Builds the JSON of one completion."""

    def __init__(self, completion_id: str, model: str) -> None:
        self._id = completion_id
        self._model = model
        self._created = int(time.time())

    def text(self, text: str) -> bytes:
        return self._chunk({"role": "assistant", "content": text}, None)

    def tool_call(self, call: ToolCall) -> bytes:
        return self._chunk(
            {"role": "assistant", "tool_calls": [{"index": 0, **self._call(call)}]}, None
        )

    def end(self, reason: str) -> bytes:
        return self._chunk({}, reason) + b"data: [DONE]\n\n"

    def whole(self, answer: str, call: ToolCall | None) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer if call is None else None}
        if call is not None:
            message["tool_calls"] = [self._call(call)]
        reason = "stop" if call is None else "tool_calls"
        return {
            **self._head("chat.completion"),
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        }

    def _call(self, call: ToolCall) -> dict[str, Any]:
        function = {"name": call.name, "arguments": json.dumps(call.arguments)}
        return {"id": f"call-{self._id}", "type": "function", "function": function}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _chunk(self, delta: dict[str, Any], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        body = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return b"data: " + orjson.dumps(body) + b"\n\n"


def _read_request(body: dict[str, Any], authorization: str) -> ModelRequest:
    """Pick out of a request body what the answer depends on.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not a chat completion request.
    """
    user_messages: list[str] = []
    tool_results: list[str] = []
    for message in body["messages"]:
        if message["role"] == "user":
            user_messages.append(_DATETIME_PREFIX.sub("", _text(message.get("content"))))
            tool_results.clear()
        elif message["role"] == "tool":
            tool_results.append(_text(message.get("content")))
    return ModelRequest(
        model=str(body.get("model", DEFAULT_MODEL)),
        prompt=user_messages[-1] if user_messages else "",
        user_messages=user_messages,
        tool_results=tool_results,
        tools=[tool["function"]["name"] for tool in body.get("tools") or ()],
        authorization=authorization,
    )


def _text(content: str | list[dict[str, Any]] | None) -> str:
    """Flatten message content: a string, or a list of parts of which only text counts."""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content or ())


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "scripted"}}, status=status)


async def _serve(host: str, port: int) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with ModelServer(host, port) as server:
        print(f"model server listening on port {server.port}", flush=True)
        await stopped.wait()


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; return the process exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gateway.testing.model_server",
        description="Scripted model endpoint for demos, load tests and tests.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port; 0 lets the system choose one")
    options = parser.parse_args(argv)
    try:
        asyncio.run(_serve(options.host, options.port))
    except OSError as error:
        parser.exit(3, f"cannot listen on {options.host}:{options.port}: {error.strerror}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
