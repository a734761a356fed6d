"""What the gateway knows of a session's turn: enough to finish it elsewhere. Pure.

A turn runs from an accepted prompt to ``session.idle``, which comes once, after the queue of
prompts is empty. Until then the prompts stay in memory: the CLI writes its journal about 100 ms
behind the wire, so a prompt it has acknowledged may still be lost with it.
"""

from __future__ import annotations

from typing import Any

from gateway.core.request import Request
from gateway.policy.rules import MethodRule
from gateway.wire import envelope

TRACKED_EVENTS = frozenset(
    {
        "assistant.message",
        "external_tool.completed",
        "external_tool.requested",
        "permission.completed",
        "permission.requested",
        "user.message",
    }
)
"""Events whose contents matter for a turn; of the others the type is enough."""

_REQUESTED = {"external_tool.requested", "permission.requested"}
_COMPLETED = {"external_tool.completed", "permission.completed"}
_TOOL_ANSWER = "session.tools.handlePendingToolCall"
_ANSWERS = frozenset({"session.permissions.handlePendingPermissionRequest", _TOOL_ANSWER})

REPEATABLE = _ANSWERS | {"session.abort"}
"""Calls about a turn that may be made again once it is carried on: the second changes nothing."""


Unread = tuple[bytes, MethodRule]
"""A request that passed unread, as its frame, and what the policy says about its method."""


class Prompt:
    """A prompt on its way through a turn; as a callable, the hook of its own request.

    Attributes:
        sender: whose it is: the object to answer to (a binding).
        message_id: the id that its sender was told or that its event had, once known.
        resent_as: the CLI's own id for it after it was sent again, or None.
        size: bytes of the request.
        answered: the CLI has answered.
        owed: the sender is still to be told, once the prompt is in the journal.
        seen: its ``user.message`` was seen.
        missing: it was lost with the replica and is still to be sent again.
    """

    __slots__ = (
        "_request",
        "answered",
        "message_id",
        "missing",
        "owed",
        "resent_as",
        "seen",
        "sender",
        "size",
    )

    def __init__(self, sender: Any, request: Request | Unread) -> None:
        """Note a prompt.

        Args:
            sender: whose it is.
            request: the message as it was sent.
        """
        self.sender = sender
        self._request = request
        self.size: int = len(request[0]) if isinstance(request, tuple) else request.size
        self.message_id: str | None = None
        self.resent_as: str | None = None
        self.answered = False
        self.owed = False
        self.seen = False
        self.missing = False

    def __call__(self, ok: bool | None, body: bytes) -> None:
        """Let the sender note the answer; see :data:`gateway.core.pending.Hook`."""
        self.sender.prompt_answered(self, ok, body)

    @property
    def request(self) -> Request:
        """The message as it was sent, to be sent again if it never reached the journal."""
        request = self._request
        if isinstance(request, tuple):
            request = self._request = Request.from_frame(*request)
        return request

    @property
    def acknowledged(self) -> bool:
        """Whether its sender has been told that it was taken."""
        return self.answered and not self.owed

    @property
    def text(self) -> object:
        """What the user said."""
        return self.request.params.get("prompt")

    @property
    def repeatable(self) -> bool:
        """Whether it is known how to send it again."""
        return bool(self.request.method == "session.send")


class Turn:
    """The turn of a session, or its absence.

    Attributes:
        busy: whether a turn runs.
        prompts: prompts that are not known to have been worked off, in order.
        started: whether the replica was seen at work since the last idle.
        cut: it ran when the last link on which it was followed ended: it has to be carried on.
        aborting: the client asked for the end of the turn.
        resuming: something has set the turn going again, the result of a tool most often, and
            the model has not been seen to be asked since.
        asked: ids of permission and tool requests that clients were shown and that are open -> to
            whom (bindings).
        answers: what clients answered to them: request id -> (method, params).
        last_message: id of the last ``assistant.message`` event that was seen, or None.
        aliases: ids of prompts that were sent again -> those that their senders were told.
        last_prompt: id of the last user message that was seen, or None.
    """

    __slots__ = (
        "aborting",
        "aliases",
        "answers",
        "asked",
        "busy",
        "cut",
        "last_message",
        "last_prompt",
        "prompts",
        "resuming",
        "started",
    )

    def __init__(self) -> None:
        self.busy = False
        self.prompts: list[Prompt] = []
        self.started = False
        self.cut = False
        self.aborting = False
        self.resuming = False
        self.aliases: dict[str, str] = {}
        self.asked: dict[str, set[Any]] = {}
        self.answers: dict[str, tuple[str, dict[str, Any]]] = {}
        self.last_message: str | None = None
        self.last_prompt: str | None = None

    def takes(self, size: int, max_prompts: int, max_bytes: int) -> bool:
        """Whether one more prompt of ``size`` bytes may be kept in memory until the turn ends."""
        prompts = self.prompts
        return not prompts or (
            len(prompts) < max_prompts and size + sum(one.size for one in prompts) <= max_bytes
        )

    def sent(self, sender: Any, request: Request | Unread) -> Prompt:
        """Note that a prompt goes to the replica."""
        self.busy = True
        prompt = Prompt(sender, request)
        self.prompts.append(prompt)
        return prompt

    def accepted(self, prompt: Prompt, message_id: str | None) -> None:
        """Note that the CLI has taken a prompt."""
        prompt.answered = True
        prompt.message_id = prompt.message_id or message_id

    def acknowledged(self, prompt: Prompt) -> None:
        """Note that the sender of a prompt is told that it was taken."""
        prompt.owed = False
        if prompt.seen and not self.started and prompt in self.prompts:
            # Its turn has ended before.
            self.prompts.remove(prompt)
            self.busy = bool(self.prompts)

    def found(self) -> None:
        """Note that the session is at work for reasons not known here."""
        self.busy = True

    def refused(self, prompt: Prompt) -> None:
        """Note that the CLI has refused a prompt."""
        if prompt in self.prompts:
            self.prompts.remove(prompt)
        if not self.prompts and not self.started:
            self.busy = False

    def called(self, method: str, params: dict[str, Any]) -> None:
        """Note a session method that a client calls."""
        if method == "session.abort":
            self.aborting = True
        elif method in _ANSWERS:
            request_id = params.get("requestId")
            if type(request_id) is str and request_id in self.asked:
                self.answers[request_id] = (method, params)
                self.resuming = self.resuming or method == _TOOL_ANSWER

    def uncalled(self, params: dict[str, Any]) -> None:
        """Note that a call will be made again, so that it need not be made up for."""
        self.answers.pop(str(params.get("requestId")), None)

    def event(self, to: Any, name: str, body: bytes) -> None:
        """Note a loud event (:data:`gateway.wire.stream.LOUD_EVENTS`).

        Args:
            to: whose it is (a binding).
            name: its type.
            body: the notification; not needed for types that are not in :data:`TRACKED_EVENTS`.
        """
        if name == "session.idle":
            self.idle()
        elif name == "assistant.turn_start":
            self.busy = self.started = True
            self.resuming = False
        elif name == "tool.execution_complete":
            self.resuming = True
        elif name in TRACKED_EVENTS:
            try:
                event = envelope.loads(body)["params"]["event"]
                data = event["data"]
            except (ValueError, KeyError, TypeError):
                return  # Damaged: it is forwarded all the same, and nothing is learned from it.
            if type(data) is dict:
                self._tracked(to, name, event, data)

    def shown(self, request_id: str, to: Any) -> None:
        """Note that a permission or tool request is shown to a client (a binding)."""
        self.asked.setdefault(request_id, set()).add(to)

    def _tracked(self, to: Any, name: str, event: dict[str, Any], data: dict[str, Any]) -> None:
        if name == "user.message":
            self.busy = self.started = True
            self.resuming = False
            self._user_message(data.get("messageId"), data.get("content"))
        elif name == "assistant.message":
            self.last_message = event.get("id")
            if not data.get("toolRequests"):
                # What it was asked for is said. The next prompt is taken up, if there is one.
                self.resuming = not all(one.seen for one in self.prompts)
        elif name in _REQUESTED:
            self.shown(str(data.get("requestId")), to)
        elif name in _COMPLETED:
            self.asked.pop(str(data.get("requestId")), None)
            self.answers.pop(str(data.get("requestId")), None)
            self.resuming = self.resuming or name == "external_tool.completed"

    def _user_message(self, message_id: Any, content: Any) -> None:
        if type(message_id) is not str:
            return
        self.last_prompt = message_id
        for prompt in self.prompts:
            if prompt.message_id == message_id:
                prompt.seen = True
                return
        for prompt in self.prompts:
            if prompt.message_id is None and prompt.text == content:
                prompt.message_id = message_id
                prompt.seen = True
                return

    def idle(self) -> None:
        """End the turn; a prompt sent after its last look at the queue begins the next one."""
        prompts = self.prompts
        if prompts:
            prompts[:] = [
                one for one in prompts if one.missing or one.owed or not (one.answered or one.seen)
            ]
        self.busy = bool(prompts)
        self.started = self.aborting = self.cut = False
        self.aliases.clear()
        self.asked.clear()
        self.answers.clear()

    @property
    def about_to_ask(self) -> bool:
        """Whether the CLI may just be looking which tools there are, before it asks the model.

        A connection that leaves at that moment takes its tools from the turn, though it may be back
        at once: the model calls one, and is told that it does not exist. Seen on CLI 1.0.102
        between a prompt and its ``user.message``, and between the result of a tool and the next
        ``assistant.turn_start``. What was asked for before is asked with the tools of then.
        """
        if not self.busy:
            return False
        if self.resuming:
            return not self.asked
        return not self.started and not all(one.seen for one in self.prompts)

    @property
    def runs(self) -> bool:
        """Whether there is something to carry on."""
        return self.busy or bool(self.prompts)

    def ended(self) -> None:
        """Note that nothing runs any more, whatever was known."""
        self.prompts.clear()
        self.idle()
