"""What a test may do to the fake CLI beyond the contract it shares with the real one."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest
from copilot.generated.session_events import RawSessionEventData, session_event_from_dict

from tests.support.fake_cli import FakeCli
from tests.support.rpc import RpcClient, RpcFault
from tests.support.sessions import (
    answer_tool,
    decide_permission,
    run_turn,
    send,
    session_params,
    tool,
)
from tests.support.stack import CliMissingError, fake_cli_executable, real_cli


async def spawn(program: Path, home: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        str(program),
        "--headless",
        *arguments,
        env={
            "PATH": os.environ["PATH"],
            "COPILOT_HOME": str(home),
            "COPILOT_CONNECTION_TOKEN": "t",
        },
        stdout=asyncio.subprocess.PIPE,
    )


async def ready_port(process: asyncio.subprocess.Process) -> int:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        line = (await process.stdout.readline()).decode()
    match = re.fullmatch(r"CLI server listening on port (\d+)\n", line)
    assert match is not None, line
    return int(match[1])


async def finish(process: asyncio.subprocess.Process) -> int:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    return await process.wait()


async def test_runs_as_a_program_with_the_real_command_line(tmp_path: Path) -> None:
    program = fake_cli_executable(tmp_path)
    process = await spawn(program, tmp_path, "--port", "0")
    try:
        port = await ready_port(process)
        async with await RpcClient.connect("127.0.0.1", port, token="t") as client:
            await client.request("session.create", session_params("s"))
            assert await run_turn(client, "s", "hi") == "echo: hi [user messages: 1]"
            taken = await spawn(program, tmp_path, "--port", str(port))
            assert await taken.wait() == 1
            process.send_signal(signal.SIGTERM)
            await client.wait_ended()
        assert await process.wait() == 0
    finally:
        await finish(process)
    journal = (tmp_path / "session-state" / "s" / "events.jsonl").read_text()
    assert '"type":"session.shutdown"' in journal.splitlines()[-1]


async def test_runtime_shutdown_ends_the_program(tmp_path: Path) -> None:
    process = await spawn(fake_cli_executable(tmp_path), tmp_path)
    try:
        port = await ready_port(process)
        async with await RpcClient.connect("127.0.0.1", port, token="t") as client:
            assert await client.request("runtime.shutdown") is None
            await client.wait_ended()
        assert await process.wait() == 0
    finally:
        await finish(process)


async def test_a_killed_program_holds_no_lock(tmp_path: Path) -> None:
    process = await spawn(fake_cli_executable(tmp_path), tmp_path)
    try:
        port = await ready_port(process)
        async with (
            await RpcClient.connect("127.0.0.1", port, token="t") as client,
            FakeCli(state_dir=tmp_path) as other,
            await other.connect() as here,
        ):
            await client.request("session.create", session_params("s"))
            await run_turn(client, "s", "hi")
            await client.request("sessions.save", {"sessionId": "s"})
            in_use = {"sessionIds": ["s"]}
            assert await here.request("sessions.checkInUse", in_use) == {"inUse": ["s"]}
            process.kill()
            await process.wait()
            assert await here.request("sessions.checkInUse", in_use) == {"inUse": []}
    finally:
        await finish(process)


async def test_kill_resets_connections_and_loses_the_unwritten() -> None:
    async with FakeCli(journal_delay=3600) as cli:
        client = await cli.connect()
        await client.request("session.create", session_params("s"))
        await client.request("session.send", {"sessionId": "s", "prompt": "[[gate g]] hi"})
        await cli.model.waiting("g")
        await cli.kill()
        await client.wait_ended()
        await client.close()
        await cli.start()
        async with await cli.connect() as client:
            with pytest.raises(RpcFault, match="Session not found"):
                await client.request("session.resume", session_params("s"))


async def test_stop_does_not_wait_for_those_who_do_not_read() -> None:
    async with FakeCli() as cli:
        client = await cli.connect()
        await client.request("session.create", session_params("s"))
        client.transport.pause_reading()  # type: ignore[attr-defined]
        await send_without_answer(client, "[[size 30000000]] [[chunks 4]]")
        await cli.model.waiting("done")
        async with asyncio.timeout(10):
            await cli.stop()
        client.abort()
        await client.close()


async def send_without_answer(client: RpcClient, prompt: str) -> None:
    client.post("session.send", {"sessionId": "s", "prompt": prompt})
    client.post("session.send", {"sessionId": "s", "prompt": "[[gate done]]"})
    await client.drain()


async def test_signed_in_needs_no_provider() -> None:
    async with FakeCli(signed_in=True) as cli, await cli.connect() as client:
        await client.request("session.create", {"sessionId": "s"})
        assert await run_turn(client, "s", "hi") == "echo: hi [user messages: 1]"
        assert (await client.request("models.list"))["models"]


async def test_the_sdk_decodes_every_event() -> None:
    async with FakeCli() as cli, await cli.connect() as client:
        params = session_params("s", tools=[tool("mine")], requestPermission=True)
        await client.request("session.create", params)
        for prompt in ("hi", "[[error 400]]", "[[tool nosuch {}]]"):
            await run_turn(client, "s", prompt)
        for call in ("[[tool mine {}]]", '[[tool bash {"command":"ls"}]]'):
            await send(client, "s", call)
            asked = (await client.wait_event("s", "permission.requested"))["data"]["requestId"]
            await decide_permission(client, "s", asked)
            if "mine" in call:
                asked = (await client.wait_event("s", "external_tool.requested"))["data"]
                await answer_tool(client, "s", asked["requestId"], "done")
            await client.wait_event("s", "session.idle")
        await client.request("session.detach", {"sessionId": "s"})
        await client.request("session.resume", params)
        await run_turn(client, "s", "more")
        events = client.events("s")
        assert {"session.shutdown", "session.resume", "session.error"} <= {
            event["type"] for event in events
        }
        for event in events:
            decoded = session_event_from_dict(event)
            known = not isinstance(decoded.data, RawSessionEventData)
            assert known or event["type"].startswith("model."), event["type"]


async def test_remembers_what_it_was_asked() -> None:
    async with FakeCli() as cli, await cli.connect() as client:
        await client.request("session.create", session_params("s"))
        await send(client, "s", "hi")
        await client.wait_event("s", "session.idle")
        assert [call.method for call in cli.calls] == ["connect", "session.create", "session.send"]
        assert cli.received("session.send")[0].params == {"sessionId": "s", "prompt": "hi"}
        assert cli.received("session.send")[0].connection == 1


def test_a_missing_cli_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COPILOT_CLI", str(tmp_path / "nowhere"))
    with pytest.raises(CliMissingError, match="nowhere is not a file"):
        real_cli()
    monkeypatch.delenv("COPILOT_CLI")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tests.support.stack.INSTALLED_CLI", tmp_path / "nowhere")
    with pytest.raises(CliMissingError, match="make setup"):
        real_cli()
