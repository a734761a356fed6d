"""Back pressure: who does not keep up slows its counterpart, and nobody else."""

from __future__ import annotations

from tests.support.playbook import Actor, Line, Stage


async def with_links(stage: Stage, name: str = "alice") -> tuple[Actor, dict[str, Line]]:
    """Return a client with a link to each replica."""
    actor = await stage.client(name)
    lines: dict[str, Line] = {}
    number = 0
    while len(lines) < len(stage.replicas):
        line = (await actor.creates(f"{name}{number}")).line
        lines[line.replica.name] = line
        number += 1
    await stage.settle()
    return actor, lines


async def test_a_client_that_does_not_keep_up_stops_its_links(two: Stage) -> None:
    alice, lines = await with_links(two)
    _, others = await with_links(two, "bob")
    alice.core.pause_writing()
    assert all(line.sink.paused for line in lines.values())
    assert not any(line.sink.paused for line in others.values())
    alice.core.resume_writing()
    assert not any(line.sink.paused for line in lines.values())


async def test_what_a_replica_says_meanwhile_comes_later_in_order(stage: Stage) -> None:
    alice, lines = await with_links(stage)
    line = lines["cli-0"]
    alice.core.pause_writing()
    heard = len(alice.heard.all)
    for number in range(5):
        line.emits("alice0", "assistant.message_delta", n=number)
    assert len(alice.heard.all) == heard
    alice.core.resume_writing()
    assert [m["params"]["event"]["data"]["n"] for m in alice.heard.all[heard:]] == [0, 1, 2, 3, 4]


async def test_a_link_opened_for_a_paused_client_is_paused_once_it_is_ready(stage: Stage) -> None:
    alice = await stage.client("alice")
    alice.core.pause_writing()
    alice.asks("session.create", sessionId="s")
    asked = await stage.cli.gets("session.create")
    assert asked.line.sink.paused
    asked.answers({"sessionId": "s"})
    await stage.settle()
    assert alice.unheard == []
    alice.core.resume_writing()
    await alice.hears_result()


async def test_a_replica_that_does_not_keep_up_stops_its_client(two: Stage) -> None:
    alice, lines = await with_links(two)
    bob, _ = await with_links(two, "bob")
    lines["cli-0"].link.pause_writing()
    assert alice.sink.paused
    assert not bob.sink.paused
    lines["cli-0"].link.resume_writing()
    assert not alice.sink.paused


async def test_a_client_goes_on_once_all_its_replicas_keep_up(two: Stage) -> None:
    alice, lines = await with_links(two)
    first, second = lines["cli-0"].link, lines["cli-1"].link
    first.pause_writing()
    second.pause_writing()
    first.resume_writing()
    assert alice.sink.paused
    second.resume_writing()
    assert not alice.sink.paused


async def test_a_slow_replica_that_dies_lets_its_client_go_on(two: Stage) -> None:
    alice, lines = await with_links(two)
    lines["cli-0"].link.pause_writing()
    lines["cli-0"].breaks()
    assert not alice.sink.paused


async def test_a_replica_may_be_slow_after_its_client_left(stage: Stage) -> None:
    alice, lines = await with_links(stage)
    link = lines["cli-0"].link
    alice.leaves()
    link.pause_writing()
    link.resume_writing()
    assert stage.hub.clients == set()


async def test_a_slow_control_link_holds_up_nobody(stage: Stage) -> None:
    alice, _ = await with_links(stage)
    control = stage.cli.lines[0].link
    control.pause_writing()
    assert not alice.sink.paused
    control.resume_writing()


async def test_a_client_cut_while_paused_is_left_alone(stage: Stage) -> None:
    alice, lines = await with_links(stage)
    alice.core.pause_writing()
    alice.core.cut("stalled", "took nothing")
    alice.core.resume_writing()
    assert lines["cli-0"].link.closed
    assert stage.stats.clients_cut["stalled"] == 1


async def test_nothing_is_written_to_a_client_that_was_cut(stage: Stage) -> None:
    alice, lines = await with_links(stage)
    alice.core.cut("revoked", "")
    written = len(alice.sink.written)
    alice.core.write(b"x")
    lines["cli-0"].link.feed(b"")
    assert len(alice.sink.written) == written


async def test_cutting_twice_counts_once(stage: Stage) -> None:
    alice, _ = await with_links(stage)
    alice.core.cut("revoked", "")
    alice.core.cut("stalled", "")
    alice.core.lost()
    assert sum(stage.stats.clients_cut.values()) == 1
    assert stage.stats.clients_open == 0
