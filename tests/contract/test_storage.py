"""What survives: journals, restarts, crashes, and two CLIs on one storage."""

from __future__ import annotations

import pytest

from tests.contract.conftest import Bench
from tests.support.fake_cli import FakeCli
from tests.support.rpc import RpcClient, RpcFault
from tests.support.sessions import (
    answer_tool,
    decide_permission,
    event_types,
    last_answer,
    pending_permissions,
    run_turn,
    send,
    tool,
)
from tests.support.stack import RealCli
from tests.support.wait import eventually

Cli = FakeCli | RealCli


async def unloaded(client: RpcClient, session_id: str) -> None:
    """Wait until a session is not live any more."""

    async def gone() -> bool:
        try:
            await client.request("session.metadata.isProcessing", {"sessionId": session_id})
        except RpcFault:
            return True
        return False

    await eventually(gone)


async def test_cold_resume_keeps_the_history(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    await run_turn(client, "s", "one")
    await client.request("session.detach", {"sessionId": "s"})
    await client.request("session.resume", bench.params("s"))
    event = await client.wait_event("s", "session.resume")
    assert event["data"]["alreadyInUse"] is False
    assert event["data"]["eventCount"] > 3
    assert await run_turn(client, "s", "two") == "echo: two [user messages: 2]"


async def test_cold_resume_loses_provider_and_tools(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    params = bench.params("s", tools=[tool("mine")], availableTools=["mine"])
    await client.request("session.create", params)
    await run_turn(client, "s", "one")
    assert bench.model.requests[-1].tools == ["mine"]
    await client.request("session.detach", {"sessionId": "s"})
    await client.request("session.resume", {"sessionId": "s"})
    await send(client, "s", "two")
    error = await client.wait_event("s", "session.error")
    assert "No GitHub OAuth token" in error["data"]["message"]
    await client.request("session.detach", {"sessionId": "s"})
    await client.request("session.resume", bench.params("s"))
    await run_turn(client, "s", "three")
    offered = bench.model.requests[-1].tools
    assert "bash" in offered
    assert "mine" not in offered
    assert bench.model.requests[-1].user_messages == ["one", "three"]


async def test_create_over_a_journal_starts_empty_and_both_are_replayed(
    bench: Bench, cli: Cli
) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    await run_turn(client, "s", "old")
    await client.request("session.detach", {"sessionId": "s"})
    await client.request("session.create", bench.params("s"))
    await client.wait_event("s", "session.start")
    assert await run_turn(client, "s", "new") == "echo: new [user messages: 1]"
    await client.request("session.detach", {"sessionId": "s"})
    await client.request("session.resume", bench.params("s"))
    await run_turn(client, "s", "both")
    assert bench.model.requests[-1].user_messages == ["old", "new", "both"]


async def ask_permission(bench: Bench, client: RpcClient) -> str:
    """Leave a turn at a pending permission; return the request id."""
    params = bench.params("s", tools=[tool("mine")], requestPermission=True)
    await client.request("session.create", params)
    await send(client, "s", "[[tool mine {}]] go")
    asked = await client.wait_event("s", "permission.requested")
    await client.request("sessions.save", {"sessionId": "s"})
    request_id: str = asked["data"]["requestId"]
    return request_id


async def test_pending_permission_survives_with_the_flag(bench: Bench, cli: Cli) -> None:
    client, next_client = await bench.client(cli), await bench.client(cli)
    request_id = await ask_permission(bench, client)
    await client.close()
    await unloaded(next_client, "s")
    params = bench.params(
        "s", tools=[tool("mine")], requestPermission=True, continuePendingWork=True
    )
    await next_client.request("session.resume", params)
    event = await next_client.wait_event("s", "session.resume")
    assert event["data"]["continuePendingWork"] is True
    state = await next_client.request("session.metadata.isProcessing", {"sessionId": "s"})
    assert state == {"processing": True}
    pending = await pending_permissions(next_client, "s")
    assert [item["requestId"] for item in pending] == [request_id]
    assert await decide_permission(next_client, "s", request_id) is True
    call = await next_client.wait_event("s", "external_tool.requested")
    assert "permission.requested" not in event_types(next_client, "s")
    assert await answer_tool(next_client, "s", call["data"]["requestId"], "late") is True
    await next_client.wait_event("s", "session.idle")
    assert last_answer(next_client, "s") == "echo: go [user messages: 1] [mine returned: late]"


async def test_pending_tool_call_survives_with_the_flag(bench: Bench, cli: Cli) -> None:
    client, next_client = await bench.client(cli), await bench.client(cli)
    request_id = await ask_permission(bench, client)
    await decide_permission(client, "s", request_id)
    call = (await client.wait_event("s", "external_tool.requested"))["data"]
    await client.close()
    await unloaded(next_client, "s")
    params = bench.params(
        "s", tools=[tool("mine")], requestPermission=True, continuePendingWork=True
    )
    await next_client.request("session.resume", params)
    listed = await next_client.request("session.tools.listPendingRequests", {"sessionId": "s"})
    assert [item["requestId"] for item in listed["items"]] == [call["requestId"]]
    assert await answer_tool(next_client, "s", call["requestId"], "late") is True
    await next_client.wait_event("s", "session.idle")
    assert "external_tool.requested" not in event_types(next_client, "s")
    assert last_answer(next_client, "s") == "echo: go [user messages: 1] [mine returned: late]"


async def test_pending_permission_is_lost_without_the_flag(bench: Bench, cli: Cli) -> None:
    client, next_client = await bench.client(cli), await bench.client(cli)
    request_id = await ask_permission(bench, client)
    await client.close()
    await unloaded(next_client, "s")
    params = bench.params("s", tools=[tool("mine")], requestPermission=True)
    await next_client.request("session.resume", params)
    assert await pending_permissions(next_client, "s") == []
    assert await decide_permission(next_client, "s", request_id) is False
    await run_turn(next_client, "s", "next")
    warning = next(e for e in next_client.events("s") if e["type"] == "session.warning")
    assert warning["data"]["warningType"] == "interrupted_tools"


async def test_two_live_copies_fork_the_conversation(bench: Bench) -> None:
    one = await bench.cli("cli-0", home="shared")
    two = await bench.cli("cli-1", home="shared")
    on_one, on_two = await bench.client(one), await bench.client(two)
    await on_one.request("session.create", bench.params("s"))
    await run_turn(on_one, "s", "common")
    await on_one.request("sessions.save", {"sessionId": "s"})
    await on_two.request("session.resume", bench.params("s"))
    event = await on_two.wait_event("s", "session.resume")
    assert event["data"]["alreadyInUse"] is True
    await run_turn(on_one, "s", "left")
    assert bench.model.requests[-1].user_messages == ["common", "left"]
    await run_turn(on_two, "s", "right")
    assert bench.model.requests[-1].user_messages == ["common", "right"]
    answer = await on_one.request("session.delete", {"sessionId": "s"})
    assert "in use by another process" in answer["error"]
    in_use = await on_one.request("sessions.checkInUse", {"sessionIds": ["s", "nope"]})
    assert in_use == {"inUse": ["s"]}


async def test_create_of_a_session_live_elsewhere_starts_empty(bench: Bench) -> None:
    one = await bench.cli("cli-0", home="shared")
    two = await bench.cli("cli-1", home="shared")
    on_one, on_two = await bench.client(one), await bench.client(two)
    await on_one.request("session.create", bench.params("s"))
    await run_turn(on_one, "s", "here")
    await on_two.request("session.create", bench.params("s"))
    assert await run_turn(on_two, "s", "there") == "echo: there [user messages: 1]"


async def test_own_storage_knows_nothing_of_others(bench: Bench) -> None:
    on_one = await bench.client(await bench.cli("cli-0"))
    on_two = await bench.client(await bench.cli("cli-1"))
    await on_one.request("session.create", bench.params("s"))
    await run_turn(on_one, "s", "here")
    await on_one.request("session.detach", {"sessionId": "s"})
    with pytest.raises(RpcFault, match="Session not found"):
        await on_two.request("session.resume", bench.params("s"))


async def test_a_killed_stream_is_run_again_elsewhere(bench: Bench) -> None:
    one = await bench.cli("cli-0", home="shared")
    two = await bench.cli("cli-1", home="shared")
    on_one, on_two = await bench.client(one), await bench.client(two)
    await on_one.request("session.create", bench.params("s"))
    await send(on_one, "s", "[[gate-mid g]] [[chunks 4]] hello")
    await on_one.wait_event("s", "assistant.message_delta")
    await on_one.request("sessions.save", {"sessionId": "s"})
    await one.kill()
    await on_one.wait_ended()
    await bench.model.release("g")
    await on_two.request("session.resume", bench.params("s", continuePendingWork=True))
    state = await on_two.request("session.metadata.isProcessing", {"sessionId": "s"})
    assert state == {"processing": False}
    await on_two.request("session.sendMessages", {"sessionId": "s", "messages": []})
    await on_two.wait_event("s", "session.idle")
    assert "user.message" not in event_types(on_two, "s")
    assert len(bench.model.requests[-1].user_messages) == 1
    assert last_answer(on_two, "s") == "echo: hello [user messages: 1]"


async def test_a_crash_loses_what_was_not_written_yet(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    await send(client, "s", "[[delay 0.5]] hello")
    await cli.kill()
    await client.wait_ended()
    await cli.restart()
    client = await bench.client(cli)
    with pytest.raises(RpcFault, match="Session not found"):
        await client.request("session.resume", bench.params("s"))


async def test_a_restart_keeps_port_and_sessions(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    await run_turn(client, "s", "one")
    port = cli.port
    await cli.restart()
    await client.wait_ended()
    assert cli.port == port
    client = await bench.client(cli)
    await client.request("session.resume", bench.params("s"))
    assert await run_turn(client, "s", "two") == "echo: two [user messages: 2]"


async def test_a_frozen_cli_accepts_and_never_answers(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    cli.freeze()
    try:
        with pytest.raises(TimeoutError):
            await client.request("ping", within=0.3)
        late = await bench.bare_client(cli)
        with pytest.raises(TimeoutError):
            await late.request("connect", within=0.3)
        assert not client.ended.is_set()
    finally:
        cli.unfreeze()
    assert await client.request("ping")
