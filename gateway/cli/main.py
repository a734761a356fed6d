"""The ``copilot-gateway`` command: parsing, exit status and errors.

Each command lives in a module of :mod:`gateway.cli` that registers its own parser and sets ``run``
to a function from the parsed arguments to an exit status. These modules import what is heavy only
when their command runs, so that ``--help`` and small commands answer at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from gateway import __version__
from gateway.cli import admin_client, connect, demo, loadtest, serve, token
from gateway.errors import EXIT_FAILURE, EXIT_USAGE, StartupError

PROGRAM = "copilot-gateway"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    # Abbreviations are off: `--re` must not start to mean something else with the next flag.
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="A session-aware, multi-tenant gateway for headless GitHub Copilot CLIs.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve.add_commands(subparsers)
    token.add_commands(subparsers)
    connect.add_command(subparsers)
    admin_client.add_commands(subparsers)
    loadtest.add_command(subparsers)
    demo.add_command(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, 1, 2 (usage, config) or 3 (cannot start)."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as error:  # argparse has printed what is to be said
        return error.code if isinstance(error.code, int) else EXIT_USAGE
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except StartupError as error:
        _complain(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        return EXIT_FAILURE
    except BrokenPipeError:
        # The reader of our output is gone; keep the interpreter from flushing into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except Exception as error:
        logging.getLogger("gateway").debug("unexpected error", exc_info=True)
        _complain(f"internal error: {type(error).__name__}: {error}")
        return EXIT_FAILURE
    return status


def _complain(message: str) -> None:
    """Print one line on standard error, whatever a name in the message contains."""
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)
    print(f"{PROGRAM}: {line}", file=sys.stderr)
