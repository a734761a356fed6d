"""Keeps a control link to each replica and tells the hub how the replica does."""

from __future__ import annotations

import asyncio

from gateway.core.hub import Hub
from gateway.core.link import LinkLostError
from gateway.core.replica import Replica
from gateway.errors import RpcError

_REDIAL_MIN = 0.05
"""First pause in seconds after a failed connect; it doubles up to the probe interval."""


class Prober:
    """One task per replica: connect, ping, connect again."""

    def __init__(self, hub: Hub, interval: float, timeout: float) -> None:
        self._hub = hub
        self._interval = interval
        self._timeout = timeout
        self._tasks: dict[str, tuple[Replica, asyncio.Task[None]]] = {}

    def follow(self) -> None:
        """Start and end tasks so that each of the hub's replicas has one."""
        for name, (replica, task) in list(self._tasks.items()):
            if self._hub.replicas.get(name) is not replica:
                task.cancel()
                del self._tasks[name]
        for name, replica in self._hub.replicas.items():
            if name not in self._tasks:
                task = asyncio.create_task(self._watch(replica), name=f"probe {name}")
                self._tasks[name] = (replica, task)

    async def close(self) -> None:
        """End all tasks."""
        tasks = [task for _, task in self._tasks.values()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, replica: Replica) -> None:
        pause = _REDIAL_MIN
        while True:
            wait = replica.health.retry_after(self._hub.now())
            if wait > 0:
                await asyncio.sleep(wait)
                continue
            if replica.control is None:
                if await self._connect(replica):
                    pause = _REDIAL_MIN
                else:
                    await self._idle(replica, pause)
                    pause = min(pause * 2, self._interval)
                    continue
            await self._idle(replica, self._interval)
            if replica.control is not None:
                await self._ping(replica)

    async def _idle(self, replica: Replica, seconds: float) -> None:
        """Wait, but not longer than until something happens to the replica."""
        replica.nudged.clear()
        try:
            async with asyncio.timeout(seconds):
                await replica.nudged.wait()
        except TimeoutError:
            pass

    async def _connect(self, replica: Replica) -> bool:
        if not replica.spec.port:
            return False
        hub = self._hub
        link = hub.new_control_link(replica)
        started = hub.now()
        try:
            await link.open()
        except RpcError as error:
            hub.log.error(
                "replica refused the handshake: is its token right?",
                extra={"replica": replica.name, "code": error.code},
            )
            hub.note_failure(replica, f"handshake refused with {error.code}")
        except (OSError, LinkLostError) as error:
            hub.note_failure(replica, str(error))
        else:
            hub.control_ready(link)
            hub.note_success(replica, hub.now() - started)
            return True
        link.close()
        return False

    async def _ping(self, replica: Replica) -> None:
        hub = self._hub
        link = replica.control
        if link is None:
            return
        started = hub.now()
        try:
            await link.request("ping", {}, self._timeout)
        except TimeoutError:
            hub.note_failure(replica, f"no answer to a ping within {self._timeout:g} s")
        except RpcError as error:
            hub.note_failure(replica, f"ping refused with {error.code}")
        except LinkLostError:
            pass
        else:
            hub.note_success(replica, hub.now() - started)
