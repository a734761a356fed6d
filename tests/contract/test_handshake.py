"""The handshake, authentication and what is told of the process."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.conftest import TOKEN, Bench
from tests.support.fake_cli import FakeCli
from tests.support.rpc import RpcFault
from tests.support.stack import RealCli

Cli = FakeCli | RealCli


async def test_nothing_is_answered_before_the_token(bench: Bench, cli: Cli) -> None:
    client = await bench.bare_client(cli)
    for method in ("ping", "session.list", "no.such.method"):
        with pytest.raises(RpcFault) as fault:
            await client.request(method, {"message": "a"})
        assert (fault.value.code, fault.value.message) == (-32001, "AUTHENTICATION_REQUIRED")


async def test_wrong_tokens_are_refused_and_may_be_tried_again(bench: Bench, cli: Cli) -> None:
    client = await bench.bare_client(cli)
    attempts: list[dict[str, Any]] = [
        {},
        {"token": "bad"},
        {"token": 5},
        {"token": None},
        {"token": "bad", "unknown": 1},
    ]
    for params in attempts:
        with pytest.raises(RpcFault) as fault:
            await client.request("connect", params)
        assert (fault.value.code, fault.value.message) == (-32002, "AUTHENTICATION_FAILED")
    await client.request("connect", {"token": TOKEN})
    assert await client.request("ping")


async def test_a_later_bad_handshake_revokes_nothing(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    with pytest.raises(RpcFault):
        await client.request("connect", {"token": "bad"})
    assert await client.request("ping")


async def test_a_token_where_none_is_configured_is_refused(bench: Bench) -> None:
    cli = await bench.cli(token=None)
    client = await bench.bare_client(cli)
    assert await client.request("ping")
    with pytest.raises(RpcFault) as fault:
        await client.request("connect", {"token": "any"})
    assert (fault.value.code, fault.value.message) == (-32003, "AUTHENTICATION_NOT_CONFIGURED")
    assert (await client.request("connect"))["ok"] is True


BASIC = ["agent", "shell"]
FULL = ["agent", "shell", "client"]


async def test_task_kinds_mirror_the_declaration(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    for declared, expected in [
        (None, BASIC),
        ([], BASIC),
        (["shell"], BASIC),
        (["client"], FULL),
        (["agent", "client", "shell"], FULL),
    ]:
        params = {"token": TOKEN, "supportedTaskKinds": declared}
        answer = await client.request("connect", params)
        assert answer == {
            "ok": True,
            "protocolVersion": 3,
            "version": "1.0.102",
            "taskKinds": expected,
        }


async def test_the_handshake_is_strict(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    for extra in (
        {"unknown": 1},
        {"supportedTaskKinds": ["unknown"]},
        {"supportedTaskKinds": "shell"},
        {"clientInfo": {"name": "x"}},
    ):
        with pytest.raises(RpcFault) as fault:
            await client.request("connect", {"token": TOKEN, **extra})
        assert fault.value.code == -32602
        assert fault.value.message.startswith("Invalid connect request: ")
    await client.request(
        "connect",
        {
            "token": TOKEN,
            "clientInfo": {"editorName": "x"},
            "enableGitHubTelemetryForwarding": True,
        },
    )


async def test_ping_echoes_strings_only(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    pong = await client.request("ping", {"message": "hi"})
    assert list(pong) == ["message", "timestamp", "protocolVersion"]
    assert (pong["message"], pong["protocolVersion"]) == ("pong: hi", 3)
    assert pong["timestamp"].endswith("Z")
    assert (await client.request("ping", {"message": 5}))["message"] == "pong"


async def test_status(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    assert await client.request("status.get") == {"version": "1.0.102", "protocolVersion": 3}
    assert (await client.request("auth.getStatus"))["isAuthenticated"] is False
    with pytest.raises(RpcFault, match="Not authenticated"):
        await client.request("models.list")


@pytest.mark.parametrize(
    ("method", "params", "result"),
    [
        ("llmInference.setProvider", {}, {"success": True}),
        (
            "sessionFs.setProvider",
            {"initialCwd": "/", "sessionStatePath": "/state", "conventions": "posix"},
            {"success": True},
        ),
        ("registerExtensionLaunchProvider", {}, None),
    ],
)
async def test_process_wide_providers_belong_to_the_first_caller_for_ever(
    bench: Bench, cli: Cli, method: str, params: dict[str, Any], result: Any
) -> None:
    first, second = await bench.client(cli), await bench.client(cli)
    assert await first.request(method, params) == result
    with pytest.raises(RpcFault, match="Another client is already"):
        await second.request(method, params)
    await first.close()
    with pytest.raises(RpcFault, match="Another client is already"):
        await second.request(method, params)


async def test_process_wide_providers_come_before_sessions(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    with pytest.raises(RpcFault, match="while sessions are active"):
        await client.request("llmInference.setProvider")


async def test_shutdown_ends_every_connection(bench: Bench, cli: Cli) -> None:
    one, other = await bench.client(cli), await bench.client(cli)
    assert await one.request("runtime.shutdown") is None
    if isinstance(cli, FakeCli):
        await cli.exited.wait()  # in process, its owner ends it, as the program's main does
        await cli.stop()
    await one.wait_ended()
    await other.wait_ended()
