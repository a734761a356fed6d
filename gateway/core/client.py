"""One connection from a Copilot SDK; the counterpart of ``link``.

The client's side of the data path: frames are cut, parsed and routed here. A message for a session
whose binding is open goes to the replica's socket in the same call.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from gateway import errors
from gateway.core import answers
from gateway.core.admission import Admission
from gateway.core.binding import Binding
from gateway.core.lane import MAX_DIRECT_BYTES, pass_requests
from gateway.core.link import Link, LinkLostError
from gateway.core.pending import Hook, Pending, PendingHook
from gateway.core.placer import no_lease
from gateway.core.ports import Entry
from gateway.core.recipe import after_call, changes_recipe
from gateway.core.request import Request
from gateway.core.session import Session, SessionNotFoundError
from gateway.core.stats import MethodStats, Stats, TenantStats, method_class
from gateway.core.turn import REPEATABLE
from gateway.errors import RpcError
from gateway.policy import results
from gateway.policy.params import ParamPolicy, policy_for
from gateway.policy.quotas import Allowance
from gateway.policy.rules import MethodRule, PolicyView, Route
from gateway.policy.session_ids import is_valid_session_id, session_ids
from gateway.types import Identity, Owner, Role
from gateway.wire import compat, envelope, framing
from gateway.wire.scan import Scanned, scan

if TYPE_CHECKING:
    from gateway.core.hub import Hub
    from gateway.core.ports import Sink
    from gateway.core.replica import Replica

_DIRECT = Entry()
_NO_METHODS: frozenset[str] = frozenset()

_BRIDGED = frozenset({compat.DETACH, "session.shutdown"})
"""Session methods whose answer is not passed on as it came."""

_UNBOUND = frozenset({Route.ANY, Route.SINGLETON, Route.REPLY, Route.MERGE, Route.ALL})
"""Routes of requests that may name sessions without being about one."""

_FILES = "sessionFs.setProvider"
"""The registration that a CLI keeps when the client has gone."""

_NEVER_REFUSED = frozenset({"session.answer", "session.abort", "session.end"})
"""Classes of methods that end something: over a rate they are delayed, not refused."""

_REFUSED_PAUSE = 0.1
"""Seconds for which a client at most is not read after a refusal: it cannot spend our time by
ignoring refusals, and what it sends to end something does not wait long."""

_LONGEST_PAUSE = 5.0
"""Seconds for which a client at most is not read after messages that are never refused."""

_LINGERING_CUTS = frozenset({"stalled", "limit", "protocol"})
"""Reasons for a cut after which the client may come back for its turn."""

_SPLIT_WRITE_BYTES = 64 * 1024
"""From this size on, header and body are written apart rather than copied together."""


Direct = dict[str, tuple[MethodRule, MethodStats, bool]]
"""Methods whose requests go to an open session unread, each with what is needed to pass it on, and
whether it is a prompt."""


@functools.lru_cache(maxsize=64)
def _direct(policy: PolicyView, shaped: frozenset[str], stats: Stats, *, prompts: bool) -> Direct:
    """Return the methods that pass directly, shared by all clients with the same policy.

    All others do something beside passing: they are part of a turn, change what makes the session
    live again, name other sessions too, or have parameters that a rule may rewrite.

    Args:
        policy: the client's policy.
        shaped: methods whose parameters a rule may rewrite.
        stats: counters of the worker.
        prompts: prompts need nothing but to be noted.
    """
    return {
        rule.method: (rule, stats.method(rule.method), rule.starts_turn)
        for rule in policy.rules
        if rule.route is Route.SESSION
        and rule.simple
        and (prompts or not rule.starts_turn)
        and rule.sent_as == rule.method
        and not changes_recipe(rule.method)
        and rule.method not in REPEATABLE
        and rule.method not in _BRIDGED
        and rule.method not in shaped
    }


class Client:
    """An SDK's connection.

    Attributes:
        hub: the hub of its pool; before it is known, the one it came in by.
        entry: the listener it came in by.
        tenant_stats: counters of its tenant, once that is known.
        authenticating: a ``connect`` is being looked at; what follows it is held.
        peer: the client's address, for logs and limits.
        identity: who it is; None until a ``connect`` was accepted.
        owner: tenant and user of the identity.
        connect_params: what its ``connect`` said, without the token: replayed on every link.
        allowance: the quotas that apply to it, or None.
        direct: methods that pass directly to an open session; empty before it is authenticated.
        begun: chunks of the frame that has begun and not ended.
        bindings: its sessions by id.
        links: its connections by replica name.
        pending: its requests in flight by id.
        write_paused: the client does not keep up; its links are not read.
        closed: the connection has ended.
    """

    __slots__ = (
        "_admission",
        "_buffer",
        "_callbacks",
        "_holds",
        "_lobby",
        "_lobby_busy",
        "_next_callback",
        "_old",
        "_opening",
        "_paced",
        "_params",
        "_policy",
        "_registrations",
        "_shaped",
        "_shares",
        "allowance",
        "authenticating",
        "begun",
        "bindings",
        "closed",
        "connect_params",
        "direct",
        "entry",
        "hub",
        "identity",
        "links",
        "owner",
        "peer",
        "pending",
        "sink",
        "tenant_stats",
        "write_paused",
    )

    def __init__(self, hub: Hub, sink: Sink, peer: str, entry: Entry = _DIRECT) -> None:
        """Admit a connection.

        Args:
            hub: what the clients share.
            sink: where bytes for it go.
            peer: its address.
            entry: the listener it came in by; one that proves an identity makes the client
                authenticated from the start.
        """
        self.hub = hub
        self.entry = entry
        self.allowance: Allowance | None = None
        self._old = False
        self.direct: Direct = {}
        self._paced = False
        self._params: ParamPolicy | None = None
        self._shaped = _NO_METHODS
        self._shares = False
        self._buffer = framing.FrameBuffer(
            hub.limits.max_unauthenticated_frame, hub.limits.max_header
        )
        self.begun = self._buffer.chunks
        self.authenticating = False
        self._callbacks: dict[int, tuple[Link, Any]] = {}
        self._next_callback = 0
        self._holds = 0
        self._lobby: list[Request] = []
        self._lobby_busy = False
        self._opening: dict[str, asyncio.Future[Link]] = {}
        self._policy: PolicyView | None = None
        self._registrations: dict[str, Any] = {}
        self.tenant_stats: TenantStats | None = None
        self.sink = sink
        self.peer = peer
        self.identity: Identity | None = None
        self.owner: Owner | None = None
        self.connect_params: dict[str, Any] = {}
        self.bindings: dict[str, Binding] = {}
        self.links: dict[str, Link] = {}
        self.pending: dict[Any, Pending] = {}
        self.write_paused = False
        self.closed = False
        hub.clients.add(self)
        hub.stats.clients_open += 1
        hub.stats.clients_accepted += 1
        self._admission = Admission(self)
        if entry.identity is not None:
            self.enter(entry.identity)

    def __repr__(self) -> str:
        """Return a diagnosis; names no secret."""
        who = f"{self.owner.tenant}/{self.owner.user}" if self.owner else "unauthenticated"
        return (
            f"<Client {self.peer} {who} sessions={len(self.bindings)} links={len(self.links)} "
            f"pending={len(self.pending)}>"
        )

    def who(self) -> dict[str, str]:
        """Return the fields that name this client in audit records."""
        identity = self.identity
        place = {"peer": self.peer}
        if self.entry.listener:
            place["listener"] = self.entry.listener
        if identity is None:
            return place
        return {
            **place,
            "tenant": identity.tenant,
            "user": identity.user,
            "role": identity.role.value,
            "source": identity.source,
        }

    def sees(self, owner: Owner) -> bool:
        """Whether a session of ``owner`` exists for this client."""
        identity = self.identity
        return (
            identity is not None
            and owner.tenant == identity.tenant
            and (owner.user == identity.user or self.sees_tenant)
        )

    @property
    def sees_tenant(self) -> bool:
        """Whether all sessions of its tenant exist for this client."""
        identity = self.identity
        return (
            identity is not None
            and not self.hub.serves_one_user
            and (self._shares or identity.role is Role.ADMIN)
        )

    # Bytes from the client

    def feed(self, data: bytes) -> None:
        """Take a chunk of the client's stream."""
        self.hub.stats.bytes_from_client += len(data)
        whole = data
        if self.begun:
            joined = self._buffer.join(data)
            if joined is None:
                return
            whole = joined
        self.rest(whole, self._pass(whole, 0))

    def _pass(self, data: bytes, pos: int) -> int:
        """Let requests pass that merely pass; return where the next starts."""
        if not self.direct or self.authenticating:
            return pos
        hub = self.hub
        largest = min(self._buffer.max_frame, MAX_DIRECT_BYTES)
        return pass_requests(data, pos, largest, self, hub.stats, hub.now, hub.limits.max_pending)

    def rest(self, whole: bytes, pos: int) -> None:
        """Deal with a chunk from where not everything merely passes.

        Args:
            whole: whole frames, of which the last may be incomplete.
            pos: where the first starts that does not merely pass; the end if they all did.
        """
        buffer = self._buffer
        size = len(whole)
        while pos < size and not self.closed:
            if self.direct and not self.authenticating:
                found = scan(whole, pos, buffer.max_frame)
                if found is not None:
                    self._canonical(whole, pos, found)
                    pos = self._pass(whole, found[1])
                    continue
            try:
                header = buffer.frame(whole, pos)
            except framing.FrameTooLargeError as error:
                self._frame_too_large(error)
                return
            except framing.FramingError as error:
                self.write(
                    envelope.error_frame(None, RpcError(errors.PARSE_ERROR, str(error.hint)))
                )
                self.cut("protocol", error.hint)
                return
            if header is None:
                return
            self._count()
            body = whole[header.body : header.end]
            if self.authenticating:
                self._admission.hold(body)
            else:
                self.body(body)
            pos = self._pass(whole, header.end)

    def _count(self) -> None:
        self.hub.stats.frames_from_client += 1
        if self.tenant_stats is not None:
            self.tenant_stats.requests += 1

    def allows(self, size: int) -> bool:
        """Count a message against the quotas, unless it is over one."""
        allowance = self.allowance
        return allowance is None or allowance.take(size, self.hub.now())[1] is None

    def _canonical(self, data: bytes, pos: int, found: Scanned) -> None:
        """Route a request that is more than passed on, but known to be in canonical form."""
        body, end, _, method, _ = found
        policy = self._policy
        assert policy is not None
        self._count()
        request = Request(envelope.loads(data[body:end]), policy.rule_for(method), end - body)
        request.frame = data if end - pos == len(data) else data[pos:end]
        self._request(request)

    def _frame_too_large(self, error: framing.FrameTooLargeError) -> None:
        limit = "max_frame" if self.identity is not None else "max_unauthenticated_frame"
        self.write(
            envelope.error_frame(
                envelope.salvage_id(error.head),
                RpcError(
                    errors.OVERLOADED,
                    f"The frame of {error.length} bytes is over the limit of {error.limit}",
                    {"limit": limit, "value": error.limit, "length": error.length},
                ),
            )
        )
        self.cut("limit", error.hint)

    def body(self, body: bytes) -> None:
        """Route one message."""
        try:
            message = envelope.parse(body)
        except envelope.BadMessageError as error:
            self.write(envelope.error_frame(error.request_id, error.error))
            if self.identity is None:
                self._admission.failed()
            return
        method = message.get("method")
        policy = self._policy
        if policy is None:
            if self.identity is None:
                self._admission.before(message)
                return
            # Known by its listener; what it says first tells the age of its SDK.
            self._old = compat.is_old_client(method or "")
            policy = self.hub.policy.view(self.identity)
            self.follow(policy)
        if method is None:
            if self.allowance is not None:
                self._allow(self.allowance, None, len(body))
            self._callback_answered(message)
            return
        self._request(Request(message, policy.rule_for(method), len(body)))

    def _request(self, request: Request) -> None:
        """Route one request or notification."""
        if self.allowance is not None and not self._allow(self.allowance, request, request.size):
            return
        rule = request.rule
        if rule.method in self._shaped and not self._shape(request):
            return
        if self.refuses_duplicate(request):
            return
        if request.id is not None and len(self.pending) >= self.hub.limits.max_pending:
            self.refuse(request, answers.overloaded("max_pending", self.hub.limits.max_pending))
            return
        if rule.route is Route.SESSION and rule.simple:
            session_id = request.params.get("sessionId")
            if type(session_id) is str:
                binding = self.bindings.get(session_id)
                if binding is not None and binding.open:
                    self.forward(binding.link, binding, request)  # type: ignore[arg-type]
                    return
        self._dispatch(request)

    def follow(self, policy: PolicyView) -> None:
        self._policy = policy
        # Quotas count turns, shared sessions are audited, a durable prompt is saved first.
        prompts = self.allowance is None and not self._shares and not self.hub.durable
        self.direct = _direct(policy, self._shaped, self.hub.stats, prompts=prompts)

    def refuses_duplicate(self, request: Request) -> bool:
        """Refuse a request whose id is in flight, which would get the other's answer."""
        if request.id is None or request.id not in self.pending:
            return False
        self.refuse(
            request, RpcError(errors.INVALID_REQUEST, "A request with this id is still in flight")
        )
        return True

    def _allow(self, allowance: Allowance, request: Request | None, size: int) -> bool:
        """Hold a message against the quotas; refuse it, or delay those after it, if it is over.

        Args:
            allowance: the client's quotas.
            request: the message, or None for the answer to a replica's request.
            size: its bytes.
        """
        wait, refusal = allowance.take(size, self.hub.now())
        if refusal is None:
            return True
        if (
            request is None
            or request.id is None
            or method_class(request.method) in _NEVER_REFUSED
            or request.method == "connect"
        ):
            allowance.spend(size)
            self._pace(min(wait, _LONGEST_PAUSE))
            return True
        self._over_quota(request, refusal)
        self._pace(min(wait, _REFUSED_PAUSE))
        return False

    def _over_quota(self, request: Request, refusal: RpcError) -> None:
        if self.tenant_stats is not None:
            self.tenant_stats.limited += 1
        self.refuse(request, refusal)

    def _pace(self, seconds: float) -> None:
        """Read nothing more from the client for a while."""
        if not self._paced and not self.closed:
            self._paced = True
            self.hold_reading()
            self.hub.tasks.call_later(seconds, self._pace_over)

    def _pace_over(self) -> None:
        self._paced = False
        self.release_reading()

    def _shape(self, request: Request) -> bool:
        """Put the params through the operator's rules; False if they were refused."""
        if request.rule.route is Route.DENY or self._params is None:
            return True
        params = request.params
        try:
            shaped = self._params.apply(request.method, params)
        except RpcError as error:
            self.refuse(request, error)
            self.hub.audit.record(
                "denied",
                **self.who(),
                method=request.method,
                outcome="denied",
                code=error.code,
                reason=error.message,
            )
            return False
        if shaped is not params:
            request.message = {**request.message, "params": dict(shaped)}
        return True

    def _dispatch(self, request: Request) -> None:
        """Route a message that does not simply pass to an open session."""
        route = request.rule.route
        if route is Route.DENY:
            if request.method == "$/cancelRequest":
                self._cancel(request)
                return
            self.refuse(request, request.rule.denied())
            self.hub.audit.record("denied", **self.who(), method=request.method, outcome="denied")
        elif route is Route.LOCAL:
            if request.method == "connect":
                self._admission.connect(request.message)
            elif request.method == "$/cancelRequest":
                self._cancel(request)
        elif route in _UNBOUND and request.rule.session_paths:
            self.hub.tasks.spawn(self._check_ids(request), request.method)
        elif route in _UNBOUND or route is Route.SCATTER:
            self._unbound(request)
        else:
            self._for_session(request)

    def _unbound(self, request: Request) -> None:
        """Route a request that is not about one session."""
        if request.rule.route in (Route.MERGE, Route.SCATTER, Route.ALL):
            self._ask_all(request)
        else:
            self._lobby.append(request)
            self._drain_lobby()

    async def _check_ids(self, request: Request) -> None:
        """Route a request once every session that it names is known to be the client's."""
        named = ""
        try:
            for named in session_ids(request.rule.session_paths, request.params):
                await self.hub.authorize(self, named)
        except SessionNotFoundError:
            self.answer_unknown(request, named)
        except RpcError as error:
            self.refuse(request, error)
        else:
            if not self.closed and not self.refuses_duplicate(request):
                self._unbound(request)

    def _for_session(self, request: Request) -> None:
        params = request.params
        session_id = params.get("sessionId")
        if request.rule.route is Route.CREATE and session_id in (None, ""):
            session_id = str(uuid.uuid4())
            request.message = {**request.message, "params": {**params, "sessionId": session_id}}
        if type(session_id) is not str:
            self.refuse(
                request,
                results.missing_session(request.method)
                if session_id is None
                else results.failed(request.method, f"{request.method} sessionId must be a string"),
            )
            return
        if not is_valid_session_id(session_id):
            # The CLI cannot have such a session, and an id is echoed in logs and errors.
            if request.rule.route is Route.CREATE:
                self.refuse(request, answers.invalid_session_id(request.method, session_id))
            else:
                self.answer_unknown(request, session_id)
            return
        binding = self.bindings.get(session_id)
        if binding is None:
            if len(self.bindings) >= self.hub.limits.max_sessions:
                self.refuse(
                    request, answers.overloaded("max_sessions", self.hub.limits.max_sessions)
                )
                return
            binding = self.bindings[session_id] = Binding(self.hub, self, session_id)
        binding.submit(request)

    @contextmanager
    def opening(self, session: Session | None) -> Iterator[None]:
        """Count a session that is being created or resumed, for as long as that takes.

        Raises:
            RpcError: a quota does not allow one more.
        """
        allowance = self.allowance
        if allowance is None or (session is not None and session.live):
            yield
            return
        refusal = allowance.open_session()
        if refusal is not None:
            if self.tenant_stats is not None:
                self.tenant_stats.limited += 1
            raise refusal
        try:
            yield
        finally:
            allowance.session_opened()

    # Bytes to the client

    def write(self, frame: bytes | memoryview) -> None:
        """Send one or more whole frames."""
        if not self.closed:
            if self._old:
                frame = _for_old_client(bytes(frame))
            self.sink.write(frame)
            self.hub.stats.bytes_to_client += len(frame)

    def write_parts(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send whole frames that come in parts, to a client that is :attr:`verbatim`."""
        if not self.closed:
            self.sink.writelines(parts)
            self.hub.stats.bytes_to_client += sum(map(len, parts))

    @property
    def verbatim(self) -> bool:
        """Whether it gets frames as they came, so that they may be written in parts."""
        return not self._old

    def respond(self, request: Request, result: Any) -> None:
        """Answer a request with a result of the gateway's own."""
        if request.id is not None:
            self.hub.stats.method(request.method).ok += 1
            self.write(envelope.result_frame(request.id, result))

    def refuse(self, request: Request, error: RpcError) -> None:
        """Answer a request with an error of the gateway's own; notifications are dropped."""
        counters = self.hub.stats.method(request.method)
        if error.code in (errors.FORBIDDEN, errors.METHOD_NOT_FOUND):
            counters.denied += 1
        else:
            counters.refused += 1
        if request.id is not None:
            self.write(envelope.error_frame(request.id, error))

    def answer_unknown(self, request: Request, session_id: str) -> None:
        """Answer as a CLI does that has no such session: for others' sessions too."""
        try:
            self.respond(request, results.unknown_session(request.method, session_id))
        except RpcError as error:
            self.refuse(request, error)

    # To replicas

    def forward(
        self,
        link: Link,
        binding: Binding | None,
        request: Request,
        hook: Hook | None = None,
        rewrites: bool = False,
    ) -> None:
        """Send a message on a link, in canonical form."""
        notes = False
        rule = request.rule
        message = request.message
        if rule.starts_turn and binding is not None and not self._may_work(binding, request):
            return
        if rule.sent_as != rule.method:
            message = {**message, "method": rule.sent_as}
        frame = request.frame_of(message)
        text = orjson.dumps(message) if frame is None else b""
        if request.id is not None:
            stats = self.hub.stats.method(rule.method)
            if rule.route is Route.SINGLETON:
                hook = partial(self._registered, link, request)
            elif hook is None and binding is not None:
                hook = self._hook_for(binding, request)
                rewrites = hook is not None and (
                    rule.method in _BRIDGED or (rule.starts_turn and self.hub.durable)
                )
                notes = rule.starts_turn and not rewrites
            now = self.hub.now()
            if hook is None:
                pending = Pending(link, binding, request, rule, stats, now)
            else:
                pending = PendingHook(
                    link, binding, request, rule, stats, now, hook, rewrites=rewrites, notes=notes
                )
            self.pending[request.id] = pending
            link.replica.stats.in_flight += 1
        if frame is not None:
            link.send(frame)
        elif len(text) < _SPLIT_WRITE_BYTES:
            link.send(b"Content-Length: %d\r\n\r\n%b" % (len(text), text))
        else:
            link.send(b"Content-Length: %d\r\n\r\n" % len(text))
            link.send(text)

    def _may_work(self, binding: Binding, request: Request) -> bool:
        """Whether the quotas let a session begin to work; a working one may go on."""
        session = binding.session
        if not self.hub.placer.has_lease:
            self.refuse(request, no_lease(self.hub.limits.retry_after))
            return False
        if session is not None and not binding.takes_prompt(session, request.size):
            limits = self.hub.limits
            many = len(session.turn.prompts) >= limits.queue_frames
            name = "queue_frames" if many else "queue_bytes"
            self.refuse(request, answers.overloaded(name, getattr(limits, name)))
            return False
        if self.allowance is not None and session is not None and not session.turn.busy:
            refusal = self.allowance.start_turn()
            if refusal is not None:
                self._over_quota(request, refusal)
                return False
        if self._shares:
            self.hub.audit.record(
                "session.send",
                **self.who(),
                session=binding.session_id,
                method=request.method,
                outcome="ok",
            )
        return True

    def _hook_for(self, binding: Binding, request: Request) -> Hook | None:
        """Return what has to be called with the answer to a session's request, if anything."""
        rule = request.rule
        if rule.starts_turn:
            if binding.session is None:
                return None
            return binding.session.turn.sent(binding, request)
        if rule.mutates and binding.session is not None:
            binding.session.turn.called(rule.method, request.params)
        if rule.route is not Route.SESSION or changes_recipe(rule.method):
            return partial(self._answered, binding, request)
        return None

    def _answered(self, binding: Binding, request: Request, ok: bool | None, text: bytes) -> None:
        """Note what the answer to a session's request means for the session."""
        rule = request.rule
        if (
            rule.method in _BRIDGED
            and ok is not None
            and not self._bridge(binding, request, ok, text)
        ):
            return
        if not ok:
            return
        if rule.route is Route.DETACH:
            self._detached(binding)
        elif rule.route is Route.CLOSE:
            self.hub.session_closed(binding.session_id)
        elif rule.route is Route.DELETE:
            self._deleted(binding, text)
        elif binding.recipe is not None:
            binding.recipe = after_call(binding.recipe, rule.method, request.params)

    def _bridge(self, binding: Binding, request: Request, ok: bool, text: bytes) -> bool:
        """Pass on an answer as the client expects it; False if the question was put again."""
        if request.rule.sent_as != request.method:
            # The CLI answers a shutdown with null, whatever the method sent in its place says.
            self.write(envelope.result_frame(request.id, None) if ok else framing.encode(text))
            return True
        if (
            not ok
            and request.message.get("method") == compat.DETACH
            and binding.link is not None
            and compat.lacks_detach(envelope.loads(text).get("error") or {})
        ):
            request.message = compat.destroy_for_detach(request.message)
            self.forward(binding.link, binding, request)
            return False
        self.write(framing.encode(text))
        return True

    def _detached(self, binding: Binding) -> None:
        if not binding.waiting:
            binding.leave()
        else:
            binding.detached()

    def _deleted(self, binding: Binding, text: bytes) -> None:
        result = envelope.loads(text).get("result")
        ok = type(result) is not dict or result.get("success") is not False
        self.hub.audit.record(
            "session.delete",
            **self.who(),
            session=binding.session_id,
            outcome="ok" if ok else "failed",
        )
        if ok:
            self.hub.session_deleted(binding.session_id)

    async def link_to(self, replica: Replica) -> Link:
        """Return the ready link to a replica, opening it if need be.

        Raises:
            OSError: the replica cannot be reached.
            LinkLostError: it hung up, refused the handshake, or this client has gone.
        """
        name = replica.name
        while True:
            link = self.links.get(name)
            if link is not None and link.ready:
                return link
            opening = self._opening.get(name)
            if opening is None:
                break
            await asyncio.wait([opening])
        opening = self._opening[name] = asyncio.get_running_loop().create_future()
        link = Link(self.hub, replica, self)
        try:
            replica.links.add(link)
            replica.stats.links += 1
            try:
                await link.open()
            except RpcError as error:
                self.hub.log.error(
                    "replica refused the handshake",
                    extra={"replica": name, "code": error.code, "reason": error.message},
                )
                raise LinkLostError(f"{name} refused the handshake") from None
            for method, params in list(self._registrations.items()):
                await self._register(link, method, params)
            if self.closed:
                raise LinkLostError("the client has gone")
            self.links[name] = link
            return link
        except BaseException:
            link.close()
            raise
        finally:
            del self._opening[name]
            opening.set_result(link)

    def _registered(self, link: Link, request: Request, ok: bool | None, text: bytes) -> None:
        """Make a registration, once it was accepted, hold for the client's other links too."""
        if not ok:
            return
        self._registrations[request.rule.sent_as] = request.params
        for other in self.links.values():
            if other is not link and other.ready:
                self.hub.tasks.spawn(
                    self._register_later(other, request.rule.sent_as, request.params),
                    request.method,
                )

    async def _register_later(self, link: Link, method: str, params: Any) -> None:
        try:
            await self._register(link, method, params)
        except LinkLostError:
            return  # The next link to the replica begins with it.

    async def _register(self, link: Link, method: str, params: Any) -> None:
        """Repeat a registration on a link; a replica that has another provider says so.

        Raises:
            LinkLostError: the link ended, or the replica does not answer.
        """
        try:
            await link.request(method, params, self.hub.limits.ask_timeout)
        except TimeoutError:
            raise LinkLostError(f"{link.replica.name} does not answer {method}") from None
        except RpcError as error:
            self.hub.log.warning(
                "registration refused by a replica",
                extra={"replica": link.replica.name, "method": method, "reason": error.message},
            )

    def link_lost(self, link: Link) -> None:
        """Deal with what was under way on a link that has ended."""
        if self.links.get(link.replica.name) is link:
            del self.links[link.replica.name]
        for alias, (holder, _) in list(self._callbacks.items()):
            if holder is link:
                del self._callbacks[alias]
        if link.write_paused:
            self.release_reading()
        again: dict[Binding, list[Request]] = {}
        for request_id, pending in list(self.pending.items()):
            if pending.link is not link:
                continue
            del self.pending[request_id]
            link.replica.stats.in_flight -= 1
            self._request_lost(pending, again)
        for binding, requests in again.items():
            binding.requeue(requests)
        for binding in list(link.bindings):
            binding.link_lost()

    def _request_lost(self, pending: Pending, again: dict[Binding, list[Request]]) -> None:
        request = pending.request
        if isinstance(request, bytes):
            request = Request.from_frame(request, pending.rule)
        binding = pending.binding
        rule = pending.rule
        if request is None:
            return
        if pending.hook is not None and (request.awaited or rule.starts_turn):
            pending.hook(None, b"")
            return
        if self.closed:
            return
        if binding is None:
            if rule.retry_safe:
                self._lobby.append(request)
                self._drain_lobby()
                return
        elif binding.attached and (rule.retry_safe or rule.method in REPEATABLE):
            if binding.session is not None:
                binding.session.turn.uncalled(request.params)
            again.setdefault(binding, []).append(request)
            return
        pending.stats.lost += 1
        session_id = binding.session_id if binding is not None else None
        error = answers.replica_unavailable(session_id, self.hub.limits.retry_after)
        self.write(envelope.error_frame(request.id, error))

    # Messages about no session

    def _drain_lobby(self) -> None:
        """Send waiting messages that any replica may answer."""
        if self._lobby_busy:
            return
        for link in self.links.values():
            if link.ready and link.replica.reachable:
                while self._lobby:
                    self.forward(link, None, self._lobby.pop(0))
                return
        if len(self._lobby) > self.hub.limits.queue_frames:
            self.refuse(
                self._lobby.pop(),
                answers.overloaded("queue_frames", self.hub.limits.queue_frames),
            )
            return
        self._lobby_busy = True
        self.hub.tasks.spawn(self._open_lobby(), f"link for {self.peer}")

    async def _open_lobby(self) -> None:
        try:
            replica = await self.hub.any_replica()
            await self.link_to(replica)
        except RpcError as error:
            self._refuse_lobby(error)
        except (OSError, LinkLostError) as error:
            if not self.closed:
                self.hub.note_failure(replica, str(error) or type(error).__name__)
            self._refuse_lobby(answers.replica_unavailable(None, self.hub.limits.retry_after))
        finally:
            self._lobby_busy = False
        if self._lobby and not self.closed:
            self._drain_lobby()

    def _refuse_lobby(self, error: RpcError) -> None:
        waiting, self._lobby = self._lobby, []
        for request in waiting:
            self.refuse(request, error)

    def _ask_all(self, request: Request) -> None:
        """Serve a query or change that concerns several replicas."""
        if request.id is None:
            return
        self.pending[request.id] = Pending(
            None, None, request, request.rule, self.hub.stats.method(request.method), 0.0
        )
        self.hub.tasks.spawn(self._answer_from_all(request), request.method)

    async def _answer_from_all(self, request: Request) -> None:
        try:
            result = await self.hub.queries.ask(self, request)
        except RpcError as error:
            self.pending.pop(request.id, None)
            self.refuse(request, error)
        else:
            self.pending.pop(request.id, None)
            self.respond(request, result)

    # Requests of replicas

    def adopt_callback(self, link: Link, request_id: Any, method: str) -> int:
        """Give a replica's request an id that is unique for this client."""
        self._next_callback += 1
        alias = self._next_callback
        self._callbacks[alias] = (link, request_id)
        self.hub.stats.method(method).ok += 1
        return alias

    def _callback_answered(self, message: dict[str, Any]) -> None:
        """Pass on the answer to a request that this client was sent; drop any other."""
        alias = message.get("id")
        entry = self._callbacks.pop(alias, None) if type(alias) is int else None
        if entry is None:
            return
        link, request_id = entry
        link.callbacks.pop(request_id, None)
        link.send(envelope.encode({**message, "id": request_id}))

    def _cancel(self, request: Request) -> None:
        """Pass on a ``$/cancelRequest`` to where the request went."""
        request_id = request.params.get("id")
        pending = self.pending.get(request_id) if type(request_id) in (str, int) else None
        if pending is not None and pending.link is not None:
            pending.link.send(envelope.encode(request.message))

    # Who the client is

    def enter(self, identity: Identity, request_id: Any = None) -> bool:
        """Let somebody in who has proven who it is, unless policy or a quota is against it."""
        hub = self.hub
        owner = Owner(identity.tenant, identity.user)
        allowance = hub.quotas.allowance(owner)
        try:
            hub = hub.home_of(identity)
            hub.check_admitted(identity)
            self._params = policy_for(hub.param_rules, identity, hub.policy.isolation)
            refusal = allowance.connect() if allowance is not None else None
            if refusal is not None:
                hub.stats.tenant(identity.tenant).limited += 1
                raise refusal
        except RpcError as error:
            hub.audit.record(
                "authentication",
                **{**self.who(), "identity": identity},
                outcome="denied",
                code=error.code,
                reason=error.message,
            )
            if self.entry.identity is None:
                self._admission.refuse(request_id, error)
            else:
                self.write(envelope.error_frame(None, error))
                self.cut("limit" if error.code == errors.OVERLOADED else "revoked", error.message)
            return False
        # Nothing else is where it came in: without an identity there are no links and no sessions.
        self.hub.clients.discard(self)
        hub.clients.add(self)
        self.hub = hub
        self.identity = identity
        self.owner = owner
        self.allowance = allowance
        self._shaped = self._params.methods
        self._shares = hub.quotas.rule(identity.tenant).shared_sessions
        self._buffer.max_frame = self._max_frame()
        self.tenant_stats = hub.stats.tenant(identity.tenant)
        self.tenant_stats.clients += 1
        hub.client_authenticated(self)
        self._admission.admitted(identity)
        if self.entry.identity is not None:
            hub.stats.auth["accepted"] += 1
            self._admission.record("ok")
        return True

    def _max_frame(self) -> int:
        limit = self.hub.limits.max_frame
        return self.allowance.max_frame(limit) if self.allowance is not None else limit

    def rules_changed(self) -> None:
        """Take over policy, quotas and limits after a reload; who may not stay is cut."""
        identity, owner = self.identity, self.owner
        if identity is None or owner is None:
            self._buffer.max_frame = self.hub.limits.max_unauthenticated_frame
            return
        try:
            self._params = policy_for(self.hub.param_rules, identity, self.hub.policy.isolation)
        except RpcError as error:
            self.cut("revoked", error.message)
            return
        self._shaped = self._params.methods
        self._shares = self.hub.quotas.rule(identity.tenant).shared_sessions
        if self.allowance is not None:
            self.allowance.disconnect()
        self.allowance = self.hub.quotas.allowance(owner)
        if self.allowance is not None:
            self.allowance.join()
        if self._policy is not None:
            self.follow(self.hub.policy.view(identity))
        self._buffer.max_frame = self._max_frame()

    # Flow

    def pause_writing(self) -> None:
        """Note that the client does not keep up: its links are not read until it does."""
        self.write_paused = True
        for link in self.links.values():
            link.pause_reading()

    def resume_writing(self) -> None:
        """Note that the client keeps up again."""
        self.write_paused = False
        for link in self.links.values():
            link.resume_reading()

    def hold_reading(self) -> None:
        """Stop reading the client because one of its replicas does not keep up."""
        self._holds += 1
        if self._holds == 1 and not self.closed:
            self.sink.pause_reading()

    def release_reading(self) -> None:
        """Undo one :meth:`hold_reading`."""
        self._holds -= 1
        if self._holds == 0 and not self.closed:
            self.sink.resume_reading()

    # The end

    @property
    def busy(self) -> bool:
        """Whether something of this client's is under way: a request or a turn."""
        return bool(self.pending) or any(
            binding.session is not None and binding.session.turn.busy
            for binding in self.bindings.values()
        )

    def cut(self, reason: str, detail: str) -> None:
        """Close the client, saying why in log and counters; what was written still leaves."""
        if self.closed:
            return
        self.hub.stats.clients_cut[reason] += 1
        self.hub.log.info(
            "client cut", extra={"peer": self.peer, "reason": reason, "detail": detail}
        )
        self.sink.close()
        self.lost(lingers=reason in _LINGERING_CUTS)

    def lost(self, *, lingers: bool = True) -> None:
        """Note that the connection has ended, from either side; idempotent.

        Args:
            lingers: turns that run may go on without the client, for a while.
        """
        if self.closed:
            return
        staying: set[Link] = set()
        if lingers and self.hub.limits.linger > 0:
            staying = {
                binding.link
                for binding in self.bindings.values()
                if binding.lingers and binding.link is not None
            }
        self.closed = True
        self._admission.close()
        hub = self.hub
        hub.clients.discard(self)
        hub.files_gone = hub.files_gone or _FILES in self._registrations
        hub.stats.clients_open -= 1
        if self.tenant_stats is not None:
            self.tenant_stats.clients -= 1
        if self.allowance is not None:
            self.allowance.disconnect()
        for link in list(self.links.values()):
            if link not in staying:
                link.close()
        for binding in list(self.bindings.values()):
            binding.waiting.clear()
            if binding.link not in staying:
                binding.leave()
            elif binding.lingers:
                binding.linger()
            else:
                binding.let_go()
        if staying:
            hub.tasks.call_later(hub.limits.linger, self._end_linger)
        self._forget_pending()
        self._callbacks.clear()
        self._lobby.clear()
        hub.client_gone(self)

    def _forget_pending(self) -> None:
        """Wait no more for answers on links that stay; prompts there run on."""
        forgotten = list(self.pending.values())
        self.pending.clear()
        for pending in forgotten:
            if pending.link is not None:
                pending.link.replica.stats.in_flight -= 1
            request = pending.request
            if isinstance(request, Request) and request.awaited and pending.hook is not None:
                pending.hook(None, b"")

    def _end_linger(self) -> None:
        """End what still goes on without the client."""
        for binding in list(self.bindings.values()):
            binding.let_go()


def _for_old_client(frames: bytes) -> bytes:
    """Return whole frames as an SDK from before 1.0 can read them."""
    bodies = framing.FrameDecoder(len(frames)).feed(frames)
    return b"".join(framing.encode(compat.for_old_client(body)) for body in bodies)
