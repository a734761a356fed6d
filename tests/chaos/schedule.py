"""Which fault strikes when: a plan made from a seed. Pure."""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """What is done to whom."""

    KILL = "kill"
    """A replica is killed (SIGKILL) and started again."""
    FREEZE = "freeze"
    """A replica is stopped (SIGSTOP): it accepts and never answers. Then it is killed."""
    RESTART = "restart"
    """A replica is asked to end (SIGTERM), which cuts its turns, and started again."""
    DRAIN = "drain"
    """A replica is drained, restarted when it is empty, and undrained: a rolling restart."""
    RECONNECT = "reconnect"
    """A client's connection drops; it comes back and resumes its sessions, turns under way."""
    GATEWAY = "gateway"
    """A gateway is killed (SIGKILL) and started again; its clients go to another."""
    REDIS = "redis"
    """Redis is restarted and keeps what it had."""
    REDIS_EMPTY = "redis-empty"
    """Redis is killed and comes back empty."""


REPLICA_KINDS = (Kind.KILL, Kind.FREEZE, Kind.RESTART, Kind.DRAIN)
REGISTRY_KINDS = (Kind.REDIS, Kind.REDIS_EMPTY)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        at: seconds after the start.
        kind: what is done.
        target: index of the replica, gateway or client.
        lasts: seconds until it is undone.
    """

    at: float
    kind: Kind
    target: int
    lasts: float


@dataclass(frozen=True, slots=True)
class _Track:
    """Faults that follow one another; those of different tracks overlap.

    Attributes:
        kinds: each comes up once before any comes up again.
        targets: how many things may be struck; likewise.
        lasts: bounds in seconds.
        pause: bounds in seconds of the time between two.
    """

    kinds: tuple[Kind, ...]
    targets: int
    lasts: tuple[float, float]
    pause: tuple[float, float]


def plan(
    seed: int,
    seconds: float,
    kinds: Sequence[Kind],
    *,
    replicas: int,
    gateways: int,
    clients: int,
) -> list[Fault]:
    """Return the faults of a run, in the order of time; all are over within ``seconds``.

    At most one replica, one gateway and Redis are struck at once, so that a fleet with a spare of
    each can go on.

    Args:
        seed: the same seed gives the same plan.
        seconds: length of the run.
        kinds: those that may strike.
        replicas: number of replicas.
        gateways: number of gateways; a single one is never struck.
        clients: number of clients' connections.
    """

    def only(*wanted: Kind) -> tuple[Kind, ...]:
        return tuple(kind for kind in wanted if kind in kinds)

    tracks = [
        _Track(only(*REPLICA_KINDS), replicas, (1.5, 6.0), (2.0, 5.0)),
        _Track(only(Kind.RECONNECT), clients, (0.0, 0.0), (1.0, 4.0)),
        _Track(only(Kind.GATEWAY), gateways if gateways > 1 else 0, (1.0, 5.0), (10.0, 20.0)),
        _Track(only(*REGISTRY_KINDS), 1, (0.5, 3.0), (12.0, 20.0)),
    ]
    faults = [
        fault
        for number, track in enumerate(tracks)
        if track.kinds and track.targets
        for fault in _strike(random.Random(f"{seed}/{number}"), track, seconds)
    ]
    return sorted(faults, key=lambda fault: (fault.at, fault.kind))


def _strike(rng: random.Random, track: _Track, seconds: float) -> Iterator[Fault]:
    now = 0.0
    bag: list[Kind] = []
    victims: list[int] = []
    while True:
        now += rng.uniform(*track.pause)
        lasts = rng.uniform(*track.lasts)
        if now + lasts > seconds:
            return
        if not bag:
            bag = rng.sample(track.kinds, len(track.kinds))
        if not victims:
            victims = rng.sample(range(track.targets), track.targets)
        yield Fault(now, bag.pop(), victims.pop(), lasts)
        now += lasts
