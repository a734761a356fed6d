"""What a run is: where to, how much, how long, doing what. Pure; sent to every process."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Self

from gateway.loadtest.scenario import Scenario
from gateway.loadtest.shape import Shape, Stage, arrivals

CONNECT_TIMEOUT = 10.0
"""Seconds for a connection and its handshake."""


class Check(enum.StrEnum):
    """How much of what comes back is checked."""

    OFF = "off"
    EVENTS = "events"
    HISTORY = "history"


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS towards the target: paths of PEM files, and the name the certificate must have."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run.

    Attributes:
        run: short random name of the run; session ids start with it.
        host: where to.
        port: where to.
        token: what to present, or None.
        tls: how to speak TLS, or None for plain TCP.
        scenario: what users do.
        provider_url: base URL of the built-in model server, or None to leave the model to the
            target; answers are checked word for word only with the former.
        connections: connections in all processes together.
        sessions: sessions on each connection.
        processes: number of processes.
        open_loop: steps start when they are due, whatever became of the earlier ones, and are
            timed from then on; else each user starts the next step after the last one.
        poisson: in an open loop, steps are due at random moments.
        shape: rate (open loop) or active sessions (closed loop) over time.
        steps: stop after so many steps, or None.
        warmup: seconds from the start that are not timed.
        check: what is checked.
        turn_timeout: seconds after which a turn has got stuck.
        request_timeout: seconds after which another request has failed.
        grace: seconds that running steps are given when the time is over.
        keep_sessions: leave the sessions that scenarios detach from.
    """

    run: str
    host: str
    port: int
    token: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    scenario: Scenario = field(default_factory=Scenario)
    provider_url: str | None = None
    connections: int = 10
    sessions: int = 1
    processes: int = 1
    open_loop: bool = False
    poisson: bool = False
    shape: Shape
    steps: int | None = None
    warmup: float = 0.0
    check: Check = Check.HISTORY
    turn_timeout: float = 120.0
    request_timeout: float = 30.0
    grace: float = 30.0
    keep_sessions: bool = False

    @property
    def echo(self) -> bool:
        """Whether answers are known beforehand."""
        return self.provider_url is not None

    @property
    def users(self) -> int:
        """Sessions in all processes together."""
        return self.connections * self.sessions

    def share(self, process: int) -> Share:
        """Return the part of a process."""
        own_connections = len(range(process, self.connections, self.processes))
        steps = self.steps
        if steps is not None:
            steps = len(range(process, steps, self.processes))
        return Share(self, process, own_connections, steps)

    def dump(self) -> dict[str, Any]:
        """Return the plan as JSON values, the token among them."""
        return {**asdict(self), "scenario": self.scenario.dump()}

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Self:
        """Return the plan that :meth:`dump` was called on."""
        tls = values["tls"]
        stages = tuple(Stage(**stage) for stage in values["shape"]["stages"])
        return cls(
            **{
                **values,
                "tls": Tls(**tls) if tls is not None else None,
                "scenario": Scenario.load(values["scenario"]),
                "shape": Shape(stages),
                "check": Check(values["check"]),
            }
        )


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a run that one process does.

    Attributes:
        plan: the whole.
        process: which process, from 0.
        connections: connections it opens.
        steps: steps it does, or None.
    """

    plan: Plan
    process: int
    connections: int
    steps: int | None

    def arrivals(self) -> Iterator[float]:
        """Yield when its steps are due; every process takes its turn in the whole's order."""
        plan = self.plan
        every = arrivals(plan.shape, poisson=plan.poisson, seed=int(plan.run, 36))
        return islice(every, self.process, None, plan.processes)

    def rank(self, user: int) -> int:
        """Return the number, in the whole, of one of its users: low ones become active first."""
        return user * self.plan.processes + self.process
