"""Turns: their events, their queue, and what they ask of clients."""

from __future__ import annotations

import pytest

from tests.contract.conftest import Bench
from tests.support.fake_cli import FakeCli
from tests.support.rpc import RpcClient
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

MILESTONES = (
    "user.message",
    "assistant.turn_start",
    "assistant.message_start",
    "assistant.message",
    "tool.execution_start",
    "permission.requested",
    "permission.completed",
    "external_tool.requested",
    "external_tool.completed",
    "tool.execution_complete",
    "assistant.turn_end",
    "model.messages_snapshot",
    "session.error",
    "abort",
    "assistant.idle",
    "session.idle",
)


async def processing(client: RpcClient, session_id: str) -> bool:
    answer = await client.request("session.metadata.isProcessing", {"sessionId": session_id})
    return bool(answer["processing"])


async def test_a_turn(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    message_id = await send(client, "s", "hello wörld [[chunks 3]]")
    idle = await client.wait_event("s", "session.idle")
    assert idle["data"] == {"mode": "interactive"}
    assert event_types(client, "s", only=MILESTONES) == [
        "user.message",
        "assistant.turn_start",
        "assistant.message_start",
        "assistant.message",
        "assistant.turn_end",
        "model.messages_snapshot",
        "assistant.idle",
        "session.idle",
    ]
    events = {event["type"]: event for event in client.events("s")}
    user = events["user.message"]["data"]
    assert (user["messageId"], user["content"]) == (message_id, "hello wörld [[chunks 3]]")
    answer = events["assistant.message"]["data"]
    assert answer["originatingMessageId"] == message_id
    assert answer["content"] == "echo: hello wörld [user messages: 1]"
    deltas = [e for e in client.events("s") if e["type"] == "assistant.message_delta"]
    assert len(deltas) == 3
    assert "".join(e["data"]["deltaContent"] for e in deltas) == answer["content"]
    assert {e["data"]["messageId"] for e in deltas} == {answer["messageId"]}
    for kind in ("assistant.message_delta", "assistant.idle", "session.idle"):
        assert events[kind]["ephemeral"] is True
    assert await processing(client, "s") is False


async def test_without_streaming_there_are_no_deltas(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s", streaming=False))
    assert await run_turn(client, "s", "hi") == "echo: hi [user messages: 1]"
    assert "assistant.message_delta" not in event_types(client, "s")


async def test_send_with_wait_answers_after_idle(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    waiting = client.post("session.send", {"sessionId": "s", "prompt": "[[gate g]]", "wait": True})
    await bench.model.waiting("g")
    assert not waiting.done()
    assert await processing(client, "s") is True
    await bench.model.release("g")
    await waiting
    await client.wait_event("s", "session.idle")


async def test_sends_queue_and_idle_comes_once(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    await send(client, "s", "[[gate g]] one")
    await bench.model.waiting("g")
    await send(client, "s", "two")
    await send(client, "s", "three")
    await bench.model.release("g")
    await client.wait_event("s", "session.idle")
    assert last_answer(client, "s") == "echo: three [user messages: 3]"
    assert await run_turn(client, "s", "four") == "echo: four [user messages: 4]"
    assert event_types(client, "s", only=("session.idle",)) == ["session.idle"] * 2


async def test_without_a_provider_the_turn_fails(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", {"sessionId": "s"})
    await send(client, "s", "hi")
    error = await client.wait_event("s", "session.error")
    assert "No GitHub OAuth token" in error["data"]["message"]
    await client.wait_event("s", "session.idle")
    assert "user.message" not in event_types(client, "s")


async def test_a_failing_model_ends_the_turn_with_an_error(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    await send(client, "s", "[[error 400]] hi")
    await client.wait_event("s", "session.idle")
    assert event_types(client, "s", only=MILESTONES) == [
        "user.message",
        "assistant.turn_start",
        "assistant.turn_end",
        "session.error",
        "assistant.idle",
        "session.idle",
    ]
    error = next(e for e in client.events("s") if e["type"] == "session.error")
    assert error["data"]["statusCode"] == 400


async def test_abort_while_streaming(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    await send(client, "s", "[[gate-mid g]] [[chunks 4]] hello")
    await client.wait_event("s", "assistant.message_delta")
    assert await client.request("session.abort", {"sessionId": "s"}) == {"success": True}
    idle = await client.wait_event("s", "session.idle")
    assert idle["data"] == {"aborted": True, "mode": "interactive"}
    types = event_types(client, "s", only=MILESTONES)
    assert types[-4:] == ["abort", "assistant.turn_end", "assistant.idle", "session.idle"]
    assert await processing(client, "s") is False
    assert await run_turn(client, "s", "next") == "echo: next [user messages: 2]"


async def test_idle_abort_says_nothing(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    await run_turn(client, "s", "hi")
    heard = len(client.events("s"))
    assert await client.request("session.abort", {"sessionId": "s"}) == {"success": True}
    await client.request("ping")
    new = event_types(client, "s")[heard:]
    assert "session.idle" not in new


async def test_a_tool_call(bench: Bench, cli: Cli) -> None:
    client, other = await bench.client(cli), await bench.client(cli)
    params = bench.params("s", tools=[tool("mine")], requestPermission=True)
    await client.request("session.create", params)
    await send(client, "s", '[[tool mine {"x":1}]] go')
    asked = (await client.wait_event("s", "permission.requested"))["data"]
    assert asked["ownerSessionId"] == "s"
    assert asked["permissionRequest"]["kind"] == "custom-tool"
    assert asked["permissionRequest"]["args"] == {"x": 1}
    assert [p["requestId"] for p in await pending_permissions(other, "s")] == [asked["requestId"]]
    assert await processing(other, "s") is True
    assert await decide_permission(other, "s", asked["requestId"]) is True
    assert await decide_permission(client, "s", asked["requestId"]) is False
    call = (await client.wait_event("s", "external_tool.requested"))["data"]
    assert (call["sessionId"], call["toolName"], call["arguments"]) == ("s", "mine", {"x": 1})
    listed = await other.request("session.tools.listPendingRequests", {"sessionId": "s"})
    assert [item["requestId"] for item in listed["items"]] == [call["requestId"]]
    assert await answer_tool(client, "s", call["requestId"], "got 1") is True
    assert await answer_tool(client, "s", call["requestId"], "got 2") is False
    await client.wait_event("s", "session.idle")
    assert last_answer(client, "s") == "echo: go [user messages: 1] [mine returned: got 1]"
    assert event_types(client, "s", only=MILESTONES) == [
        "user.message",
        "assistant.turn_start",
        "assistant.message",
        "tool.execution_start",
        "permission.requested",
        "permission.completed",
        "external_tool.requested",
        "external_tool.completed",
        "tool.execution_complete",
        "assistant.turn_end",
        "assistant.turn_start",
        "assistant.message_start",
        "assistant.message",
        "assistant.turn_end",
        "model.messages_snapshot",
        "assistant.idle",
        "session.idle",
    ]
    assert await pending_permissions(client, "s") == []


async def test_a_rejected_tool_call(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    params = bench.params("s", tools=[tool("mine")], requestPermission=True)
    await client.request("session.create", params)
    await send(client, "s", "[[tool mine {}]] go")
    asked = await client.wait_event("s", "permission.requested")
    assert await decide_permission(client, "s", asked["data"]["requestId"], "reject")
    done = await client.wait_event("s", "tool.execution_complete")
    assert done["data"]["success"] is False
    await client.wait_event("s", "session.idle")
    assert "external_tool.requested" not in event_types(client, "s")


async def test_a_tool_call_nobody_can_permit(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s", tools=[tool("mine")]))
    await send(client, "s", "[[tool mine {}]] go")
    await client.wait_event("s", "session.idle")
    assert "no one could answer" in last_answer(client, "s")
    assert "permission.requested" not in event_types(client, "s")


async def test_abort_with_a_pending_permission(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    params = bench.params("s", tools=[tool("mine")], requestPermission=True)
    await client.request("session.create", params)
    await send(client, "s", "[[tool mine {}]] go")
    asked = await client.wait_event("s", "permission.requested")
    await client.request("session.abort", {"sessionId": "s"})
    await client.wait_event("s", "session.idle")
    assert event_types(client, "s", only=MILESTONES)[-5:] == [
        "abort",
        "permission.completed",
        "assistant.turn_end",
        "assistant.idle",
        "session.idle",
    ]
    assert await decide_permission(client, "s", asked["data"]["requestId"]) is False


async def test_tool_filters(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    tools = [tool("mine"), tool("other")]
    await client.request("session.create", bench.params("s", tools=tools, availableTools=["mine"]))
    await run_turn(client, "s", "hi")
    assert bench.model.requests[-1].tools == ["mine"]


async def test_user_input_goes_to_who_asked_for_it(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s", requestUserInput=True))
    prompt = '[[tool ask_user {"question":"color?","choices":["red","blue"]}]] go'
    await send(client, "s", prompt)
    asked = await client.requests.wait_for(lambda m: m["method"] == "userInput.request")
    assert asked["id"] == 1
    assert asked["params"] == {
        "sessionId": "s",
        "question": "color?",
        "choices": ["red", "blue"],
        "allowFreeform": True,
    }
    client.reply(asked, {"answer": "blue", "wasFreeform": False})
    await client.wait_event("s", "session.idle")
    assert last_answer(client, "s").endswith("[ask_user returned: User selected: blue]")
    await send(client, "s", prompt)
    asked = await client.requests.wait_for(lambda m: m["method"] == "userInput.request")
    assert asked["id"] == 2
    client.reply_error(asked, -32603, "no")
    await client.wait_event("s", "session.idle")
    assert "The user was unable to respond" in last_answer(client, "s")


async def test_a_turn_waits_for_the_hooks_of_all(bench: Bench, cli: Cli) -> None:
    one, two = await bench.client(cli), await bench.client(cli)
    await one.request("session.create", bench.params("s", hooks=True))
    await two.request("session.resume", {"sessionId": "s", "hooks": True})
    await send(one, "s", "hi")
    expected = ["sessionStart", "userPromptSubmitted", "userPromptTransformed", "agentStop"]
    for number, kind in enumerate(expected, 1):
        for client in (one, two):
            asked = await client.requests.wait_for(lambda m: m["method"] == "hooks.invoke")
            assert (asked["id"], asked["params"]["hookType"]) == (number, kind)
            assert asked["params"]["input"]["sessionId"] == "s"
            assert "session.idle" not in event_types(one, "s")
            client.reply(asked, {"output": None})
    await one.wait_event("s", "session.idle")


async def test_closing_a_silent_connection_frees_its_hooks(bench: Bench, cli: Cli) -> None:
    one, silent = await bench.client(cli), await bench.client(cli)
    await one.request("session.create", bench.params("s"))
    await silent.request("session.resume", {"sessionId": "s", "hooks": True})
    await send(one, "s", "hi")
    await silent.requests.wait_for(lambda m: m["method"] == "hooks.invoke")
    assert await processing(one, "s") is True
    await silent.close()
    await one.wait_event("s", "session.idle")
    assert last_answer(one, "s") == "echo: hi [user messages: 1]"


async def test_session_parameters_overwrite_for_everybody(bench: Bench, cli: Cli) -> None:
    one, two = await bench.client(cli), await bench.client(cli)
    await one.request("session.create", bench.params("s"))
    await run_turn(one, "s", "hi")
    assert bench.model.requests[-1].authorization == "Bearer test-key"
    provider = {**bench.params()["provider"], "apiKey": "other-key"}
    await two.request("session.resume", {"sessionId": "s", "provider": provider})
    await run_turn(one, "s", "hi")
    assert bench.model.requests[-1].authorization == "Bearer other-key"


@pytest.mark.parametrize("prompts", [[], ["a", "b"]])
async def test_send_messages(bench: Bench, cli: Cli, prompts: list[str]) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s"))
    await run_turn(client, "s", "hi")
    messages = [{"prompt": prompt} for prompt in prompts]
    params = {"sessionId": "s", "messages": messages}
    answer = await client.request("session.sendMessages", params)
    assert len(answer["messageIds"]) == len(prompts)
    await client.wait_event("s", "session.idle")
    await eventually(lambda: bench.model.requests[-1].user_messages == ["hi", *prompts])


async def test_the_first_answer_to_user_input_wins(bench: Bench, cli: Cli) -> None:
    one, two = await bench.client(cli), await bench.client(cli)
    await one.request("session.create", bench.params("s", requestUserInput=True))
    await two.request("session.resume", {"sessionId": "s", "requestUserInput": True})
    await send(one, "s", '[[tool ask_user {"question":"color?"}]] go')
    await one.requests.wait_for(lambda m: m["method"] == "userInput.request")
    asked = await two.requests.wait_for(lambda m: m["method"] == "userInput.request")
    two.reply(asked, {"answer": "two", "wasFreeform": True})
    await one.wait_event("s", "session.idle")
    assert last_answer(one, "s").endswith("User responded: two]")


async def test_an_unanswered_hook_holds_up_abort(bench: Bench, cli: Cli) -> None:
    client = await bench.client(cli)
    await client.request("session.create", bench.params("s", hooks=True))
    await send(client, "s", "hi")
    asked = await client.requests.wait_for(lambda m: m["method"] == "hooks.invoke")
    abort = client.post("session.abort", {"sessionId": "s"})
    await client.request("ping")
    assert "session.idle" not in event_types(client, "s")
    while "session.idle" not in event_types(client, "s"):
        client.reply(asked, {"output": None})
        try:
            asked = await client.requests.wait_for(lambda m: m["method"] == "hooks.invoke", 0.3)
        except TimeoutError:
            break
    await client.wait_event("s", "session.idle")
    assert await abort == {"success": True}


async def leave_a_tool_call(bench: Bench, owner: RpcClient, other: RpcClient) -> str:
    """Have both attached and a permission for a tool of ``owner`` pending; return its id."""
    params = bench.params("s", tools=[tool("mine")], requestPermission=True)
    await owner.request("session.create", params)
    await other.request("session.resume", {"sessionId": "s", "requestPermission": True})
    await send(owner, "s", "[[tool mine {}]] go")
    asked = await owner.wait_event("s", "permission.requested")
    request_id: str = asked["data"]["requestId"]
    return request_id


async def test_a_pending_tool_call_outlives_its_owner(bench: Bench, cli: Cli) -> None:
    owner, other = await bench.client(cli), await bench.client(cli)
    permission = await leave_a_tool_call(bench, owner, other)
    await decide_permission(owner, "s", permission)
    call = await other.wait_event("s", "external_tool.requested")
    await owner.close()
    await other.wait_event("s", "session.tools_updated")
    assert await processing(other, "s") is True
    assert await answer_tool(other, "s", call["data"]["requestId"], "from another") is True
    await other.wait_event("s", "session.idle")
    assert last_answer(other, "s").endswith("[mine returned: from another]")


async def test_a_permitted_tool_call_fails_once_its_owner_left(bench: Bench, cli: Cli) -> None:
    owner, other = await bench.client(cli), await bench.client(cli)
    permission = await leave_a_tool_call(bench, owner, other)
    await owner.close()
    await other.wait_event("s", "session.tools_updated")
    assert await decide_permission(other, "s", permission) is True
    done = await other.wait_event("s", "tool.execution_complete")
    assert done["data"]["success"] is False
    assert "external_tool.requested" not in event_types(other, "s")
    await other.wait_event("s", "session.idle")
