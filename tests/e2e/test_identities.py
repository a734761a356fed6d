"""Ways of proving who one is, on the whole program: listeners, TLS, JWT, tokens that end."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import signal
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gateway import errors
from gateway.io.tls import client_context
from gateway.testing.model_server import ModelServer
from tests.e2e.conftest import Fleet, MakeFleet
from tests.support.certificates import Authority
from tests.support.gateway import GatewayProcess, remove_tokens
from tests.support.rpc import ConnectionEnded, RpcClient, RpcFault
from tests.support.sessions import run_turn
from tests.support.wait import eventually

HEADER = b"PROXY TCP4 192.0.2.7 127.0.0.1 5555 4321\r\n"


def ports(gateway: GatewayProcess) -> list[int]:
    """Return the ports it listens on: of ``--listen``, then of the listeners."""
    return [int(line.split()[-1]) for line in gateway.stdout if "listening on port" in line]


async def dial(port: int, context: ssl.SSLContext | None = None, before: bytes = b"") -> RpcClient:
    """Connect; ``before`` goes ahead of everything, the TLS handshake included."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(before)
    name = "localhost" if context is not None else None
    return RpcClient(*await asyncio.open_connection(sock=sock, ssl=context, server_hostname=name))


async def test_every_kind_of_listener_at_once(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """One gateway, three more doors; each lets in those it should, as whom it should."""
    fleet = await make_fleet("fake", 1)
    ca = Authority(tmp_path)
    certificate, key = ca.issue_server()
    gateway = await fleet.process(
        "--workers",
        "2",
        config=f"""
        [[listeners]]
        name = "lab"
        address = "127.0.0.1:0"
        networks = ["127.0.0.0/8"]
        identity = {{ tenant = "lab", user = "all" }}

        [[listeners]]
        name = "mtls"
        address = "127.0.0.1:0"
        tls = {{ certificate = "{certificate}", key = "{key}", client_ca = "{ca.path}" }}
        certificate_identity = {{ tenant_from = "O", user_from = "CN" }}

        [[listeners]]
        name = "balancer"
        address = "127.0.0.1:0"
        networks = ["192.0.2.0/24"]
        proxy_protocol = true
        proxy_networks = ["127.0.0.1"]
        tls = {{ certificate = "{certificate}", key = "{key}" }}
        """,
    )
    plain, lab, mtls, balancer = ports(gateway)

    async with await dial(lab) as old:
        assert isinstance((await old.request("ping"))["timestamp"], int)
        await old.request("session.create", fleet.params("of-the-lab"))
        assert await run_turn(old, "of-the-lab", "hi")

        ann = client_context(ca.path, *ca.issue("ann", [("CN", "ann"), ("O", "acme")]))
        async with await dial(mtls, ann) as client:
            assert (await client.request("connect"))["ok"]
            await client.request("session.create", fleet.params("of-ann"))
            assert await run_turn(client, "of-ann", "hi")
            with pytest.raises(RpcFault, match="not found"):
                await client.request("session.resume", fleet.params("of-the-lab"))

        token = gateway.add_token("acme", "ann")
        await eventually(lambda: gateway.text.count("tokens=1") == 2)
        async with await dial(balancer, client_context(ca.path), HEADER) as client:
            await client.request("connect", {"token": token})
            # The same user by another door: her session is hers here, too.
            await client.request("session.resume", fleet.params("of-ann"))

    async with await dial(plain) as client:
        with pytest.raises(RpcFault) as caught:
            await client.request("ping")
        assert caught.value.code == errors.AUTHENTICATION_REQUIRED


async def test_a_renewed_certificate_is_served_after_sighup(
    make_fleet: MakeFleet, tmp_path: Path
) -> None:
    fleet = await make_fleet("fake", 1)
    ca = Authority(tmp_path)
    certificate, key = ca.issue_server()
    gateway = await fleet.process(
        config=f"""
        [auth]
        token_poll = "1h"
        [[listeners]]
        address = "127.0.0.1:0"
        tls = {{ certificate = "{certificate}", key = "{key}" }}
        """
    )
    _, port = ports(gateway)
    context = client_context(ca.path)

    async def serial() -> Any:
        async with await dial(port, context) as client:
            return client.transport.get_extra_info("peercert")["serialNumber"]

    async with await dial(port, context) as early:
        await early.request("connect", {"token": gateway.token})
        before = await serial()
        ca.issue_server()
        assert await serial() == before
        gateway.signal(signal.SIGHUP)
        await gateway.said("reloaded TLS certificate")
        assert await serial() != before
        await early.request("ping")


class Issuer:
    """An issuer of tokens whose keys are in a file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "jwks.json"
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        self.path.write_text(json.dumps({"keys": [{**public, "kid": "k1"}]}))

    def token(self, seconds: float = 600, **claims: Any) -> str:
        payload = {
            "iss": "https://login.example",
            "aud": "gateway",
            "sub": "ann",
            "tenant": "acme",
            "exp": time.time() + seconds,
            **claims,
        }
        return jwt.encode(payload, self._key, "ES256", headers={"kid": "k1"})

    def config(self, more: str = "") -> str:
        return f"""
        [auth.jwt]
        issuer = "https://login.example"
        audience = "gateway"
        jwks_file = "{self.path}"
        clock_skew = 0
        {more}
        """


async def test_signed_tokens_beside_the_gateways_own(fakes: Fleet, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path)
    gateway = await fakes.process(
        config=issuer.config('role_claim = "groups"\nroles = { ops = "admin" }')
    )
    ann = await fakes.client(gateway, issuer.token())
    await ann.request("session.create", fakes.params("s"))
    assert await run_turn(ann, "s", "hi")
    bob = await fakes.client(gateway, issuer.token(sub="bob"))
    with pytest.raises(RpcFault, match="not found"):
        await bob.request("session.resume", fakes.params("s"))
    boss = await fakes.client(gateway, issuer.token(sub="boss", groups=["x", "ops"]))
    await boss.request("session.resume", fakes.params("s"))
    await fakes.client(gateway)


def _none(issuer: Issuer) -> str:
    return jwt.encode({"sub": "ann", "tenant": "acme"}, None, "none")


def _hs256(issuer: Issuer) -> str:
    """Sign with the public key as if it were a shared secret: the classic confusion."""
    claims = {"iss": "https://login.example", "aud": "gateway", "sub": "a", "exp": time.time() + 9}
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "kid": "k1"}, claims)
    ]
    signature = hmac.digest(issuer.path.read_bytes(), b".".join(parts), "sha256")
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(_none, id="alg none"),
        pytest.param(_hs256, id="key confusion"),
        pytest.param(lambda one: one.token(-5), id="expired"),
        pytest.param(lambda one: one.token(aud="another"), id="other audience"),
        pytest.param(lambda one: one.token(iss="https://evil.example"), id="other issuer"),
        pytest.param(lambda one: one.token(nbf=time.time() + 60), id="not yet valid"),
        pytest.param(lambda one: one.token(tenant=""), id="no tenant"),
        pytest.param(lambda one: one.token() + "=", id="padded"),
        pytest.param(lambda one: one.token()[:-2], id="cut"),
        pytest.param(lambda one: one.token() + ".x", id="four parts"),
    ],
)
async def test_forged_tokens_are_refused(fakes: Fleet, tmp_path: Path, forge: Any) -> None:
    issuer = Issuer(tmp_path)
    gateway = await fakes.process(config=issuer.config())
    client = await fakes.bare(gateway)
    with pytest.raises(RpcFault) as caught:
        await client.request("connect", {"token": forge(issuer)})
    assert caught.value.code == errors.AUTHENTICATION_FAILED
    with pytest.raises(RpcFault) as caught:
        await client.request("session.list")
    assert caught.value.code == errors.AUTHENTICATION_REQUIRED


async def test_a_signed_token_ends_and_a_fresh_one_extends_the_stay(
    fakes: Fleet, tmp_path: Path
) -> None:
    issuer = Issuer(tmp_path)
    gateway = await fakes.process(config=issuer.config())
    ends = await fakes.client(gateway, issuer.token(2))
    stays = await fakes.client(gateway, issuer.token(2))
    with pytest.raises(RpcFault):
        await stays.request("connect", {"token": issuer.token(sub="bob")})
    assert (await stays.request("connect", {"token": issuer.token(600)}))["ok"]
    await ends.wait_ended()
    await stays.request("ping")


async def test_a_revoked_token_closes_its_connections_and_no_others(fakes: Fleet) -> None:
    gateway = await fakes.process(config='[auth]\ntoken_poll = "50ms"\n')
    first = gateway.add_token("acme", "ann")
    second = gateway.add_token("acme", "bob")
    await gateway.said("tokens=2")
    ann, bob = await fakes.client(gateway, first), await fakes.client(gateway, second)
    remove_tokens(gateway.tokens, user="ann")
    await ann.wait_ended()
    await bob.request("ping")
    with pytest.raises((RpcFault, ConnectionEnded)):
        await gateway.connect(first)


async def test_secrets_stay_out_of_the_log(fakes: Fleet, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path)
    gateway = await fakes.process("--log-level", "debug", config=issuer.config())
    for token in (issuer.token(), issuer.token(-5), "a-guessed-token", gateway.token):
        client = await fakes.bare(gateway)
        try:
            await client.request("connect", {"token": token})
        except RpcFault:
            pass
    await gateway.stop()
    text = gateway.text
    assert "authentication failed" in text
    assert gateway.token not in text
    assert "a-guessed-token" not in text
    assert "eyJ" not in text


async def test_rules_and_tenants_are_reloaded_for_connected_clients(fakes: Fleet) -> None:
    gateway = await fakes.process("--workers", "2", config="# nothing yet\n")
    client = await fakes.client(gateway)
    await client.request("session.create", fakes.params("s"))
    gateway.config.write_text(
        '[[policy.methods]]\neffect = "deny"\nmethods = ["session.send"]\n'
        '[[policy.params]]\nforbid = ["mcpServers"]\n'
    )
    gateway.signal(signal.SIGHUP)
    await gateway.said("reloaded")

    async def denied() -> bool:
        try:
            await client.request("session.send", {"sessionId": "s", "prompt": "x"})
        except RpcFault as fault:
            return fault.code == errors.FORBIDDEN
        return False

    await eventually(denied)
    with pytest.raises(RpcFault) as caught:
        await client.request("session.create", fakes.params("t", mcpServers={}))
    assert caught.value.code == errors.FORBIDDEN
    gateway.config.write_text("[nonsense]\n")
    gateway.signal(signal.SIGHUP)
    await gateway.said("not reloaded")
    await client.request("ping")


@pytest.mark.real
async def test_credentials_are_the_gateways_and_never_the_clients(
    make_fleet: MakeFleet, tmp_path: Path
) -> None:
    """The model is called with the operator's key, whatever the client brings."""
    fleet = await make_fleet("real", 1)
    assert isinstance(fleet.model, ModelServer)
    key = tmp_path / "key"
    key.write_text("operators-key")
    gateway = await fleet.process(
        config=f"""
        [[policy.params]]
        [policy.params.credentials.provider]
        type = "openai"
        baseUrl = "{fleet.model.base_url}"
        apiKey = {{ file = "{key}" }}
        """
    )
    client = await fleet.client(gateway)
    params = fleet.params("s")
    params["provider"]["apiKey"] = "clients-key"
    await client.request("session.create", params)
    assert await run_turn(client, "s", "hi")
    assert {one.authorization for one in fleet.model.requests} == {"Bearer operators-key"}
    with pytest.raises(RpcFault) as caught:
        await client.request("session.provider.getEndpoint", {"sessionId": "s"})
    assert caught.value.code == errors.FORBIDDEN
    await gateway.stop()
    assert "operators-key" not in gateway.text
