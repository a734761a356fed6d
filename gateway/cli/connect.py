"""``connect``: the local connector, for SDKs that cannot send a token or speak TLS."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config.kinds import Address, parse_address
from gateway.errors import EXIT_FAILURE, EXIT_OK, ConfigError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_UNIX = "unix:"


def add_command(subparsers: Subparsers) -> None:
    """Register ``connect``."""
    parser = subparsers.add_parser(
        "connect",
        help="local connector: gives SDKs a token and TLS on the way to a gateway",
        description="Take SDK connections on this machine and pass them on to a gateway, "
        "authenticated by a token that the SDKs need not know.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--gateway", metavar="HOST:PORT", required=True, help="address of the gateway"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        required=True,
        help="file with the token to present; read again when it changes",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--listen",
        metavar="ADDRESS",
        help="take connections on HOST:PORT (loopback; port 0 picks one) or unix:PATH",
    )
    where.add_argument(
        "--stdio",
        action="store_true",
        help="serve one SDK on standard input and output, as the CLI would",
    )
    parser.add_argument("--tls", action="store_true", help="speak TLS with the gateway")
    parser.add_argument(
        "--ca", metavar="FILE", type=Path, help="authorities to trust instead of the system's"
    )
    parser.add_argument(
        "--cert", metavar="FILE", type=Path, help="certificate to show to the gateway"
    )
    parser.add_argument("--key", metavar="FILE", type=Path, help="private key of --cert")
    parser.add_argument(
        "--server-name", metavar="NAME", help="name the gateway's certificate must have"
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="allow --listen beyond loopback: whoever can connect uses the token",
    )
    _add_cli_flags(parser)
    parser.set_defaults(run=run)


def _add_cli_flags(parser: argparse.ArgumentParser) -> None:
    """Accept what SDKs pass to the CLI binary that they believe to start, and ignore it."""
    for flag in ("--headless", "--server", "--no-auto-update", "--no-auto-login", "--remote"):
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    for flag in (
        "--log-level",
        "--auth-token-env",
        "--session-idle-timeout",
        "--cli-login-sync-integration-id",
    ):
        parser.add_argument(flag, help=argparse.SUPPRESS)
    # The one that counts: an SDK that starts a CLI on TCP names the port or wants any.
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run the connector until it is told to stop; return the exit status."""
    gateway = _address("--gateway", args.gateway)
    listen: Address | Path | None = None
    if not args.stdio:
        listen = _listen_address(args)
    if (args.ca or args.cert or args.key or args.server_name) and not args.tls:
        raise ConfigError("--ca, --cert, --key and --server-name need --tls")
    if args.key and not args.cert:
        raise ConfigError("--key needs --cert")
    # Only now: a wrong flag is reported without waiting for these imports.
    import asyncio  # noqa: PLC0415
    import logging  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    from gateway.io.connector import ClientToken, GatewayAddress, Upstream  # noqa: PLC0415
    from gateway.io.tls import client_context  # noqa: PLC0415

    logging.basicConfig(level=logging.WARNING, format="copilot-gateway connect: %(message)s")
    tls = client_context(args.ca, args.cert, args.key) if args.tls else None
    token = ClientToken(args.token_file)
    if tls is None and not gateway.is_loopback:
        logging.getLogger(__name__).warning(
            "without --tls the token and every prompt travel to %s in the clear", gateway
        )
    address = GatewayAddress(gateway.host, gateway.port, tls, args.server_name)

    async def serve() -> int:
        stands_in = args.stdio or args.headless or args.server
        return await _serve(Upstream(address, token), listen, stands_in=stands_in)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve())


def _address(flag: str, text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise ConfigError(f"{flag} {error}") from None


def _listen_address(args: argparse.Namespace) -> Address | Path:
    """Return where to listen; an SDK that starts a CLI on TCP gives no --listen."""
    text = args.listen
    if text is None:
        if not (args.headless or args.server):
            raise ConfigError("give --listen HOST:PORT, --listen unix:PATH or --stdio")
        if not 0 <= args.port <= 65535:
            raise ConfigError("--port must be between 0 and 65535")
        return Address("127.0.0.1", args.port)
    if text.startswith(_UNIX):
        if text == _UNIX:
            raise ConfigError("--listen unix:PATH needs a path")
        return Path(text.removeprefix(_UNIX))
    address = _address("--listen", text)
    if not address.is_loopback and not args.insecure:
        raise ConfigError(
            f"--listen {address} would lend the token to every machine that can reach it; "
            "listen on 127.0.0.1, or say --insecure"
        )
    return address


async def _serve(upstream: Upstream, listen: Address | Path | None, *, stands_in: bool) -> int:
    """Serve until told to stop: by a signal, an SDK whose CLI it plays, or the streams' end."""
    import asyncio  # noqa: PLC0415
    import signal  # noqa: PLC0415

    from gateway.io.connector import Connector  # noqa: PLC0415

    connector = Connector(upstream, stands_in=stands_in)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, connector.shut_down.set)
    waiting = asyncio.create_task(connector.shut_down.wait(), name="connector-stop")
    try:
        if listen is None:
            streams = asyncio.create_task(connector.serve_streams(), name="connector-streams")
            await asyncio.wait({waiting, streams}, return_when=asyncio.FIRST_COMPLETED)
            if not streams.done():
                streams.cancel()
                return EXIT_OK
            return EXIT_OK if streams.result() else EXIT_FAILURE
        if isinstance(listen, Address):
            port = await connector.listen(listen.host, listen.port)
            print(f"copilot-gateway connect listening on port {port}", flush=True)
        else:
            await connector.listen_unix(listen)
            print(f"copilot-gateway connect listening on {_UNIX}{listen}", flush=True)
        await waiting
    finally:
        waiting.cancel()
        await connector.close()
    return EXIT_OK


if TYPE_CHECKING:
    from gateway.io.connector import Upstream
