"""Gateways in front of CLIs, fake or real, with clients on real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.testing.model_server import ModelServer
from tests.support.fake_cli import FakeCli, ScriptedModel
from tests.support.gateway import GatewayProcess, LocalGateway
from tests.support.rpc import RpcClient
from tests.support.sessions import FAKE_MODEL_URL, session_params
from tests.support.stack import RealCli

REPLICA_TOKEN = "replica-token"


class Fleet:
    """Some CLIs with disks of their own, one model, and what stands in front of them.

    Attributes:
        kind: ``fake`` or ``real``.
        folder: for everything.
        model: what all CLIs call.
        clis: the CLIs.
    """

    def __init__(self, kind: str, folder: Path, stack: AsyncExitStack) -> None:
        self.kind = kind
        self.folder = folder
        self._stack = stack
        self.clis: list[FakeCli | RealCli] = []
        self.model: ModelServer | ScriptedModel = (
            ModelServer() if kind == "real" else ScriptedModel()
        )

    async def start(self, count: int, *, shared: bool = False) -> None:
        """Start the model and the CLIs, on disks of their own or on one that they share."""
        if isinstance(self.model, ModelServer):
            await self._stack.enter_async_context(self.model)
        for number in range(count):
            home = self.folder / ("home" if shared else f"home-{number}")
            home.mkdir(exist_ok=shared)
            cli: FakeCli | RealCli
            if isinstance(self.model, ModelServer):
                url = self.model.base_url
                cli = RealCli(home, name=f"cli-{number}", model_url=url, token=REPLICA_TOKEN)
            else:
                name = f"cli-{number}"
                cli = FakeCli(name, state_dir=home, model=self.model, token=REPLICA_TOKEN)
            self.clis.append(await self._stack.enter_async_context(cli))

    async def local(self, **sections: Any) -> LocalGateway:
        """Start a worker in this process."""
        folder = self.folder / "state"
        folder.mkdir(exist_ok=True)
        return await self._stack.enter_async_context(LocalGateway(folder, *self.clis, **sections))

    async def process(self, *args: str, **options: Any) -> GatewayProcess:
        """Start the whole program."""
        return await self._stack.enter_async_context(
            GatewayProcess(self.folder / "state", *args, replicas=self.clis, **options)
        )

    async def client(
        self, gateway: LocalGateway | GatewayProcess, token: str | None = None, **handshake: Any
    ) -> RpcClient:
        """Return an authenticated client."""
        opened = (
            gateway.connect(token, **handshake)
            if token is not None
            else gateway.connect(**handshake)
        )
        return await self._stack.enter_async_context(await opened)

    async def bare(self, gateway: LocalGateway | GatewayProcess) -> RpcClient:
        """Return a client that has said nothing yet."""
        return await self._stack.enter_async_context(await gateway.bare())

    def params(self, session_id: str | None = None, **more: Any) -> dict[str, Any]:
        """Return parameters of create or resume that make turns run."""
        url = self.model.base_url if isinstance(self.model, ModelServer) else FAKE_MODEL_URL
        return session_params(session_id, model_url=url, **more)

    def cli(self, name: str) -> FakeCli | RealCli:
        """Return a CLI by name."""
        return next(cli for cli in self.clis if cli.name == name)

    def fake(self, name: str = "cli-0") -> FakeCli:
        """Return a fake CLI by name."""
        cli = self.cli(name)
        assert isinstance(cli, FakeCli)
        return cli


MakeFleet = Callable[..., Awaitable[Fleet]]


@pytest.fixture
async def make_fleet(tmp_path: Path) -> AsyncIterator[MakeFleet]:
    """``await make_fleet(kind, count)``, with ``shared=True`` on one disk."""
    async with AsyncExitStack() as stack:

        async def make(kind: str, count: int, *, shared: bool = False) -> Fleet:
            fleet = Fleet(kind, tmp_path, stack)
            await fleet.start(count, shared=shared)
            return fleet

        yield make


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
async def fleet(request: pytest.FixtureRequest, make_fleet: MakeFleet) -> Fleet:
    """Two CLIs of either kind."""
    return await make_fleet(request.param, 2)


@pytest.fixture
async def fakes(make_fleet: MakeFleet) -> Fleet:
    """Two fake CLIs."""
    return await make_fleet("fake", 2)
