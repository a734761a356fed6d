"""The methods a fake CLI answers."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gateway.testing.model_server import DEFAULT_MODEL
from tests.support.fake_cli.session import Session, ToolClashError, iso
from tests.support.fake_cli.wire import Fault

if TYPE_CHECKING:
    from tests.support.fake_cli.server import Connection, FakeCli

PROTOCOL_VERSION = 3
TASK_KINDS = ("agent", "shell", "client")
CLIENT_INFO = ("editorName", "editorVersion", "extensionName", "extensionVersion")
CONNECT_FIELDS = ("enableGitHubTelemetryForwarding", "clientInfo", "supportedTaskKinds")
LONGEST_ID = 250

_SESSION_ID = re.compile(r"[A-Za-z0-9_-]+")

Params = dict[str, Any]


@dataclass(slots=True)
class Request:
    """One request being answered."""

    cli: FakeCli
    connection: Connection
    method: str
    params: Params
    reply: Callable[[Any], None]
    """Answers at once, for handlers that have more to do; the returned value is not used then."""

    def failed(self, message: str) -> Fault:
        """Return the CLI's ordinary error."""
        return Fault(-32603, f"Request {self.method} failed with message: {message}")

    @property
    def session_id(self) -> str:
        """The session id in the parameters.

        Raises:
            Fault: it is missing.
        """
        value = self.params.get("sessionId")
        if isinstance(value, str):
            return value
        if self.method == "session.send":
            raise self.failed("Missing sessionId in session.send request")
        if self.method == "sessions.close":
            raise self.failed("Invalid sessionId: undefined")
        raise self.failed("Missing sessionId parameter")

    @property
    def session(self) -> Session:
        """The live session the parameters name.

        Raises:
            Fault: it is not live here.
        """
        session = self.cli.sessions.get(self.session_id)
        if session is None:
            wording = "" if self.method == "session.getMessages" else "for sessionId"
            raise self.failed(f"Session not found{wording and ' ' + wording}: {self.session_id}")
        return session


Handler = Callable[[Request], Awaitable[Any]]
METHODS: dict[str, Handler] = {}


def method(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler under one or more method names."""

    def register(handler: Handler) -> Handler:
        METHODS.update(dict.fromkeys(names, handler))
        return handler

    return register


# -- connection --------------------------------------------------------------------------------


@method("connect")
async def _connect(request: Request) -> Any:
    params = dict(request.params)
    token = params.pop("token", None)
    if request.cli.token is None:
        if token is not None:
            raise Fault(-32003, "AUTHENTICATION_NOT_CONFIGURED")
    elif token != request.cli.token:
        raise Fault(-32002, "AUTHENTICATION_FAILED")
    _check_fields(params, CONNECT_FIELDS)
    info = params.get("clientInfo")
    if info is not None:
        _check_fields(info, CLIENT_INFO)
    kinds = params.get("supportedTaskKinds")
    if kinds is not None and not isinstance(kinds, list):
        raise Fault(-32602, "Invalid connect request: invalid type, expected a sequence")
    for kind in kinds or ():
        if kind not in TASK_KINDS:
            expected = ", ".join(f"`{known}`" for known in TASK_KINDS)
            message = f"unknown variant `{kind}`, expected one of {expected}"
            raise Fault(-32602, f"Invalid connect request: {message}")
    request.connection.authenticated = True
    return {
        "ok": True,
        "protocolVersion": PROTOCOL_VERSION,
        "version": request.cli.version,
        "taskKinds": ["agent", "shell", "client"]
        if "client" in (kinds or ())
        else ["agent", "shell"],
    }


def _check_fields(params: Params, known: tuple[str, ...]) -> None:
    for name in params:
        if name not in known:
            expected = ", ".join(f"`{field}`" for field in known)
            message = f"unknown field `{name}`, expected one of {expected}"
            raise Fault(-32602, f"Invalid connect request: {message}")


@method("ping")
async def _ping(request: Request) -> Any:
    message = request.params.get("message")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    text = f"pong: {message}" if isinstance(message, str) else "pong"
    return {"message": text, "timestamp": now, "protocolVersion": PROTOCOL_VERSION}


@method("status.get")
async def _status(request: Request) -> Any:
    return {"version": request.cli.version, "protocolVersion": PROTOCOL_VERSION}


@method("auth.getStatus")
async def _auth_status(request: Request) -> Any:
    if request.cli.signed_in:
        return {"isAuthenticated": True, "statusMessage": "Authenticated"}
    return {"isAuthenticated": False, "statusMessage": "Not authenticated"}


@method("models.list")
async def _models(request: Request) -> Any:
    if not request.cli.signed_in:
        raise request.failed("Not authenticated. Please authenticate first.")
    return {"models": [{"id": DEFAULT_MODEL, "name": DEFAULT_MODEL}]}


@method("runtime.shutdown")
async def _runtime_shutdown(request: Request) -> Any:
    request.reply(None)
    request.cli.exit()


def _singleton(name: str, title: str, plural: str, result: Any) -> None:
    """Register a provider of which a process has one; the first caller keeps it for ever."""

    async def handler(request: Request) -> Any:
        holder = request.cli.providers.get(name)
        if holder is not None and holder is not request.connection:
            raise request.failed(f"Another client is already the {title}.")
        if request.cli.sessions:
            raise request.failed(
                f"Cannot {plural} while sessions are active."
                f" Call {name} before creating any sessions."
            )
        request.cli.providers[name] = request.connection
        return result

    method(name)(handler)


_singleton(
    "sessionFs.setProvider",
    "session filesystem provider",
    "set session filesystem provider",
    {"success": True},
)
_singleton(
    "llmInference.setProvider",
    "LLM inference provider",
    "set LLM inference provider",
    {"success": True},
)
_singleton(
    "registerExtensionLaunchProvider",
    "extension launch provider",
    "register an extension launch provider",
    None,
)


# -- life of a session -------------------------------------------------------------------------


def _described(request: Request, session: Session) -> dict[str, Any]:
    return {
        "sessionId": session.session_id,
        "nativeSessionId": session.session_id,
        "startTime": iso(session.start_time),
        "isRemote": False,
        "mode": "interactive",
        "workspacePath": str(request.cli.storage.path(session.session_id)),
        "capabilities": {
            "ui": {"elicitation": False, "mcpApps": False, "canvases": False},
            "extensions": False,
        },
        "modelState": {"modelId": session.config.get("model", DEFAULT_MODEL)},
    }


def _attach(request: Request, session: Session) -> None:
    try:
        session.attach(request.connection, request.params)
    except ToolClashError as clash:
        raise request.failed(
            f"External tool name clash: {clash} already registered by another connection"
        ) from None


@method("session.create")
async def _create(request: Request) -> Any:
    session_id = request.params.get("sessionId") or str(uuid.uuid4())
    if not isinstance(session_id, str):
        raise request.failed("session.create sessionId must be a string")
    if not _SESSION_ID.fullmatch(session_id):
        raise request.failed(
            f"Rejected session.create request with invalid sessionId: {session_id}"
        )
    if len(session_id) > LONGEST_ID:
        raise request.failed("session construction failed: File name too long (os error 36)")
    await asyncio.sleep(request.cli.create_delay)
    cli = request.cli
    live = cli.sessions.get(session_id)
    if live is not None:
        _attach(request, live)
        return _described(request, live)
    session = Session(cli, session_id)
    session.configure(request.params)
    _attach(request, session)
    cli.sessions[session_id] = session
    cli.storage.lock(session_id)
    session.lifecycle("session.created")
    request.reply(_described(request, session))
    session.start()
    session.lifecycle("session.created")
    return None


@method("session.resume")
async def _resume(request: Request) -> Any:
    cli, session_id = request.cli, request.session_id
    await asyncio.sleep(cli.create_delay)
    session = cli.sessions.get(session_id)
    if session is not None and session.zombie:
        raise request.failed("Session event stream is closed")
    in_use = cli.storage.in_use_elsewhere(session_id)
    if session is not None:
        active = session.processing
        _attach(request, session)
        session.configure(request.params)
    else:
        active = False
        if not cli.storage.exists(session_id):
            raise request.failed(f"Failed to load session events: Session not found: {session_id}")
        session = Session(cli, session_id)
        session.configure(request.params)
        _attach(request, session)
        cli.sessions[session_id] = session
        cli.storage.lock(session_id)
        session.load(
            cli.storage.read(session_id),
            continue_pending=bool(request.params.get("continuePendingWork")),
        )
    request.reply(_described(request, session))
    session.resumed(request.params, in_use=in_use, active=active)


@method("session.detach")
async def _detach(request: Request) -> Any:
    session = request.cli.sessions.get(request.session_id)
    if session is not None:
        session.detach(request.connection, closed=False)
    return {"success": True}


@method("session.destroy")
async def _destroy(request: Request) -> Any:
    session = request.cli.sessions.get(request.session_id)
    return {"success": session is not None and session.detach(request.connection, closed=False)}


@method("sessions.close")
async def _close(request: Request) -> Any:
    session = request.cli.sessions.get(request.session_id)
    if session is not None:
        session.shutdown(silent=True)
    return {}


@method("session.shutdown")
async def _shutdown(request: Request) -> Any:
    session = request.session
    session.shutdown(silent=True)
    session.zombie = True
    request.cli.sessions[session.session_id] = session


@method("sessions.save")
async def _save(request: Request) -> Any:
    session = request.cli.sessions.get(request.session_id)
    if session is not None:
        session.flush()
    return {}


def _delete_files(request: Request) -> str | None:
    """Delete a session; return why not."""
    cli, session_id = request.cli, request.session_id
    if not cli.storage.exists(session_id):
        return f"Session file not found for {session_id}"
    if cli.storage.in_use_elsewhere(session_id):
        return f"Cannot delete session {session_id}: it is currently in use by another process."
    session = cli.sessions.get(session_id)
    if session is not None:
        session.shutdown(silent=True)
    cli.storage.delete(session_id)
    return None


def _tell_deleted(request: Request) -> None:
    params = {"type": "session.deleted", "sessionId": request.session_id}
    request.cli.broadcast("session.lifecycle", params)


@method("session.delete")
async def _delete(request: Request) -> Any:
    error = _delete_files(request)
    if error is not None:
        return {"success": False, "error": error}
    _tell_deleted(request)
    _tell_deleted(request)
    return {"success": True}


@method("sessions.delete")
async def _delete_strict(request: Request) -> Any:
    error = _delete_files(request)
    if error is not None:
        raise request.failed(error)
    _tell_deleted(request)
    return {}


# -- questions about sessions ------------------------------------------------------------------


def _listed(cli: FakeCli, session_id: str) -> dict[str, Any]:
    live = cli.sessions.get(session_id)
    if live is None:
        live = Session(cli, session_id)
        live.load(cli.storage.read(session_id), continue_pending=False)
    item = {
        "sessionId": session_id,
        "startTime": iso(live.start_time),
        "modifiedTime": iso(cli.storage.modified(session_id)),
        "isRemote": False,
        "isDetached": False,
    }
    if live.summary is not None:
        item |= {"summary": live.summary, "name": live.summary}
    return {**item, "clientName": "sdk", "context": {"cwd": str(cli.home / "work")}}


@method("session.list", "sessions.list")
async def _list(request: Request) -> Any:
    await asyncio.sleep(0.002)
    cli = request.cli
    return {"sessions": [_listed(cli, session_id) for session_id in cli.storage.sessions()]}


@method("sessions.getMetadata", "session.getMetadata")
async def _metadata(request: Request) -> Any:
    if not request.cli.storage.exists(request.session_id):
        return {}
    return {"session": _listed(request.cli, request.session_id)}


@method("session.getLastId")
async def _last_id(request: Request) -> Any:
    sessions = request.cli.storage.sessions()
    return {"sessionId": sessions[0]} if sessions else {}


@method("session.getForeground")
async def _foreground(request: Request) -> Any:
    return {}


@method("session.setForeground")
async def _set_foreground(request: Request) -> Any:
    error = "Not running in TUI+server mode - no foreground session change handler registered"
    return {"success": False, "error": error}


@method("sessions.checkInUse")
async def _check_in_use(request: Request) -> Any:
    storage = request.cli.storage
    ids = request.params.get("sessionIds") or []
    return {"inUse": [session_id for session_id in ids if storage.in_use_elsewhere(session_id)]}


@method("session.getMessages")
async def _messages(request: Request) -> Any:
    return {"events": request.session.history}


@method("session.metadata.isProcessing")
async def _processing(request: Request) -> Any:
    return {"processing": request.session.processing}


@method("session.metadata.activity")
async def _activity(request: Request) -> Any:
    busy = request.session.processing
    return {"abortable": busy, "hasActiveWork": busy}


# -- turns -------------------------------------------------------------------------------------


@method("session.send")
async def _send(request: Request) -> Any:
    session = request.session
    await asyncio.sleep(request.cli.jitter())
    (message_id,) = session.enqueue([str(request.params.get("prompt", ""))])
    if request.params.get("wait"):
        await session.wait_idle()
    return {"messageId": message_id}


@method("session.sendMessages")
async def _send_messages(request: Request) -> Any:
    messages = request.params.get("messages") or []
    prompts = [str(message.get("prompt", "")) for message in messages]
    return {"messageIds": request.session.enqueue(prompts)}


@method("session.abort")
async def _abort(request: Request) -> Any:
    await request.session.abort()
    return {"success": True}


@method("session.permissions.pendingRequests")
async def _pending_permissions(request: Request) -> Any:
    return {"items": [pending.item for pending in request.session.permissions.values()]}


@method("session.tools.listPendingRequests")
async def _pending_tools(request: Request) -> Any:
    return {"items": [pending.item for pending in request.session.external.values()]}


@method("session.permissions.handlePendingPermissionRequest")
async def _answer_permission(request: Request) -> Any:
    pending = request.session.permissions.get(str(request.params.get("requestId")))
    if pending is None or pending.future.done():
        return {"success": False}
    pending.future.set_result(request.params.get("result") or {})
    return {"success": True}


@method("session.tools.handlePendingToolCall")
async def _answer_tool(request: Request) -> Any:
    pending = request.session.external.get(str(request.params.get("requestId")))
    if pending is None or pending.future.done():
        return {"success": False}
    pending.future.set_result(request.params)
    return {"success": True}
