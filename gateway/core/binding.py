"""Bindings: each is one client's way to one session.

While a binding is *open* its messages pass straight to the link. Otherwise they wait, in order and
bounded, while one task (:meth:`Binding._advance`) does what opening takes: find the owner, choose
the replica, connect, create or resume. Other sessions of the client go on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gateway import errors
from gateway.core import answers, recipe, recovery
from gateway.core.failover import Event
from gateway.core.link import Link, LinkLostError
from gateway.core.request import Request
from gateway.core.session import Session, SessionNotFoundError
from gateway.core.turn import Prompt
from gateway.errors import RpcError
from gateway.policy.rules import MethodRule, Route
from gateway.policy.session_ids import lone_session_ids
from gateway.wire import envelope, framing

if TYPE_CHECKING:
    from gateway.core.client import Client
    from gateway.core.hub import Hub
    from gateway.core.pending import Hook
    from gateway.core.replica import Replica

Answer = tuple[bool | None, bytes]
"""Whether a request succeeded (None: it was never answered), and the answer's body."""


def _resolver(outcome: asyncio.Future[Answer]) -> Callable[[bool | None, bytes], None]:
    """Return a hook that hands the answer to a waiting coroutine."""

    def resolve(ok: bool | None, text: bytes) -> None:
        if not outcome.done():
            outcome.set_result((ok, text))

    return resolve


_CLASHES = 80
"""Times that a clash of tool names is waited out before the client hears of it: longer than
:data:`_STEADY_PATIENCE`, for which another gateway may keep them."""

_CLASH_PAUSE = 0.025
"""Seconds between two of them: for so long the turn may be without its tools."""

_SAVE_DELAY = 0.02
"""Seconds after an event by which the CLI has handed it to the writer that a save flushes: it was
seen to miss events of the last few milliseconds, never those of the last 10."""

_STEADY_PATIENCE, _STEADY_POLL = 1.0, 0.01
"""Seconds that leaving a turn waits for at most, while the CLI may be looking for tools, and
between two looks at whether it still may. It does so for 10 to 100 ms."""

_SETTLED = 1.0
"""Seconds after which a replica that says that it does not have an attached session has ended it.
What says so at once is not attached to again and again."""

_DETACH_TIMEOUT = 5.0
"""Seconds that a replica has to detach a session before the link is closed instead."""


def _may_pass(error: RpcError | SessionNotFoundError) -> bool:
    """Whether an attempt to attach again may succeed later."""
    return isinstance(error, RpcError) and error.code in (
        errors.REPLICA_UNAVAILABLE,
        errors.REGISTRY_UNAVAILABLE,
    )


def _is_clash(answer: bytes) -> bool:
    return b"tool name clash" in answer


async def _detach(link: Link, session_id: str) -> None:
    """Leave a session on a link that others still need."""
    try:
        await link.request("session.detach", {"sessionId": session_id}, _DETACH_TIMEOUT)
    except (RpcError, LinkLostError, TimeoutError):
        link.close()


class Binding:
    """One client's way to one session.

    Attributes:
        client: the client.
        session_id: the session's id.
        session: the session, once it is known to exist and to be the client's.
        link: the link it uses, or None.
        open: messages pass straight to the link.
        attached: the client created or resumed the session and has not left it.
        recipe: what it takes to attach again; None if it never was attached.
        bound: the replica has attached the client on :attr:`link`.
        bound_at: when it last did.
        cut: the link was lost during a turn, of whose end the client has not heard since.
        lost_with: the replica whose link that was.
        last_message: the last message of the model before that, as ``Turn.last_message``.
        waiting: messages that wait for the binding to open.
    """

    __slots__ = (
        "_horizon",
        "_hub",
        "_waiting_bytes",
        "_working",
        "attached",
        "bound",
        "bound_at",
        "client",
        "cut",
        "last_message",
        "link",
        "lost_with",
        "open",
        "recipe",
        "session",
        "session_id",
        "waiting",
    )

    def __init__(self, hub: Hub, client: Client, session_id: str) -> None:
        self._hub = hub
        self._horizon = hub.placer.horizon
        self._working = False
        self._waiting_bytes = 0
        self.client = client
        self.session_id = session_id
        self.session: Session | None = None
        self.link: Link | None = None
        self.open = False
        self.attached = False
        self.bound = False
        self.bound_at = 0.0
        self.recipe: recipe.Recipe | None = None
        self.cut = False
        self.lost_with: Replica | None = None
        self.last_message: str | None = None
        self.waiting: deque[Request] = deque()

    def __repr__(self) -> str:
        """Return a diagnosis."""
        state = "open" if self.open else "opening" if self._working else "idle"
        return f"<Binding {self.session_id} {state} waiting={len(self.waiting)}>"

    # Messages from the client

    def submit(self, request: Request) -> None:
        """Send a message now or once the binding is open, after all that wait already."""
        if self.open and not request.gated:
            self.client.forward(self.link, self, request)  # type: ignore[arg-type]
            return
        limits = self._hub.limits
        if len(self.waiting) >= limits.queue_frames:
            self.client.refuse(request, answers.overloaded("queue_frames", limits.queue_frames))
            return
        if self._waiting_bytes + request.size > limits.queue_bytes:
            self.client.refuse(request, answers.overloaded("queue_bytes", limits.queue_bytes))
            return
        self._hub.stats.frames_queued += 1
        request.frame = None
        self.waiting.append(request)
        self._waiting_bytes += request.size
        self.open = False
        self._start()

    def requeue(self, requests: list[Request]) -> None:
        """Put messages that died with their link before all that wait, in order."""
        for request in reversed(requests):
            self.waiting.appendleft(request)
            self._waiting_bytes += request.size

    def _take(self) -> Request:
        request = self.waiting.popleft()
        self._waiting_bytes -= request.size
        return request

    # Opening

    def _start(self) -> None:
        if not self._working:
            self._working = True
            self._hub.stats.sessions_waiting += 1
            self._hub.tasks.spawn(self._advance(), f"open {self.session_id}")

    async def _advance(self) -> None:
        """Do what the waiting messages need, in order, until the binding is open."""
        try:
            while not self.client.closed:
                if self.attached and self.link is None:
                    if not await self._rebind() and not self.waiting:
                        break
                    continue
                if not self.waiting:
                    break
                request = self.waiting[0]
                if not request.gated:
                    if self.link is None:
                        await self._admit()
                    self._flush()
                    continue
                self._take()
                await self._gate(request)
        finally:
            self._working = False
            self._hub.stats.sessions_waiting -= 1
            self._settle_state()
            if not self.attached:
                # It may have been taken hold of for a client that has left meanwhile.
                self._hub.placer.release_later(self.session_id)

    def _settle_state(self) -> None:
        """Leave the binding open, idle for a later attempt, or forgotten."""
        if self.client.closed or self.link is None:
            self.open = False
            if not self.attached and not self.waiting:
                self.leave()
        else:
            self.open = not self.waiting
        if self.waiting and not self.client.closed:
            self._start()

    def _flush(self) -> None:
        """Send the messages at the head that need nothing more."""
        while self.waiting and self.link is not None and not self.waiting[0].gated:
            request = self._take()
            # Another may have been sent under its id while it waited.
            if not self.client.refuses_duplicate(request):
                self.client.forward(self.link, self, request)

    def _refuse_waiting(self, error: RpcError | SessionNotFoundError) -> None:
        """Answer the waiting messages up to the next one that could still make the session live."""
        while self.waiting and not self.waiting[0].awaited:
            self._refuse(self._take(), error)

    def _refuse(self, request: Request, error: RpcError | SessionNotFoundError) -> None:
        if isinstance(error, RpcError):
            self.client.refuse(request, error)
            return
        self.client.answer_unknown(request, self.session_id)

    async def _reach(self, session: Session) -> Link:
        """Return a ready link to the replica on which the session is, or shall be, live.

        Raises:
            RpcError: no such link was to be had in time.
        """
        hub = self._hub
        self._join(session)
        give_up = hub.now() + hub.limits.rebind_timeout
        while True:
            replica = await hub.settled(session, give_up - hub.now())
            try:
                link = await self.client.link_to(replica)
            except (OSError, LinkLostError) as error:
                if not self.client.closed:
                    hub.note_failure(replica, str(error) or type(error).__name__)
                if self.client.closed or hub.now() >= give_up:
                    raise answers.replica_unavailable(
                        self.session_id, hub.limits.retry_after
                    ) from None
                await asyncio.sleep(hub.limits.redial_delay)
                continue
            self.link = link
            link.bindings.add(self)
            return link

    def _join(self, session: Session) -> None:
        """Make this one of the session's bindings: a session without any is forgotten."""
        if self.session is not session:
            self.leave()
            self.session = session
            session.bindings.add(self)
        self.client.bindings[self.session_id] = self

    async def _admit(self) -> None:
        """Find the session that waiting messages name and connect to it."""
        try:
            placement = await self._hub.authorize(self.client, self.session_id)
            await self._reach(self._hub.session(placement))
        except (RpcError, SessionNotFoundError) as error:
            self._refuse_waiting(error)

    async def _gate(self, request: Request) -> None:
        """Check and send a message that holds up the later ones, and await its answer."""
        if self.client.refuses_duplicate(request):
            return
        try:
            await self._check_other_ids(request)
            if request.rule.route is Route.CREATE:
                with self.client.opening(self.session):
                    await self._create(request)
            elif request.rule.route is Route.RESUME:
                with self.client.opening(self.session):
                    await self._resume(request)
            else:
                if self.link is None:
                    placement = await self._hub.authorize(self.client, self.session_id)
                    await self._reach(self._hub.session(placement))
                if request.rule.route is Route.FORK:
                    await self._fork(request)
                else:
                    self.client.forward(self.link, self, request)  # type: ignore[arg-type]
        except (RpcError, SessionNotFoundError) as error:
            self._refuse(request, error)
            if self.link is None:
                self._refuse_waiting(error)

    async def _check_other_ids(self, request: Request) -> None:
        """Make sure that every session the message names is the client's."""
        if request.rule.simple:
            return
        for session_id in lone_session_ids(request.rule.session_paths, request.params):
            if session_id != self.session_id:
                await self._hub.authorize(self.client, session_id)

    async def _create(self, request: Request) -> None:
        hub = self._hub
        if self.session is None or not self.session.live:
            placement, fresh = await hub.place(self.client, self.session_id, request.method)
        else:
            placement, fresh = self.session.placement, False
        session = hub.session(placement)
        if not fresh:
            self._join(session)
            await hub.placer.occupy(session)
        answer, _ = await self._attach(request, session)
        if answer is None and fresh:
            await hub.forget(placement)
        hub.audit.record(
            "session.create",
            **self.client.who(),
            session=self.session_id,
            outcome="failed" if answer is None else "ok",
        )

    async def _resume(self, request: Request) -> None:
        placement = await self._hub.authorize(self.client, self.session_id, adopt=True)
        hub = self._hub
        session = hub.session(placement)
        self._join(session)
        await hub.placer.occupy(session)
        joins = session.live
        returns = await self._take_over(session)
        cut = returns or (hub.recovers_turns and not session.live and await self._cut(session))
        if cut and "continuePendingWork" not in request.params:
            params = {**request.params, "continuePendingWork": True}
            request.message = {**request.message, "params": params}
        answer, clashed = await self._attach(request, session)
        if answer is not None:
            session.stored = True
            if (cut or clashed) and not self._in_company(session):
                await self._revive(session, recovery.revive_turn)
            elif joins and session.turn.busy:
                await self._revive(session, recovery.show_pending)
        self._hub.audit.record(
            "session.resume",
            **self.client.who(),
            session=self.session_id,
            outcome="failed" if answer is None else "ok",
        )

    async def _attach(self, request: Request, session: Session) -> tuple[bytes | None, bool]:
        """Send a create or resume until it is answered.

        A replica that dies before it answers has attached nobody and, of a new session, stored
        nothing: asking again is safe.

        Returns:
            The answer if it succeeded, and whether somebody had to leave the session first.
        """
        clashes = 0
        while True:
            link = await self._reach(session)
            outcome: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            hook = self._attach_hook(outcome, final=clashes == _CLASHES)
            async with session.attaching:
                if link.closed:
                    continue
                self.client.forward(link, self, request, hook=hook, rewrites=True)
                ok, text = await outcome if request.id is not None else (False, b"")
            if ok is None:
                if self.client.closed:
                    return None, False
                continue
            if not ok and clashes < _CLASHES and _is_clash(text):
                # The end of a connection may be noticed after the next one has come. Or a turn
                # lingers on another gateway, which leaves when somebody comes.
                if not await self._take_over(session):
                    await self._make_way(link, first=not clashes)
                clashes += 1
                continue
            if not ok:
                if not self.attached:
                    self.leave()
                return None, False
            if self.session is session:
                self._attached(request.params)
            # Else it was closed for everybody since the answer came, or the client has gone.
            return text, clashes > 0

    def _attached(self, params: dict[str, Any]) -> None:
        """Note that the client is attached, by a create or resume with ``params``."""
        self.recipe = recipe.merged(self.recipe, params)
        self._bound()
        if not self.attached and self.session is not None:
            self.attached = True
            self._hub.session_attached(self.session)

    def _bound(self) -> None:
        self.bound = True
        self.bound_at = self._hub.now()

    @property
    def is_settled(self) -> bool:
        """Whether the replica attached the client some time ago, and has it attached still."""
        return self.attached and self.bound and self._hub.now() - self.bound_at >= _SETTLED

    def _attach_hook(
        self, outcome: asyncio.Future[Answer], *, final: bool
    ) -> Callable[[bool | None, bytes], None]:
        """Return a hook that passes the answer on, but for a name clash that may pass by itself."""

        def resolve(ok: bool | None, text: bytes) -> None:
            if ok or (ok is False and (final or not _is_clash(text))):
                self.client.write(framing.encode(text))
            if not outcome.done():
                outcome.set_result((ok, text))

        return resolve

    async def _make_way(self, link: Link, *, first: bool) -> None:
        """Attach without tools, so that whoever lingers on the session sees it and leaves."""
        if first:
            try:
                await link.request(
                    "session.resume",
                    {"sessionId": self.session_id},
                    self._hub.limits.ask_timeout,
                )
            except (RpcError, LinkLostError, TimeoutError):
                return
        await asyncio.sleep(_CLASH_PAUSE)

    async def _take_over(self, session: Session) -> bool:
        """Take a session over from a client that has gone while its turn ran.

        A connection's tools are its own, and a session ends with its last connection. So this one
        attaches without any, the old one leaves, and then this one brings its own.
        """
        gone = [one for one in session.bindings if one.client.closed]
        if not gone:
            return False
        named = {"sessionId": session.id}
        patience = self._hub.limits.ask_timeout
        try:
            link = await self._reach(session)
            await link.request("session.resume", {**named, "disableResume": True}, patience)
            self._attached({})
            await self._steady(session)
            for binding in gone:
                if binding.link is not None:
                    await binding.link.request("session.detach", named, patience)
        except (RpcError, LinkLostError, TimeoutError) as error:
            self._hub.log.warning(
                "lingering session not taken over cleanly",
                extra={"session": session.id, "reason": str(error)},
            )
        for binding in gone:
            binding.let_go()
        return True

    async def _steady(self, session: Session) -> None:
        """Wait, but not for long, for a moment at which leaving takes no tools from the turn."""
        give_up_at = self._hub.now() + _STEADY_PATIENCE
        while session.turn.about_to_ask and self._hub.now() < give_up_at:
            await asyncio.sleep(_STEADY_POLL)

    async def _cut(self, session: Session) -> bool:
        """Whether a session that is not live here may have been at work not long ago.

        A session that a CLI is just ending is not in its list for a moment.
        """
        link = await self._reach(session)
        try:
            found = await link.request(
                "sessions.getMetadata", {"sessionId": session.id}, self._hub.limits.ask_timeout
            )
        except RpcError as error:
            return error.code != errors.METHOD_NOT_FOUND
        except (LinkLostError, TimeoutError):
            return True
        entry = found.get("session") if type(found) is dict else None
        modified = entry.get("modifiedTime") if type(entry) is dict else None
        try:
            moment = datetime.fromisoformat(str(modified)).timestamp()
        except ValueError:
            return True
        return self._hub.wall_clock() - moment < self._hub.limits.linger

    async def _revive(
        self, session: Session, how: Callable[[Hub, Binding, Session, Link], Awaitable[None]]
    ) -> None:
        """See to a turn that an earlier client of the session, perhaps this one, left behind."""
        link = self.link
        if link is None or self.session is not session:
            return
        try:
            await how(self._hub, self, session, link)
        except (RpcError, LinkLostError, TimeoutError) as error:
            self._hub.log.info(
                "cut turn not taken up", extra={"session": session.id, "reason": str(error)}
            )

    async def _fork(self, request: Request) -> None:
        """Send a message that mints a session, and own what it minted before saying so."""
        outcome: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        link = self.link
        assert link is not None
        self.client.forward(
            link,
            self,
            request,
            hook=_resolver(outcome),
            rewrites=True,
        )
        if request.id is None:
            return
        ok, text = await outcome
        if ok is None:
            raise answers.replica_unavailable(self.session_id, self._hub.limits.retry_after)
        if ok:
            result = envelope.loads(text).get("result")
            minted = result.get("sessionId") if type(result) is dict else None
            if type(minted) is str:
                await self._hub.claim(self.client, minted, link.replica.name)
                self._hub.audit.record(
                    "session.fork",
                    **self.client.who(),
                    session=self.session_id,
                    target=minted,
                    outcome="ok",
                )
        self.client.write(framing.encode(text))

    async def _rebind(self) -> bool:
        """Attach again, on the client's behalf, after the link was lost; False if it failed.

        What may pass is tried again with the client's next message.
        """
        session = self.session
        assert session is not None
        assert self.recipe is not None
        hub = self._hub
        give_up = hub.now() + hub.limits.rebind_timeout
        error: RpcError | SessionNotFoundError
        while True:
            try:
                link = await self._reach(session)
                if not await hub.placer.keep(session):
                    self._drop_link()
                    continue
                lost = self.lost_with
                if session.turn.cut and lost is not None and lost is not link.replica:
                    await recovery.journal_settled(hub, session.id, link)
                async with session.attaching:
                    await self._resume_silently(link, session)
                self._bound()
                await recovery.finish_turn(hub, self, session, link)
                break
            except (RpcError, SessionNotFoundError) as refused:
                error = refused
            except (LinkLostError, TimeoutError):
                error = answers.replica_unavailable(self.session_id, hub.limits.retry_after)
            if self.client.closed:
                return False
            if hub.now() < give_up and _may_pass(error):
                await asyncio.sleep(hub.limits.redial_delay)
                continue
            hub.stats.sessions_failed += 1
            hub.log.warning(
                "session could not be made live again",
                extra={"session": self.session_id, "reason": str(error)},
            )
            recovery.give_up(hub, session)
            self._drop_link()
            if not _may_pass(error):
                self.detached()
            self._refuse_waiting(error)
            return False
        hub.stats.sessions_rebound += 1
        hub.log.info(
            "session is live again",
            extra={"session": self.session_id, "replica": link.replica.name},
        )
        self._flush()
        return True

    async def _resume_silently(self, link: Link, session: Session) -> None:
        timeout = self._hub.limits.rebind_timeout
        assert self.recipe is not None
        try:
            await link.request(
                "session.resume",
                recipe.resume_params(self.recipe, session.id, continue_pending_work=True),
                timeout,
            )
        except RpcError as error:
            # Before its first message a session is in no journal: nothing is lost by a new one, and
            # a prompt that never came there is still in memory.
            if session.stored or "not found" not in error.message:
                raise
            await link.request(
                "session.create", recipe.create_params(self.recipe, session.id), timeout
            )

    # Events

    def event(self, name: str, body: bytes) -> None:
        """Note a loud event that passes to the client; see :meth:`Turn.event`."""
        session = self.session
        if session is not None:
            session.turn.event(self, name, body)
            if name == "session.idle":
                self.cut = False
                session.stored = True
                hub = self._hub
                if hub.now() >= self._horizon.idles_until:
                    hub.placer.turn_ended(session)
            if self.client.closed and name in ("session.idle", "session.resume"):
                # The turn is over, or somebody has come back for it.
                self._leave_steadily(session)

    def tell(self, event: Event) -> None:
        """Send the client an event of the gateway's own."""
        self.client.write(recovery.event_frame(self.session_id, event))

    def prompted(self, frame: bytes, rule: MethodRule, now: float) -> Hook | None:
        """Note a prompt that passes as it came; return what its answer is for.

        Args:
            frame: the request.
            rule: what the policy says about its method.
            now: the time.

        Returns:
            The hook, or None if more is to be looked at: nothing has been noted then.
        """
        session = self.session
        if (
            session is None
            or now >= self._horizon.lease_until
            or not self.takes_prompt(session, len(frame))
        ):
            return None
        return session.turn.sent(self, (frame, rule))

    def takes_prompt(self, session: Session, size: int) -> bool:
        """Whether a prompt may be added to those that are kept until they were worked off."""
        limits = self._hub.limits
        return session.turn.takes(size, limits.queue_frames, limits.queue_bytes)

    def prompt_answered(self, prompt: Prompt, ok: bool | None, text: bytes) -> None:
        """Note the answer to a prompt; without one it stays to be recovered."""
        session = self.session
        if session is None:
            return
        if ok is None:
            if self.client.closed or not self.attached:
                session.turn.refused(prompt)
                if not self.client.closed:
                    self.client.refuse(prompt.request, answers.turn_interrupted(session.id, None))
        elif ok:
            result = envelope.loads(text).get("result")
            message_id = result.get("messageId") if type(result) is dict else None
            session.turn.accepted(prompt, message_id if type(message_id) is str else None)
            if self._hub.durable and self.link is not None:
                self.acknowledge_stored(session, prompt, self.link, framing.encode(text))
        else:
            session.turn.refused(prompt)
            if self._hub.durable:
                self.client.write(framing.encode(text))

    def acknowledge_stored(
        self, session: Session, prompt: Prompt, link: Link, answer: bytes
    ) -> None:
        """Acknowledge a prompt that the CLI has taken once it is in the journal.

        Args:
            session: its session.
            prompt: one of this client's.
            link: where to have the journal written.
            answer: the frame of the CLI's answer.
        """
        prompt.owed = True
        self._hub.tasks.spawn(
            self._save_then_answer(session, prompt, link, answer), f"save {session.id}"
        )

    async def _save_then_answer(
        self, session: Session, prompt: Prompt, link: Link, answer: bytes
    ) -> None:
        """Have the journal written when it is time.

        What the CLI has only just announced, a save may pass by; what it has not announced, for
        other prompts come first, is waited for. If the link is lost meanwhile, the prompt is
        carried on elsewhere, and acknowledged there.
        """
        hub = self._hub
        try:
            give_up = hub.now() + hub.limits.ask_timeout
            while not (prompt.seen or link.closed) and hub.now() < give_up:
                await asyncio.sleep(_SAVE_DELAY)
                if session.turn.started:
                    give_up = hub.now() + hub.limits.ask_timeout
            await asyncio.sleep(_SAVE_DELAY)
            await self._save(link, session.id)
        except LinkLostError:
            if self.client.closed or not self.attached:
                # Nobody is left to be told.
                session.turn.acknowledged(prompt)
            return
        except RpcError as error:
            hub.log.warning(
                "journal was not flushed", extra={"session": session.id, "reason": str(error)}
            )
        if prompt.owed:
            session.turn.acknowledged(prompt)
            self.client.write(answer)

    async def _save(self, link: Link, session_id: str) -> None:
        """Have the journal written; one that hangs does it in the end, or its link is lost."""
        while True:
            try:
                await link.request(
                    "sessions.save", {"sessionId": session_id}, self._hub.limits.ask_timeout
                )
            except TimeoutError:
                continue
            return

    def link_lost(self) -> None:
        """Note that the link has ended; attach again if the client was attached."""
        self.lost_with = self.link.replica if self.link is not None else None
        self.link = None
        self._turn_lost()
        self.open = False
        session = self.session
        if session is None:
            return
        if self.attached and not self.client.closed:
            self._start()
        elif not self._working:
            self.leave()

    def _turn_lost(self) -> None:
        """Note that a turn, if one runs, is no longer followed on the client's link."""
        self.bound = False
        session = self.session
        if session is None or not self.attached or not session.turn.runs:
            return
        turn = session.turn
        self.cut = True
        self.last_message = turn.last_message
        # While another client is attached the CLI goes on with it.
        turn.cut = turn.cut or not any(
            one.attached and one.link is not None for one in session.bindings
        )

    def session_ended(self) -> None:
        """Attach again: the replica, most likely one that is ending, has ended the session."""
        if self.link is not None:
            self.lost_with = self.link.replica
            self.move_away()

    @property
    def lingers(self) -> bool:
        """Whether its turn goes on for its sake if the client is lost.

        Not if somebody else is attached: the CLI goes on for them, and would wait for this one. Its
        tools stay for the moment that the CLI may be looking for them.
        """
        session = self.session
        if session is None or not self.attached or not session.turn.busy:
            return False
        return session.turn.about_to_ask or not self._in_company(session)

    def _in_company(self, session: Session) -> bool:
        return any(
            one.attached and one is not self and not one.client.closed for one in session.bindings
        )

    def linger(self) -> None:
        """Stay in the session without the client, until its turn is over or somebody comes."""
        session = self.session
        if session is not None and self._in_company(session):
            self._leave_steadily(session)

    @property
    def opening(self) -> bool:
        """Whether it is on its way to being open."""
        return self._working

    @property
    def active(self) -> bool:
        """Whether a message of this client's is waiting or unanswered."""
        return (
            bool(self.waiting)
            or self._working
            or any(pending.binding is self for pending in self.client.pending.values())
        )

    def move_away(self) -> None:
        """Go where the session lives now: attached clients attach there, messages wait."""
        if self.client.closed:
            self.let_go()
            return
        self._drop_link()
        self._turn_lost()
        self.open = False
        if self.attached:
            self._start()
        elif not self._working:
            self.leave()

    # Leaving

    def _leave_steadily(self, session: Session) -> None:
        """Leave a session on a link that outlived its client, when that takes no tools from it."""

        async def leave() -> None:
            await self._steady(session)
            self.let_go()

        self._hub.tasks.spawn(leave(), f"leave {session.id}")

    def let_go(self) -> None:
        """Leave a session on a link that outlived its client, and close the link after the last."""
        link = self.link
        attached = self.attached
        self.leave()
        if link is None:
            return
        if not link.bindings:
            link.close()
        elif attached:
            self._hub.tasks.spawn(_detach(link, self.session_id), f"detach {self.session_id}")

    def detached(self) -> None:
        """Note that the client left the session; it may still use it unattached."""
        if self.attached:
            self.attached = False
            self.recipe = None
            if self.session is not None:
                self._hub.session_detached(self.session)

    def _drop_link(self) -> None:
        if self.link is not None:
            self.link.bindings.discard(self)
            self.link = None

    def leave(self) -> None:
        """Forget the session."""
        self.detached()
        self._drop_link()
        self.open = False
        if self.session is not None:
            self.session.bindings.discard(self)
            self._hub.session_left(self.session)
            self.session = None
        if self.client.bindings.get(self.session_id) is self and not self.waiting:
            del self.client.bindings[self.session_id]
