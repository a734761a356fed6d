"""``loadtest``: puts load on a gateway or a CLI, measures it and checks what comes back."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config.kinds import Address, parse_address, parse_duration
from gateway.errors import EXIT_FAILURE, EXIT_UNAVAILABLE, ConfigError, StartupError

if TYPE_CHECKING:
    from gateway.loadtest.plan import Plan
    from gateway.loadtest.report import Report
    from gateway.loadtest.runner import Status
    from gateway.loadtest.scenario import Scenario
    from gateway.loadtest.shape import Shape
    from gateway.loadtest.thresholds import Threshold

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

TOKEN_VARIABLE = "COPILOT_GATEWAY_TOKEN"  # noqa: S105 - the name of a variable

_EPILOG = f"""\
The token is taken from --token-file or from the environment variable {TOKEN_VARIABLE}.

Conditions of --fail-if: p50 ... p99.999, mean, min, max of turns (or of another action:
create.p99), throughput and ACTION.throughput, errors, error_rate, faults, unstarted, reconnects,
rolled_back; compared by > >= < <=. Broken answers always fail a run.

Exit status: 0 passed, 1 failed, 2 wrong usage, 3 cannot connect.
"""


def add_command(subparsers: Subparsers) -> None:
    """Register ``loadtest``."""
    parser = subparsers.add_parser(
        "loadtest",
        help="put load on a gateway or a CLI, measure it and check the answers",
        description="Open sessions as SDKs do, hold conversations in them, measure how long that "
        "takes and check that nothing is lost, repeated, reordered or mixed up.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_target_flags(parser.add_argument_group("target"))
    _add_load_flags(parser.add_argument_group("load"))
    _add_outcome_flags(parser.add_argument_group("checks and reports"))
    parser.set_defaults(run=run)


def _add_target_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--url", metavar="HOST:PORT", required=True, help="where to: a gateway or a headless CLI"
    )
    group.add_argument("--token-file", metavar="FILE", type=Path, help="file with the token")
    group.add_argument("--tls", action="store_true", help="speak TLS")
    group.add_argument(
        "--ca", metavar="FILE", type=Path, help="authorities to trust instead of the system's"
    )
    group.add_argument("--cert", metavar="FILE", type=Path, help="certificate to show")
    group.add_argument("--key", metavar="FILE", type=Path, help="private key of --cert")
    group.add_argument("--server-name", metavar="NAME", help="name the certificate must have")
    model = group.add_mutually_exclusive_group()
    model.add_argument(
        "--with-model",
        action="store_true",
        help="start a model server that echoes prompts, and have sessions use it: needs neither "
        "network nor credentials, and answers are checked word for word",
    )
    model.add_argument(
        "--model-url",
        metavar="URL",
        help="the same with a server that runs already (python -m gateway.testing.model_server)",
    )
    group.add_argument(
        "--model-host",
        metavar="HOST",
        default="127.0.0.1",
        help="address under which CLIs reach this machine's model server (default %(default)s)",
    )


def _add_load_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--connections", metavar="N", type=_count, default=10, help="connections (%(default)s)"
    )
    group.add_argument(
        "--sessions",
        metavar="M",
        type=_count,
        default=1,
        help="sessions on each connection (%(default)s)",
    )
    group.add_argument(
        "--processes", metavar="N", type=_count, default=1, help="processes (%(default)s)"
    )
    group.add_argument(
        "--rate",
        metavar="N",
        type=_rate,
        help="open loop: start N steps per second whatever happens, and time each from the moment "
        "it was due; without it, each session takes its next step after the last one",
    )
    group.add_argument(
        "--poisson", action="store_true", help="open loop: random instead of even gaps"
    )
    group.add_argument(
        "--duration", metavar="TIME", type=_time, default=30.0, help="how long (30s)"
    )
    group.add_argument(
        "--ramp", metavar="TIME", type=_time, default=0.0, help="rise to it from 0 in this time"
    )
    group.add_argument(
        "--stages",
        metavar="TIME:LEVEL,...",
        help="instead of --duration and --ramp: levels reached one after the other, as in "
        "30s:50,2m:50,30s:0; a level is sessions, or with --rate 0 a rate",
    )
    group.add_argument("--steps", metavar="N", type=_count, help="stop after N steps")
    group.add_argument(
        "--warmup", metavar="TIME", type=_time, default=0.0, help="time not measured at the start"
    )
    group.add_argument("--scenario", metavar="FILE", type=Path, help="what sessions do, in TOML")


def _add_outcome_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--check",
        choices=("off", "events", "history"),
        default="history",
        help="check nothing, the stream of events, or also each session's history at its end "
        "(%(default)s)",
    )
    group.add_argument(
        "--fail-if",
        metavar="CONDITION",
        action="append",
        default=[],
        help='fail the run on a condition such as "p99>2s"; may be given several times',
    )
    group.add_argument("--json", metavar="FILE", type=Path, help="write the figures as JSON")
    group.add_argument("--html", metavar="FILE", type=Path, help="write a report with plots")
    group.add_argument("--quiet", action="store_true", help="show nothing while it runs")
    group.add_argument(
        "--turn-timeout",
        metavar="TIME",
        type=_time,
        default=120.0,
        help="when a turn counts as stuck (120s)",
    )
    group.add_argument(
        "--request-timeout",
        metavar="TIME",
        type=_time,
        default=30.0,
        help="when any other request has failed (30s)",
    )
    group.add_argument(
        "--grace",
        metavar="TIME",
        type=_time,
        default=30.0,
        help="time for running turns to end when the run is over (30s)",
    )
    group.add_argument(
        "--keep-sessions", action="store_true", help="do not delete sessions left behind"
    )


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text.removesuffix("/s"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate per second")
    return value


def _time(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def run(args: argparse.Namespace) -> int:
    """Run a load test; return the exit status."""
    plan, thresholds = _plan(args), _thresholds(args.fail_if)
    _check_writable(args.json, args.html)
    import asyncio  # noqa: PLC0415
    from datetime import datetime  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    from gateway.loadtest.report import judge, text_report  # noqa: PLC0415

    started = datetime.now().astimezone()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_run(plan, args))
    report = judge(status, thresholds, started, shlex.join(["copilot-gateway", *sys.argv[1:]]))
    sys.stdout.write(text_report(report))
    _write(report, args.json, args.html)
    return report.exit_status


def _plan(args: argparse.Namespace) -> Plan:
    """Return what is to be done.

    Raises:
        ConfigError: the flags do not fit together, or a file is wrong.
    """
    import secrets  # noqa: PLC0415

    from gateway.loadtest.plan import Check, Plan, Tls  # noqa: PLC0415

    address = _address(args.url)
    tls_files = (args.ca, args.cert, args.key, args.server_name)
    if any(tls_files) and not args.tls:
        raise ConfigError("--ca, --cert, --key and --server-name need --tls")
    if args.key and not args.cert:
        raise ConfigError("--key needs --cert")
    if args.processes > args.connections:
        raise ConfigError("--processes must not be more than --connections")
    if args.poisson and args.rate is None:
        raise ConfigError("--poisson needs --rate")
    shape = _shape(args)
    if args.warmup >= shape.seconds:
        raise ConfigError("--warmup must be shorter than the run")
    return Plan(
        run="".join(secrets.choice("0123456789abcdefghijklmnopqrstuvwxyz") for _ in range(6)),
        host=address.host,
        port=address.port,
        token=_token(args.token_file),
        tls=Tls(*(str(each) if each is not None else None for each in tls_files))
        if args.tls
        else None,
        scenario=_scenario(args.scenario),
        provider_url=args.model_url,
        connections=args.connections,
        sessions=args.sessions,
        processes=args.processes,
        open_loop=args.rate is not None,
        poisson=args.poisson,
        shape=shape,
        steps=args.steps,
        warmup=args.warmup,
        check=Check(args.check),
        turn_timeout=args.turn_timeout,
        request_timeout=args.request_timeout,
        grace=args.grace,
        keep_sessions=args.keep_sessions,
    )


def _address(url: str) -> Address:
    """Read ``--url``, which SDKs also write with a scheme."""
    try:
        return parse_address(url.removeprefix("http://").removeprefix("tcp://").rstrip("/"))
    except ValueError as error:
        raise ConfigError(f"--url {error}") from None


def _token(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    from gateway.io.token_file import read_secret_file  # noqa: PLC0415

    return read_secret_file(path, "--token-file")


def _shape(args: argparse.Namespace) -> Shape:
    from gateway.loadtest.shape import parse_stages, steady  # noqa: PLC0415

    users = args.connections * args.sessions
    if args.stages is not None:
        if args.rate:
            raise ConfigError("--stages with --rate needs --rate 0: the stages hold the rates")
        try:
            shape = parse_stages(args.stages)
        except ValueError as error:
            raise ConfigError(f"--stages: {error}") from None
        if args.rate is None and shape.peak > users:
            raise ConfigError(
                f"--stages: {shape.peak:g} sessions are more than --connections times "
                f"--sessions, {users}"
            )
        return shape
    if args.rate == 0:
        raise ConfigError("--rate must be above 0, or --stages must hold the rates")
    if not args.duration:
        raise ConfigError("--duration must be above 0")
    level = users if args.rate is None else args.rate
    return steady(level, args.duration, args.ramp)


def _scenario(path: Path | None) -> Scenario:
    from gateway.loadtest.scenario import Scenario, parse_scenario  # noqa: PLC0415

    if path is None:
        return Scenario()
    try:
        return parse_scenario(path.read_text(), os.environ)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"--scenario {path}: {reason}") from None
    except ValueError as error:
        raise ConfigError(f"--scenario {path}: {error}") from None


def _thresholds(conditions: list[str]) -> list[Threshold]:
    from gateway.loadtest.thresholds import Threshold  # noqa: PLC0415

    try:
        return [Threshold.parse(condition) for condition in conditions]
    except ValueError as error:
        raise ConfigError(f"--fail-if {error}") from None


def _check_writable(*paths: Path | None) -> None:
    """Find out before an hour of load, not after it, that a report cannot be written."""
    for path in paths:
        if path is None:
            continue
        try:
            path.open("a").close()
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None


async def _run(plan: Plan, args: argparse.Namespace) -> Status:
    """Do the run, with a model server beside it if one is wanted."""
    import asyncio  # noqa: PLC0415
    import signal  # noqa: PLC0415
    from contextlib import AsyncExitStack  # noqa: PLC0415
    from dataclasses import replace  # noqa: PLC0415

    from gateway.loadtest.progress import display_for  # noqa: PLC0415
    from gateway.loadtest.runner import Runner  # noqa: PLC0415
    from gateway.testing.model_server import ModelServer  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        if args.with_model:
            try:
                model = await stack.enter_async_context(ModelServer(args.model_host))
            except OSError as error:
                raise StartupError(
                    f"the model server cannot listen on {args.model_host}: {error.strerror}",
                    EXIT_UNAVAILABLE,
                ) from None
            plan = replace(plan, provider_url=model.base_url)
        runner = Runner(plan, display_for(sys.stderr, quiet=args.quiet))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, runner.stop)
        return await runner.run()


def _write(report: Report, json_path: Path | None, html_path: Path | None) -> None:
    try:
        if json_path is not None:
            import orjson  # noqa: PLC0415

            from gateway.loadtest.report import json_report  # noqa: PLC0415

            json_path.write_bytes(orjson.dumps(json_report(report), option=orjson.OPT_INDENT_2))
        if html_path is not None:
            from gateway.loadtest.page import html_report  # noqa: PLC0415

            html_path.write_text(html_report(report), encoding="utf-8")
    except OSError as error:
        raise StartupError(f"cannot write the report: {error.strerror}", EXIT_FAILURE) from None
