"""Who a signed token (JWT, OIDC) says a client is. Pure; keys come from :mod:`gateway.io.jwks`.

A token is taken only if it could have one meaning: three canonical base64url parts, an asymmetric
algorithm from the configured list, a key of the kind that this algorithm needs, the expected
issuer and audience, and an expiry. Header fields that would let a token choose its own key
(``jwk``, ``jku``, ``x5u``, ``x5c``) are never read.
"""

from __future__ import annotations

import base64
import binascii
import enum
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import jwt
import orjson
from jwt.exceptions import InvalidTokenError, PyJWTError

from gateway.errors import ConfigError
from gateway.types import Identity, Role

MAX_TOKEN_BYTES = 16 * 1024
"""Longest token looked at; identity providers that list groups stay below this."""

MAX_NAME_LENGTH = 256
"""Longest tenant or user name taken from a claim, in characters."""

MAX_KEYS = 64
"""Keys kept from one key set; providers publish two or three."""

MIN_RSA_BITS = 2048

SUPPORTED_ALGORITHMS: Mapping[str, str] = MappingProxyType(
    {
        "RS256": "RSA",
        "RS384": "RSA",
        "RS512": "RSA",
        "PS256": "RSA",
        "PS384": "RSA",
        "PS512": "RSA",
        "ES256": "P-256",
        "ES384": "P-384",
        "ES512": "P-521",
        "EdDSA": "Ed25519",
    }
)
"""Algorithm to the kind of key it needs. Symmetric ones and ``none`` are not to be had: whoever
can verify with a shared secret could also sign."""

DEFAULT_ALGORITHMS = ("RS256", "ES256", "EdDSA")

_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)", re.ASCII)

_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""What ``typ`` may say: tokens made for another purpose (logout, DPoP proofs) are not logins."""

_MISSING = object()


class JwtProblem(enum.Enum):
    """The kinds of failure; what a client is told is the same for all."""

    MALFORMED = "malformed"
    ALGORITHM = "algorithm"
    UNKNOWN_KEY = "unknown_key"
    SIGNATURE = "signature"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    ISSUER = "issuer"
    AUDIENCE = "audience"
    CLAIMS = "claims"


@dataclass(frozen=True, slots=True)
class JwtFailure:
    """Why a token was refused; for logs and the audit only, never for the client.

    Attributes:
        problem: the kind of failure.
        reason: one phrase; holds no part of the token.
    """

    problem: JwtProblem
    reason: str


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key of an issuer.

    Attributes:
        kid: its name in the key set, or None.
        kind: ``RSA``, ``P-256``, ``P-384``, ``P-521`` or ``Ed25519``.
        algorithm: the one algorithm the issuer limits it to, or None.
        key: the key in PyJWT's form.
    """

    kid: str | None
    kind: str
    algorithm: str | None
    key: jwt.PyJWK = field(repr=False)

    def serves(self, algorithm: str) -> bool:
        """Tell whether the key may verify signatures of ``algorithm``."""
        return SUPPORTED_ALGORITHMS.get(algorithm) == self.kind and self.algorithm in (
            None,
            algorithm,
        )


class KeySet:
    """The public keys of an issuer at one moment. Immutable."""

    __slots__ = ("_by_kid", "_keys")

    def __init__(self, keys: Sequence[VerificationKey] = ()) -> None:
        self._keys = tuple(keys)
        self._by_kid: dict[str, tuple[VerificationKey, ...]] = {}
        for key in self._keys:
            if key.kid is not None:
                self._by_kid[key.kid] = (*self._by_kid.get(key.kid, ()), key)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[VerificationKey]:
        return iter(self._keys)

    def __repr__(self) -> str:
        return f"<KeySet {[key.kid for key in self._keys]}>"

    def find(self, kid: str | None, algorithm: str) -> VerificationKey | None:
        """Return the one key a token with this header must be verified with, or None.

        A token without ``kid`` is verified only where exactly one key could be meant.
        """
        candidates = self._keys if kid is None else self._by_kid.get(kid, ())
        serving = [key for key in candidates if key.serves(algorithm)]
        return serving[0] if len(serving) == 1 else None

    def has(self, kid: str) -> bool:
        """Tell whether a key of this name is in the set, whatever it is good for."""
        return kid in self._by_kid


def parse_jwks(document: bytes) -> KeySet:
    """Read a JSON Web Key Set; keys that cannot verify a login are left out.

    Left out are symmetric keys, private keys (a leaked one must not be trusted), keys for
    encryption, RSA keys under 2048 bits, and kinds that no supported algorithm uses.

    Raises:
        ValueError: the document is not a key set; the message is safe to show.
    """
    try:
        parsed = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise ValueError("the key set is not valid JSON") from None
    entries = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        raise ValueError('the key set has no list "keys"')
    keys = [key for entry in entries[:MAX_KEYS] if (key := _read_key(entry)) is not None]
    return KeySet(keys)


def _read_key(entry: Any) -> VerificationKey | None:
    """Turn one entry of a key set into a usable key, or None."""
    if not isinstance(entry, dict) or "d" in entry or "k" in entry:
        return None
    operations = entry.get("key_ops")
    if entry.get("use", "sig") != "sig" or (
        operations is not None and (not isinstance(operations, list) or "verify" not in operations)
    ):
        return None
    kid, algorithm = entry.get("kid"), entry.get("alg")
    kind = "RSA" if entry.get("kty") == "RSA" else entry.get("crv")
    if not isinstance(kind, str) or kind not in SUPPORTED_ALGORITHMS.values():
        return None
    if not isinstance(kid, str | None):
        return None
    if algorithm is not None and SUPPORTED_ALGORITHMS.get(algorithm) != kind:
        return None
    # The algorithm given here only selects PyJWT's key class: every check uses the token's own,
    # after `serves` has allowed it.
    implied = next(name for name, needs in SUPPORTED_ALGORITHMS.items() if needs == kind)
    try:
        key = jwt.PyJWK(entry, algorithm=algorithm or implied)
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    if kind == "RSA" and getattr(key.key, "key_size", 0) < MIN_RSA_BITS:
        return None
    return VerificationKey(kid, kind, algorithm, key)


@dataclass(frozen=True, slots=True)
class JwtConfig:
    """What a token must say to be taken, and how its claims become an identity.

    A claim is named as it stands in the token, or by a dotted path into nested objects
    (``realm_access.roles``); a claim whose own name holds dots is found first.

    Attributes:
        issuer: what ``iss`` must equal.
        audience: what ``aud`` must equal or contain.
        algorithms: accepted signature algorithms, out of :data:`SUPPORTED_ALGORITHMS`.
        tenant: the tenant of every token, or None to read it from ``tenant_claim``.
        tenant_claim: claim that names the tenant; must be present unless ``tenant`` is given.
        user_claim: claim that names the user.
        role_claim: claim with a role or a list of them, or None.
        roles: value of ``role_claim`` to role; the strongest role found counts.
        default_role: role where no value matches; None refuses the token.
        clock_skew: seconds that the issuer's clock may differ from ours.
        max_token_bytes: tokens longer than this are refused unread.
    """

    issuer: str
    audience: str
    algorithms: tuple[str, ...] = DEFAULT_ALGORITHMS
    tenant: str | None = None
    tenant_claim: str = "tenant"
    user_claim: str = "sub"
    role_claim: str | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    default_role: Role | None = Role.USER
    clock_skew: float = 30.0
    max_token_bytes: int = MAX_TOKEN_BYTES

    def __post_init__(self) -> None:
        """Check what can be checked without a token.

        Raises:
            ConfigError: a value cannot work, or would not be safe.
        """
        if not self.issuer or not self.audience:
            raise ConfigError("jwt: issuer and audience must both be given")
        if not self.algorithms:
            raise ConfigError("jwt: algorithms must name at least one algorithm")
        for name in self.algorithms:
            if name not in SUPPORTED_ALGORITHMS:
                raise ConfigError(
                    f"jwt: algorithm {name!r} is not accepted; "
                    f"choose from {', '.join(SUPPORTED_ALGORITHMS)}"
                )
        if not 0 <= self.clock_skew <= 600:
            raise ConfigError("jwt: clock_skew must be between 0 and 600 seconds")
        if self.roles and self.role_claim is None:
            raise ConfigError("jwt: roles are mapped but role_claim is not set")

    @property
    def source(self) -> str:
        """How identities of this issuer are marked."""
        return f"jwt:{urlsplit(self.issuer).hostname or self.issuer}"


class JwtVerifier:
    """Verifies tokens of one issuer against keys it is given."""

    def __init__(self, config: JwtConfig) -> None:
        self.config = config
        self._allowed = frozenset(config.algorithms)
        self._jws = jwt.PyJWS(algorithms=list(config.algorithms))
        self._source = config.source

    def verify(self, token: str, keys: KeySet, now: float) -> Identity | JwtFailure:
        """Return who the token proves its bearer to be, or why it proves nothing.

        Args:
            token: what the client presented.
            keys: the issuer's keys.
            now: Unix time in seconds.

        Returns:
            An identity that ends when the token does, clock skew included; or a failure, of kind
            ``UNKNOWN_KEY`` where newer keys might help.
        """
        if len(token) > self.config.max_token_bytes:
            return JwtFailure(JwtProblem.MALFORMED, "token is too long")
        match = _TOKEN.fullmatch(token)
        if match is None:
            return JwtFailure(JwtProblem.MALFORMED, "token is not three base64url parts")
        parts = [_decode_part(part) for part in match.groups()]
        if None in parts:
            return JwtFailure(JwtProblem.MALFORMED, "token is not canonical base64url")
        header = _json_object(parts[0])
        if header is None:
            return JwtFailure(JwtProblem.MALFORMED, "header is not a JSON object")
        key = self._key_for(header, keys)
        if isinstance(key, JwtFailure):
            return key
        try:
            self._jws.decode_complete(token, key.key.key, algorithms=[header["alg"]])
        except (InvalidTokenError, PyJWTError, ValueError, TypeError):
            return JwtFailure(JwtProblem.SIGNATURE, "signature does not verify")
        claims = _json_object(parts[1])
        if claims is None:
            return JwtFailure(JwtProblem.MALFORMED, "claims are not a JSON object")
        return self._check_validity(claims, now) or self._identity(claims)

    def _key_for(self, header: dict[str, Any], keys: KeySet) -> VerificationKey | JwtFailure:
        algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
        if not isinstance(algorithm, str) or algorithm not in self._allowed:
            return JwtFailure(JwtProblem.ALGORITHM, "algorithm is not on the list")
        if "crit" in header:
            return JwtFailure(JwtProblem.MALFORMED, "header demands an extension")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            return JwtFailure(JwtProblem.MALFORMED, "token is of another type")
        if not isinstance(kid, str | None):
            return JwtFailure(JwtProblem.MALFORMED, "kid is not a string")
        key = keys.find(kid, algorithm)
        if key is not None:
            return key
        if kid is not None and keys.has(kid):
            return JwtFailure(JwtProblem.ALGORITHM, "key is not for this algorithm")
        return JwtFailure(JwtProblem.UNKNOWN_KEY, "no key for this token")

    def _check_validity(self, claims: dict[str, Any], now: float) -> JwtFailure | None:
        config, skew = self.config, self.config.clock_skew
        expiry = _number(claims.get("exp"))
        if expiry is None:
            return JwtFailure(JwtProblem.CLAIMS, "exp is missing or not a number")
        for name in ("nbf", "iat"):
            if name not in claims:
                continue
            start = _number(claims[name])
            if start is None:
                return JwtFailure(JwtProblem.CLAIMS, f"{name} is not a number")
            if start > now + skew:
                return JwtFailure(JwtProblem.NOT_YET_VALID, f"{name} is in the future")
        if now >= expiry + skew:
            return JwtFailure(JwtProblem.EXPIRED, "token has expired")
        if claims.get("iss") != config.issuer:
            return JwtFailure(JwtProblem.ISSUER, "issuer is another one")
        audience = claims.get("aud")
        if config.audience not in (audience if isinstance(audience, list) else [audience]):
            return JwtFailure(JwtProblem.AUDIENCE, "audience is another one")
        return None

    def _identity(self, claims: dict[str, Any]) -> Identity | JwtFailure:
        config = self.config
        tenant = config.tenant or _name(find_claim(claims, config.tenant_claim))
        if tenant is None:
            return JwtFailure(JwtProblem.CLAIMS, f"no tenant in claim {config.tenant_claim!r}")
        user = _name(find_claim(claims, config.user_claim))
        if user is None:
            return JwtFailure(JwtProblem.CLAIMS, f"no user in claim {config.user_claim!r}")
        role = self._role(claims)
        if role is None:
            return JwtFailure(JwtProblem.CLAIMS, f"no role in claim {config.role_claim!r}")
        expires_at = float(claims["exp"]) + config.clock_skew
        return Identity(tenant, user, role, expires_at, self._source)

    def _role(self, claims: dict[str, Any]) -> Role | None:
        config = self.config
        if config.role_claim is None:
            return config.default_role
        value = find_claim(claims, config.role_claim)
        values = value if isinstance(value, list) else [value]
        found = {config.roles[v] for v in values if isinstance(v, str) and v in config.roles}
        if Role.ADMIN in found:
            return Role.ADMIN
        return Role.USER if found else config.default_role


def find_claim(claims: Mapping[str, Any], path: str) -> Any:
    """Return a claim by its own name, else by a dotted path; None if there is none."""
    value = claims.get(path, _MISSING)
    if value is not _MISSING:
        return value
    value = claims
    for step in path.split("."):
        if not isinstance(value, dict) or step not in value:
            return None
        value = value[step]
    return value


def _name(value: Any) -> str | None:
    """Return a claim that can name a tenant or user: a short, printable, non-empty string."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_LENGTH:
        return None
    return value if value.isprintable() and value == value.strip() else None


def _number(value: Any) -> float | None:
    """Return a NumericDate claim, or None if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _decode_part(part: str) -> bytes | None:
    """Decode base64url without padding; None unless encoding the result gives the same text.

    The library's decoder skips foreign characters and ignores spare bits, so that one token would
    have many spellings.
    """
    try:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        return None
    return raw if base64.urlsafe_b64encode(raw).rstrip(b"=") == part.encode() else None


def _json_object(raw: bytes | None) -> dict[str, Any] | None:
    """Parse a JSON object, or None."""
    try:
        value = orjson.loads(raw or b"")
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
