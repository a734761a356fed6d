"""The token file: edits, concurrent edits, and a store that follows it."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.io import token_file
from gateway.io.token_file import (
    TokenFileError,
    TokenStore,
    edit_tokens,
    read_secret_file,
    read_tokens,
)
from gateway.policy.tokens import ENTROPY_BYTES, make_record, make_token
from gateway.types import Role
from tests.support.wait import eventually


class Clock:
    """A clock that stands still until told otherwise."""

    now = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tokens.json"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def add(path: Path, *, user: str = "ann", expires: float | None = None) -> tuple[str, str]:
    """Add a token to a file and return its id and the token."""
    token_id, token = make_token(os.urandom(ENTROPY_BYTES))
    with edit_tokens(path) as records:
        records[token_id] = make_record(
            token, tenant="acme", user=user, role=Role.USER, created=1.0, expires=expires
        )
    return token_id, token


# --- reading and editing --------------------------------------------------------------------------


def test_an_edit_makes_a_file_that_only_its_owner_reads(path):
    token_id, token = add(path)
    assert set(read_tokens(path)) == {token_id}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert token not in path.read_text()
    assert sorted(one.name for one in path.parent.iterdir()) == ["tokens.json", "tokens.json.lock"]


def test_a_missing_file_holds_no_tokens(path):
    assert read_tokens(path) == {}


def test_an_edit_that_fails_changes_nothing(path):
    add(path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError), edit_tokens(path) as records:
        records.clear()
        raise RuntimeError
    assert path.read_bytes() == before


def test_a_write_that_fails_leaves_the_file_and_no_litter(path, monkeypatch):
    add(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_file.os, "fsync", full)
    with pytest.raises(TokenFileError, match="No space left"):
        add(path)
    assert path.read_bytes() == before
    assert sorted(one.name for one in path.parent.iterdir()) == ["tokens.json", "tokens.json.lock"]


def test_a_link_stays_a_link(path, tmp_path):
    add(path)
    link = tmp_path / "link.json"
    link.symlink_to(path)
    add(link, user="bob")
    assert link.is_symlink()
    assert {one.user for one in read_tokens(path).values()} == {"ann", "bob"}


def _add_many(path: Path, user: str) -> None:
    for _ in range(10):
        add(path, user=user)


def test_concurrent_edits_lose_nothing(path):
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_add_many, args=(path, f"u{index}")) for index in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    assert len(read_tokens(path)) == 20


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "Expecting value"),
        (b"{", "line 1"),
        (b"\xff\xfe", "tokens.json"),
        (b"[" * 100_000, "tokens.json"),
        (b"[]", "not a token file of version 1"),
        (b'{"version": 1, "tokens": [{}]}', r"tokens\[0\]: lacks created"),
    ],
)
def test_a_broken_file_is_one_clear_error(path, content, expected):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(TokenFileError, match=expected) as caught:
        read_tokens(path)
    assert str(path) in str(caught.value)


def test_a_file_that_anyone_may_write_is_refused(path):
    add(path)
    path.chmod(0o666)
    with pytest.raises(TokenFileError, match="anyone may write it"):
        read_tokens(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(TokenFileError, match="Is a directory"):
        read_tokens(tmp_path)
    with pytest.raises(TokenFileError, match="not a regular file"):
        read_tokens(Path("/dev/null"))


# --- the store ------------------------------------------------------------------------------------


@pytest.fixture
def gone() -> list[set[str]]:
    return []


@pytest.fixture
def store(path, clock, gone) -> TokenStore:
    made = TokenStore(path, lambda ids: gone.append(set(ids)), clock)
    made.load()
    return made


def test_a_new_token_is_good_after_the_next_poll(store, path):
    _, token = add(path)
    assert store.verify(token) is None
    store.poll()
    identity = store.verify(token)
    assert identity is not None and identity.user == "ann"


def test_a_revoked_and_a_removed_token_are_told_once(store, path, gone):
    token_id, token = add(path)
    other_id, _ = add(path)
    store.poll()
    with edit_tokens(path) as records:
        del records[token_id]
    store.poll()
    store.poll()
    assert gone == [{token_id}]
    assert store.verify(token) is None
    with edit_tokens(path) as records:
        del records[other_id]
    store.reload()
    assert gone == [{token_id}, {other_id}]


def test_an_expiry_is_told_though_the_file_stays_the_same(store, path, clock, gone):
    token_id, token = add(path, expires=clock.now + 10)
    store.poll()
    clock.now += 9
    store.poll()
    assert gone == [] and store.verify(token) is not None
    clock.now += 1
    assert store.verify(token) is None
    store.poll()
    store.poll()
    assert gone == [{token_id}]


def test_a_broken_file_keeps_the_last_good_tokens_and_is_logged_once(store, path, caplog, gone):
    token_id, token = add(path)
    store.poll()
    good = path.read_bytes()
    with caplog.at_level(logging.ERROR):
        path.write_bytes(b"{")
        store.poll()
        store.poll()
        assert store.reload() is False
    assert store.verify(token) is not None
    assert len(caplog.records) == 1
    path.write_bytes(good)
    assert store.reload() is True
    path.write_bytes(b"{")
    with caplog.at_level(logging.ERROR):
        store.reload()
    assert len(caplog.records) == 2
    assert gone == [] and token_id in store.records


def test_a_file_that_vanishes_keeps_the_last_good_tokens(store, path, caplog):
    _, token = add(path)
    store.poll()
    path.unlink()
    with caplog.at_level(logging.ERROR):
        store.poll()
    assert store.verify(token) is not None
    assert "is gone" in caplog.records[0].__dict__["reason"]


def test_an_expiry_is_told_while_the_file_is_broken(store, path, clock, gone):
    token_id, _ = add(path, expires=clock.now + 10)
    store.poll()
    path.write_bytes(b"{")
    clock.now += 10
    store.poll()
    assert gone == [{token_id}]


def test_a_broken_file_at_start_up_is_a_config_error(path):
    path.parent.mkdir()
    path.write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"tokens\.json"):
        TokenStore(path).load()


async def test_watch_follows_the_file_and_survives_a_failing_callback(path, caplog):
    told = asyncio.Event()

    def on_ended(_: frozenset[str]) -> None:
        told.set()
        raise RuntimeError("callback")

    store = TokenStore(path, on_ended)
    token_id, _ = add(path)
    store.load()
    watch = asyncio.create_task(store.watch(0.01))
    try:
        async with asyncio.timeout(30):
            with edit_tokens(path) as records:
                del records[token_id]
            await told.wait()
            new_id, _ = add(path)
            await eventually(lambda: new_id in store.records)
    finally:
        watch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watch
    assert "token watch failed" in caplog.text


def test_a_store_shows_no_hashes(store, path):
    add(path)
    store.poll()
    (record,) = json.loads(path.read_text())["tokens"]
    assert record["hash"] not in repr(store)
    assert "1 tokens" in repr(store)


# --- files that hold one secret -------------------------------------------------------------------


def test_a_secret_file_is_read_without_its_line_end(tmp_path):
    file = tmp_path / "secret"
    file.write_text("hush\r\n")
    assert read_secret_file(file, "admin.token_file") == "hush"


@pytest.mark.parametrize("content", [b"", b"\n", b"hush one two", b"hush\nhush", b"\xff", b"h\0h"])
def test_a_secret_file_with_anything_else_is_refused_unseen(tmp_path, content):
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"admin\.token_file: .* must hold one token") as caught:
        read_secret_file(file, "admin.token_file")
    assert "hush" not in str(caught.value)


def test_a_missing_secret_file_names_the_setting(tmp_path):
    with pytest.raises(ConfigError, match=r"admin\.token_file: cannot read .*No such file"):
        read_secret_file(tmp_path / "nope", "admin.token_file")
