"""Reading, driving, stealing and noticing the sessions of another tenant."""

from __future__ import annotations

from typing import Any

import pytest

from gateway import errors
from tests.attack.conftest import ATTACKERS, COLD, LIVE, SECRET, UNKNOWN, Attack, anonymous
from tests.support.rpc import frame
from tests.support.sessions import decide_permission, lifecycle, send

pytestmark = pytest.mark.asyncio(loop_scope="module")


def refused(answer: Any) -> bool:
    return "error" in answer or answer["result"] in ({}, {"success": False})


@pytest.mark.parametrize("session_id", [LIVE, COLD])
@pytest.mark.parametrize("method", ["session.getMessages", "session.eventLog.read"])
async def test_reading_the_transcript(attack: Attack, method: str, session_id: str) -> None:
    answer = await attack.answer(method, {"sessionId": session_id})
    assert refused(answer)
    assert SECRET not in repr(answer)


async def test_prompting(attack: Attack) -> None:
    assert refused(await attack.answer("session.send", {"sessionId": LIVE, "prompt": "mine now"}))


async def test_prompting_by_notification(attack: Attack) -> None:
    attack.mallory.notify("session.send", {"sessionId": LIVE, "prompt": "mine now"})
    await attack.mallory.request("ping")


async def test_prompting_with_messages(attack: Attack) -> None:
    params = {"sessionId": LIVE, "messages": [{"prompt": "mine now"}]}
    assert refused(await attack.answer("session.sendMessages", params))


async def test_running_a_shell(attack: Attack) -> None:
    params = {"sessionId": LIVE, "command": "touch /tmp/owned"}
    assert refused(await attack.answer("session.shell.exec", params))


@pytest.mark.parametrize("session_id", [LIVE, COLD])
async def test_resuming(attack: Attack, session_id: str) -> None:
    answer = await attack.answer("session.resume", attack.field.params(session_id))
    unknown = await attack.answer("session.resume", attack.field.params(UNKNOWN))
    assert refused(answer)
    assert anonymous(answer, session_id) == anonymous(unknown, UNKNOWN)


@pytest.mark.parametrize("session_id", [LIVE, COLD])
async def test_creating_over(attack: Attack, session_id: str) -> None:
    answer = await attack.answer("session.create", attack.field.params(session_id))
    assert answer["error"]["code"] == errors.INTERNAL_ERROR
    assert await attack.field.victim.request("session.getMetadata", {"sessionId": session_id}) != {}


@pytest.mark.parametrize("method", ["session.delete", "sessions.delete", "sessions.bulkDelete"])
async def test_deleting(attack: Attack, method: str) -> None:
    params = {"sessionId": COLD, "sessionIds": [COLD]}
    answer = await attack.answer(method, params)
    unknown = await attack.answer(method, {"sessionId": UNKNOWN, "sessionIds": [UNKNOWN]})
    assert anonymous(answer, COLD) == anonymous(unknown, UNKNOWN)
    listed = await attack.field.victim.request("session.list")
    assert COLD in [one["sessionId"] for one in listed["sessions"]]


async def test_forking(attack: Attack) -> None:
    assert refused(await attack.answer("sessions.fork", {"sessionId": LIVE}))


@pytest.mark.parametrize("method", ["session.abort", "session.destroy", "session.shutdown"])
async def test_stopping(attack: Attack, method: str) -> None:
    await attack.answer(method, {"sessionId": LIVE})
    answer = await attack.field.victim.request("session.metadata.isProcessing", {"sessionId": LIVE})
    assert answer == {"processing": False}


async def test_closing(attack: Attack) -> None:
    await attack.answer("sessions.close", {"sessionId": LIVE})
    await attack.field.victim.request("session.metadata.isProcessing", {"sessionId": LIVE})


@pytest.mark.parametrize(
    "method",
    [
        "session.list",
        "sessions.list",
        "session.getLastId",
        "session.getForeground",
        "sessions.getSizes",
        "sessions.listNonEmptySessionIds",
        "sessions.findByPrefix",
        "sessions.findByTaskId",
        "sessions.getLastForContext",
    ],
)
async def test_listing_and_guessing(attack: Attack, method: str) -> None:
    for name in ATTACKERS:
        async with await attack.field.client(name) as client:
            params = {"prefix": LIVE[:8], "taskId": "1", "context": {"cwd": "/"}, "limit": 1000}
            answer = await attack.answer(method, params, client)
            assert LIVE not in repr(answer)
            assert COLD not in repr(answer)
            assert SECRET not in repr(answer)


@pytest.mark.parametrize(
    "method",
    [
        "sessions.checkInUse",
        "sessions.getClientMetadata",
        "sessions.enrichMetadata",
        "sessions.getMetadata",
        "session.getMetadata",
    ],
)
async def test_asking_about(attack: Attack, method: str) -> None:
    def about(session_id: str) -> dict[str, Any]:
        return {
            "sessionId": session_id,
            "sessionIds": [session_id],
            "sessions": [{"sessionId": session_id}],
        }

    for session_id in (LIVE, COLD):
        answer = await attack.answer(method, about(session_id))
        unknown = await attack.answer(method, about(UNKNOWN))
        assert anonymous(answer, session_id) == anonymous(unknown, UNKNOWN)


async def test_setting_the_foreground(attack: Attack) -> None:
    answer = await attack.answer("session.setForeground", {"sessionId": LIVE})
    unknown = await attack.answer("session.setForeground", {"sessionId": UNKNOWN})
    assert anonymous(answer, LIVE) == anonymous(unknown, UNKNOWN)


async def test_pruning_all_but_the_own(attack: Attack) -> None:
    await attack.answer("sessions.pruneOld", {"olderThanDays": 0, "excludeSessionIds": []})
    listed = await attack.field.victim.request("session.list")
    assert {LIVE, COLD} <= {one["sessionId"] for one in listed["sessions"]}


async def test_moving_it_into_an_own_session(attack: Attack) -> None:
    async with await attack.field.client("user") as client:
        await client.request("session.create", attack.field.params("mallorys-own"))
        for name in ("inheritPlanBaseFromSessionId", "toSessionId", "expectedSessionId"):
            params = {"sessionId": "mallorys-own", name: LIVE, "mode": "plan"}
            answer = await attack.answer("session.mode.set", params, client)
            assert SECRET not in repr(answer)
        await client.request("session.delete", {"sessionId": "mallorys-own"})


async def test_noticing_by_lifecycle(attack: Attack) -> None:
    victim = attack.field.victim
    await victim.request("session.create", attack.field.params("another-of-the-victim"))
    await victim.request("session.resume", {"sessionId": LIVE, "disableResume": False})
    await victim.request("sessions.close", {"sessionId": "another-of-the-victim"})
    await victim.request("ping")
    await attack.mallory.request("ping")
    assert lifecycle(attack.mallory, LIVE) == []
    assert lifecycle(attack.mallory, "another-of-the-victim") == []


async def test_noticing_by_the_kind_of_the_answer(attack: Attack) -> None:
    """Valid, invalid and overlong ids, live or not: only what is said about the id itself."""
    for method in ("session.send", "session.resume", "session.getMessages", "session.detach"):
        answers = {
            anonymous(await attack.answer(method, {"sessionId": s, "prompt": "x"}), s)
            for s in (LIVE, COLD, UNKNOWN)
        }
        assert len(answers) == 1


async def test_answering_a_pending_permission(attack: Attack) -> None:
    victim = attack.field.victim
    transcript = await attack.field.transcript()
    await send(victim, LIVE, "[[tool victims_tool {}]] go")
    asked = await victim.wait_event(LIVE, "permission.requested")
    request_id = asked["data"]["requestId"]
    params = {"sessionId": LIVE, "requestId": request_id, "result": {"kind": "approve-once"}}
    method = "session.permissions.handlePendingPermissionRequest"
    assert refused(await attack.answer(method, params))
    pending = await attack.answer("session.permissions.pendingRequests", {"sessionId": LIVE})
    assert request_id not in repr(pending)
    # Still pending: the victim may decide.
    assert await decide_permission(victim, LIVE, request_id) is True
    call = await victim.wait_event(LIVE, "external_tool.requested")
    forged = {
        "sessionId": LIVE,
        "requestId": call["data"]["requestId"],
        "result": {"textResultForLlm": "forged", "resultType": "success"},
    }
    assert refused(await attack.answer("session.tools.handlePendingToolCall", forged))
    await victim.request("session.abort", {"sessionId": LIVE})
    await victim.wait_event(LIVE, "session.idle")
    assert "forged" not in repr(await attack.field.transcript())
    assert len(await attack.field.transcript()) > len(transcript)
    await attack.victim_acted()


async def test_cancelling_by_a_guessed_id(attack: Attack) -> None:
    victim = attack.field.victim
    waiting = victim.post("ping", {"message": "x"}, id="guessable")
    attack.mallory.notify("$/cancelRequest", {"id": "guessable"})
    assert "pong" in (await waiting)["message"]


async def test_forging_replies(attack: Attack) -> None:
    for request_id in range(1, 20):
        attack.mallory.send_raw(
            frame({"jsonrpc": "2.0", "id": request_id, "result": {"answer": "forged"}})
        )
    await attack.mallory.request("ping")
    assert attack.mallory.strays.all == []
