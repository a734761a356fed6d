"""Where sessions live: free routing, holds and leases, drains, what other gateways do."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from gateway import errors
from gateway.core.placer import DRAINING, READY
from gateway.errors import RegistryUnavailableError
from gateway.io.registry.memory import MemoryRegistry, MemoryStore
from gateway.routing.registry import ChangesLost
from gateway.types import Placement
from tests.core.conftest import MakeStage
from tests.support.playbook import Actor, Ask, Stage
from tests.support.wait import eventually

LONG = 1e9
LONG_AGO = "1960-01-01T00:00:00.000Z"
"""A stage's clock begins in 1970."""

FREE = {"free": True}


async def a_gateway(
    make_stage: MakeStage, store: MemoryStore, name: str, *replicas: str, **options: Any
) -> Stage:
    """Return a stage that shares its registry with others, and has a lease there."""
    registry = MemoryRegistry(store)
    await registry.heartbeat(name, LONG)
    options = {"registry": registry, "gateway_id": name, "free": True, **options}
    stage = await make_stage(*replicas, options=options)
    await registry.watch(stage.hub.placer.changed)
    return stage


async def two_gateways(make_stage: MakeStage, **options: Any) -> tuple[Stage, Stage]:
    """Return two gateways in front of the same two replicas."""
    store = MemoryStore()
    first = await a_gateway(make_stage, store, "g1", "cli-0", "cli-1", **options)
    second = await a_gateway(make_stage, store, "g2", **options)
    await second.shares(first)
    return first, second


def placed(stage: Stage, session_id: str = "s") -> str:
    return stage.hub.sessions[session_id].placement.replica


async def holders(stage: Stage, session_id: str = "s") -> frozenset[str]:
    return await stage.registry.holders(session_id)


async def turn(stage: Stage, actor: Actor, session_id: str = "s") -> Ask:
    """Run a turn, so that the session is on disk."""
    asked = await actor.prompts(session_id)
    asked.line.emits(session_id, "user.message", messageId="m", content="hi")
    asked.line.emits(session_id, "session.idle")
    await actor.hears_event("session.idle")
    await stage.settle()
    return asked


# Choosing


async def test_sessions_go_where_least_is_going_on(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options=FREE)
    alice = await stage.client("alice")
    for number in range(6):
        await alice.creates(f"s{number}")
        await stage.settle()
    assert [stage.stats.replica(name).sessions for name in ("cli-0", "cli-1")] == [3, 3]


async def test_running_turns_count(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options=FREE)
    alice = await stage.client("alice")
    await alice.creates("busy")
    await alice.prompts("busy")
    other = {"cli-0": "cli-1", "cli-1": "cli-0"}[placed(stage, "busy")]
    for number in range(4):
        await alice.creates(f"s{number}")
        assert placed(stage, f"s{number}") == other


async def test_a_live_session_stays_though_others_are_idle(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options=FREE)
    alice, other = await stage.client("alice"), await stage.client("alice")
    home = (await alice.creates("s")).line.replica
    for number in range(4):
        await alice.creates(f"s{number}")
    assert (await other.resumes("s")).line.replica is home


async def test_a_session_that_is_live_nowhere_goes_to_the_idle_replica(
    make_stage: MakeStage,
) -> None:
    stage = await make_stage("cli-0", "cli-1", options=FREE)
    alice = await stage.client("alice")
    await stage.recorded("s", "alice", "cli-0")
    for number in range(3):
        await stage.recorded(f"s{number}", "alice", "cli-0")
        stage.hub.replicas["cli-0"].stats.sessions += 1
    assert (await alice.resumes("s")).line.replica.name == "cli-1"
    record = await stage.registry.get("s")
    assert record is not None
    assert (record.replica, record.epoch) == ("cli-1", 2)


async def test_where_it_was_is_as_good_as_any(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options=FREE)
    alice = await stage.client("alice")
    for number in range(5):
        await stage.recorded(f"s{number}", "alice", "cli-1")
        stage.replicas["cli-1"].stores(f"s{number}", modified=LONG_AGO)
        assert (await alice.resumes(f"s{number}")).line.replica.name == "cli-1"
        alice.asks("session.detach", sessionId=f"s{number}")
        (await stage.replicas["cli-1"].gets("session.detach")).answers({"success": True})
        await alice.hears_result()


# The death of a replica


async def test_what_a_replica_still_writes_at_its_end_is_waited_for(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in good order, it closes its connections first: read too early, a turn runs twice."""
    stage = await make_stage("cli-0", "cli-1", options=FREE)
    alice = await stage.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(stage, alice)
    await alice.prompts("s")
    (other,) = [one for one in stage.replicas.values() if one is not home]
    looks = 0

    def still_written(ask: Ask) -> Any:
        nonlocal looks
        looks += 1
        return {"session": {"sessionId": "s", "modifiedTime": str(min(looks, 4))}}

    other.knows["sessions.getMetadata"] = still_written
    home.dies()
    await other.gets("session.resume")
    assert looks > 4, "it was written to until the fourth look, and then quiet for some"


async def test_a_dead_replicas_sessions_move(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options=FREE)
    alice = await stage.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(stage, alice)
    home.dies()
    resumed = await stage.anyone_gets("session.resume")
    assert resumed.line.replica is not home
    resumed.answers({"sessionId": "s"})
    await stage.settle()
    assert (await alice.prompts("s")).line.replica is resumed.line.replica
    assert stage.hub.sessions["s"].placement.epoch == 2
    assert stage.stats.replica(home.name).sessions == 0
    assert stage.stats.replica(resumed.line.replica.name).sessions == 1


async def test_with_sticky_routing_they_wait_for_it(two: Stage) -> None:
    alice = await two.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(two, alice)
    home.dies()
    await two.settle()
    assert all(replica.unanswered == [] for replica in two.replicas.values())
    await home.returns()
    assert (await two.anyone_gets("session.resume")).line.replica is home


async def test_nothing_moves_before_the_dead_one_is_fenced(make_stage: MakeStage) -> None:
    """Whoever holds sessions there has to know that they are void."""
    first, second = await two_gateways(make_stage)
    alice, other = await first.client("alice"), await second.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(first, alice)
    await other.resumes("s")
    await second.settle()
    assert await holders(first) == {"g1", "g2"}
    fenced: list[Any] = []
    original = first.registry.fence_replica

    async def fence_replica(replica: str, incarnation: int) -> int:
        fenced.append(placed(first))
        return await original(replica, incarnation)

    first.registry.fence_replica = fence_replica  # type: ignore[method-assign]
    home.dies()
    for _ in "ab":
        resumed = await first.anyone_gets("session.resume")
        assert resumed.line.replica is not home
        resumed.answers({"sessionId": "s"})
    await first.settle()
    assert fenced == [home.name]
    assert (await first.registry.replica_incarnations()) == {home.name: 1}
    assert placed(first) == placed(second) != home.name
    assert first.hub.sessions["s"].placement == second.hub.sessions["s"].placement


async def test_a_fence_that_failed_is_tried_again(make_stage: MakeStage) -> None:
    first, _ = await two_gateways(make_stage)
    first.hub.limits = type(first.hub.limits)(registry_patience=0.0, redial_delay=0.001)
    dead = first.hub.replicas["cli-0"]
    original = first.registry.fence_replica

    async def away(replica: str, incarnation: int) -> int:
        raise RegistryUnavailableError("away")

    away.__name__ = "fence_replica"
    first.registry.fence_replica = away  # type: ignore[method-assign]
    with pytest.raises(errors.RpcError):
        await first.hub.placer.fence(dead)
    first.registry.fence_replica = original  # type: ignore[method-assign]
    await first.hub.placer.fence(dead)
    await first.hub.placer.fence(dead)
    assert await first.registry.replica_incarnations() == {"cli-0": 1}


async def test_a_turn_of_clients_on_two_gateways_is_asked_for_once(make_stage: MakeStage) -> None:
    """The gateway of the prompt is the first to ask; the other one waits for it to do so."""
    first, second = await two_gateways(make_stage)
    alice, other = await first.client("alice"), await second.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(first, alice)
    await other.resumes("s")
    await second.settle()
    alice.asks("session.send", sessionId="s", prompt="again")
    running = {"messageId": "m2", "content": "again"}
    (await home.gets("session.send")).answers({"messageId": "m2"})
    for line in (home.line_of(alice), home.line_of(other)):
        line.emits("s", "user.message", **running)
    home.dies()
    (survivor,) = [one for one in first.replicas.values() if one is not home]
    working = False
    survivor.knows["session.metadata.isProcessing"] = lambda _: {"processing": working}
    survivor.knows["session.permissions.pendingRequests"] = lambda _: {"items": []}
    survivor.knows["session.tools.listPendingRequests"] = lambda _: {"items": []}
    survivor.knows["session.getMessages"] = lambda _: {
        "events": [{"type": "user.message", "data": running}]
    }
    for _ in "ab":
        (await survivor.gets("session.resume")).answers({"sessionId": "s"})
    again = await survivor.gets("session.sendMessages")
    assert again.line.link.client is alice.core
    working = True
    again.answers({})
    await eventually(lambda: not second.hub.sessions["s"].recovering.locked())
    assert survivor.unanswered == []
    for actor in (alice, other):
        survivor.line_of(actor).emits("s", "session.idle")
        await actor.hears_event("session.idle")


async def test_a_gateway_that_waits_in_vain_asks_itself(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.core.recovery.OTHERS_PATIENCE", 0.01)
    monkeypatch.setattr("gateway.core.recovery._OTHERS_POLL", 0.005)
    stage = await make_stage("cli-0", "cli-1", options=FREE)
    alice = await stage.client("alice")
    created = await alice.creates("s")
    await turn(stage, alice)
    data = {"messageId": "theirs", "content": "x"}
    created.line.emits("s", "user.message", **data)
    created.line.replica.dies()
    (await stage.anyone_gets("session.resume")).answers({"sessionId": "s"})
    for _ in "ab":
        asked = await stage.anyone_gets("session.getMessages")
        asked.answers({"events": [{"type": "user.message", "data": data}]})
    assert (await stage.anyone_gets("session.sendMessages")).params["messages"] == []


# Holds


async def test_a_live_session_is_held_until_its_last_client_leaves(make_stage: MakeStage) -> None:
    first, _ = await two_gateways(make_stage)
    alice, other = await first.client("alice"), await first.client("alice")
    await alice.creates("s")
    await other.resumes("s")
    await first.settle()
    alice.leaves()
    first.time_passes(1)
    await first.settle()
    assert await holders(first) == {"g1"}
    other.leaves()
    first.time_passes(1)
    await first.settle()
    assert await holders(first) == frozenset()


async def test_who_comes_back_at_once_never_lets_go(make_stage: MakeStage) -> None:
    first, _ = await two_gateways(make_stage)
    alice = await first.client("alice")
    await alice.creates("s")
    alice.leaves()
    again = await first.client("alice")
    await again.resumes("s")
    await first.settle()
    first.time_passes(1)
    await first.settle()
    assert await holders(first) == {"g1"}


@pytest.mark.parametrize("method", ["session.create", "session.resume"])
async def test_a_session_that_could_not_be_made_live_is_not_held(
    make_stage: MakeStage, method: str
) -> None:
    first, _ = await two_gateways(make_stage)
    await first.recorded("s", "alice")
    alice = await first.client("alice")
    alice.asks(method, sessionId="s")
    (await first.anyone_gets(method)).refuses("no")
    await alice.hears_error()
    first.time_passes(1)
    await first.settle()
    first.time_passes(1)
    await first.settle()
    assert await holders(first) == frozenset()


async def test_a_session_that_was_never_made_leaves_no_record(make_stage: MakeStage) -> None:
    first, _ = await two_gateways(make_stage)
    alice = await first.client("alice")
    alice.asks("session.create", sessionId="s")
    (await first.anyone_gets("session.create")).refuses("no")
    await alice.hears_error()
    await first.settle()
    assert await first.registry.get("s") is None


async def test_a_deleted_session_leaves_no_record(make_stage: MakeStage) -> None:
    """That this gateway itself holds it is no reason to keep it."""
    first, _ = await two_gateways(make_stage)
    alice = await first.client("alice")
    await alice.creates("s")
    await turn(first, alice)
    alice.asks("session.delete", sessionId="s")
    (await first.anyone_gets("session.delete")).answers({"success": True})
    await alice.hears_result()
    await first.settle()
    assert await first.registry.get("s") is None


async def test_a_session_held_elsewhere_is_gone_to(make_stage: MakeStage) -> None:
    first, second = await two_gateways(make_stage)
    alice, other = await first.client("alice"), await second.client("alice")
    home = (await alice.creates("s")).line.replica
    second.hub.replicas[home.name].stats.sessions += 50
    assert (await other.resumes("s")).line.replica is home


# Leases


async def test_without_a_lease_no_prompt_is_passed(make_stage: MakeStage) -> None:
    """Somebody else may have the session by now."""
    first, _ = await two_gateways(make_stage)
    alice = await first.client("alice")
    await alice.creates("s")
    placer = first.hub.placer
    placer.horizon.lease_until = first.hub.now() - 1
    assert not placer.has_lease
    alice.asks("session.send", sessionId="s", prompt="hi")
    error = await alice.hears_error()
    assert error["code"] == errors.REGISTRY_UNAVAILABLE
    assert error["data"]["retryAfterMs"] > 0
    placer.horizon.lease_until = first.hub.now() + 60
    await alice.prompts("s")


async def take_over(second: Stage, target: str) -> None:
    """Move a session of the first gateway, whose lease has ended."""
    await second.registry.leave("g1")
    await second.registry.move("s", 1, target, "g2")


async def test_what_others_took_meanwhile_is_followed(make_stage: MakeStage) -> None:
    first, second = await two_gateways(make_stage)
    alice = await first.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(first, alice)
    (target,) = [name for name in first.replicas if name != home.name]
    await take_over(second, target)
    await first.registry.heartbeat("g1", LONG)
    resumed = await first.anyone_gets("session.resume")
    assert resumed.line.replica.name == target
    resumed.answers({"sessionId": "s"})
    await first.settle()
    assert (await alice.prompts("s")).line.replica.name == target
    assert await holders(first) == {"g1", "g2"}
    # From here the old replica could be reached: no copy of the session stays alive there.
    closed = await home.gets("sessions.close")
    assert closed.params == {"sessionId": "s"}


async def test_a_replica_that_only_others_take_for_dead_goes_on(make_stage: MakeStage) -> None:
    """Fencing voids holds; who has sessions there and sees it alive takes them again."""
    first, second = await two_gateways(make_stage)
    alice = await first.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(first, alice)
    await second.hub.placer.fence(second.hub.replicas[home.name])
    await first.settle()
    assert await holders(first) == {"g1"}
    (target,) = [name for name in first.replicas if name != home.name]
    record = await second.registry.move("s", 1, target, "g2")
    assert record is not None
    assert record.replica == home.name
    assert (await alice.prompts("s")).line.replica is home


async def test_a_session_that_moved_once_more_is_followed_there(make_stage: MakeStage) -> None:
    first, second = await two_gateways(make_stage)
    alice = await first.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(first, alice)
    (target,) = [name for name in first.replicas if name != home.name]
    await first.registry.close()
    await take_over(second, target)
    await first.registry.heartbeat("g1", LONG)
    first.hub.sessions["s"].held = None
    home.line_of(alice).breaks()
    resumed = await first.anyone_gets("session.resume")
    assert resumed.line.replica.name == target


async def test_who_was_heard_second_by_an_empty_registry_gives_way(make_stage: MakeStage) -> None:
    first, second = await two_gateways(make_stage)
    alice = await first.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(first, alice)
    (target,) = [name for name in first.replicas if name != home.name]
    await second.registry.leave("g1")
    await second.registry.forget("s")
    theirs = Placement("s", first.owner_of("alice"), target, 1)
    await second.registry.republish("g2", [theirs])
    await first.registry.heartbeat("g1", LONG)
    resumed = await first.anyone_gets("session.resume")
    assert resumed.line.replica.name == target
    resumed.answers({"sessionId": "s"})
    await first.settle()
    assert await holders(first) == {"g1", "g2"}


async def test_moves_that_went_by_unseen_are_followed(make_stage: MakeStage) -> None:
    first, second = await two_gateways(make_stage)
    alice = await first.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(first, alice)
    (target,) = [name for name in first.replicas if name != home.name]
    await first.registry.close()
    await take_over(second, target)
    await first.registry.heartbeat("g1", LONG)
    await second.registry.set_replica_mark(home.name, DRAINING)
    await first.settle()
    assert placed(first) == home.name
    first.hub.placer.changed(ChangesLost())
    assert (await first.anyone_gets("session.resume")).line.replica.name == target
    assert first.hub.replicas[home.name].health.draining


# Letting go


async def leaves(stage: Stage, actor: Actor) -> None:
    actor.leaves()
    await stage.settle()
    stage.time_passes(0.1)
    await stage.settle()


async def test_what_could_not_be_let_go_of_is_later(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held by nobody's client, a session could not be moved by others for as long as this lives."""
    first, _ = await two_gateways(make_stage)
    alice = await first.client("alice")
    await alice.creates("s")
    await first.settle()
    registry = type(first.registry)
    release = registry.release
    away = True

    async def flaky(self: Any, session_ids: Any, gateway_id: str) -> None:
        if away:
            raise RegistryUnavailableError("away")
        await release(self, session_ids, gateway_id)

    monkeypatch.setattr(registry, "release", flaky)
    await leaves(first, alice)
    assert await holders(first) == {"g1"}
    away = False
    first.time_passes(1.0)
    await first.settle()
    assert await holders(first) == frozenset()


async def test_a_release_under_way_does_not_undo_a_later_hold(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = await two_gateways(make_stage)
    alice = await first.client("alice")
    await alice.creates("s")
    await turn(first, alice)
    registry = type(first.registry)
    release, go = registry.release, asyncio.Event()

    async def slow(self: Any, session_ids: Any, gateway_id: str) -> None:
        await go.wait()
        await release(self, session_ids, gateway_id)

    monkeypatch.setattr(registry, "release", slow)
    await leaves(first, alice)
    again = await first.client("alice")
    again.asks("session.resume", sessionId="s")
    await first.settle()
    assert all(not one.unanswered for one in first.replicas.values())
    go.set()
    (await first.anyone_gets("session.resume")).answers({"sessionId": "s"})
    await again.hears_result()
    await first.settle()
    assert await holders(first) == {"g1"}


async def test_nothing_is_let_go_of_that_was_never_held(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever names sessions that do not exist makes no work for the registry, and no memory."""
    first, _ = await two_gateways(make_stage)
    alice = await first.client("alice")
    released: list[str] = []

    async def release(self: Any, session_ids: Any, gateway_id: str) -> None:
        released.extend(session_ids)

    monkeypatch.setattr(type(first.registry), "release", release)
    for number in range(3):
        alice.asks("session.getMessages", sessionId=f"made-up-{number}")
        await alice.hears_error()
    first.time_passes(5)
    await first.settle()
    assert released == []
    assert not first.hub.placer._holding
    await alice.creates("s")
    await first.settle()
    await leaves(first, alice)
    assert released == ["s"]
    assert not first.hub.placer._holding


async def test_a_client_that_leaves_while_its_session_moves_holds_nothing(
    make_stage: MakeStage,
) -> None:
    first, _ = await two_gateways(make_stage)
    alice = await first.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(first, alice)
    home.dies()
    await first.anyone_gets("session.resume")
    assert await holders(first) == {"g1"}
    await leaves(first, alice)
    assert await holders(first) == frozenset()


async def test_what_was_left_while_it_was_told_an_empty_registry_is_let_go_of(
    make_stage: MakeStage,
) -> None:
    first, _ = await two_gateways(make_stage)
    alice = await first.client("alice")
    await alice.creates("s")
    await first.settle()
    held = first.hub.placer.held
    await leaves(first, alice)
    await first.registry.republish("g1", held)
    assert await holders(first) == {"g1"}
    first.hub.placer.republished(held)
    first.time_passes(0.1)
    await first.settle()
    assert await holders(first) == frozenset()


# Draining


async def test_idle_sessions_leave_a_draining_replica(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options=FREE)
    alice = await stage.client("alice")
    home = (await alice.creates("s", tools=[{"name": "mine"}])).line.replica
    await turn(stage, alice)
    stage.hub.placer.marked(home.name, DRAINING)
    closed = await home.gets("sessions.close")
    assert closed.line.link.client is None
    # Closed first: at no time is it live twice.
    assert all(one is home or not one.unanswered for one in stage.replicas.values())
    closed.answers({})
    resumed = await stage.anyone_gets("session.resume")
    assert resumed.line.replica is not home
    assert resumed.params["tools"] == [{"name": "mine"}]
    resumed.answers({"sessionId": "s"})
    await stage.settle()
    assert (await alice.prompts("s")).line.replica is resumed.line.replica


async def test_a_drain_that_the_registry_has_lost_goes_on_and_is_told_again(
    make_stage: MakeStage,
) -> None:
    first, second = await two_gateways(make_stage)
    await first.registry.set_replica_mark("cli-0", DRAINING)
    await first.settle()
    await second.settle()
    await first.registry.set_replica_mark("cli-0", None)
    second.hub.placer.changed(ChangesLost())
    await second.settle()
    assert second.hub.replicas["cli-0"].health.draining
    assert await first.registry.replica_marks() == {"cli-0": DRAINING}
    await first.registry.set_replica_mark("cli-0", READY)
    await second.settle()
    assert not second.hub.replicas["cli-0"].health.draining
    second.hub.placer.changed(ChangesLost())
    await second.settle()
    assert await first.registry.replica_marks() == {"cli-0": READY}


async def test_requests_wait_while_a_session_moves(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options=FREE)
    alice = await stage.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(stage, alice)
    stage.hub.placer.marked(home.name, DRAINING)
    closed = await home.gets("sessions.close")
    alice.asks("session.send", sessionId="s", prompt="meanwhile")
    await stage.settle()
    closed.answers({})
    (await stage.anyone_gets("session.resume")).answers({"sessionId": "s"})
    asked = await stage.anyone_gets("session.send")
    assert (asked.line.replica is home, asked.params["prompt"]) == (False, "meanwhile")


async def test_a_running_turn_is_let_finish(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options=FREE)
    alice = await stage.client("alice")
    await alice.creates("s")
    asked = await alice.prompts("s")
    home = asked.line.replica
    stage.hub.placer.marked(home.name, DRAINING)
    await stage.settle()
    assert home.unanswered == []
    asked.line.emits("s", "session.idle")
    stage.time_passes(0)
    await home.gets("sessions.close")


async def test_a_prompt_that_comes_at_the_last_moment_keeps_it_there(
    make_stage: MakeStage,
) -> None:
    stage = await make_stage("cli-0", "cli-1", options=FREE)
    alice = await stage.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(stage, alice)
    stage.hub.drain(home.name, True)
    stage.hub.placer.idle(stage.hub.sessions["s"])
    alice.asks("session.send", sessionId="s", prompt="quick")
    asked = await home.gets("session.send")
    await stage.settle()
    assert home.unanswered == []
    asked.answers({"messageId": "m2"})
    await alice.hears_result()


async def test_with_nowhere_to_go_a_session_stays(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", options=FREE)
    alice = await stage.client("alice")
    await alice.creates("s")
    await turn(stage, alice)
    stage.hub.placer.marked("cli-0", DRAINING)
    resumed = await stage.cli.gets("session.resume")
    resumed.answers({"sessionId": "s"})
    await stage.settle()
    stage.hub.placer.marked("cli-0", READY)
    await stage.settle()
    await alice.prompts("s")
    assert "sessions.close" not in [m["method"] for m in stage.cli.asked.all]


async def test_with_sticky_routing_nothing_moves(two: Stage) -> None:
    alice = await two.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(two, alice)
    two.hub.placer.marked(home.name, DRAINING)
    await two.settle()
    assert home.unanswered == []
    assert (await alice.prompts("s")).line.replica is home


async def test_a_session_of_two_gateways_moves_when_both_let_go(make_stage: MakeStage) -> None:
    first, second = await two_gateways(make_stage)
    alice, other = await first.client("alice"), await second.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(first, alice)
    second.replicas[home.name].stores("s", modified=LONG_AGO)
    await other.resumes("s")
    await second.settle()
    home.knows["sessions.close"] = lambda _: {}
    await first.registry.set_replica_mark(home.name, DRAINING)
    first.hub.placer.marked(home.name, DRAINING)
    await second.settle()
    assert second.hub.replicas[home.name].health.draining
    for _ in "ab":
        resumed = await first.anyone_gets("session.resume")
        assert resumed.line.replica is not home
        resumed.answers({"sessionId": "s"})
    await eventually(lambda: placed(first) == placed(second) != home.name)
    assert first.hub.sessions["s"].placement.epoch == 2


async def test_a_session_busy_on_another_gateway_stays(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.core.placer._HANDS_OFF", 0.01)
    first, second = await two_gateways(make_stage)
    alice, other = await first.client("alice"), await second.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(first, alice)
    await other.resumes("s")
    await second.settle()
    second.hub.sessions["s"].turn.busy = True
    first.hub.placer.marked(home.name, DRAINING)
    resumed = await first.anyone_gets("session.resume")
    assert resumed.line.replica is home
    assert placed(first) == home.name
    assert await holders(first) == {"g1", "g2"}


async def test_a_replica_that_is_new_here_may_be_draining_already(make_stage: MakeStage) -> None:
    store = MemoryStore()
    store.marks["cli-0"] = DRAINING
    stage = await a_gateway(make_stage, store, "g1", "cli-0", "cli-1")
    await stage.settle()
    assert stage.hub.replicas["cli-0"].health.draining
    alice = await stage.client("alice")
    for number in range(4):
        assert (await alice.creates(f"s{number}")).line.replica.name == "cli-1"


# Finding out about storage


async def examined(stage: Stage, alice: Actor) -> None:
    """Run a turn and let the gateway compare."""
    await alice.creates("s")
    await turn(stage, alice)
    stage.time_passes(5)
    await stage.settle()


async def test_storage_is_proven_to_be_shared(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options={"examines_storage": True})
    for replica in stage.replicas.values():
        replica.stores("s")
    alice = await stage.client("alice")
    # A name that is in use on all disks counts as new for this test only.
    stage.hub._holder = _nobody  # type: ignore[method-assign]
    assert not stage.hub.placer.free
    await examined(stage, alice)
    assert stage.hub.placer.free


async def _nobody(session_id: str) -> None:
    return None


@pytest.mark.parametrize("free", [True, False])
async def test_storage_that_is_not_shared_is_noticed(
    make_stage: MakeStage, caplog: pytest.LogCaptureFixture, free: bool
) -> None:
    stage = await make_stage("cli-0", "cli-1", options={"examines_storage": True, "free": free})
    alice = await stage.client("alice")
    home = (await alice.creates("s")).line.replica
    await turn(stage, alice)
    home.stores("s")
    with caplog.at_level(logging.ERROR):
        stage.time_passes(5)
        await stage.settle()
    assert not stage.hub.placer.free
    assert ("do not share" in caplog.text) is free


async def test_a_session_without_a_journal_proves_nothing(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options={"examines_storage": True, "free": True})
    await examined(stage, await stage.client("alice"))
    assert stage.hub.placer.free


async def test_a_session_that_has_moved_proves_nothing(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options={"examines_storage": True})
    await stage.recorded("s", "alice", "cli-0")
    await stage.registry.move("s", 1, "cli-1")
    for replica in stage.replicas.values():
        replica.stores("s", modified=LONG_AGO)
    alice = await stage.client("alice")
    await alice.resumes("s")
    await turn(stage, alice)
    stage.time_passes(5)
    await stage.settle()
    assert not stage.hub.placer.free


async def test_it_is_looked_at_now_and_then_not_all_the_time(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options={"examines_storage": True})
    alice = await stage.client("alice")
    await examined(stage, alice)

    def asked() -> int:
        return sum(
            one["method"] == "sessions.getMetadata"
            for replica in stage.replicas.values()
            for line in replica.lines
            for one in line.heard.all
            if one.get("method")
        )

    before = asked()
    await turn(stage, alice)
    stage.time_passes(5)
    await stage.settle()
    assert asked() == before
    stage.time_passes(60)
    await turn(stage, alice)
    stage.time_passes(5)
    await stage.settle()
    assert asked() == before + 2
    await asyncio.sleep(0)
