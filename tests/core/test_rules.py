"""The operator's rules as clients meet them: places, params, quotas, shared sessions, old SDKs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway import errors
from gateway.core.hub import Serves
from gateway.core.ports import Denied, Entry
from gateway.policy.params import ParamRule
from gateway.policy.quotas import QuotaLimits, Quotas, TenantRule
from gateway.policy.rules import MethodPolicy, OperatorRule
from gateway.types import Identity, Role
from tests.core.conftest import MakeStage
from tests.support.playbook import IDENTITIES, Actor, Stage, event, token_of

LAB = Identity("lab", "all", Role.USER, None, "listener:lab")
PLACE = Entry("lab", LAB)


async def stage_with(make_stage: MakeStage, **options: Any) -> Stage:
    tenants = options.pop("tenants", None)
    stage = await make_stage("cli-0", options=options)
    if tenants is not None:
        stage.hub.quotas = Quotas(stage.now, tenants)
    return stage


def limited(**limits: float) -> dict[str, TenantRule]:
    return {"acme": TenantRule(QuotaLimits(**limits))}  # type: ignore[arg-type]


# --- identities proven by place -------------------------------------------------------------------


async def test_a_client_known_by_its_place_needs_no_connect(stage: Stage) -> None:
    one = stage.stranger(entry=PLACE)
    one.asks("ping", message="x")
    assert (await one.hears_result())["message"] == "pong"
    await one.creates("s")
    assert stage.hub.sessions["s"].placement.owner.tenant == "lab"
    assert stage.audited("authentication") == [
        {"peer": "192.0.2.1:5", "listener": "lab", "tenant": "lab", "user": "all", "role": "user",
         "source": "listener:lab", "outcome": "ok", "reason": None}
    ]  # fmt: skip


@pytest.mark.parametrize("token", [None, "absent"])
async def test_its_connect_is_answered_as_usual(stage: Stage, token: str | None) -> None:
    one = stage.stranger(entry=PLACE)
    one.asks("connect", **({} if token == "absent" else {"token": token}))
    assert (await one.hears_result())["ok"] is True
    assert len(stage.audited("authentication")) == 1


@pytest.mark.parametrize("token", ["wrong", token_of("alice"), "", 5])
async def test_a_token_of_another_identity_is_refused_and_the_place_stays(
    stage: Stage, token: Any
) -> None:
    one = stage.stranger(entry=PLACE)
    one.asks("connect", token=token)
    assert (await one.hears_error())["code"] == errors.AUTHENTICATION_FAILED
    assert one.core.identity == LAB
    one.asks("ping")
    await one.hears_result()


async def test_a_token_of_the_same_identity_changes_nothing(stage: Stage) -> None:
    stage.tokens["lab-token"] = Identity("lab", "all", Role.USER, stage.now() + 5, "token:9")
    one = stage.stranger(entry=PLACE)
    one.asks("connect", token="lab-token")
    await one.hears_result()
    assert one.core.identity == LAB
    stage.time_passes(100)
    assert not one.core.closed


async def test_an_identity_by_place_ends_when_it_says(stage: Stage) -> None:
    ending = Identity("lab", "all", Role.USER, stage.now() + 5, "certificate:1")
    one = stage.stranger(entry=Entry("mtls", ending))
    stage.time_passes(4)
    assert not one.core.closed
    stage.time_passes(2)
    assert one.core.closed
    assert stage.stats.clients_cut["revoked"] == 1


async def test_a_listener_without_an_identity_wants_a_token(stage: Stage) -> None:
    one = stage.stranger(entry=Entry("door"))
    one.asks("ping")
    assert (await one.hears_error())["code"] == errors.AUTHENTICATION_REQUIRED


# --- tokens ---------------------------------------------------------------------------------------


async def test_a_fresh_token_of_the_same_identity_extends_the_stay(stage: Stage) -> None:
    stage.tokens["t1"] = Identity("acme", "alice", Role.USER, stage.now() + 10, "jwt:i")
    stage.tokens["t2"] = Identity("acme", "alice", Role.USER, stage.now() + 100, "jwt:i")
    alice = stage.stranger()
    alice.asks("connect", token="t1")
    await alice.hears_result()
    stage.time_passes(8)
    alice.asks("connect", token="t2")
    await alice.hears_result()
    stage.time_passes(50)
    assert not alice.core.closed
    stage.time_passes(50)
    assert alice.core.closed


@pytest.mark.parametrize(
    "other",
    [
        Identity("acme", "bob"),
        Identity("evil", "alice"),
        Identity("acme", "alice", Role.ADMIN),
    ],
)
async def test_another_identity_is_refused_and_revokes_nothing(
    stage: Stage, other: Identity
) -> None:
    stage.tokens["other"] = other
    alice = await stage.client("alice")
    alice.asks("connect", token="other")
    assert (await alice.hears_error())["code"] == errors.AUTHENTICATION_FAILED
    assert alice.core.identity == IDENTITIES["alice"]
    assert stage.audited("authentication")[-1]["reason"] == "proves another identity"
    alice.asks("ping")
    await alice.hears_result()


async def test_more_than_a_handshake_may_wait_behind_a_second_connect(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.sends(
        alice.request("connect", {"token": token_of("alice")}),
        alice.request("ping", {"message": "x" * 50_000}),
    )
    await alice.hears_answer()
    assert not alice.core.closed


async def test_why_a_token_proves_nothing_is_for_the_audit_only(stage: Stage) -> None:
    async def proof(token: object) -> Any:
        return Denied("jwt: token has expired")

    stage.proof = proof
    stranger = stage.stranger()
    stranger.asks("connect", token="a.b.c")
    error = await stranger.hears_error()
    assert "expired" not in str(error)
    assert stage.audited("authentication")[-1]["reason"] == "jwt: token has expired"


async def test_whoever_is_slowed_beyond_the_deadline_is_counted_as_limited(stage: Stage) -> None:
    async def proof(token: object) -> Any:
        await asyncio.Event().wait()

    stage.proof = proof
    stranger = stage.stranger()
    stranger.asks("connect", token="x")
    await stage.settle()
    stage.time_passes(11)
    assert stranger.core.closed
    assert stage.stats.auth["limited"] == 1
    assert stage.audited("authentication")[-1]["outcome"] == "denied"


async def test_replicas_for_one_tenant_refuse_the_others(make_stage: MakeStage) -> None:
    stage = await stage_with(make_stage, serves=Serves("acme"))
    await stage.client("alice")
    eve = stage.stranger()
    eve.asks("connect", token=token_of("eve"))
    assert (await eve.hears_error())["code"] == errors.FORBIDDEN
    assert eve.core.identity is None
    record = stage.audited("authentication")[-1]
    assert (record["outcome"], record["identity"].tenant) == ("denied", "evil")
    stranger = stage.stranger(entry=PLACE)
    assert stranger.core.closed


# --- rules on params ------------------------------------------------------------------------------


async def test_params_are_shaped_and_kept_for_later(make_stage: MakeStage) -> None:
    rule = ParamRule(
        force={"mode": "empty"},
        credentials={"gitHubToken": "of-the-gateway"},
        tools=("view",),
    )
    stage = await stage_with(make_stage, param_rules=[rule])
    alice = await stage.client("alice")
    asked = await alice.creates("s", mode="interactive", gitHubToken="mine", availableTools=["rm"])
    assert asked.params["mode"] == "empty"
    assert asked.params["gitHubToken"] == "of-the-gateway"
    assert asked.params["availableTools"] == []
    await stage.settle()
    recipe = alice.core.bindings["s"].recipe
    assert recipe is not None
    assert recipe["gitHubToken"] == "of-the-gateway"
    assert recipe["mode"] == "empty"


async def test_forbidden_params_are_refused_and_recorded(make_stage: MakeStage) -> None:
    stage = await stage_with(make_stage, param_rules=[ParamRule(forbid=frozenset({"mcpServers"}))])
    alice = await stage.client("alice")
    alice.asks("session.create", sessionId="s", mcpServers={})
    assert (await alice.hears_error())["code"] == errors.FORBIDDEN
    (record,) = stage.audited("denied")
    assert (record["method"], record["code"]) == ("session.create", errors.FORBIDDEN)
    assert stage.cli.unanswered == []


async def test_an_open_session_is_held_to_the_rules_too(make_stage: MakeStage) -> None:
    stage = await stage_with(make_stage, param_rules=[ParamRule(models=("gpt-*",))])
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.asks("session.model.switchTo", sessionId="s", modelId="o9")
    assert (await alice.hears_error())["code"] == errors.FORBIDDEN
    alice.asks("session.model.switchTo", sessionId="s", modelId="gpt-4.1")
    await stage.cli.gets("session.model.switchTo")


async def test_a_reload_changes_the_rules_of_connected_clients(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.asks("session.model.list", sessionId="s")
    await stage.cli.gets("session.model.list")
    deny = OperatorRule("deny", ("session.model.*",))
    stage.hub.change_rules(MethodPolicy(rules=(deny,)), [ParamRule(forbid=frozenset({"a"}))], {})
    alice.asks("session.model.list", sessionId="s")
    assert (await alice.hears_error())["code"] == errors.FORBIDDEN
    alice.asks("session.resume", sessionId="s", a=1)
    assert (await alice.hears_error())["code"] == errors.FORBIDDEN


# --- session ids in requests that are about no session --------------------------------------------


@pytest.mark.parametrize("session", ["theirs", "nobodys"])
async def test_an_id_anywhere_must_be_the_callers(stage: Stage, session: str) -> None:
    await stage.recorded("theirs", "mallory")
    await stage.recorded("mine", "boss")
    boss = await stage.client("boss")
    boss.asks("mcp.oauth.checkDcrSupport", sessionId=session, url="https://x")
    error = await boss.hears_error()
    assert "not found" in error["message"]
    assert session in error["message"]
    boss.asks("mcp.oauth.checkDcrSupport", sessionId="mine", url="https://x")
    asked = await stage.cli.gets("mcp.oauth.checkDcrSupport")
    asked.answers({})
    await boss.hears_result()


async def test_who_reaches_for_a_session_of_somebody_else_is_recorded(stage: Stage) -> None:
    await stage.recorded("theirs", "mallory")
    alice = await stage.client("alice")
    for session in ("theirs", "nobodys"):
        alice.asks("session.resume", sessionId=session)
        assert session in (await alice.hears_error())["message"]
    (record,) = stage.audited("denied")
    assert (record["user"], record["session"]) == ("alice", "theirs")
    assert record["reason"] == "session of another owner"


# --- shared sessions ------------------------------------------------------------------------------


async def test_sessions_shared_in_a_tenant(make_stage: MakeStage) -> None:
    stage = await stage_with(make_stage, tenants={"acme": TenantRule(shared_sessions=True)})
    alice, bob, eve = [await stage.client(name) for name in ("alice", "bob", "eve")]
    await alice.creates("s")
    await bob.resumes("s")
    await bob.prompts("s")
    assert [(r["user"], r["session"]) for r in stage.audited("session.send")] == [("bob", "s")]
    eve.asks("session.resume", sessionId="s")
    assert "not found" in (await eve.hears_error())["message"]
    stage.cli.stores("s")
    for actor, seen in ((alice, 1), (bob, 1), (eve, 0)):
        actor.asks("session.list")
        assert len((await actor.hears_result())["sessions"]) == seen


async def test_private_sessions_stay_private_and_prompts_unrecorded(stage: Stage) -> None:
    alice, bob = await stage.client("alice"), await stage.client("bob")
    await alice.creates("s")
    await alice.prompts("s")
    assert stage.audited("session.send") == []
    bob.asks("session.resume", sessionId="s")
    assert "not found" in (await bob.hears_error())["message"]


# --- quotas ---------------------------------------------------------------------------------------


def over(error: dict[str, Any], limit: str) -> bool:
    data = error["data"]
    return (
        error["code"] == errors.OVERLOADED and data["limit"] == limit and data["retryAfterMs"] > 0
    )


async def test_connections_over_the_quota_are_refused_until_one_ends(
    make_stage: MakeStage,
) -> None:
    stage = await stage_with(make_stage, tenants=limited(connections=1))
    alice = await stage.client("alice")
    bob = stage.stranger()
    bob.asks("connect", token=token_of("bob"))
    assert over(await bob.hears_error(), "tenant.connections")
    assert bob.core.identity is None
    await stage.client("eve")
    alice.leaves()
    bob.asks("connect", token=token_of("bob"))
    await bob.hears_result()


async def test_a_place_over_its_quota_is_closed(make_stage: MakeStage) -> None:
    stage = await stage_with(make_stage, tenants={"lab": TenantRule(QuotaLimits(connections=1))})
    first, second = stage.stranger(entry=PLACE), stage.stranger(entry=PLACE)
    assert not first.core.closed
    assert second.core.closed
    assert over(second.unheard[0]["error"], "tenant.connections")


async def test_messages_over_the_rate_are_refused_and_slowed(make_stage: MakeStage) -> None:
    stage = await stage_with(make_stage, tenants=limited(messages_per_second=5))
    alice = await stage.client("alice")
    for _ in range(5):
        alice.asks("ping")
    await alice.hears_result()
    alice.asks("ping")
    assert over(await alice.hears_error(), "tenant.messages_per_second")
    assert alice.sink.paused
    stage.time_passes(1)
    assert not alice.sink.paused
    alice.asks("ping")
    await alice.hears_result()
    assert stage.stats.tenant("acme").limited == 1


async def test_what_ends_something_is_slowed_but_not_refused(make_stage: MakeStage) -> None:
    stage = await stage_with(make_stage, tenants=limited(messages_per_second=2))
    alice = await stage.client("alice")
    await alice.creates("s")
    await alice.prompts("s")
    alice.asks("session.abort", sessionId="s")
    (await stage.cli.gets("session.abort")).answers({})
    await alice.hears_result()
    assert alice.sink.paused
    stage.time_passes(5)
    assert not alice.sink.paused


async def test_answers_to_replicas_are_never_lost_to_a_rate(make_stage: MakeStage) -> None:
    stage = await stage_with(make_stage, tenants=limited(messages_per_second=1))
    alice = await stage.client("alice")
    await alice.creates("s")
    line = stage.cli.line_of(alice)
    for number in (1, 2, 3):
        line.asks(number, "userInput.request", sessionId="s", question="?")
        alice.answers(await alice.hears("userInput.request"), {"answer": str(number)})
        told = await stage.cli.hears(lambda m, n=number: m.get("id") == n)
        assert told["result"] == {"answer": str(number)}


async def test_one_tenants_flood_costs_the_other_nothing(make_stage: MakeStage) -> None:
    rule = TenantRule(QuotaLimits(messages_per_second=10))
    stage = await stage_with(make_stage, tenants={"*": rule})
    alice, eve = await stage.client("alice"), await stage.client("eve")
    eve.sends(*(eve.request("ping", {}) for _ in range(500)))
    for _ in range(10):
        alice.asks("ping")
        await alice.hears_result()
    assert stage.stats.tenant("acme").limited == 0
    assert stage.stats.tenant("evil").limited > 450


async def test_sessions_over_the_quota_are_refused(make_stage: MakeStage) -> None:
    stage = await stage_with(make_stage, tenants=limited(sessions=1))
    alice = await stage.client("alice")
    alice.asks("session.create", id="one", sessionId="a")
    alice.asks("session.create", id="two", sessionId="b")
    asked = await stage.cli.gets("session.create")
    assert over(await alice.hears_error("two"), "tenant.sessions")
    asked.answers({"sessionId": "a"})
    await alice.hears_result("one")
    await stage.settle()
    await alice.resumes("a")
    alice.asks("session.detach", sessionId="a")
    (await stage.cli.gets("session.detach")).answers({"success": True})
    await alice.hears_result()
    await alice.creates("c")


async def test_a_create_that_fails_gives_its_place_back(make_stage: MakeStage) -> None:
    stage = await stage_with(make_stage, tenants=limited(sessions=1))
    alice = await stage.client("alice")
    alice.asks("session.create", sessionId="a")
    (await stage.cli.gets("session.create")).refuses("no")
    await alice.hears_error()
    await stage.settle()
    await alice.creates("b")


async def test_turns_over_the_quota_are_refused_until_one_ends(make_stage: MakeStage) -> None:
    stage = await stage_with(make_stage, tenants=limited(turns=1))
    alice, bob = await stage.client("alice"), await stage.client("bob")
    await alice.creates("a")
    await bob.creates("b")
    await alice.prompts("a")
    await alice.prompts("a", "another, queued by the CLI")
    bob.asks("session.send", sessionId="b", prompt="hi")
    assert over(await bob.hears_error(), "tenant.turns")
    stage.cli.line_of(alice).says(
        event("a", "user.message", content="hi"),
        event("a", "user.message", content="another, queued by the CLI"),
        event("a", "session.idle"),
    )
    await alice.hears_event("session.idle")
    await bob.prompts("b")


async def test_large_frames_are_refused_where_a_tenant_has_less(make_stage: MakeStage) -> None:
    stage = await stage_with(make_stage, tenants=limited(max_frame=1000))
    alice, eve = await stage.client("alice"), await stage.client("eve")
    for actor in (alice, eve):
        actor.asks("ping", message="x" * 2000)
    assert (await alice.hears_error())["code"] == errors.OVERLOADED
    assert alice.core.closed
    await eve.hears_result()


async def test_a_reload_counts_who_is_there(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    stage.hub.change_rules(
        MethodPolicy(), [], {"acme": TenantRule(QuotaLimits(connections=1, sessions=1))}
    )
    bob = stage.stranger()
    bob.asks("connect", token=token_of("bob"))
    assert over(await bob.hears_error(), "tenant.connections")
    alice.asks("session.create", sessionId="t")
    assert over(await alice.hears_error(), "tenant.sessions")
    stage.hub.change_rules(MethodPolicy(), [], {})
    bob.asks("connect", token=token_of("bob"))
    await bob.hears_result()
    await alice.creates("t")


# --- SDKs and CLIs of other ages ------------------------------------------------------------------


async def old_client(stage: Stage) -> Actor:
    one = stage.stranger(entry=PLACE)
    one.asks("ping")
    await one.hears_answer()
    return one


async def test_an_old_sdk_reads_the_time_as_a_number(stage: Stage) -> None:
    stamp = "2026-01-02T03:04:05.678Z"
    stage.cli.knows["ping"] = lambda ask: {
        "message": "pong: ", "timestamp": stamp, "protocolVersion": 3,
    }  # fmt: skip
    old, new = stage.stranger(entry=PLACE), stage.stranger(entry=PLACE)
    old.asks("ping")
    assert (await old.hears_result())["timestamp"] == 1767323045678
    new.asks("connect")
    await new.hears_result()
    new.asks("ping")
    assert (await new.hears_result())["timestamp"] == stamp


async def test_an_old_sdk_is_told_of_idle_without_what_it_cannot_decode(stage: Stage) -> None:
    old = await old_client(stage)
    await old.creates("s")
    stage.cli.line_of(old).says(
        event("s", "assistant.message_delta", deltaContent="mode"),
        event("s", "session.idle", mode="interactive", aborted=True),
    )
    params = await old.hears_event("session.idle")
    assert params["event"]["data"] == {"aborted": True}
    assert (await old.hears_event("assistant.message_delta"))["event"]["data"]


async def test_a_cli_that_lacks_detach_is_asked_to_destroy(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.asks("session.detach", sessionId="s")
    (await stage.cli.gets("session.detach")).refuses("Unhandled method session.detach", -32601)
    asked = await stage.cli.gets("session.destroy")
    assert asked.params == {"sessionId": "s"}
    asked.answers({"success": True})
    assert await alice.hears_result() == {"success": True}
    await stage.settle()
    assert "s" not in alice.core.bindings
    assert alice.core.pending == {}


async def test_another_refusal_of_detach_is_passed_on(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.asks("session.detach", sessionId="s")
    (await stage.cli.gets("session.detach")).refuses("no", -32603)
    assert (await alice.hears_error())["message"] == "no"
    assert alice.core.bindings["s"].attached


async def test_a_shutdown_is_answered_as_the_cli_answers_it(stage: Stage) -> None:
    alice = await stage.client("alice")
    await alice.creates("s")
    alice.asks("session.shutdown", sessionId="s")
    (await stage.cli.gets("sessions.close")).answers({})
    assert await alice.hears_result() is None
    assert "s" not in stage.hub.sessions
