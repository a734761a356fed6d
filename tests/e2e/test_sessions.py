"""Conversations through the gateway over real sockets, on fake CLIs and on real ones."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.e2e.conftest import Fleet, MakeFleet
from tests.support.rpc import RpcClient, RpcFault
from tests.support.sessions import (
    answer_tool,
    decide_permission,
    event_types,
    last_answer,
    lifecycle,
    run_turn,
    send,
    tool,
)
from tests.support.wait import eventually


async def on_both(fleet: Fleet, gateway: Any, client: RpcClient) -> dict[str, str]:
    """Create sessions until each replica has one; return a session id by replica name."""
    homes: dict[str, str] = {}
    number = 0
    while len(homes) < 2:
        await client.request("session.create", fleet.params(f"s{number}"))
        homes[gateway.replica_of(f"s{number}")] = f"s{number}"
        number += 1
    return homes


async def test_sessions_on_several_replicas_at_once(fleet: Fleet) -> None:
    gateway = await fleet.local()
    client = await fleet.client(gateway)
    homes = await on_both(fleet, gateway, client)
    said = await asyncio.gather(
        *(run_turn(client, session_id, f"from {session_id}") for session_id in homes.values())
    )
    assert said == [f"echo: from {s} [user messages: 1]" for s in homes.values()]
    for session_id in homes.values():
        await client.request("sessions.save", {"sessionId": session_id})
    listed = (await client.request("session.list"))["sessions"]
    assert {one["sessionId"] for one in listed} >= set(homes.values())


async def test_a_send_right_behind_a_create(fleet: Fleet) -> None:
    """A CLI that is spoken to directly answers the send with Session not found."""
    gateway = await fleet.local()
    client = await fleet.client(gateway)
    created = client.post("session.create", fleet.params("s"))
    sent = client.post("session.send", {"sessionId": "s", "prompt": "quick"})
    await created
    await sent
    await client.wait_event("s", "session.idle")
    assert last_answer(client, "s") == "echo: quick [user messages: 1]"


async def test_a_session_without_an_id(fleet: Fleet) -> None:
    gateway = await fleet.local()
    client = await fleet.client(gateway)
    created = await client.request("session.create", fleet.params())
    session_id = created["sessionId"]
    assert len(session_id) == 36
    assert await run_turn(client, session_id, "hi") == "echo: hi [user messages: 1]"


async def test_hooks_permission_tool_and_user_input_in_one_turn(fleet: Fleet) -> None:
    gateway = await fleet.local()
    client = await fleet.client(gateway)
    params = fleet.params(
        "s", tools=[tool("mine")], hooks=True, requestPermission=True, requestUserInput=True
    )
    await client.request("session.create", params)
    hooks: list[str] = []

    async def answer_hooks() -> None:
        while True:
            asked = await client.requests.wait_for(lambda m: m["method"] == "hooks.invoke", 30)
            assert type(asked["id"]) is int
            hooks.append(asked["params"]["hookType"])
            client.reply(asked, {"output": None})

    answering = asyncio.create_task(answer_hooks())
    await send(client, "s", '[[tool mine {"x":1}]] [[tool ask_user {"question":"color?"}]] go')
    asked = await client.wait_event("s", "permission.requested")
    assert await decide_permission(client, "s", asked["data"]["requestId"])
    call = await client.wait_event("s", "external_tool.requested")
    assert await answer_tool(client, "s", call["data"]["requestId"], "got 1")
    question = await client.requests.wait_for(lambda m: m["method"] == "userInput.request")
    client.reply(question, {"answer": "blue", "wasFreeform": True})
    await client.wait_event("s", "session.idle")
    answering.cancel()
    assert "[mine returned: got 1]" in last_answer(client, "s")
    assert "User responded: blue" in last_answer(client, "s")
    assert {"sessionStart", "userPromptSubmitted", "preToolUse", "postToolUse"} <= set(hooks)


async def test_abort_through_the_gateway(fleet: Fleet) -> None:
    gateway = await fleet.local()
    client = await fleet.client(gateway)
    await client.request("session.create", fleet.params("s"))
    await send(client, "s", "[[gate-mid g]] [[chunks 4]] hello")
    await client.wait_event("s", "assistant.message_delta")
    assert await client.request("session.abort", {"sessionId": "s"}) == {"success": True}
    idle = await client.wait_event("s", "session.idle")
    assert idle["data"]["aborted"] is True


async def test_a_large_attachment(fleet: Fleet) -> None:
    gateway = await fleet.local()
    client = await fleet.client(gateway)
    await client.request("session.create", fleet.params("s"))
    size = 5_000_000
    await send(client, "s", "look: " + "ä" * (size // 2))
    await client.wait_event("s", "session.idle", 60)
    message = next(e for e in client.events("s") if e["type"] == "user.message")
    assert len(message["data"]["content"].encode()) >= size


async def test_two_clients_share_a_session(fleet: Fleet) -> None:
    gateway = await fleet.local()
    one, other = await fleet.client(gateway), await fleet.client(gateway)
    await one.request("session.create", fleet.params("s"))
    await other.request("session.resume", {"sessionId": "s"})
    await run_turn(one, "s", "from one")
    await other.wait_event("s", "session.idle")
    assert last_answer(other, "s") == "echo: from one [user messages: 1]"
    assert await run_turn(other, "s", "from other") == "echo: from other [user messages: 2]"


async def test_a_conversation_is_resumed_by_the_next_client(fleet: Fleet) -> None:
    gateway = await fleet.local()
    first = await fleet.client(gateway)
    await first.request("session.create", fleet.params("s"))
    await run_turn(first, "s", "one")
    await first.close()
    second = await fleet.client(gateway)
    await second.request("session.resume", fleet.params("s"))
    assert await run_turn(second, "s", "two") == "echo: two [user messages: 2]"


async def test_delete_and_create_again(fleet: Fleet) -> None:
    gateway = await fleet.local()
    client = await fleet.client(gateway)
    await client.request("session.create", fleet.params("s"))
    await run_turn(client, "s", "one")
    await client.request("sessions.save", {"sessionId": "s"})
    assert (await client.request("session.delete", {"sessionId": "s"}))["success"] is True
    with pytest.raises(RpcFault, match="Session not found"):
        await client.request("session.resume", {"sessionId": "s"})
    await client.request("session.create", fleet.params("s"))
    assert await run_turn(client, "s", "anew") == "echo: anew [user messages: 1]"


async def test_creating_over_a_stored_session_is_refused(fleet: Fleet) -> None:
    """Directly, the CLI starts an empty conversation in the same journal."""
    gateway = await fleet.local()
    first = await fleet.client(gateway)
    await first.request("session.create", fleet.params("s"))
    await run_turn(first, "s", "precious")
    await first.request("sessions.save", {"sessionId": "s"})
    await first.close()
    second = await fleet.client(gateway)

    async def refused() -> bool:
        try:
            await second.request("session.create", fleet.params("s"))
        except RpcFault as fault:
            return "already exists" in fault.message
        await second.request("session.detach", {"sessionId": "s"})
        return False

    await eventually(refused)
    await second.request("session.resume", fleet.params("s"))
    assert await run_turn(second, "s", "two") == "echo: two [user messages: 2]"


async def test_a_restart_between_turns_is_not_noticed(fleet: Fleet) -> None:
    """Tools, provider and filters survive, none of which the CLI keeps."""
    gateway = await fleet.local()
    client = await fleet.client(gateway)
    params = fleet.params(
        "s", tools=[tool("mine")], availableTools=["mine"], requestPermission=True
    )
    await client.request("session.create", params)
    assert await run_turn(client, "s", "one") == "echo: one [user messages: 1]"
    await client.request("sessions.save", {"sessionId": "s"})
    heard = len(client.events("s"))
    cli = fleet.cli(gateway.replica_of("s"))
    await cli.restart()
    await send(client, "s", "[[tool mine {}]] two")
    asked = await client.wait_event("s", "permission.requested", 30)
    assert await decide_permission(client, "s", asked["data"]["requestId"])
    call = await client.wait_event("s", "external_tool.requested")
    assert await answer_tool(client, "s", call["data"]["requestId"], "still mine")
    await client.wait_event("s", "session.idle")
    assert last_answer(client, "s") == ("echo: two [user messages: 2] [mine returned: still mine]")
    assert fleet.model.requests[-1].tools == ["mine"]
    assert fleet.model.requests[-1].authorization == "Bearer test-key"
    new = event_types(client, "s")[heard:]
    assert "session.resume" not in new
    assert "session.error" not in new


async def test_a_kill_between_turns_is_not_noticed(fleet: Fleet) -> None:
    gateway = await fleet.local()
    client = await fleet.client(gateway)
    homes = await on_both(fleet, gateway, client)
    for session_id in homes.values():
        await run_turn(client, session_id, "one")
        await client.request("sessions.save", {"sessionId": session_id})
    cli = fleet.cli("cli-0")
    await cli.kill()
    waiting = asyncio.ensure_future(run_turn(client, homes["cli-0"], "two"))
    assert await run_turn(client, homes["cli-1"], "two") == "echo: two [user messages: 2]"
    await cli.start()
    assert await waiting == "echo: two [user messages: 2]"


async def test_a_session_without_a_message_survives_a_kill(fleet: Fleet) -> None:
    """It is in no journal; it is made again from what its creator said."""
    gateway = await fleet.local()
    client = await fleet.client(gateway)
    await client.request("session.create", fleet.params("s", tools=[tool("mine")]))
    cli = fleet.cli(gateway.replica_of("s"))
    await cli.kill()
    await cli.start()
    assert await run_turn(client, "s", "first") == "echo: first [user messages: 1]"
    assert "mine" in fleet.model.requests[-1].tools


async def test_lifecycle_stays_in_the_tenant(fleet: Fleet) -> None:
    gateway = await fleet.local()
    alice = await fleet.client(gateway, gateway.add_token("acme", "alice"))
    mallory = await fleet.client(gateway, gateway.add_token("evil", "mallory"))
    await mallory.request("session.create", fleet.params("hers"))
    await alice.request("session.create", fleet.params("s"))
    await run_turn(alice, "s", "hi")
    assert "session.created" in lifecycle(alice, "s")
    await mallory.request("ping")
    assert lifecycle(mallory, "s") == []
    assert lifecycle(alice, "hers") == []


async def test_many_clients_with_many_sessions(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet("fake", 3)
    gateway = await fleet.local()
    clients = [await fleet.client(gateway) for _ in range(20)]

    async def converse(number: int, client: RpcClient) -> None:
        for part in range(3):
            session_id = f"c{number}-{part}"
            await client.request("session.create", fleet.params(session_id))
            for turn in range(2):
                answer = await run_turn(client, session_id, f"{session_id} {turn}")
                assert answer == f"echo: {session_id} {turn} [user messages: {turn + 1}]"

    await asyncio.gather(*(converse(n, client) for n, client in enumerate(clients)))
    assert all(fleet.fake(cli.name).sessions for cli in fleet.clis)
