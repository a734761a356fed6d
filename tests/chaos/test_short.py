"""The chaos run in short, on real programs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from tests.chaos.report import complaints, table
from tests.chaos.run import Options, run
from tests.chaos.schedule import Kind

LONGEST = 240.0
"""Seconds; about eighty when nothing gets stuck."""


@pytest.mark.real
@pytest.mark.redis
# The SDK leaves sockets and coroutines to the garbage collector when a connection breaks.
@pytest.mark.filterwarnings("default::ResourceWarning", "default::RuntimeWarning")
@pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning")
async def test_no_conversation_suffers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "copilot")  # it logs every broken connection at length
    caplog.set_level(logging.INFO, "tests.chaos")
    async with asyncio.timeout(LONGEST):
        # Of this seed's faults each kind strikes within the time.
        result = await run(Options(seconds=40.0, sessions=10, seed=7, keep=tmp_path))
    shown = "\n".join([table([result]), *complaints(result)])
    assert set(result.faults) == set(Kind), shown
    assert result.gaps, shown  # some turn was in the middle
    assert result.good, shown
