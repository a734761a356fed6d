"""Runs every contract test on the fake CLI and on the real one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.testing.model_server import ModelServer
from tests.support.fake_cli import FakeCli, ScriptedModel
from tests.support.rpc import RpcClient
from tests.support.sessions import FAKE_MODEL_URL, session_params
from tests.support.stack import RealCli

TOKEN = "replica-token"


class Bench:
    """Starts CLIs of one kind, with one model behind all of them, and cleans up.

    Attributes:
        kind: ``fake`` or ``real``.
        model: the model they call.
    """

    def __init__(self, kind: str, folder: Path, stack: AsyncExitStack) -> None:
        self.kind = kind
        self.model: ModelServer | ScriptedModel = (
            ModelServer() if kind == "real" else ScriptedModel()
        )
        self._folder = folder
        self._stack = stack

    async def start(self) -> None:
        """Start the model."""
        if isinstance(self.model, ModelServer):
            await self._stack.enter_async_context(self.model)

    async def cli(
        self, name: str = "cli-0", *, home: str | None = None, token: str | None = TOKEN
    ) -> FakeCli | RealCli:
        """Start a CLI; those with the same ``home`` share storage."""
        folder = self._folder / (home or name)
        folder.mkdir(exist_ok=True)
        cli: FakeCli | RealCli
        if isinstance(self.model, ModelServer):
            cli = RealCli(folder, name=name, model_url=self.model.base_url, token=token)
        else:
            cli = FakeCli(name, state_dir=folder, model=self.model, token=token)
        return await self._stack.enter_async_context(cli)

    async def client(self, cli: FakeCli | RealCli, **handshake: Any) -> RpcClient:
        """Open a connection with a handshake."""
        return await self._stack.enter_async_context(await cli.connect(**handshake))

    async def bare_client(self, cli: FakeCli | RealCli) -> RpcClient:
        """Open a connection without one."""
        return await self._stack.enter_async_context(await RpcClient.connect(cli.host, cli.port))

    def params(self, session_id: str | None = None, **more: Any) -> dict[str, Any]:
        """Return parameters of create or resume that make turns run."""
        url = self.model.base_url if isinstance(self.model, ModelServer) else FAKE_MODEL_URL
        return session_params(session_id, model_url=url, **more)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """CLIs of either kind."""
    async with AsyncExitStack() as stack:
        bench = Bench(request.param, tmp_path, stack)
        await bench.start()
        yield bench


@pytest.fixture
async def cli(bench: Bench) -> FakeCli | RealCli:
    """One CLI."""
    return await bench.cli()
