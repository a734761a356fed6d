"""Whether a session is working, told from what passes by. Pure.

A turn runs from an accepted ``session.send`` (or the ``user.message`` it becomes) to
``session.idle``, which comes once, after the queue of prompts is empty.
"""

from __future__ import annotations


class Turn:
    """What is known of a session's turn.

    Attributes:
        busy: whether a turn runs.
        sends: prompts sent since the session was attached here.
        seen_message: whether any user message was seen, so that the session is (about to be) on
            disk.
    """

    __slots__ = ("busy", "seen_message", "sends")

    def __init__(self) -> None:
        self.busy = False
        self.sends = 0
        self.seen_message = False

    def sent(self) -> None:
        """Note that a prompt was forwarded."""
        self.busy = True
        self.sends += 1

    def refused(self) -> None:
        """Note that the CLI refused a prompt."""
        self.sends -= 1
        if self.sends <= 0 and not self.seen_message:
            self.busy = False

    def event(self, name: str) -> None:
        """Note a loud event (:data:`gateway.wire.stream.LOUD_EVENTS`)."""
        if name == "session.idle":
            self.busy = False
        elif name in ("user.message", "assistant.turn_start"):
            self.busy = True
            self.seen_message = True

    def cut(self) -> bool:
        """Note that its replica is gone; return whether a turn was running."""
        was_busy = self.busy
        self.busy = False
        return was_busy
