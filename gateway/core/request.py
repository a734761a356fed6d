"""A client's message on its way to a replica."""

from __future__ import annotations

from typing import Any

from gateway.policy.rules import MethodRule, Route
from gateway.wire import envelope, framing

_GATED = frozenset({Route.CREATE, Route.RESUME, Route.FORK})


class Request:
    """A client's message on its way to a replica.

    Attributes:
        message: the parsed message; its parts may be replaced before it is sent.
        rule: what the policy says about its method.
        id: the request id, or None for a notification.
        size: bytes it arrived in, for the limits of what may wait.
        frame: the frame it arrived in, if that is canonical; dropped once it was sent.
    """

    __slots__ = ("_arrived", "frame", "id", "message", "rule", "size")

    def __init__(self, message: dict[str, Any], rule: MethodRule, size: int) -> None:
        self.message = message
        self.rule = rule
        self.id = message.get("id")
        self.size = size
        self.frame: bytes | None = None
        self._arrived = message

    @classmethod
    def from_frame(cls, frame: bytes, rule: MethodRule) -> Request:
        """Return the request that passed as ``frame``, unread so far."""
        body = frame.partition(framing.HEADER_END)[2]
        return cls(envelope.loads(body), rule, len(body))

    @property
    def method(self) -> str:
        """The method's name."""
        return self.rule.method

    @property
    def params(self) -> dict[str, Any]:
        """The params; anything but an object counts as empty, as it does for the CLI."""
        params = self.message.get("params")
        return params if type(params) is dict else {}

    def frame_of(self, message: dict[str, Any]) -> bytes | None:
        """Return the frame that ``message`` arrived in, if it may be sent as it came.

        Only once: one that is kept to be sent again need not be kept twice.
        """
        frame, self.frame = self.frame, None
        return frame if message is self._arrived else None

    @property
    def gated(self) -> bool:
        """Whether later messages wait until this one is answered or checked."""
        return self.awaited or not self.rule.simple

    @property
    def awaited(self) -> bool:
        """Whether a binding waits for the answer, and deals with there being none."""
        return self.rule.route in _GATED
