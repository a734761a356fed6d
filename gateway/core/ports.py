"""What the core needs from the outside, as interfaces; the edges implement them."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gateway.types import Identity

if TYPE_CHECKING:
    from gateway.core.link import Link


@dataclass(frozen=True, slots=True)
class Entry:
    """By what way a client came in.

    Attributes:
        listener: the listener's name, or empty where it has none of its own.
        identity: who it is where the way itself proves that: by its network, by its certificate,
            or because authentication is off. Then it need not send ``connect``, and a token that
            it presents all the same must be good and prove the same identity.
    """

    listener: str = ""
    identity: Identity | None = None


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a token proves nothing; for logs and the audit, never for the client.

    Attributes:
        reason: one phrase; holds no part of the token.
    """

    reason: str


class Sink(Protocol):
    """Where bytes for a peer go: an ``asyncio.Transport`` fits.

    Writing never blocks and keeps order. What is written must not change afterwards.
    """

    def write(self, data: bytes | memoryview, /) -> None:
        """Send bytes."""

    def writelines(self, parts: Iterable[bytes | memoryview], /) -> None:
        """Send bytes that come in parts, nothing in between."""

    def pause_reading(self) -> None:
        """Deliver nothing of the peer's until told otherwise."""

    def resume_reading(self) -> None:
        """Deliver again."""

    def close(self) -> None:
        """Send what was written, then close."""

    def abort(self) -> None:
        """Close at once."""

    def is_closing(self) -> bool:
        """Whether the end has begun."""


class Dialer(Protocol):
    """Opens connections to replicas."""

    async def dial(self, link: Link) -> Sink:
        """Connect ``link`` to its replica; what arrives goes to ``link.feed``.

        Raises:
            OSError: the replica cannot be reached (time-outs included).
        """


class Authenticator(Protocol):
    """Proves identities."""

    def authenticate(
        self, token: object, peer: str
    ) -> Identity | Denied | Awaitable[Identity | Denied | None] | None:
        """Return who holds ``token`` (whatever a client put there), or None or why it is nobody.

        What takes time is awaited; nothing that the client sends is looked at meanwhile.
        """

    def failed(self, peer: str) -> float:
        """Note a failure of this source; return the seconds its answer has to wait."""


class Audit(Protocol):
    """Takes records of who did what."""

    def record(self, event: str, **fields: Any) -> None:
        """Write one record; never blocks."""


class Tasks(Protocol):
    """Runs coroutines that outlive the call that needs them."""

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run ``work`` to its end, logging what it raises."""

    def call_later(self, seconds: float, callback: Any, *args: Any) -> Any:
        """Call ``callback(*args)`` once after ``seconds``; the result has ``cancel()``."""
