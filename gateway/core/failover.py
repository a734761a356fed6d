"""How to carry on a turn whose replica died: decided from the history, never guessed. Pure.

After a resume elsewhere the journal tells which prompts were recorded and how far the turn came.
Deltas and idle are not in it, and what was said in the last 100 ms may be missing.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.core.turn import Prompt, Turn

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about a cut turn.

    Attributes:
        recorded: prompts that are in the history, with their ``user.message`` events.
        missing: prompts that are not, in order: to be sent again.
        rerun: the model's answer to the last recorded prompt is to be asked for again.
        own: that prompt was sent through here; else whoever sent it is the first to ask.
        missed: the final message that clients have not seen, if the turn was complete; else None.
        complete: the last recorded prompt was worked off.
    """

    recorded: list[tuple[Prompt, Event]] = field(default_factory=list)
    missing: list[Prompt] = field(default_factory=list)
    rerun: bool = False
    own: bool = False
    missed: Event | None = None
    complete: bool = False


def plan(turn: Turn, history: Sequence[Event], *, processing: bool) -> Plan:
    """Decide how to carry on.

    Args:
        turn: what was known when the replica died.
        history: the persisted events after the resume, oldest first.
        processing: whether the resumed session works again by itself (pending permissions and tool
            calls were restored).
    """
    messages = user_messages(history)
    recorded: list[tuple[Prompt, Event]] = []
    missing: list[Prompt] = []
    taken = {one for prompt in turn.prompts for one in (prompt.resent_as, prompt.message_id)}
    unseen = _behind(messages, turn.last_prompt)
    for prompt in turn.prompts:
        # A link shows the journal with the ids that clients were told, once it knows them.
        known = (prompt.resent_as, prompt.message_id)
        found = next((one for one in known if one in messages), None)
        if found is None and known == (None, None):
            found = next(
                (
                    message_id
                    for message_id, event in unseen.items()
                    if message_id not in taken and _data(event).get("content") == prompt.text
                ),
                None,
            )
        if found is None:
            missing.append(prompt)
        else:
            taken.add(found)
            recorded.append((prompt, messages[found]))
    if processing:
        return Plan(recorded, missing)
    tail = _since_last_prompt(history)
    complete = tail is None or _complete(tail)
    if not recorded and not (turn.busy and not turn.prompts):
        # Nothing of this turn was written: what is missing is sent, and nothing else has to run.
        return Plan(recorded, missing, complete=True)
    if complete:
        missed = _missed(tail or (), turn.last_message)
        return Plan(recorded, missing, missed=missed, complete=True)
    last = next(reversed(messages.values()), None)
    own = any(event is last for _, event in recorded)
    return Plan(recorded, missing, rerun=not turn.aborting, own=own, complete=turn.aborting)


def is_cut(history: Sequence[Event]) -> bool:
    """Whether the last prompt of a session that is not working was never answered."""
    tail = _since_last_prompt(history)
    return tail is not None and not _complete(tail)


def _data(event: Event) -> dict[str, Any]:
    data = event.get("data")
    return data if type(data) is dict else {}


def user_messages(history: Sequence[Event]) -> dict[str, Event]:
    """Return the user messages of a history by their ids."""
    return {
        data["messageId"]: event
        for event in history
        if event.get("type") == "user.message"
        and type((data := _data(event)).get("messageId")) is str
    }


def _behind(messages: dict[str, Event], last: str | None) -> dict[str, Event]:
    """Return the user messages behind the last one that was seen; all, if that is not there."""
    if last not in messages:
        return messages
    ids = list(messages)
    return {one: messages[one] for one in ids[ids.index(last) + 1 :]}


def _since_last_prompt(history: Sequence[Event]) -> Sequence[Event] | None:
    for index in range(len(history) - 1, -1, -1):
        if history[index].get("type") == "user.message":
            return history[index + 1 :]
    return None


def _complete(tail: Sequence[Event]) -> bool:
    """Whether the model's last word called no tool, or the turn was given up."""
    answered = False
    for event in tail:
        name = event.get("type")
        if name == "assistant.message":
            answered = not _data(event).get("toolRequests")
        elif name in ("abort", "session.error"):
            return True
    return answered


def last_word(history: Sequence[Event], last_seen: str | None) -> Event | None:
    """Return the model's last message about the last prompt, unless it was the last one seen."""
    return _missed(_since_last_prompt(history) or (), last_seen)


def _missed(tail: Sequence[Event], last_seen: str | None) -> Event | None:
    """Return the final message, unless it was the last one seen."""
    for event in reversed(tail):
        if event.get("type") == "assistant.message":
            return None if event.get("id") == last_seen else event
    return None


def pending_events(
    session_id: str, permissions: Any, tools: Any, turn: Turn, shown: Container[str]
) -> tuple[list[Event], list[tuple[str, dict[str, Any]]]]:
    """Say what has to be told and answered after pending requests were restored.

    The CLI restores them under their ids without announcing them again.

    Args:
        session_id: the session.
        permissions: result of ``session.permissions.pendingRequests``.
        tools: result of ``session.tools.listPendingRequests``.
        turn: what clients answered.
        shown: ids of requests that clients were shown which are still there.

    Returns:
        Events (type and data) for requests that no such client saw, and (method, params) of answers
        that the client gave and that were lost.
    """
    events = [
        event
        for event in open_requests(session_id, permissions, tools, turn)
        if event["data"].get("requestId") not in shown
    ]
    lost = [
        turn.answers[item["requestId"]]
        for item in (*_items(permissions), *_items(tools))
        if item.get("requestId") in turn.answers
    ]
    return events, lost


def open_requests(session_id: str, permissions: Any, tools: Any, turn: Turn) -> list[Event]:
    """Return the events (type and data) that announce the requests which nobody has answered.

    Args:
        session_id: the session.
        permissions: result of ``session.permissions.pendingRequests``.
        tools: result of ``session.tools.listPendingRequests``.
        turn: what clients answered.
    """
    events: list[Event] = [
        {
            "type": "permission.requested",
            "data": {
                "requestId": item.get("requestId"),
                "permissionRequest": item.get("request"),
                "promptRequest": item.get("request"),
                "ownerSessionId": session_id,
            },
        }
        for item in _items(permissions)
    ]
    events += [
        {"type": "external_tool.requested", "data": {**item, "sessionId": session_id}}
        for item in _items(tools)
    ]
    return [event for event in events if event["data"].get("requestId") not in turn.answers]


def _items(result: Any) -> list[dict[str, Any]]:
    items = result.get("items") if type(result) is dict else None
    return [item for item in items if type(item) is dict] if type(items) is list else []
