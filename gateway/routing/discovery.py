"""Which replicas there are, when lists of them come from outside: names, merging, timing. Pure.

The counterpart that reads files and asks name servers is :mod:`gateway.io.discovery`.

A replica's *name* has to outlive its address: placements and the hash ring are made of names. So a
target of an SRV record keeps its own name (``cli-0`` of a StatefulSet, whatever its address is
today), while a bare address can only be its own name.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from gateway.types import ReplicaSpec

MIN_INTERVAL = 1.0
"""Seconds between two looks at a name server at least, however short its TTL is."""

JITTER = 0.1
"""Part of an interval by which it varies, so that many gateways do not ask at once."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file that lists replicas: ``file:///path``.

    Attributes:
        path: the file; ``.toml`` and ``.json`` are read as such, others line by line.
    """

    path: str

    def __str__(self) -> str:
        return f"file://{self.path}"


@dataclass(frozen=True, slots=True)
class DnsSource:
    """The addresses of a host name, all on one port: ``dns://host:port``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"dns://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SrvSource:
    """The targets of an SRV record: ``srv://_copilot._tcp.cli.default.svc.cluster.local``."""

    name: str

    def __str__(self) -> str:
        return f"srv://{self.name}"


Source = FileSource | DnsSource | SrvSource


def parse_source(text: str) -> Source:
    """Read the URL of a source.

    Raises:
        ValueError: it is none; the message begins with ``must be``.
    """
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
    except ValueError:
        url, host, port = urlsplit(""), "", None
    bare = not url.query and not url.fragment and url.username is None
    match url.scheme:
        case "file" if bare and not url.netloc and url.path.startswith("/"):
            return FileSource(unquote(url.path))
        case "dns" if bare and host and port and url.path in ("", "/"):
            return DnsSource(host, port)
        case "srv" if bare and host and port is None and url.path in ("", "/"):
            return SrvSource(host)
    raise ValueError("must be file:///PATH, dns://HOST:PORT or srv://NAME")


def specs_of_addresses(
    addresses: Iterable[str], port: int, token: str | None = None
) -> list[ReplicaSpec]:
    """Name the addresses that a host name has.

    Of a name with IPv4 and IPv6 addresses only the former count: a dual-stack host shows up under
    both, and one CLI must not stand for two replicas.
    """
    found = {ipaddress.ip_address(address.partition("%")[0]): address for address in addresses}
    version = min((each.version for each in found), default=4)
    chosen = sorted(
        (each for each in found if each.version == version), key=lambda each: each.packed
    )
    return [
        ReplicaSpec(
            f"[{found[each]}]:{port}" if version == 6 else f"{each}:{port}",
            found[each],
            port,
            token,
        )
        for each in chosen
    ]


def specs_of_targets(
    service: str, targets: Iterable[tuple[str, int]], token: str | None = None
) -> list[ReplicaSpec]:
    """Name the targets of an SRV record.

    A target below the service's own domain is named by what stands before that domain, any other
    by its full name. The port belongs to the name only where a target has several.

    Args:
        service: the record's name, such as ``_copilot._tcp.cli.default.svc.cluster.local``.
        targets: host names and ports; the target ``.`` says that the service does not exist.
        token: the token of the replicas.
    """
    labels = service.rstrip(".").lower().split(".")
    while labels and labels[0].startswith("_"):
        labels.pop(0)
    domain = "." + ".".join(labels)
    unique = {(host.rstrip(".").lower(), port) for host, port in targets}
    unique = {(host, port) for host, port in unique if host}
    ports = Counter(host for host, _ in unique)
    specs = []
    for host, port in sorted(unique):
        name = host.removesuffix(domain)
        specs.append(ReplicaSpec(f"{name}:{port}" if ports[host] > 1 else name, host, port, token))
    return specs


def merged(lists: Iterable[Sequence[ReplicaSpec]]) -> tuple[list[ReplicaSpec], list[str]]:
    """Make one list of those of several sources; where two disagree, the earlier one wins.

    Returns:
        The list, and a sentence for each replica that had to be left out.
    """
    names: dict[str, ReplicaSpec] = {}
    addresses: dict[tuple[str, int], str] = {}
    complaints = []
    for spec in (spec for specs in lists for spec in specs):
        address = (spec.host, spec.port)
        if spec.name in names:
            if names[spec.name] != spec:
                complaints.append(f"two replicas have the name {spec.name}")
        elif address in addresses:
            complaints.append(
                f"replicas {addresses[address]} and {spec.name} have the same address "
                f"{spec.host}:{spec.port}"
            )
        else:
            names[spec.name] = spec
            addresses[address] = spec.name
    return list(names.values()), complaints


@dataclass(frozen=True, slots=True)
class Changes:
    """How a list of replicas differs from the one before it: names, in order.

    Attributes:
        added: new ones.
        removed: those that are gone.
        changed: those that have another address or token.
    """

    added: list[str]
    removed: list[str]
    changed: list[str]

    def __bool__(self) -> bool:
        """Whether there is any difference."""
        return bool(self.added or self.removed or self.changed)


def changes(old: Iterable[ReplicaSpec], new: Iterable[ReplicaSpec]) -> Changes:
    """Return how two lists differ; their order does not count."""
    before = {spec.name: spec for spec in old}
    after = {spec.name: spec for spec in new}
    return Changes(
        sorted(after.keys() - before.keys()),
        sorted(before.keys() - after.keys()),
        sorted(name for name in after.keys() & before.keys() if after[name] != before[name]),
    )


class Roster:
    """The replicas of one source, slow to forget.

    A name service drops a pod that merely fails a readiness check, and an answer may come from a
    server that has not heard of all. Dropping a replica ends what runs on it, while keeping one
    that is gone costs nothing (its health says so), so who is missing stays for a grace period.
    """

    def __init__(self, grace: float) -> None:
        """Begin empty; ``grace`` is in seconds, 0 for a source whose word is final."""
        self._grace = grace
        self._specs: dict[str, ReplicaSpec] = {}
        self._missing_since: dict[str, float] = {}

    @property
    def specs(self) -> list[ReplicaSpec]:
        """The replicas, in the order of their names."""
        return [self._specs[name] for name in sorted(self._specs)]

    def update(self, specs: Iterable[ReplicaSpec], now: float) -> None:
        """Take over what the source says now; ``now`` is in seconds of a monotonic clock."""
        present = {spec.name: spec for spec in specs}
        addresses = {(spec.host, spec.port) for spec in present.values()}
        for name in list(self._specs):
            if name in present:
                self._missing_since.pop(name, None)
                continue
            since = self._missing_since.setdefault(name, now)
            known = self._specs[name]
            # An address that belongs to another replica by now cannot be this one's any more.
            if now - since >= self._grace or (known.host, known.port) in addresses:
                del self._specs[name]
                del self._missing_since[name]
        self._specs.update(present)


def next_look(interval: float, ttl: float | None, failures: int, chance: float) -> float:
    """Return the seconds until a name server is asked again.

    Args:
        interval: seconds at most.
        ttl: seconds for which the last answer is said to hold, or None if that is not known.
        failures: failed looks in a row; the first is repeated soon, then less and less often.
        chance: a random number from 0 to 1, for the jitter.
    """
    if failures:
        wait = MIN_INTERVAL * 2.0 ** min(failures - 1, 16)
    else:
        wait = interval if ttl is None else ttl
    wait = min(max(wait, MIN_INTERVAL), interval)
    return wait * (1.0 + JITTER * (2.0 * chance - 1.0))
