"""Requests of replicas to clients: ids that collide, answers, cancels."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.conftest import MakeStage
from tests.support.playbook import Actor, Line, Stage
from tests.support.rpc import Message


async def on_both(stage: Stage, actor: Actor) -> tuple[Line, Line]:
    """Have sessions on both replicas; return the client's connections."""
    lines: dict[str, Line] = {}
    number = 0
    while len(lines) < 2:
        line = (await actor.creates(f"s{number}")).line
        lines[line.replica.name] = line
        number += 1
    return lines["cli-0"], lines["cli-1"]


def is_answer(request_id: Any) -> Any:
    return lambda m: "method" not in m and m["id"] == request_id


async def test_ids_that_collide_become_unique_integers(two: Stage) -> None:
    alice = await two.client("alice")
    first, second = await on_both(two, alice)
    for line in (first, second, first, second):
        request_id = 1 if line.replica.asked.all.count("x") == 0 else 2
        line.asks(request_id, "hooks.invoke", sessionId="s", which=line.replica.name)
    asked = [await alice.hears("hooks.invoke") for _ in range(4)]
    ids = [m["id"] for m in asked]
    assert all(type(one) is int for one in ids)
    assert len(set(ids)) == 4


async def test_an_answer_goes_back_to_who_asked_under_its_own_id(two: Stage) -> None:
    alice = await two.client("alice")
    first, second = await on_both(two, alice)
    first.asks(1, "hooks.invoke", sessionId="s", which="first")
    second.asks(1, "hooks.invoke", sessionId="s", which="second")
    asked = {m["params"]["which"]: m for m in [await alice.hears("hooks.invoke") for _ in "ab"]}
    alice.answers(asked["second"], {"output": 2})
    alice.answers(asked["first"], {"output": 1})
    assert (await first.replica.hears(is_answer(1)))["result"] == {"output": 1}
    assert (await second.replica.hears(is_answer(1)))["result"] == {"output": 2}


async def test_an_error_goes_back_too(stage: Stage) -> None:
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    line.asks(4, "userInput.request", sessionId="s")
    asked = await alice.hears("userInput.request")
    error = {"code": -32603, "message": "no", "data": [1]}
    alice.sends({"jsonrpc": "2.0", "id": asked["id"], "error": error})
    assert (await stage.cli.hears(is_answer(4)))["error"] == error


@pytest.mark.parametrize("request_id", [7, -1, 0, 2**53, "text", 'a\\b"c'])
async def test_ids_of_any_kind_are_given_back_as_they_were(stage: Stage, request_id: Any) -> None:
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    params = {"sessionId": "s", "nested": {"id": 5, "text": '"id":9'}}
    line.asks(request_id, "hooks.invoke", **params)
    asked = await alice.hears("hooks.invoke")
    assert type(asked["id"]) is int
    assert asked["params"] == params
    alice.answers(asked, None)
    await stage.cli.hears(is_answer(request_id))


async def test_the_rest_of_a_request_is_byte_for_byte(stage: Stage) -> None:
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    await stage.settle()
    before = len(alice.sink.written)
    rest = b',"method":"hooks.invoke","params":{"n":1.0,"t":"\\u00e9\\/","sessionId":"s"}}'
    body = b'{"jsonrpc":"2.0","id":12345' + rest
    line.says_raw(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    heard = bytes(alice.sink.written[before:])
    assert heard.endswith(rest)
    assert heard.partition(b"\r\n\r\n")[2] == b'{"jsonrpc":"2.0","id":1' + rest


async def test_a_second_answer_is_dropped(stage: Stage) -> None:
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    line.asks(1, "hooks.invoke", sessionId="s")
    asked = await alice.hears("hooks.invoke")
    alice.answers(asked, "once")
    alice.answers(asked, "twice")
    await stage.settle()
    answers = [m for m in stage.cli.told.all if is_answer(1)(m)]
    assert [m["result"] for m in answers] == ["once"]


@pytest.mark.parametrize("forged", [1, 2, 999, 0, -1, "1", None])
async def test_an_answer_to_a_request_never_sent_is_dropped(stage: Stage, forged: Any) -> None:
    alice, eve = await stage.client("alice"), await stage.client("eve")
    line = (await alice.creates("hers")).line
    await eve.creates("mine")
    line.asks(1, "userInput.request", sessionId="hers")
    await alice.hears("userInput.request")
    eve.sends({"jsonrpc": "2.0", "id": forged, "result": {"answer": "forged"}})
    await stage.settle()
    assert not [m for m in stage.cli.told.all if "result" in m]


async def test_own_ids_cannot_be_answered_by_name(stage: Stage) -> None:
    """The id under which the replica knows its request is not the client's to use."""
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    line.asks(500, "hooks.invoke", sessionId="s")
    await alice.hears("hooks.invoke")
    alice.sends({"jsonrpc": "2.0", "id": 500, "result": {}})
    await stage.settle()
    assert not [m for m in stage.cli.told.all if "result" in m]


async def test_a_replicas_cancel_follows_the_mapping(two: Stage) -> None:
    alice = await two.client("alice")
    first, second = await on_both(two, alice)
    first.asks(1, "hooks.invoke", sessionId="s", which="first")
    second.asks(1, "hooks.invoke", sessionId="s", which="second")
    asked = {m["params"]["which"]: m for m in [await alice.hears("hooks.invoke") for _ in "ab"]}
    second.notifies("$/cancelRequest", id=1)
    cancel = await alice.hears("$/cancelRequest")
    assert cancel["params"] == {"id": asked["second"]["id"]}


async def test_a_cancel_of_what_was_answered_is_dropped(stage: Stage) -> None:
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    line.asks(1, "hooks.invoke", sessionId="s")
    alice.answers(await alice.hears("hooks.invoke"), None)
    line.notifies("$/cancelRequest", id=1)
    line.notifies("$/cancelRequest", id=77)
    line.notifies("$/cancelRequest")
    await stage.settle()
    assert not [m for m in alice.unheard if m.get("method") == "$/cancelRequest"]


async def test_a_clients_cancel_goes_where_its_request_went(two: Stage) -> None:
    alice = await two.client("alice")
    await on_both(two, alice)
    request_id = alice.asks("session.getMessages", id="slow", sessionId="s0")
    asked = await two.anyone_gets("session.getMessages")
    alice.notifies("$/cancelRequest", id=request_id)
    where = asked.line.replica
    cancel = await where.hears(lambda m: m.get("method") == "$/cancelRequest")
    assert cancel["params"] == {"id": "slow"}
    other = next(r for r in two.replicas.values() if r is not where)
    assert not [m for m in other.told.all if m.get("method") == "$/cancelRequest"]


@pytest.mark.parametrize("request_id", ["other", 999, None, 1.5, [], {"a": 1}])
async def test_a_cancel_of_nothing_goes_nowhere(stage: Stage, request_id: Any) -> None:
    alice, bob = await stage.client("alice"), await stage.client("bob")
    await alice.creates("s")
    await bob.creates("b")
    bob.asks("session.getMessages", id="other", sessionId="b")
    await stage.cli.gets("session.getMessages")
    alice.notifies("$/cancelRequest", id=request_id)
    await stage.settle()
    assert not [m for m in stage.cli.told.all if m.get("method") == "$/cancelRequest"]


async def test_a_cancelled_request_is_still_answered_once(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.asks("session.getMessages", sessionId="s")
    asked = await stage.cli.gets("session.getMessages")
    alice.notifies("$/cancelRequest", id=asked.id)
    asked.refuses("cancelled", -32800)
    assert (await alice.hears_error())["code"] == -32800


async def test_requests_of_a_lost_link_are_forgotten(stage: Stage) -> None:
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    line.asks(1, "hooks.invoke", sessionId="s")
    asked = await alice.hears("hooks.invoke")
    line.breaks()
    resumed = await stage.cli.gets("session.resume")
    resumed.answers({"sessionId": "s"})
    await stage.settle()
    alice.answers(asked, "late")
    resumed.line.asks(1, "hooks.invoke", sessionId="s")
    again = await alice.hears("hooks.invoke")
    assert again["id"] != asked["id"]
    alice.answers(again, "now")
    assert (await stage.cli.hears(is_answer(1)))["result"] == "now"


async def test_a_request_before_the_answer_to_create_reaches_the_creator(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.asks("session.create", sessionId="s", hooks=True)
    created = await stage.cli.gets("session.create")
    created.line.asks(1, "hooks.invoke", sessionId="s")
    asked = await alice.hears("hooks.invoke")
    alice.answers(asked, None)
    await stage.cli.hears(is_answer(1))
    created.answers({"sessionId": "s"})
    await alice.hears_result()


async def test_control_links_answer_nothing(stage: Stage) -> None:
    control = stage.cli.lines[0]
    control.asks(1, "hooks.invoke", sessionId="s")
    control.emits("s", "session.idle")
    control.notifies("$/cancelRequest", id=1)
    await stage.settle()
    assert [m for m in stage.cli.told.all if "result" in m or "error" in m] == []


async def test_aliases_are_given_back(make_stage: MakeStage) -> None:
    """A long-lived client that answers everything holds on to nothing."""
    stage = await make_stage("cli-0")
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    for number in range(1, 101):
        line.asks(number, "hooks.invoke", sessionId="s")
        alice.answers(await alice.hears("hooks.invoke"), None)
    await stage.settle()
    assert line.link.callbacks == {}
    answered: list[Message] = [m for m in stage.cli.told.all if "result" in m]
    assert [m["id"] for m in answered] == list(range(1, 101))
