"""A stage for the core without sockets: tests on it read like the conversation they are about.

    alice = await stage.client("alice")
    alice.asks("session.create", sessionId="s")
    asked = await stage.cli.gets("session.create")
    asked.answers({"sessionId": "s"})
    await alice.hears_result()

Clients speak through :class:`Actor`, replicas through :class:`ScriptedReplica`. Nothing happens by
itself but what a replica *knows* how to answer (handshakes, pings, questions of the gateway's own);
everything else waits until the test answers it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from gateway.core.client import Client
from gateway.core.hub import Hub, Limits
from gateway.core.link import Link
from gateway.core.ports import Entry
from gateway.core.stats import Stats
from gateway.io.registry import MemoryRegistry
from gateway.policy.rules import MethodPolicy
from gateway.types import Identity, Owner, ReplicaSpec, Role
from gateway.wire.framing import FrameDecoder, encode
from tests.support.rpc import Inbox, Message, frame

IDENTITIES = {
    "alice": Identity("acme", "alice", source="token:1"),
    "bob": Identity("acme", "bob", source="token:2"),
    "boss": Identity("acme", "boss", Role.ADMIN, source="token:3"),
    "eve": Identity("evil", "eve", Role.ADMIN, source="token:4"),
    "mallory": Identity("evil", "mallory", source="token:5"),
    "operator": Identity("default", "admin", Role.ADMIN, source="static"),
}
"""Two tenants, told apart by the first letter of their names: ``acme`` and ``evil``."""

_DIRECT = Entry()

VERSION = "1.0.102"
NOT_FOUND = "Session not found for sessionId: {}"


def token_of(name: str) -> str:
    """Return the token with which somebody of :data:`IDENTITIES` authenticates."""
    return f"{name}-token"


class FakeSink:
    """The way of bytes to a peer of the core; implements :class:`gateway.core.ports.Sink`.

    Attributes:
        paused: the core wants nothing of this peer's.
        closed: the core has ended the connection, in either way.
        aborted: it was ended at once.
    """

    def __init__(self, deliver: Callable[[bytes], None]) -> None:
        self._deliver = deliver
        self.on_resume: Callable[[], None] | None = None
        self.paused = False
        self.closed = False
        self.aborted = False
        self.written = bytearray()

    def write(self, data: bytes, /) -> None:
        if not self.closed:
            self.written += data
            self._deliver(bytes(data))

    def writelines(self, parts: Iterable[bytes | memoryview], /) -> None:
        self.write(b"".join(parts))

    def pause_reading(self) -> None:
        assert not self.paused, "paused twice"
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused, "resumed twice"
        self.paused = False
        if self.on_resume is not None:
            self.on_resume()

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed


class _Ear:
    """Cuts what the core writes into messages."""

    def __init__(self, inbox: Inbox) -> None:
        self._decoder = FrameDecoder(1 << 30)
        self._inbox = inbox

    def __call__(self, data: bytes) -> None:
        for body in self._decoder.feed(data):
            try:
                message = json.loads(body)
            except ValueError:
                message = None
            self._inbox.put(message if isinstance(message, dict) else {"broken": body})


class Actor:
    """A client as a test plays it.

    Attributes:
        core: the client under test.
        sink: what the core writes to it.
        heard: everything it was sent.
    """

    def __init__(self, stage: Stage, peer: str, entry: Entry) -> None:
        self.heard = Inbox()
        self.sink = FakeSink(_Ear(self.heard))
        self.core = Client(stage.hub, self.sink, peer, entry)
        self._stage = stage
        self._last_id = 0

    # What it does

    def says(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.core.feed(data)

    def sends(self, *messages: Message) -> None:
        """Send messages, all in one chunk."""
        self.core.feed(b"".join(map(frame, messages)))

    def request(self, method: str, params: Any, id: Any = None) -> Message:
        """Return a request under the next id, or under the one given."""
        if id is None:
            self._last_id += 1
            id = self._last_id
        return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}

    def asks(self, method: str, id: Any = None, **params: Any) -> Any:
        """Send a request; return its id."""
        message = self.request(method, params, id)
        self.sends(message)
        return message["id"]

    def notifies(self, method: str, **params: Any) -> None:
        """Send a notification."""
        self.sends({"jsonrpc": "2.0", "method": method, "params": params})

    def answers(self, request: Message, result: Any) -> None:
        """Answer a request that it was sent."""
        self.sends({"jsonrpc": "2.0", "id": request["id"], "result": result})

    def leaves(self) -> None:
        """Hang up."""
        self.core.lost()

    # What it notices

    async def hears(self, method: str) -> Message:
        """Take the next request or notification of a method."""
        return await self.heard.wait_for(lambda m: m.get("method") == method, 5)

    async def hears_event(self, kind: str) -> Message:
        """Take the next ``session.event`` of a type; return the params."""
        message = await self.heard.wait_for(
            lambda m: m.get("method") == "session.event" and m["params"]["event"]["type"] == kind,
            5,
        )
        params: Message = message["params"]
        return params

    async def hears_answer(self, id: Any = None) -> Message:
        """Take the answer to a request, by default the last."""
        wanted = self._last_id if id is None else id
        return await self.heard.wait_for(lambda m: "method" not in m and m.get("id") == wanted, 5)

    async def hears_result(self, id: Any = None) -> Any:
        """Take the result of a request, by default the last."""
        answer = await self.hears_answer(id)
        assert "result" in answer, answer
        return answer["result"]

    async def hears_error(self, id: Any = None) -> Message:
        """Take the error of a request, by default the last."""
        answer = await self.hears_answer(id)
        assert "error" in answer, answer
        error: Message = answer["error"]
        return error

    @property
    def unheard(self) -> list[Message]:
        """What it was sent and no test has taken."""
        return self.heard.messages

    # Whole scenes

    async def creates(self, session_id: str = "s", **params: Any) -> Ask:
        """Create a session, answered by the replica; return what the replica was asked."""
        self.asks("session.create", sessionId=session_id, **params)
        asked = await self._stage.anyone_gets("session.create")
        asked.answers({"sessionId": session_id})
        await self.hears_result()
        return asked

    async def resumes(self, session_id: str = "s", **params: Any) -> Ask:
        """Resume a session, answered by the replica."""
        self.asks("session.resume", sessionId=session_id, **params)
        asked = await self._stage.anyone_gets("session.resume")
        asked.answers({"sessionId": session_id})
        await self.hears_result()
        return asked

    async def prompts(self, session_id: str = "s", prompt: str = "hi") -> Ask:
        """Send a prompt; the replica accepts it."""
        self.asks("session.send", sessionId=session_id, prompt=prompt)
        asked = await self._stage.anyone_gets("session.send")
        asked.answers({"messageId": "m"})
        await self.hears_result()
        return asked


class Ask:
    """A request as a replica received it.

    Attributes:
        message: the request.
        line: the connection it came on.
    """

    def __init__(self, line: Line, message: Message) -> None:
        self.line = line
        self.message = message

    @property
    def id(self) -> Any:
        return self.message["id"]

    @property
    def method(self) -> str:
        method: str = self.message["method"]
        return method

    @property
    def params(self) -> Any:
        return self.message.get("params")

    def answers(self, result: Any) -> None:
        """Answer with a result; a session that was made live is live from now on."""
        replica = self.line.replica
        if self.method in ("session.create", "session.resume"):
            replica.live.add(self.params["sessionId"])
        self.line.says({"jsonrpc": "2.0", "id": self.id, "result": result})

    def refuses(self, message: str, code: int = -32603) -> None:
        """Answer with an error."""
        error = {"code": code, "message": message}
        self.line.says({"jsonrpc": "2.0", "id": self.id, "error": error})


class Line:
    """One connection of the gateway to a replica, from the replica's side.

    Attributes:
        sink: what the core writes.
        heard: everything it was sent.
        hello: params of the handshake.
    """

    def __init__(self, replica: ScriptedReplica, link: Link) -> None:
        self.replica = replica
        self.link = link
        self.heard = Inbox()
        self.hello: Message = {}
        self.sink = FakeSink(self._deliver)
        self.sink.on_resume = self._flush
        self._decoder = FrameDecoder(1 << 30)
        self._held: list[bytes] = []

    def _deliver(self, data: bytes) -> None:
        for body in self._decoder.feed(data):
            message = json.loads(body)
            if message.get("method") == "connect":
                self.hello = message["params"]
            self.replica.received(self, message)

    def says(self, *messages: Message) -> None:
        """Send messages in one chunk, in the CLI's form."""
        self.says_raw(b"".join(map(frame, messages)))

    def says_raw(self, data: bytes) -> None:
        """Send bytes; they wait while the core does not read."""
        self._held.append(data)
        if not self.sink.paused:
            self._flush()

    def _flush(self) -> None:
        held, self._held = self._held, []
        for data in held:
            self.link.feed(data)

    def emits(self, session_id: str, kind: str, **data: Any) -> None:
        """Send a ``session.event``."""
        self.says(event(session_id, kind, **data))

    def asks(self, id: Any, method: str, **params: Any) -> None:
        """Send a request of the CLI's."""
        self.says({"jsonrpc": "2.0", "id": id, "method": method, "params": params})

    def notifies(self, method: str, **params: Any) -> None:
        """Send a notification."""
        self.says({"jsonrpc": "2.0", "method": method, "params": params})

    def breaks(self) -> None:
        """End this one connection."""
        self.link.lost("the replica closed the connection")


def event(session_id: str, kind: str, **data: Any) -> Message:
    """Return a ``session.event`` as the CLI writes it."""
    params = {"sessionId": session_id, "event": {"type": kind, "data": data}}
    return {"jsonrpc": "2.0", "method": "session.event", "params": params}


def lifecycle(session_id: str, kind: str = "session.updated") -> Message:
    """Return a ``session.lifecycle`` notification as the CLI writes it."""
    params = {"type": kind, "sessionId": session_id, "metadata": {"startTime": "t"}}
    return {"jsonrpc": "2.0", "method": "session.lifecycle", "params": params}


Knowledge = Callable[[Ask], Any]


class ScriptedReplica:
    """A replica as a test plays it.

    Attributes:
        lines: open connections, the control link first.
        stored: sessions on its disk, with their list entries.
        live: sessions in its memory.
        knows: methods it answers by itself.
        refusing: connections are refused.
    """

    def __init__(self, stage: Stage, name: str) -> None:
        self._stage = stage
        self.name = name
        self.spec = ReplicaSpec(name, "127.0.0.1", 4000 + len(stage.replicas), f"{name}-secret")
        self.lines: list[Line] = []
        self.stored: dict[str, Message] = {}
        self.live: set[str] = set()
        self.asked = Inbox()
        self.told = Inbox()
        self.refusing = False
        self.hello: Message = {
            "ok": True,
            "protocolVersion": 3,
            "version": VERSION,
            "taskKinds": ["agent", "shell"],
        }
        self.knows: dict[str, Knowledge] = {
            "connect": lambda ask: self.hello,
            "ping": lambda ask: {"message": "pong", "timestamp": 1, "protocolVersion": 3},
            "sessions.getMetadata": self._metadata,
            "session.metadata.isProcessing": self._processing,
            "session.list": lambda ask: {"sessions": list(self.stored.values())},
        }

    def _metadata(self, ask: Ask) -> Any:
        entry = self.stored.get(ask.params["sessionId"])
        return {"session": entry} if entry is not None else {}

    def _processing(self, ask: Ask) -> Any:
        if ask.params["sessionId"] not in self.live:
            raise LookupError(NOT_FOUND.format(ask.params["sessionId"]))
        return {"processing": False}

    def stores(self, *session_ids: str, modified: str = "2026-01-01T00:00:00.000Z") -> None:
        """Have sessions on disk."""
        for session_id in session_ids:
            self.stored[session_id] = {"sessionId": session_id, "modifiedTime": modified}

    def received(self, line: Line, message: Message) -> None:
        line.heard.put(message)
        if "method" not in message or "id" not in message:
            self.told.put(message)
            return
        ask = Ask(line, message)
        knowledge = self.knows.get(ask.method)
        if knowledge is None:
            self.asked.put({"method": ask.method, "ask": ask})
            return
        # Not within the call that writes: a socket would answer later, too.
        asyncio.get_running_loop().call_soon(self._reply, ask, knowledge)

    def _reply(self, ask: Ask, knowledge: Knowledge) -> None:
        if ask.line not in self.lines:
            return
        try:
            result = knowledge(ask)
        except LookupError as error:
            ask.refuses(str(error.args[0]))
        else:
            ask.answers(result)

    def accepts(self, link: Link) -> FakeSink:
        """Take a connection.

        Raises:
            ConnectionRefusedError: it accepts none.
        """
        if self.refusing:
            raise ConnectionRefusedError(f"{self.name} refuses")
        line = Line(self, link)
        self.lines.append(line)
        return line.sink

    async def gets(self, method: str) -> Ask:
        """Take the next request of a method that it does not answer by itself."""
        found = await self.asked.wait_for(lambda m: m["method"] == method, 5)
        ask: Ask = found["ask"]
        return ask

    async def hears(self, what: Callable[[Message], Any]) -> Message:
        """Take the next notification or answer that fits."""
        return await self.told.wait_for(what, 5)

    @property
    def unanswered(self) -> list[str]:
        """Methods of requests that no test has taken."""
        return [found["method"] for found in self.asked.messages]

    def line_of(self, actor: Actor) -> Line:
        """Return a client's connection."""
        (line,) = [
            one for one in self.lines if one.link.client is actor.core and not one.link.closed
        ]
        return line

    def broadcasts(self, message: Message) -> None:
        """Say something on every connection."""
        for line in list(self.lines):
            if not line.link.closed:
                line.says(message)

    def dies(self) -> None:
        """End all connections and refuse new ones; what is live is forgotten."""
        self.refusing = True
        self.live.clear()
        lines, self.lines = self.lines, []
        for line in lines:
            line.link.lost("the replica closed the connection")

    async def returns(self) -> None:
        """Accept connections again; the gateway's probe finds it."""
        self.refusing = False
        await self._stage.probe(self.name)


class StageTimer:
    """A call that waits for the stage's time to pass."""

    def __init__(self, due: float, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.due = due
        self._callback = callback
        self._args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def fire(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self._callback(*self._args)


class Stage:
    """A hub, its replicas and its clients.

    Attributes:
        hub: the hub under test.
        registry: where it keeps placements.
        replicas: by name.
        audit: records written, as ``(event, fields)``.
        failures: seconds that failed authentications wait, by peer.
        tokens: who holds which token.
    """

    def __init__(self, limits: Limits, **options: Any) -> None:
        self._offset = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: list[StageTimer] = []
        self._errors: list[BaseException] = []
        self.registry = options.pop("registry", None) or MemoryRegistry()
        self.replicas: dict[str, ScriptedReplica] = {}
        self.audit: list[tuple[str, dict[str, Any]]] = []
        self.actors: list[Actor] = []
        self.delay = 0.0
        self.proof: Callable[[object], Awaitable[Identity | None]] | None = None
        self.tokens = {token_of(name): one for name, one in IDENTITIES.items()}
        self.stats = Stats()
        self.hub = Hub(
            registry=self.registry,
            dialer=self,
            authenticator=self,
            policy=options.pop("policy", None) or MethodPolicy(),
            audit=self,
            tasks=self,
            stats=self.stats,
            clock=self.now,
            wall_clock=self.now,
            log=logging.getLogger("gateway.stage"),
            limits=limits,
            **options,
        )

    # Ports of the core

    async def dial(self, link: Link) -> FakeSink:
        """Implement :class:`gateway.core.ports.Dialer`."""
        await asyncio.sleep(0)
        return self.replicas[link.replica.name].accepts(link)

    def authenticate(
        self, token: object, peer: str
    ) -> Identity | Awaitable[Identity | None] | None:
        """Implement :class:`gateway.core.ports.Authenticator`."""
        if self.proof is not None:
            return self.proof(token)
        return self.tokens.get(token) if isinstance(token, str) else None

    def failed(self, peer: str) -> float:
        """Implement :class:`gateway.core.ports.Authenticator`."""
        return self.delay

    def record(self, event: str, **fields: Any) -> None:
        """Implement :class:`gateway.core.ports.Audit`."""
        self.audit.append((event, fields))

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Implement :class:`gateway.core.ports.Tasks`."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            assert error is not None
            self._errors.append(error)

    def call_later(self, seconds: float, callback: Any, *args: Any) -> StageTimer:
        """Implement :class:`gateway.core.ports.Tasks`; see :meth:`time_passes`."""
        timer = StageTimer(self.now() + seconds, callback, args)
        self._timers.append(timer)
        return timer

    # What a test does

    def now(self) -> float:
        """Return the time on stage: the loop's, and what was skipped of it."""
        return asyncio.get_running_loop().time() + self._offset

    def time_passes(self, seconds: float) -> None:
        """Skip time: timers that come due fire, in order."""
        self._offset += seconds
        for timer in sorted(self._timers, key=lambda one: one.due):
            if timer.due <= self.now():
                self._timers.remove(timer)
                timer.fire()

    async def settle(self) -> None:
        """Let everything happen that can happen without time passing."""
        for _ in range(100):
            await asyncio.sleep(0)

    async def adds(self, *names: str) -> None:
        """Bring up replicas."""
        for name in names:
            self.replicas[name] = ScriptedReplica(self, name)
        self.hub.set_replicas(replica.spec for replica in self.replicas.values())
        for name in names:
            await self.probe(name)

    async def shares(self, other: Stage) -> None:
        """Stand in front of the replicas of another stage, as a second gateway does."""
        self.replicas = other.replicas
        self.hub.set_replicas(replica.spec for replica in self.replicas.values())
        for name in self.replicas:
            await self.probe(name)

    async def probe(self, name: str) -> None:
        """Do what the prober does: connect the control link and say so."""
        replica = self.hub.replicas[name]
        link = self.hub.new_control_link(replica)
        await link.open()
        self.hub.control_ready(link)
        self.hub.note_success(replica, 0.001)

    @property
    def cli(self) -> ScriptedReplica:
        """The only replica, or the first."""
        return next(iter(self.replicas.values()))

    def stranger(self, peer: str = "192.0.2.1:5", entry: Entry = _DIRECT) -> Actor:
        """Return a client that has said nothing yet."""
        actor = Actor(self, peer, entry)
        self.actors.append(actor)
        return actor

    async def client(self, name: str, **hello: Any) -> Actor:
        """Return a client that has authenticated."""
        actor = self.stranger(f"192.0.2.1:{1000 + len(self.actors)}")
        actor.asks("connect", token=token_of(name), **hello)
        await actor.hears_result()
        return actor

    async def anyone_gets(self, method: str) -> Ask:
        """Take the next request of a method from whichever replica gets it."""
        async with asyncio.timeout(5):
            while True:
                for replica in self.replicas.values():
                    if method in replica.unanswered:
                        return await replica.gets(method)
                await asyncio.sleep(0.001)

    def owner_of(self, name: str) -> Owner:
        """Return the owner that sessions of somebody have."""
        identity = IDENTITIES[name]
        return Owner(identity.tenant, identity.user)

    async def recorded(self, session_id: str, name: str, replica: str = "cli-0") -> None:
        """Have a session in the registry."""
        await self.registry.claim(session_id, self.owner_of(name), replica)

    def audited(self, event: str) -> list[dict[str, Any]]:
        """Return the fields of all audit records of a kind."""
        return [fields for kind, fields in self.audit if kind == event]

    async def close(self) -> None:
        """End everything.

        Raises:
            BaseExceptionGroup: something failed behind the scenes.
        """
        for actor in self.actors:
            actor.core.lost()
        self.hub.set_replicas([])
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._errors:
            raise BaseExceptionGroup("behind the scenes", self._errors)


def without(message: Message, *keys: str) -> Message:
    """Return a message without some keys."""
    return {key: value for key, value in message.items() if key not in keys}


def raw(bodies: Iterable[bytes]) -> bytes:
    """Return bodies as one stream of frames."""
    return b"".join(map(encode, bodies))
