"""A worker against the fake CLI: what it does, what it measures, and the faults it finds."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import StartupError
from gateway.io.tls import ServerTlsFiles, server_context
from gateway.loadtest import ledger
from gateway.loadtest.plan import Check, Tls
from gateway.loadtest.scenario import Answer, Range, Scenario
from gateway.loadtest.shape import steady
from gateway.loadtest.thresholds import Threshold
from tests.loadtest.conftest import Conduct
from tests.support.certificates import Authority
from tests.support.fake_cli import FakeCli
from tests.support.fake_cli.methods import METHODS, Request
from tests.support.fake_cli.server import Connection
from tests.support.fake_cli.session import Session
from tests.support.wait import eventually

BUSY = Scenario(
    mix={"turn": 3, "resume": 1, "history": 1, "ping": 1, "list": 1},
    turns=Range(2, 3),
    tool_use=0.5,
    answer=Answer(bytes=300, chunks=5),
)


async def test_every_kind_of_step_is_done_and_found_correct(
    conduct: Conduct, fake_cli: FakeCli
) -> None:
    figures = await conduct(scenario=BUSY, steps=60, connections=2, sessions=3)
    assert (figures.errors, figures.faults) == ({}, {})
    assert figures.completed.total() == 60
    assert figures.completed.keys() == {"turn", "resume", "history", "ping", "list"}
    for action in ("connect", "create", "send", "first_token", "tool", "permission", "delete"):
        assert figures.actions[action].count, action
    assert figures.actions["turn"].count == figures.completed["turn"]
    assert figures.counts["tools"] == figures.actions["tool"].count
    assert figures.counts["events"] > 60
    assert len(fake_cli.received("connect")) == 2
    assert fake_cli.storage.sessions() == []


async def test_the_session_speaks_as_an_sdk_does(conduct: Conduct, fake_cli: FakeCli) -> None:
    await conduct(scenario=Scenario(session={"model": "m"}), steps=1, connections=1)
    (create,) = fake_cli.received("session.create")
    assert create.params["provider"]["type"] == "openai"
    assert (create.params["model"], create.params["streaming"]) == ("m", True)
    (send,) = fake_cli.received("session.send")
    assert send.params["prompt"].startswith(f"{send.params['sessionId']}#1: ")
    methods = [call.method for call in fake_cli.calls]
    assert methods[0] == "connect"
    assert methods[-3:] == ["session.getMessages", "session.detach", "session.delete"]


async def test_an_open_loop_starts_steps_when_they_are_due(conduct: Conduct) -> None:
    figures = await conduct(open_loop=True, shape=steady(40, 0.5), steps=None, connections=10)
    assert figures.actions["turn"].count + figures.counts["unstarted"] == 20
    assert figures.actions["turn_service"].count == figures.actions["turn"].count
    assert (figures.errors, figures.faults) == ({}, {})


async def test_waiting_for_a_stalled_target_is_part_of_the_latency(
    conduct: Conduct, fake_cli: FakeCli
) -> None:
    # One session, ten turns due at once every 10 ms, each taking at least 100 ms.
    slow = Scenario(answer=Answer(delay=0.1), turns=Range(100, 100))
    figures = await conduct(
        open_loop=True, scenario=slow, shape=steady(100, 30), steps=6, connections=1
    )
    turn, service = figures.actions["turn"], figures.actions["turn_service"]
    assert turn.count == 6
    assert turn.high >= 6 * 100_000 - 50_000 > service.low
    assert service.low >= 100_000


async def test_steps_that_nobody_was_free_to_start_are_counted(conduct: Conduct) -> None:
    slow = Scenario(answer=Answer(delay=0.2), turns=Range(100, 100))
    figures = await conduct(
        open_loop=True, scenario=slow, shape=steady(50, 0.5), steps=None, connections=1
    )
    assert figures.counts["unstarted"] + figures.actions["turn"].count == 25
    assert figures.counts["unstarted"] > 15
    assert Threshold.parse("unstarted>0").judge(figures, 0.5).missed


async def test_a_ramp_brings_in_one_session_after_the_other(
    conduct: Conduct, fake_cli: FakeCli
) -> None:
    think = Scenario(think=Range(60, 60))
    figures = await conduct(
        scenario=think, shape=steady(4, 0.1, ramp=0.4), steps=None, connections=4
    )
    assert figures.completed["turn"] == figures.counts["sessions"] == 4
    assert len(figures.actions["turn"].dump()) > 3


async def test_a_wrong_token_is_said_at_once(conduct: Conduct) -> None:
    with pytest.raises(StartupError, match="AUTHENTICATION_FAILED") as caught:
        await conduct(token="wrong")
    assert caught.value.exit_status == 3
    assert "wrong" not in str(caught.value)


async def test_tls_is_spoken_and_certificates_are_verified(
    conduct: Conduct, fake_cli: FakeCli, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue_server()
    context = server_context(ServerTlsFiles(certificate, key))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(fake_cli), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        figures = await conduct(port=port, tls=Tls(ca=str(authority.path)), steps=2)
        assert (figures.completed["turn"], figures.faults) == (2, {})
        with pytest.raises(StartupError, match="cannot connect to") as caught:
            await conduct(port=port, tls=Tls())
        assert "certificate" in str(caught.value).lower()


async def test_failed_turns_are_errors_with_their_cause(conduct: Conduct) -> None:
    failing = Scenario(prompts=("[[error 503]]",))
    figures = await conduct(scenario=failing, steps=2)
    assert figures.errors == {"turn: session.error query 503": 2}
    assert figures.faults == {}
    assert not figures.completed


async def test_a_turn_that_never_goes_idle_is_a_fault(conduct: Conduct) -> None:
    stuck = Scenario(prompts=("[[gate nobody-opens]]",))
    figures = await conduct(scenario=stuck, steps=1, connections=1, turn_timeout=0.2)
    assert figures.faults == {ledger.STUCK_TURN: 1}
    assert figures.errors == {"turn: timed out": 1}


async def test_permissions_for_other_tools_are_not_given(
    conduct: Conduct, fake_cli: FakeCli
) -> None:
    shell = Scenario(prompts=('[[tool bash {"command": "true"}]]',))
    await conduct(scenario=shell, steps=1, connections=1)
    (answer,) = fake_cli.received("session.permissions.handlePendingPermissionRequest")
    assert answer.params["result"] == {"kind": "reject"}
    await conduct(
        scenario=Scenario(prompts=shell.prompts, permissions="all"), steps=1, connections=1
    )
    answer = fake_cli.received("session.permissions.handlePendingPermissionRequest")[-1]
    assert answer.params["result"] == {"kind": "approve-once"}


async def test_sessions_detached_from_are_deleted_at_the_end_or_kept(
    conduct: Conduct, fake_cli: FakeCli
) -> None:
    leaving = Scenario(turns=Range(1, 1), end="detach")
    await conduct(scenario=leaving, steps=3, connections=1)
    assert fake_cli.storage.sessions() == []
    await conduct(scenario=leaving, steps=3, connections=1, keep_sessions=True)
    assert len(fake_cli.storage.sessions()) == 3


async def test_after_a_crash_users_reconnect_and_resume(
    conduct: Conduct, fake_cli: FakeCli
) -> None:
    patient = Scenario(prompts=("[[delay 0.05]]",), turns=Range(50, 50))
    running = asyncio.create_task(conduct(scenario=patient, steps=20, connections=2))
    await eventually(lambda: len(fake_cli.received("session.send")) >= 6)
    for session in list(fake_cli.sessions.values()):
        session.flush()
    await fake_cli.kill()
    await fake_cli.start()
    figures = await running
    assert figures.counts["reconnects"] == 2
    assert figures.errors["turn: connection lost"] >= 1
    assert figures.actions["resume"].count >= 1
    assert figures.completed["turn"] >= 8
    assert not {ledger.FORK, ledger.LOST_PROMPT, ledger.REORDERED_PROMPT} & figures.faults.keys()


# -- faults put into the target ------------------------------------------------------------------


class Tamper:
    """Changes what the fake CLI sends: one event of a type, of one session."""

    def __init__(self, patch: pytest.MonkeyPatch, kind: str, how: str) -> None:
        self._kind = kind
        self._how = how
        self._done = False
        self._held: dict[str, Any] | None = None
        self._send = Connection.notify

        def notify(connection: Connection, method: str, params: dict[str, Any]) -> None:
            self.notify(connection, method, params)

        patch.setattr(Connection, "notify", notify)

    def notify(self, connection: Connection, method: str, params: dict[str, Any]) -> None:
        """Send a notification, or do to it what is to be done."""
        if self._held is not None and method == "session.event":
            held, self._held = self._held, None
            self._send(connection, method, params)
            self._send(connection, method, held)
            return
        if self._done or params.get("event", {}).get("type") != self._kind:
            self._send(connection, method, params)
            return
        self._done = True
        match self._how:
            case "duplicate":
                self._send(connection, method, params)
                self._send(connection, method, params)
            case "delay":
                self._held = params
            case "misdirect":
                self._send(connection, method, {**params, "sessionId": "somebody-elses"})
                self._send(connection, method, params)


@pytest.mark.parametrize(
    ("kind", "how", "fault"),
    [
        ("assistant.message", "drop", ledger.INCOMPLETE_TURN),
        ("assistant.turn_end", "drop", ledger.LOST_EVENT),
        ("user.message", "drop", ledger.LOST_EVENT),
        ("assistant.message_delta", "drop", ledger.GARBLED_STREAM),
        ("assistant.message_delta", "duplicate", ledger.DUPLICATED_EVENT),
        ("assistant.turn_start", "duplicate", ledger.DUPLICATED_EVENT),
        ("assistant.message", "delay", ledger.REORDERED_EVENT),
        ("assistant.message_delta", "misdirect", ledger.FOREIGN_EVENT),
    ],
)
async def test_a_fault_in_the_stream_is_found(
    conduct: Conduct, monkeypatch: pytest.MonkeyPatch, kind: str, how: str, fault: str
) -> None:
    Tamper(monkeypatch, kind, how)
    figures = await conduct(steps=4)
    assert fault in figures.faults, figures.faults
    assert any(example.startswith(fault) for example in figures.examples)


async def test_a_model_that_forgets_is_found(
    conduct: Conduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Session._conversation

    def forgetful(session: Session) -> list[dict[str, Any]]:
        return whole(session)[-1:]

    monkeypatch.setattr(Session, "_conversation", forgetful)
    figures = await conduct(steps=6, connections=1)
    assert figures.faults[ledger.FORK] == 4  # five turns and one; all but the first of each


@pytest.mark.parametrize("repeated", [True, False])
async def test_a_history_that_misses_or_repeats_a_prompt_is_found(
    conduct: Conduct, monkeypatch: pytest.MonkeyPatch, repeated: bool
) -> None:
    async def forked(request: Request) -> Any:
        events = request.session.history
        first = next(event for event in events if event["type"] == "user.message")
        if repeated:
            return {"events": [*events, {**first, "id": "again"}]}
        return {"events": [event for event in events if event is not first]}

    monkeypatch.setitem(METHODS, "session.getMessages", forked)
    figures = await conduct(steps=4, connections=1)
    assert figures.faults[ledger.FORK] == 1


async def test_a_session_that_is_gone_is_found(conduct: Conduct, fake_cli: FakeCli) -> None:
    async def lose_sessions() -> None:
        await eventually(lambda: len(fake_cli.received("session.send")) >= 4)
        for session in list(fake_cli.sessions.values()):
            await session.wait_idle()
            session.shutdown(silent=True)
            fake_cli.storage.delete(session.session_id)

    slow = Scenario(think=Range(0.05, 0.05), turns=Range(50, 50))
    losing = asyncio.create_task(lose_sessions())
    figures = await conduct(scenario=slow, steps=12, connections=2)
    await losing
    assert figures.faults[ledger.LOST_SESSION] == 2


async def test_nothing_is_checked_where_that_is_wished(
    conduct: Conduct, monkeypatch: pytest.MonkeyPatch, fake_cli: FakeCli
) -> None:
    Tamper(monkeypatch, "assistant.message_delta", "duplicate")
    figures = await conduct(steps=4, check=Check.OFF)
    assert figures.faults == {}
    assert figures.completed["turn"] == 4
    assert fake_cli.received("session.getMessages") == []


async def test_without_the_history_a_lost_answer_is_still_found(
    conduct: Conduct, monkeypatch: pytest.MonkeyPatch, fake_cli: FakeCli
) -> None:
    Tamper(monkeypatch, "assistant.message", "drop")
    figures = await conduct(steps=4, check=Check.EVENTS)
    assert figures.faults == {ledger.INCOMPLETE_TURN: 1}
    assert fake_cli.received("session.getMessages") == []
