"""The fake CLI as a program, with the real one's command line, environment and ready line."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.support.fake_cli.server import VERSION, FakeCli


async def _serve(host: str, port: int) -> int:
    token = os.environ.get("COPILOT_CONNECTION_TOKEN") or None
    home = Path(os.environ.get("COPILOT_HOME") or Path.home() / ".copilot")
    cli = FakeCli(state_dir=home, token=token, host=host, port=port)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, cli.exit)
    try:
        await cli.start()
    except OSError as error:
        print(f"Error: {error.strerror}", file=sys.stderr)
        return 1
    print(f"CLI server listening on port {cli.port}", flush=True)
    if token is None:
        print(
            "Warning: No COPILOT_CONNECTION_TOKEN was set,"
            " so connections will be accepted from any client",
            flush=True,
        )
    await cli.exited.wait()
    await cli.stop()
    return 0


def main() -> int:
    """Serve until a signal or ``runtime.shutdown``; return the exit status."""
    parser = argparse.ArgumentParser(prog="copilot")
    parser.add_argument("--version", action="version", version=VERSION)
    parser.add_argument("--headless", action="store_true", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--no-auto-update", action="store_true")
    parser.add_argument("--session-idle-timeout", type=int)
    parser.add_argument("--log-level")
    options = parser.parse_args()
    return asyncio.run(_serve(options.host, options.port))


if __name__ == "__main__":
    raise SystemExit(main())
