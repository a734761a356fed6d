"""Fixtures for every test."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import settings

from gateway.testing.model_server import ModelServer
from tests.support.fake_cli import FakeCli

# Examples are not timed: a loaded machine is no bug.
settings.register_profile("gateway", deadline=None)
settings.load_profile("gateway")


@pytest.fixture(autouse=True)
def untouched_logs() -> Iterator[None]:
    """Undo what a program run in this process did to its loggers."""
    loggers = [logging.getLogger(), logging.getLogger("gateway")]
    # A fixture of a whole module may have run a program before.
    loggers[1].setLevel(logging.NOTSET)
    before = [(one, one.handlers[:], one.level) for one in loggers]
    yield
    for one, handlers, level in before:
        one.handlers[:] = handlers
        one.setLevel(level)


@pytest.fixture
async def model_server() -> AsyncIterator[ModelServer]:
    """A scripted model endpoint."""
    async with ModelServer() as server:
        yield server


@pytest.fixture
async def fake_cli() -> AsyncIterator[FakeCli]:
    """One fake CLI with storage of its own and a token."""
    async with FakeCli(token="replica-token") as cli:
        yield cli
