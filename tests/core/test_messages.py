"""Messages between a client and its sessions: routing, order, ids, bad input."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway import errors
from tests.core.conftest import MakeStage
from tests.support.playbook import Stage, event, raw
from tests.support.rpc import Message

# Routing and order


async def test_a_session_message_goes_where_the_session_lives(two: Stage) -> None:
    alice = await two.client("alice")
    where = {}
    for number in range(8):
        asked = await alice.creates(f"s{number}")
        where[f"s{number}"] = asked.line.replica.name
    assert set(where.values()) == {"cli-0", "cli-1"}
    for session_id, name in where.items():
        sent = await alice.prompts(session_id)
        assert sent.line.replica.name == name


async def test_one_link_per_replica_serves_all_sessions(two: Stage) -> None:
    alice = await two.client("alice")
    for number in range(8):
        await alice.creates(f"s{number}")
    for replica in two.replicas.values():
        assert len([line for line in replica.lines if line.link.client is alice.core]) == 1


async def test_clients_have_links_of_their_own(stage: Stage) -> None:
    alice, bob = await stage.client("alice"), await stage.client("bob")
    one, other = await alice.creates("a"), await bob.creates("b")
    assert one.line is not other.line


async def test_no_link_before_it_is_needed(two: Stage) -> None:
    alice = await two.client("alice")
    await alice.creates("s")
    assert sum(len(replica.lines) for replica in two.replicas.values()) == 2 + 1


async def test_a_send_behind_a_create_waits_for_its_answer(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.sends(
        alice.request("session.create", {"sessionId": "s"}),
        alice.request("session.send", {"sessionId": "s", "prompt": "hi"}),
    )
    created = await stage.cli.gets("session.create")
    await stage.settle()
    assert stage.cli.unanswered == []
    created.answers({"sessionId": "s"})
    sent = await stage.cli.gets("session.send")
    assert sent.params == {"sessionId": "s", "prompt": "hi"}


async def test_a_create_without_an_id_gets_one(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.asks("session.create", model="m")
    asked = await stage.cli.gets("session.create")
    assert len(asked.params["sessionId"]) == 36
    assert asked.params["model"] == "m"


async def test_messages_of_a_session_keep_their_order(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.sends(
        alice.request("session.create", {"sessionId": "s"}),
        *(alice.request("session.send", {"sessionId": "s", "prompt": str(n)}) for n in range(20)),
    )
    (await stage.cli.gets("session.create")).answers({"sessionId": "s"})
    prompts = [(await stage.cli.gets("session.send")).params["prompt"] for _ in range(20)]
    assert prompts == [str(n) for n in range(20)]


async def test_messages_sent_while_others_wait_do_not_overtake(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.asks("session.create", sessionId="s")
    alice.asks("session.send", sessionId="s", prompt="1")
    created = await stage.cli.gets("session.create")
    created.answers({"sessionId": "s"})
    alice.asks("session.send", sessionId="s", prompt="2")
    await stage.settle()
    alice.asks("session.send", sessionId="s", prompt="3")
    prompts = [(await stage.cli.gets("session.send")).params["prompt"] for _ in range(3)]
    assert prompts == ["1", "2", "3"]


async def test_a_resume_holds_up_later_messages_of_its_session_only(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("busy")
    await alice.creates("other")
    alice.asks("session.resume", sessionId="busy")
    alice.asks("session.send", sessionId="busy", prompt="later")
    alice.asks("session.send", sessionId="other", prompt="now")
    assert (await stage.cli.gets("session.send")).params["prompt"] == "now"
    await stage.settle()
    assert stage.cli.unanswered == ["session.resume"]
    (await stage.cli.gets("session.resume")).answers({"sessionId": "busy"})
    assert (await stage.cli.gets("session.send")).params["prompt"] == "later"


async def test_notifications_pass_in_order(stage: Stage) -> None:
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    alice.asks("session.send", sessionId="s", prompt="1")
    alice.notifies("session.abort", sessionId="s")
    alice.asks("session.send", sessionId="s", prompt="2")
    await stage.settle()
    methods = [m.get("method") for m in line.heard.all[-3:]]
    assert methods == ["session.send", "session.abort", "session.send"]


async def test_answers_come_back_under_the_clients_ids(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    for request_id in (0, -5, "", "uuid-1", 2**63 - 1, "1"):
        alice.asks("session.getMessages", id=request_id, sessionId="s")
        asked = await stage.cli.gets("session.getMessages")
        assert asked.id == request_id
        asked.answers({"events": [str(request_id)]})
        assert await alice.hears_result(request_id) == {"events": [str(request_id)]}


async def test_answers_may_come_in_any_order(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    ids = [alice.asks("session.getMessages", sessionId="s") for _ in range(10)]
    asked = [await stage.cli.gets("session.getMessages") for _ in ids]
    for one in reversed(asked):
        one.answers({"events": [one.id]})
    for request_id in ids:
        assert await alice.hears_result(request_id) == {"events": [request_id]}


async def test_errors_of_the_replica_pass_unchanged(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.asks("session.getMessages", sessionId="s")
    asked = await stage.cli.gets("session.getMessages")
    error = {"code": -32603, "message": "boom", "data": {"deep": [1, {"x": None}]}}
    asked.line.says({"jsonrpc": "2.0", "id": asked.id, "error": error})
    assert await alice.hears_error() == error


async def test_what_replicas_send_is_forwarded_byte_for_byte(stage: Stage) -> None:
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    await stage.settle()
    before = len(alice.sink.written)
    odd = (
        b'{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"s","event":'
        b'{"type":"assistant.message_delta","data":{"n":1.0,"big":12345678901234567890,'
        b'"text":"\\u00e9\\/ \xc3\xa9"}}}}'
    )
    stream = raw([odd, odd.replace(b"assistant.message_delta", b"session.idle"), odd])
    line.says_raw(stream)
    assert bytes(alice.sink.written[before:]) == stream


async def test_the_order_of_a_replicas_messages_is_kept(stage: Stage) -> None:
    """Quiet events, loud ones, answers, requests and notifications, all in one chunk."""
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    asked = [alice.asks("session.getMessages", sessionId="s") for _ in range(2)]
    await stage.settle()
    quiet, loud = event("s", "assistant.message_delta", n=1), event("s", "session.idle")
    script: list[Message] = [
        quiet,
        loud,
        quiet,
        {"jsonrpc": "2.0", "id": asked[0], "result": {"events": []}},
        quiet,
        {"jsonrpc": "2.0", "id": 1, "method": "hooks.invoke", "params": {"sessionId": "s"}},
        quiet,
        loud,
        {"jsonrpc": "2.0", "id": asked[1], "error": {"code": -1, "message": "x"}},
        {"jsonrpc": "2.0", "id": 2, "method": "hooks.invoke", "params": {"sessionId": "s"}},
        quiet,
    ]
    before = len(alice.heard.all)
    line.says(*script)
    heard = alice.heard.all[before:]
    assert [m.get("method") or m["id"] for m in heard] == [
        m.get("method") or m["id"] for m in script
    ]


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_a_replicas_stream_may_come_in_any_pieces(stage: Stage, size: int) -> None:
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    await stage.settle()
    before = len(alice.sink.written)
    messages = [event("s", "assistant.message_delta", text="x" * n) for n in range(0, 400, 40)]
    data = raw(json.dumps(m, separators=(",", ":")).encode() for m in messages)
    for start in range(0, len(data), size):
        line.says_raw(data[start : start + size])
    assert bytes(alice.sink.written[before:]) == data


async def test_large_messages_arrive_whole(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    text = "ü" * 300_000
    alice.asks("session.send", sessionId="s", prompt=text)
    assert (await stage.cli.gets("session.send")).params["prompt"] == text


# What may not pass


async def test_an_id_in_flight_is_refused(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.asks("session.getMessages", id="x", sessionId="s")
    asked = await stage.cli.gets("session.getMessages")
    alice.asks("session.abort", id="x", sessionId="s")
    assert (await alice.hears_error("x"))["code"] == errors.INVALID_REQUEST
    await stage.settle()
    assert stage.cli.unanswered == []
    asked.answers({"events": []})
    assert await alice.hears_result("x") == {"events": []}
    alice.asks("session.abort", id="x", sessionId="s")
    (await stage.cli.gets("session.abort")).answers({"success": True})


async def test_an_id_that_waits_is_in_flight_too(stage: Stage) -> None:
    """Two creates under one id: the second would take the first one's answer."""
    alice = await stage.client("alice")
    alice.asks("session.create", id="x", sessionId="s")
    await stage.cli.gets("session.create")
    alice.asks("session.send", id="y", sessionId="s", prompt="1")
    await stage.settle()
    alice.asks("session.create", id="x", sessionId="t")
    assert (await alice.hears_error("x"))["code"] == errors.INVALID_REQUEST


async def test_ids_reused_while_all_wait_are_refused_once_one_is_sent(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.asks("session.create", sessionId="s")
    for prompt in ("1", "2"):
        alice.asks("session.send", id="x", sessionId="s", prompt=prompt)
    alice.asks("session.resume", id="x", sessionId="s")
    (await stage.cli.gets("session.create")).answers({"sessionId": "s"})
    sent = await stage.cli.gets("session.send")
    assert sent.params["prompt"] == "1"
    for _ in range(2):
        assert (await alice.hears_error("x"))["code"] == errors.INVALID_REQUEST
    sent.answers({"messageId": "m"})
    assert await alice.hears_result("x") == {"messageId": "m"}
    await stage.settle()
    assert stage.cli.unanswered == []
    assert stage.hub.replicas["cli-0"].stats.in_flight == 0


async def test_an_answer_to_nothing_never_reaches_the_client(stage: Stage) -> None:
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    await stage.settle()
    heard = len(alice.heard.all)
    line.says(
        {"jsonrpc": "2.0", "id": "never", "result": {}},
        {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "?"}},
        {"jsonrpc": "2.0", "id": 77, "error": {"code": 1, "message": "?"}},
    )
    line.emits("s", "assistant.message_delta")
    await alice.hears_event("assistant.message_delta")
    assert len(alice.heard.all) == heard + 1


async def test_an_answer_on_another_link_is_not_the_answer(two: Stage) -> None:
    alice = await two.client("alice")
    lines = {}
    number = 0
    while len(lines) < 2:
        asked = await alice.creates(f"s{number}")
        lines[asked.line.replica.name] = (asked.line, f"s{number}")
        number += 1
    session_id = lines["cli-0"][1]
    request_id = alice.asks("session.getMessages", sessionId=session_id)
    asked = await two.replicas["cli-0"].gets("session.getMessages")
    lines["cli-1"][0].says({"jsonrpc": "2.0", "id": request_id, "result": {"events": ["forged"]}})
    await two.settle()
    asked.answers({"events": ["true"]})
    assert await alice.hears_result(request_id) == {"events": ["true"]}


async def test_a_second_answer_is_dropped(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.asks("session.getMessages", sessionId="s")
    asked = await stage.cli.gets("session.getMessages")
    asked.answers({"events": []})
    asked.answers({"events": ["again"]})
    await alice.hears_result()
    await stage.settle()
    assert not [m for m in alice.unheard if m.get("id") == asked.id]


@pytest.mark.parametrize(
    ("body", "code", "under"),
    [
        (b"{nonsense", errors.PARSE_ERROR, None),
        (b"", errors.PARSE_ERROR, None),
        (b'{"jsonrpc":"2.0","id":31,"method":"ping","params":{]', errors.PARSE_ERROR, 31),
        (b"[]", errors.INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', errors.INVALID_REQUEST, 1.5),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', errors.INVALID_REQUEST, None),
        (b'{"jsonrpc":"1.0","id":33,"method":"ping"}', errors.INVALID_REQUEST, 33),
        (b'{"jsonrpc":"2.0","id":34}', errors.INVALID_REQUEST, 34),
    ],
)
async def test_bad_messages_are_answered_and_the_connection_goes_on(
    stage: Stage, body: bytes, code: int, under: Any
) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.says(raw([body]))
    answer = await alice.heard.wait_for(lambda m: "error" in m)
    assert (answer["id"], answer["error"]["code"]) == (under, code)
    await alice.prompts("s")


async def test_a_broken_header_is_answered_and_ends_the_connection(stage: Stage) -> None:
    alice, bob = await stage.client("alice"), await stage.client("bob")
    await bob.creates("b")
    alice.says(b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}")
    assert alice.unheard[-1]["error"]["code"] == errors.PARSE_ERROR
    assert alice.sink.closed
    await bob.prompts("b")


async def test_an_oversized_frame_is_answered_under_its_own_id(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", max_frame=10_000)
    alice = await stage.client("alice")
    alice.asks("session.send", id="mine", sessionId="s", prompt="x" * 10_000)
    error = await alice.hears_error("mine")
    assert error["code"] == errors.OVERLOADED
    assert error["data"]["limit"] == "max_frame"
    assert alice.sink.closed


async def test_frames_before_a_broken_one_are_served(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    good = json.dumps(alice.request("session.send", {"sessionId": "s", "prompt": "x"})).encode()
    alice.says(raw([good]) + b"rubbish\r\n\r\n")
    assert alice.sink.closed
    sent = [m for m in stage.cli.asked.all if m["method"] == "session.send"]
    assert len(sent) == 1


async def test_an_unknown_method_is_refused_as_by_a_cli(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.asks("session.sendAndWait", sessionId="s")
    assert await alice.hears_error() == {
        "code": errors.METHOD_NOT_FOUND,
        "message": "Unhandled method session.sendAndWait",
    }


async def test_a_denied_method_is_refused_and_audited(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.asks("runtime.shutdown")
    assert (await alice.hears_error())["code"] == errors.FORBIDDEN
    assert stage.audited("denied")[0]["method"] == "runtime.shutdown"
    await stage.settle()
    assert stage.cli.unanswered == []


async def test_a_denied_notification_does_nothing(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.notifies("runtime.shutdown")
    await stage.settle()
    assert stage.cli.unanswered == []
    assert alice.unheard == []
    assert not [m for m in stage.cli.told.all if m.get("method") == "runtime.shutdown"]


@pytest.mark.parametrize("params", [None, [], "s", 5, {}, {"sessionId": None}])
async def test_a_session_method_without_an_id_is_refused_as_by_a_cli(
    stage: Stage, params: Any
) -> None:
    alice = await stage.client("alice")
    alice.sends(alice.request("session.send", params))
    error = await alice.hears_error()
    assert error["code"] == errors.INTERNAL_ERROR
    assert "Missing sessionId" in error["message"]


@pytest.mark.parametrize("session_id", [5, True, ["s"], {"s": 1}, 1.5])
async def test_a_session_id_of_another_type_is_refused(stage: Stage, session_id: Any) -> None:
    alice = await stage.client("alice")
    for method in ("session.create", "session.resume", "session.send"):
        alice.asks(method, sessionId=session_id)
        assert (await alice.hears_error())["code"] == errors.INTERNAL_ERROR
    await stage.settle()
    assert stage.cli.unanswered == []


@pytest.mark.parametrize("session_id", ["a/b", "..", "a b", "ä", "a\x00", "x" * 251, "a.b", "a:b"])
async def test_an_id_outside_the_alphabet_creates_nothing(stage: Stage, session_id: str) -> None:
    alice = await stage.client("alice")
    alice.asks("session.create", sessionId=session_id)
    assert "invalid sessionId" in (await alice.hears_error())["message"]
    alice.asks("session.send", sessionId=session_id, prompt="x")
    assert "Session not found" in (await alice.hears_error())["message"]
    await stage.settle()
    assert stage.cli.unanswered == []
    assert stage.hub.sessions == {}
    assert alice.core.bindings == {}


# Duplicate keys


async def test_what_was_checked_is_what_is_sent(stage: Stage) -> None:
    """The last of duplicate keys decides, and the replica sees no other."""
    alice, eve = await stage.client("alice"), await stage.client("eve")
    await alice.creates("hers")
    await eve.creates("mine")
    body = (
        b'{"jsonrpc":"2.0","id":"d","method":"session.send","params":'
        b'{"sessionId":"hers","prompt":"x","session\\u0049d":"mine"}}'
    )
    eve.says(raw([body]))
    sent = await stage.cli.gets("session.send")
    assert sent.params == {"sessionId": "mine", "prompt": "x"}
    eve.says(raw([body.replace(b"mine", b"hers").replace(b'"hers"', b'"mine"', 1)]))
    await stage.settle()
    assert stage.cli.unanswered == []


# Bounds


async def test_what_waits_is_bounded_in_frames(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", queue_frames=3)
    alice = await stage.client("alice")
    await alice.creates("other")
    alice.asks("session.create", sessionId="s")
    created = await stage.cli.gets("session.create")
    ids = [alice.asks("session.send", sessionId="s", prompt=str(n)) for n in range(5)]
    for request_id in ids[3:]:
        error = await alice.hears_error(request_id)
        assert error["code"] == errors.OVERLOADED
        assert error["data"]["limit"] == "queue_frames"
        assert error["data"]["retryAfterMs"] > 0
    await alice.prompts("other")
    created.answers({"sessionId": "s"})
    sends = [await stage.cli.gets("session.send") for _ in range(3)]
    assert [one.params["prompt"] for one in sends] == ["0", "1", "2"]
    for number, one in enumerate(sends):
        one.answers({"messageId": f"m{number}"})
        await alice.hears_result(ids[number])
    # They wait on in the CLI's queue.
    error = await alice.hears_error(alice.asks("session.send", sessionId="s", prompt="no room"))
    assert error["data"]["limit"] == "queue_frames"
    created.line.says(event("s", "session.idle"))
    await stage.settle()
    await alice.prompts("s", "room again")


async def test_what_waits_is_bounded_in_bytes(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", queue_bytes=5000)
    alice = await stage.client("alice")
    alice.asks("session.create", sessionId="s")
    created = await stage.cli.gets("session.create")
    first = alice.asks("session.send", sessionId="s", prompt="x" * 3000)
    second = alice.asks("session.send", sessionId="s", prompt="x" * 3000)
    error = await alice.hears_error(second)
    assert (error["code"], error["data"]["limit"]) == (errors.OVERLOADED, "queue_bytes")
    created.answers({"sessionId": "s"})
    (await stage.cli.gets("session.send")).answers({"messageId": "m"})
    await alice.hears_result(first)


async def test_requests_in_flight_are_bounded(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", max_pending=5)
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    ids = [alice.asks("session.getMessages", sessionId="s") for _ in range(7)]
    await stage.settle()
    refused = [m["id"] for m in alice.heard.all if m.get("error", {}).get("code") == -32012]
    assert refused == ids[5:]
    alice.notifies("$/cancelRequest", id=ids[0])
    await stage.cli.hears(lambda m: m.get("method") == "$/cancelRequest")
    (await stage.cli.gets("session.getMessages")).answers({"events": []})
    alice.asks("session.abort", sessionId="s")
    await stage.cli.gets("session.abort")


async def test_sessions_of_a_client_are_bounded(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", max_sessions=2)
    alice = await stage.client("alice")
    await alice.creates("a")
    await alice.creates("b")
    alice.asks("session.create", sessionId="c")
    assert (await alice.hears_error())["data"]["limit"] == "max_sessions"
    await alice.prompts("a")


async def test_made_up_sessions_leave_nothing_behind(stage: Stage) -> None:
    alice = await stage.client("alice")
    for number in range(50):
        alice.asks("session.send", sessionId=f"x{number}", prompt="?")
        await alice.hears_error()
    await stage.settle()
    assert alice.core.bindings == {}
    assert stage.hub.sessions == {}
    assert stage.stats.sessions_waiting == 0


# Messages about no session


async def test_a_ping_is_answered_by_any_replica(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.asks("ping", message="x")
    assert (await alice.hears_result())["protocolVersion"] == 3


async def test_pings_wait_for_a_link_in_order(stage: Stage) -> None:
    alice = await stage.client("alice")
    ids = [alice.asks("ping") for _ in range(5)]
    for request_id in ids:
        await alice.hears_result(request_id)


async def test_a_ping_with_no_replica_is_told_so(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", rebind_timeout=0.05)
    alice = await stage.client("alice")
    stage.cli.dies()
    alice.asks("ping")
    assert (await alice.hears_error())["code"] == errors.REPLICA_UNAVAILABLE


# Unattached use and notifications of unknown kinds


async def test_an_owned_session_may_be_used_unattached(stage: Stage) -> None:
    one, other = await stage.client("alice"), await stage.client("alice")
    await one.creates("s")
    other.asks("session.getMessages", sessionId="s")
    (await stage.cli.gets("session.getMessages")).answers({"events": []})
    assert await other.hears_result() == {"events": []}
    await other.prompts("s")


async def test_notifications_of_unknown_kinds_are_dropped(stage: Stage) -> None:
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    await stage.settle()
    heard = len(alice.heard.all)
    line.notifies("later.version.thing", secret="x")
    line.emits("s", "session.idle")
    await alice.hears_event("session.idle")
    assert len(alice.heard.all) == heard + 1


async def test_a_client_that_leaves_takes_its_links_along(two: Stage) -> None:
    alice = await two.client("alice")
    for number in range(6):
        await alice.creates(f"s{number}")
    alice.asks("session.create", sessionId="unanswered")
    await two.settle()
    alice.leaves()
    await two.settle()
    for replica in two.replicas.values():
        assert [line.link.closed for line in replica.lines] == [False] + [True] * (
            len(replica.lines) - 1
        )
    assert two.hub.sessions == {}
    assert two.hub.clients == set()
    assert two.stats.clients_open == 0
    assert two.stats.sessions_live == 0
    assert two.stats.sessions_waiting == 0
    assert all(r.stats.in_flight == 0 for r in two.hub.replicas.values())


async def test_leaving_while_a_link_opens_leaves_nothing_open(stage: Stage) -> None:
    alice = await stage.client("alice")
    held: list[Any] = []
    del stage.cli.knows["connect"]
    alice.asks("session.create", sessionId="s")
    held.append(await stage.cli.gets("connect"))
    alice.leaves()
    held[0].answers(stage.cli.hello)
    await stage.settle()
    assert held[0].line.link.closed
    assert stage.hub.sessions == {}
    assert stage.hub.replicas["cli-0"].reachable


async def test_clients_that_leave_are_no_failures_of_a_replica(stage: Stage) -> None:
    bob = await stage.client("bob")
    await bob.creates("b")
    del stage.cli.knows["connect"]
    for number in range(10):
        alice = await stage.client("alice")
        if number % 2:
            alice.asks("session.create", sessionId="s")
        else:
            alice.asks("ping")
        asked = await stage.cli.gets("connect")
        alice.leaves()
        asked.answers(stage.cli.hello)
        await stage.settle()
    await asyncio.sleep(0.02)
    assert stage.hub.replicas["cli-0"].reachable
    assert stage.cli.unanswered == []
    await bob.prompts("b")


async def test_clients_do_not_wait_for_each_other(stage: Stage) -> None:
    alice, bob = await stage.client("alice"), await stage.client("bob")
    alice.asks("session.create", sessionId="a")
    await stage.cli.gets("session.create")
    async with asyncio.timeout(1):
        await bob.creates("b")
        await bob.prompts("b")
