"""A load test's worker in the test's own loop, where faults can be put into the fake CLI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.loadtest.figures import Figures
from gateway.loadtest.plan import Plan
from gateway.loadtest.shape import steady
from gateway.loadtest.worker import Worker
from tests.support.fake_cli import FakeCli
from tests.support.sessions import FAKE_MODEL_URL

Conduct = Callable[..., Awaitable[Figures]]


def plan_for(cli: FakeCli, **changes: Any) -> Plan:
    """Return the plan of a short run against a fake CLI."""
    values: dict[str, Any] = {
        "run": "abc123",
        "host": cli.host,
        "port": cli.port,
        "token": cli.token,
        "provider_url": FAKE_MODEL_URL,
        "connections": 2,
        "shape": steady(2, 30),
        "steps": 8,
        "grace": 10.0,
    }
    return Plan(**{**values, **changes})


@pytest.fixture
def conduct(fake_cli: FakeCli) -> Conduct:
    """Return a function that does a run against the fake CLI and returns its figures."""

    async def run(**changes: Any) -> Figures:
        figures = Figures()
        worker = Worker(
            plan_for(fake_cli, **changes).share(0),
            lambda message: figures.merge(Figures.load(message["figures"])),
        )
        try:
            await worker.prepare()
            await worker.run()
        finally:
            await worker.close()
        return figures

    return run
