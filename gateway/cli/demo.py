"""``demo``: the gateway at work, with nothing to set up."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import TYPE_CHECKING

from gateway.errors import EXIT_OK, StartupError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Register ``demo``."""
    demo = subparsers.add_parser(
        "demo",
        help="show the gateway at work: two real CLIs, a scripted model, no credentials",
        description="Start two Copilot CLIs, a scripted model and a gateway, and converse with "
        "them over the Copilot SDK. Ends with status 0 if all that it shows has happened.",
        allow_abbrev=False,
    )
    demo.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; return the exit status.

    Raises:
        StartupError: the SDK or the CLI is missing.
    """
    # Only here: the SDK is an optional dependency, and small commands do not load the server.
    from gateway.demo.screen import Screen  # noqa: PLC0415
    from gateway.io.cli_binary import locate_cli  # noqa: PLC0415

    try:
        from gateway.demo import story  # noqa: PLC0415
    except ImportError as error:
        raise StartupError(
            f"the demo speaks through the Copilot SDK ({error}): install it with "
            "`pip install 'github-copilot-sdk>=1.0.27'`"
        ) from None

    screen = Screen(sys.stdout, os.environ)

    async def main() -> int:
        return await story.run(screen, await locate_cli(), os.environ)

    status = asyncio.run(main())
    if status == EXIT_OK:
        screen.heading("All of this has just happened. Your own: copilot-gateway serve --spawn 2")
    return status
