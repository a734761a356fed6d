"""Getting in without a token, with somebody else's, or with one that is nearly right."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gateway import errors
from tests.attack.conftest import LIVE, Attack
from tests.support.gateway import remove_tokens
from tests.support.rpc import RpcFault, frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Downgrade


@pytest.mark.parametrize(
    "method", ["ping", "session.list", "session.create", "session.resume", "status.get", "no.such"]
)
async def test_speaking_before_connecting(attack: Attack, method: str) -> None:
    """Never -32601 to ``connect``'s absence: SDKs then fall back to an unauthenticated ping."""
    stranger = await attack.field.bare()
    answer = await attack.answer(method, {"sessionId": LIVE}, stranger)
    assert answer["error"]["code"] == errors.AUTHENTICATION_REQUIRED


async def test_connecting_by_notification(attack: Attack) -> None:
    stranger = await attack.field.bare()
    stranger.notify("connect", {"token": attack.field.token("user") + "x"})
    answer = await attack.answer("session.list", {}, stranger)
    assert answer["error"]["code"] == errors.AUTHENTICATION_REQUIRED


async def test_a_good_connect_that_was_only_half_sent(attack: Attack) -> None:
    stranger = await attack.field.bare()
    connect = frame(
        {"jsonrpc": "2.0", "id": 1, "method": "connect",
         "params": {"token": attack.field.token("user")}}
    )  # fmt: skip
    stranger.send_raw(connect[:-1])
    await stranger.drain()
    assert not stranger.strays.all


async def test_connecting_again_as_somebody_else(attack: Attack) -> None:
    victim_token = attack.field.token("victim")
    answer = await attack.answer("connect", {"token": victim_token})
    assert answer["error"]["code"] == errors.AUTHENTICATION_FAILED
    answer = await attack.answer("session.getMessages", {"sessionId": LIVE})
    assert "error" in answer


async def test_connecting_again_with_a_wrong_token_keeps_the_old_identity(attack: Attack) -> None:
    answer = await attack.answer("connect", {"token": "wrong"})
    assert answer["error"]["code"] == errors.AUTHENTICATION_FAILED
    await attack.mallory.request("ping")
    answer = await attack.answer("session.getMessages", {"sessionId": LIVE})
    assert "error" in answer


async def test_what_is_pipelined_behind_a_wrong_token(attack: Attack) -> None:
    stranger = await attack.field.bare()
    stranger.send_raw(
        frame({"jsonrpc": "2.0", "id": 1, "method": "connect", "params": {"token": "wrong"}})
        + frame({"jsonrpc": "2.0", "id": 2, "method": "session.getMessages",
                 "params": {"sessionId": LIVE}})
    )  # fmt: skip
    codes = [(await stranger.strays.wait_for(lambda m: True))["error"]["code"] for _ in range(2)]
    assert codes == [errors.AUTHENTICATION_FAILED, errors.AUTHENTICATION_REQUIRED]


async def test_smuggling_a_token_past_a_duplicate_key(attack: Attack) -> None:
    stranger = await attack.field.bare()
    good = attack.field.token("user").encode()
    body = b'{"jsonrpc":"2.0","id":1,"method":"connect","params":{"token":"%s","token":"no"}}'
    stranger.send_raw(b"Content-Length: %d\r\n\r\n" % len(body % good) + body % good)
    answer = await stranger.strays.wait_for(lambda m: True)
    assert answer["error"]["code"] == errors.AUTHENTICATION_FAILED


# Tokens


def mutations(token: str) -> dict[str, Any]:
    """Return what is nearly a token, by name."""
    head, _, secret = token.rpartition("_")
    return {
        "nothing": None,
        "empty": "",
        "prefix": token[:-1],
        "half": token[: len(token) // 2],
        "longer": token + "x",
        "trailing space": token + " ",
        "leading space": " " + token,
        "trailing newline": token + "\n",
        "trailing null": token + "\x00",
        "upper case": token.upper(),
        "lower case": token.lower() + "l",
        "only its head": head,
        "only its secret": secret,
        "bearer": f"Bearer {token}",
        "homoglyph": token.replace("a", "а").replace("e", "е") + "е",  # noqa: RUF001
        "wide digits": "".join(chr(ord(c) + 0xFEE0) for c in token),
        "a list": [token],
        "an object": {"token": token},
        "a number": 1,
        "true": True,
        "huge": token * 100,
        "last character": token[:-1] + ("A" if token[-1] != "A" else "B"),
    }


@pytest.mark.parametrize("name", mutations("cgw_abc_def"))
async def test_a_token_that_is_nearly_right(attack: Attack, name: str) -> None:
    stranger = await attack.field.bare()
    token = mutations(attack.field.token("victim"))[name]
    answer = await attack.answer("connect", {"token": token}, stranger)
    assert answer["error"]["code"] == errors.AUTHENTICATION_FAILED


async def test_the_head_of_one_token_with_the_secret_of_another(attack: Attack) -> None:
    victim, own = attack.field.token("victim"), attack.field.token("user")
    for cut in range(1, len(victim)):
        mixed = victim[:cut] + own[cut:]
        if mixed in (victim, own):
            continue
        stranger = await attack.field.bare()
        answer = await attack.answer("connect", {"token": mixed}, stranger)
        assert answer["error"]["code"] == errors.AUTHENTICATION_FAILED
        await stranger.close()


async def test_a_revoked_token(attack: Attack) -> None:
    gateway = attack.field.gateway
    assert gateway is not None, "a bare CLI has one token for ever"
    token = gateway.add_token("evil", "short-lived")
    async with await gateway.connect(token) as stranger:
        remove_tokens(gateway.tokens, user="short-lived")
        gateway.worker.apply(gateway.settings)
        await stranger.wait_ended()
    with pytest.raises(RpcFault) as caught:
        await gateway.connect(token)
    assert caught.value.code == errors.AUTHENTICATION_FAILED


async def test_an_expired_token(attack: Attack) -> None:
    gateway = attack.field.gateway
    assert gateway is not None, "a bare CLI has one token for ever"
    token = gateway.add_token("evil", "expiring", expires=time.time() + 1.6)
    async with await gateway.connect(token) as stranger:
        await stranger.wait_ended()
    with pytest.raises(RpcFault) as caught:
        await gateway.connect(token)
    assert caught.value.code == errors.AUTHENTICATION_FAILED


async def test_the_replicas_own_token_is_good_for_nothing_here(attack: Attack) -> None:
    stranger = await attack.field.bare()
    token = attack.field.fleet.clis[0].token
    answer = await attack.answer("connect", {"token": token}, stranger)
    assert answer["error"]["code"] == errors.AUTHENTICATION_FAILED


async def test_guessing_is_limited_per_connection(attack: Attack) -> None:
    gateway = attack.field.gateway
    assert gateway is not None, "a bare CLI lets guess for ever"
    from dataclasses import replace

    hub = gateway.worker.hub
    hub.limits, kept = replace(hub.limits, max_auth_failures=3), hub.limits
    try:
        stranger = await attack.field.bare()
        for _ in range(3):
            answer = await attack.answer("connect", {"token": "guess"}, stranger)
            assert answer["error"]["code"] == errors.AUTHENTICATION_FAILED
        await stranger.wait_ended()
    finally:
        hub.limits = kept
