"""``token create | list | revoke``: manage the token file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.flags import add_config_flag, add_setting_flags, source_from
from gateway.config.kinds import parse_duration
from gateway.errors import EXIT_OK, EXIT_UNAVAILABLE, ConfigError, StartupError
from gateway.io.token_file import TokenFileError, edit_tokens, read_tokens
from gateway.policy.tokens import (
    ENTROPY_BYTES,
    TokenRecord,
    dump_records,
    make_record,
    make_token,
    show_time,
)
from gateway.types import Role

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

MAX_LIFETIME = 100 * 366 * 86400.0
"""Seconds; a longer lifetime is a slip of the keyboard, and dates have an end."""


def add_commands(subparsers: Subparsers) -> None:
    """Register ``token`` and its subcommands."""
    token = subparsers.add_parser(
        "token", help="create, list and revoke client tokens", allow_abbrev=False
    )
    actions = token.add_subparsers(title="actions", metavar="ACTION", required=True)

    create = actions.add_parser(
        "create", help="make a token and print it, this one time", allow_abbrev=False
    )
    create.add_argument("--tenant", required=True, help="tenant of whoever presents the token")
    create.add_argument("--user", required=True, help="user of whoever presents the token")
    create.add_argument(
        "--role",
        choices=[role.value for role in Role],
        default=Role.USER.value,
        help="what they may do beyond their own sessions [%(default)s]",
    )
    create.add_argument(
        "--expires",
        metavar="DURATION",
        type=_lifetime,
        help="how long it is good, such as 12h or 30d (default: until revoked)",
    )
    create.add_argument("--note", default="", help="what it is for")
    create.set_defaults(run=run_create)

    listing = actions.add_parser("list", help="list tokens, without secrets", allow_abbrev=False)
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=run_list)

    revoke = actions.add_parser(
        "revoke",
        help="end tokens; connections that rest on them are closed",
        allow_abbrev=False,
    )
    revoke.add_argument("ids", metavar="ID", nargs="+", help="the id, as `token list` shows it")
    revoke.set_defaults(run=run_revoke)

    for parser in (create, listing, revoke):
        add_config_flag(parser)
        add_setting_flags(parser, ["auth.token_file", "server.state_dir"])


def run_create(args: argparse.Namespace) -> int:
    """Make a token, store its record and print it; return the exit status."""
    now = time.time()
    token_id, token = make_token(secrets.token_bytes(ENTROPY_BYTES))
    try:
        record = make_record(
            token,
            tenant=args.tenant,
            user=args.user,
            role=Role(args.role),
            created=now,
            expires=None if args.expires is None else now + args.expires,
            note=args.note,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    path = _path(args)
    with _editing(path) as records:
        records[token_id] = record
    # The token alone goes to standard output, so that `TOKEN=$(copilot-gateway token create ...)`
    # works.
    print(token)
    print(
        f"token {token_id} stored in {path}; it is shown only this once",
        file=sys.stderr,
    )
    return EXIT_OK


def run_list(args: argparse.Namespace) -> int:
    """Print the tokens of the file; return the exit status."""
    try:
        records = read_tokens(_path(args))
    except TokenFileError as error:
        raise StartupError(str(error), EXIT_UNAVAILABLE) from None
    now = time.time()
    if args.json:
        entries = dump_records(records.values())["tokens"]
        for entry, record in zip(entries, records.values(), strict=True):
            del entry["hash"]  # of no use to a reader, so not shown
            entry["state"] = _state(record, now)
        print(json.dumps(entries, indent=2))
    else:
        for line in _table(records, now):
            print(line)
    return EXIT_OK


def run_revoke(args: argparse.Namespace) -> int:
    """Mark tokens as revoked, all or none; return the exit status."""
    now = time.time()
    with _editing(_path(args)) as records:
        for token_id in args.ids:
            record = records.get(token_id)
            if record is None:
                # Not echoed: someone may paste the whole token here.
                raise ConfigError("no such token: give ids as `copilot-gateway token list` shows")
            if record.revoked is None:
                records[token_id] = dataclasses.replace(record, revoked=now)
    for token_id in args.ids:
        print(f"token {token_id} revoked")
    return EXIT_OK


def _lifetime(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 0 < seconds <= MAX_LIFETIME:
        raise argparse.ArgumentTypeError("must be above 0 and at most 100 years")
    return seconds


def _path(args: argparse.Namespace) -> Path:
    return source_from(args).load().auth.token_file


@contextmanager
def _editing(path: Path) -> Iterator[dict[str, TokenRecord]]:
    try:
        with edit_tokens(path) as records:
            yield records
    except TokenFileError as error:
        raise StartupError(str(error), EXIT_UNAVAILABLE) from None


def _state(record: TokenRecord, now: float) -> str:
    if record.revoked is not None:
        return "revoked"
    return "good" if record.is_good(now) else "expired"


def _table(records: Mapping[str, TokenRecord], now: float) -> list[str]:
    rows: list[Sequence[str]] = [
        ("ID", "TENANT", "USER", "ROLE", "STATE", "CREATED", "EXPIRES", "NOTE")
    ]
    rows += [
        (
            record.id,
            record.tenant,
            record.user,
            record.role.value,
            _state(record, now),
            show_time(record.created),
            "never" if record.expires is None else show_time(record.expires),
            record.note,
        )
        for record in sorted(records.values(), key=lambda one: (one.tenant, one.user, one.created))
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
