"""One conversation by the Python SDK of any generation: ping, tool, resume.

usage: python turn.py HOST:PORT|stdio:PATH MODEL_URL   (a token comes in COPILOT_CONNECTION_TOKEN)

With ``stdio:PATH`` the SDK starts the program at PATH as its CLI.

Runs in an environment that holds one SDK version and nothing of this project. Prints ``ok`` last;
ends with status 1 and a reason on standard error otherwise.
"""

from __future__ import annotations

import asyncio
import os
import sys

import copilot
from copilot import CopilotClient
from copilot.tools import define_tool
from pydantic import BaseModel

WITHIN = 20.0
"""Seconds a turn may take; old SDKs wait for ever where they cannot decode what they wait for."""


class Numbers(BaseModel):
    a: int
    b: int


@define_tool(description="add two numbers")
def add(numbers: Numbers) -> str:
    return f"sum {numbers.a + numbers.b}"


def make_client(address: str):
    path = address.removeprefix("stdio:") if address.startswith("stdio:") else None
    if hasattr(copilot, "RuntimeConnection"):
        if path is not None:
            return CopilotClient(connection=copilot.RuntimeConnection.for_stdio(path=path))
        token = os.environ.get("COPILOT_CONNECTION_TOKEN")
        connection = copilot.RuntimeConnection.for_uri(address, connection_token=token)
        return CopilotClient(connection=connection)
    if hasattr(copilot, "ExternalServerConfig"):
        if path is not None:
            return CopilotClient(copilot.SubprocessConfig(cli_path=path))
        return CopilotClient(copilot.ExternalServerConfig(url=address))
    return CopilotClient({"cli_path": path} if path is not None else {"cli_url": address})


def permission_handler():
    if hasattr(copilot, "PermissionHandler"):
        return copilot.PermissionHandler.approve_all
    from copilot.session import PermissionHandler

    return PermissionHandler.approve_all


class Conversation:
    """What differs between the generations, in one place."""

    def __init__(self, client, model_url: str) -> None:
        self.client = client
        self.by_dict = not hasattr(copilot, "ExternalServerConfig") and not hasattr(
            copilot, "RuntimeConnection"
        )
        self.options = {
            "on_permission_request": permission_handler(),
            "model": "gpt-4.1",
            "streaming": True,
            "tools": [add],
            "provider": {"type": "openai", "base_url": model_url, "api_key": "none"},
        }

    async def create(self):
        if self.by_dict:
            return await self.client.create_session(self.options)
        return await self.client.create_session(**self.options)

    async def resume(self, session_id: str):
        if self.by_dict:
            return await self.client.resume_session(session_id, self.options)
        return await self.client.resume_session(session_id, **self.options)

    async def ask(self, session, prompt: str) -> str:
        if self.by_dict:
            event = await session.send_and_wait({"prompt": prompt}, timeout=WITHIN)
        else:
            event = await session.send_and_wait(prompt, timeout=WITHIN)
        return event.data.content if event is not None else ""


def expect(part: str, text: str) -> None:
    if part not in text:
        raise SystemExit(f"expected {part!r} in the answer {text!r}")


async def main() -> None:
    address, model_url = sys.argv[1:3]
    client = make_client(address)
    await client.start()
    await client.ping("hello")
    talk = Conversation(client, model_url)
    session = await talk.create()
    expect("hello there", await talk.ask(session, "hello there"))
    expect("sum 5", await talk.ask(session, '[[tool add {"a": 2, "b": 3}]]'))
    await session.disconnect()
    again = await talk.resume(session.session_id)
    expect("user messages: 3", await talk.ask(again, "still there?"))
    await again.disconnect()
    await client.stop()
    print("ok")


asyncio.run(asyncio.wait_for(main(), 4 * WITHIN))
