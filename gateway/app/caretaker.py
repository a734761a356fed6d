"""Keeps supervised replicas fit: ends those that hang, replaces those that are worn out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from gateway.errors import StartupError
from gateway.io.admin import ReplicaInfo
from gateway.io.cli_binary import locate_cli
from gateway.io.supervisor import CliState, CliStatus, Supervisor
from gateway.routing.recycling import RecyclePolicy
from gateway.types import ReplicaState

log = logging.getLogger("gateway")

_LOOK_EVERY = 2.0
"""Seconds between two looks at the supervised replicas."""

_QUIET_POLL = 0.1
"""Seconds between two looks at whether a draining replica is done."""

_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class Caretaker:
    """Restarts supervised replicas, one at a time.

    Args:
        supervisor: runs them.
        replicas: returns the replicas as the workers see them.
        drain: starts or ends the draining of one.
        quiet: whether nothing works on it any more.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        replicas: Callable[[], Awaitable[list[ReplicaInfo]]],
        drain: Callable[[str, bool], Awaitable[None]],
        quiet: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._supervisor = supervisor
        self._replicas = replicas
        self._drain = drain
        self._quiet = quiet
        self._turn = asyncio.Lock()
        self._served_before: dict[str, int] = {}
        self._expected: set[str] = set()

    async def watch(
        self, policy: Callable[[], RecyclePolicy], recycle: Callable[[str], None]
    ) -> None:
        """Look after the replicas until cancelled.

        Args:
            policy: the limits as they are now.
            recycle: starts the recycling of one.
        """
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            infos = {info.name: info for info in await self._replicas()}
            for status in self._supervisor.replicas:
                info = infos.get(status.name)
                if info is None or status.name in self._expected:
                    continue
                if info.state == ReplicaState.EJECTED and status.state is CliState.RUNNING:
                    await self._end_hung(status)
                elif (reason := self._worn(policy(), status, info)) is not None:
                    log.info(
                        "replica is recycled", extra={"replica": status.name, "reason": reason}
                    )
                    recycle(status.name)

    async def _end_hung(self, status: CliStatus) -> None:
        """Kill a replica that runs and does not answer.

        Its sessions live on elsewhere, or wait for it; woken up later it would write into their
        journals behind the back of whoever has them then.
        """
        log.error("replica hangs and is ended", extra={"replica": status.name, "pid": status.pid})
        if status.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(status.pid, signal.SIGKILL)

    def _worn(self, policy: RecyclePolicy, status: CliStatus, info: ReplicaInfo) -> str | None:
        if status.started_at is None or status.pid is None or status.state is not CliState.RUNNING:
            return None
        return policy.reason(
            age=time.time() - status.started_at,
            sessions=info.served - self._served_before.get(status.name, 0),
            memory=_resident(status.pid),
        )

    async def recycle(self, name: str, binary: str, patience: float) -> None:
        """Drain a replica, start it anew from the binary found now, and take it back.

        Calls wait for each other, so that at most one replica is away at a time.

        Args:
            name: the replica.
            binary: the CLI, as in ``spawn.binary``.
            patience: seconds that running turns have to end; what runs then is carried on after.
        """
        self._expected.add(name)
        try:
            async with self._turn:
                await self._drain(name, True)
                try:
                    await self._await_quiet(name, patience)
                    found = await locate_cli(binary)
                    await self._supervisor.replace_binary(found.path)
                    await self._supervisor.restart(name)
                    self._served_before[name] = next(
                        (one.served for one in await self._replicas() if one.name == name), 0
                    )
                except (StartupError, KeyError) as error:
                    log.error("replica not recycled", extra={"replica": name, "reason": str(error)})
                finally:
                    await self._drain(name, False)
                await self._await_up(name, patience)
        finally:
            self._expected.discard(name)

    async def _await_quiet(self, name: str, patience: float) -> None:
        give_up = time.monotonic() + patience
        while time.monotonic() < give_up and not await self._quiet(name):
            await asyncio.sleep(_QUIET_POLL)

    async def _await_up(self, name: str, patience: float) -> None:
        """Wait until it serves again, so that the next one to go does not leave a gap."""
        give_up = time.monotonic() + patience
        while time.monotonic() < give_up:
            if any(one.name == name and one.state == "up" for one in await self._replicas()):
                return
            await asyncio.sleep(_QUIET_POLL)


def _resident(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it has just ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_SIZE
    except (OSError, IndexError, ValueError):
        return 0
