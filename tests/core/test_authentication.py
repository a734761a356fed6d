"""Who may speak: rules of the handshake, before and after it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway import errors
from gateway.types import Identity
from tests.core.conftest import MakeStage
from tests.support.playbook import IDENTITIES, Stage, token_of
from tests.support.rpc import frame


async def test_a_good_token_is_answered_as_a_cli_answers(stage: Stage) -> None:
    alice = stage.stranger()
    alice.asks("connect", token=token_of("alice"))
    assert await alice.hears_result() == {
        "ok": True,
        "protocolVersion": 3,
        "version": "1.0.102",
        "taskKinds": ["agent", "shell"],
    }
    assert alice.core.identity == IDENTITIES["alice"]


@pytest.mark.parametrize(
    ("declared", "answered"),
    [
        ([], ["agent", "shell"]),
        (["client"], ["agent", "shell", "client"]),
        (["shell", "client", "agent"], ["agent", "shell", "client"]),
    ],
)
async def test_task_kinds_mirror_what_the_client_declared(
    stage: Stage, declared: list[str], answered: list[str]
) -> None:
    alice = stage.stranger()
    alice.asks("connect", token=token_of("alice"), supportedTaskKinds=declared)
    assert (await alice.hears_result())["taskKinds"] == answered


@pytest.mark.parametrize(
    "token",
    ["", "wrong", "alice-toke", "alice-token ", "Alice-token", 5, None, True, [], ["alice-token"],
     {"token": "alice-token"}, "x" * 10_000, "alice-tokeň"],
)  # fmt: skip
async def test_a_bad_token_fails_with_the_clis_own_code(stage: Stage, token: Any) -> None:
    stranger = stage.stranger()
    stranger.asks("connect", token=token)
    assert (await stranger.hears_error())["code"] == errors.AUTHENTICATION_FAILED
    assert stranger.core.identity is None
    assert not stranger.core.closed


async def test_a_missing_token_fails(stage: Stage) -> None:
    stranger = stage.stranger()
    stranger.asks("connect")
    assert (await stranger.hears_error())["code"] == errors.AUTHENTICATION_FAILED


@pytest.mark.parametrize(
    "method",
    ["ping", "session.create", "session.send", "session.list", "no.such", "runtime.shutdown"],
)
async def test_anything_else_first_requires_authentication(stage: Stage, method: str) -> None:
    stranger = stage.stranger()
    stranger.asks(method, sessionId="s")
    assert (await stranger.hears_error())["code"] == errors.AUTHENTICATION_REQUIRED
    await stage.settle()
    assert stage.cli.unanswered == []


async def test_notifications_and_answers_before_authentication_are_not_answered(
    stage: Stage,
) -> None:
    stranger = stage.stranger()
    stranger.notifies("session.send", sessionId="s", prompt="x")
    stranger.sends({"jsonrpc": "2.0", "id": 1, "result": {}})
    await stage.settle()
    assert stranger.unheard == []
    assert stage.cli.unanswered == []


async def test_a_failed_connect_may_be_tried_again(stage: Stage) -> None:
    alice = stage.stranger()
    alice.asks("connect", token="wrong")
    await alice.hears_error()
    alice.asks("connect", token=token_of("alice"))
    assert (await alice.hears_result())["ok"] is True


async def test_failures_are_limited_per_connection(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", max_auth_failures=3)
    stranger = stage.stranger()
    for _ in range(3):
        assert not stranger.core.closed
        stranger.asks("connect", token="guess")
        await stranger.hears_error()
    assert stranger.sink.closed
    assert stage.stats.clients_cut["auth_failures"] == 1


@pytest.mark.parametrize("junk", [b"{", b"[]", b'{"jsonrpc":"2.0","id":1.5,"method":"connect"}'])
async def test_broken_messages_count_as_failures(make_stage: MakeStage, junk: bytes) -> None:
    stage = await make_stage("cli-0", max_auth_failures=3)
    stranger = stage.stranger()
    for _ in range(3):
        assert not stranger.core.closed
        stranger.says(b"Content-Length: %d\r\n\r\n%s" % (len(junk), junk))
    assert stranger.sink.closed
    assert len(stranger.unheard) == 3


async def test_a_slowed_source_waits_for_its_answer(stage: Stage) -> None:
    stage.delay = 5.0
    stranger = stage.stranger()
    stranger.asks("connect", token="wrong")
    stranger.asks("connect", token=token_of("alice"))
    await stage.settle()
    assert stranger.unheard == []
    stage.delay = 0.0
    stage.time_passes(5.0)
    assert (await stranger.hears_error(1))["code"] == errors.AUTHENTICATION_FAILED
    assert (await stranger.hears_result(2))["ok"] is True


async def test_a_good_token_never_waits(stage: Stage) -> None:
    stage.delay = 60.0
    await stage.client("alice")


async def test_a_silent_connection_is_closed(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", connect_deadline=10.0)
    stranger = stage.stranger()
    stage.time_passes(9.0)
    assert not stranger.core.closed
    stage.time_passes(1.1)
    assert stranger.sink.closed
    assert stranger.unheard[0]["error"]["code"] == errors.AUTHENTICATION_REQUIRED


async def test_the_deadline_ends_with_the_handshake(stage: Stage) -> None:
    alice = await stage.client("alice")
    stage.time_passes(3600.0)
    assert not alice.core.closed


async def test_frames_are_small_before_authentication_and_large_after(
    make_stage: MakeStage,
) -> None:
    stage = await make_stage("cli-0", max_unauthenticated_frame=1000, max_frame=5000)
    stranger = stage.stranger()
    stranger.asks("connect", token="x" * 1000)
    error = await stranger.hears_error()
    assert error["code"] == errors.OVERLOADED
    assert error["data"]["limit"] == "max_unauthenticated_frame"
    assert stranger.sink.closed
    alice = await stage.client("alice")
    alice.asks("ping", message="x" * 4000)
    await alice.hears_result()
    alice.asks("ping", message="x" * 5000)
    assert (await alice.hears_error())["data"]["limit"] == "max_frame"
    assert alice.sink.closed


async def test_what_is_pipelined_behind_a_connect_waits_for_it(stage: Stage) -> None:
    async def slow(token: object) -> Identity | None:
        await asyncio.sleep(0.01)
        return IDENTITIES["alice"] if token == token_of("alice") else None

    stage.proof = slow
    alice = stage.stranger()
    alice.sends(
        alice.request("connect", {"token": token_of("alice")}), alice.request("ping", {}, "p")
    )
    await alice.hears_result("p")
    answered = [m["id"] for m in alice.heard.all]
    assert answered == [1, "p"]


async def test_what_is_pipelined_behind_a_bad_connect_is_refused(stage: Stage) -> None:
    async def never(token: object) -> Identity | None:
        await asyncio.sleep(0)
        return None

    stage.proof = never
    stranger = stage.stranger()
    stranger.sends(
        stranger.request("connect", {"token": "x"}),
        stranger.request("session.send", {"sessionId": "s"}, "p"),
    )
    assert (await stranger.hears_error("p"))["code"] == errors.AUTHENTICATION_REQUIRED


async def test_pipelining_before_authentication_is_bounded(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", max_unauthenticated_frame=1000)
    pending: asyncio.Future[Identity | None] = asyncio.get_running_loop().create_future()

    async def wait(token: object) -> Identity | None:
        return await pending

    stage.proof = wait
    stranger = stage.stranger()
    stranger.asks("connect", token="x")
    for _ in range(20):
        stranger.asks("ping", message="y" * 100)
    assert stranger.sink.closed
    pending.set_result(None)


@pytest.mark.parametrize("name", ["unknown", "Token", "clientinfo"])
async def test_unknown_fields_of_connect_are_refused_as_by_the_cli(stage: Stage, name: str) -> None:
    stranger = stage.stranger()
    stranger.asks("connect", token=token_of("alice"), **{name: 1})
    error = await stranger.hears_error()
    assert error["code"] == errors.INVALID_PARAMS
    assert name in error["message"]
    assert stranger.core.identity is None


async def test_unusual_connection_parameters_are_judged_by_a_cli(stage: Stage) -> None:
    alice = stage.stranger()
    alice.asks("connect", token=token_of("alice"), clientInfo={"editorName": "vi"})
    assert (await alice.hears_result())["ok"] is True
    assert stage.cli.lines[-1].hello == {"clientInfo": {"editorName": "vi"}}
    assert stage.cli.lines[-1].link.closed


async def test_connection_parameters_that_a_cli_refuses(stage: Stage) -> None:
    def picky(ask: Any) -> Any:
        if "clientInfo" in ask.params:
            raise LookupError("Invalid connect request: unknown field `x`")
        return stage.cli.hello

    stage.cli.knows["connect"] = picky
    alice = stage.stranger()
    alice.asks("connect", token=token_of("alice"), clientInfo={"x": 1})
    assert "unknown field `x`" in (await alice.hears_error())["message"]


async def test_a_second_connect_of_the_same_identity_is_accepted(stage: Stage) -> None:
    alice = await stage.client("alice")
    stage.tokens["fresh"] = Identity("acme", "alice", expires_at=None, source="token:9")
    alice.asks("connect", token="fresh")
    assert (await alice.hears_result())["ok"] is True
    assert alice.core.identity is not None
    assert alice.core.identity.source == "token:9"


@pytest.mark.parametrize("other", ["bob", "eve"])
async def test_a_second_connect_of_another_identity_is_refused(stage: Stage, other: str) -> None:
    alice = await stage.client("alice")
    alice.asks("connect", token=token_of(other))
    assert (await alice.hears_error())["code"] == errors.AUTHENTICATION_FAILED
    assert alice.core.identity == IDENTITIES["alice"]
    alice.asks("ping")
    await alice.hears_result()


async def test_a_later_bad_connect_does_not_revoke(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.asks("connect", token="wrong")
    assert (await alice.hears_error())["code"] == errors.AUTHENTICATION_FAILED
    alice.asks("ping")
    await alice.hears_result()


async def test_an_identity_that_expires_is_cut(stage: Stage) -> None:
    stage.tokens["short"] = Identity("acme", "alice", expires_at=stage.now() + 60, source="token:8")
    alice = stage.stranger()
    alice.asks("connect", token="short")
    await alice.hears_result()
    stage.time_passes(59)
    assert not alice.core.closed
    stage.time_passes(1.1)
    assert alice.sink.closed
    assert stage.stats.clients_cut["revoked"] == 1


async def test_a_fresh_token_puts_off_the_end(stage: Stage) -> None:
    for name, seconds in (("short", 60), ("long", 600)):
        stage.tokens[name] = Identity("acme", "alice", expires_at=stage.now() + seconds)
    alice = stage.stranger()
    alice.asks("connect", token="short")
    await alice.hears_result()
    alice.asks("connect", token="long")
    await alice.hears_result()
    stage.time_passes(61)
    assert not alice.core.closed
    stage.time_passes(600)
    assert alice.sink.closed


async def test_an_expiry_years_away_is_looked_at_again(stage: Stage) -> None:
    stage.tokens["years"] = Identity("acme", "alice", expires_at=stage.now() + 3 * 86400)
    alice = stage.stranger()
    alice.asks("connect", token="years")
    await alice.hears_result()
    stage.time_passes(86401)
    stage.time_passes(86401)
    assert not alice.core.closed
    stage.time_passes(86401)
    assert alice.sink.closed


async def test_revoked_identities_are_cut_and_no_others(stage: Stage) -> None:
    alice, bob, stranger = await stage.client("alice"), await stage.client("bob"), stage.stranger()
    stage.hub.cut_identities(lambda identity: identity.source == "token:1", "revoked")
    assert alice.sink.closed
    assert not bob.sink.closed
    assert not stranger.sink.closed


async def test_links_carry_the_replicas_token_never_the_clients(stage: Stage) -> None:
    alice = await stage.client("alice", supportedTaskKinds=["client"])
    await alice.creates("s")
    line = stage.cli.line_of(alice)
    assert line.hello == {"token": "cli-0-secret", "supportedTaskKinds": ["client"]}
    assert all(token_of("alice").encode() not in one.sink.written for one in stage.cli.lines)


async def test_a_client_waits_for_the_first_replica(make_stage: MakeStage) -> None:
    stage = await make_stage()
    alice = stage.stranger()
    alice.asks("connect", token=token_of("alice"))
    await stage.settle()
    assert alice.unheard == []
    await stage.adds("cli-0")
    assert (await alice.hears_result())["version"] == "1.0.102"


async def test_without_a_replica_a_client_is_told_in_time(make_stage: MakeStage) -> None:
    stage = await make_stage(rebind_timeout=0.05)
    alice = stage.stranger()
    alice.asks("connect", token=token_of("alice"))
    error = await alice.hears_error()
    assert error["code"] == errors.REPLICA_UNAVAILABLE
    assert error["data"]["retryAfterMs"] > 0


async def test_authentications_are_audited_without_secrets(stage: Stage) -> None:
    stranger = stage.stranger()
    stranger.asks("connect", token="hunter2")
    await stranger.hears_error()
    await stage.client("alice")
    assert [fields["outcome"] for fields in stage.audited("authentication")] == ["failed", "ok"]
    assert "hunter2" not in repr(stage.audit)
    assert token_of("alice") not in repr(stage.audit)


async def test_nothing_is_said_to_who_left_during_authentication(stage: Stage) -> None:
    decided: asyncio.Future[Identity | None] = asyncio.get_running_loop().create_future()

    async def wait(token: object) -> Identity | None:
        return await decided

    stage.proof = wait
    stranger = stage.stranger()
    stranger.asks("connect", token="x")
    await stage.settle()
    stranger.leaves()
    decided.set_result(IDENTITIES["alice"])
    await stage.settle()
    assert stranger.unheard == []
    assert stage.hub.clients == set()


async def test_a_connect_in_pieces_is_a_connect(stage: Stage) -> None:
    alice = stage.stranger()
    data = frame(alice.request("connect", {"token": token_of("alice")}))
    for index in range(len(data)):
        alice.says(data[index : index + 1])
    await alice.hears_result()
