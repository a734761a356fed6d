"""Carrying on a cut turn on the replica where its session lives now.

What to do is decided in :mod:`gateway.core.failover`; here it is done, over a binding's new link:
the history is read, pending requests are answered or announced, the model is asked again, prompts
that were never stored are sent again.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gateway import errors
from gateway.core import answers, failover, recipe
from gateway.core.failover import Event
from gateway.core.link import Link, LinkLostError
from gateway.core.turn import Prompt
from gateway.errors import RpcError
from gateway.wire import envelope

if TYPE_CHECKING:
    from gateway.core.binding import Binding
    from gateway.core.hub import Hub
    from gateway.core.session import Session

INTERRUPTED = "The replica died during this turn, and the turn could not be finished"


_NOT_FOUND = "Session not found"
"""What a CLI says of a session that is not live."""

OTHERS_PATIENCE = 2.0
"""Seconds that a gateway waits for another one to carry on a turn that is rather the other's."""

_QUIET, _QUIET_POLL, _QUIET_MAX = 0.25, 0.05, 3.0
"""Seconds for which a journal must not have been written to, of the pause between two looks, and
for which that is waited for at most. A CLI writes its journal within 100 ms."""

_OTHERS_POLL = 0.05
"""Seconds between two looks at whether it has."""

_LOOK_EVERY = 1.0
"""Seconds between two looks at whether a turn that was carried on is at work."""

_STALLED_LOOKS = 2
"""Looks in a row at which it was not, after which it is carried on once more."""

_MAX_ATTEMPTS = 5
"""Times that is done before the turn is given up."""


async def journal_settled(hub: Hub, session_id: str, link: Link) -> None:
    """Wait until a replica that was lost in the middle of a turn writes no more.

    One that ends in good order closes its connections first, and then writes what is left: a
    history read in between would lack it, and the turn would be done twice.

    Args:
        hub: the worker's hub.
        session_id: the session.
        link: to another replica on the same storage.

    Raises:
        LinkLostError: that one died too.
        TimeoutError: it does not answer.
    """
    started = quiet_since = hub.now()
    seen: Any = None
    while hub.now() < min(quiet_since + _QUIET, started + _QUIET_MAX):
        try:
            found = await link.request(
                "sessions.getMetadata", {"sessionId": session_id}, hub.limits.ask_timeout
            )
        except RpcError:
            return
        entry = found.get("session") if type(found) is dict else None
        modified = entry.get("modifiedTime") if type(entry) is dict else None
        if modified != seen:
            seen, quiet_since = modified, hub.now()
        await asyncio.sleep(_QUIET_POLL)


async def finish_turn(hub: Hub, binding: Binding, session: Session, link: Link) -> None:
    """Carry on the turn that was cut, if one was, after ``binding`` is attached again.

    Of several clients that come back the first does it for all.

    Raises:
        LinkLostError: the replica died again: to be repeated.
        TimeoutError: it does not answer: likewise.
    """
    async with session.recovering:
        if not (session.turn.cut or binding.cut):
            return
        for stored_as, told in session.turn.aliases.items():
            link.alias_message(stored_as, told)
        if session.turn.cut and not hub.recovers_turns:
            give_up(hub, session)
            return
        try:
            if session.turn.cut:
                await _carry_on(hub, binding, session, link)
                session.turn.cut = False
            else:
                await _catch_up(hub, binding, session, link)
        except RpcError as error:
            if _NOT_FOUND in error.message:
                raise LinkLostError("the CLI has ended the session again") from None
            # A CLI that lacks the means (before 1.0.102), or a session that cannot be worked on.
            hub.log.warning(
                "turn could not be finished",
                extra={"session": session.id, "code": error.code, "reason": error.message},
            )
            give_up(hub, session)
        binding.cut = False
    see_through(hub, session)


def see_through(hub: Hub, session: Session) -> None:
    """Have a turn that was carried on looked after until it ends.

    What carried it on may die as well, unseen: a CLI ends a session with its last connection, and
    one that comes just then finds it at work for a moment more.
    """
    if session.turn.runs and not session.watched:
        session.watched = True
        hub.tasks.spawn(_see_through(hub, session), f"turn of {session.id}")


async def _see_through(hub: Hub, session: Session) -> None:
    attempts = stalled = 0
    try:
        while session.turn.runs and session.live:
            await asyncio.sleep(_LOOK_EVERY)
            if await _works(hub, session):
                stalled = 0
                continue
            stalled += 1
            if stalled < _STALLED_LOOKS:
                continue
            stalled = 0
            attempts += 1
            hub.log.warning(
                "turn stalled after it was carried on",
                extra={"session": session.id, "attempt": attempts},
            )
            if attempts > _MAX_ATTEMPTS:
                give_up(hub, session)
                return
            for binding in list(session.bindings):
                if not binding.client.closed:
                    binding.move_away()
    finally:
        session.watched = False


async def _works(hub: Hub, session: Session) -> bool:
    """Whether something is at work on a turn, or about to be, or cannot be asked just now."""
    turn = session.turn
    binding = next((one for one in session.bindings if one.open and not one.client.closed), None)
    if binding is None or binding.link is None or not all(one.acknowledged for one in turn.prompts):
        return True
    try:
        return await _processing(hub, session, binding.link) or not turn.runs
    except (LinkLostError, TimeoutError):
        return True
    except RpcError:
        return False  # It does not know the session any more.


async def _catch_up(hub: Hub, binding: Binding, session: Session, link: Link) -> None:
    """Tell a client what it missed of a turn that went on without it, for others."""
    turn = session.turn
    lost = [one for one in turn.prompts if one.sender is binding and not one.acknowledged]
    if turn.busy and not lost:
        return  # Its end is still to come.
    try:
        history = await _history(hub, session, link)
    except RpcError:
        history = []
    messages = failover.user_messages(history)
    for prompt in lost:
        if prompt.seen or prompt.message_id in messages:
            _accept(hub, session, prompt, prompt.message_id, link)
        else:
            # It may still be in the CLI's queue, which cannot be looked into.
            turn.refused(prompt)
            prompt.sender.client.refuse(prompt.request, answers.turn_interrupted(session.id, None))
    if not turn.busy:
        missed = failover.last_word(history, binding.last_message)
        if missed is not None:
            binding.tell(missed)
        binding.tell(_event("session.idle", {}))


async def _history(hub: Hub, session: Session, link: Link) -> list[Event]:
    said = await link.request(
        "session.getMessages", {"sessionId": session.id}, hub.limits.rebind_timeout
    )
    history = said.get("events") if type(said) is dict else None
    return history if type(history) is list else []


async def _processing(
    hub: Hub, session: Session, link: Link, found: Callable[[], None] | None = None
) -> bool:
    """Ask whether a session is at work.

    Args:
        hub: the worker's hub.
        session: the session.
        link: where to ask.
        found: called if it is, before what follows the answer is looked at: that may be the end.
    """
    processing = False

    def answered(state: Any) -> None:
        nonlocal processing
        processing = bool(type(state) is dict and state.get("processing"))
        if processing and found is not None:
            found()

    await link.request(
        "session.metadata.isProcessing",
        {"sessionId": session.id},
        hub.limits.rebind_timeout,
        answered,
    )
    return processing


async def _rerun(hub: Hub, session: Session, link: Link, *, first: bool) -> bool:
    """Have the model asked again for the answer to the last prompt; False if others did.

    The CLI would answer twice if two gateways asked, and nothing there tells them apart.

    Args:
        hub: the worker's hub.
        session: the session; not at work a moment ago.
        link: where to ask.
        first: this gateway is the one to ask; any other does if nobody has for a while.
    """
    give_up_at = hub.now() + OTHERS_PATIENCE
    while not first:
        await asyncio.sleep(_OTHERS_POLL)
        if not session.turn.busy or await _processing(hub, session, link):
            return False
        if hub.now() >= give_up_at:
            break
    if not first and not failover.is_cut(await _history(hub, session, link)):
        return False
    named = {"sessionId": session.id}
    session.turn.resuming = True
    await link.request("session.sendMessages", {**named, "messages": []}, hub.limits.rebind_timeout)
    return True


async def _carry_on(hub: Hub, binding: Binding, session: Session, link: Link) -> None:
    turn = session.turn
    ask = hub.limits.rebind_timeout
    processing = await _processing(hub, session, link)
    plan = failover.plan(turn, await _history(hub, session, link), processing=processing)
    for prompt in plan.missing:
        prompt.missing = True
    for prompt, event in plan.recorded:
        prompt.missing = False
        _accept(hub, session, prompt, event["data"]["messageId"], link)
        if not prompt.seen:
            prompt.seen = True
            data = {**event["data"], "messageId": prompt.message_id}
            tell(session, {**event, "data": data})
    if plan.rerun or plan.missing:
        await _all_bound(hub, session)
    if processing:
        await _restore_pending(binding, session, link, ask)
    elif plan.rerun:
        await _rerun(hub, session, link, first=plan.own)
    elif plan.missed is not None:
        tell(session, plan.missed)
    for prompt in plan.missing:
        await _send_again(hub, binding, session, prompt, link)
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
        turn.idle()
        tell(session, _event("session.idle", data))


async def _all_bound(hub: Hub, session: Session) -> None:
    """Wait for the clients here that lost the session too, so that all hear what is said next."""
    give_up_at = hub.now() + OTHERS_PATIENCE
    while hub.now() < give_up_at and not all(
        one.bound for one in session.bindings if one.attached and not one.client.closed
    ):
        await asyncio.sleep(_OTHERS_POLL)


async def revive_turn(hub: Hub, binding: Binding, session: Session, link: Link) -> None:
    """Carry on a turn that was cut with another gateway or an earlier client, if there was one.

    Raises:
        LinkLostError: the replica died.
        TimeoutError: it does not answer.
        RpcError: it lacks the means.
    """
    turn = session.turn
    async with session.recovering:
        if await _processing(hub, session, link, turn.found):
            await _restore_pending(binding, session, link, hub.limits.rebind_timeout)
        elif failover.is_cut(await _history(hub, session, link)):
            turn.busy = True
            if await _rerun(hub, session, link, first=await hub.placer.leads(session.id)):
                hub.log.info(
                    "cut turn taken up",
                    extra={"session": session.id, "replica": link.replica.name},
                )
    see_through(hub, session)


async def show_pending(hub: Hub, binding: Binding, session: Session, link: Link) -> None:
    """Tell a client that joins a running turn what is open; some of it may wait for this client.

    Its own earlier connection was told, and has gone while others stayed. Tools are told of to the
    one connection that has registered them, so that none runs twice.

    Raises:
        LinkLostError: the replica died.
        TimeoutError: it does not answer.
        RpcError: it lacks the means.
    """
    named, patience = {"sessionId": session.id}, hub.limits.ask_timeout
    permissions = await link.request("session.permissions.pendingRequests", named, patience)
    tools = await link.request("session.tools.listPendingRequests", named, patience)
    own = recipe.tool_names(binding.recipe) if binding.recipe is not None else frozenset()
    for event in failover.open_requests(session.id, permissions, tools, session.turn):
        name = event["data"].get("toolName")
        if event["type"] == "permission.requested" or name in own:
            _show(session, binding, event)


async def _restore_pending(binding: Binding, session: Session, link: Link, patience: float) -> None:
    """Answer and announce the permissions and tool calls that the resume restored."""
    named = {"sessionId": session.id}
    permissions = await link.request("session.permissions.pendingRequests", named, patience)
    tools = await link.request("session.tools.listPendingRequests", named, patience)
    # A client that comes back may have been shown some on its new link already.
    shown = {
        request_id
        for request_id, told in session.turn.asked.items()
        if not all(one.client.closed for one in told)
    }
    events, lost = failover.pending_events(session.id, permissions, tools, session.turn, shown)
    for method, params in lost:
        await link.request(method, params, patience)
    for event in events:
        _show(session, binding, event)


def _show(session: Session, binding: Binding, event: Event) -> None:
    """Tell a client of a permission or tool request that waits for it, unless it knows."""
    request_id = str(event["data"].get("requestId"))
    if binding not in session.turn.asked.get(request_id, ()):
        session.turn.shown(request_id, binding)
        binding.tell(_event(event["type"], event["data"]))


def _accept(hub: Hub, session: Session, prompt: Prompt, message_id: str | None, link: Link) -> None:
    """Note that the CLI has a prompt, and answer its sender if the CLI's answer was lost."""
    owed = not prompt.acknowledged
    session.turn.accepted(prompt, message_id)
    if not owed:
        return
    result = {"messageId": prompt.message_id}
    if hub.durable:
        answer = envelope.result_frame(prompt.request.id, result)
        prompt.sender.acknowledge_stored(session, prompt, link, answer)
        return
    session.turn.acknowledged(prompt)
    prompt.sender.client.respond(prompt.request, result)


async def _send_again(
    hub: Hub, binding: Binding, session: Session, prompt: Prompt, link: Link
) -> None:
    """Send a prompt that never reached the journal; its sender may have its answer already."""
    turn = session.turn
    if not prompt.repeatable:
        raise RpcError(errors.TURN_INTERRUPTED, INTERRUPTED)
    if not prompt.acknowledged and prompt.sender is binding:
        # Sent anew as the client's own request, the CLI's answer reaches it by itself.
        turn.prompts.remove(prompt)
        prompt.sender.client.forward(link, prompt.sender, prompt.request)
        return
    told = prompt.message_id if prompt.acknowledged else None
    # Last, so that a queue of prompts is worked off in the order they were given in.
    turn.prompts.remove(prompt)
    turn.prompts.append(prompt)
    params = {key: value for key, value in prompt.request.params.items() if key != "wait"}

    def accepted(result: Any) -> None:
        message_id = result.get("messageId") if type(result) is dict else None
        prompt.missing = False
        message_id = message_id if type(message_id) is str else None
        if told is None:
            # Whatever id it had, nobody was told.
            prompt.message_id = message_id
        _accept(hub, session, prompt, message_id, link)
        if message_id is not None and told is not None:
            # SDKs wait for the events of the id that they were told.
            prompt.resent_as = message_id
            turn.aliases[message_id] = told
            for one in session.bindings:
                if one.link is not None:
                    one.link.alias_message(message_id, told)

    turn.busy = turn.resuming = True
    prompt.seen = False
    await link.request(prompt.request.method, params, hub.limits.rebind_timeout, accepted)


def give_up(hub: Hub, session: Session) -> None:
    """End a cut turn for everybody: nothing hangs, and nothing is said that is not known."""
    turn = session.turn
    if not turn.runs:
        return
    for prompt in turn.prompts:
        if not prompt.acknowledged:
            recorded = True if prompt.seen else None
            prompt.answered, prompt.owed = True, False
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
            if event["type"] == "session.idle":
                binding.cut = False


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
