"""The scripted model endpoint: what it answers, in which pieces, and when."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from gateway.testing.model_server import ModelServer, Script, ToolCall
from tests.support.wait import eventually


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def body(*messages: dict[str, Any], stream: bool = True) -> dict[str, Any]:
    return {"model": "gpt-4.1", "stream": stream, "messages": list(messages)}


async def stream(
    http: aiohttp.ClientSession, server: ModelServer, request: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the choices of every chunk up to the end mark."""
    async with http.post(server.base_url + "/chat/completions", json=request) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        lines = (await response.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-2]]


def text_of(choices: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def test_echoes_the_prompt_and_counts_user_messages(
    server: ModelServer, http: aiohttp.ClientSession
) -> None:
    prompt = "<current_datetime>2026-01-01T00:00:00Z</current_datetime>\n\nhi wörld"
    answer = {"role": "assistant", "content": "x"}
    choices = await stream(http, server, body(user("first"), answer, user(prompt)))
    assert text_of(choices) == "echo: hi wörld [user messages: 2]"
    assert choices[-1]["finish_reason"] == "stop"
    assert server.requests[-1].prompt == "hi wörld"
    assert server.requests[-1].user_messages == ["first", "hi wörld"]
    assert server.requests[-1].outcome == "answered"


async def test_answers_whole_without_stream(
    server: ModelServer, http: aiohttp.ClientSession
) -> None:
    request = body(user("hi"), stream=False)
    async with http.post(server.base_url + "/chat/completions", json=request) as response:
        answer = await response.json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == "echo: hi [user messages: 1]"


async def test_content_parts_are_flattened(
    server: ModelServer, http: aiohttp.ClientSession
) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]
    choices = await stream(http, server, body({"role": "user", "content": parts}))
    assert text_of(choices) == "echo: ab [user messages: 1]"


async def test_tools_are_called_in_turn_and_quoted(
    server: ModelServer, http: aiohttp.ClientSession
) -> None:
    prompt = user('go [[tool one {"x": [[1]]}]] [[tool two {}]]')
    first = await stream(http, server, body(prompt))
    call = first[0]["delta"]["tool_calls"][0]
    assert call["function"] == {"name": "one", "arguments": '{"x": [[1]]}'}
    assert first[-1]["finish_reason"] == "tool_calls"
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "got 1"}
    second = await stream(http, server, body(prompt, called, result))
    other = second[0]["delta"]["tool_calls"][0]
    assert other["function"]["name"] == "two"
    assert other["id"] != call["id"]
    last = await stream(http, server, body(prompt, called, result, called, result))
    assert text_of(last).endswith("[one returned: got 1] [two returned: got 1]")


@pytest.mark.parametrize("pieces", [1, 3, 50])
async def test_chunks_fixes_the_number_of_pieces(
    server: ModelServer, http: aiohttp.ClientSession, pieces: int
) -> None:
    choices = await stream(http, server, body(user(f"hello [[chunks {pieces}]]")))
    assert len(choices) == pieces + 1
    assert text_of(choices) == "echo: hello [user messages: 1]"


@pytest.mark.parametrize("size", [0, 5, 100_000])
async def test_size_fixes_the_number_of_bytes(
    server: ModelServer, http: aiohttp.ClientSession, size: int
) -> None:
    choices = await stream(http, server, body(user(f"[[size {size}]] [[chunks 4]] ö")))
    assert len(text_of(choices).encode()) == size


async def test_error_answers_the_status(server: ModelServer, http: aiohttp.ClientSession) -> None:
    request = body(user("[[error 503]]"))
    async with http.post(server.base_url + "/chat/completions", json=request) as response:
        assert response.status == 503
        assert "scripted failure" in await response.text()
    assert server.requests[-1].outcome == "error"


async def test_break_cuts_the_stream_in_the_middle(
    server: ModelServer, http: aiohttp.ClientSession
) -> None:
    request = body(user("[[break]] [[chunks 4]] [[chunk-delay 0.001]] hello"))
    seen = b""
    async with http.post(server.base_url + "/chat/completions", json=request) as response:
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            async for part in response.content.iter_any():
                seen += part
    assert seen.count(b"data: ") < 4
    assert b"[DONE]" not in seen
    assert server.requests[-1].outcome == "cut"


async def test_gate_holds_the_first_piece(server: ModelServer, http: aiohttp.ClientSession) -> None:
    answer = asyncio.create_task(stream(http, server, body(user("[[gate g]] hi"))))
    await server.waiting("g")
    assert server.requests[-1].outcome == "running"
    assert not answer.done()
    await server.release("g")
    assert text_of(await answer) == "echo: hi [user messages: 1]"
    await stream(http, server, body(user("[[gate g]] an open gate stays open")))
    await server.waiting("g", 2)


async def test_gate_mid_holds_the_second_half(
    server: ModelServer, http: aiohttp.ClientSession
) -> None:
    request = body(user("[[gate-mid g]] [[chunks 4]] hello"))
    async with http.post(server.base_url + "/chat/completions", json=request) as response:
        await server.waiting("g")
        first = await response.content.readany()
        while first.count(b"\n\n") < 2:
            first += await response.content.readany()
        assert first.count(b"data: ") == 2
        await server.release("g")
        rest = await response.content.read()
    assert rest.count(b"data: ") == 4


async def test_a_caller_that_leaves_is_noticed(
    server: ModelServer, http: aiohttp.ClientSession
) -> None:
    answer = asyncio.create_task(stream(http, server, body(user("[[gate g]]"))))
    await server.waiting("g")
    answer.cancel()
    await eventually(lambda: server.requests[-1].outcome == "abandoned")


async def test_close_does_not_wait_for_gates(http: aiohttp.ClientSession) -> None:
    server = ModelServer()
    await server.start()
    answer = asyncio.create_task(stream(http, server, body(user("[[gate g]]"))))
    await server.waiting("g")
    async with asyncio.timeout(5):
        await server.close()
    with pytest.raises(aiohttp.ClientError):
        await answer
    await server.close()


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"messages": 5}', b'{"messages": [1]}'])
async def test_nonsense_is_refused(
    server: ModelServer, http: aiohttp.ClientSession, raw: bytes
) -> None:
    async with http.post(server.base_url + "/chat/completions", data=raw) as response:
        assert response.status == 400
    assert server.served == 0


async def test_requests_are_recorded_without_secrets_in_their_repr(
    server: ModelServer, http: aiohttp.ClientSession
) -> None:
    tool = {"type": "function", "function": {"name": "mytool", "parameters": {}}}
    async with http.post(
        server.base_url + "/chat/completions",
        json={**body(user("hi"), stream=False), "tools": [tool]},
        headers={"Authorization": "Bearer hush"},
    ):
        pass
    record = server.requests[-1]
    assert record.tools == ["mytool"]
    assert record.authorization == "Bearer hush"
    assert "hush" not in repr(record)


async def test_lists_its_model(server: ModelServer, http: aiohttp.ClientSession) -> None:
    async with http.get(server.base_url + "/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["gpt-4.1"]


@pytest.mark.parametrize(
    "prompt",
    ["[[nosuch 1]]", "[[chunks many]]", "[[tool x nojson]]", "[[tool x {}", "[[delay", "[[", "a]]"],
)
def test_what_is_no_directive_is_text(prompt: str) -> None:
    assert Script.parse(prompt) == Script(text=prompt)


def test_directives_are_read_out_of_the_text() -> None:
    script = Script.parse(
        'a [[tool t {"x": "]]"}]] b [[delay 0.5]][[chunk-delay 1]] [[gate g]] [[gate-mid h]] c'
        "[[error 500]][[break]][[size 9]][[chunks 2]]"
    )
    assert script.tools == [ToolCall("t", {"x": "]]"})]
    assert (script.delay, script.chunk_delay) == (0.5, 1.0)
    assert (script.gate, script.gate_mid) == ("g", "h")
    assert (script.error, script.broken, script.size, script.chunks) == (500, True, 9, 2)
    assert script.text.split() == ["a", "b", "c"]


async def test_runs_as_a_program() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway.testing.model_server",
        "--port",
        "0",
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            line = (await process.stdout.readline()).decode()
        match = re.fullmatch(r"model server listening on port (\d+)\n", line)
        assert match is not None
        _, writer = await asyncio.open_connection("127.0.0.1", int(match[1]))
        writer.close()
        await writer.wait_closed()
    finally:
        os.kill(process.pid, signal.SIGTERM)
        status = await process.wait()
    assert status == 0
