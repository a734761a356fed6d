"""One connection from the gateway to a replica; the counterpart of ``client``.

A link serves one client (or, as a *control link*, the gateway itself). Nearly all that arrives is
forwarded as it came: runs of frames leave as one slice of the chunk they arrived in. What needs a
look is peeked at, not decoded.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gateway import errors
from gateway.core import answers
from gateway.core.lane import pass_answers
from gateway.core.turn import Prompt
from gateway.errors import RpcError
from gateway.wire import envelope, framing, stream
from gateway.wire.methods import SERVER_METHODS
from gateway.wire.stream import Kind

if TYPE_CHECKING:
    from gateway.core.binding import Binding
    from gateway.core.client import Client
    from gateway.core.hub import Hub
    from gateway.core.ports import Sink
    from gateway.core.replica import Replica

_OWN_ID_PREFIX = f"gateway-{secrets.token_hex(8)}-"
"""Ids of the gateway's own requests; clients cannot guess one, so theirs never collide."""

_own_ids = itertools.count(1)

_DROP, _FORWARD, _FORWARD_NOW = range(3)

# Plain integers: comparing members of an enumeration costs more than all the rest of a frame.
_EVENT, _LIFECYCLE, _RESPONSE, _REQUEST, _NOTIFICATION = map(
    int, (Kind.EVENT, Kind.LIFECYCLE, Kind.RESPONSE, Kind.REQUEST, Kind.NOTIFICATION)
)


MAX_ALIASES = 16
"""Message ids that are replaced on a link: one per prompt that was lost with a replica."""


_SERVER_SHUTTING_DOWN = -32000
"""The code with which a CLI refuses everything while it ends; clients never see it."""


def _is_shutting_down(body: bytes) -> bool:
    """Whether an error is the one with which a CLI refuses everything while it ends."""
    return len(body) < _SHORT_ERROR_BYTES and str(_SERVER_SHUTTING_DOWN).encode() in body


_SHORT_ERROR_BYTES = 1024
"""Size that such an error does not reach: it says nothing of the request but its id."""


def _is_session_lost(body: bytes) -> bool:
    """Whether an error says that the CLI does not have the session, as one says that is ending."""
    return len(body) < _SHORT_ERROR_BYTES and (
        b"Session not found" in body or b"Unknown session '" in body
    )


_ASKS_A_PERSON = frozenset({"userInput.request", "exitPlanMode.request"})
"""What a replica may ask of a client that has gone: a person is waited for."""


_LARGE_BYTES = 64 * 1024
"""From here on it costs less to write parts than to join or to copy them."""


class LinkLostError(Exception):
    """The link ended before an answer came."""


class Link:
    """A connection to ``replica`` on behalf of ``client``.

    Attributes:
        replica: where it leads.
        client: whom it serves; None for a control link.
        sink: where bytes go; None before the connection is made.
        ready: the handshake is done; frames may be sent.
        closed: the link has ended.
        bindings: the sessions that use it.
        stats: the worker's counters.
        begun: chunks of the frame that has begun and not ended.
        sent: bytes went to the replica since its stream was last acknowledged at once.
        answers_alone: reads in a row that held nothing but answers, with no other request under
            way; see :data:`gateway.core.lane.ANSWERS_ALONE`.
    """

    __slots__ = (
        "_after",
        "_ahead",
        "_aliased",
        "_aliases",
        "_buffer",
        "_client_paused",
        "_hub",
        "_opening",
        "_own",
        "answers_alone",
        "begun",
        "bindings",
        "callbacks",
        "client",
        "closed",
        "ready",
        "replica",
        "sent",
        "sink",
        "stats",
        "version",
        "write_paused",
    )

    def __init__(self, hub: Hub, replica: Replica, client: Client | None) -> None:
        self._hub = hub
        self.stats = hub.stats
        self._buffer = framing.FrameBuffer(hub.limits.max_replica_frame)
        self.begun = self._buffer.chunks
        self._own: dict[str, tuple[asyncio.Future[Any], Callable[[Any], None] | None]] = {}
        self._aliases: dict[bytes, bytes] = {}
        self._aliased = False
        self._after: Callable[[], None] | None = None
        self._ahead: Sequence[bytes] = ()
        self._opening: asyncio.Task[None] | None = None
        self._client_paused = False
        self.answers_alone = 0
        self.replica = replica
        self.client = client
        self.sink: Sink | None = None
        self.ready = False
        self.sent = False
        self.closed = False
        self.write_paused = False
        self.version = ""
        self.bindings: set[Binding] = set()
        self.callbacks: dict[Any, int] = {}
        """Replica's request id -> id under which the client knows it, until it is answered."""

    @property
    def hub(self) -> Hub:
        """The hub of the client and of the replica."""
        return self._hub

    def __repr__(self) -> str:
        """Return a diagnosis."""
        state = "closed" if self.closed else "ready" if self.ready else "opening"
        whom = "control" if self.client is None else repr(self.client)
        return (
            f"<Link {self.replica.name} {state} for {whom} sessions={len(self.bindings)} "
            f"own={len(self._own)} callbacks={len(self.callbacks)}>"
        )

    # Opening and closing

    async def open(self) -> None:
        """Connect and shake hands, with the client's own connection parameters.

        Raises:
            OSError: the replica cannot be reached.
            LinkLostError: it hung up during the handshake.
            RpcError: it refused the handshake.
        """
        self.sink = await self._hub.dialer.dial(self)
        params = dict(self.client.connect_params) if self.client is not None else {}
        if self.replica.spec.token is not None:
            params["token"] = self.replica.spec.token
        timeout = self._hub.limits.handshake_timeout
        try:
            result = await self.request("connect", params, timeout)
        except RpcError as error:
            if error.code != errors.METHOD_NOT_FOUND:
                self.close()
                raise
            # A CLI before 1.0 has no handshake.
            result = {}
        except TimeoutError:
            self.close()
            raise LinkLostError(f"{self.replica.name} does not answer the handshake") from None
        self.version = str(result.get("version", "")) if type(result) is dict else ""
        self.ready = True
        self.replica.greeted(result)
        # Not before: a client that does not keep up must not make the replica look dead.
        if self.client is not None and self.client.write_paused:
            self.pause_reading()

    def lost(self, reason: str) -> None:
        """Note that the connection has ended, from either side; idempotent."""
        if self.closed:
            return
        self.closed = True
        self.ready = False
        for waiting, _ in self._own.values():
            if not waiting.done():
                waiting.set_exception(LinkLostError(reason))
        self._own.clear()
        self._hub.link_lost(self, reason)

    def close(self) -> None:
        """End the connection."""
        if self.sink is not None:
            self.sink.abort()
        self.lost("closed by the gateway")

    # Flow

    def pause_reading(self) -> None:
        """Take nothing more from the replica: the client's buffer is full."""
        if not self._client_paused and self.sink is not None and not self.closed:
            self._client_paused = True
            self.sink.pause_reading()

    def resume_reading(self) -> None:
        """Take from the replica again."""
        if self._client_paused and self.sink is not None and not self.closed:
            self._client_paused = False
            self.sink.resume_reading()

    def pause_writing(self) -> None:
        """Note that the replica does not keep up; its client is not read meanwhile."""
        self.write_paused = True
        if self.client is not None:
            self.client.hold_reading()

    def resume_writing(self) -> None:
        """Note that the replica keeps up again."""
        self.write_paused = False
        if self.client is not None:
            self.client.release_reading()

    # To the replica

    def send(self, frame: bytes) -> None:
        """Send one frame."""
        if self.sink is not None and not self.closed:
            self.sink.write(frame)
            self.sent = True
            stats = self.stats
            stats.frames_to_replica += 1
            stats.bytes_to_replica += len(frame)

    async def request(
        self,
        method: str,
        params: Any,
        timeout: float,
        on_result: Callable[[Any], None] | None = None,
    ) -> Any:
        """Send a request of the gateway's own and return its result.

        Args:
            method: the method.
            params: its params.
            timeout: seconds to wait for the answer.
            on_result: called with the result before anything that follows it is looked at.

        Raises:
            RpcError: the replica answered with an error.
            LinkLostError: the link ended first.
            TimeoutError: no answer within ``timeout`` seconds.
        """
        if self.closed:
            raise LinkLostError(f"link to {self.replica.name} is closed")
        request_id = f"{_OWN_ID_PREFIX}{next(_own_ids)}"
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._own[request_id] = (answer, on_result)
        try:
            self.send(envelope.request_frame(request_id, method, params))
            async with asyncio.timeout(timeout):
                return await answer
        finally:
            self._own.pop(request_id, None)

    # From the replica

    def feed(self, data: bytes) -> None:
        """Take a chunk of the replica's stream."""
        self.stats.bytes_from_replica += len(data)
        whole = data
        end = 0
        if self.begun:
            end = self._completed(data)
            if not end:
                joined = self._buffer.join(data)
                if joined is None:
                    self.answers_alone = 0
                    return
                whole = joined
        if self._aliases:
            whole = self._with_aliases(whole)
        passed = pass_answers(whole, end, self._buffer.max_frame, self, self._hub.now)
        if passed is not None:
            pos, events, answered = passed
            self.rest(whole, pos, events + 1 if end else events, answered)

    def _completed(self, data: bytes) -> int:
        """Take what is held of a large quiet event that ends in ``data``, without joining it.

        It leaves together with the next run, which begins with the event's end.

        Returns:
            Where in ``data`` it ends; 0 if this is nothing of the kind, or not its end yet.
        """
        buffer, client = self._buffer, self.client
        end = buffer.ends_in(data)
        if (
            not end
            or len(buffer) + len(data) < _LARGE_BYTES
            or client is None
            or not client.verbatim
            or self._aliases
            or not stream.begins_quiet(self.begun[0])
        ):
            return 0
        self._ahead = buffer.release()
        return end

    def rest(self, whole: bytes, pos: int, quiet: int, frames: int) -> None:
        """Deal with a chunk in which not everything merely passes.

        Args:
            whole: whole frames, of which the last may be incomplete.
            pos: where the first starts that does not merely pass.
            quiet: events before it.
            frames: other frames before it.
        """
        buffer = self._buffer
        client = self.client
        start = others = 0
        size = len(whole)
        while pos < size:
            found = stream.look(whole, pos, buffer.max_frame)
            if found is None:
                try:
                    header = buffer.frame(whole, pos)
                except framing.FramingError as error:
                    self._broken(error)
                    return
                if header is None:
                    others += 1
                    break
                found = (*stream.peek(whole, header.body, header.end), *header)
            end = found[5]
            if found[0] == _RESPONSE:
                verdict = self._answer(whole, found)
            else:
                verdict = self._frame(whole, pos, found)
            others += 1
            if verdict == _FORWARD:
                frames += 1
                pos = end
            else:
                # The run before this frame leaves first, so that order is kept.
                if verdict == _FORWARD_NOW:
                    frames += 1
                    pos = end
                if client is not None and start < pos:
                    self._hand(client, whole[start:pos])
                pos = start = end
                if self._aliased:
                    # What follows the answer that named the id may name it too.
                    self._aliased = False
                    whole = whole[:pos] + self._with_aliases(whole[pos:])
                after = self._after
                if after is not None:
                    self._after = None
                    after()
            passed = pass_answers(whole, pos, buffer.max_frame, self, self._hub.now)
            assert passed is not None, "it is not the whole chunk"
            pos, events, answered = passed
            quiet += events
            frames += answered
        run: bytes | memoryview = whole
        if pos - start < size:
            run = memoryview(whole)[start:pos] if pos - start > _LARGE_BYTES else whole[start:pos]
        self.passed(run, quiet, frames, others)

    def passed(self, run: bytes | memoryview, events: int, others: int, looked_at: int) -> None:
        """Count the frames of a chunk, and hand the client the last of those that are for it.

        Args:
            run: whole frames, the first perhaps without what is held of it ahead, or nothing.
            events: events of the chunk that were passed over.
            others: other frames of the chunk that were for the client.
            looked_at: frames of the chunk that did not merely pass.
        """
        stats = self.stats
        client = self.client
        frames = events + others
        stats.events_forwarded += events
        stats.frames_from_replica += frames
        if looked_at or events or client is None or client.pending:
            self.answers_alone = 0
        else:
            self.answers_alone += 1
        if client is not None and run:
            self._hand(client, run)
            stats.frames_to_client += frames

    def _hand(self, client: Client, run: bytes | memoryview) -> None:
        """Write a run, and with it what was taken ahead of it by :meth:`_completed`."""
        ahead = self._ahead
        if ahead:
            self._ahead = ()
            client.write_parts((*ahead, run))
        else:
            client.write(run)

    # Message ids that clients know by another one

    def alias_message(self, replica_id: str, client_id: str) -> None:
        """Let the client see ``client_id`` wherever the replica says ``replica_id``.

        A prompt that was sent again has another id than the one that its sender was told. Both are
        UUIDs, of one length, so that a frame keeps its length. It lasts as long as the link.
        """
        if len(replica_id) == len(client_id) and replica_id != client_id:
            if len(self._aliases) >= MAX_ALIASES:
                self._aliases.pop(next(iter(self._aliases)))
            self._aliases[replica_id.encode()] = client_id.encode()
            self._aliased = True

    def _with_aliases(self, data: bytes) -> bytes:
        for replica_id, client_id in self._aliases.items():
            data = data.replace(replica_id, client_id)
        return data

    def _broken(self, error: framing.FramingError) -> None:
        self._hub.log.error(
            "replica sent a broken frame",
            extra={"replica": self.replica.name, "reason": error.hint},
        )
        self.close()

    def _frame(self, data: bytes, start: int, found: stream.Looked) -> int:
        """Deal with one frame that is no response; return whether it is forwarded as it is.

        With :data:`_FORWARD_NOW` and :data:`_DROP`, :attr:`_after` is called once what came before
        (with the first: including this frame) has been handed to the client.
        """
        kind, key, name, tail, body, end = found
        client = self.client
        if kind == _LIFECYCLE:
            return self._lifecycle(key, data[start:end])
        if client is None:
            return _DROP
        if kind == _EVENT:
            binding = client.bindings.get(key)
            if binding is not None:
                binding.event(name, data[body:end])
            return _FORWARD
        if kind == _REQUEST:
            if client.closed and name not in _ASKS_A_PERSON:
                # The turn goes on without its client, which would hold it up for ever.
                error = RpcError(errors.REPLICA_UNAVAILABLE, "The client has gone")
                self.send(envelope.error_frame(key, error))
                return _DROP
            alias = client.adopt_callback(self, key, name)
            self.callbacks[key] = alias
            frame = stream.with_id(data, body, end, tail, alias)
            self._after = lambda: client.write(frame)
            return _DROP
        if kind == _NOTIFICATION:
            if name == "$/cancelRequest":
                self._cancel(client, data[body:end])
                return _DROP
            return _FORWARD if name in SERVER_METHODS else _DROP
        self._hub.log.warning(
            "replica sent a message that answers nobody",
            extra={"replica": self.replica.name, "kind": Kind(kind).name.lower()},
        )
        return _DROP

    def _own_answer(self, key: str, body: bytes) -> None:
        waiting, on_result = self._own.pop(key, (None, None))
        if waiting is None or waiting.done():
            return
        message = envelope.loads(body)
        error = message.get("error")
        if error is None:
            result = message.get("result")
            if on_result is not None:
                on_result(result)
            waiting.set_result(result)
        elif type(error) is dict and error.get("code") == _SERVER_SHUTTING_DOWN:
            waiting.set_exception(LinkLostError(f"{self.replica.name} is shutting down"))
        elif type(error) is dict:
            waiting.set_exception(
                RpcError(
                    error.get("code", errors.INTERNAL_ERROR),
                    str(error.get("message", "")),
                    error.get("data"),
                )
            )
        else:
            waiting.set_exception(RpcError(errors.INTERNAL_ERROR, "malformed error"))

    def _answer(self, data: bytes, found: stream.Looked) -> int:
        """Match a response with what was asked; answers to nothing are dropped."""
        _, key, outcome, _, body, end = found
        if type(key) is str:
            if key in self._own:
                self._own_answer(key, data[body:end])
                return _DROP
        elif type(key) is not int:
            return _DROP
        client = self.client
        if client is None:
            return _DROP
        pending = client.pending.get(key)
        if pending is None or pending.link is not self:
            return _DROP
        if outcome == "error" and _is_shutting_down(data[body:end]):
            # It has not done what was asked, and is about to go: as good as gone.
            self._after = self.close
            return _DROP
        del client.pending[key]
        self.replica.stats.in_flight -= 1
        ok = outcome == "result"
        if (
            not ok
            and isinstance(pending.hook, Prompt)
            and pending.hook.repeatable
            and pending.binding is not None
            and pending.binding.is_settled
            and _is_session_lost(data[body:end])
        ):
            self._after = pending.binding.session_ended
            return _DROP
        counters = pending.stats
        if ok:
            counters.ok += 1
        else:
            counters.error += 1
        counters.duration.observe(self._hub.now() - pending.started)
        hook = pending.hook
        if hook is None:
            return _FORWARD
        text = data[body:end]
        if pending.notes:
            hook(ok, text)
            return _FORWARD
        self._after = lambda: hook(ok, text)
        return _DROP if pending.rewrites else _FORWARD_NOW

    def _lifecycle(self, session_id: Any, frame: bytes) -> int:
        """Forward a lifecycle notification only to those who may know of the session."""
        if self.client is None:
            self._hub.lifecycle(self.replica, session_id, frame)
            return _DROP
        owner = self._hub.owners.get(session_id)
        if owner is not None and self.client.sees(owner):
            return _FORWARD
        if owner is None:
            self._hub.deliver_when_known(self.client, session_id, frame)
        else:
            self.stats.lifecycle_dropped += 1
        return _DROP

    def _cancel(self, client: Client, body: bytes) -> None:
        """Pass on the cancelling of a replica's request under the id the client knows."""
        message = envelope.loads(body)
        params = message.get("params")
        alias = self.callbacks.get(params.get("id")) if type(params) is dict else None
        if alias is not None:
            client.write(envelope.notification_frame("$/cancelRequest", {"id": alias}))

    def unavailable(self, session_id: str | None) -> RpcError:
        """Return the error for requests that this link can no longer carry."""
        return answers.replica_unavailable(session_id, self._hub.limits.retry_after)
