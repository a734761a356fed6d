"""Every method that takes a session id, with somebody else's: the answer is that there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gateway.wire.methods import METHODS
from tests.attack.conftest import ATTACKERS, COLD, LIVE, UNKNOWN, Attack, Battlefield, anonymous

pytestmark = pytest.mark.asyncio(loop_scope="module")

WITH_SESSION = sorted(
    method
    for method, info in METHODS.items()
    if info.session_paths and method not in ("session.create",)
)


def named_everywhere(method: str, session_id: str) -> dict[str, Any]:
    """Return params that hold the id in every place where the method takes one."""
    params: dict[str, Any] = {}
    for path in METHODS[method].session_paths:
        inner: Any = params
        *parents, last = path.split(".")
        for key in parents:
            name, is_list = key.removesuffix("[]"), key.endswith("[]")
            inner = inner.setdefault(name, [{}] if is_list else {})
            inner = inner[0] if is_list else inner
        name = last.removesuffix("[]")
        inner[name] = [session_id] if last.endswith("[]") else session_id
    return params


@pytest_asyncio.fixture(loop_scope="module")
async def attackers(field: Battlefield) -> AsyncIterator[dict[str, Any]]:
    """Connections of all attackers."""
    yield {name: await field.client(name) for name in ATTACKERS}


async def test_the_table_covers_the_protocol() -> None:
    assert len(WITH_SESSION) > 400


@pytest.mark.parametrize("method", WITH_SESSION)
async def test_a_foreign_session_is_no_session(
    attack: Attack, attackers: dict[str, Any], method: str
) -> None:
    for name, client in attackers.items():
        unknown = await attack.answer(method, named_everywhere(method, UNKNOWN), client)
        for session_id in (LIVE, COLD):
            answer = await attack.answer(method, named_everywhere(method, session_id), client)
            assert anonymous(answer, session_id) == anonymous(unknown, UNKNOWN), name
