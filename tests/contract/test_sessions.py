"""Sessions: creating, attaching, leaving, finding, and who hears of what."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from tests.contract.conftest import Bench
from tests.support.fake_cli import FakeCli
from tests.support.rpc import RpcFault
from tests.support.sessions import event_types, lifecycle, run_turn, send, tool
from tests.support.stack import RealCli
from tests.support.wait import eventually

Cli = FakeCli | RealCli

RESULT_KEYS = [
    "sessionId",
    "nativeSessionId",
    "startTime",
    "isRemote",
    "mode",
    "workspacePath",
    "capabilities",
    "modelState",
]


async def test_create_answers_before_the_first_event(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    wire = client.record()
    result = await client.request("session.create", bench.params("s"))
    assert list(result) == RESULT_KEYS
    assert (result["sessionId"], result["nativeSessionId"]) == ("s", "s")
    await eventually(lambda: lifecycle(client, "s").count("session.created") == 2)
    assert event_types(client, "s")[:2] == ["session.start", "session.managed_settings_resolved"]
    text = bytes(wire)
    created = text.index(b'"type":"session.created"')
    answered = text.index(b'"result"')
    started = text.index(b'"type":"session.start"')
    assert created < answered < started < text.index(b'"type":"session.updated"')


async def test_events_have_the_same_form_on_the_wire(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    wire = client.record()
    await client.request("session.create", bench.params("s"))
    await run_turn(client, "s", "hi")
    for kind in ("session.start", "user.message", "assistant.message_delta", "session.idle"):
        head = (
            '{"jsonrpc":"2.0","method":"session.event","params":'
            f'{{"sessionId":"s","event":{{"type":"{kind}","data":{{'
        )
        assert head.encode() in bytes(wire), kind
    for event in client.events("s"):
        assert set(event) - {"ephemeral"} == {"type", "data", "id", "timestamp", "parentId"}
    kept = [event for event in client.events("s") if "ephemeral" not in event]
    assert kept[0]["parentId"] is None
    ids = {event["id"] for event in kept}
    assert all(event["parentId"] in ids for event in client.events("s")[1:3])


async def test_session_ids(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    for good in ("a", "-rf", "A_b-9", "x" * 200):
        answer = await client.request("session.create", bench.params(good))
        assert answer["sessionId"] == good
    for bad in ("a b", "a/b", "..", "a:b", "ü", 5, "x" * 255):
        with pytest.raises(RpcFault) as fault:
            await client.request("session.create", {**bench.params(), "sessionId": bad})
        assert fault.value.code == -32603, bad
    for absent in ({}, {"sessionId": None}, {"sessionId": ""}):
        answer = await client.request("session.create", {**bench.params(), **absent})
        assert uuid.UUID(answer["sessionId"])


async def test_unknown_sessions(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    nope = {"sessionId": "nope"}
    for method, message in {
        "session.send": "Session not found for sessionId: nope",
        "session.abort": "Session not found for sessionId: nope",
        "session.metadata.isProcessing": "Session not found for sessionId: nope",
        "session.tools.listPendingRequests": "Session not found for sessionId: nope",
        "session.permissions.pendingRequests": "Session not found for sessionId: nope",
        "session.getMessages": "Session not found: nope",
        "session.resume": "Failed to load session events: Session not found: nope",
        "sessions.delete": "Session file not found for nope",
    }.items():
        with pytest.raises(RpcFault) as fault:
            await client.request(method, {**nope, "prompt": "x"})
        assert fault.value.code == -32603
        assert fault.value.message == f"Request {method} failed with message: {message}"
    assert await client.request("session.detach", nope) == {"success": True}
    assert await client.request("session.destroy", nope) == {"success": False}
    assert await client.request("sessions.close", nope) == {}
    assert await client.request("sessions.save", nope) == {}
    assert await client.request("sessions.getMetadata", nope) == {}
    assert await client.request("session.delete", nope) == {
        "success": False,
        "error": "Session file not found for nope",
    }


async def test_missing_session_id(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    for method in ("session.resume", "session.detach", "session.delete", "session.getMessages"):
        with pytest.raises(RpcFault) as fault:
            await client.request(method)
        assert fault.value.message == f"Request {method} failed with message: " + (
            "Missing sessionId parameter"
        )


async def test_requests_overtake_each_other(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    answered: list[str] = []
    slow = client.post("session.create", bench.params("slow"))
    slow.add_done_callback(lambda _: answered.append("create"))
    quick = client.post("ping", {})
    quick.add_done_callback(lambda _: answered.append("ping"))
    await asyncio.gather(slow, quick)
    assert answered == ["ping", "create"]


async def test_a_pipelined_send_finds_no_session(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    create = client.post("session.create", bench.params("s"))
    sent = client.post("session.send", {"sessionId": "s", "prompt": "x"})
    with pytest.raises(RpcFault, match="Session not found"):
        await sent
    await create


async def test_events_go_to_the_attached_and_lifecycle_to_everyone(bench: Bench, cli: Cli) -> None:
    owner, other = await bench.client(cli), await bench.client(cli)
    await owner.request("session.create", bench.params("s"))
    await run_turn(owner, "s", "hi")
    await eventually(lambda: lifecycle(other, "s").count("session.updated") > 3)
    assert lifecycle(other, "s")[0] == "session.created"
    assert other.events("s") == []


async def test_lifecycle_stays_behind_the_handshake(bench: Bench, cli: Cli) -> None:
    owner, stranger = await bench.client(cli), await bench.bare_client(cli)
    await owner.request("session.create", bench.params("s"))
    with pytest.raises(RpcFault):
        await stranger.request("ping")
    assert lifecycle(owner, "s")
    assert stranger.notifications.all == []


async def test_resume_attaches_to_a_live_session(bench: Bench, cli: Cli) -> None:
    one, two = await bench.client(cli), await bench.client(cli)
    await one.request("session.create", bench.params("s"))
    result = await two.request("session.resume", {"sessionId": "s"})
    assert list(result) == RESULT_KEYS
    event = await two.wait_event("s", "session.resume")
    assert event["data"]["alreadyInUse"] is False
    await one.wait_event("s", "session.resume")
    answer = await run_turn(one, "s", "hi")
    await two.wait_event("s", "session.idle")
    assert answer == "echo: hi [user messages: 1]"
    await two.request("session.resume", {"sessionId": "s", "disableResume": True})
    await run_turn(two, "s", "more")
    assert event_types(two, "s", only=("session.resume",)) == ["session.resume"]


async def test_create_attaches_to_a_live_session(bench: Bench, cli: Cli) -> None:
    one, two = await bench.client(cli), await bench.client(cli)
    await one.request("session.create", bench.params("s"))
    await run_turn(one, "s", "first")
    await two.request("session.create", {"sessionId": "s"})
    assert await run_turn(two, "s", "second") == "echo: second [user messages: 2]"
    await one.wait_event("s", "session.idle")


async def test_anyone_may_send_but_only_the_attached_hear(bench: Bench, cli: Cli) -> None:
    owner, stranger = await bench.client(cli), await bench.client(cli)
    await owner.request("session.create", bench.params("s"))
    await send(stranger, "s", "hi")
    await owner.wait_event("s", "session.idle")
    assert stranger.events("s") == []
    answer = await stranger.request("session.getMessages", {"sessionId": "s"})
    assert "user.message" in [event["type"] for event in answer["events"]]


async def test_detach_ends_events_and_the_last_one_ends_the_session(bench: Bench, cli: Cli) -> None:
    one, two = await bench.client(cli), await bench.client(cli)
    await one.request("session.create", bench.params("s"))
    await run_turn(one, "s", "first")
    await two.request("session.resume", {"sessionId": "s"})
    assert await two.request("session.detach", {"sessionId": "s"}) == {"success": True}
    assert await two.request("session.detach", {"sessionId": "s"}) == {"success": True}
    assert await two.request("session.destroy", {"sessionId": "s"}) == {"success": False}
    heard = len(two.events("s"))
    assert await run_turn(one, "s", "second") == "echo: second [user messages: 2]"
    assert len(two.events("s")) == heard
    await one.request("session.detach", {"sessionId": "s"})
    await one.wait_event("s", "session.shutdown")
    with pytest.raises(RpcFault, match="Session not found"):
        await one.request("session.send", {"sessionId": "s", "prompt": "x"})


async def test_the_last_close_ends_the_session_even_in_a_turn(bench: Bench, cli: Cli) -> None:
    owner, watcher = await bench.client(cli), await bench.client(cli)
    await owner.request("session.create", bench.params("s"))
    await send(owner, "s", "[[gate-mid g]] [[chunks 4]] hello")
    await owner.wait_event("s", "assistant.message_delta")
    await bench.model.waiting("g")
    await owner.close()

    async def gone() -> bool:
        try:
            await watcher.request("session.metadata.isProcessing", {"sessionId": "s"})
        except RpcFault as fault:
            return "Session not found" in fault.message
        return False

    await eventually(gone)
    await eventually(lambda: bench.model.requests[-1].outcome == "abandoned")
    await bench.model.release("g")
    await watcher.request("session.resume", bench.params("s"))
    state = await watcher.request("session.metadata.isProcessing", {"sessionId": "s"})
    assert state == {"processing": False}


async def test_one_of_two_may_close(bench: Bench, cli: Cli) -> None:
    one, two = await bench.client(cli), await bench.client(cli)
    await one.request("session.create", bench.params("s"))
    await two.request("session.resume", {"sessionId": "s"})
    await send(one, "s", "[[gate g]] hello")
    await bench.model.waiting("g")
    await one.close()
    await bench.model.release("g")
    await two.wait_event("s", "session.idle")


async def test_close_unloads_for_all_silently(bench: Bench, cli: Cli) -> None:
    one, two = await bench.client(cli), await bench.client(cli)
    await one.request("session.create", bench.params("s"))
    await run_turn(one, "s", "hi")
    await two.request("session.resume", {"sessionId": "s"})
    for _ in range(2):
        assert await two.request("sessions.close", {"sessionId": "s"}) == {}
    with pytest.raises(RpcFault, match="Session not found"):
        await one.request("session.send", {"sessionId": "s", "prompt": "x"})
    assert "session.shutdown" not in event_types(one, "s") + event_types(two, "s")
    await one.request("session.resume", bench.params("s"))
    assert await run_turn(one, "s", "again") == "echo: again [user messages: 2]"


async def test_nothing_is_stored_before_the_first_message(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    assert await client.request("session.list") == {"sessions": []}
    assert await client.request("session.getLastId") == {}
    assert await client.request("sessions.getMetadata", {"sessionId": "s"}) == {}
    await client.request("session.detach", {"sessionId": "s"})
    with pytest.raises(RpcFault, match="Session not found"):
        await client.request("session.resume", bench.params("s"))


async def test_list_metadata_and_last(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    for name in ("one", "two"):
        await client.request("session.create", bench.params(name))
        await run_turn(client, name, f"title {name}")
        await client.request("sessions.save", {"sessionId": name})
        await asyncio.sleep(0.02)  # modification times differ
    sessions = (await client.request("session.list"))["sessions"]
    assert {item["sessionId"]: item["summary"] for item in sessions} == {
        "one": "title one",
        "two": "title two",
    }
    assert (await client.request("session.getLastId"))["sessionId"] in ("one", "two")
    metadata = await client.request("sessions.getMetadata", {"sessionId": "one"})
    assert metadata["session"]["sessionId"] == "one"
    assert {"startTime", "modifiedTime", "isRemote", "clientName"} <= set(metadata["session"])
    assert await client.request("session.getForeground") == {}
    answer = await client.request("session.setForeground", {"sessionId": "one"})
    assert answer["success"] is False


async def test_delete_tells_everyone(bench: Bench, cli: Cli) -> None:
    client, other = await bench.client(cli), await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    await run_turn(client, "s", "hi")
    await client.request("session.detach", {"sessionId": "s"})
    assert await client.request("session.delete", {"sessionId": "s"}) == {"success": True}
    await eventually(lambda: lifecycle(other, "s").count("session.deleted") == 2)
    with pytest.raises(RpcFault, match="Session not found"):
        await client.request("session.resume", bench.params("s"))


async def test_tool_names_belong_to_one_connection(bench: Bench, cli: Cli) -> None:
    one, two = await bench.client(cli), await bench.client(cli)
    await one.request("session.create", bench.params("s", tools=[tool("mine")]))
    for method in ("session.resume", "session.create"):
        with pytest.raises(RpcFault) as fault:
            await two.request(method, {"sessionId": "s", "tools": [tool("mine")]})
        assert fault.value.message == (
            f"Request {method} failed with message: "
            "External tool name clash: mine already registered by another connection"
        )
    await one.request("session.resume", {"sessionId": "s", "tools": [tool("mine")]})
    await two.request("session.resume", {"sessionId": "s", "tools": [tool("other")]})
    await run_turn(one, "s", "hi")
    assert {"mine", "other"} <= set(bench.model.requests[-1].tools)
    await one.close()
    await two.wait_event("s", "session.idle")
    await two.wait_event("s", "session.tools_updated")
    await run_turn(two, "s", "hi")
    offered = bench.model.requests[-1].tools
    assert "other" in offered
    assert "mine" not in offered


async def test_a_shut_down_session_is_a_zombie(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    await run_turn(client, "s", "hi")
    await client.request("session.shutdown", {"sessionId": "s"})
    assert await send(client, "s", "lost")
    with pytest.raises(RpcFault, match="Session event stream is closed"):
        await client.request("session.resume", bench.params("s"))
