"""``copilot-gateway token``: create, list, revoke."""

from __future__ import annotations

import json
import time

import pytest

from gateway.cli.main import main
from gateway.errors import EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE
from gateway.io.token_file import TokenStore, read_tokens
from gateway.policy.tokens import id_of
from gateway.types import Role


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens.json"


@pytest.fixture
def token(path, capsys):
    """Run ``token`` with arguments; return status, standard output and standard error."""

    def run(*argv: str) -> tuple[int, str, str]:
        status = main(["token", *argv, "--token-file", str(path)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_create_prints_a_token_that_authenticates(token, path):
    status, out, err = token("create", "--tenant", "acme", "--user", "ann")
    made = out.removesuffix("\n")
    assert status == EXIT_OK
    token_id = id_of(made)
    assert token_id is not None and token_id in err and made not in err
    store = TokenStore(path)
    store.load()
    identity = store.verify(made)
    assert identity is not None
    assert (identity.tenant, identity.user, identity.role) == ("acme", "ann", Role.USER)


def test_create_with_role_expiry_and_note(token, path):
    token(
        "create", "--tenant", "acme", "--user", "ann",
        "--role", "admin", "--expires", "30d", "--note", "for CI",
    )  # fmt: skip
    (record,) = read_tokens(path).values()
    assert record.role is Role.ADMIN and record.note == "for CI"
    assert record.expires is not None
    assert abs(record.expires - time.time() - 30 * 86400) < 60


@pytest.mark.parametrize(
    "argv",
    [
        ["--tenant", "a b", "--user", "ann"],
        ["--tenant", "acme", "--user", ""],
        ["--tenant", "acme", "--user", "ann", "--role", "root"],
        ["--tenant", "acme", "--user", "ann", "--expires", "soon"],
        ["--tenant", "acme", "--user", "ann", "--expires", "0"],
        ["--tenant", "acme", "--user", "ann", "--expires", "40000d"],
        ["--tenant", "acme", "--user", "ann", "--note", "two\nlines"],
        ["--tenant", "acme"],
    ],
)
def test_create_refuses_bad_input_and_writes_nothing(token, path, argv):
    status, out, err = token("create", *argv)
    assert status == EXIT_USAGE
    assert out == "" and err
    assert not path.exists()


def test_list_shows_who_and_state_but_no_secret(token, path):
    _, good, _ = token("create", "--tenant", "acme", "--user", "ann", "--note", "laptop")
    _, bad, _ = token("create", "--tenant", "acme", "--user", "bob")
    token("revoke", id_of(bad.strip()))
    status, out, _ = token("list")
    assert status == EXIT_OK
    header, ann, bob = out.splitlines()
    assert header.split() == ["ID", "TENANT", "USER", "ROLE", "STATE", "CREATED", "EXPIRES", "NOTE"]
    assert ann.split()[:5] == [id_of(good.strip()), "acme", "ann", "user", "good"]
    assert ann.split()[6:] == ["never", "laptop"]
    assert bob.split()[4] == "revoked"
    for record in read_tokens(path).values():
        assert record.hash not in out


def test_list_as_json(token):
    token("create", "--tenant", "acme", "--user", "ann", "--expires", "1ms")
    status, out, _ = token("list", "--json")
    (entry,) = json.loads(out)
    assert status == EXIT_OK
    assert set(entry) == {"id", "tenant", "user", "role", "created", "expires", "state"}
    assert entry["state"] == "expired"


def test_list_of_no_file_is_empty(token, path):
    assert token("list", "--json") == (EXIT_OK, "[]\n", "")
    assert not path.exists()


def test_revoke_ends_all_or_none(token, path):
    ids = []
    for user in ("ann", "bob"):
        _, out, _ = token("create", "--tenant", "acme", "--user", user)
        ids.append(id_of(out.strip()))
    status, _, err = token("revoke", ids[0], "aaaaaaaaaaaa")
    assert status == EXIT_USAGE and "no such token" in err
    assert all(record.revoked is None for record in read_tokens(path).values())
    assert token("revoke", *ids)[0] == EXIT_OK
    assert all(record.revoked is not None for record in read_tokens(path).values())


def test_revoking_again_keeps_the_first_date(token, path):
    _, out, _ = token("create", "--tenant", "acme", "--user", "ann")
    token_id = id_of(out.strip())
    token("revoke", token_id)
    before = read_tokens(path)
    assert token("revoke", token_id)[0] == EXIT_OK
    assert read_tokens(path) == before


def test_a_whole_token_given_to_revoke_is_not_echoed(token):
    _, out, _ = token("create", "--tenant", "acme", "--user", "ann")
    status, shown, err = token("revoke", out.strip())
    assert status == EXIT_USAGE
    assert out.strip() not in shown + err


@pytest.mark.parametrize("argv", [["list"], ["create", "--tenant", "a", "--user", "b"]])
def test_a_broken_file_is_one_line_and_left_alone(token, path, argv):
    path.write_text("{")
    status, out, err = token(*argv)
    assert status == EXIT_UNAVAILABLE
    assert out == "" and err.count("\n") == 1 and str(path) in err
    assert path.read_text() == "{"
