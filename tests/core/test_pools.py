"""Several hubs behind one entrance; weights and backups; providers of a whole CLI process."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from gateway import errors
from gateway.core.hub import Serves
from gateway.core.ports import Entry
from gateway.errors import RpcError
from gateway.policy.rules import MethodPolicy
from gateway.types import Identity
from tests.core.conftest import MakeStage
from tests.support.playbook import IDENTITIES, Stage, token_of

PROVIDERS = ["sessionFs.setProvider", "llmInference.setProvider", "registerExtensionLaunchProvider"]

ISOLATED = MethodPolicy(isolation="tenant")


# Homes


@pytest.fixture
async def front(make_stage: MakeStage) -> tuple[Stage, Stage]:
    """The hub where all come in, and the one where tenant ``evil`` belongs."""
    front, other = await make_stage("cli-0"), await make_stage("evil-0")
    other.hub.stats = front.hub.stats

    def home_of(identity: Identity) -> object:
        return other.hub if identity.tenant == "evil" else front.hub

    front.hub.home_of = home_of  # type: ignore[assignment]
    return front, other


async def test_a_client_moves_to_its_home_once_it_is_known(front: tuple[Stage, Stage]) -> None:
    here, there = front
    eve = here.stranger()
    assert eve.core in here.hub.clients
    eve.asks("connect", token=token_of("eve"))
    await eve.hears_result()
    assert eve.core not in here.hub.clients
    assert eve.core in there.hub.clients

    eve.asks("session.create", sessionId="s")
    (await there.cli.gets("session.create")).answers({"sessionId": "s"})
    await eve.hears_result()
    assert not here.hub.sessions
    await here.settle()
    assert here.cli.unanswered == []

    eve.leaves()
    assert not here.hub.clients
    assert not there.hub.clients
    assert here.stats.clients_open == 0


async def test_a_client_that_its_listener_knows_is_at_home_from_the_start(
    front: tuple[Stage, Stage],
) -> None:
    here, there = front
    mallory = here.stranger(entry=Entry("lab", IDENTITIES["mallory"]))
    assert mallory.core in there.hub.clients
    assert mallory.core not in here.hub.clients


async def test_no_home_is_a_refused_connect(stage: Stage) -> None:
    def full(identity: Identity) -> object:
        raise RpcError(errors.OVERLOADED, "full", {"retryAfterMs": 5000})

    stage.hub.home_of = full  # type: ignore[assignment]
    alice = stage.stranger()
    alice.asks("connect", token=token_of("alice"))
    error = await alice.hears_error()
    assert (error["code"], error["data"]) == (errors.OVERLOADED, {"retryAfterMs": 5000})
    assert alice.core in stage.hub.clients
    assert alice.core.identity is None


async def test_an_administrator_sees_only_itself_where_replicas_are_one_users(
    make_stage: MakeStage,
) -> None:
    stage = await make_stage("cli-0", options={"serves": Serves("acme", "boss")})
    await stage.recorded("of-alice", "alice", "elsewhere")
    boss = await stage.client("boss")
    boss.asks("session.resume", sessionId="of-alice")
    assert "not found" in (await boss.hears_error())["message"]


# Weights and backups


async def test_sticky_sessions_follow_weights(two: Stage) -> None:
    heavy = [
        replace(one.spec, weight=9 if one.name == "cli-0" else 1) for one in two.replicas.values()
    ]
    two.hub.set_replicas(heavy)
    chosen = Counter(two.hub.placer.choose(f"s-{n}") for n in range(400))
    assert chosen["cli-0"] > 3 * chosen["cli-1"] > 0


async def test_a_changed_weight_breaks_no_connection(two: Stage) -> None:
    lines = [line for one in two.replicas.values() for line in one.lines]
    two.hub.set_replicas([replace(one.spec, weight=3) for one in two.replicas.values()])
    assert not any(line.link.closed for line in lines)
    assert {one.weight for one in two.hub.replicas.values()} == {3}


@pytest.mark.parametrize("free", [False, True])
async def test_a_backup_takes_sessions_only_while_no_other_can(
    make_stage: MakeStage, free: bool
) -> None:
    stage = await make_stage("cli-0", "cli-1", options={"free": free})
    stage.hub.set_replicas(
        [replace(one.spec, backup=one.name == "cli-1") for one in stage.replicas.values()]
    )
    ids = [f"s-{n}" for n in range(50)]
    assert {stage.hub.placer.choose(one) for one in ids} == {"cli-0"}
    stage.hub.drain("cli-0", True)
    assert {stage.hub.placer.choose(one) for one in ids} == {"cli-1"}


async def test_a_session_leaves_a_backup_when_it_becomes_live_again(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options={"free": True})
    stage.hub.set_replicas(
        [replace(one.spec, backup=one.name == "cli-1") for one in stage.replicas.values()]
    )
    await stage.recorded("s", "alice", "cli-1")
    alice = await stage.client("alice")
    alice.asks("session.resume", sessionId="s")
    (await stage.replicas["cli-0"].gets("session.resume")).answers({"sessionId": "s"})
    await alice.hears_result()


# Providers of a whole CLI process


@pytest.mark.parametrize("method", PROVIDERS)
async def test_a_provider_is_repeated_on_links_opened_later(
    make_stage: MakeStage, method: str
) -> None:
    stage = await make_stage("cli-0", options={"policy": ISOLATED})
    alice = await stage.client("alice")
    alice.asks(method, conventions="posix")
    (await stage.cli.gets(method)).answers({"success": True})
    assert await alice.hears_result() == {"success": True}
    await alice.creates("s")

    stage.cli.knows["session.resume"] = lambda ask: {"sessionId": "s"}
    stage.cli.dies()
    await stage.cli.returns()
    asked = await stage.cli.gets(method)
    assert asked.params == {"conventions": "posix"}
    assert asked.line.link.client is alice.core
    assert "s" not in stage.cli.live, "resumed before its provider was there"
    asked.answers({"success": True})
    alice.asks("session.getMessages", sessionId="s")
    (await stage.cli.gets("session.getMessages")).answers({"events": []})
    await alice.hears_result()


async def test_a_provider_serves_all_links_that_are_open(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", "cli-1", options={"policy": ISOLATED})
    alice = await stage.client("alice")
    for number in range(20):
        await alice.creates(f"s-{number}")
    assert len(alice.core.links) == 2
    alice.asks(PROVIDERS[1])
    first = await stage.anyone_gets(PROVIDERS[1])
    first.answers({"success": True})
    await alice.hears_result()
    second = await stage.anyone_gets(PROVIDERS[1])
    assert second.line.replica is not first.line.replica
    second.answers({"success": True})


async def test_a_refused_provider_is_not_repeated(make_stage: MakeStage) -> None:
    stage = await make_stage("cli-0", options={"policy": ISOLATED})
    alice = await stage.client("alice")
    alice.asks(PROVIDERS[0])
    (await stage.cli.gets(PROVIDERS[0])).refuses("Another client is already one")
    assert "already" in (await alice.hears_error())["message"]
    stage.cli.line_of(alice).breaks()
    await alice.creates("s")
    assert stage.cli.unanswered == []


async def test_a_provider_that_a_replica_refuses_later_does_not_close_the_link(
    make_stage: MakeStage,
) -> None:
    stage = await make_stage("cli-0", options={"policy": ISOLATED})
    alice = await stage.client("alice")
    alice.asks(PROVIDERS[0])
    (await stage.cli.gets(PROVIDERS[0])).answers({"success": True})
    await alice.hears_result()
    stage.cli.line_of(alice).breaks()
    alice.asks("session.create", sessionId="s")
    (await stage.cli.gets(PROVIDERS[0])).refuses("Another client is already one")
    (await stage.cli.gets("session.create")).answers({"sessionId": "s"})
    await alice.hears_result()
