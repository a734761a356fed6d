"""Becoming a provider for everybody, changing the host, ending the process."""

from __future__ import annotations

import pytest

from gateway import errors
from gateway.policy.rules import Route
from gateway.wire.methods import METHODS, Access
from tests.attack.conftest import Attack

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROVIDERS = {
    "sessionFs.setProvider": {"initialCwd": "/", "sessionStatePath": "/s", "conventions": "posix"},
    "llmInference.setProvider": {},
    "registerExtensionLaunchProvider": {},
}
HOST_WIDE = sorted(
    method
    for method, info in METHODS.items()
    if Route[info.route.upper()] in (Route.ALL, Route.SINGLETON) or info.access is Access.NEVER
)


async def test_the_table_names_what_reaches_beyond_sessions() -> None:
    assert len(HOST_WIDE) > 60
    assert {*PROVIDERS, "runtime.shutdown"} <= set(HOST_WIDE)


@pytest.mark.parametrize("method", HOST_WIDE)
async def test_a_user_changes_nothing_for_all(attack: Attack, method: str) -> None:
    answer = await attack.answer(method, PROVIDERS.get(method, {}))
    assert answer["error"]["code"] in (errors.FORBIDDEN, errors.METHOD_NOT_FOUND)
    assert attack.field.asked(method) == 0


@pytest.mark.parametrize("method", PROVIDERS)
async def test_becoming_the_provider_of_all(attack: Attack, method: str) -> None:
    answer = await attack.answer(method, PROVIDERS[method])
    assert answer["error"]["code"] == errors.FORBIDDEN


@pytest.mark.parametrize("method", PROVIDERS)
async def test_becoming_the_provider_of_all_by_notification(attack: Attack, method: str) -> None:
    attack.mallory.notify(method, PROVIDERS[method])
    await attack.mallory.request("ping")
    assert attack.field.asked(method) == 0


@pytest.mark.parametrize("method", ["runtime.shutdown", "shutdown", "exit", "runtime.restart"])
async def test_ending_the_process(attack: Attack, method: str) -> None:
    answer = await attack.answer(method, {})
    assert "error" in answer
    attack.mallory.notify(method, {})
    await attack.mallory.request("ping")


@pytest.mark.parametrize(
    "method",
    [
        "user.settings.get",
        "repo.settings.get",
        "git.status",
        "environments.list",
        "host.brandNew",
        "sandbox.run",
        "session.brandNew",
        "Session.send",
        "session.send ",
        "session.send\x00",
        "session..send",
    ],
)
async def test_methods_that_nobody_listed(attack: Attack, method: str) -> None:
    answer = await attack.answer(method, {"sessionId": "x"})
    assert answer["error"]["code"] in (errors.FORBIDDEN, errors.METHOD_NOT_FOUND)
    assert attack.field.asked(method) == 0


async def test_looking_around_in_the_host(attack: Attack) -> None:
    for method in ("agents.discover", "skills.discover", "mcp.config.list", "account.getAllUsers"):
        answer = await attack.answer(method, {"projectPaths": ["/"]})
        assert answer["error"]["code"] in (errors.FORBIDDEN, errors.METHOD_NOT_FOUND)
