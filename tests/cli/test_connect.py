from __future__ import annotations

import asyncio
import re
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.cli.main import main
from gateway.wire.envelope import encode
from tests.support.certificates import Authority
from tests.support.rpc import RpcClient, RpcFault
from tests.support.standin import PING_MILLISECONDS, PING_TIMESTAMP, StandIn

COMMAND = (sys.executable, "-m", "gateway.cli", "connect")
SDK_FLAGS = ("--headless", "--no-auto-update", "--log-level", "info")


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("secret\n")
    path.chmod(0o600)
    return path


@pytest.fixture
async def gateway() -> AsyncIterator[StandIn]:
    async with StandIn() as standin:
        yield standin


def write(path: Path, text: str) -> None:
    path.write_text(text)


def make_executable(path: Path) -> None:
    path.chmod(0o700)


def make_public(path: Path) -> None:
    path.chmod(0o644)


@asynccontextmanager
async def running(*args: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command as an operator or SDK starts it; ended with the block."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *map(str, args),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return (await process.stdout.readline()).decode()


async def status(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(30):
        return await process.wait()


def base(gateway: StandIn, token_file: Path) -> tuple[object, ...]:
    return ("--gateway", f"127.0.0.1:{gateway.port}", "--token-file", token_file)


async def read(process: asyncio.subprocess.Process) -> Any:
    """The next message on standard output, which must be in the strictest form."""
    assert process.stdout is not None
    async with asyncio.timeout(30):
        header = await process.stdout.readuntil(b"\r\n\r\n")
        match = re.fullmatch(rb"Content-Length: (\d+)\r\n\r\n", header)
        assert match, header
        return orjson.loads(await process.stdout.readexactly(int(match[1])))


async def call(process: asyncio.subprocess.Process, method: str) -> Any:
    assert process.stdin is not None
    process.stdin.write(encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": {}}))
    return await read(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_where_it_listens_and_ends_cleanly(
    gateway: StandIn, token_file: Path, number: signal.Signals
) -> None:
    async with running(*base(gateway, token_file), "--listen", "127.0.0.1:0") as process:
        match = re.fullmatch(
            r"copilot-gateway connect listening on port (\d+)\n", await line(process)
        )
        assert match
        async with await RpcClient.connect("127.0.0.1", int(match[1]), handshake={}) as client:
            assert await client.request("x")
            process.send_signal(number)
            assert await status(process) == 0
            await client.wait_ended()
        assert await process.stderr.read() == b""  # type: ignore[union-attr]


async def test_a_unix_socket(gateway: StandIn, token_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cli.sock"
    async with running(*base(gateway, token_file), "--listen", f"unix:{path}") as process:
        assert await line(process) == f"copilot-gateway connect listening on unix:{path}\n"
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(encode({"jsonrpc": "2.0", "id": 1, "method": "connect", "params": {}}))
        assert b'"ok":true' in await reader.readuntil(b"}}")
        writer.close()
        process.send_signal(signal.SIGTERM)
        assert await status(process) == 0


@pytest.mark.parametrize("server_flag", ["--headless", "--server"])
async def test_an_sdk_that_starts_a_cli_on_tcp(
    gateway: StandIn, token_file: Path, server_flag: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = (server_flag, "--log-level", "debug", "--port", port, "--auth-token-env", "X")
    async with running(*base(gateway, token_file), *flags) as process:
        assert f"listening on port {port}\n" in await line(process)
        async with await RpcClient.connect("127.0.0.1", port, token="of the SDK's own"):
            assert gateway.links[0].messages[0]["params"] == {"token": "secret"}


async def test_streams_serve_todays_sdk(gateway: StandIn, token_file: Path) -> None:
    flags = (*SDK_FLAGS, "--no-auto-login", "--session-idle-timeout", 60, "--stdio")
    async with running(*base(gateway, token_file), *flags) as process:
        assert (await call(process, "connect"))["result"]["ok"]
        assert (await call(process, "ping"))["result"]["timestamp"] == PING_TIMESTAMP
        assert process.stdin is not None
        process.stdin.close()
        assert await status(process) == 0
        await gateway.links[0].ended.wait()


async def test_streams_serve_an_old_sdk(gateway: StandIn, token_file: Path) -> None:
    async with running(*base(gateway, token_file), "--stdio", *SDK_FLAGS) as process:
        assert (await call(process, "ping"))["result"]["timestamp"] == PING_MILLISECONDS


@pytest.mark.parametrize("first", ["connect", "ping", None])
async def test_an_sdk_that_shuts_its_cli_down_ends_the_connector_only(
    gateway: StandIn, token_file: Path, first: str | None
) -> None:
    async with running(*base(gateway, token_file), "--stdio") as process:
        if first is not None:
            await call(process, first)
        answer = await call(process, "runtime.shutdown")
        assert answer == {"jsonrpc": "2.0", "id": 1, "result": None}
        assert await status(process) == 0
    sent = [message["method"] for link in gateway.links for message in link.messages]
    assert "runtime.shutdown" not in sent


async def test_words_about_shutting_down_are_passed_on(gateway: StandIn, token_file: Path) -> None:
    async with running(*base(gateway, token_file), "--stdio") as process:
        await call(process, "connect")
        params = {"prompt": "runtime.shutdown"}
        request = {"jsonrpc": "2.0", "id": 2, "method": "x", "params": params}
        assert process.stdin is not None
        process.stdin.write(encode(request))
        assert (await read(process))["result"]["params"] == params


async def test_a_shutdown_by_a_client_on_a_listener_is_the_gateways_to_judge(
    gateway: StandIn, token_file: Path
) -> None:
    async with running(*base(gateway, token_file), "--listen", "127.0.0.1:0") as process:
        port = int((await line(process)).rsplit(" ", 1)[1])
        async with await RpcClient.connect("127.0.0.1", port, handshake={}) as client:
            answer = await client.request("runtime.shutdown")
            assert answer["method"] == "runtime.shutdown"


async def test_streams_pass_large_messages(gateway: StandIn, token_file: Path) -> None:
    async with running(*base(gateway, token_file), "--stdio") as process:
        await call(process, "connect")
        text = "x" * 5_000_000
        request = {"jsonrpc": "2.0", "id": 2, "method": "x", "params": {"text": text}}
        assert process.stdin is not None
        process.stdin.write(encode(request))
        assert (await read(process))["result"]["params"]["text"] == text


async def test_streams_end_with_the_gateway(gateway: StandIn, token_file: Path) -> None:
    async with running(*base(gateway, token_file), "--stdio") as process:
        await call(process, "connect")
        await gateway.stop()
        assert await status(process) == 1


async def test_streams_answer_while_the_gateway_is_away(gateway: StandIn, token_file: Path) -> None:
    await gateway.stop()
    async with running(*base(gateway, token_file), "--stdio") as process:
        error = (await call(process, "connect"))["error"]
        assert error["code"] == -32010 and error["data"]["retryAfterMs"] > 0
        process.send_signal(signal.SIGTERM)
        assert await status(process) == 0


async def test_streams_must_be_pipes(gateway: StandIn, token_file: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *map(str, base(gateway, token_file)),
        "--stdio",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 3
    assert b"--stdio needs pipes" in errors and errors.count(b"\n") == 1


async def test_a_port_in_use(gateway: StandIn, token_file: Path) -> None:
    address = f"127.0.0.1:{gateway.port}"
    async with running(*base(gateway, token_file), "--listen", address) as process:
        assert await status(process) == 3
        assert process.stderr is not None
        assert await process.stderr.read() == (
            f"copilot-gateway: cannot listen on {address}: Address already in use\n".encode()
        )


async def test_tls(token_file: Path, tmp_path: Path) -> None:
    from gateway.io.tls import ServerTlsFiles, server_context

    authority = Authority(tmp_path)
    tls = server_context(ServerTlsFiles(*authority.issue_server(), authority.path))
    certificate, key = authority.issue("sidecar")
    async with StandIn(tls=tls) as gateway:
        flags: Sequence[object] = ("--tls", "--ca", authority.path, "--cert", certificate)
        flags = (*flags, "--key", key, "--server-name", "localhost", "--stdio")
        async with running(*base(gateway, token_file), *flags) as process:
            assert (await call(process, "connect"))["result"]["ok"]
        assert gateway.links[0].certificate["subject"] == ((("commonName", "sidecar"),),)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "--listen"),
        (("--listen", "10.0.0.1:1"), "--insecure"),
        (("--listen", "0.0.0.0:0"), "--insecure"),
        (("--listen", "[::]:0"), "--insecure"),
        (("--listen", "4321"), "--listen must be HOST:PORT"),
        (("--listen", "unix:"), "needs a path"),
        (("--stdio", "--ca", "x"), "need --tls"),
        (("--stdio", "--server-name", "x"), "need --tls"),
        (("--stdio", "--tls", "--key", "x"), "--key needs --cert"),
        (("--stdio", "--tls", "--ca", "/absent"), "/absent: No such file"),
        (("--headless", "--port", "70000"), "--port"),
        (("--stdio", "--gateway", "nowhere"), "--gateway must be HOST:PORT"),
        (("--stdio", "--token-file", "/absent"), "/absent: No such file"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    token_file: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], expected: str
) -> None:
    args = ["connect", "--gateway", "127.0.0.1:1", "--token-file", str(token_file), *flags]
    assert main(args) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    "flags", [("--listen", "127.0.0.1:0", "--stdio"), ("--token", "secret"), ("--stdi",)]
)
def test_flags_that_do_not_exist_or_go_together(
    token_file: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    args = ["connect", "--gateway", "127.0.0.1:1", "--token-file", str(token_file), *flags]
    assert main(args) == 2
    assert "usage:" in capsys.readouterr().err


async def test_warnings_say_what_is_at_risk(token_file: Path) -> None:
    make_public(token_file)
    args = ("--gateway", "192.0.2.1:1", "--token-file", token_file, "--listen", "127.0.0.1:0")
    async with running(*args) as process:
        await line(process)
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert b"in the clear" in errors and b"can be read by every user" in errors
    assert b"secret" not in errors


def test_help_does_not_show_what_only_sdks_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--token-file" in text and "--no-auto-update" not in text


@pytest.mark.real
@pytest.mark.parametrize("first", ["connect", "ping"])
async def test_the_real_cli_as_the_gateway(token_file: Path, tmp_path: Path, first: str) -> None:
    from gateway.testing.model_server import ModelServer
    from tests.support.stack import RealCli

    home = tmp_path / "home"
    async with (
        ModelServer() as model,
        RealCli(home, model_url=model.base_url, token="secret") as cli,
    ):
        args = ("--gateway", f"127.0.0.1:{cli.port}", "--token-file", token_file)
        async with running(*args, "--listen", "127.0.0.1:0") as process:
            port = int((await line(process)).rsplit(" ", 1)[1])
            async with await RpcClient.connect("127.0.0.1", port) as client:
                assert await client.request(first)
                timestamp = (await client.request("ping"))["timestamp"]
                assert isinstance(timestamp, int) == (first == "ping")
            write(token_file, "wrong")
            async with await RpcClient.connect("127.0.0.1", port) as client:
                with pytest.raises(RpcFault) as caught:
                    await client.request(first)
                assert caught.value.code == -32002


@pytest.mark.real
@pytest.mark.parametrize("transport", ["tcp", "stdio"])
async def test_todays_python_sdk(token_file: Path, tmp_path: Path, transport: str) -> None:
    from gateway.testing.model_server import ModelServer
    from tests.support.stack import REPOSITORY, RealCli

    home = tmp_path / "home"
    async with (
        ModelServer() as model,
        RealCli(home, model_url=model.base_url, token="secret") as cli,
    ):
        args = ("--gateway", f"127.0.0.1:{cli.port}", "--token-file", str(token_file))
        async with running(*args, "--listen", "127.0.0.1:0") as process:
            address = f"127.0.0.1:{(await line(process)).rsplit(' ', 1)[1].strip()}"
            if transport == "stdio":
                script = tmp_path / "copilot"
                write(script, f'#!/bin/sh\nexec {shlex.join((*COMMAND, *args))} "$@"\n')
                make_executable(script)
                address = f"stdio:{script}"
            turn = await asyncio.create_subprocess_exec(
                sys.executable,
                str(REPOSITORY / "tests" / "sdks" / "python" / "turn.py"),
                address,
                model.base_url,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            said, errors = await turn.communicate()
            assert said == b"ok\n", errors.decode()
        async with await cli.connect() as client:  # the SDK's stop() has left it alone
            assert await client.request("ping")
