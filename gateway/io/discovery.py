"""Finds replicas: watches files and asks name servers. The rules are in routing.discovery.

A source that fails, or whose answer is empty, keeps the replicas it named last: health probes find
out about those that are gone, and an outage of the name service must not be one of the gateway.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import socket
import threading
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gateway.config.kinds import text_of
from gateway.config.settings import parse_replica, replica_name
from gateway.routing.discovery import (
    DnsSource,
    FileSource,
    Roster,
    Source,
    SrvSource,
    changes,
    merged,
    next_look,
    specs_of_addresses,
    specs_of_targets,
)
from gateway.types import ReplicaSpec

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

log = logging.getLogger(__name__)

FILE_POLL: Final = 1.0
"""Seconds between looks at a file. Polling also sees what notification does not: a link that is
pointed elsewhere (Kubernetes does that), and changes on network file systems."""

MAX_FILE: Final = 4 << 20
"""Bytes; some 50,000 replicas. A larger file is a mistake, such as a path to something else."""

Getaddrinfo = Callable[..., Sequence[tuple[Any, ...]]]


class SourceError(Exception):
    """A source has no usable list; the message says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a source answered.

    Attributes:
        specs: the replicas.
        ttl: seconds for which that holds, or None if not known.
    """

    specs: list[ReplicaSpec]
    ttl: float | None = None


def parse_list(path: str, content: str, token: str | None = None) -> list[ReplicaSpec]:
    """Read a file that lists replicas.

    ``.toml`` holds ``[[replicas]]`` tables as the gateway's own file does, ``.json`` an object
    with a list ``replicas`` of such objects, both with ``address`` and optionally ``name``. Any
    other file has one ``[NAME=]HOST:PORT`` per line; ``#`` begins a comment.

    Raises:
        SourceError: something in it is wrong; nothing of it counts then.
    """
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 - a name, not a file
    try:
        if suffix == ".toml":
            entries = _entries(tomllib.loads(content))
        elif suffix == ".json":
            entries = _entries(json.loads(content))
        else:
            entries = [
                (f"line {number}", text)
                for number, line in enumerate(content.splitlines(), 1)
                if (text := line.partition("#")[0].strip())
            ]
    except (ValueError, RecursionError) as error:
        raise SourceError(str(error)) from None
    specs = [_spec(label, entry, token) for label, entry in entries]
    specs, complaints = merged([specs])
    if complaints or len(specs) < len(entries):
        raise SourceError(complaints[0] if complaints else "a replica is listed twice")
    return specs


def _entries(document: Any) -> list[tuple[str, Any]]:
    entries = document.get("replicas") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("must hold a list named replicas")
    return [(f"replicas[{index}]", entry) for index, entry in enumerate(entries)]


def _spec(label: str, entry: Any, token: str | None) -> ReplicaSpec:
    try:
        if isinstance(entry, str):
            made = parse_replica(entry)
            return ReplicaSpec(made.name, made.address.host, made.address.port, token)
        if not isinstance(entry, dict):
            raise ValueError("must be a table")
        if unknown := entry.keys() - {"name", "address"}:
            raise ValueError(f"has an unknown key {min(unknown)}")
        made = parse_replica(text_of(entry.get("address")))
        name = replica_name(entry["name"]) if "name" in entry else made.name
    except ValueError as error:
        raise SourceError(f"{label} {error}") from None
    return ReplicaSpec(name, made.address.host, made.address.port, token)


class _FileWatch:
    """Reads a file when it has changed."""

    def __init__(self, source: FileSource, token: str | None) -> None:
        self._path = source.path
        self._token = token
        self._signature: tuple[int, ...] | None = None
        self._last: Found | SourceError = SourceError("not read yet")

    async def look(self) -> Found:
        """Return the list; raises SourceError."""
        last = await asyncio.to_thread(self._look)
        if isinstance(last, SourceError):
            raise last
        return last

    def _look(self) -> Found | SourceError:
        try:
            with open(self._path, "rb") as file:  # noqa: PTH123 - follows links, as it should
                status = os.fstat(file.fileno())
                signature = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
                if signature != self._signature:
                    self._last = self._read(file.read(MAX_FILE + 1))
                    # A file written this very moment may change again within the same tick of
                    # its clock: its signature proves nothing until it is older.
                    settled = time.time_ns() - status.st_mtime_ns > 2 * 10**9
                    self._signature = signature if settled else None
        except OSError as error:
            self._signature = None
            self._last = SourceError(error.strerror or str(error))
        return self._last

    def _read(self, content: bytes) -> Found | SourceError:
        if len(content) > MAX_FILE:
            return SourceError(f"larger than {MAX_FILE >> 20} MiB")
        try:
            return Found(parse_list(self._path, content.decode(), self._token))
        except UnicodeDecodeError:
            return SourceError("is not UTF-8")
        except SourceError as error:
            return error

    def wait(self, failures: int, ttl: float | None) -> float:
        """Return the seconds until the next look."""
        return FILE_POLL


class _NameWatch:
    """What name sources have in common: when to look again, and that an empty answer is none."""

    def __init__(self, interval: float, timeout: float) -> None:
        self._interval = interval
        self._timeout = timeout

    async def look(self) -> Found:
        """Return the list; raises SourceError."""
        try:
            async with asyncio.timeout(self._timeout):
                found = await self._ask()
        except TimeoutError:
            raise SourceError(f"no answer within {self._timeout:g} s") from None
        if not found.specs:
            raise SourceError("the answer is empty")
        return found

    async def _ask(self) -> Found:
        raise NotImplementedError

    def wait(self, failures: int, ttl: float | None) -> float:
        """Return the seconds until the next look."""
        return next_look(self._interval, ttl, failures, random.random())  # noqa: S311 - jitter


class _HostWatch(_NameWatch):
    """Asks the system for the addresses of a host: name servers, ``/etc/hosts`` and so on."""

    def __init__(
        self,
        source: DnsSource,
        token: str | None,
        interval: float,
        timeout: float,
        getaddrinfo: Getaddrinfo,
    ) -> None:
        super().__init__(interval, timeout)
        self._source = source
        self._token = token
        self._getaddrinfo = getaddrinfo
        self._asking = False

    async def _ask(self) -> Found:
        if self._asking:
            raise SourceError("the system has not answered the last question yet")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def tell(outcome: list[str] | SourceError) -> None:
            self._asking = False
            if answer.done():
                return  # nobody waits any more
            if isinstance(outcome, SourceError):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        def ask() -> None:
            outcome: list[str] | SourceError
            try:
                infos = self._getaddrinfo(
                    self._source.host, self._source.port, type=socket.SOCK_STREAM
                )
                outcome = [info[4][0] for info in infos]
            except OSError as error:
                outcome = SourceError(error.strerror or str(error))
            try:
                loop.call_soon_threadsafe(tell, outcome)
            except RuntimeError:
                pass  # the loop has ended meanwhile

        # It cannot be cancelled and may take minutes. A thread of a pool would be missing in the
        # pool and keep the process from ending.
        threading.Thread(target=ask, name=str(self._source), daemon=True).start()
        self._asking = True
        return Found(specs_of_addresses(await answer, self._source.port, self._token))


class _SrvWatch(_NameWatch):
    """Asks the name servers for an SRV record."""

    def __init__(
        self,
        source: SrvSource,
        token: str | None,
        interval: float,
        timeout: float,
        nameserver: tuple[str, int] | None,
    ) -> None:
        super().__init__(interval, timeout)
        self._source = source
        self._token = token
        self._nameserver = nameserver
        self._resolver: Resolver | None = None

    async def _ask(self) -> Found:
        # Only those who use SRV records pay for the import.
        import dns.exception  # noqa: PLC0415
        import dns.resolver  # noqa: PLC0415

        try:
            resolver = self._resolver = self._resolver or self._make_resolver()
            answer = await resolver.resolve(
                self._source.name, "SRV", search=True, lifetime=self._timeout
            )
        except dns.exception.Timeout:
            raise TimeoutError from None
        except (dns.exception.DNSException, OSError) as error:
            raise SourceError(str(error) or type(error).__name__) from None
        targets = [(record.target.to_text(), record.port) for record in answer]
        return Found(
            specs_of_targets(answer.qname.to_text(), targets, self._token),
            float(answer.rrset.ttl) if answer.rrset is not None else None,
        )

    def _make_resolver(self) -> Resolver:
        from dns.asyncresolver import Resolver  # noqa: PLC0415

        resolver = Resolver(configure=self._nameserver is None)
        if self._nameserver is not None:
            resolver.nameservers = [self._nameserver[0]]
            resolver.port = self._nameserver[1]
        return resolver


@dataclass(slots=True)
class _Watched:
    """A source and what is known from it.

    Attributes:
        source: the source.
        watch: how to look.
        roster: the replicas it named.
        failures: failed looks in a row.
        ttl: how long the last answer holds.
        complaint: what was logged about it last, or empty.
    """

    source: Source
    watch: _FileWatch | _NameWatch
    roster: Roster
    failures: int = 0
    ttl: float | None = None
    complaint: str = ""


class Discovery:
    """Keeps a list of replicas that comes from several sources."""

    def __init__(
        self,
        sources: Sequence[Source],
        on_change: Callable[[list[ReplicaSpec]], None],
        *,
        static: Sequence[ReplicaSpec] = (),
        token: str | None = None,
        interval: float = 30.0,
        timeout: float = 5.0,
        grace: float = 30.0,
        nameserver: tuple[str, int] | None = None,
        getaddrinfo: Getaddrinfo = socket.getaddrinfo,
    ) -> None:
        """Describe it; nothing is asked before :meth:`start`.

        Args:
            sources: where replicas are named; where two disagree, the earlier one wins.
            on_change: called with the whole list once at the start, then after every change.
            static: replicas that are always there; they win over all sources.
            token: the connection token of the replicas found.
            interval: seconds between looks at a name server, at most; a shorter TTL is kept.
            timeout: seconds that a name server has to answer.
            grace: seconds that a replica stays after it is no longer found by name. What a file
                says takes effect at once.
            nameserver: address of the server to ask for SRV records; None for the system's.
            getaddrinfo: finds the addresses of host names.
        """
        self._on_change = on_change
        self._static = list(static)
        self._told: list[ReplicaSpec] | None = None
        self._conflicts: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._watched: list[_Watched] = []
        for source in sources:
            watch: _FileWatch | _NameWatch
            match source:
                case FileSource():
                    watch = _FileWatch(source, token)
                case DnsSource():
                    watch = _HostWatch(source, token, interval, timeout, getaddrinfo)
                case SrvSource():
                    watch = _SrvWatch(source, token, interval, timeout, nameserver)
            roster = Roster(0.0 if isinstance(source, FileSource) else grace)
            self._watched.append(_Watched(source, watch, roster))

    def __repr__(self) -> str:
        """Return a diagnosis."""
        sources = ", ".join(f"{one.source} ({len(one.roster.specs)})" for one in self._watched)
        return f"<Discovery {sources or 'static'} replicas={len(self.replicas)}>"

    @property
    def replicas(self) -> list[ReplicaSpec]:
        """The replicas known now."""
        return self._merge()[0]

    async def start(self) -> None:
        """Look once, and go on in the background. Sources that fail are logged, no error."""
        await self.refresh()
        self._tasks = [
            asyncio.create_task(self._follow(one), name=f"discovery {one.source}")
            for one in self._watched
        ]

    async def stop(self) -> None:
        """Stop looking; idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def refresh(self) -> None:
        """Look at all sources now."""
        await asyncio.gather(*(self._look(one) for one in self._watched))
        self._tell()

    async def _follow(self, one: _Watched) -> None:
        while True:
            await asyncio.sleep(one.watch.wait(one.failures, one.ttl))
            try:
                await self._look(one)
                self._tell()
            except Exception:
                # A bug, or a callback that fails: later changes must come through all the same.
                log.exception("discovery failed", extra={"source": str(one.source)})

    async def _look(self, one: _Watched) -> None:
        try:
            found = await one.watch.look()
        except SourceError as error:
            one.failures += 1
            self._complain(one, str(error))
            return
        one.failures = 0
        one.ttl = found.ttl
        if one.complaint:
            log.info("source of replicas works again", extra={"source": str(one.source)})
            one.complaint = ""
        one.roster.update(found.specs, time.monotonic())

    def _complain(self, one: _Watched, reason: str) -> None:
        """Log a failure, once as long as it stays the same."""
        if reason != one.complaint:
            log.warning(
                "source of replicas cannot be used; the last list stays",
                extra={
                    "source": str(one.source),
                    "reason": reason,
                    "replicas": len(one.roster.specs),
                },
            )
        one.complaint = reason

    def _merge(self) -> tuple[list[ReplicaSpec], list[str]]:
        return merged([self._static, *(one.roster.specs for one in self._watched)])

    def _tell(self) -> None:
        """Report the list if it is not the one reported last."""
        replicas, conflicts = self._merge()
        for conflict in conflicts:
            if conflict not in self._conflicts:
                log.warning("replica left out", extra={"reason": conflict})
        self._conflicts = conflicts
        what = changes(self._told or (), replicas)
        if self._told is not None and not what:
            return
        self._told = replicas
        log.info(
            "replicas found",
            extra={
                "replicas": len(replicas),
                "added": what.added,
                "removed": what.removed,
                "changed": what.changed,
            },
        )
        self._on_change(replicas)
