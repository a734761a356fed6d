"""Tokens: what proves an identity, what does not, and the stored form."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import tokens
from gateway.policy.tokens import (
    ENTROPY_BYTES,
    dump_records,
    ended,
    id_of,
    make_record,
    make_token,
    parse_records,
    verify,
    verify_static,
)
from gateway.types import Identity, Role

NOW = 1_900_000_000.0
ID, TOKEN = make_token(bytes(range(ENTROPY_BYTES)))
OTHER_ID, OTHER_TOKEN = make_token(bytes(range(1, ENTROPY_BYTES + 1)))
RECORD = make_record(
    TOKEN, tenant="acme", user="ann", role=Role.USER, created=NOW, expires=NOW + 100
)
RECORDS = {ID: RECORD}


def test_a_good_token_proves_its_identity():
    identity = verify(RECORDS, TOKEN, NOW)
    assert identity == Identity("acme", "ann", Role.USER, NOW + 100, f"token:{ID}")


@pytest.mark.parametrize(
    "presented",
    [
        "",
        ID,
        f"cgw_{ID}",
        f"cgw_{ID}_",
        TOKEN[:-1],
        TOKEN + "A",
        TOKEN + "\n",
        TOKEN + "\0",
        " " + TOKEN,
        TOKEN.upper(),
        TOKEN[:-1] + ("A" if TOKEN[-1] != "A" else "B"),
        TOKEN.replace(ID, OTHER_ID),
        OTHER_TOKEN,
        TOKEN.replace("cgw", "cgω"),
        TOKEN[:-1] + "\u0410",  # a Cyrillic A
        "\ud800" + TOKEN,
        "\ud800" * 60,
        TOKEN * 1000,
        "x" * 10_000_000,
        TOKEN.encode(),
        RECORD.hash,
        None,
        True,
        0,
        1.5,
        [TOKEN],
        {"token": TOKEN},
    ],
    ids=lambda value: repr(value)[:30],
)
def test_anything_else_proves_nothing_and_raises_nothing(presented):
    assert verify(RECORDS, presented, NOW) is None


@given(st.text() | st.binary() | st.integers() | st.none())
def test_no_input_raises(presented):
    assert verify(RECORDS, presented, NOW) is None
    assert verify_static("s3cret-of-some-length", presented) is None


def test_an_expired_or_revoked_token_proves_nothing():
    assert verify(RECORDS, TOKEN, NOW + 99.9) is not None
    assert verify(RECORDS, TOKEN, NOW + 100) is None
    revoked = {ID: dataclasses.replace(RECORD, revoked=NOW)}
    assert verify(revoked, TOKEN, NOW) is None


def test_unknown_ids_cost_a_comparison_like_known_ones(monkeypatch):
    compared = []

    def compare(left: str, right: str) -> bool:
        compared.append((len(left), len(right)))
        return left == right

    monkeypatch.setattr(tokens.hmac, "compare_digest", compare)
    assert verify(RECORDS, TOKEN, NOW) is not None
    assert verify(RECORDS, OTHER_TOKEN, NOW) is None
    assert compared == [(64, 64), (64, 64)]


def test_the_static_token_is_an_admin_of_the_default_tenant():
    assert verify_static("s3cret", "s3cret") == Identity(
        "default", "admin", Role.ADMIN, None, "static"
    )


@pytest.mark.parametrize("presented", ["", "s3cre", "s3cret ", "S3CRET", None, 7, "\ud800"])
def test_a_wrong_static_token_is_nobody(presented):
    assert verify_static("s3cret", presented) is None


@pytest.mark.parametrize("presented", ["", None, "x"])
def test_without_a_static_token_nothing_matches(presented):
    assert verify_static("", presented) is None


def test_the_secret_has_256_bits_and_the_id_does_not_tell_it():
    assert ENTROPY_BYTES - 8 == 32
    same_id = make_token(bytes(range(8)) + bytes(32))
    assert same_id[0] == ID and same_id[1] != TOKEN
    with pytest.raises(ValueError, match="40 bytes"):
        make_token(bytes(16))


def test_records_hold_no_token_and_show_no_hash():
    assert TOKEN not in json.dumps(dump_records([RECORD]))
    assert TOKEN.rpartition("_")[2] not in repr(RECORD)
    assert RECORD.hash not in repr(RECORD)


def test_id_of_reads_well_formed_tokens_only():
    assert id_of(TOKEN) == ID
    assert id_of(TOKEN + "x") is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tenant", ""),
        ("tenant", "a b"),
        ("tenant", "a\nb"),
        ("tenant", "é"),
        ("tenant", "x" * 129),
        ("user", "-rf"),
        ("user", "a/b"),
        ("note", "two\nlines"),
        ("note", "x" * 201),
    ],
)
def test_bad_names_are_refused_by_name(field, value):
    given_fields = {"tenant": "acme", "user": "ann", "note": "", field: value}
    with pytest.raises(ValueError, match=field):
        make_record(TOKEN, role=Role.USER, created=NOW, **given_fields)


# --- what ended -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "now", "gone"),
    [
        (RECORDS, NOW, set()),
        ({ID: dataclasses.replace(RECORD, note="new")}, NOW, set()),
        ({}, NOW, {ID}),
        ({ID: dataclasses.replace(RECORD, revoked=NOW)}, NOW, {ID}),
        ({ID: dataclasses.replace(RECORD, tenant="other")}, NOW, {ID}),
        ({ID: dataclasses.replace(RECORD, role=Role.ADMIN)}, NOW, {ID}),
        ({ID: dataclasses.replace(RECORD, hash="0" * 64)}, NOW, {ID}),
        ({ID: dataclasses.replace(RECORD, expires=NOW + 50)}, NOW, {ID}),
        (RECORDS, NOW + 100, {ID}),
    ],
)
def test_ended_tells_which_tokens_are_good_no_longer(new, now, gone):
    assert ended(RECORDS, new, NOW, now) == gone


def test_what_had_ended_before_is_not_told_again():
    assert ended(RECORDS, {}, NOW + 100, NOW + 200) == frozenset()


# --- the stored form ------------------------------------------------------------------------------


def test_records_read_back_as_dumped():
    other = make_record(
        OTHER_TOKEN, tenant="acme", user="bob@acme.example", role=Role.ADMIN, created=NOW, note="n"
    )
    revoked = dataclasses.replace(other, revoked=NOW + 1)
    document = json.loads(json.dumps(dump_records([RECORD, revoked])))
    assert parse_records(document) == {ID: RECORD, OTHER_ID: revoked}


def entry(**changes):
    made = {**dump_records([RECORD])["tokens"][0], **changes}
    return {"version": 1, "tokens": [{k: v for k, v in made.items() if v is not ...}]}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([], "not a token file"),
        ({"version": 2, "tokens": []}, "not a token file of version 1"),
        ({"version": 1}, "a list `tokens`"),
        ({"version": 1, "tokens": [], "more": 1}, "nothing else"),
        ({"version": 1, "tokens": [1]}, r"tokens\[0\]: must be an object"),
        (entry(hash=...), "lacks hash"),
        (entry(expire="2030-01-01T00:00:00Z"), "unknown key 'expire'"),
        (entry(id="ABC"), "id must be"),
        (entry(hash="x" * 64), "hash must be"),
        (entry(role="root"), "role must be user or admin"),
        (entry(role=[]), "role must be user or admin"),
        (entry(tenant=7), "tenant must be"),
        (entry(created=None), "created must be a time"),
        (entry(expires="soon"), "expires must be a time"),
        (entry(expires="2030-01-01T00:00:00"), "expires must be a time"),
        (entry(expires=2e9), "expires must be a time"),
        (
            {"version": 1, "tokens": entry()["tokens"] * 2},
            r"tokens\[1\]: the id is not unique",
        ),
    ],
)
def test_bad_files_are_refused_with_the_entry_and_the_reason(document, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        parse_records(document)
    assert RECORD.hash not in str(caught.value)
