"""Values that every layer speaks about: who a client is, who owns a session, where it lives."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Role(enum.StrEnum):
    """What an identity may do beyond its own sessions."""

    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client is after authentication.

    Attributes:
        tenant: the tenant's name; sessions never cross tenants.
        user: the user inside the tenant.
        role: ``user`` or ``admin``.
        expires_at: Unix time in seconds at which the identity ends, or None.
        source: how it was proven (``token:<id>``, ``static``, ``none``, ``jwt`` ...); safe to log.
    """

    tenant: str
    user: str
    role: Role = Role.USER
    expires_at: float | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Owner:
    """The tenant and user that a session belongs to."""

    tenant: str
    user: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a session lives, as recorded in the registry.

    Attributes:
        session_id: the session.
        owner: who it belongs to.
        replica: name of the replica that holds it.
        epoch: grows by one at every move; a writer with an older epoch has lost the session.
    """

    session_id: str
    owner: Owner
    replica: str
    epoch: int


class ReplicaState(enum.StrEnum):
    """The life of a replica as the gateway sees it."""

    STARTING = "starting"
    UP = "up"
    DRAINING = "draining"
    EJECTED = "ejected"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """How to reach a replica.

    Attributes:
        name: stable name (``cli-0``); the hash ring is built over names, not addresses.
        host: IP address or host name.
        port: TCP port.
        token: the replica's own connection token, or None. Never logged.
        weight: share of new sessions relative to others.
        backup: it takes new sessions only while no other replica can.
    """

    name: str
    host: str
    port: int
    token: str | None = field(default=None, repr=False)
    weight: int = 1
    backup: bool = False
