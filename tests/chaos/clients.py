"""What an application does: SDK connections that come back, and conversations that never stop.

Nothing here knows which target it runs against. A client whose connection ends connects again, to
any front, and resumes its sessions; a prompt whose fate is unclear is looked up in the history.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from copilot import CopilotClient, RuntimeConnection
from copilot.generated.session_events import (
    AssistantMessageData,
    SessionEvent,
    SessionIdleData,
    UserMessageData,
)
from copilot.session import CopilotSession, PermissionHandler
from copilot.tools import Tool, ToolInvocation, ToolResult

from gateway.testing.model_server import DEFAULT_MODEL
from tests.chaos.check import Fate, Prompt, Said, prompt_text, tag_of

T = TypeVar("T")

log = logging.getLogger("tests.chaos")

TURN_BOUND = 60.0
"""Seconds after which a turn that has not ended is stuck. Turns take about two."""

CONNECT_BOUND = 10.0
"""Seconds that a handshake may take before the client tries another front."""

RESUME_BOUND = 45.0
"""Seconds that a create or a resume may take; a gateway answers within its own 30."""

PING_EVERY = 1.0
PING_BOUND = 15.0
"""Seconds between a client's pings, and until one that is not answered means a dead connection.

SDKs notice the end of a connection only when they next use it.
"""

SETTLE_GRACE = 6.0
"""Seconds that a session must stay idle before a prompt without an answer is given up."""

_TOOL = "lookup"
_THINK = (0.1, 1.2)
_LIFETIME = (8, 25)
"""Prompts of a session before its conversation ends and a new one takes its place."""


class ConnectionLostError(Exception):
    """The connection ended, or the run is over."""


def describe(error: BaseException) -> str:
    """Return the kind of an error that an application sees: a code where it has one."""
    code = getattr(error, "code", None)
    if isinstance(code, int):
        return f"{code} {str(error).partition(': ')[2][:40]}" if code == -32603 else str(code)
    if isinstance(error, TimeoutError):
        return "no answer"
    text = str(error)
    if text.startswith("Session error"):
        return "session.error"
    if any(
        words in text
        for words in ("closed before", "exited", "ended", "disconnected", "not connected")
    ):
        return "connection lost"
    return type(error).__name__


@dataclass(slots=True)
class Seen:
    """What the clients of a run saw.

    Attributes:
        errors: by kind.
        connects: connections made, the first of each client included.
        stuck: prompts whose turn did not end within its bound, with their sessions.
    """

    errors: Counter[str] = field(default_factory=Counter)
    connects: int = 0
    stuck: set[tuple[str, int]] = field(default_factory=set)


@dataclass(slots=True)
class Record:
    """One conversation, for the judgement at the end.

    Attributes:
        session: its id.
        prompts: all prompts sent.
        events: when the events of its session arrived, on the loop's clock.
        idles: when those arrived that say that a turn has ended.
        busy: a turn is under way.
        problems: what its client saw, in words.
    """

    session: str
    prompts: list[Prompt] = field(default_factory=list)
    events: list[float] = field(default_factory=list)
    idles: list[float] = field(default_factory=list)
    busy: bool = False
    problems: list[str] = field(default_factory=list)


class Application:
    """One SDK connection at a time, kept up.

    Attributes:
        name: for humans and in session ids.
        client: the connected client, or None while there is none.
    """

    def __init__(
        self,
        name: str,
        first: int,
        ports: list[int],
        token: str,
        model_url: str,
        rng: random.Random,
        seen: Seen,
    ) -> None:
        self.name = name
        self.client: CopilotClient | None = None
        self._port = ports[first % len(ports)]
        self._ports = ports
        self._token = token
        self._model_url = model_url
        self._rng = rng
        self._seen = seen
        self._sessions: dict[str, CopilotSession] = {}
        self._connected = asyncio.Condition()
        self._dropped = asyncio.Event()
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, and stay connected until :meth:`stop`."""
        self._task = asyncio.create_task(self._run(), name=self.name)
        async with self._connected:
            await self._connected.wait_for(lambda: self.client is not None)

    async def stop(self) -> None:
        """Disconnect for good."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def port(self) -> int:
        """Where it is connected, or trying to be."""
        return self._port

    def drop(self) -> None:
        """Cut the connection; a new one follows."""
        self._dropped.set()

    async def _run(self) -> None:
        while True:
            client = CopilotClient(
                connection=RuntimeConnection.for_uri(
                    f"127.0.0.1:{self._port}", connection_token=self._token
                )
            )
            try:
                async with asyncio.timeout(CONNECT_BOUND):
                    await client.start()
                self._seen.connects += 1
                await self._serve(client)
            except Exception as error:
                # A front that is down refuses connections; that one is down is the run's own doing.
                if isinstance(error, TimeoutError) or getattr(error, "code", None) is not None:
                    self._seen.errors[f"connect: {describe(error)}"] += 1
                await asyncio.sleep(0.1)
            finally:
                self.client = None
                self._sessions.clear()
                await client.force_stop()
                self._lost.set()
            self._port = self._rng.choice(self._ports)

    async def _serve(self, client: CopilotClient) -> None:
        """Offer a client to the conversations until its connection is lost."""
        self._dropped.clear()
        self._lost = asyncio.Event()
        async with self._connected:
            self.client = client
            self._connected.notify_all()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING_EVERY):
                    await self._dropped.wait()
                return
            try:
                async with asyncio.timeout(PING_BOUND):
                    await client.ping("still there")
            except TimeoutError:
                self._seen.errors["ping: no answer"] += 1
                return
            except Exception:
                return  # the connection has ended

    async def ask(self, question: Awaitable[T]) -> T:
        """Await an answer on the present connection.

        The SDK leaves requests unanswered for ever that are under way at its ``force_stop``.

        Raises:
            ConnectionLostError: the connection was given up first.
        """
        asked, lost = asyncio.ensure_future(question), asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait([asked, lost], return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise ConnectionLostError("the connection ended meanwhile")
            return asked.result()
        finally:
            lost.cancel()
            asked.cancel()

    async def create(
        self, record: Record, on_event: Callable[[SessionEvent], None], tools: list[Tool]
    ) -> CopilotSession:
        """Create a session."""
        client = await self._wait()
        async with asyncio.timeout(RESUME_BOUND):
            session = await self.ask(
                client.create_session(session_id=record.session, **self._options(on_event, tools))
            )
        self._keep(client, session)
        return session

    async def attach(
        self, record: Record, on_event: Callable[[SessionEvent], None], tools: list[Tool]
    ) -> CopilotSession:
        """Return a session, resumed if this connection has not done that yet."""
        client = await self._wait()
        known = self._sessions.get(record.session)
        if known is not None:
            return known
        async with asyncio.timeout(RESUME_BOUND):
            session = await self.ask(
                client.resume_session(
                    record.session, continue_pending_work=True, **self._options(on_event, tools)
                )
            )
        self._keep(client, session)
        return session

    def _keep(self, client: CopilotClient, session: CopilotSession) -> None:
        if client is not self.client:
            raise ConnectionLostError("the connection ended meanwhile")
        self._sessions[session.session_id] = session

    def forget(self, record: Record) -> None:
        """Resume this session anew before its next use."""
        self._sessions.pop(record.session, None)

    async def leave(self, record: Record) -> None:
        """Detach from a session."""
        session = self._sessions.pop(record.session, None)
        if session is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(RESUME_BOUND):
                    await self.ask(session.disconnect())

    def _options(self, on_event: Callable[[SessionEvent], None], tools: list[Tool]) -> Any:
        return {
            "on_permission_request": PermissionHandler.approve_all if tools else None,
            "tools": tools or None,
            "model": DEFAULT_MODEL,
            "streaming": True,
            "on_event": on_event,
            "provider": {"type": "openai", "base_url": self._model_url, "api_key": "none"},
        }

    async def _wait(self) -> CopilotClient:
        async with self._connected:
            await self._connected.wait_for(lambda: self.client is not None)
        assert self.client is not None
        return self.client


class Conversation:
    """One session after the other, prompt after prompt.

    Some have a second client attached, on a connection of its own, which speaks now and then.

    Attributes:
        record: the session under way.
        records: all of them.
    """

    def __init__(
        self, name: str, main: Application, guest: Application | None, seed: str, seen: Seen
    ) -> None:
        self._name = name
        self._main = main
        self._guest = guest
        self._rng = random.Random(seed)
        self._seen = seen
        self._left = 0
        self._tools = [
            Tool(
                _TOOL,
                "looks up a value",
                self._look_up,
                {"type": "object", "properties": {"key": {"type": "string"}}},
            )
        ]
        self.records: list[Record] = []

    @property
    def record(self) -> Record:
        """The session under way."""
        return self.records[-1]

    def front_killed(self, port: int) -> None:
        """Note that what listens on a port was killed."""
        if self.record.busy and self._main.port == port:
            self.record.prompts[-1].orphaned = True

    async def begin(self) -> None:
        """Create a session and say the first prompt, until that has worked."""
        while True:
            self.records.append(Record(f"{self._name}-{len(self.records)}"))
            self._left = self._rng.randint(*_LIFETIME)
            try:
                await self._main.create(self.record, self._note(self.record), self._tools)
            except Exception as error:
                self._trouble("create", error)
                await asyncio.sleep(0.2)
                continue
            if await self._turn(self._main):
                return

    async def run(self, until: float) -> None:
        """Talk until a moment of the loop's clock."""
        clock = asyncio.get_running_loop().time
        while clock() < until:
            await asyncio.sleep(self._rng.uniform(*_THINK))
            if self._left <= 0:
                for application in filter(None, (self._main, self._guest)):
                    await application.leave(self.record)
                await self.begin()
            elif self._guest is not None and self._rng.random() < 0.3:
                await self._turn(self._guest)
            else:
                await self._turn(self._main)

    async def _turn(self, speaker: Application) -> bool:
        """Say one prompt, or two at once; True if the last one was answered."""
        record, rng = self.record, self._rng
        self._left -= 1
        pair = rng.random() < 0.15
        try:
            session = await speaker.attach(record, self._note(record), self._tools_of(speaker))
        except Exception as error:
            self._trouble("resume", error)
            await asyncio.sleep(0.3)
            return False
        record.busy = True
        try:
            answer = None
            if pair:
                last, text = self._compose(tool=False)
                await self._say(last, speaker.ask(session.send(text)))
            if not pair or last.fate is Fate.ACKNOWLEDGED:
                last, text = self._compose(tool=speaker is self._main and rng.random() < 0.3)
                if rng.random() < 0.5:
                    # Of these it is known whether they were acknowledged, whatever comes then.
                    await self._say(last, speaker.ask(session.send(text)))
                else:
                    waiting = session.send_and_wait(text, timeout=TURN_BOUND)
                    answer = await self._say(last, speaker.ask(waiting))
            last.answered = answer is not None and _answers(answer, last, record)
            if not last.answered:
                await self._settle(speaker, last)
            return last.answered
        finally:
            record.busy = False

    def _compose(self, *, tool: bool) -> tuple[Prompt, str]:
        record, rng = self.record, self._rng
        prompt = Prompt(len(record.prompts) + 1)
        directives = (
            f"[[chunks {rng.randint(4, 20)}]] [[chunk-delay {rng.uniform(0.01, 0.12):.2f}]]"
        )
        if tool:
            prompt.tool_value = f"value-{prompt.number}"
            directives += f' [[tool {_TOOL} {{"key": "{prompt.number}"}}]]'
        record.prompts.append(prompt)
        return prompt, prompt_text(record.session, prompt.number, directives)

    async def _say(self, prompt: Prompt, sending: Any) -> SessionEvent | None:
        """Send a prompt and note what becomes of it; return the answer, if there is one."""
        try:
            async with asyncio.timeout(TURN_BOUND + 5):
                said = await sending
        except Exception as error:
            if isinstance(error, TimeoutError):
                self._seen.stuck.add((self.record.session, prompt.number))
            if getattr(error, "code", None) is not None and prompt.fate is Fate.UNKNOWN:
                prompt.fate = Fate.REFUSED
            self._trouble(f"prompt {prompt.number}", error)
            return None
        prompt.fate = Fate.ACKNOWLEDGED
        return said if isinstance(said, SessionEvent) else None

    async def _settle(self, speaker: Application, prompt: Prompt) -> None:
        """Find out what became of a prompt, as a careful application does, within a bound."""
        clock = asyncio.get_running_loop().time
        give_up, idle_since = clock() + TURN_BOUND, clock()
        record = self.record
        while clock() < give_up:
            try:
                session = await speaker.attach(record, self._note(record), self._tools_of(speaker))
                async with asyncio.timeout(RESUME_BOUND):
                    working = await speaker.ask(session.rpc.metadata.is_processing())
                    if working.processing:
                        idle_since = clock()
                    elif any(
                        _answers(event, prompt, record)
                        for event in await speaker.ask(session.get_events())
                    ):
                        prompt.answered = True
                        return
            except Exception as error:
                self._trouble(f"after prompt {prompt.number}", error)
                if "Session not found" in str(error) and not _was_stored(record):
                    return
                idle_since = clock()
                speaker.forget(record)
            if clock() - idle_since > SETTLE_GRACE:
                return
            await asyncio.sleep(0.4)
        self._seen.stuck.add((record.session, prompt.number))
        record.problems.append(f"prompt {prompt.number}: not settled")

    def _note(self, record: Record) -> Callable[[SessionEvent], None]:
        """Return a handler that watches the events of a session."""
        clock = asyncio.get_running_loop().time

        def handle(event: SessionEvent) -> None:
            record.events.append(clock())
            if isinstance(event.data, SessionIdleData):
                record.idles.append(clock())
            if not isinstance(event.data, AssistantMessageData):
                return
            tag = tag_of(event.data.content)
            if tag is None or tag[0] != record.session or tag[1] > len(record.prompts):
                return
            prompt = record.prompts[tag[1] - 1]
            if isinstance(event.data, AssistantMessageData):
                prompt.answered = True

        return handle

    def _tools_of(self, speaker: Application) -> list[Tool]:
        return self._tools if speaker is self._main else []

    async def _look_up(self, invocation: ToolInvocation) -> ToolResult:
        await asyncio.sleep(self._rng.uniform(0.0, 0.8))
        return ToolResult(text_result_for_llm=f"value-{invocation.arguments['key']}")

    def _trouble(self, doing: str, error: BaseException) -> None:
        kind = describe(error)
        self._seen.errors[kind] += 1
        self.record.problems.append(f"{doing}: {kind}: {str(error)[:200]}")
        log.info("%s: %s", self.record.session, self.record.problems[-1])


def _was_stored(record: Record) -> bool:
    """Whether the session must be on disk: it is not before its first prompt is."""
    return any(one.answered or one.fate is Fate.ACKNOWLEDGED for one in record.prompts)


def _answers(event: SessionEvent, prompt: Prompt, record: Record) -> bool:
    return (
        isinstance(event.data, AssistantMessageData)
        and bool(event.data.content)
        and tag_of(event.data.content) == (record.session, prompt.number)
    )


def said(events: list[SessionEvent]) -> list[Said]:
    """Return the user messages and answers of a history as the SDK gives it."""
    history = []
    for event in events:
        if isinstance(event.data, UserMessageData):
            history.append(Said(True, event.data.content))
        elif isinstance(event.data, AssistantMessageData) and event.data.content:
            history.append(Said(False, event.data.content))
    return history
