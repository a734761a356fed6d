"""Supervised replicas are replaced when worn out, ended when they hang, one at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.app import caretaker as module
from gateway.app.caretaker import Caretaker
from gateway.errors import StartupError
from gateway.io.admin import ReplicaInfo
from gateway.io.supervisor import CliState, CliStatus
from gateway.routing.recycling import RecyclePolicy
from tests.support.gateway import alive
from tests.support.wait import eventually

PATIENCE = 10.0


class Household:
    """Two replicas, their supervisor and their workers, as the caretaker sees them.

    Attributes:
        log: what was done, in order.
        statuses: of the supervisor.
        infos: of the workers.
        busy: replicas on which something runs.
        recycled: what the watch wanted to have recycled.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.statuses = {
            name: CliStatus(name, CliState.RUNNING, os.getpid(), 1, time.time(), 0, None, "1")
            for name in ("cli-0", "cli-1")
        }
        self.infos = {
            name: ReplicaInfo(name, "127.0.0.1:1", "default", "up", True) for name in self.statuses
        }
        self.busy: set[str] = set()
        self.recycled: list[str] = []
        self.policy = RecyclePolicy()
        supervisor: Any = self
        self.caretaker = Caretaker(supervisor, self._infos, self._drain, self._quiet)

    # The supervisor

    @property
    def replicas(self) -> list[CliStatus]:
        return list(self.statuses.values())

    async def replace_binary(self, path: Path) -> None:
        self.log.append(f"binary {path}")

    async def restart(self, name: str) -> None:
        self.log.append(f"restart {name}")
        await asyncio.sleep(0.01)

    # The workers

    async def _infos(self) -> list[ReplicaInfo]:
        return list(self.infos.values())

    async def _drain(self, name: str, draining: bool) -> None:
        self.log.append(f"{'drain' if draining else 'undrain'} {name}")

    async def _quiet(self, name: str) -> bool:
        return name not in self.busy

    # What a test does

    def changes(self, name: str, **info: Any) -> None:
        self.infos[name] = dataclasses.replace(self.infos[name], **info)

    async def recycles(self, name: str, patience: float = PATIENCE) -> None:
        await self.caretaker.recycle(name, "copilot", patience)

    async def watch(self) -> None:
        await self.caretaker.watch(lambda: self.policy, self.recycled.append)


@pytest.fixture
async def household(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Household]:
    async def locate(binary: str) -> Any:
        if binary == "copilot":
            return SimpleNamespace(path=Path("/found/copilot"))
        raise StartupError(f"{binary} is not there")

    monkeypatch.setattr(module, "locate_cli", locate)
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(module, "_QUIET_POLL", 0.01)
    household = Household()
    watching = asyncio.create_task(household.watch())
    yield household
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_drained_then_restarted_then_taken_back(household: Household) -> None:
    await household.recycles("cli-0")
    assert household.log == [
        "drain cli-0", "binary /found/copilot", "restart cli-0", "undrain cli-0",
    ]  # fmt: skip


async def test_what_runs_is_let_finish(household: Household) -> None:
    household.busy.add("cli-0")
    recycling = asyncio.create_task(household.recycles("cli-0"))
    await asyncio.sleep(0.05)
    assert household.log == ["drain cli-0"]
    household.busy.clear()
    await recycling
    assert household.log[-1] == "undrain cli-0"


async def test_but_not_for_ever(household: Household) -> None:
    household.busy.add("cli-0")
    await household.recycles("cli-0", patience=0.05)
    assert "restart cli-0" in household.log


async def test_one_after_the_other(household: Household) -> None:
    """The second goes only when the first serves again."""
    household.changes("cli-0", state="starting")
    both = [asyncio.create_task(household.recycles(name)) for name in ("cli-0", "cli-1")]
    await eventually(lambda: "undrain cli-0" in household.log)
    await asyncio.sleep(0.03)
    assert "drain cli-1" not in household.log
    household.changes("cli-0", state="up")
    await asyncio.gather(*both)
    assert household.log.index("undrain cli-0") < household.log.index("drain cli-1")


async def test_without_a_binary_it_goes_on_as_it_was(
    household: Household, caplog: pytest.LogCaptureFixture
) -> None:
    await household.caretaker.recycle("cli-0", "/nowhere", PATIENCE)
    assert household.log == ["drain cli-0", "undrain cli-0"]
    assert "not recycled" in caplog.text


async def test_one_that_is_worn_out(household: Household) -> None:
    household.policy = RecyclePolicy(sessions=100)
    household.changes("cli-1", served=100)
    await eventually(lambda: household.recycled)
    assert set(household.recycled) == {"cli-1"}


@pytest.mark.parametrize("policy", [RecyclePolicy(age=0.001), RecyclePolicy(memory=1)])
async def test_age_and_memory_are_those_of_the_process(
    household: Household, policy: RecyclePolicy
) -> None:
    household.policy = policy
    await eventually(lambda: set(household.recycled) == {"cli-0", "cli-1"})


async def test_what_was_served_before_the_restart_does_not_count(household: Household) -> None:
    household.changes("cli-0", served=100)
    await household.recycles("cli-0")
    household.policy = RecyclePolicy(sessions=100)
    household.changes("cli-0", served=150)
    await asyncio.sleep(0.05)
    assert household.recycled == []
    household.changes("cli-0", served=200)
    await eventually(lambda: household.recycled)


async def test_one_that_is_being_recycled_is_left_alone(household: Household) -> None:
    household.busy.add("cli-0")
    household.policy = RecyclePolicy(sessions=1)
    household.changes("cli-0", served=5)
    recycling = asyncio.create_task(household.recycles("cli-0"))
    await eventually(lambda: household.log)
    household.recycled.clear()
    await asyncio.sleep(0.05)
    assert household.recycled == []
    household.busy.clear()
    await recycling


async def test_one_that_does_not_run_is_not_worn_out(household: Household) -> None:
    household.policy = RecyclePolicy(age=0.001)
    for name, status in household.statuses.items():
        household.statuses[name] = dataclasses.replace(status, state=CliState.STARTING)
    await asyncio.sleep(0.05)
    assert household.recycled == []


async def test_one_that_hangs_is_ended(
    household: Household, caplog: pytest.LogCaptureFixture
) -> None:
    """Woken up later it would write into journals that others have gone on with."""
    process = await asyncio.create_subprocess_exec("sleep", "600")
    status = dataclasses.replace(household.statuses["cli-0"], pid=process.pid)
    household.statuses["cli-0"] = status
    try:
        await asyncio.sleep(0.03)
        assert alive(process.pid)
        household.changes("cli-0", state="ejected")
        assert await process.wait() == -9
        household.changes("cli-0", state="down")
    finally:
        if process.returncode is None:
            process.kill()
    assert "hangs" in caplog.text


def test_the_memory_of_a_process() -> None:
    assert module._resident(os.getpid()) > 1 << 20
    assert module._resident(1 << 30) == 0
