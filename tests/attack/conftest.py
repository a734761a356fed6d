"""Two tenants on one gateway: what the second one tries on the first.

With ``ATTACK_BARE_CLI=1`` the same attacks meet the CLI itself, both tenants holding its one token,
to show which of them it does not withstand.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from gateway.testing.model_server import ModelServer
from tests.e2e.conftest import REPLICA_TOKEN, Fleet
from tests.support.fake_cli import FakeCli
from tests.support.gateway import LocalGateway
from tests.support.rpc import Message, RpcClient, RpcFault
from tests.support.sessions import run_turn, tool

BARE = bool(os.environ.get("ATTACK_BARE_CLI"))

SECRET = "the-victims-secret"
LIVE = "victims-live-session"
COLD = "victims-cold-session"
UNKNOWN = "nobodys-own-session0"
"""Ids of the same length, so that answers may be compared byte by byte."""

ATTACKERS = {
    "user": ("evil", "mallory", "user"),
    "admin": ("evil", "eve", "admin"),
    "neighbour": ("acme", "bob", "user"),
}
"""A user and an admin of another tenant, and another user of the same one."""


class Battlefield:
    """A gateway that serves a victim and its attackers.

    Attributes:
        fleet: the CLIs behind it.
        host: where it listens.
        port: where it listens.
        victim: attached to :data:`LIVE`, which has a history and a tool.
    """

    def __init__(self, fleet: Fleet, stack: AsyncExitStack) -> None:
        self.fleet = fleet
        self.host, self.port = fleet.clis[0].host, fleet.clis[0].port
        self.gateway: LocalGateway | None = None
        self.victim: RpcClient = None  # type: ignore[assignment]
        self._tokens: dict[str, str] = {}
        self._stack = stack

    async def prepare(self) -> None:
        """Start the gateway; have the victim hold its conversations."""
        if not BARE:
            sections: dict[str, Any] = {
                "auth": {"static_token": "", "source_failures": 100_000, "max_failures": 1000},
                "limits": {"max_frame": 1 << 20},
            }
            self.gateway = await self.fleet.local(**sections)
            self.host, self.port = self.gateway.host, self.gateway.port
            for name, (tenant, user, role) in ATTACKERS.items():
                self._tokens[name] = self.gateway.add_token(tenant, user, role)
            self._tokens["victim"] = self.gateway.add_token("acme", "alice")
        self.victim = await self.client("victim")
        params = self.fleet.params(LIVE, tools=[tool("victims_tool")], requestPermission=True)
        await self.victim.request("session.create", params)
        await run_turn(self.victim, LIVE, SECRET)
        await self.victim.request("session.create", self.fleet.params(COLD))
        await run_turn(self.victim, COLD, SECRET)
        for session_id in (LIVE, COLD):
            await self.victim.request("sessions.save", {"sessionId": session_id})
        await self.victim.request("session.detach", {"sessionId": COLD})

    def token(self, name: str) -> str:
        """Return the token of an attacker, or of ``victim``."""
        return REPLICA_TOKEN if BARE else self._tokens[name]

    async def client(self, name: str) -> RpcClient:
        """Return a connection of an attacker, or of ``victim``."""
        client = await RpcClient.connect(self.host, self.port, self.token(name))
        return await self._stack.enter_async_context(client)

    async def bare(self) -> RpcClient:
        """Return a connection that has not authenticated."""
        return await self._stack.enter_async_context(await RpcClient.connect(self.host, self.port))

    def params(self, session_id: str | None = None, **more: Any) -> dict[str, Any]:
        """Return parameters that make turns run."""
        return self.fleet.params(session_id, **more)

    async def transcript(self) -> list[Message]:
        """Return the victim's history as the victim reads it."""
        answer = await self.victim.request("session.getMessages", {"sessionId": LIVE})
        return [e for e in answer["events"] if e["type"] in ("user.message", "assistant.message")]

    def model_calls(self) -> int:
        """Return how many model calls were made so far."""
        model = self.fleet.model
        return len(model.requests) if isinstance(model, ModelServer) else model.served

    def asked(self, method: str) -> int:
        """Return how often fake CLIs received a method."""
        return sum(len(cli.received(method)) for cli in self.fleet.clis if isinstance(cli, FakeCli))


class Attack:
    """One test's attack.

    Attributes:
        field: the battlefield.
        mallory: a user of another tenant.
    """

    def __init__(self, field: Battlefield, mallory: RpcClient) -> None:
        self.field = field
        self.mallory = mallory
        self._before: tuple[Any, int] = ([], 0)

    async def victim_acted(self) -> None:
        """Take what there is now for what the victim wants."""
        self._before = await self.field.transcript(), self.field.model_calls()

    async def check(self) -> None:
        """Make sure that the victim's conversation is what it was, and goes on.

        Raises:
            AssertionError: it is not.
        """
        assert not self.field.victim.ended.is_set(), "the victim was cut off"
        now = await self.field.transcript(), self.field.model_calls()
        assert now == self._before, "something happened to the victim's conversation"
        await self.field.victim.request("ping")

    async def answer(self, method: str, params: Any, client: RpcClient | None = None) -> Message:
        """Return the answer to a request, be it a result or an error."""
        try:
            return {"result": await (client or self.mallory).request(method, params)}
        except RpcFault as fault:
            return {"error": {"code": fault.code, "message": fault.message, "data": fault.data}}


def anonymous(answer: Message, session_id: str) -> str:
    """Return an answer without the id it is about."""
    return repr(answer).replace(session_id, "SESSION")


@pytest_asyncio.fixture(
    params=["fake", pytest.param("real", marks=pytest.mark.real)],
    scope="module",
    loop_scope="module",
)
async def field(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Battlefield]:
    """One battlefield per module and kind of CLI."""
    async with AsyncExitStack() as stack:
        fleet = Fleet(request.param, tmp_path_factory.mktemp(f"attack-{request.param}"), stack)
        await fleet.start(1 if BARE else 2)
        field = Battlefield(fleet, stack)
        await field.prepare()
        yield field


@pytest_asyncio.fixture(loop_scope="module")
async def attack(field: Battlefield) -> AsyncIterator[Attack]:
    """An attack, after which the victim's conversation is what it was and goes on."""
    async with await field.client("user") as mallory:
        attack = Attack(field, mallory)
        await attack.victim_acted()
        yield attack
    await attack.check()
