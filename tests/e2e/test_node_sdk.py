"""Today's Node SDK, unchanged, with the gateway in the place of a CLI."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from gateway.testing.model_server import ModelServer
from tests.e2e.conftest import Fleet
from tests.support.gateway import ADMIN_TOKEN
from tests.support.sessions import FAKE_MODEL_URL
from tests.support.stack import REPOSITORY

SDK_FOLDER = REPOSITORY / ".cache" / "cli"
SCRIPT = Path(__file__).parent / "node" / "conversation.mjs"


@pytest.mark.real
async def test_a_whole_conversation(fleet: Fleet) -> None:
    node = shutil.which("node")
    assert node is not None, "node is needed"
    gateway = await fleet.process()
    url = fleet.model.base_url if isinstance(fleet.model, ModelServer) else FAKE_MODEL_URL
    process = await asyncio.create_subprocess_exec(
        node,
        str(SCRIPT),
        str(SDK_FOLDER),
        f"{gateway.host}:{gateway.port}",
        url,
        env={**os.environ, "COPILOT_CONNECTION_TOKEN": ADMIN_TOKEN},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            said, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, complaint.decode()
    seen = json.loads(said)
    assert seen["deltas"] == 8
    assert seen["hooks"][:2] == ["pre", "post"]
    assert seen["permissions"] >= 1
    assert seen["status"]["protocolVersion"] == 3
