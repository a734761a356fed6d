"""The contract of the CLI, kept by the gateway in front of it.

The tests of ``tests/contract`` run again with a gateway in between; :data:`CHANGED` names the
habits that it changes on purpose, and why.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.contract import test_handshake, test_sessions, test_turns
from tests.contract.conftest import Bench
from tests.support.fake_cli import FakeCli
from tests.support.gateway import LocalGateway
from tests.support.rpc import RpcClient
from tests.support.stack import RealCli

_OWN_TOKENS = "the gateway has tokens of its own, and says so in words of its own"

CHANGED = {
    "test_nothing_is_answered_before_the_token": _OWN_TOKENS,
    "test_wrong_tokens_are_refused_and_may_be_tried_again": _OWN_TOKENS,
    "test_a_token_where_none_is_configured_is_refused": _OWN_TOKENS,
    "test_task_kinds_mirror_the_declaration": _OWN_TOKENS,
    "test_the_handshake_is_strict": _OWN_TOKENS,
    "test_shutdown_ends_every_connection": "nobody may end a replica that others use",
    "test_a_pipelined_send_finds_no_session": "a send behind a create waits for it",
    "test_a_shut_down_session_is_a_zombie": "a session that was shut down is closed instead",
}
"""Tests of the contract that do not hold through the gateway, and why."""


class GatewayBench(Bench):
    """Puts a gateway in front of each CLI, and clients in front of the gateway."""

    def __init__(self, kind: str, folder: Path, stack: AsyncExitStack) -> None:
        super().__init__(kind, folder, stack)
        self._gateways: dict[str, LocalGateway] = {}

    async def gateway(self, cli: FakeCli | RealCli) -> LocalGateway:
        """Return the gateway in front of a CLI."""
        found = self._gateways.get(cli.name)
        if found is None:
            folder = self._folder / f"gateway-{cli.name}"
            folder.mkdir()
            found = await self._stack.enter_async_context(
                LocalGateway(folder, cli, sessions={"linger": 0.0})
            )
            self._gateways[cli.name] = found
        return found

    async def client(self, cli: FakeCli | RealCli, **handshake: Any) -> RpcClient:
        """Open a connection with a handshake."""
        opened = (await self.gateway(cli)).connect(**handshake)
        return await self._stack.enter_async_context(await opened)

    async def bare_client(self, cli: FakeCli | RealCli) -> RpcClient:
        """Open a connection without one."""
        return await self._stack.enter_async_context(await (await self.gateway(cli)).bare())


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Fake CLIs, each behind a gateway: that they have the real one's habits is tested already."""
    async with AsyncExitStack() as stack:
        bench = GatewayBench("fake", tmp_path, stack)
        await bench.start()
        yield bench


@pytest.fixture
async def cli(bench: Bench) -> FakeCli | RealCli:
    """One CLI."""
    return await bench.cli()


def test_every_exception_is_one() -> None:
    names = {
        name for module in (test_handshake, test_sessions, test_turns) for name in vars(module)
    }
    assert CHANGED.keys() <= names


for _module in (test_handshake, test_sessions, test_turns):
    for _name, _test in list(vars(_module).items()):
        if _name.startswith("test_") and _name not in CHANGED:
            globals()[_name] = _test
