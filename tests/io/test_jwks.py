from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.errors import ConfigError
from gateway.io import jwks
from gateway.io.jwks import FileKeys, JwtAuthenticator, UrlKeys, check_jwks_url
from gateway.io.tls import ServerTlsFiles, client_context, server_context
from gateway.policy.jwt_identity import JwtConfig, JwtFailure, JwtProblem, JwtVerifier
from gateway.types import Identity
from tests.support.certificates import Authority
from tests.support.wait import eventually

CONFIG = JwtConfig(issuer="https://login.example.com", audience="gateway", algorithms=("ES256",))


class Signer:
    """An issuer's key."""

    def __init__(self, kid: str) -> None:
        self.kid = kid
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def jwk(self) -> dict[str, Any]:
        public = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {**public, "kid": self.kid}

    def token(self, **claims: Any) -> str:
        base = {
            "iss": CONFIG.issuer,
            "aud": CONFIG.audience,
            "sub": "ada",
            "tenant": "acme",
            "exp": time.time() + 60,
        }
        return jwt.encode(base | claims, self._key, "ES256", {"kid": self.kid})


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Endpoint:
    """A JWKS endpoint that counts its fetches.

    Attributes:
        keys: what it publishes.
        fetches: how often it was asked.
        answer: what to answer instead, or None.
    """

    def __init__(self, *signers: Signer) -> None:
        self.keys = list(signers)
        self.fetches = 0
        self.answer: Answer | None = None
        self.port = 0
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/keys"

    async def start(self, ssl_context: Any = None) -> None:
        app = web.Application()
        app.router.add_get("/keys", self._serve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=ssl_context)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.fetches += 1
        if self.answer is not None:
            return await self.answer(request)
        return web.json_response({"keys": [signer.jwk for signer in self.keys]})


class Clock:
    """Monotonic seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(Signer("one"))
    await endpoint.start()
    yield endpoint
    await endpoint.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def login(endpoint: Endpoint, clock: Clock) -> AsyncIterator[JwtAuthenticator]:
    login = JwtAuthenticator(JwtVerifier(CONFIG), UrlKeys(endpoint.url, clock=clock))
    await login.start()
    yield login
    await login.close()


async def test_a_login_with_fetched_keys(endpoint: Endpoint, login: JwtAuthenticator) -> None:
    identity = await login.authenticate(endpoint.keys[0].token())
    assert isinstance(identity, Identity) and identity.tenant == "acme"
    for _ in range(20):
        await login.authenticate(endpoint.keys[0].token())
    assert endpoint.fetches == 1


async def test_a_rotated_key_is_found_when_it_is_first_used(
    endpoint: Endpoint, login: JwtAuthenticator, clock: Clock
) -> None:
    old, new = endpoint.keys[0], Signer("two")
    endpoint.keys = [new]
    clock.now += jwks.MIN_REFRESH_SECONDS
    assert isinstance(await login.authenticate(new.token()), Identity)
    assert endpoint.fetches == 2
    assert isinstance(await login.authenticate(old.token()), JwtFailure)


async def test_a_flood_of_unknown_kids_does_not_reach_the_endpoint(
    endpoint: Endpoint, login: JwtAuthenticator, clock: Clock
) -> None:
    strangers = [Signer(f"stranger-{n}").token() for n in range(50)]
    for _ in range(3):
        clock.now += jwks.MIN_REFRESH_SECONDS
        outcomes = await asyncio.gather(*(login.authenticate(token) for token in strangers))
        assert all(
            isinstance(outcome, JwtFailure) and outcome.problem is JwtProblem.UNKNOWN_KEY
            for outcome in outcomes
        )
    assert endpoint.fetches == 1 + 3
    assert isinstance(await login.authenticate(endpoint.keys[0].token()), Identity)


async def test_other_failures_do_not_ask_for_keys(
    endpoint: Endpoint, login: JwtAuthenticator, clock: Clock
) -> None:
    clock.now += jwks.MIN_REFRESH_SECONDS
    for token in ("", "x.y.z", endpoint.keys[0].token(exp=1), endpoint.keys[0].token(aud="x")):
        assert isinstance(await login.authenticate(token), JwtFailure)
    assert endpoint.fetches == 1


async def test_a_client_that_leaves_does_not_cancel_the_fetch_of_others(
    endpoint: Endpoint, login: JwtAuthenticator, clock: Clock
) -> None:
    new = Signer("two")
    asked, release = asyncio.Event(), asyncio.Event()

    async def wait(_request: web.Request) -> web.StreamResponse:
        asked.set()
        await release.wait()
        return web.json_response({"keys": [new.jwk]})

    endpoint.answer = wait
    clock.now += jwks.MIN_REFRESH_SECONDS
    leaver = asyncio.create_task(login.authenticate(new.token()))
    stayer = asyncio.create_task(login.authenticate(new.token()))
    await asked.wait()
    leaver.cancel()
    release.set()
    assert isinstance(await stayer, Identity)
    assert endpoint.fetches == 2


async def _html(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>down for maintenance</html>")


async def _error(_request: web.Request) -> web.StreamResponse:
    return web.json_response({"keys": []}, status=503)


async def _empty(_request: web.Request) -> web.StreamResponse:
    return web.json_response({"keys": []})


async def _redirect(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/other"})


async def _huge(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        for _ in range(64):
            await response.write(b" " * 65536)
    except ConnectionError:
        pass
    return response


async def _broken(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.mark.parametrize("answer", [_html, _error, _empty, _redirect, _huge, _broken])
async def test_a_bad_answer_leaves_the_old_keys(
    endpoint: Endpoint,
    login: JwtAuthenticator,
    clock: Clock,
    answer: Answer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoint.answer = answer
    clock.now += jwks.MIN_REFRESH_SECONDS
    with caplog.at_level(logging.WARNING):
        assert isinstance(await login.authenticate(Signer("two").token()), JwtFailure)
    assert endpoint.fetches > 1
    assert "keeping 1" in caplog.text
    assert isinstance(await login.authenticate(endpoint.keys[0].token()), Identity)


async def test_while_the_endpoint_is_down_old_keys_serve_and_then_new_ones(
    endpoint: Endpoint, login: JwtAuthenticator, clock: Clock
) -> None:
    old, new = endpoint.keys[0], Signer("two")
    await endpoint.stop()
    clock.now += jwks.MIN_REFRESH_SECONDS
    assert isinstance(await login.authenticate(new.token()), JwtFailure)
    assert isinstance(await login.authenticate(old.token()), Identity)
    endpoint.keys = [new]
    await endpoint.start()
    clock.now += jwks.MIN_REFRESH_SECONDS
    assert isinstance(await login.authenticate(new.token()), Identity)


async def test_a_slow_endpoint_is_given_up(endpoint: Endpoint) -> None:
    given_up = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await given_up.wait()
        return response

    endpoint.answer = hang
    keys = UrlKeys(endpoint.url, timeout=0.05)
    await keys.start()
    assert not keys.current()
    given_up.set()
    await keys.close()
    await keys.close()


async def test_keys_are_fetched_in_the_background(endpoint: Endpoint) -> None:
    new = Signer("two")
    keys = UrlKeys(endpoint.url, ttl=0.02, min_refresh=0.0)
    await keys.start()
    endpoint.keys = [new]
    await eventually(lambda: [key.kid for key in keys.current()] == ["two"])
    await keys.close()


async def test_an_endpoint_absent_at_the_start_is_found_later(endpoint: Endpoint) -> None:
    await endpoint.stop()
    keys = UrlKeys(endpoint.url, ttl=3600, min_refresh=0.0)
    await keys.start()
    assert not keys.current()
    await endpoint.start()
    await eventually(lambda: len(keys.current()) == 1)
    await keys.close()


async def test_https_is_verified(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    endpoint = Endpoint(Signer("one"))
    endpoint.scheme = "https"
    await endpoint.start(server_context(ServerTlsFiles(*authority.issue_server())))
    for trust, expected in ((client_context(authority.path), 1), (None, 0)):
        keys = UrlKeys(endpoint.url, ca=trust)
        await keys.start()
        assert len(keys.current()) == expected
        await keys.close()
    await endpoint.stop()


@pytest.mark.parametrize(
    "url",
    [
        "https://login.example.com/keys",
        "http://127.0.0.1:8/k",
        "http://localhost/k",
        "http://[::1]/",
    ],
)
def test_urls_that_cannot_be_tampered_with(url: str) -> None:
    check_jwks_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example.com/keys",
        "http://localhost.example.com/",
        "http://127.0.0.1.example.com/",
        "http://10.0.0.1/",
        "ftp://127.0.0.1/",
        "file:///etc/keys",
        "https://",
        "https://user:secret@example.com/",
        "https://[/",
        "https://example.com:port/",
        "keys.json",
        "",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="jwks_url"):
        UrlKeys(url)


def write_keys(path: Path, *signers: Signer) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"keys": [signer.jwk for signer in signers]}))
    fresh.replace(path)


async def test_a_file_is_read_again_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, old, new = tmp_path / "keys.json", Signer("one"), Signer("two")
    write_keys(path, old)
    login = JwtAuthenticator(JwtVerifier(CONFIG), FileKeys(path))
    await login.start()
    assert isinstance(await login.authenticate(old.token()), Identity)
    write_keys(path, new)
    assert isinstance(await login.authenticate(new.token()), Identity)
    assert isinstance(await login.authenticate(old.token()), JwtFailure)
    for spoil in (lambda: path.write_text("{"), path.unlink):
        with caplog.at_level(logging.WARNING):
            spoil()
            assert isinstance(await login.authenticate(new.token()), Identity)
        assert "keeping the keys" in caplog.text
        caplog.clear()
    write_keys(path, old)
    assert isinstance(await login.authenticate(old.token()), Identity)
    await login.close()


@pytest.mark.parametrize("content", [None, "", "{}", '{"keys": []}', " " * (256 * 1024 + 1)])
def test_a_bad_file_is_named_at_the_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        FileKeys(path)
    assert str(path) in str(caught.value)
