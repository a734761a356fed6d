"""What the core knows of one replica."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gateway.core.stats import ReplicaStats
from gateway.routing.health import Health
from gateway.types import ReplicaSpec

if TYPE_CHECKING:
    from gateway.core.link import Link


class Replica:
    """One replica: its address, health and connections.

    Attributes:
        spec: name, address and token; replaced when it comes back elsewhere.
        health: its state machine.
        stats: its counters.
        control: the gateway's own connection, for probes and questions; None while there is none.
        links: all connections to it, the control link included.
        version: the CLI's version as it last said, or "".
        hello: the result of its last handshake.
        nudged: set when something happened that a prober should look at now.
        incarnation: the registry's number of the process that the control link was opened to.
        fenced: that process is known to be gone, and holds on its sessions were voided.
        up_since: when the control link was opened.
    """

    __slots__ = (
        "_reachable",
        "control",
        "fenced",
        "health",
        "hello",
        "incarnation",
        "links",
        "nudged",
        "spec",
        "stats",
        "up_since",
        "version",
    )

    def __init__(self, spec: ReplicaSpec, health: Health, stats: ReplicaStats) -> None:
        self.spec = spec
        self.health = health
        self.stats = stats
        self.control: Link | None = None
        self.links: set[Link] = set()
        self.version = ""
        self.hello: dict[str, Any] = {}
        self.incarnation = 0
        self.fenced = False
        self.up_since = 0.0
        self.nudged = asyncio.Event()
        self._reachable = asyncio.Event()

    def __repr__(self) -> str:
        """Return a diagnosis."""
        return f"<Replica {self.name} {self.health.state} links={len(self.links)}>"

    @property
    def name(self) -> str:
        """The stable name."""
        return self.spec.name

    @property
    def weight(self) -> int:
        """Share of new sessions relative to others."""
        return self.spec.weight

    @property
    def backup(self) -> bool:
        """Whether it takes new sessions only while no other replica can."""
        return self.spec.backup

    @property
    def reachable(self) -> bool:
        """Whether it can serve sessions now."""
        return self.health.reachable

    def greeted(self, hello: Any) -> None:
        """Note the result of a handshake."""
        if type(hello) is dict:
            self.hello = hello
            self.version = str(hello.get("version", ""))

    def state_changed(self) -> None:
        """Publish the health's state to counters and waiters."""
        self.stats.state = self.health.state
        self.stats.ejections = self.health.ejections
        if self.health.reachable:
            self._reachable.set()
        else:
            self._reachable.clear()

    async def until_reachable(self) -> None:
        """Return once it can serve sessions."""
        await self._reachable.wait()
