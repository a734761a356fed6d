"""A live session: reads its events, answers tools and permissions, tells when a turn has ended."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from gateway.loadtest.connection import Connection, ConnectionLostError
from gateway.loadtest.ledger import Ledger, Turn
from gateway.loadtest.plan import Check, Plan
from gateway.loadtest.recorder import Recorder
from gateway.loadtest.scenario import TOOL
from gateway.testing.model_server import DEFAULT_MODEL
from gateway.wire.envelope import loads

_TAIL_BYTES = 224
_TAIL = re.compile(
    rb'(,"ephemeral":true)?,"id":"([^"\\]{1,64})","timestamp":"[^"\\]{0,40}",'
    rb'"parentId":(?:"([^"\\]{1,64})"|null)\}\}\}\Z'
)
_HEAD = re.compile(rb'"event":\{"type":"[^"\\]*","ephemeral":true,')

_TOOL_DEFINITION = {
    "name": TOOL,
    "description": "Looks a number up for the load test.",
    "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
}


class TurnError(Exception):
    """The session reported that a turn failed."""


def session_params(plan: Plan) -> dict[str, Any]:
    """Return the parameters with which sessions are created and resumed."""
    params: dict[str, Any] = {"streaming": True, **plan.scenario.session}
    if plan.provider_url is not None:
        params["provider"] = {
            "type": "openai",
            "baseUrl": plan.provider_url,
            "apiKey": "loadtest",
        }
        params.setdefault("model", DEFAULT_MODEL)
    if plan.scenario.tool_use:
        params["tools"] = [_TOOL_DEFINITION]
    params["requestPermission"] = True
    return params


class Session:
    """One session on one connection at a time.

    Attributes:
        session_id: its id.
        connection: the one it is attached by.
        ledger: the account of what it was asked.
        turns_left: turns until it ends.
    """

    def __init__(
        self, session_id: str, plan: Plan, recorder: Recorder, connection: Connection, turns: int
    ) -> None:
        self.session_id = session_id
        self.connection = connection
        self.turns_left = turns
        self._plan = plan
        self._recorder = recorder
        self._streaming = bool(plan.scenario.session.get("streaming", True))
        report = recorder.fault if plan.check is not Check.OFF else _ignore
        self.ledger = Ledger(session_id, report, echo=plan.echo, streaming=self._streaming)
        self._checking = plan.check is not Check.OFF
        self._idle: asyncio.Future[None] | None = None
        self._turn: Turn | None = None
        self._since = 0.0
        self._first = False
        self._failure: str | None = None
        self._asked: dict[str, tuple[str, float]] = {}

    def __repr__(self) -> str:
        return f"<Session {self.session_id}, {len(self.ledger.turns)} turns>"

    def attach(self, connection: Connection) -> None:
        """Receive events from a connection."""
        self.connection = connection
        connection.receivers[self.session_id] = self

    def ignore_gap(self) -> None:
        """Events may pass unseen from now on until the session is resumed."""
        self.ledger.interrupt()
        self._asked.clear()

    # -- turns -------------------------------------------------------------------------------

    async def run_turn(self, turn: Turn, prompt: str, since: float) -> None:
        """Send a prompt and wait until the session is idle again.

        Args:
            turn: its account.
            prompt: the text.
            since: moment of the clock from which the first token is timed.

        Raises:
            CallError: the prompt was refused.
            ConnectionLostError: the connection ended.
            TimeoutError: the turn did not end in time.
            TurnError: the session reported an error.
        """
        self._turn, self._since, self._first, self._failure = turn, since, True, None
        self._idle = asyncio.get_running_loop().create_future()
        sent = self._recorder.clock()
        try:
            async with asyncio.timeout(self._plan.turn_timeout):
                params = {"sessionId": self.session_id, "prompt": prompt}
                await self.connection.post("session.send", params)
                turn.certain = True
                self._recorder.time("send", sent)
                await self._until_idle()
        finally:
            self._idle = None
            self._turn = None
        if self._failure is not None:
            turn.certain = False
            raise TurnError(self._failure)
        self.ledger.complete(turn)

    async def settle(self) -> None:
        """Wait until a turn that outlived its connection has ended.

        Raises:
            CallError, ConnectionLostError, TimeoutError: it cannot be told, or does not end.
        """
        self._idle = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._plan.turn_timeout):
                state = await self.connection.post(
                    "session.metadata.isProcessing", {"sessionId": self.session_id}
                )
                if isinstance(state, dict) and state.get("processing"):
                    await self._until_idle()
        finally:
            self._idle = None

    async def _until_idle(self) -> None:
        assert self._idle is not None
        lost = self.connection.lost
        await asyncio.wait({self._idle, lost}, return_when=asyncio.FIRST_COMPLETED)
        if not self._idle.done():
            raise ConnectionLostError

    # -- events ------------------------------------------------------------------------------

    def event(self, kind: str, body: bytes) -> None:
        """Take an event of this session."""
        if self._checking:
            self._enter(kind, body)
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, body)

    def _enter(self, kind: str, body: bytes) -> None:
        """Enter id and parent of an event; the common form is read without parsing the event."""
        match = _TAIL.search(body, max(0, len(body) - _TAIL_BYTES))
        if match is not None:
            ephemeral = match[1] is not None or _HEAD.search(body, 0, 512) is not None
            parent = None if match[3] is None else match[3].decode()
            self.ledger.event(kind, match[2].decode(), parent, ephemeral=ephemeral)
            return
        event = loads(body)["params"]["event"]
        if isinstance(event.get("id"), str):
            ephemeral = bool(event.get("ephemeral"))
            self.ledger.event(kind, event["id"], event.get("parentId"), ephemeral=ephemeral)

    def _on_idle(self, _body: bytes) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _on_error(self, body: bytes) -> None:
        data = _data(body)
        status = data.get("statusCode")
        reason = data.get("errorType") or "error"
        self._failure = f"session.error {reason}" + (f" {status}" if status else "")

    def _on_user_message(self, body: bytes) -> None:
        if self._checking:
            self.ledger.prompted(str(_data(body).get("content", "")))

    def _on_message_start(self, body: bytes) -> None:
        if self._checking and self._plan.echo:
            self.ledger.restarted(str(_data(body).get("messageId")))

    def _on_delta(self, body: bytes) -> None:
        self._saw_token()
        if self._checking and self._plan.echo:
            data = _data(body)
            self.ledger.piece(str(data.get("messageId")), str(data.get("deltaContent", "")))

    def _on_message(self, body: bytes) -> None:
        data = _data(body) if self._checking else {}
        final = not data.get("toolRequests")
        if final:
            self._saw_token()
        if self._checking:
            content = str(data.get("content") or "")
            self.ledger.answered(str(data.get("messageId")), content, final=final)

    def _saw_token(self) -> None:
        if self._first and self._turn is not None:
            self._first = False
            self._recorder.time("first_token", self._since)

    def _on_permission(self, body: bytes) -> None:
        data = _data(body)
        request = data.get("permissionRequest") or {}
        allowed = self._plan.scenario.permissions
        approved = allowed == "all" or (allowed == "own" and request.get("toolName") == TOOL)
        self._answer(
            "permission",
            "session.permissions.handlePendingPermissionRequest",
            str(data.get("requestId")),
            {"kind": "approve-once" if approved else "reject"},
        )

    def _on_tool(self, body: bytes) -> None:
        data = _data(body)
        if data.get("toolName") != TOOL:
            return
        text = self._turn.tool_result if self._turn is not None else ""
        self._answer(
            "tool",
            "session.tools.handlePendingToolCall",
            str(data.get("requestId")),
            {"textResultForLlm": text, "resultType": "success"},
        )

    def _answer(self, action: str, method: str, request_id: str, result: dict[str, Any]) -> None:
        self._asked[request_id] = action, self._recorder.clock()
        self._recorder.count(f"{action}s")
        params = {"sessionId": self.session_id, "requestId": request_id, "result": result}
        self.connection.post(method, params).add_done_callback(
            lambda answer: self._answered(action, answer)
        )

    def _answered(self, action: str, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled():
            return
        error = answer.exception()
        if isinstance(error, ConnectionLostError):
            return  # the turn says so
        if error is not None:
            self._recorder.error(action, str(error))
        elif not (answer.result() or {}).get("success"):
            self._recorder.error(action, "the answer was not wanted any more")

    def _on_completed(self, body: bytes) -> None:
        asked = self._asked.pop(str(_data(body).get("requestId")), None)
        if asked is not None:
            self._recorder.time(*asked)


def _ignore(_kind: str, _detail: str) -> None:
    """Report to nobody."""


def _data(body: bytes) -> dict[str, Any]:
    data = loads(body)["params"]["event"].get("data")
    return data if isinstance(data, dict) else {}


_HANDLERS = {
    "session.idle": Session._on_idle,
    "session.error": Session._on_error,
    "user.message": Session._on_user_message,
    "assistant.message_start": Session._on_message_start,
    "assistant.message_delta": Session._on_delta,
    "assistant.message": Session._on_message,
    "permission.requested": Session._on_permission,
    "permission.completed": Session._on_completed,
    "external_tool.requested": Session._on_tool,
    "external_tool.completed": Session._on_completed,
}
