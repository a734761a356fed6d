"""One side of the real-SDK measurement: the Python SDK against one address.

usage: sdk_client.py HOST:PORT MODEL_URL TURNS    (the token comes in COPILOT_CONNECTION_TOKEN)

Prints a JSON object of lists of milliseconds: ``ping``, ``create``, ``turn``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from copilot import CopilotClient, RuntimeConnection
from copilot.session import PermissionHandler

PINGS_PER_TURN = 5
PROMPT = "[[chunks 8]] hello"


async def measure(address: str, model_url: str, turns: int) -> dict[str, list[float]]:
    """Time pings, session creations and short streamed turns; the first of each is warm-up."""
    samples: dict[str, list[float]] = {"ping": [], "create": [], "turn": []}
    client = CopilotClient(
        connection=RuntimeConnection.for_uri(
            address, connection_token=os.environ["COPILOT_CONNECTION_TOKEN"]
        )
    )
    await client.start()
    try:
        for number in range(turns + 1):
            taken: dict[str, list[float]] = {"ping": []}
            for _ in range(PINGS_PER_TURN):
                start = time.perf_counter()
                await client.ping("hello")
                taken["ping"].append(_since(start))
            start = time.perf_counter()
            session = await client.create_session(
                on_permission_request=PermissionHandler.approve_all,
                model="gpt-4.1",
                streaming=True,
                provider={"type": "openai", "base_url": model_url, "api_key": "none"},
            )
            taken["create"] = [_since(start)]
            start = time.perf_counter()
            await session.send_and_wait(PROMPT)
            taken["turn"] = [_since(start)]
            await client.delete_session(session.session_id)
            if number > 0:
                for name, values in taken.items():
                    samples[name] += values
    finally:
        await client.stop()
    return samples


def _since(start: float) -> float:
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
