"""The fast lane: both its forms do the same to clients, links and counters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core import client as client_module
from gateway.core import lane
from gateway.core import link as link_module
from gateway.core.hub import Limits
from gateway.core.lane import ANSWERS_ALONE, SHORT_READ_BYTES, TIMED_READS
from gateway.core.request import Request
from gateway.core.session import Session
from gateway.core.stats import Stats
from gateway.core.turn import Prompt
from gateway.policy.quotas import Allowance
from gateway.wire import framing
from gateway.wire.framing import encode
from tests.support.playbook import Actor, Stage, event
from tests.support.rpc import frame
from tests.support.strategies import spoiled

ACCELERATED = pytest.mark.skipif(not lane.ACCELERATED, reason="the C form was not built")

FORMS = {
    "python": (lane.pass_requests_python, lane.pass_answers_python),
    "c": (lane.pass_requests, lane.pass_answers),
}
READS = {
    "python": (lane.receive_requests_python, lane.receive_answers_python),
    "c": (lane.receive_requests, lane.receive_answers),
}

TOLD = "11111111-0000-4000-8000-000000000001"

Script = list[tuple[str, bytes]]
"""What is fed, in order: ("client" or "replica", bytes)."""


def request(id: Any, method: str = "session.getMessages", session: Any = "s", **more: Any) -> bytes:
    params = {"sessionId": session, **more}
    return encode(
        json.dumps(
            {"jsonrpc": "2.0", "id": id, "method": method, "params": params},
            separators=(",", ":"),
        ).encode()
    )


def result(id: Any) -> bytes:
    return frame({"jsonrpc": "2.0", "id": id, "result": {"events": []}})


def accepted(id: Any, message_id: str = TOLD) -> bytes:
    return frame({"jsonrpc": "2.0", "id": id, "result": {"messageId": message_id}})


def failure(id: Any) -> bytes:
    return frame({"jsonrpc": "2.0", "id": id, "error": {"code": 1, "message": "no"}})


ids = st.one_of(st.integers(1, 4), st.sampled_from(["a", "b", "a" * 130, True, None, 1.0]))
from_client = st.one_of(
    st.builds(
        request,
        ids,
        st.sampled_from(
            ["session.getMessages", "session.send", "session.abort", "session.metadata.snapshot"]
        ),
        st.sampled_from(["s", "t", "closed", "", None]),
    ),
    st.builds(request, ids, more=st.text(max_size=3)),
    st.just(frame({"jsonrpc": "2.0", "method": "session.getMessages", "params": {}})),
)
from_replica = st.one_of(
    st.builds(result, ids),
    st.builds(accepted, ids),
    st.builds(failure, ids),
    st.builds(
        lambda session, name: frame(event(session, name, messageId=TOLD, content="hi")),
        st.sampled_from(["s", "t", "elsewhere"]),
        st.sampled_from(
            [
                "assistant.message_delta",
                "assistant.turn_start",
                "external_tool.requested",
                "session.idle",
                "session.idle",
                "user.message",
            ]
        ),
    ),
    st.just(frame({"jsonrpc": "2.0", "id": 1, "method": "hooks.invoke", "params": {}})),
)


def chunks(side: str, frames: st.SearchStrategy[bytes]) -> st.SearchStrategy[tuple[str, bytes]]:
    whole = st.lists(frames, min_size=1, max_size=4).map(b"".join)
    return st.tuples(st.just(side), whole.flatmap(lambda data: st.one_of(st.just(data), cut(data))))


def cut(data: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(st.integers(1, len(data)).map(lambda size: data[:size]), spoiled(data))


scripts = st.lists(
    st.one_of(chunks("client", from_client), chunks("replica", from_replica)), max_size=6
)


def counters(stats: Stats) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: getattr(stats, name)
        for name in Stats.__slots__
        if isinstance(getattr(stats, name), int)
    }
    for name, counted in stats.methods.items():
        found[name] = (counted.ok, counted.error, counted.refused, sum(counted.duration.counts))
    found["in flight"] = {name: one.in_flight for name, one in stats.replicas.items()}
    found["requests"] = {name: one.requests for name, one in stats.tenants.items()}
    return found


def fields(thing: Any, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    return {name: copy(getattr(thing, name)) for name in thing.__slots__ if name not in without}


def state_of(session: Session) -> Any:
    turn = fields(session.turn, without=("asked", "prompts"))
    turn["asked"] = {request_id: len(told) for request_id, told in session.turn.asked.items()}
    prompts = [
        {"id": one.request.id, **fields(one, without=("_request", "sender"))}
        for one in session.turn.prompts
    ]
    return turn, prompts, session.stored, [one.cut for one in session.bindings]


class Reader:
    """Stands for the protocol of a connection."""

    __slots__ = ("client", "done", "link", "reads")

    def __init__(self, client: Any = None, link: Any = None) -> None:
        self.client = client
        self.link = link
        self.reads = TIMED_READS - 3
        self.done: list[str] = []

    def timed(self, data: bytes) -> None:
        self.done.append("timed")
        (self.client or self.link).feed(data)

    def acknowledge(self) -> None:
        self.done.append("acknowledged")


async def played(
    form: str, script: Script, horizon: tuple[float, float], **limits: Any
) -> dict[str, Any]:
    """Return what a script leaves behind with one form of the lane."""
    stage = Stage(Limits(**limits))
    receive_requests, receive_answers = READS[form]
    with pytest.MonkeyPatch.context() as patch:
        requests, answers = FORMS[form]
        patch.setattr(client_module, "pass_requests", requests)
        patch.setattr(link_module, "pass_answers", answers)
        try:
            await stage.adds("cli-0")
            alice = await stage.client("alice")
            for session in ("s", "t"):
                await alice.creates(session)
            await stage.settle()
            [link] = alice.core.links.values()
            sink = link.sink
            link.sent = False
            readers = Reader(client=alice.core), Reader(link=link)
            placer = stage.hub.placer
            placer.horizon.lease_until, placer.horizon.idles_until = horizon
            for session in stage.hub.sessions.values():
                [binding] = session.bindings
                binding.cut = True
            # The gateway's own requests have ids that grow from stage to stage.
            stage.hub.stats.bytes_from_replica = stage.hub.stats.bytes_to_replica = 0
            stage.hub.stats.bytes_to_client = 0
            for side, data in script:
                if side == "client" and not alice.core.closed:
                    receive_requests(readers[0], data)
                elif side == "replica" and not link.closed:
                    receive_answers(readers[1], data)
            left = {
                "to client": bytes(alice.sink.written),
                "to replica": bytes(sink.written).partition(b'"session.create"')[2],  # type: ignore[union-attr]
                "pending": {id: type(one).__name__ for id, one in alice.core.pending.items()},
                "closed": alice.core.closed,
                "sent": link.sent,
                "alone": link.answers_alone,
                "reads": [(one.reads, one.done) for one in readers],
                "sessions": {one.id: state_of(one) for one in stage.hub.sessions.values()},
                "horizon": fields(placer.horizon),
                **counters(stage.hub.stats),
            }
        finally:
            await stage.close()
    return left


OPEN = (inf, inf)
PROMPT = request(1, "session.send", prompt="hi")
SECOND = request(2, "session.send", prompt="and")
DELTA, IDLE = (frame(event("s", name)) for name in ("assistant.message_delta", "session.idle"))
ASKED = frame(event("s", "external_tool.requested", requestId="r"))
HEARD = frame(event("s", "user.message", messageId=TOLD, content="hi"))


def asked_and_answered(id: int) -> Script:
    return [("client", request(id)), ("replica", result(id))]


@ACCELERATED
@settings(max_examples=200, deadline=None)
@given(
    scripts,
    st.sampled_from([2, 256]),
    st.sampled_from([(inf, inf), (inf, inf), (inf, -inf), (-inf, inf)]),
)
@example([("client", request(1) + request(1))], 256, OPEN)
@example([("client", request(1)), ("replica", result(True))], 256, OPEN)
@example([("client", request(1) + request(2) + request(3))], 2, OPEN)
@example([("client", request(1)), ("replica", failure(1) + result(1))], 256, OPEN)
@example([("client", request(1) + request(2)), ("replica", result(2) + result(1))], 256, OPEN)
@example([("client", PROMPT), ("replica", accepted(1) + DELTA + IDLE + DELTA)], 256, OPEN)
@example([("client", PROMPT), ("replica", accepted(1) + IDLE)], 256, (inf, -inf))
@example([("client", PROMPT), ("replica", accepted(1) + IDLE)], 256, (-inf, inf))
@example([("client", PROMPT + PROMPT), ("replica", failure(1) + IDLE)], 256, OPEN)
@example([("client", PROMPT), ("replica", IDLE + accepted(1))], 256, OPEN)
@example([("replica", DELTA), ("replica", DELTA), ("replica", DELTA), ("replica", IDLE)], 256, OPEN)
@example([("client", PROMPT + SECOND), ("replica", accepted(1) + IDLE)], 256, OPEN)
@example([("client", PROMPT), ("replica", accepted(1) + ASKED + IDLE)], 256, OPEN)
@example([("client", PROMPT), ("replica", HEARD + accepted(1, "another") + DELTA)], 256, OPEN)
@example([("client", request(1)), ("replica", DELTA * 100 + result(1))], 256, OPEN)
@example([turn for n in range(6) for turn in asked_and_answered(n)], 256, OPEN)
def test_both_forms_leave_the_same_behind(
    script: Script, max_pending: int, horizon: tuple[float, float]
) -> None:
    one, other = (
        asyncio.run(played(form, script, horizon, max_pending=max_pending))
        for form in ("python", "c")
    )
    assert one == other


Lane = Callable[..., Any]


@pytest.mark.parametrize("form", ["python", pytest.param("c", marks=ACCELERATED)])
async def test_what_merely_passes_is_passed_over_whole(form: str, stage: Stage) -> None:
    requests, answers = FORMS[form]
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    client, hub = alice.core, stage.hub
    [link] = client.links.values()
    assert link.sink is not None
    link.sink.written.clear()  # type: ignore[attr-defined]
    link.sent = False

    asked = request(1) + request("b") + request(3, "session.metadata.snapshot")
    assert requests(b"x" + asked, 1, 1 << 20, client, hub.stats, hub.now, 256) == 1 + len(asked)
    assert bytes(link.sink.written) == asked  # type: ignore[attr-defined]
    assert list(client.pending) == [1, "b", 3]
    assert link.replica.stats.in_flight == 3
    assert link.sent
    stage.time_passes(0.05)

    quiet = frame(event("s", "assistant.message_delta"))
    heard = quiet + result(3) + result(1) + quiet + quiet
    other = frame({"jsonrpc": "2.0", "id": 1, "method": "hooks.invoke", "params": {}})
    data = heard + other + result("b")
    assert answers(data, 0, 1 << 20, link, hub.now) == (len(heard), 3, 2)
    assert list(client.pending) == ["b"]
    assert link.replica.stats.in_flight == 1
    assert answers(data, len(heard + other), 1 << 20, link, hub.now) == (len(data), 0, 1)
    duration = hub.stats.method("session.getMessages").duration
    assert sum(duration.counts) == 3
    assert 0.15 <= duration.sum < 1


@pytest.mark.parametrize("form", ["python", pytest.param("c", marks=ACCELERATED)])
async def test_an_answer_that_came_on_another_link_is_not_passed(form: str, two: Stage) -> None:
    alice = await two.client("alice")
    sessions = iter(range(100))
    while len(alice.core.links) < 2:
        await alice.creates(f"s{next(sessions)}")
    await two.settle()
    link, other = alice.core.links.values()
    [session_id] = [one.session_id for one in list(link.bindings)[:1]]
    alice.says(request(77, session=session_id))
    _, answers = FORMS[form]
    assert answers(result(77), 0, 1 << 20, other, two.hub.now) == (0, 0, 0)
    assert answers(result(77), 0, 1 << 20, link, two.hub.now) is None
    assert alice.core.pending == {}


@pytest.mark.parametrize("form", ["python", pytest.param("c", marks=ACCELERATED)])
async def test_ids_that_the_client_knows_by_another_name_are_replaced(
    form: str, stage: Stage
) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    [link] = alice.core.links.values()
    other = TOLD[::-1]
    link.alias_message(TOLD, other)
    link._aliased = False
    alice.sink.written.clear()
    _, receive_answers = READS[form]
    receive_answers(Reader(link=link), HEARD)
    assert bytes(alice.sink.written) == HEARD.replace(TOLD.encode(), other.encode())


@pytest.mark.parametrize(
    ("name", "size", "old", "alias", "joins"),
    [
        ("assistant.message_delta", 300_000, False, False, 1),
        ("assistant.message_delta", 1_000, False, False, 2),
        ("assistant.message", 300_000, False, False, 2),
        ("assistant.message_delta", 300_000, True, False, 2),
        ("assistant.message_delta", 300_000, False, True, 2),
    ],
)
@pytest.mark.parametrize("after", [[], [IDLE], [DELTA, DELTA[:30]]])
async def test_a_large_event_passes_in_the_parts_that_it_came_in(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    size: int,
    old: bool,
    alias: bool,
    joins: int,
    after: list[bytes],
) -> None:
    """Unless somebody has to look into it, or to change it."""
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    [link] = alice.core.links.values()
    alice.core._old = old
    if alias:
        link.alias_message(TOLD, TOLD[::-1])
        link._aliased = False
    large = frame(event("s", name, id="e1", content="x" * size, messageId="m"))
    joined: list[bytes] = []
    join = framing.FrameBuffer.join

    def counted(buffer: framing.FrameBuffer, data: bytes) -> bytes | None:
        if buffer is link._buffer:
            joined.append(data)
        return join(buffer, data)

    monkeypatch.setattr(framing.FrameBuffer, "join", counted)
    stats = stage.hub.stats
    before = stats.frames_from_replica, stats.frames_to_client, stats.bytes_to_client
    alice.sink.written.clear()
    for part in (DELTA + large[:400], large[400:-500], b"".join([large[-500:], *after])):
        link.feed(part)
    assert len(joined) == joins
    begun = after[-1:] == [DELTA[:30]]
    behind = after[:-1] if begun else after
    whole = b"".join([DELTA, large, *behind])
    assert bytes(alice.sink.written) == whole
    frames = 2 + len(behind)
    assert (stats.frames_from_replica, stats.frames_to_client, stats.bytes_to_client) == (
        before[0] + frames,
        before[1] + frames,
        before[2] + len(whole),
    )
    assert bool(link.begun) == begun


@pytest.mark.parametrize("old", [False, True])
async def test_a_long_run_ends_with_its_last_whole_frame(stage: Stage, old: bool) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    [link] = alice.core.links.values()
    alice.core._old = old
    alice.sink.written.clear()
    for part in (DELTA[:30], DELTA[30:] + DELTA * 500 + DELTA[:50], DELTA[50:]):
        link.feed(part)
    assert bytes(alice.sink.written) == DELTA * 502
    assert not link.begun


@pytest.mark.parametrize("form", ["python", pytest.param("c", marks=ACCELERATED)])
async def test_a_client_of_old_gets_what_it_can_read(form: str, stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    [link] = alice.core.links.values()
    alice.sink.written.clear()
    alice.core._old = True
    _, receive_answers = READS[form]
    receive_answers(
        Reader(link=link), DELTA + frame(event("s", "session.idle", mode="interactive"))
    )
    assert bytes(alice.sink.written) == DELTA + IDLE


@pytest.mark.parametrize("form", ["python", pytest.param("c", marks=ACCELERATED)])
async def test_nothing_passes_while_a_client_shows_who_it_is(form: str, stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    alice.core.authenticating = True
    receive_requests, _ = READS[form]
    receive_requests(Reader(client=alice.core), request(1))
    assert not alice.core.pending


@pytest.mark.parametrize("form", ["python", pytest.param("c", marks=ACCELERATED)])
async def test_reads_are_acknowledged_while_something_is_waited_for(
    form: str, stage: Stage
) -> None:
    receive_requests, receive_answers = READS[form]
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    [link] = alice.core.links.values()
    for client_closed, done in ((False, ["acknowledged"]), (True, [])):
        reader = Reader(client=alice.core)
        alice.core.begun.append(b"Content-Length: 10\r\n\r\n")
        alice.core.closed = client_closed
        receive_requests(reader, b"{")
        assert reader.done == done
        alice.core.begun.clear()
    alice.core.closed = False
    receive_requests(nobody := Reader(), b"{")
    assert nobody.reads == TIMED_READS - 3
    receive_requests(Reader(client=alice.core), request(7))
    for sent, alone, closed, data, done in (
        (True, 0, False, DELTA, ["acknowledged"]),
        (False, 0, False, DELTA, []),
        (True, ANSWERS_ALONE + 1, False, result(7), []),
        (True, 0, True, DELTA, []),
        (True, 0, False, DELTA * (SHORT_READ_BYTES // len(DELTA) + 1), []),
        (True, 0, False, DELTA * (SHORT_READ_BYTES // len(DELTA) + 1) + b"C", ["acknowledged"]),
    ):
        reader = Reader(link=link)
        link.sent, link.answers_alone, link.closed = sent, alone, closed
        receive_answers(reader, data)
        assert reader.done == done, (sent, alone, closed, len(data))
        assert link.sent == (sent and not done)
        link.begun.clear()


@pytest.mark.parametrize("form", ["python", pytest.param("c", marks=ACCELERATED)])
async def test_quotas_are_asked_before_anything_passes(form: str, stage: Stage) -> None:
    requests, _ = FORMS[form]
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    hub, client = stage.hub, alice.core
    asked = []

    class Quotas:
        def take(self, size: int, now: float) -> tuple[float, object]:
            asked.append(size)
            return (0.0, None) if len(asked) == 1 else (1.0, "over")

        def disconnect(self) -> None:
            pass

    client.allowance = Quotas()  # type: ignore[assignment]
    data = request(1) + request(2)
    assert requests(data, 0, 1 << 20, client, hub.stats, hub.now, 256) == len(request(1))
    assert len(asked) == 2
    assert list(client.pending) == [1]


@pytest.mark.parametrize("form", ["python", pytest.param("c", marks=ACCELERATED)])
async def test_a_turn_passes_and_is_noted(form: str, stage: Stage) -> None:
    requests, answers = FORMS[form]
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    client, hub = alice.core, stage.hub
    [link] = client.links.values()
    turn = hub.sessions["s"].turn
    assert requests(PROMPT, 0, 1 << 20, client, hub.stats, hub.now, 256) == len(PROMPT)
    [prompt] = turn.prompts
    assert turn.busy
    assert (prompt.text, prompt.repeatable, prompt.answered) == ("hi", True, False)
    burst = accepted(1) + DELTA + frame(event("s", "user.message", messageId=TOLD, content="hi"))
    assert answers(burst, 0, 1 << 20, link, hub.now) is None
    assert (prompt.message_id, prompt.answered, prompt.seen) == (TOLD, True, True)
    assert turn.started
    assert answers(b"x" + DELTA + IDLE, 1, 1 << 20, link, hub.now) == (1 + len(DELTA + IDLE), 2, 0)
    assert not turn.busy
    assert not turn.prompts


def _shares(stage: Stage, actor: Actor) -> None:
    actor.core._shares = True


def _is_limited(stage: Stage, actor: Actor) -> None:
    actor.core.allowance = Allowance(())


def _is_durable(stage: Stage, actor: Actor) -> None:
    stage.hub.durable = True


def _has_no_lease(stage: Stage, actor: Actor) -> None:
    stage.hub.placer.horizon.lease_until = stage.now()


def _has_no_room(stage: Stage, actor: Actor) -> None:
    rule = actor.core.direct["session.send"][0]
    stage.hub.limits = replace(stage.hub.limits, queue_frames=0)
    stage.hub.sessions["s"].turn.prompts.append(Prompt("sender", Request({}, rule, 1)))


@pytest.mark.parametrize(
    "condition", [_shares, _is_limited, _is_durable, _has_no_lease, _has_no_room]
)
@pytest.mark.parametrize("form", ["python", pytest.param("c", marks=ACCELERATED)])
async def test_a_prompt_that_needs_more_does_not_pass(
    form: str, stage: Stage, condition: Callable[[Stage, Actor], None]
) -> None:
    """Quotas count turns, shared sessions are audited, a durable prompt is saved first."""
    requests, _ = FORMS[form]
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    condition(stage, alice)
    alice.core.follow(stage.hub.policy.view(alice.core.identity))  # type: ignore[arg-type]
    hub = stage.hub
    assert requests(PROMPT, 0, 1 << 20, alice.core, hub.stats, hub.now, 256) == 0
    assert not alice.core.pending
    assert all(one.sender == "sender" for one in hub.sessions["s"].turn.prompts)


@ACCELERATED
async def test_the_c_form_does_not_touch_what_it_does_not_know(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    await stage.settle()
    hub = stage.hub
    strange: Any = object()
    assert lane.pass_requests(request(1), 0, 1 << 20, strange, hub.stats, hub.now, 256) == 0
    quiet = frame(event("s", "assistant.message_delta"))
    assert lane.pass_answers(quiet + result(1), 0, 1 << 20, strange, hub.now) == (len(quiet), 1, 0)
    with pytest.raises(TypeError):
        lane.pass_requests("text", 0, 1, alice.core, hub.stats, hub.now, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outside"):
        lane.pass_answers(b"", 1, 1, strange, hub.now)

    def broken() -> float:
        raise RuntimeError("the clock stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        lane.pass_requests(request(1), 0, 1 << 20, alice.core, hub.stats, broken, 256)
    assert not alice.core.pending
