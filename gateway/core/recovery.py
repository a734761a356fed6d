"""Carrying on a cut turn on the replica where its session lives now.

What to do is decided in :mod:`gateway.core.failover`; here it is done, over a binding's new link:
the history is read, pending requests are answered or announced, the model is asked again, prompts
that were never stored are sent again.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gateway import errors
from gateway.core import answers, failover
from gateway.core.failover import Event
from gateway.core.link import Link
from gateway.core.turn import Prompt
from gateway.errors import RpcError
from gateway.wire import envelope

if TYPE_CHECKING:
    from gateway.core.hub import Hub
    from gateway.core.session import Binding, Session

INTERRUPTED = "The replica died during this turn, and the turn could not be finished"


async def finish_turn(hub: Hub, binding: Binding, session: Session, link: Link) -> None:
    """Carry on the turn that was cut, if one was, after ``binding`` is attached again.

    Raises:
        LinkLostError: the replica died again: to be repeated.
        TimeoutError: it does not answer: likewise.
    """
    turn = session.turn
    if not (turn.busy or turn.prompts):
        return
    if not hub.recovers_turns:
        give_up(hub, session)
        return
    try:
        await _carry_on(hub, binding, session, link)
    except RpcError as error:
        # A CLI that lacks the means (before 1.0.102), or a session that cannot be worked on.
        hub.log.warning(
            "turn could not be finished",
            extra={"session": session.id, "code": error.code, "reason": error.message},
        )
        give_up(hub, session)


async def _carry_on(hub: Hub, binding: Binding, session: Session, link: Link) -> None:
    turn = session.turn
    ask = hub.limits.rebind_timeout
    named = {"sessionId": session.id}
    state = await link.request("session.metadata.isProcessing", named, ask)
    processing = bool(type(state) is dict and state.get("processing"))
    said = await link.request("session.getMessages", named, ask)
    history = said.get("events") if type(said) is dict else None
    plan = failover.plan(turn, history if type(history) is list else [], processing=processing)
    for prompt, event in plan.recorded:
        message_id = event["data"]["messageId"]
        if not prompt.answered:
            prompt.sender.client.respond(prompt.request, {"messageId": message_id})
        turn.accepted(prompt, message_id)
        if not prompt.seen:
            prompt.seen = True
            tell(session, event)
    if processing:
        await _restore_pending(binding, session, link, ask)
    elif plan.rerun:
        await link.request("session.sendMessages", {**named, "messages": []}, ask)
    elif plan.missed is not None:
        tell(session, plan.missed)
    for prompt in plan.missing:
        await _send_again(session, prompt, link, ask)
    hub.log.info(
        "turn carried on",
        extra={
            "session": session.id,
            "replica": link.replica.name,
            "processing": processing,
            "rerun": plan.rerun,
            "sent_again": len(plan.missing),
        },
    )
    if plan.complete and not plan.missing:
        data = {"aborted": True} if turn.aborting else {}
        turn.ended()
        tell(session, _event("session.idle", data))


async def revive_turn(hub: Hub, binding: Binding, session: Session, link: Link) -> None:
    """Carry on a turn that was cut with another gateway or an earlier client, if there was one.

    Raises:
        LinkLostError: the replica died.
        TimeoutError: it does not answer.
        RpcError: it lacks the means.
    """
    turn = session.turn
    ask = hub.limits.rebind_timeout
    named = {"sessionId": session.id}
    state = await link.request("session.metadata.isProcessing", named, ask)
    if type(state) is dict and state.get("processing"):
        turn.busy = True
        # Whoever was shown the pending requests is not this client.
        turn.asked.clear()
        await _restore_pending(binding, session, link, ask)
        return
    said = await link.request("session.getMessages", named, ask)
    history = said.get("events") if type(said) is dict else None
    if failover.is_cut(history if type(history) is list else []):
        turn.busy = True
        await link.request("session.sendMessages", {**named, "messages": []}, ask)
        hub.log.info(
            "cut turn taken up", extra={"session": session.id, "replica": link.replica.name}
        )


async def _restore_pending(binding: Binding, session: Session, link: Link, patience: float) -> None:
    """Answer and announce the permissions and tool calls that the resume restored."""
    named = {"sessionId": session.id}
    permissions = await link.request("session.permissions.pendingRequests", named, patience)
    tools = await link.request("session.tools.listPendingRequests", named, patience)
    events, lost = failover.pending_events(session.id, permissions, tools, session.turn)
    for method, params in lost:
        await link.request(method, params, patience)
    for event in events:
        session.turn.asked.add(str(event["data"].get("requestId")))
        binding.tell(_event(event["type"], event["data"]))


async def _send_again(session: Session, prompt: Prompt, link: Link, patience: float) -> None:
    """Send a prompt that never reached the journal; its sender may have its answer already."""
    turn = session.turn
    if not prompt.repeatable:
        raise RpcError(errors.TURN_INTERRUPTED, INTERRUPTED)
    if not prompt.answered and not prompt.sender.client.closed:
        # Sent anew as the client's own request, the CLI's answer reaches it by itself.
        turn.prompts.remove(prompt)
        prompt.sender.client.forward(link, prompt.sender, prompt.request)
        return
    told = prompt.message_id
    # Last, so that a queue of prompts is worked off in the order they were given in.
    turn.prompts.remove(prompt)
    turn.prompts.append(prompt)
    params = {key: value for key, value in prompt.request.params.items() if key != "wait"}

    def accepted(result: Any) -> None:
        message_id = result.get("messageId") if type(result) is dict else None
        if type(message_id) is str and told is not None:
            # SDKs wait for the events of the id that they were told.
            for binding in session.bindings:
                if binding.link is not None:
                    binding.link.alias_message(message_id, told)

    turn.busy = True
    await link.request(prompt.request.method, params, patience, accepted)


def give_up(hub: Hub, session: Session) -> None:
    """End a cut turn for everybody: nothing hangs, and nothing is said that is not known."""
    turn = session.turn
    if not (turn.busy or turn.prompts):
        return
    for prompt in turn.prompts:
        if not prompt.answered:
            recorded = True if prompt.seen else None
            prompt.answered = True
            prompt.sender.client.refuse(
                prompt.request, answers.turn_interrupted(session.id, recorded)
            )
    turn.ended()
    hub.stats.sessions_failed += 1
    tell(session, _event("session.error", {"errorType": "gateway", "message": INTERRUPTED}))
    tell(session, _event("session.idle", {}))


def tell(session: Session, event: Event) -> None:
    """Send an event to every client of this worker that is attached to the session."""
    for binding in session.bindings:
        if binding.attached:
            binding.tell(event)


def event_frame(session_id: str, event: Event) -> bytes:
    """Return a ``session.event`` notification."""
    return envelope.notification_frame("session.event", {"sessionId": session_id, "event": event})


def _event(name: str, data: dict[str, Any]) -> Event:
    """Return an event of the gateway's own; it is in no journal."""
    return {
        "type": name,
        "data": data,
        "ephemeral": True,
        "id": str(uuid.uuid4()),
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
        "parentId": None,
    }
