"""Opaque tokens: their form, their records, and proving who presents one. Pure.

A token is ``cgw_<id>_<secret>``. The id is public: it finds the record and may be logged. The
secret is 256 random bits. Records hold a SHA-256 of the whole token; a slow password hash would
defend nothing, because it protects secrets that can be guessed, and would let anyone burn a core
by presenting rubbish.

:mod:`gateway.io.token_file` keeps records in a file.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gateway.types import Identity, Role

ID_LENGTH = 12
SECRET_BYTES = 32
ENTROPY_BYTES = 8 + SECRET_BYTES
"""What :func:`make_token` wants: 8 bytes become the id, the rest the secret."""

MAX_PRESENTED = 4096
"""Longest token that is looked at; anything longer is wrong without being hashed."""

MAX_NOTE = 200

_TOKEN = re.compile(r"cgw_([a-z2-7]{12})_[A-Za-z0-9_-]{43}")
_ID = re.compile(r"[a-z2-7]{12}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_HASH = re.compile(r"[0-9a-f]{64}")

_NO_HASH = "0" * 64
"""Compared with when there is no record, so that a wrong id costs what a wrong secret costs."""

SOURCE_PREFIX = "token:"
STATIC_SOURCE = "static"


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What is stored of one token.

    Attributes:
        id: public part of the token.
        hash: SHA-256 of the whole token, in hex.
        tenant: tenant of the identity.
        user: user of the identity.
        role: role of the identity.
        created: Unix time in seconds.
        expires: Unix time in seconds from which it is worth nothing, or None.
        revoked: Unix time in seconds at which it was revoked, or None.
        note: free text for people.
    """

    id: str
    hash: str = field(repr=False)
    tenant: str
    user: str
    role: Role
    created: float
    expires: float | None = None
    revoked: float | None = None
    note: str = ""

    def is_good(self, now: float) -> bool:
        """Whether the token is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def identity(self) -> Identity:
        """Return who presents this token."""
        return Identity(self.tenant, self.user, self.role, self.expires, SOURCE_PREFIX + self.id)


def make_token(entropy: bytes) -> tuple[str, str]:
    """Return ``(id, token)`` made of :data:`ENTROPY_BYTES` bytes from the system's generator.

    Raises:
        ValueError: too few or too many bytes.
    """
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"a token takes {ENTROPY_BYTES} bytes of entropy")
    token_id = base64.b32encode(entropy[:8]).decode("ascii").lower()[:ID_LENGTH]
    secret = base64.urlsafe_b64encode(entropy[8:]).decode("ascii").rstrip("=")
    return token_id, f"cgw_{token_id}_{secret}"


def make_record(
    token: str,
    *,
    tenant: str,
    user: str,
    role: Role,
    created: float,
    expires: float | None = None,
    note: str = "",
) -> TokenRecord:
    """Return the record of a new token.

    Raises:
        ValueError: a malformed token, tenant, user or note; names which.
    """
    token_id = id_of(token)
    if token_id is None:
        raise ValueError("not a token of this gateway")
    return TokenRecord(
        id=token_id,
        hash=_hash(token),
        tenant=_name("tenant", tenant),
        user=_name("user", user),
        role=role,
        created=created,
        expires=expires,
        note=_note(note),
    )


def id_of(presented: object) -> str | None:
    """Return the id of a well-formed token, or None. Says nothing about whether it is good."""
    if not isinstance(presented, str) or len(presented) > MAX_PRESENTED:
        return None
    match = _TOKEN.fullmatch(presented)
    return match[1] if match else None


def verify(records: Mapping[str, TokenRecord], presented: object, now: float) -> Identity | None:
    """Return who presents a token, or None. Never raises, whatever is presented.

    Takes the same time for an unknown id as for a wrong secret.

    Args:
        records: all records by id.
        presented: the ``token`` member of ``connect``, of any type.
        now: Unix time in seconds.
    """
    token_id = id_of(presented)
    if token_id is None or not isinstance(presented, str):
        return None
    record = records.get(token_id)
    stored = record.hash if record is not None else _NO_HASH
    same = hmac.compare_digest(stored, _hash(presented))
    if record is None or not same or not record.is_good(now):
        return None
    return record.identity()


def verify_static(expected: str, presented: object) -> Identity | None:
    """Return the admin of tenant ``default`` if ``presented`` is the static token, else None.

    An empty ``expected`` means that there is no static token. Never raises.
    """
    if not expected or not isinstance(presented, str) or len(presented) > MAX_PRESENTED:
        return None
    # Hashed first, so that the comparison does not depend on the lengths.
    if not hmac.compare_digest(_hash(expected), _hash(presented)):
        return None
    return Identity("default", "admin", Role.ADMIN, None, STATIC_SOURCE)


def ended(
    old: Mapping[str, TokenRecord], new: Mapping[str, TokenRecord], since: float, now: float
) -> frozenset[str]:
    """Return the ids that were good at ``since`` under ``old`` and are not now under ``new``.

    A token whose tenant, user, role or hash changed counts as ended: its connections hold an
    identity that it no longer proves. A token that expires on another date does too, since they
    carry the old date.
    """
    gone = set()
    for token_id, before in old.items():
        if not before.is_good(since):
            continue
        after = new.get(token_id)
        if after is None or not after.is_good(now) or _proves(before) != _proves(after):
            gone.add(token_id)
    return frozenset(gone)


def _proves(record: TokenRecord) -> tuple[str, Identity]:
    return record.hash, record.identity()


# --- the stored form ------------------------------------------------------------------------------

_REQUIRED = frozenset({"id", "hash", "tenant", "user", "role", "created"})
_KEYS = _REQUIRED | {"expires", "revoked", "note"}


def dump_records(records: Iterable[TokenRecord]) -> dict[str, Any]:
    """Return records as a document for JSON; times are ISO 8601 in UTC."""
    tokens = []
    for record in records:
        entry: dict[str, Any] = {
            "id": record.id,
            "tenant": record.tenant,
            "user": record.user,
            "role": record.role.value,
            "created": show_time(record.created),
        }
        if record.expires is not None:
            entry["expires"] = show_time(record.expires)
        if record.revoked is not None:
            entry["revoked"] = show_time(record.revoked)
        if record.note:
            entry["note"] = record.note
        entry["hash"] = record.hash
        tokens.append(entry)
    return {"version": 1, "tokens": tokens}


def parse_records(document: object) -> dict[str, TokenRecord]:
    """Read what :func:`dump_records` wrote, or an edit of it.

    Unknown keys are refused: a misspelt ``expires`` must not make a token that never ends.

    Raises:
        ValueError: says which entry is wrong, and how; never holds a hash.
    """
    if not isinstance(document, dict) or document.get("version") != 1:
        raise ValueError("not a token file of version 1")
    entries = document.get("tokens")
    if not isinstance(entries, list) or set(document) != {"version", "tokens"}:
        raise ValueError("must hold `version` and a list `tokens`, and nothing else")
    records: dict[str, TokenRecord] = {}
    for index, entry in enumerate(entries):
        try:
            record = _parse_record(entry)
            if record.id in records:
                raise ValueError("the id is not unique")
        except ValueError as error:
            raise ValueError(f"tokens[{index}]: {error}") from None
        records[record.id] = record
    return records


def show_time(moment: float) -> str:
    """Write a Unix time as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _parse_record(entry: object) -> TokenRecord:
    if not isinstance(entry, dict):
        raise ValueError("must be an object")
    if missing := _REQUIRED - set(entry):
        raise ValueError(f"lacks {', '.join(sorted(missing))}")
    if unknown := set(entry) - _KEYS:
        raise ValueError(f"unknown key {sorted(map(str, unknown))[0]!r}")
    if not isinstance(entry["id"], str) or not _ID.fullmatch(entry["id"]):
        raise ValueError(f"id must be {ID_LENGTH} characters of a-z and 2-7")
    if not isinstance(entry["hash"], str) or not _HASH.fullmatch(entry["hash"]):
        raise ValueError("hash must be a SHA-256 in lower-case hex")
    if entry["role"] not in ("user", "admin"):
        raise ValueError("role must be user or admin")
    created = _time("created", entry["created"])
    if created is None:
        raise ValueError("created must be a time")
    return TokenRecord(
        id=entry["id"],
        hash=entry["hash"],
        tenant=_name("tenant", entry["tenant"]),
        user=_name("user", entry["user"]),
        role=Role(entry["role"]),
        created=created,
        expires=_time("expires", entry.get("expires")),
        revoked=_time("revoked", entry.get("revoked")),
        note=_note(entry.get("note", "")),
    )


def _time(key: str, value: object) -> float | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"{key} must be a time such as 2030-01-31T12:00:00Z")
    return moment.timestamp()


def _name(what: str, value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"{what} must be 1 to 128 letters, digits and . _ @ + -, starting with one of the "
            "first two"
        )
    return value


def _note(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_NOTE or not value.isprintable():
        raise ValueError(f"note must be one line of at most {MAX_NOTE} characters")
    return value


def _hash(token: str) -> str:
    # JSON can carry lone surrogates, which UTF-8 proper cannot.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
