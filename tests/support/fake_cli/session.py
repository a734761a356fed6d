"""A live session: who is attached, what it remembers, and the turns it runs."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gateway.testing.model_server import DEFAULT_MODEL, ModelRequest, ToolCall
from tests.support.fake_cli import payloads
from tests.support.fake_cli.journal import Event
from tests.support.fake_cli.model import ModelFailure

if TYPE_CHECKING:
    from tests.support.fake_cli.server import Connection, FakeCli

CONFIG_KEYS = (
    "provider",
    "model",
    "streaming",
    "systemMessage",
    "availableTools",
    "excludedTools",
)
"""Parameters of create and resume that hold for the session and all its connections."""

_NO_CREDENTIALS = "Execution failed: InvalidArg, No GitHub OAuth token or Copilot HMAC key provided"
_NO_ONE_TO_ASK = (
    "Permission denied and could not request permission from user."
    " Copilot needed the user's approval and no one could answer."
)
_INTERRUPTED = (
    "Tool execution was interrupted before a result was recorded. Its effects may be partial."
)


def iso(seconds: float) -> str:
    """Format a Unix time as the CLI does in events: milliseconds and a Z."""
    stamp = datetime.fromtimestamp(seconds, UTC)
    return stamp.strftime("%Y-%m-%dT%H:%M:%S.") + f"{stamp.microsecond // 1000:03d}Z"


@dataclass(slots=True)
class Attachment:
    """What one connection declared for this session."""

    hooks: bool = False
    permission: bool = False
    user_input: bool = False

    def update(self, params: dict[str, Any]) -> None:
        """Apply what is given; absent parameters change nothing."""
        self.hooks = bool(params.get("hooks", self.hooks))
        self.permission = bool(params.get("requestPermission", self.permission))
        self.user_input = bool(params.get("requestUserInput", self.user_input))


@dataclass(slots=True)
class Tool:
    """A tool, and the connection that runs it."""

    owner: Connection
    definition: dict[str, Any]


@dataclass(slots=True)
class Pending:
    """A permission or tool call that waits for a client."""

    item: dict[str, Any]
    future: asyncio.Future[Any]


@dataclass(slots=True)
class Call:
    """A tool call of the model, with the ids of what was asked for it before a restart."""

    call_id: str
    tool: ToolCall
    permission_id: str | None = None
    external_id: str | None = None
    resumed: bool = False


@dataclass(slots=True)
class Work:
    """One entry of the queue: prompts that open one turn, or a tool call to go on with."""

    prompts: list[tuple[str, str]] = field(default_factory=list)
    resume: Call | None = None


class ToolClashError(Exception):
    """Another live connection has registered a tool of that name."""


class Session:
    """A session in this CLI's memory.

    Attributes:
        session_id: its id.
        start_time: Unix time of its creation.
        config: the parameters named in :data:`CONFIG_KEYS`.
        attached: connections that get its events, in order of attaching.
        tools: external tools by name.
        history: events that persist, oldest first.
        permissions: permission requests that wait, by request id.
        external: tool calls that wait, by request id.
        zombie: shut down by ``session.shutdown``: accepts sends and does nothing.
    """

    def __init__(self, cli: FakeCli, session_id: str) -> None:
        self._cli = cli
        self.session_id = session_id
        self.start_time = self.modified_time = time.time()
        self.config: dict[str, Any] = {}
        self.attached: dict[Connection, Attachment] = {}
        self.tools: dict[str, Tool] = {}
        self.history: list[Event] = []
        self.permissions: dict[str, Pending] = {}
        self.external: dict[str, Pending] = {}
        self.zombie = False
        self._resumed = False
        self._unwritten: list[Event] = []
        self._persistent = False
        self._flush_timer: asyncio.TimerHandle | None = None
        self._queue: deque[Work] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._no_hook = asyncio.Event()
        self._no_hook.set()
        self._started = False
        self._in_turn = False
        self._turn = 0
        self._interrupted: list[Call] = []
        self._cwd = str(cli.home / "work")

    # -- attaching ---------------------------------------------------------------------------

    def attach(self, connection: Connection, params: dict[str, Any]) -> None:
        """Attach a connection, or change what it declared.

        Raises:
            ToolClashError: a tool belongs to another connection; nothing has changed.
        """
        tools = params.get("tools") or []
        for tool in tools:
            known = self.tools.get(tool["name"])
            if known is not None and known.owner is not connection:
                raise ToolClashError(tool["name"])
        self.attached.setdefault(connection, Attachment()).update(params)
        if "tools" in params:
            self._drop_tools(connection)
        for tool in tools:
            self.tools[tool["name"]] = Tool(connection, tool)

    def configure(self, params: dict[str, Any]) -> None:
        """Overwrite, for everybody, the session parameters that are given."""
        self.config |= {key: params[key] for key in CONFIG_KEYS if params.get(key) is not None}

    def detach(self, connection: Connection, *, closed: bool) -> bool:
        """Detach a connection; True if it was attached. The last one ends the session.

        Args:
            connection: who leaves.
            closed: its TCP connection is gone, so that it is not told of the end.
        """
        if connection not in self.attached:
            return False
        if len(self.attached) == 1:
            if closed:
                self.attached.clear()
            self.shutdown()
            return True
        del self.attached[connection]
        if self._drop_tools(connection):
            self.emit("session.tools_updated", {"model": self._model}, ephemeral=True)
        return True

    def _drop_tools(self, connection: Connection) -> list[str]:
        """Forget the tools of a connection; return their names."""
        owned = [name for name, tool in self.tools.items() if tool.owner is connection]
        for name in owned:
            del self.tools[name]
        return owned

    # -- events ------------------------------------------------------------------------------

    def emit(self, kind: str, data: dict[str, Any], *, ephemeral: bool = False) -> None:
        """Send an event to all attached connections; remember it unless it is ephemeral."""
        event: Event = {"type": kind, "data": data}
        if ephemeral:
            event["ephemeral"] = True
        event |= {
            "id": str(uuid.uuid4()),
            "timestamp": iso(time.time()),
            "parentId": self.history[-1]["id"] if self.history else None,
        }
        params = {"sessionId": self.session_id, "event": event}
        for connection in list(self.attached):
            connection.notify("session.event", params)
        if not ephemeral:
            self.history.append(event)
            self._record(event)
            self.lifecycle("session.updated")

    def lifecycle(self, kind: str) -> None:
        """Tell every connection of the CLI about this session."""
        self.modified_time = time.time()
        times = {"startTime": iso(self.start_time), "modifiedTime": iso(self.modified_time)}
        self._cli.broadcast(
            "session.lifecycle",
            {"type": kind, "sessionId": self.session_id, "metadata": times},
        )

    def _record(self, event: Event) -> None:
        """Queue an event for the journal; nothing is written before the first user message."""
        self._unwritten.append(event)
        self._persistent = self._persistent or event["type"] == "user.message"
        if self._persistent and self._flush_timer is None:
            loop = asyncio.get_running_loop()
            self._flush_timer = loop.call_later(self._cli.journal_delay, self.flush)

    def flush(self) -> None:
        """Write what waits for the journal."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self._persistent and self._unwritten:
            self._cli.storage.append(self.session_id, self._unwritten)
            self._unwritten.clear()

    # -- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Emit what opens a new session."""
        self.emit(
            "session.start",
            {
                "sessionId": self.session_id,
                "version": 1,
                "producer": "copilot-agent",
                "copilotVersion": self._cli.version,
                "startTime": iso(self.start_time),
                "selectedModel": self._model,
                "contextTier": None,
                "context": {"cwd": self._cwd},
                "remoteSteerable": False,
                "alreadyInUse": False,
            },
        )
        self.settings_resolved()

    def load(self, events: list[Event], *, continue_pending: bool) -> None:
        """Take over a journal; pick up pending work if asked to."""
        self.history = events
        self._persistent = True
        self._resumed = True
        for event in events:
            if event["type"] == "session.start":
                stamp = event["data"]["startTime"].replace("Z", "+00:00")
                self.start_time = datetime.fromisoformat(stamp).timestamp()
                break
        calls = _interrupted_calls(events)
        waiting = [call for call in calls if call.permission_id or call.external_id]
        if continue_pending and waiting:
            self._queue.extend(Work(resume=call) for call in waiting)
            self._interrupted = [call for call in calls if call not in waiting]
        else:
            self._interrupted = calls
        if continue_pending and self._interrupted:
            self._fail_interrupted()

    def resumed(self, params: dict[str, Any], *, in_use: bool, active: bool) -> None:
        """Emit what tells of a resume, then go on with pending work."""
        if not params.get("disableResume"):
            self.emit("session.resume", self._resume_data(params, in_use=in_use, active=active))
        self.settings_resolved()
        self._wake()

    def _resume_data(self, params: dict[str, Any], *, in_use: bool, active: bool) -> dict[str, Any]:
        data: dict[str, Any] = {
            "resumeTime": iso(time.time()),
            "contextTier": None,
            "sessionLimits": None,
            "context": {"cwd": self._cwd},
            "remoteSteerable": False,
        }
        if params.get("continuePendingWork"):
            data["continuePendingWork"] = True
        return data | {
            "eventCount": len(self.history),
            "selectedModel": self._model,
            "alreadyInUse": in_use,
            "sessionWasActive": active,
        }

    def settings_resolved(self) -> None:
        """Emit the settings event that follows every start and resume."""
        self.emit(
            "session.managed_settings_resolved",
            payloads.MANAGED_SETTINGS,
            ephemeral=True,
        )

    def shutdown(self, *, silent: bool = False) -> None:
        """Leave memory: cut the turn, close the journal, give up the lock.

        Args:
            silent: attached connections are not told.
        """
        if silent:
            self.attached.clear()
        self._cut()
        self.emit("session.shutdown", payloads.shutdown(self.start_time, self._model))
        self.attached.clear()
        self.tools.clear()
        self.flush()
        self._cli.forget(self)

    def crash(self) -> None:
        """Vanish as in a crash: what was not written yet is lost."""
        self._cut()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._unwritten.clear()

    def _cut(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
            self._worker = None
        self._queue.clear()
        self.permissions.clear()
        self.external.clear()
        self._idle.set()

    @property
    def processing(self) -> bool:
        """Whether a turn runs or waits."""
        return not self._idle.is_set()

    async def wait_idle(self) -> None:
        """Wait until no turn runs or waits."""
        await self._idle.wait()

    @property
    def summary(self) -> str | None:
        """The title: the first prompt."""
        for event in self.history:
            if event["type"] == "user.message":
                return str(event["data"]["content"])
        return None

    @property
    def _model(self) -> str:
        return str(self.config.get("model", DEFAULT_MODEL))

    # -- turns -------------------------------------------------------------------------------

    def enqueue(self, prompts: list[str]) -> list[str]:
        """Queue one turn with these prompts (none: go on from the history); return their ids."""
        ids = [str(uuid.uuid4()) for _ in prompts]
        if self.zombie:
            return ids
        self.emit("pending_messages.modified", {}, ephemeral=True)
        self._queue.append(Work(list(zip(ids, prompts, strict=True))))
        self._wake()
        return ids

    def _wake(self) -> None:
        if self._queue and self._worker is None:
            self._idle.clear()
            self._worker = self._cli.spawn(self._work(), f"session {self.session_id}")

    async def _work(self) -> None:
        while self._queue:
            await asyncio.sleep(0)  # the answer to session.send goes first
            work = self._queue.popleft()
            self.emit("pending_messages.modified", {}, ephemeral=True)
            await self._run(work)
        self._end()

    def _end(self, data: dict[str, Any] | None = None) -> None:
        self._worker = None
        self.flush()  # what is idle is on disk
        data = data or {}
        self.emit("assistant.idle", data, ephemeral=True)
        self.emit("session.idle", {**data, "mode": "interactive"}, ephemeral=True)
        self._idle.set()

    async def abort(self) -> None:
        """End the running turn and forget the queue; a hook that is not answered holds it up."""
        await self._no_hook.wait()
        worker, self._worker = self._worker, None
        if worker is None:
            return
        self._queue.clear()
        self.emit("abort", {"reason": "user_initiated"})
        for request_id, pending in list(self.permissions.items()):
            cancelled = {"kind": "cancelled", "reason": "Session aborted"}
            self._permission_completed(request_id, pending, cancelled)
        self.permissions.clear()
        self.external.clear()
        worker.cancel()
        await asyncio.wait([worker])
        if self._in_turn:
            self._in_turn = False
            self.emit("assistant.turn_end", {"turnId": str(self._turn)})
        self._end({"aborted": True})

    async def _run(self, work: Work) -> None:
        if "provider" not in self.config and not self._cli.signed_in:
            self.emit("session.error", {"errorType": "query", "message": _NO_CREDENTIALS})
            return
        interaction = str(uuid.uuid4())
        self._turn = 0
        if work.resume is not None:
            await self._run_tool(work.resume, interaction)
        else:
            await self._open_turn(work.prompts, interaction)
        try:
            await self._call_model(interaction, work.prompts[-1][0] if work.prompts else None)
        except ModelFailure as failure:
            self._in_turn = False
            self.emit("assistant.turn_end", {"turnId": str(self._turn)})
            error: dict[str, Any] = {"errorType": "query", "message": str(failure)}
            if failure.status is not None:
                error["statusCode"] = failure.status
            self.emit("session.error", error)
            return
        await self._hook("agentStop", {"stopReason": "end_turn", "stop_hook_active": False})
        if not self._queue:
            snapshot = {"kind": "messages_snapshot", "messages": self._conversation()}
            self.emit("model.messages_snapshot", snapshot, ephemeral=True)

    async def _open_turn(self, prompts: list[tuple[str, str]], interaction: str) -> None:
        if self._interrupted:
            self._fail_interrupted()
        first = not self._started
        self._started = True
        if first and prompts:
            source = "resume" if self._resumed else "new"
            await self._hook("sessionStart", {"source": source, "initialPrompt": prompts[0][1]})
            title = self.summary or prompts[0][1]
            self.emit("session.title_changed", {"title": title}, ephemeral=True)
        self.emit("session.tools_updated", {"model": self._model}, ephemeral=True)
        for message_id, prompt in prompts:
            await self._hook("userPromptSubmitted", {"prompt": prompt})
            stamp = f"<current_datetime>{datetime.now(UTC).isoformat()}</current_datetime>\n\n"
            transformed = {"prompt": prompt, "transformedPrompt": stamp + prompt}
            await self._hook("userPromptTransformed", transformed)
            self.emit(
                "user.message",
                {
                    "content": prompt,
                    "transformedContent": stamp + prompt,
                    "messageId": message_id,
                    "delivery": "idle",
                    "interactionId": interaction,
                    "turnId": "0",
                },
            )
        if first:
            self.emit("system.message", {"role": "system", "content": self._system_message()})

    def _system_message(self) -> str:
        given = self.config.get("systemMessage") or {}
        return "You are a scripted assistant." + str(given.get("content", ""))

    async def _call_model(self, interaction: str, originating: str | None) -> None:
        """Call the model until it calls no more tools.

        Raises:
            ModelFailure: a call failed.
        """
        while True:
            turn = str(self._turn)
            self._in_turn = True
            self.emit("assistant.turn_start", {"turnId": turn, "interactionId": interaction})
            self.emit("model.call_start", {"turnId": turn, "model": self._model}, ephemeral=True)
            message_id = str(uuid.uuid4())
            text, call = await self._stream(message_id)
            self.emit("assistant.usage", {"model": self._model}, ephemeral=True)
            message: dict[str, Any] = {"messageId": message_id}
            if originating is not None:
                message["originatingMessageId"] = originating
            requests = [] if call is None else [_tool_request(call)]
            message |= {
                "model": self._model,
                "content": text,
                "toolRequests": requests,
                "interactionId": interaction,
                "turnId": turn,
            }
            self.emit("assistant.message", message)
            if call is not None:
                await self._run_tool(call, interaction)
            self._in_turn = False
            self.emit("assistant.turn_end", {"turnId": turn})
            if call is None:
                return
            self._turn += 1

    async def _stream(self, message_id: str) -> tuple[str, Call | None]:
        text = ""
        size = 0
        started = False
        async for piece in self._cli.model.call(self._model_request()):
            if isinstance(piece, tuple):
                return "", Call(*piece)
            text += piece
            size += len(piece.encode())
            if not self.config.get("streaming"):
                continue
            self.emit("assistant.streaming_delta", {"totalResponseSizeBytes": size}, ephemeral=True)
            if not started:
                started = True
                self.emit("assistant.message_start", {"messageId": message_id}, ephemeral=True)
            delta = {"messageId": message_id, "deltaContent": piece}
            self.emit("assistant.message_delta", delta, ephemeral=True)
        return text, None

    def _conversation(self) -> list[dict[str, Any]]:
        """Return the messages that the history amounts to."""
        messages: list[dict[str, Any]] = []
        for event in self.history:
            data = event["data"]
            match event["type"]:
                case "user.message":
                    messages.append({"role": "user", "content": data["content"]})
                case "assistant.message":
                    messages.append({"role": "assistant", "content": data["content"]})
                case "tool.execution_complete":
                    content = data["result"] if data["success"] else data["error"]
                    text = content.get("content", content.get("message"))
                    messages.append({"role": "tool", "content": text})
        return messages

    def _model_request(self) -> ModelRequest:
        users: list[str] = []
        results: list[str] = []
        for message in self._conversation():
            if message["role"] == "user":
                users.append(message["content"])
                results.clear()
            elif message["role"] == "tool":
                results.append(message["content"])
        provider = self.config.get("provider") or {}
        return ModelRequest(
            model=self._model,
            prompt=users[-1] if users else "",
            user_messages=users,
            tool_results=results,
            tools=self._offered(),
            authorization=f"Bearer {provider['apiKey']}" if "apiKey" in provider else "",
        )

    def _offered(self) -> list[str]:
        """Return the names of the tools that the model may call."""
        names = ["bash"]
        if any(attachment.user_input for attachment in self.attached.values()):
            names.append("ask_user")
        names += self.tools
        allowed = self.config.get("availableTools")
        excluded = self.config.get("excludedTools") or ()
        return [n for n in names if (allowed is None or n in allowed) and n not in excluded]

    # -- tools, permissions, hooks -----------------------------------------------------------

    async def _run_tool(self, call: Call, interaction: str) -> None:
        name, arguments = call.tool.name, call.tool.arguments
        use = {"toolName": name, "toolArgs": arguments}
        if not call.resumed:
            self.emit(
                "tool.execution_start",
                {"toolCallId": call.call_id, "toolName": name, "arguments": arguments,
                 "turnId": str(self._turn), "model": self._model},
            )  # fmt: skip
            await self._hook("preToolUse", use)
        result = await self._tool_result(call)
        await self._hook("postToolUse", {**use, "toolResult": result})
        data: dict[str, Any] = {
            "toolCallId": call.call_id,
            "model": "resumed" if call.resumed else self._model,
            "interactionId": "resume" if call.resumed else interaction,
        }
        text = result.get("textResultForLlm", "")
        if result.get("resultType", "success") == "success":
            content = {"content": text, "detailedContent": text}
            data |= {"success": True, "result": content}
        else:
            code = result.get("code", "failure")
            message = result.get("error") or text
            data |= {"success": False, "error": {"message": message, "code": code}}
        self.emit("tool.execution_complete", data)

    async def _tool_result(self, call: Call) -> dict[str, Any]:
        name = call.tool.name
        if not call.resumed and name not in self._offered():
            offered = ", ".join(self._offered())
            return _failed(
                f"Tool '{name}' does not exist. Available tools that can be called are {offered}."
            )
        if name == "ask_user":
            return await self._ask_user(call)
        if call.external_id is None:
            denied = await self._ask_permission(call)
            if denied is not None:
                return denied
        if name == "bash":
            return _succeeded("<shellId: 0 completed with exit code 0>")
        return await self._call_external(call)

    async def _ask_permission(self, call: Call) -> dict[str, Any] | None:
        """Return None once permitted, else the failed result."""
        if not any(attachment.permission for attachment in self.attached.values()):
            return _failed(_NO_ONE_TO_ASK)
        tool = self.tools.get(call.tool.name)
        description = "" if tool is None else str(tool.definition.get("description", ""))
        request, prompt = payloads.permission(
            call.call_id, call.tool.name, description, call.tool.arguments
        )
        request_id = call.permission_id or str(uuid.uuid4())
        pending = self._wait(self.permissions, request_id, {"request": prompt})
        if call.permission_id is None:
            self.emit(
                "permission.requested",
                {
                    "requestId": request_id,
                    "permissionRequest": request,
                    "promptRequest": prompt,
                    "agentMode": "interactive",
                    "permissionMode": "manual",
                    "ownerSessionId": self.session_id,
                },
            )
        decision = await pending.future
        if str(decision.get("kind", "")).startswith("approve"):
            self._permission_completed(request_id, pending, {"kind": "approved"})
            return None
        self._permission_completed(request_id, pending, {"kind": "denied-interactively-by-user"})
        return _failed("The user rejected this tool call.", code="rejected")

    def _permission_completed(
        self, request_id: str, pending: Pending, result: dict[str, Any]
    ) -> None:
        call_id = pending.item["request"]["toolCallId"]
        self.emit(
            "permission.completed",
            {"requestId": request_id, "toolCallId": call_id, "result": result},
        )

    async def _call_external(self, call: Call) -> dict[str, Any]:
        request_id = call.external_id or str(uuid.uuid4())
        name, arguments = call.tool.name, call.tool.arguments
        if call.external_id is None and name not in self.tools:
            self.emit("external_tool.completed", {"requestId": request_id})
            return _failed("Tool owner disconnected")
        item = {"toolCallId": call.call_id, "toolName": name, "arguments": arguments}
        pending = self._wait(self.external, request_id, item)
        if call.external_id is None:
            self.emit(
                "external_tool.requested",
                {
                    "requestId": request_id,
                    "sessionId": self.session_id,
                    **item,
                    "workingDirectory": self._cwd,
                },
            )
        answer = await pending.future
        self.emit("external_tool.completed", {"requestId": request_id})
        result = answer.get("result")
        if result is None:
            return _failed(str(answer.get("error", "Tool execution failed")))
        return _succeeded(result) if isinstance(result, str) else dict(result)

    def _wait(self, table: dict[str, Pending], request_id: str, item: dict[str, Any]) -> Pending:
        """Enter a request into a table; it leaves the table when it is answered."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        pending = Pending({"requestId": request_id, **item}, future)
        table[request_id] = pending
        future.add_done_callback(lambda _: table.pop(request_id, None))
        return pending

    async def _ask_user(self, call: Call) -> dict[str, Any]:
        arguments = call.tool.arguments
        question = {
            "question": arguments.get("question", ""),
            "choices": arguments.get("choices"),
            "allowFreeform": True,
        }
        request_id = str(uuid.uuid4())
        requested = {"requestId": request_id, **question, "toolCallId": call.call_id}
        self.emit("user_input.requested", requested, ephemeral=True)
        answer = await self._first_answer(
            "userInput.request",
            {"sessionId": self.session_id, **question},
            lambda attachment: attachment.user_input,
        )
        if answer is None:
            answer = {
                "answer": "The user was unable to respond due to an error",
                "wasFreeform": True,
            }
        self.emit("user_input.completed", {**answer, "requestId": request_id}, ephemeral=True)
        verb = "responded" if answer.get("wasFreeform") else "selected"
        return _succeeded(f"User {verb}: {answer['answer']}")

    async def _first_answer(
        self, method: str, params: dict[str, Any], wanted: Callable[[Attachment], bool]
    ) -> Any:
        """Ask every connection that wants to be asked; return the first result, or None."""
        asked = [
            connection.request(method, params)
            for connection, attachment in self.attached.items()
            if wanted(attachment)
        ]
        for answered in asyncio.as_completed(asked):
            result = await answered
            if result is not None:
                return result
        return None

    async def _hook(self, kind: str, data: dict[str, Any]) -> None:
        """Invoke a hook on every connection that has hooks, and wait for all of them."""
        connections = [c for c, attachment in self.attached.items() if attachment.hooks]
        if not connections:
            return
        invocation = str(uuid.uuid4())
        now = int(time.time() * 1000)
        given = {"sessionId": self.session_id, **data, "timestamp": now, "cwd": self._cwd}
        start = {"hookInvocationId": invocation, "hookType": kind, "input": given}
        self.emit("hook.start", start)
        params = {"sessionId": self.session_id, "hookType": kind, "input": given}
        self._no_hook.clear()
        try:
            await asyncio.gather(*(c.request("hooks.invoke", params) for c in connections))
        finally:
            self._no_hook.set()
        end = {"hookInvocationId": invocation, "hookType": kind, "success": True}
        self.emit("hook.end", end)

    def _fail_interrupted(self) -> None:
        """Give tool calls that were cut by a shutdown the result that says so."""
        for call in self._interrupted:
            self.emit(
                "tool.execution_complete",
                {
                    "toolCallId": call.call_id,
                    "model": "resumed",
                    "interactionId": "resume",
                    "success": False,
                    "error": {"message": _INTERRUPTED, "code": "interrupted"},
                },
            )
        count = len(self._interrupted)
        message = f"{count} tool call(s) had no recorded result at resume."
        self.emit("session.warning", {"warningType": "interrupted_tools", "message": message})
        self._interrupted = []


def _interrupted_calls(events: list[Event]) -> list[Call]:
    """Return the tool calls of the last turn that have no result."""
    calls: dict[str, Call] = {}
    for event in events:
        data = event["data"]
        match event["type"]:
            case "user.message" | "abort" | "session.start":
                calls.clear()
            case "assistant.message":
                for request in data["toolRequests"]:
                    tool = ToolCall(request["name"], request["arguments"])
                    call_id = request["toolCallId"]
                    calls[call_id] = Call(call_id, tool, resumed=True)
            case "permission.requested":
                call = calls.get(data["permissionRequest"]["toolCallId"])
                if call is not None:
                    call.permission_id = data["requestId"]
            case "permission.completed":
                for call in calls.values():
                    if call.permission_id == data["requestId"]:
                        call.permission_id = None
            case "external_tool.requested":
                call = calls.get(data["toolCallId"])
                if call is not None:
                    call.external_id = data["requestId"]
            case "external_tool.completed":
                for call in calls.values():
                    if call.external_id == data["requestId"]:
                        call.external_id = None
            case "tool.execution_complete":
                calls.pop(data["toolCallId"], None)
    return list(calls.values())


def _tool_request(call: Call) -> dict[str, Any]:
    return {
        "toolCallId": call.call_id,
        "name": call.tool.name,
        "arguments": call.tool.arguments,
        "type": "function",
    }


def _succeeded(text: str) -> dict[str, Any]:
    return {"textResultForLlm": text, "resultType": "success"}


def _failed(text: str, code: str = "failure") -> dict[str, Any]:
    return {"textResultForLlm": text, "resultType": "failure", "code": code}
