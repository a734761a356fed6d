"""Who waits after failures, and who never does."""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from pathlib import Path

import pytest

from gateway.core.ports import Denied
from gateway.core.stats import Stats
from gateway.io.authenticator import EVERYBODY, NoAuthenticator, TokenAuthenticator
from gateway.io.token_file import TokenStore, edit_tokens
from gateway.policy.auth_limits import FailureLimiter
from gateway.policy.tokens import ENTROPY_BYTES, make_record, make_token
from gateway.types import Identity, Role

STATIC = "the-static-token"
PEER = "192.0.2.1:1000"
RECOVERY = 0.05


class Bench:
    """An authenticator with one token in its file.

    Attributes:
        token: the token of acme/alice.
    """

    def __init__(self, folder: Path, static: str = STATIC, burst: int = 2) -> None:
        token_id, self.token = make_token(secrets.token_bytes(ENTROPY_BYTES))
        with edit_tokens(folder / "tokens.json") as records:
            records[token_id] = make_record(
                self.token, tenant="acme", user="alice", role=Role.USER, created=time.time()
            )
        store = TokenStore(folder / "tokens.json")
        store.load()
        self.stats = Stats()
        limiter = FailureLimiter(burst, RECOVERY, 10.0, 100)
        self.auth = TokenAuthenticator(static, store, limiter, stats=self.stats)

    async def attempt(self, token: object, peer: str = PEER) -> Identity | Denied:
        """Present a token as the core does, failure included."""
        proof = self.auth.authenticate(token, peer)
        if inspect.isawaitable(proof):
            proof = await proof
        if isinstance(proof, Denied):
            self.auth.failed(peer)
        return proof

    def judged_at_once(self, token: object, peer: str = PEER) -> bool:
        proof = self.auth.authenticate(token, peer)
        if inspect.iscoroutine(proof):
            proof.close()
            return False
        return True


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_tokens_of_the_file_and_the_static_one(bench: Bench) -> None:
    alice = await bench.attempt(bench.token)
    assert isinstance(alice, Identity)
    assert (alice.tenant, alice.user) == ("acme", "alice")
    admin = await bench.attempt(STATIC)
    assert isinstance(admin, Identity)
    assert (admin.tenant, admin.role) == ("default", Role.ADMIN)


@pytest.mark.parametrize("token", [None, 5, True, [], {}, ["the-static-token"]])
async def test_what_is_no_text_is_no_token(bench: Bench, token: object) -> None:
    assert await bench.attempt(token) == Denied("no token")


async def test_a_denial_names_the_public_part_only(bench: Bench) -> None:
    wrong = bench.token[:-1] + ("A" if bench.token[-1] != "A" else "B")
    denied = await bench.attempt(wrong)
    assert isinstance(denied, Denied)
    assert bench.token[4:16] in denied.reason
    assert wrong[17:] not in denied.reason


async def test_guesses_at_the_static_token_are_judged_one_at_a_time(bench: Bench) -> None:
    """Guesses in parallel, one per connection, do not get past the rate either."""
    started = time.monotonic()
    guesses = [bench.attempt(f"guess-{number}") for number in range(12)]
    assert all(isinstance(one, Denied) for one in await asyncio.gather(*guesses))
    # Two at once, the other ten one after the other.
    assert time.monotonic() - started >= 10 * RECOVERY
    assert bench.stats.auth["limited"] == 10


async def test_the_right_static_token_waits_its_turn_behind_guesses(bench: Bench) -> None:
    for number in range(4):
        await bench.attempt(f"guess-{number}")
    assert not bench.judged_at_once(STATIC)
    assert isinstance(await bench.attempt(STATIC), Identity)


async def test_a_token_of_the_file_never_waits(bench: Bench) -> None:
    for _ in range(4):
        bench.auth.failed(PEER)
    assert not bench.judged_at_once("guess")
    assert bench.judged_at_once(bench.token)


async def test_other_sources_do_not_wait(bench: Bench) -> None:
    for _ in range(4):
        bench.auth.failed(PEER)
    assert bench.judged_at_once("guess", "192.0.2.2:1")
    assert not bench.judged_at_once("guess", "192.0.2.1:9")


async def test_without_a_static_token_there_is_nothing_to_guess(tmp_path: Path) -> None:
    bench = Bench(tmp_path, static="")
    for _ in range(4):
        bench.auth.failed(PEER)
    assert bench.judged_at_once("guess")
    assert isinstance(await bench.attempt(""), Denied)


def test_without_authentication_everybody_is_the_same() -> None:
    auth = NoAuthenticator()
    assert auth.authenticate("anything", PEER) is EVERYBODY
    assert auth.failed(PEER) == 0.0
