"""What the demo does, step by step; each step shows its result only after checking it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from copilot import CopilotClient, RuntimeConnection
from copilot.rpc import SessionsSaveRequest
from copilot.session import CopilotSession, PermissionHandler
from copilot.tools import Tool, define_tool
from pydantic import BaseModel, Field

from gateway.demo.process import (
    CLIS,
    DemoGateway,
    GatewayEndedError,
    Replicas,
    clean_environment,
)
from gateway.demo.screen import BOLD, Cell, Screen
from gateway.errors import AUTHENTICATION_FAILED, EXIT_FAILURE, EXIT_OK
from gateway.io.cli_binary import CliBinary
from gateway.testing.model_server import DEFAULT_MODEL, ModelServer

COLOURS = ("amber", "blue", "coral", "green", "ivory", "olive")
"""One session each: enough that bounded load gives every replica some."""

TIME_LIMIT = 60.0
"""Seconds for the whole story, which takes about five; a loaded machine takes longer."""

_TURN_TIMEOUT = 15.0
_POLL = 0.005
_NOT_FOUND = "Session not found"
_ID_WIDTH = 8
_LABEL_WIDTH = 12
_LOG_WIDTH = 300


class StoryError(Exception):
    """Something did not happen as it should have; says what."""


class Fence(BaseModel):
    """Arguments of the tool."""

    colour: str = Field(description="the colour to paint it in")


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise StoryError(otherwise)


async def run(screen: Screen, cli: CliBinary, env: Mapping[str, str]) -> int:
    """Run the demo; return the exit status: 0 only if all of it happened.

    Args:
        screen: where it is shown.
        cli: the CLI to run.
        env: environment of the caller.
    """
    # The SDK logs a traceback for every error answer, the expected ones included.
    logging.getLogger("copilot").setLevel(logging.CRITICAL + 1)
    with TemporaryDirectory(prefix="copilot-gateway-demo-", ignore_cleanup_errors=True) as folder:
        async with ModelServer() as model:
            gateway = DemoGateway(Path(folder), clean_environment(env, model.base_url, cli.path))
            try:
                async with asyncio.timeout(TIME_LIMIT), gateway:
                    await _Story(screen, cli, model, gateway).tell()
            except TimeoutError:
                screen.failed(f"not done within {TIME_LIMIT:g} s")
            except (StoryError, GatewayEndedError) as error:
                screen.failed(str(error))
            except Exception as error:
                screen.failed(f"{type(error).__name__}: {error}")
            else:
                return EXIT_OK
    for line in gateway.log:
        screen.note(line[:_LOG_WIDTH])
    return EXIT_FAILURE


class _Story:
    """The state that the steps share.

    Attributes:
        painted: colours that the tool was called with.
        sessions: the sessions by colour.
    """

    def __init__(
        self, screen: Screen, cli: CliBinary, model: ModelServer, gateway: DemoGateway
    ) -> None:
        self._screen = screen
        self._cli = cli
        self._model = model
        self._gateway = gateway
        self._provider: Any = {
            "type": "openai",
            "base_url": model.base_url,
            "api_key": "none-needed",
        }
        self.painted: list[str] = []
        self.sessions: dict[str, CopilotSession] = {}

    async def tell(self) -> None:
        """Go through all steps.

        Raises:
            StoryError: a check failed.
            GatewayEndedError: the gateway ended.
        """
        ann, bob = await self._start()
        async with self._connected(ann) as client:
            await self._converse(client)
            await self._wrong_token()
            await self._other_tenant(bob, client)
            await self._kill(client)
        await self._stop()

    def _client(self, token: str) -> CopilotClient:
        """Return a client of the SDK: what an application's own code would do."""
        address = f"127.0.0.1:{self._gateway.port}"
        return CopilotClient(connection=RuntimeConnection.for_uri(address, connection_token=token))

    @asynccontextmanager
    async def _connected(self, token: str) -> AsyncIterator[CopilotClient]:
        """Connect a client for a while."""
        client = self._client(token)
        await client.start()
        try:
            yield client
        except BaseException:
            # What went wrong first is what counts.
            with suppress(Exception):
                await client.stop()
            raise
        await client.stop()

    # The steps

    async def _start(self) -> tuple[str, str]:
        """Start everything; return the tokens of two users of two tenants."""
        screen = self._screen
        screen.heading(f"A gateway in front of {CLIS} real Copilot CLIs ({self._cli.version})")
        self._label("model", f"{self._model.base_url}, scripted: no network, no credentials")
        started = time.monotonic()
        tokens = await asyncio.gather(
            self._gateway.create_token("acme", "ann"), self._gateway.create_token("globex", "bob")
        )
        self._label("tokens", "acme/ann and globex/bob", started)
        started = time.monotonic()
        await self._gateway.start()
        self._label("gateway", f"cli_url 127.0.0.1:{self._gateway.port}", started)
        replicas = await self._until(_all_up)
        for name, replica in sorted(replicas.items()):
            screen.done(
                screen.replica(name, _LABEL_WIDTH),
                f"up, pid {replica['pid']}, CLI {replica['version']}",
            )
        _check(len(replicas) == CLIS, f"{len(replicas)} replicas instead of {CLIS}")
        ann, bob = tokens
        return ann, bob

    async def _converse(self, client: CopilotClient) -> None:
        self._screen.heading(f"One SDK client, one connection, {len(COLOURS)} sessions")
        for colour in COLOURS:
            started = time.monotonic()
            session = await client.create_session(
                model=DEFAULT_MODEL,
                provider=self._provider,
                tools=[self._tool()],
                on_permission_request=PermissionHandler.approve_all,
                streaming=True,
            )
            self.sessions[colour] = session
            prompt = self._first_prompt(colour)
            answer = await self._turn(session, prompt)
            taken = time.monotonic() - started
            _check(answer == f"echo: {prompt} [user messages: 1]", f"unexpected answer: {answer}")
            placed = await self._gateway.placements()
            _check(session.session_id in placed, f"{session.session_id} is placed nowhere")
            self._row(session, placed[session.session_id], f'"{prompt}"', taken)
        used = set((await self._gateway.placements()).values())
        _check(len(used) == CLIS, f"only {', '.join(used)} serve sessions")

    async def _wrong_token(self) -> None:
        self._screen.heading("A wrong token")
        started = time.monotonic()
        error = await self._refused(self._client("not-a-token").start)
        code = getattr(error, "code", None)
        _check(code == AUTHENTICATION_FAILED, f"{error} instead of {AUTHENTICATION_FAILED}")
        self._label("refused", str(error).removeprefix("JSON-RPC Error "), started)

    async def _other_tenant(self, token: str, owner: CopilotClient) -> None:
        screen = self._screen
        screen.heading("Another tenant")
        mine = {session.session_id for session in self.sessions.values()}
        listed = {one.session_id for one in await owner.list_sessions()}
        _check(listed == mine, f"acme/ann sees {len(listed)} sessions instead of {len(mine)}")
        self._label("acme/ann", f"lists {len(listed)} sessions")
        async with self._connected(token) as stranger:
            started = time.monotonic()
            seen = await stranger.list_sessions()
            _check(not seen, f"globex/bob sees {len(seen)} sessions")
            self._label("globex/bob", "lists 0 sessions", started)
            said = []
            for what, session_id in (
                ("ann's session", self.sessions[COLOURS[0]].session_id),
                ("an id that nobody has", "00000000-0000-4000-8000-000000000000"),
            ):
                started = time.monotonic()

                async def resume(wanted: str = session_id) -> None:
                    await stranger.resume_session(
                        wanted, on_permission_request=PermissionHandler.approve_all
                    )

                error = str(await self._refused(resume))
                said.append(error.replace(session_id, "ID"))
                _check(_NOT_FOUND in error, f"it resumes {what}: {error}")
                self._label("", f"resumes {what}: {_NOT_FOUND}", started)
            _check(said[0] == said[1], "it can tell which sessions exist")

    async def _kill(self, client: CopilotClient) -> None:
        screen = self._screen
        for session in self.sessions.values():
            # The CLI writes its journal a moment later than it answers.
            await client.rpc.sessions.save(SessionsSaveRequest(session.session_id))
        placed = await self._gateway.placements()
        counts = {name: list(placed.values()).count(name) for name in sorted(placed.values())}
        victim = max(counts, key=lambda name: counts[name])
        pid = (await self._gateway.replicas())[victim]["pid"]
        screen.heading(f"{victim} is killed, {counts[victim]} sessions with it")
        started = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await self._until(lambda replicas: replicas[victim]["state"] != "up")
        screen.done(
            screen.replica(victim, _LABEL_WIDTH),
            f"pid {pid} got SIGKILL; the gateway knows",
            seconds=time.monotonic() - started,
        )
        screen.note("every session is asked to go on, at once, over the same connection:")

        async def go_on(colour: str) -> tuple[str, float]:
            begun = time.monotonic()
            await self._check_second_turn(colour)
            return colour, time.monotonic() - begun

        turns = [asyncio.ensure_future(go_on(colour)) for colour in COLOURS]
        try:
            for turn in asyncio.as_completed(turns):
                colour, taken = await turn
                session = self.sessions[colour]
                now = (await self._gateway.placements())[session.session_id]
                text = f"2 messages in its history, tool painted {colour}"
                self._row(session, now, text, taken)
        finally:
            for one in turns:
                one.cancel()
            await asyncio.gather(*turns, return_exceptions=True)
        _check(sorted(self.painted) == sorted(COLOURS), f"the tool painted {self.painted}")
        back = (await self._until(_all_up))[victim]
        _check(back["pid"] != pid, f"{victim} was not restarted")
        screen.done(
            screen.replica(victim, _LABEL_WIDTH),
            f"up again, pid {back['pid']}",
            seconds=time.monotonic() - started,
        )

    async def _stop(self) -> None:
        self._screen.heading("The end")
        pids = [one["pid"] for one in (await self._gateway.replicas()).values()]
        started = time.monotonic()
        how = await self._gateway.stop()
        _check(how == "exit status 0", f"the gateway ended with {how}")
        left = [pid for pid in pids if _runs(pid)]
        _check(not left, f"CLIs are left running: {left}")
        self._label("stopped", f"{how}, no CLI left running", started)

    # Their parts

    def _tool(self) -> Tool:
        @define_tool(name="paint_fence", description="Paint the fence")
        async def paint(fence: Fence) -> str:
            self.painted.append(fence.colour)
            return f"the fence is {fence.colour}"

        return paint

    @staticmethod
    def _first_prompt(colour: str) -> str:
        return f"The fence shall be {colour}."

    async def _turn(self, session: CopilotSession, prompt: str) -> str:
        event = await session.send_and_wait(prompt, timeout=_TURN_TIMEOUT)
        return str(getattr(event.data, "content", "")) if event is not None else ""

    async def _check_second_turn(self, colour: str) -> None:
        """Hold the second turn of a session; check what the model was told and the tool did."""
        prompt = f'[[tool paint_fence {{"colour": "{colour}"}}]] Paint it.'
        answer = await self._turn(self.sessions[colour], prompt)
        expected = (
            f"echo: Paint it. [user messages: 2] [paint_fence returned: the fence is {colour}]"
        )
        _check(answer == expected, f"unexpected answer: {answer}")
        asked = [one for one in self._model.requests if one.prompt == prompt]
        history = [self._first_prompt(colour), prompt]
        _check(
            bool(asked) and all(one.user_messages == history for one in asked),
            f"the model was not told what was said before about {colour}",
        )

    async def _refused(self, call: Callable[[], Any]) -> Exception:
        """Return the error of a call that has to fail."""
        try:
            await call()
        except Exception as error:
            return error
        raise StoryError("it was accepted")

    async def _until(self, condition: Callable[[Replicas], bool]) -> Replicas:
        """Poll the replicas until ``condition`` holds for them, and return them."""
        while True:
            replicas = await self._gateway.replicas()
            if condition(replicas):
                return replicas
            await asyncio.sleep(_POLL)

    def _label(self, label: str, text: str, started: float | None = None) -> None:
        seconds = None if started is None else time.monotonic() - started
        self._screen.done(Cell(label, _LABEL_WIDTH, BOLD), text, seconds=seconds)

    def _row(self, session: CopilotSession, replica: str, text: str, seconds: float) -> None:
        screen = self._screen
        short = session.session_id[:_ID_WIDTH]
        screen.done(Cell(short, _LABEL_WIDTH), screen.replica(replica, 7), text, seconds=seconds)


def _all_up(replicas: Replicas) -> bool:
    return all(one["state"] == "up" for one in replicas.values())


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
