"""The model behind a fake CLI: the script language of the model server, without a socket."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from gateway.testing.model_server import REQUESTS_KEPT, Gates, ModelRequest, Script, ToolCall


class ModelFailure(Exception):
    """The scripted call fails with an HTTP status, or breaks in the middle."""

    def __init__(self, status: int | None) -> None:
        super().__init__(f"{status} scripted failure" if status else "connection broken")
        self.status = status


class ScriptedModel:
    """Answers like :class:`~gateway.testing.model_server.ModelServer`; fakes may share one.

    Attributes:
        requests: the last model calls, oldest first.
        served: number of model calls so far.
    """

    def __init__(self) -> None:
        self._gates = Gates()
        self.requests: deque[ModelRequest] = deque(maxlen=REQUESTS_KEPT)
        self.served = 0

    async def waiting(self, gate: str, count: int = 1) -> None:
        """Wait until ``count`` calls have arrived at a gate since the start."""
        await self._gates.waiting(gate, count)

    async def release(self, gate: str) -> None:
        """Open a gate, for who waits at it and for all later."""
        await self._gates.release(gate)

    async def call(self, request: ModelRequest) -> AsyncIterator[str | tuple[str, ToolCall]]:
        """Yield the pieces of the answer, or one call id with the tool to call.

        Raises:
            ModelFailure: the script says so.
        """
        self.served += 1
        self.requests.append(request)
        try:
            async for piece in self._answer(request, f"call-fake-{self.served}"):
                yield piece
        except BaseException:
            request.outcome = "abandoned" if request.outcome == "running" else request.outcome
            raise
        request.outcome = "answered"

    async def _answer(
        self, request: ModelRequest, call_id: str
    ) -> AsyncIterator[str | tuple[str, ToolCall]]:
        script = Script.parse(request.prompt)
        if script.delay:
            await asyncio.sleep(script.delay)
        if script.gate is not None:
            await self._gates.enter(script.gate)
        if script.error is not None:
            request.outcome = "error"
            raise ModelFailure(script.error)
        done = len(request.tool_results)
        if done < len(script.tools):
            yield call_id, script.tools[done]
            return
        pieces = script.pieces(script.answer(len(request.user_messages), request.tool_results))
        middle = (len(pieces) + 1) // 2
        for number, piece in enumerate(pieces):
            if number and script.chunk_delay:
                await asyncio.sleep(script.chunk_delay)
            if number == middle:
                await self._middle(script, request)
            yield piece
        if len(pieces) <= middle:
            await self._middle(script, request)

    async def _middle(self, script: Script, request: ModelRequest) -> None:
        if script.gate_mid is not None:
            await self._gates.enter(script.gate_mid)
        if script.broken:
            request.outcome = "cut"
            raise ModelFailure(None)
