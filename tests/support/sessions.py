"""Short ways to say what a test does with sessions over a raw client."""

from __future__ import annotations

from typing import Any

from gateway.testing.model_server import DEFAULT_MODEL
from tests.support.rpc import Message, RpcClient

FAKE_MODEL_URL = "http://127.0.0.1:9/v1"
"""A base URL for fakes, which never call it."""


def session_params(
    session_id: str | None = None, *, model_url: str = FAKE_MODEL_URL, **more: Any
) -> dict[str, Any]:
    """Return parameters of ``session.create`` or ``session.resume`` that make turns run."""
    params: dict[str, Any] = {
        "provider": {"type": "openai", "baseUrl": model_url, "apiKey": "test-key"},
        "model": DEFAULT_MODEL,
        "streaming": True,
        **more,
    }
    if session_id is not None:
        params["sessionId"] = session_id
    return params


def tool(name: str) -> dict[str, Any]:
    """Return the definition of an external tool."""
    parameters = {"type": "object", "properties": {"x": {"type": "integer"}}}
    return {"name": name, "description": f"the {name} tool", "parameters": parameters}


async def send(client: RpcClient, session_id: str, prompt: str, **more: Any) -> str:
    """Send a prompt; return the message id."""
    answer = await client.request(
        "session.send", {"sessionId": session_id, "prompt": prompt, **more}
    )
    message_id: str = answer["messageId"]
    return message_id


async def run_turn(client: RpcClient, session_id: str, prompt: str) -> str:
    """Send a prompt, wait until the session is idle, return the last answer."""
    await send(client, session_id, prompt)
    await client.wait_event(session_id, "session.idle")
    return last_answer(client, session_id)


def last_answer(client: RpcClient, session_id: str) -> str:
    """Return the text of the last ``assistant.message`` received."""
    messages = [e for e in client.events(session_id) if e["type"] == "assistant.message"]
    text: str = messages[-1]["data"]["content"]
    return text


def event_types(client: RpcClient, session_id: str, *, only: tuple[str, ...] = ()) -> list[str]:
    """Return the types of a session's events so far, in order, or those among ``only``."""
    types = [event["type"] for event in client.events(session_id)]
    return [kind for kind in types if not only or kind in only]


async def decide_permission(
    client: RpcClient, session_id: str, request_id: str, decision: str = "approve-once"
) -> bool:
    """Answer a pending permission request; True if it was still pending."""
    answer = await client.request(
        "session.permissions.handlePendingPermissionRequest",
        {"sessionId": session_id, "requestId": request_id, "result": {"kind": decision}},
    )
    return bool(answer["success"])


async def answer_tool(client: RpcClient, session_id: str, request_id: str, text: str) -> bool:
    """Answer a pending tool call; True if it was still pending."""
    result = {"textResultForLlm": text, "resultType": "success"}
    answer = await client.request(
        "session.tools.handlePendingToolCall",
        {"sessionId": session_id, "requestId": request_id, "result": result},
    )
    return bool(answer["success"])


def lifecycle(client: RpcClient, session_id: str) -> list[str]:
    """Return the types of the ``session.lifecycle`` notifications about a session."""
    return [
        message["params"]["type"]
        for message in client.notifications.all
        if message["method"] == "session.lifecycle" and message["params"]["sessionId"] == session_id
    ]


async def pending_permissions(client: RpcClient, session_id: str) -> list[Message]:
    """Return the permission requests that wait."""
    answer = await client.request("session.permissions.pendingRequests", {"sessionId": session_id})
    items: list[Message] = answer["items"]
    return items
