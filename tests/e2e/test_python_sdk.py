"""Today's Python SDK, unchanged, with the gateway in the place of a CLI."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from copilot import CopilotClient, RuntimeConnection, StopError
from copilot.session import CopilotSession, PermissionDecisionApproveOnce, PermissionHandler
from copilot.tools import define_tool
from pydantic import BaseModel

from gateway.testing.model_server import DEFAULT_MODEL, ModelServer
from tests.e2e.conftest import Fleet
from tests.support.gateway import ADMIN_TOKEN, GatewayProcess
from tests.support.sessions import FAKE_MODEL_URL

pytestmark = pytest.mark.asyncio(loop_scope="module")

WITHIN = 30.0


class Numbers(BaseModel):
    a: int
    b: int


@define_tool(description="add two numbers")
def add(numbers: Numbers) -> str:
    return f"sum {numbers.a + numbers.b}"


class Sdk:
    """The SDK's client, and the options with which sessions run turns."""

    def __init__(self, fleet: Fleet, gateway: GatewayProcess) -> None:
        self.fleet = fleet
        self.gateway = gateway
        self.client: CopilotClient = None  # type: ignore[assignment]

    def options(self, **more: Any) -> dict[str, Any]:
        model = self.fleet.model
        url = model.base_url if isinstance(model, ModelServer) else FAKE_MODEL_URL
        return {
            "on_permission_request": PermissionHandler.approve_all,
            "model": DEFAULT_MODEL,
            "streaming": True,
            "provider": {"type": "openai", "base_url": url, "api_key": "none"},
            **more,
        }

    async def session(self, **more: Any) -> CopilotSession:
        return await self.client.create_session(**self.options(**more))

    @asynccontextmanager
    async def connected(self, token: str = ADMIN_TOKEN) -> AsyncIterator[CopilotClient]:
        address = f"{self.gateway.host}:{self.gateway.port}"
        connection = RuntimeConnection.for_uri(address, connection_token=token)
        client = CopilotClient(connection=connection)
        await client.start()
        try:
            yield client
        finally:
            await client.stop()


@pytest_asyncio.fixture(
    params=["fake", pytest.param("real", marks=pytest.mark.real)],
    scope="module",
    loop_scope="module",
)
async def sdk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Sdk]:
    """The SDK, connected to a gateway that all tests of one kind of CLI share."""
    async with AsyncExitStack() as stack:
        fleet = Fleet(request.param, tmp_path_factory.mktemp(f"sdk-{request.param}"), stack)
        await fleet.start(2)
        sdk = Sdk(fleet, await fleet.process())
        async with sdk.connected() as sdk.client:
            yield sdk


async def said(session: CopilotSession, prompt: str, **more: Any) -> str:
    """Send a prompt; return the answer."""
    event: Any = await session.send_and_wait(prompt, timeout=WITHIN, **more)
    text: str = event.data.content
    return text


async def test_status_and_ping(sdk: Sdk) -> None:
    status = await sdk.client.get_status()
    assert (status.version, status.protocol_version) == ("1.0.102", 3)
    assert (await sdk.client.ping("hello")).message == "pong: hello"


async def test_streaming(sdk: Sdk) -> None:
    session = await sdk.session()
    deltas: list[str] = []

    def hear(event: Any) -> None:
        if event.type.value == "assistant.message_delta":
            deltas.append(event.data.delta_content)

    session.on(hear)
    answer = await said(session, "[[chunks 8]] hello there")
    assert answer == "echo: hello there [user messages: 1]"
    assert "".join(deltas) == answer
    assert len(deltas) == 8


async def test_custom_tools(sdk: Sdk) -> None:
    session = await sdk.session(tools=[add])
    assert "sum 5" in await said(session, '[[tool add {"a": 2, "b": 3}]] go')


async def test_permission_requests(sdk: Sdk) -> None:
    asked: list[Any] = []

    def decide(request: Any, invocation: Any) -> Any:
        asked.append(request)
        return PermissionDecisionApproveOnce()

    session = await sdk.session(tools=[add], on_permission_request=decide)
    assert "sum 3" in await said(session, '[[tool add {"a": 1, "b": 2}]] go')
    assert len(asked) == 1


async def test_hooks(sdk: Sdk) -> None:
    called: list[str] = []

    def hook(name: str) -> Any:
        def call(given: Any, invocation: Any) -> None:
            called.append(name)

        return call

    names = ("on_session_start", "on_user_prompt_submitted", "on_pre_tool_use", "on_post_tool_use")
    session = await sdk.session(tools=[add], hooks={name: hook(name) for name in names})
    await said(session, '[[tool add {"a": 1, "b": 2}]] go')
    assert called == list(names)


async def test_user_input(sdk: Sdk) -> None:
    def answer(request: Any, invocation: Any) -> Any:
        return {"answer": f"to {request['question']} blue", "wasFreeform": True}

    session = await sdk.session(on_user_input_request=answer)
    text = await said(session, '[[tool ask_user {"question":"color?"}]] go')
    assert "to color? blue" in text


async def test_abort(sdk: Sdk) -> None:
    session = await sdk.session()
    seen: asyncio.Queue[str] = asyncio.Queue()
    session.on(lambda event: seen.put_nowait(event.type.value))
    await session.send("[[gate-mid g]] [[chunks 4]] hello")
    async with asyncio.timeout(WITHIN):
        while await seen.get() != "assistant.message_delta":
            pass
        await session.abort()
        while await seen.get() != "session.idle":
            pass
    assert "next" in await said(session, "next")


async def test_resume_list_and_delete(sdk: Sdk) -> None:
    session = await sdk.session(tools=[add])
    await said(session, "one")
    await session.disconnect()
    assert session.session_id in [one.session_id for one in await sdk.client.list_sessions()]
    assert await sdk.client.get_last_session_id() == session.session_id
    again = await sdk.client.resume_session(session.session_id, **sdk.options(tools=[add]))
    assert await said(again, "two") == "echo: two [user messages: 2]"
    events: list[Any] = await again.get_events()
    assert [e.data.content for e in events if e.type.value == "user.message"] == ["one", "two"]
    await again.disconnect()
    await sdk.client.delete_session(session.session_id)
    assert session.session_id not in [one.session_id for one in await sdk.client.list_sessions()]


async def test_attachments_of_several_megabytes(sdk: Sdk) -> None:
    session = await sdk.session()
    data = base64.b64encode(b"\x89PNG" * 1_000_000).decode()
    attachment: Any = {
        "type": "blob", "data": data, "mimeType": "image/png", "displayName": "big.png",
    }  # fmt: skip
    assert "look" in await said(session, "look", attachments=[attachment])


async def test_several_sessions_over_several_replicas_at_once(sdk: Sdk) -> None:
    sessions = [await sdk.session() for _ in range(8)]
    texts = await asyncio.gather(*(said(s, f"I am {n}") for n, s in enumerate(sessions)))
    assert texts == [f"echo: I am {n} [user messages: 1]" for n in range(8)]


async def test_a_replica_restart_between_turns(sdk: Sdk) -> None:
    session = await sdk.session(tools=[add])
    assert "one" in await said(session, "one")
    for cli in sdk.fleet.clis:
        await cli.restart()
    text = await said(session, '[[tool add {"a": 20, "b": 3}]] two')
    assert "sum 23" in text
    assert "[user messages: 2]" in text


async def test_a_wrong_token(sdk: Sdk) -> None:
    with pytest.raises(Exception, match=r"(?i)authentication"):
        async with sdk.connected(token="wrong"):
            pass


async def test_a_turn_that_runs_while_the_gateway_drains(sdk: Sdk) -> None:
    fleet = sdk.fleet
    draining = GatewayProcess(fleet.folder / "draining", replicas=fleet.clis)
    await draining.start()
    try:
        async with Sdk(fleet, draining).connected() as client:
            session = await client.create_session(**sdk.options())
            running = asyncio.ensure_future(said(session, "[[gate g]] last words"))
            await fleet.model.waiting("g")
            stopping = asyncio.ensure_future(draining.stop())
            await draining.said("draining")
            await fleet.model.release("g")
            assert await running == "echo: last words [user messages: 1]"
            assert await stopping == 0
    except* StopError:
        pass  # the SDK says goodbye to its sessions over a connection that has ended
    finally:
        await draining.stop()
