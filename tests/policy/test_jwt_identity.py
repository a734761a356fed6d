from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gateway.errors import ConfigError
from gateway.policy.jwt_identity import (
    JwtConfig,
    JwtFailure,
    JwtProblem,
    JwtVerifier,
    KeySet,
    find_claim,
    parse_jwks,
)
from gateway.types import Identity, Role

NOW = 1_800_000_000.0
ISSUER = "https://login.example.com/tenant"
CONFIG = JwtConfig(issuer=ISSUER, audience="copilot-gateway", clock_skew=10)

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
EC_384_KEY = ec.generate_private_key(ec.SECP384R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, **fields: Any) -> dict[str, Any]:
    """The public half of a key as an entry of a key set."""
    algorithm: Any = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
    }[
        next(
            kind
            for kind in (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)
            if isinstance(key, kind)
        )
    ]
    return {**json.loads(algorithm.to_jwk(key.public_key())), **fields}


def key_set(*entries: dict[str, Any]) -> KeySet:
    return parse_jwks(json.dumps({"keys": entries}).encode())


KEYS = key_set(
    jwk(RSA_KEY, kid="rsa", use="sig"),
    jwk(EC_KEY, kid="ec", alg="ES256"),
    jwk(EC_384_KEY, kid="ec384"),
    jwk(ED_KEY, kid="ed"),
)


def claims(**changes: Any) -> dict[str, Any]:
    base = {
        "iss": ISSUER,
        "aud": "copilot-gateway",
        "sub": "ada",
        "tenant": "acme",
        "iat": NOW - 60,
        "nbf": NOW - 60,
        "exp": NOW + 3600,
    }
    return {name: value for name, value in (base | changes).items() if value is not None}


def sign(
    payload: dict[str, Any] | None = None,
    key: Any = RSA_KEY,
    algorithm: str = "RS256",
    kid: str | None = "rsa",
    **header: Any,
) -> str:
    headers = header if kid is None else {"kid": kid, **header}
    return jwt.encode(claims() if payload is None else payload, key, algorithm, headers)


def encode_part(part: Any) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def verify(token: str, keys: KeySet = KEYS, config: JwtConfig = CONFIG) -> Identity | JwtFailure:
    return JwtVerifier(config).verify(token, keys, NOW)


def problem(outcome: Identity | JwtFailure) -> JwtProblem:
    assert isinstance(outcome, JwtFailure), outcome
    return outcome.problem


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA_KEY, "RS256", "rsa"), (EC_KEY, "ES256", "ec"), (ED_KEY, "EdDSA", "ed")],
)
def test_a_good_token_is_an_identity_that_ends_with_it(key: Any, algorithm: str, kid: str) -> None:
    assert verify(sign(key=key, algorithm=algorithm, kid=kid)) == Identity(
        "acme", "ada", Role.USER, NOW + 3600 + 10, "jwt:login.example.com"
    )


@pytest.mark.parametrize("algorithm", ["RS384", "PS256", "PS512", "ES384", "ES512"])
def test_an_algorithm_off_the_list_is_refused(algorithm: str) -> None:
    keys = {"ES384": EC_384_KEY, "ES512": ec.generate_private_key(ec.SECP521R1())}
    token = sign(key=keys.get(algorithm, RSA_KEY), algorithm=algorithm)
    assert problem(verify(token)) is JwtProblem.ALGORITHM


def test_an_algorithm_on_the_list_is_taken() -> None:
    config = JwtConfig(ISSUER, "copilot-gateway", algorithms=("PS512", "ES384"))
    assert isinstance(verify(sign(algorithm="PS512"), config=config), Identity)
    token = sign(key=EC_384_KEY, algorithm="ES384", kid="ec384")
    assert isinstance(verify(token, config=config), Identity)


@pytest.mark.parametrize("name", ["none", "None", "NONE", "", "HS256", "hs256", "RS257"])
@pytest.mark.parametrize("signature", ["", "AA"])
def test_unsigned_tokens_are_refused(name: str, signature: str) -> None:
    head = encode_part({"alg": name, "kid": "rsa"})
    assert isinstance(verify(f"{head}.{encode_part(claims())}.{signature}"), JwtFailure)


@pytest.mark.parametrize("key_format", ["pem", "der", "jwk"])
def test_hs256_signed_with_the_public_key_is_refused(key_format: str) -> None:
    public = RSA_KEY.public_key()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    secret = {
        "pem": public.public_bytes(serialization.Encoding.PEM, spki),
        "der": public.public_bytes(serialization.Encoding.DER, spki),
        "jwk": json.dumps(jwk(RSA_KEY)).encode(),
    }[key_format]
    signed = f"{encode_part({'alg': 'HS256', 'kid': 'rsa'})}.{encode_part(claims())}"
    mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    assert problem(verify(f"{signed}.{encode_part(mac)}")) is JwtProblem.ALGORITHM


@pytest.mark.parametrize("name", ["HS256", "none", "ES256K", "rs256"])
def test_symmetric_and_unsigned_algorithms_cannot_be_configured(name: str) -> None:
    with pytest.raises(ConfigError, match="not accepted"):
        JwtConfig(ISSUER, "a", algorithms=("RS256", name))


def test_a_key_of_another_kind_is_not_used() -> None:
    token = sign(key=EC_KEY, algorithm="ES256", kid="rsa")
    assert problem(verify(token)) is JwtProblem.ALGORITHM


def test_a_key_of_another_curve_is_not_used() -> None:
    signed = f"{encode_part({'alg': 'ES256', 'kid': 'ec384'})}.{encode_part(claims())}"
    assert problem(verify(f"{signed}.{encode_part(bytes(64))}")) is JwtProblem.ALGORITHM


def test_a_key_limited_to_another_algorithm_is_not_used() -> None:
    keys = key_set(jwk(RSA_KEY, kid="rsa", alg="PS256"))
    assert problem(verify(sign(), keys)) is JwtProblem.ALGORITHM


def test_the_signature_must_be_by_the_named_key() -> None:
    assert problem(verify(sign(key=OTHER_RSA_KEY))) is JwtProblem.SIGNATURE


def test_changed_claims_do_not_verify() -> None:
    head, _, signature = sign().split(".")
    changed = encode_part(claims(tenant="other"))
    assert problem(verify(f"{head}.{changed}.{signature}")) is JwtProblem.SIGNATURE


def test_keys_carried_by_the_token_are_ignored() -> None:
    token = sign(key=OTHER_RSA_KEY, kid="mine", jwk=jwk(OTHER_RSA_KEY), jku="http://127.0.0.1/x")
    assert problem(verify(token)) is JwtProblem.UNKNOWN_KEY


def test_an_unknown_kid_is_told_apart_so_that_keys_can_be_refreshed() -> None:
    assert problem(verify(sign(kid="next"))) is JwtProblem.UNKNOWN_KEY
    assert problem(verify(sign(), KeySet())) is JwtProblem.UNKNOWN_KEY


def test_after_rotation_the_new_key_counts_and_the_old_one_no_more() -> None:
    rotated = key_set(jwk(OTHER_RSA_KEY, kid="next"))
    assert isinstance(verify(sign(key=OTHER_RSA_KEY, kid="next"), rotated), Identity)
    assert problem(verify(sign(), rotated)) is JwtProblem.UNKNOWN_KEY


def test_without_kid_the_only_key_of_the_kind_is_used() -> None:
    assert isinstance(verify(sign(kid=None)), Identity)
    two = key_set(jwk(RSA_KEY, kid="a"), jwk(OTHER_RSA_KEY, kid="b"))
    assert problem(verify(sign(kid=None), two)) is JwtProblem.UNKNOWN_KEY


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"exp": NOW - 10}, JwtProblem.EXPIRED),
        ({"exp": 0}, JwtProblem.EXPIRED),
        ({"nbf": NOW + 11}, JwtProblem.NOT_YET_VALID),
        ({"iat": NOW + 11}, JwtProblem.NOT_YET_VALID),
        ({"iss": "https://login.example.com/other"}, JwtProblem.ISSUER),
        ({"iss": ISSUER + "/"}, JwtProblem.ISSUER),
        ({"iss": None}, JwtProblem.ISSUER),
        ({"aud": "other"}, JwtProblem.AUDIENCE),
        ({"aud": ["other", "copilot"]}, JwtProblem.AUDIENCE),
        ({"aud": "copilot-gateway-other"}, JwtProblem.AUDIENCE),
        ({"aud": {"copilot-gateway": 1}}, JwtProblem.AUDIENCE),
        ({"aud": None}, JwtProblem.AUDIENCE),
        ({"exp": None}, JwtProblem.CLAIMS),
        ({"exp": "9999999999"}, JwtProblem.CLAIMS),
        ({"exp": True}, JwtProblem.CLAIMS),
        ({"nbf": "x"}, JwtProblem.CLAIMS),
        ({"iat": []}, JwtProblem.CLAIMS),
        ({"tenant": None}, JwtProblem.CLAIMS),
        ({"tenant": ""}, JwtProblem.CLAIMS),
        ({"tenant": ["acme"]}, JwtProblem.CLAIMS),
        ({"tenant": "acme\n"}, JwtProblem.CLAIMS),
        ({"tenant": " acme"}, JwtProblem.CLAIMS),
        ({"tenant": "a" * 257}, JwtProblem.CLAIMS),
        ({"sub": None}, JwtProblem.CLAIMS),
        ({"sub": 7}, JwtProblem.CLAIMS),
        ({"sub": "ada\x00"}, JwtProblem.CLAIMS),
    ],
)
def test_claims_that_do_not_hold(changes: dict[str, Any], expected: JwtProblem) -> None:
    # Signed below PyJWT's own checks, as a broken issuer might.
    token = jwt.PyJWS().encode(
        json.dumps(claims(**changes)).encode(), RSA_KEY, "RS256", {"kid": "rsa"}
    )
    assert problem(verify(token)) is expected


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": NOW - 9},
        {"nbf": NOW + 10},
        {"iat": NOW + 10},
        {"nbf": None, "iat": None},
        {"aud": ["other", "copilot-gateway"]},
        {"exp": NOW + 0.5},
    ],
)
def test_claims_that_hold_within_the_clock_skew(changes: dict[str, Any]) -> None:
    identity = verify(sign(claims(**changes)))
    assert isinstance(identity, Identity)
    assert identity.expires_at is not None and identity.expires_at > NOW


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: "",
        lambda token: token[1:],
        lambda token: token[:-1],
        lambda token: "x" + token,
        lambda token: token + "A",
        lambda token: token + "=",
        lambda token: token + "==",
        lambda token: token + ".",
        lambda token: token + "\n",
        lambda token: token + "\0",
        lambda token: " " + token,
        lambda token: "Bearer " + token,
        lambda token: token + token,
        lambda token: token.replace(".", "..", 1),
        lambda token: token.rsplit(".", 1)[0] + ".",
        lambda token: token.rsplit(".", 1)[0],
        lambda token: token.replace("e", "\N{CYRILLIC SMALL LETTER IE}", 1),
        lambda token: "\N{FULLWIDTH LATIN SMALL LETTER E}" + token[1:],
        lambda token: token + "\ud800",
        lambda token: token + "é",
    ],
)
def test_a_token_with_anything_more_or_less_is_refused(spoil: Any) -> None:
    assert isinstance(verify(sign()), Identity)
    assert isinstance(verify(spoil(sign())), JwtFailure)


def test_a_second_spelling_of_the_signature_is_refused() -> None:
    token = sign(key=EC_KEY, algorithm="ES256", kid="ec")  # 64 bytes leave spare bits in the text
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spelling = token[:-1] + alphabet[alphabet.index(token[-1]) | 1]
    assert spelling != token
    assert base64.urlsafe_b64decode(spelling.split(".")[2] + "==") == base64.urlsafe_b64decode(
        token.split(".")[2] + "=="
    )
    assert problem(verify(spelling)) is JwtProblem.MALFORMED


def test_a_huge_token_is_refused_unread() -> None:
    token = sign(claims(groups=["g" * 40] * 500))
    assert len(token) > CONFIG.max_token_bytes
    assert verify(token) == JwtFailure(JwtProblem.MALFORMED, "token is too long")


@pytest.mark.parametrize("header", [{"crit": ["b64"], "b64": False}, {"crit": []}])
def test_demanded_extensions_are_refused(header: dict[str, Any]) -> None:
    head = encode_part({"alg": "RS256", "kid": "rsa", **header})
    assert problem(verify(f"{head}.{encode_part(claims())}.AAAA")) is JwtProblem.MALFORMED


@pytest.mark.parametrize("kind", ["logout+jwt", "dpop+jwt", "JOSE"])
def test_tokens_of_another_type_are_refused(kind: str) -> None:
    assert problem(verify(sign(typ=kind))) is JwtProblem.MALFORMED


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt"])
def test_login_types_are_taken(kind: str) -> None:
    assert isinstance(verify(sign(typ=kind)), Identity)


@pytest.mark.parametrize("part", [b"", b"[]", b"7", b"null", b"{", b"\xff", b'"x"'])
def test_parts_that_are_no_objects_are_refused(part: bytes) -> None:
    assert problem(verify(f"{encode_part(part)}.{encode_part(claims())}.AAAA")) is (
        JwtProblem.MALFORMED
    )
    token = jwt.PyJWS().encode(part, RSA_KEY, "RS256", {"kid": "rsa"})
    assert problem(verify(token)) is JwtProblem.MALFORMED


@pytest.mark.parametrize("kid", [7, ["rsa"], {"rsa": 1}, True])
def test_a_kid_of_another_type_is_refused(kid: Any) -> None:
    head = encode_part({"alg": "RS256", "kid": kid})
    assert problem(verify(f"{head}.{encode_part(claims())}.AAAA")) is JwtProblem.MALFORMED


def test_roles_and_names_come_from_configured_claims() -> None:
    config = JwtConfig(
        ISSUER,
        "copilot-gateway",
        tenant_claim="https://example.com/org",
        user_claim="profile.login",
        role_claim="realm_access.roles",
        roles={"gateway-admin": Role.ADMIN, "developer": Role.USER},
        default_role=None,
    )
    named = {"https://example.com/org": "acme", "profile": {"login": "ada"}}

    def role(value: Any) -> Role | JwtProblem:
        token = sign(claims(**named, realm_access={"roles": value}))
        outcome = verify(token, config=config)
        return outcome.role if isinstance(outcome, Identity) else outcome.problem

    assert role(["developer"]) is Role.USER
    assert role("developer") is Role.USER
    assert role(["x", "developer", "gateway-admin"]) is Role.ADMIN
    assert role([]) is JwtProblem.CLAIMS
    assert role(["admin"]) is JwtProblem.CLAIMS
    assert role({"gateway-admin": True}) is JwtProblem.CLAIMS
    assert role([["gateway-admin"]]) is JwtProblem.CLAIMS
    assert problem(verify(sign(claims(**named)), config=config)) is JwtProblem.CLAIMS


def test_a_fixed_tenant_needs_no_claim_and_believes_none() -> None:
    config = JwtConfig(ISSUER, "copilot-gateway", tenant="acme")
    identity = verify(sign(claims(tenant="other")), config=config)
    assert isinstance(identity, Identity) and identity.tenant == "acme"


def test_a_claims_own_name_wins_over_a_path() -> None:
    assert find_claim({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert find_claim({"a": {"b": 2}}, "a.b") == 2
    assert find_claim({"a": "text"}, "a.b") is None
    assert find_claim({}, "a") is None


def test_keys_that_cannot_prove_a_login_are_left_out() -> None:
    private = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY))
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    keys = key_set(
        {"kty": "oct", "k": encode_part(b"secret" * 8), "kid": "oct", "alg": "HS256"},
        {**private, "kid": "private"},
        jwk(small, kid="small"),
        jwk(RSA_KEY, kid="encryption", use="enc"),
        jwk(RSA_KEY, kid="sign-only", key_ops=["sign"]),
        jwk(RSA_KEY, kid="hs", alg="HS256"),
        jwk(EC_KEY, kid="curve", alg="ES384"),
        jwk(ec.generate_private_key(ec.SECP256K1()), kid="k1"),
        {"kty": "RSA", "n": "!", "e": "AQAB", "kid": "broken"},
        {"kty": "RSA", "kid": "empty"},
        jwk(RSA_KEY, kid=7),
        {"kty": "EC", "crv": ["P-256"]},
        {},
        jwk(RSA_KEY, kid="good", key_ops=["verify"]),
    )
    assert [key.kid for key in keys] == ["good"]


@pytest.mark.parametrize("document", [b"", b"<html>", b"[]", b"{}", b'{"keys": {}}', b"\xff"])
def test_a_document_that_is_no_key_set(document: bytes) -> None:
    with pytest.raises(ValueError, match="key set"):
        parse_jwks(document)


def test_reprs_and_reasons_hold_no_part_of_the_token() -> None:
    token = sign(key=OTHER_RSA_KEY)
    outcome = verify(token)
    for part in token.split("."):
        assert part not in repr(outcome)
    assert "rsa" in repr(KEYS) and "key=" not in repr(next(iter(KEYS)))


@pytest.mark.parametrize(
    "fields",
    [
        {"issuer": ""},
        {"audience": ""},
        {"algorithms": ()},
        {"clock_skew": -1},
        {"clock_skew": 601},
        {"roles": {"a": Role.ADMIN}},
    ],
)
def test_configurations_that_cannot_work(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^jwt: "):
        JwtConfig(**{"issuer": ISSUER, "audience": "a", **fields})
