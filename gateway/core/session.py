"""Sessions: what a worker knows of the conversations that its clients use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.core.turn import Turn
from gateway.types import Placement

if TYPE_CHECKING:
    from gateway.core.binding import Binding


class SessionNotFoundError(Exception):
    """There is no such session, or it is not the caller's: one answer for both."""


class Session:
    """A conversation as this worker knows it.

    Attributes:
        id: the session id.
        placement: owner, replica and epoch as last read from the registry.
        bindings: the clients of this worker that use it.
        turn: what is known of its turn.
        attaching: held while a client is being attached: a CLI that is asked for a session which is
            not live by two connections at once was seen to end it for one of them.
        moving: done when the session has been taken to another replica; None while it stays.
        stored: a turn has ended, so that it is on disk for certain.
        recovering: held by the one that carries on a cut turn.
        watched: a turn that was carried on is being looked after.
        held: epoch, replica and its incarnation of this worker's hold in the registry, or None.
    """

    __slots__ = (
        "attaching",
        "bindings",
        "held",
        "id",
        "moving",
        "placement",
        "recovering",
        "stored",
        "turn",
        "watched",
    )

    def __init__(self, placement: Placement) -> None:
        self.id = placement.session_id
        self.placement = placement
        self.bindings: set[Binding] = set()
        self.turn = Turn()
        self.stored = False
        self.moving: asyncio.Future[None] | None = None
        self.attaching = asyncio.Lock()
        self.recovering = asyncio.Lock()
        self.watched = False
        self.held: tuple[int, str, int] | None = None

    def __repr__(self) -> str:
        """Return a diagnosis."""
        return (
            f"<Session {self.id} on {self.placement.replica} epoch={self.placement.epoch} "
            f"bindings={len(self.bindings)} busy={self.turn.busy}>"
        )

    @property
    def live(self) -> bool:
        """Whether a client of this worker is attached to it."""
        return any(binding.attached for binding in self.bindings)

    @property
    def opening(self) -> bool:
        """Whether a client of this worker may be about to attach to it."""
        return any(binding.opening for binding in self.bindings)

    @property
    def quiet(self) -> bool:
        """Whether it can be moved now: no turn, no request under way, nothing waiting."""
        return not self.turn.busy and not any(binding.active for binding in self.bindings)
