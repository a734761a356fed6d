"""The admin API over HTTP: who may see what, paging, errors, and what hostile input gets."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.errors import EXIT_UNAVAILABLE, ConfigError, RegistryUnavailableError, StartupError
from gateway.io import admin
from gateway.io.admin import (
    AdminServer,
    ConflictError,
    Readiness,
    ReplicaInfo,
    SessionInfo,
    SessionPage,
    UnknownReplicaError,
    build_admin_app,
)

TOKEN = "adm1n-token"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
GUARDED = [
    ("GET", "/replicas"),
    ("GET", "/sessions"),
    ("POST", "/replicas/cli-0/drain"),
    ("POST", "/replicas/cli-0/undrain"),
    ("POST", "/replicas/cli-0/recycle"),
    ("POST", "/reload"),
]


class View:
    """A gateway with two replicas and some sessions."""

    def __init__(self) -> None:
        self.facts = Readiness(accepting=True, draining=False, replicas_up=2, replicas=2)
        self.states = {"cli-0": "up", "cli-1": "up"}
        self.all = [
            SessionInfo(
                f"s{n:03}", "acme" if n % 2 else "other", "ann", f"cli-{n % 3 % 2}", 1, True
            )
            for n in range(250)
        ]
        self.failure: Exception | None = None
        self.stuck = False
        self.calls: list[str] = []

    async def _enter(self, call: str) -> None:
        self.calls.append(call)
        if self.stuck:
            await asyncio.Event().wait()
        if self.failure:
            raise self.failure

    async def readiness(self) -> Readiness:
        return self.facts

    async def metrics(self) -> bytes:
        return b"copilot_gateway_clients_open 1.0\n"

    def _info(self, name: str) -> ReplicaInfo:
        if name not in self.states:
            raise UnknownReplicaError(name)
        state = self.states[name]
        return ReplicaInfo(name, "127.0.0.1:4000", "default", state, supervised=True)

    async def replicas(self) -> list[ReplicaInfo]:
        await self._enter("replicas")
        return [self._info(name) for name in self.states]

    async def sessions(
        self, *, limit: int, cursor: str | None, tenant: str | None, replica: str | None
    ) -> SessionPage:
        await self._enter("sessions")
        found = [
            one
            for one in self.all
            if one.session > (cursor or "")
            and tenant in (None, one.tenant)
            and replica in (None, one.replica)
        ]
        more = found[limit - 1].session if len(found) > limit else None
        return SessionPage(found[:limit], more)

    async def drain(self, name: str) -> ReplicaInfo:
        await self._enter(f"drain {name}")
        self._info(name)
        self.states[name] = "draining"
        return self._info(name)

    async def undrain(self, name: str) -> ReplicaInfo:
        await self._enter(f"undrain {name}")
        self.states[name] = "up"
        return self._info(name)

    async def recycle(self, name: str) -> ReplicaInfo:
        await self._enter(f"recycle {name}")
        raise ConflictError(f"{name} was not started by the gateway")

    async def reload(self) -> list[str]:
        await self._enter("reload")
        return ["replica cli-2 added"]


class Records:
    """Collects what goes to the audit."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []

    def record(self, event: str, **fields: Any) -> None:
        self.all.append((event, fields))


class Api:
    """A running admin API and a client for it."""

    def __init__(self, **options: Any) -> None:
        self.view = View()
        self.audit = Records()
        token = options.pop("token", TOKEN)
        self.server = AdminServer(build_admin_app(self.view, token, audit=self.audit, **options))
        self.port = 0

    async def __aenter__(self) -> Api:
        self.port = await self.server.start_tcp("127.0.0.1", 0)
        self.http = aiohttp.ClientSession(f"http://127.0.0.1:{self.port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()
        await self.server.close()

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with self.http.request(method, path, **options) as answer:
            return answer.status, await answer.json()

    async def raw(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 15)
        writer.close()
        await writer.wait_closed()
        return answer


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with Api() as running:
        yield running


async def test_livez_needs_neither_token_nor_replicas(api: Api) -> None:
    api.view.facts = Readiness(accepting=False, draining=True, replicas_up=0, replicas=0)
    assert await api.call("GET", "/livez") == (200, {"status": "alive"})


async def test_readyz_when_ready(api: Api) -> None:
    status, body = await api.call("GET", "/readyz")
    assert status == 200
    assert body == {
        "ready": True,
        "reasons": [],
        "accepting": True,
        "draining": False,
        "replicas_up": 2,
        "replicas": 2,
    }


@pytest.mark.parametrize(
    ("facts", "reasons"),
    [
        (Readiness(True, False, 0, 3), ["none of 3 replicas is up"]),
        (Readiness(False, False, 1, 1), ["no listener accepts connections"]),
        (Readiness(False, True, 1, 1), ["the gateway is shutting down"]),
        (Readiness(True, True, 0, 1), ["the gateway is shutting down", "none of 1 replicas is up"]),
        (Readiness(True, False, 1, 1, ("the registry is away",)), ["the registry is away"]),
    ],
)
async def test_readyz_says_why_not(api: Api, facts: Readiness, reasons: list[str]) -> None:
    api.view.facts = facts
    status, body = await api.call("GET", "/readyz")
    assert (status, body["ready"], body["reasons"]) == (503, False, reasons)


async def test_metrics_are_open_by_default(api: Api) -> None:
    async with api.http.get("/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert await answer.read() == b"copilot_gateway_clients_open 1.0\n"


async def test_metrics_behind_the_token() -> None:
    async with Api(open_metrics=False) as api:
        assert (await api.call("GET", "/metrics"))[0] == 401
        async with api.http.get("/metrics", headers=BEARER) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer caf\u00e9",
        "Bearer " + "x" * 4000,
    ],
)
async def test_without_the_token_nothing_is_shown_or_done(
    api: Api, method: str, path: str, given: str | None
) -> None:
    headers = {} if given is None else {"Authorization": given}
    async with api.http.request(method, path, headers=headers) as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
        assert (await answer.json())["error"]["code"] == "unauthorized"
    assert api.view.calls == []
    recorded = [event for event, _ in api.audit.all]
    assert recorded == ([] if given is None else ["authentication"])


async def test_two_authorization_headers_are_refused(api: Api) -> None:
    request = (
        f"GET /replicas HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    )
    assert (await api.raw(request.encode())).startswith((b"HTTP/1.1 401", b"HTTP/1.0 400"))
    assert api.view.calls == []


async def test_the_scheme_is_case_insensitive(api: Api) -> None:
    status, _ = await api.call("GET", "/replicas", headers={"Authorization": f"bearer {TOKEN}"})
    assert status == 200


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_a_gateway_without_admin_token_says_so(method: str, path: str) -> None:
    async with Api(token=None) as api:
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer None"}):
            status, body = await api.call(method, path, headers=headers)
            assert (status, body["error"]["code"]) == (403, "no_admin_token")
            assert "COPILOT_GATEWAY_ADMIN_TOKEN" in body["error"]["message"]
        assert api.view.calls == []


@pytest.mark.parametrize("token", ["", " ", "two words", "line\nbreak", "caf\u00e9"])
def test_a_token_that_no_client_could_send_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match=r"admin\.token"):
        build_admin_app(View(), token)


async def test_replicas(api: Api) -> None:
    status, body = await api.call("GET", "/replicas", headers=BEARER)
    assert status == 200
    assert [one["name"] for one in body["replicas"]] == ["cli-0", "cli-1"]
    assert body["replicas"][0] == {
        "name": "cli-0",
        "address": "127.0.0.1:4000",
        "pool": "default",
        "state": "up",
        "supervised": True,
        "version": None,
        "pid": None,
        "links": 0,
        "sessions": 0,
        "in_flight": 0,
        "ejections": 0,
        "restarts": 0,
        "probe_seconds": None,
        "drained": False,
        "reason": None,
        "served": 0,
    }


async def test_sessions_are_paged(api: Api) -> None:
    seen: list[str] = []
    sizes: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        params = {"limit": "110"} | ({"cursor": cursor} if cursor else {})
        _, body = await api.call("GET", "/sessions", headers=BEARER, params=params)
        seen += [one["session"] for one in body["sessions"]]
        sizes.append(len(body["sessions"]))
        cursor = body["cursor"]
    assert sizes == [110, 110, 30]
    assert seen == [one.session for one in api.view.all]


async def test_sessions_are_filtered(api: Api) -> None:
    params = {"tenant": "acme", "replica": "cli-1"}
    _, body = await api.call("GET", "/sessions", headers=BEARER, params=params)
    assert {(one["tenant"], one["replica"]) for one in body["sessions"]} == {("acme", "cli-1")}
    _, body = await api.call("GET", "/sessions", headers=BEARER)
    assert len(body["sessions"]) == admin.DEFAULT_LIMIT


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=ten",
        "limit=",
        "limit=%D9%A3",  # an Arabic digit
        "limit=1&limit=2",
        "cursor=",
        "tenant=a%0Ab",
        "replica=" + "x" * 300,
        "user=ann",
    ],
)
async def test_a_wrong_query_is_refused(api: Api, query: str) -> None:
    status, body = await api.call("GET", f"/sessions?{query}", headers=BEARER)
    assert (status, body["error"]["code"]) == (400, "bad_request")
    assert api.view.calls == []


async def test_drain_and_undrain(api: Api) -> None:
    status, body = await api.call("POST", "/replicas/cli-0/drain", headers=BEARER)
    assert (status, body["replica"]["state"]) == (202, "draining")
    status, body = await api.call("POST", "/replicas/cli-0/undrain", headers=BEARER)
    assert (status, body["replica"]["state"]) == (202, "up")
    assert api.view.calls == ["drain cli-0", "undrain cli-0"]
    events = [(event, fields["target"], fields["outcome"]) for event, fields in api.audit.all]
    assert events == [("admin.drain", "cli-0", "ok"), ("admin.undrain", "cli-0", "ok")]
    assert api.audit.all[0][1]["peer"].startswith("127.0.0.1:")


async def test_actions_that_cannot_be_done(api: Api) -> None:
    status, body = await api.call("POST", "/replicas/nobody/drain", headers=BEARER)
    assert (status, body["error"]["code"]) == (404, "unknown_replica")
    status, body = await api.call("POST", "/replicas/a%0Ab/drain", headers=BEARER)
    assert (status, body["error"]["code"]) == (404, "unknown_replica")
    status, body = await api.call("POST", "/replicas/cli-0/recycle", headers=BEARER)
    assert (status, body["error"]["code"]) == (409, "conflict")
    assert [fields["outcome"] for _, fields in api.audit.all] == ["denied", "denied"]


async def test_reload(api: Api) -> None:
    body = {"changes": ["replica cli-2 added"]}
    assert await api.call("POST", "/reload", headers=BEARER) == (200, body)
    api.view.failure = ConfigError("limits.frame: must be a size")
    status, body = await api.call("POST", "/reload", headers=BEARER)
    assert (status, body["error"]["code"]) == (422, "bad_config")
    assert body["error"]["message"] == "limits.frame: must be a size"
    assert [fields["outcome"] for _, fields in api.audit.all] == ["ok", "denied"]


async def test_the_registry_being_away_is_said(api: Api) -> None:
    api.view.failure = RegistryUnavailableError("redis://user:secret@host")
    status, body = await api.call("GET", "/sessions", headers=BEARER)
    assert (status, body["error"]["code"]) == (503, "registry_unavailable")
    assert "secret" not in str(body)


async def test_a_bug_is_logged_and_not_shown(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    api.view.failure = RuntimeError("inner detail")
    with caplog.at_level(logging.ERROR):
        status, body = await api.call("GET", "/replicas", headers=BEARER)
    assert (status, body["error"]["code"]) == (500, "internal_error")
    assert "inner detail" not in str(body)
    assert "inner detail" in caplog.text


async def test_an_answer_that_takes_too_long(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "VIEW_TIMEOUT", 0.05)
    api.view.stuck = True
    status, body = await api.call("POST", "/replicas/cli-0/drain", headers=BEARER)
    assert (status, body["error"]["code"]) == (504, "timeout")
    assert api.audit.all[-1][1]["outcome"] == "failed"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/replicas/", 404, "not_found"),
        ("GET", "/livez/../replicas", 401, "unauthorized"),
        ("GET", "/replicas/cli-0/drain", 405, "method_not_allowed"),
        ("DELETE", "/sessions", 405, "method_not_allowed"),
        ("POST", "/metrics", 405, "method_not_allowed"),
    ],
)
async def test_other_paths_and_methods(
    api: Api, method: str, path: str, status: int, code: str
) -> None:
    async with api.http.request(method, path) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]["code"] == code
        assert ("Allow" in answer.headers) == (status == 405)
    assert api.view.calls == []


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/replicas", "/nothing"])
async def test_every_answer_has_the_security_headers_and_no_banner(api: Api, path: str) -> None:
    async with api.http.get(path) as answer:
        assert answer.headers["Server"] == "copilot-gateway"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    "data",
    [
        b"Content-Length: 17\r\n\r\n" + b'{"jsonrpc":"2.0"}',
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    ],
)
async def test_what_is_not_http_gets_400_without_a_banner(
    api: Api, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        answer = await api.raw(data)
    assert answer.split(b" ", 2)[1] == b"400"
    assert b"aiohttp" not in answer
    assert b"Python" not in answer
    assert b'"code":"bad_request"' in answer
    assert caplog.records == []


@pytest.mark.parametrize(
    "headers",
    [b"Content-Length: 1000000\r\n", b"Transfer-Encoding: chunked\r\n"],
)
async def test_a_large_body_is_refused_unread(api: Api, headers: bytes) -> None:
    request = b"POST /reload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s\r\n" % (
        TOKEN.encode(),
        headers,
    )
    assert (await api.raw(request)).startswith(b"HTTP/1.1 413")
    assert api.view.calls == []


async def test_a_connection_without_a_request_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "IDLE_TIMEOUT", 0.1)
    async with Api() as api:
        assert await api.raw(b"") == b""
        assert await api.raw(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ") == b""


async def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    audit = Records()
    server = AdminServer(build_admin_app(View(), TOKEN, audit=audit))
    await server.start_unix(path)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http,
            http.post("http://gateway/replicas/cli-0/drain", headers=BEARER) as answer,
        ):
            assert answer.status == 202
    finally:
        await server.close()
    assert not path.exists()
    assert audit.all[0][1]["peer"] == "unix socket"


async def test_addresses_that_cannot_be_had(tmp_path: Path) -> None:
    server = AdminServer(build_admin_app(View(), TOKEN))
    other = AdminServer(build_admin_app(View(), TOKEN))
    port = await server.start_tcp("127.0.0.1", 0)
    try:
        with pytest.raises(StartupError, match=rf"127\.0\.0\.1:{port}: Address") as caught:
            await other.start_tcp("127.0.0.1", port)
        assert caught.value.exit_status == EXIT_UNAVAILABLE
        file = tmp_path / "file"
        file.write_text("precious")
        with pytest.raises(StartupError, match="admin socket"):
            await other.start_unix(file)
        assert file.read_text() == "precious"
        umask = os.umask(0)
        os.umask(umask)
        assert umask != 0o177
    finally:
        await server.close()
        await other.close()
        await other.close()


async def test_closing_lets_a_request_end() -> None:
    async with Api() as api:
        release = asyncio.Event()
        entered = asyncio.Event()

        async def slow() -> list[str]:
            entered.set()
            await release.wait()
            return ["done"]

        api.view.reload = slow  # type: ignore[method-assign]
        request = asyncio.create_task(api.call("POST", "/reload", headers=BEARER))
        await entered.wait()
        closing = asyncio.create_task(api.server.close())
        await asyncio.sleep(0)
        release.set()
        assert await request == (200, {"changes": ["done"]})
        await closing
