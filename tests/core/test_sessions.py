"""Life of a session: create, resume, detach, close, delete, fork; who owns what."""

from __future__ import annotations

import pytest

from gateway import errors
from gateway.policy import results
from gateway.policy.rules import MethodPolicy
from tests.core.conftest import MakeStage
from tests.support.playbook import Stage, lifecycle

# Create


async def test_a_created_session_is_recorded_before_the_replica_hears_of_it(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.asks("session.create", sessionId="s")
    await stage.cli.gets("session.create")
    placement = await stage.registry.get("s")
    assert placement is not None
    assert (placement.owner, placement.replica) == (stage.owner_of("alice"), "cli-0")


async def test_a_create_that_fails_is_taken_back(stage: Stage) -> None:
    alice = await stage.client("alice")
    for _ in range(2):
        alice.asks("session.create", sessionId="s")
        (await stage.cli.gets("session.create")).refuses("no")
        assert (await alice.hears_error())["message"] == "no"
        await stage.settle()
        assert await stage.registry.get("s") is None
        assert stage.hub.sessions == {}
    await alice.creates("s")


async def test_a_create_that_fails_is_taken_back_after_others_were_deleted(stage: Stage) -> None:
    """Epochs start higher once the registry has forgotten a session."""
    alice = await stage.client("alice")
    await alice.creates("old")
    alice.asks("session.delete", sessionId="old")
    (await stage.cli.gets("session.delete")).answers({"success": True})
    await alice.hears_result()
    await stage.settle()
    alice.asks("session.create", sessionId="s")
    (await stage.cli.gets("session.create")).refuses("no")
    await alice.hears_error()
    await stage.settle()
    assert await stage.registry.get("s") is None


async def test_a_create_of_a_live_session_attaches(stage: Stage) -> None:
    one, other = await stage.client("alice"), await stage.client("alice")
    await one.creates("s")
    await other.creates("s")
    await stage.settle()
    assert stage.stats.sessions_live == 1
    assert len(stage.hub.sessions["s"].bindings) == 2


async def test_a_create_of_a_stored_session_is_refused(stage: Stage) -> None:
    """A CLI would start an empty conversation in the same journal."""
    alice = await stage.client("alice")
    await stage.recorded("s", "alice")
    stage.cli.stores("s")
    alice.asks("session.create", sessionId="s")
    error = await alice.hears_error()
    assert error["code"] == errors.INTERNAL_ERROR
    assert "already exists" in error["message"]
    assert stage.cli.unanswered == []
    await alice.resumes("s")


async def test_a_create_of_a_session_live_through_another_worker_attaches(stage: Stage) -> None:
    alice = await stage.client("alice")
    await stage.recorded("s", "alice")
    stage.cli.stores("s")
    stage.cli.live.add("s")
    await alice.creates("s")


async def test_a_create_of_a_stored_session_that_nobody_owns_is_refused(stage: Stage) -> None:
    alice = await stage.client("alice")
    stage.cli.stores("s")
    alice.asks("session.create", sessionId="s")
    assert "not available" in (await alice.hears_error())["message"]
    assert await stage.registry.get("s") is None


async def test_an_id_of_somebody_else_cannot_be_created(stage: Stage) -> None:
    alice, mallory = await stage.client("alice"), await stage.client("mallory")
    await alice.creates("s")
    mallory.asks("session.create", sessionId="s")
    assert (await mallory.hears_error())["code"] == errors.INTERNAL_ERROR
    await stage.settle()
    assert stage.cli.unanswered == []
    placement = await stage.registry.get("s")
    assert placement is not None
    assert placement.owner == stage.owner_of("alice")


async def test_an_id_nobody_could_attach_to_may_be_created_by_the_next(stage: Stage) -> None:
    alice, mallory = await stage.client("alice"), await stage.client("mallory")
    alice.asks("session.create", sessionId="s")
    (await stage.cli.gets("session.create")).refuses("no")
    await alice.hears_error()
    await stage.settle()
    await mallory.creates("s")


async def test_two_creates_of_one_id_at_once_have_one_owner(stage: Stage) -> None:
    alice, mallory = await stage.client("alice"), await stage.client("mallory")
    alice.asks("session.create", sessionId="s")
    mallory.asks("session.create", sessionId="s")
    await stage.settle()
    assert stage.cli.unanswered == ["session.create"]
    asked = await stage.cli.gets("session.create")
    loser = mallory if asked.line.link.client is alice.core else alice
    assert (await loser.hears_error())["code"] == errors.INTERNAL_ERROR


async def test_sessions_spread_over_replicas_within_bounds(two: Stage) -> None:
    alice = await two.client("alice")
    for number in range(20):
        await alice.creates(f"s{number}")
    counts = [len(replica.live) for replica in two.replicas.values()]
    assert sum(counts) == 20
    assert max(counts) <= 13


async def test_a_draining_replica_gets_no_new_sessions_and_keeps_its_own(two: Stage) -> None:
    alice = await two.client("alice")
    for number in range(6):
        await alice.creates(f"s{number}")
    kept = min(two.replicas["cli-0"].live)
    two.hub.drain("cli-0", True)
    before = len(two.replicas["cli-0"].live)
    for number in range(6, 12):
        await alice.creates(f"s{number}")
    assert len(two.replicas["cli-0"].live) == before
    assert (await alice.prompts(kept)).line.replica.name == "cli-0"


# Resume


async def test_a_recorded_session_is_resumed_where_it_lives(two: Stage) -> None:
    alice = await two.client("alice")
    for name in ("cli-0", "cli-1"):
        await two.recorded(f"on-{name}", "alice", name)
        assert (await alice.resumes(f"on-{name}")).line.replica.name == name


async def test_an_unknown_session_cannot_be_resumed(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.asks("session.resume", sessionId="s")
    assert await alice.hears_error() == {
        "code": errors.INTERNAL_ERROR,
        "message": "Request session.resume failed with message: "
        "Failed to load session events: Session not found: s",
    }
    assert stage.cli.unanswered == []


async def test_a_resume_that_the_replica_refuses_leaves_the_record(stage: Stage) -> None:
    alice = await stage.client("alice")
    await stage.recorded("s", "alice")
    alice.asks("session.resume", sessionId="s")
    (await stage.cli.gets("session.resume")).refuses("clash")
    assert (await alice.hears_error())["message"] == "clash"
    await stage.settle()
    assert await stage.registry.get("s") is not None
    assert stage.hub.sessions == {}


@pytest.mark.parametrize(
    ("adopt", "who", "allowed"),
    [
        ("admin", "operator", True),
        ("admin", "boss", False),
        ("admin", "alice", False),
        ("never", "operator", False),
        ("tenant", "alice", True),
    ],
)
async def test_adopting_a_session_without_an_owner(
    make_stage: MakeStage, adopt: str, who: str, allowed: bool
) -> None:
    stage = await make_stage("cli-0", "cli-1", options={"adopt": adopt})
    stage.replicas["cli-1"].stores("s")
    actor = await stage.client(who)
    if not allowed:
        actor.asks("session.resume", sessionId="s")
        assert "Session not found: s" in (await actor.hears_error())["message"]
        assert await stage.registry.get("s") is None
        return
    assert (await actor.resumes("s")).line.replica.name == "cli-1"
    placement = await stage.registry.get("s")
    assert placement is not None
    assert (placement.owner, placement.replica) == (stage.owner_of(who), "cli-1")


# Leaving


@pytest.mark.parametrize("method", ["session.detach", "session.destroy"])
async def test_who_detaches_may_still_send(stage: Stage, method: str) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.asks(method, sessionId="s")
    (await stage.cli.gets(method)).answers({"success": True})
    await alice.hears_result()
    await stage.settle()
    assert stage.stats.sessions_live == 0
    await alice.prompts("s")


async def test_a_detached_session_is_not_bound_again(stage: Stage) -> None:
    alice = await stage.client("alice")
    line = (await alice.creates("s")).line
    alice.asks("session.detach", sessionId="s")
    (await stage.cli.gets("session.detach")).answers({"success": True})
    await alice.hears_result()
    line.breaks()
    await stage.settle()
    assert stage.cli.unanswered == []


async def test_a_detach_that_fails_changes_nothing(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.asks("session.detach", sessionId="s")
    (await stage.cli.gets("session.detach")).refuses("busy")
    await alice.hears_error()
    await stage.settle()
    assert stage.stats.sessions_live == 1


async def test_a_closed_session_is_unloaded_for_everybody(stage: Stage) -> None:
    one, other = await stage.client("alice"), await stage.client("alice")
    await one.creates("s")
    await other.resumes("s")
    one.asks("sessions.close", sessionId="s")
    (await stage.cli.gets("sessions.close")).answers({})
    await one.hears_result()
    await stage.settle()
    assert stage.hub.sessions == {}
    stage.cli.live.clear()
    await other.resumes("s")


async def test_a_deleted_session_may_be_created_by_anybody(stage: Stage) -> None:
    alice, mallory = await stage.client("alice"), await stage.client("mallory")
    await alice.creates("s")
    alice.asks("session.delete", sessionId="s")
    (await stage.cli.gets("session.delete")).answers({"success": True})
    await alice.hears_result()
    await stage.settle()
    assert await stage.registry.get("s") is None
    await mallory.creates("s")


@pytest.mark.parametrize("method", ["session.delete", "sessions.delete"])
async def test_a_delete_that_fails_keeps_the_owner(stage: Stage, method: str) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.asks(method, sessionId="s")
    asked = await stage.cli.gets(method)
    if method == "session.delete":
        asked.answers({"success": False, "error": "in use"})
        assert (await alice.hears_result())["success"] is False
    else:
        asked.refuses("in use")
        await alice.hears_error()
    await stage.settle()
    assert await stage.registry.get("s") is not None


async def test_create_resume_and_delete_are_audited(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    await alice.resumes("s")
    alice.asks("session.delete", sessionId="s")
    (await stage.cli.gets("session.delete")).answers({"success": True})
    await alice.hears_result()
    await stage.settle()
    for event in ("session.create", "session.resume", "session.delete"):
        (record,) = stage.audited(event)
        assert (record["session"], record["outcome"], record["user"]) == ("s", "ok", "alice")


# Fork


async def test_a_fork_is_owned_before_it_is_known(stage: Stage) -> None:
    alice, mallory = await stage.client("alice"), await stage.client("mallory")
    await alice.creates("s")
    alice.asks("sessions.fork", sessionId="s")
    (await stage.cli.gets("sessions.fork")).answers({"sessionId": "minted"})
    assert (await alice.hears_result())["sessionId"] == "minted"
    placement = await stage.registry.get("minted")
    assert placement is not None
    assert placement.owner == stage.owner_of("alice")
    mallory.asks("session.resume", sessionId="minted")
    await mallory.hears_error()
    await alice.resumes("minted")


async def test_a_fork_of_somebody_elses_session_is_a_fork_of_nothing(stage: Stage) -> None:
    alice, mallory = await stage.client("alice"), await stage.client("mallory")
    await alice.creates("s")
    mallory.asks("sessions.fork", sessionId="s")
    with pytest.raises(errors.RpcError) as caught:
        results.unknown_session("sessions.fork", "s")
    assert await mallory.hears_error() == caught.value.to_object()


async def test_a_fork_that_fails_owns_nothing(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.asks("sessions.fork", sessionId="s")
    (await stage.cli.gets("sessions.fork")).refuses("no")
    assert (await alice.hears_error())["message"] == "no"
    assert list(await stage.registry.owned_by("acme", None)) == ["s"]


# Process-wide registrations


@pytest.mark.parametrize(
    "method",
    ["sessionFs.setProvider", "llmInference.setProvider", "registerExtensionLaunchProvider"],
)
@pytest.mark.parametrize("who", ["alice", "eve"])
async def test_process_wide_providers_are_refused_to_users_in_a_shared_pool(
    stage: Stage, method: str, who: str
) -> None:
    del who  # users of either tenant
    alice = await stage.client("alice")
    alice.asks(method)
    assert (await alice.hears_error())["code"] == errors.FORBIDDEN
    await stage.settle()
    assert stage.cli.unanswered == []


async def test_unknown_session_methods_are_routed_if_the_operator_says_so(
    make_stage: MakeStage,
) -> None:
    policy = MethodPolicy(unknown_session_methods="allow")
    stage = await make_stage("cli-0", options={"policy": policy})
    alice, mallory = await stage.client("alice"), await stage.client("mallory")
    await alice.creates("s")
    alice.asks("session.brandNew", sessionId="s")
    (await stage.cli.gets("session.brandNew")).answers({"ok": 1})
    assert await alice.hears_result() == {"ok": 1}
    mallory.asks("session.brandNew", sessionId="s")
    assert "Session not found" in (await mallory.hears_error())["message"]


# Counting


async def test_counters_come_back_to_zero(stage: Stage) -> None:
    alice, bob = await stage.client("alice"), await stage.client("bob")
    await alice.creates("a")
    await bob.creates("b")
    await stage.settle()
    assert (stage.stats.sessions_live, stage.stats.replica("cli-0").sessions) == (2, 2)
    stage.cli.broadcasts(lifecycle("a"))
    alice.leaves()
    await stage.settle()
    assert (stage.stats.sessions_live, stage.stats.replica("cli-0").sessions) == (1, 1)
    bob.leaves()
    await stage.settle()
    assert (stage.stats.sessions_live, stage.stats.replica("cli-0").sessions) == (0, 0)
    assert stage.stats.replica("cli-0").links == 1
