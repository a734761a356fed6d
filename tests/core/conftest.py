"""Stages for the tests of the core."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from gateway.core.hub import Limits
from tests.support.playbook import Stage

MakeStage = Callable[..., Awaitable[Stage]]


@pytest.fixture
async def make_stage() -> AsyncIterator[MakeStage]:
    """``await make_stage("cli-0", ..., limit=value, ...)``: a stage with these replicas."""
    made: list[Stage] = []

    async def make(*names: str, options: dict[str, Any] | None = None, **limits: Any) -> Stage:
        settings = {"rebind_timeout": 5.0, "redial_delay": 0.001, **limits}
        stage = Stage(Limits(**settings), **(options or {}))
        made.append(stage)
        await stage.adds(*names)
        return stage

    yield make
    for stage in made:
        await stage.close()


@pytest.fixture
async def stage(make_stage: MakeStage) -> Stage:
    """One replica, ``cli-0``."""
    return await make_stage("cli-0")


@pytest.fixture
async def two(make_stage: MakeStage) -> Stage:
    """Two replicas, ``cli-0`` and ``cli-1``."""
    return await make_stage("cli-0", "cli-1")
