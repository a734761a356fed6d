"""``status``, ``replicas``, ``sessions``, ``drain``, ``undrain``, ``recycle``, ``reload``, ``top``.

The counterpart is :mod:`gateway.io.admin`. The token comes from a file or the environment, never
from the command line, where every user of the machine could read it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from gateway.config.kinds import Address, parse_address
from gateway.config.settings import SETTINGS, STATIC_TOKEN_VARIABLE
from gateway.errors import EXIT_FAILURE, EXIT_OK, EXIT_UNAVAILABLE, ConfigError, StartupError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_ADMIN: Final = "127.0.0.1:9321"
"""Where the admin API is looked for when nothing says otherwise."""

LISTEN_VARIABLE: Final = SETTINGS["admin.listen"].variable
TOKEN_FILE_VARIABLE: Final = SETTINGS["admin.token_file"].variable
TOKEN_VARIABLES: Final = (SETTINGS["admin.token"].variable, STATIC_TOKEN_VARIABLE)

CONNECT_TIMEOUT: Final = 5.0
"""Seconds to connect: the API is near."""

ANSWER_TIMEOUT: Final = 35.0
"""Seconds to wait for an answer: a little more than the API gives itself."""

POLL_INTERVAL: Final = 0.5
"""Seconds between two looks while waiting for a drain or a restart."""

_PAGE: Final = 500  # Sessions asked for at a time.

Json = dict[str, Any]


def add_commands(subparsers: Subparsers) -> None:
    """Register the commands that talk to the admin API."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--admin",
        metavar="HOST:PORT",
        type=_address,
        help=f"address of the admin API (or set {LISTEN_VARIABLE}) [{DEFAULT_ADMIN}]",
    )
    common.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help=f"file with the admin token (or set {' or '.join(TOKEN_VARIABLES)})",
    )
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON instead of a table")
    waiting = argparse.ArgumentParser(add_help=False)
    waiting.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, help="give up waiting after this time"
    )

    def add(
        name: str,
        text: str,
        run: Callable[[argparse.Namespace], int],
        *parents: argparse.ArgumentParser,
    ) -> argparse.ArgumentParser:
        parser = subparsers.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            parents=[common, *parents],
            allow_abbrev=False,
        )
        parser.set_defaults(run=run)
        return parser

    add("status", "say whether the gateway takes clients (exit status 1 if not)", _status, as_json)
    add("replicas", "list the replicas", _replicas, as_json)

    sessions = add("sessions", "list sessions and where they live", _sessions, as_json)
    sessions.add_argument("--tenant", help="only those of this tenant")
    sessions.add_argument("--replica", help="only those on this replica")
    amount = sessions.add_mutually_exclusive_group()
    amount.add_argument(
        "--limit", metavar="N", type=_count, default=100, help="at most so many [100]"
    )
    amount.add_argument("--all", action="store_true", help="all of them")

    drain = add("drain", "move the sessions off a replica", _drain, as_json, waiting)
    drain.add_argument("name", metavar="NAME", help="the replica")
    drain.add_argument("--wait", action="store_true", help="return when nothing is left on it")

    undrain = add("undrain", "let a replica take sessions again", _undrain, as_json)
    undrain.add_argument("name", metavar="NAME", help="the replica")

    recycle = add("recycle", "drain a spawned replica and start it anew", _recycle, waiting)
    which = recycle.add_mutually_exclusive_group(required=True)
    which.add_argument("name", metavar="NAME", nargs="?", help="the replica")
    which.add_argument(
        "--all", action="store_true", help="all spawned replicas, one after the other"
    )
    recycle.add_argument("--wait", action="store_true", help="return when it is up again")

    add("reload", "read configuration, tokens and replica lists again", _reload, as_json)

    top = add("top", "watch the gateway's traffic", _top)
    top.add_argument(
        "--interval", metavar="SECONDS", type=_seconds, default=2.0, help="time between screens [2]"
    )
    top.add_argument("--once", action="store_true", help="print one screen and end")


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,7}(\.\d+)?|\.\d+", text, re.ASCII) or not float(text):
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return float(text)


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text, re.ASCII):
        raise argparse.ArgumentTypeError("must be a number above 0")
    return int(text)


class AdminApi:
    """A client of the admin API; each call is one request."""

    def __init__(self, address: Address, token: str | None) -> None:
        self.address = address
        self._token = token

    @classmethod
    def from_args(cls, args: argparse.Namespace, environ: Mapping[str, str]) -> AdminApi:
        """Make a client from the flags and the environment.

        Raises:
            ConfigError: an address or a token that cannot be used.
        """
        address = args.admin
        if address is None:
            given = environ.get(LISTEN_VARIABLE) or DEFAULT_ADMIN
            try:
                address = parse_address(given)
            except ValueError as error:
                raise ConfigError(f"{LISTEN_VARIABLE}: {error}") from None
        return cls(address, _find_token(args.token_file, environ))

    def get(self, path: str, expect: str, **query: str | int | None) -> Json:
        """Return what a GET answers, an object with the member ``expect``.

        Raises:
            StartupError: the API cannot be reached, or refuses.
        """
        given = {key: value for key, value in query.items() if value is not None}
        return self._call("GET", path + (f"?{urlencode(given)}" if given else ""), expect)

    def post(self, path: str, expect: str) -> Json:
        """Return what a POST answers; like :meth:`get`."""
        return self._call("POST", path, expect)

    def readiness(self) -> Json:
        """Return the facts of ``/readyz``, ready or not."""
        return self._call("GET", "/readyz", "ready", also=HTTPStatus.SERVICE_UNAVAILABLE)

    def metrics(self) -> str:
        """Return the metrics in Prometheus form."""
        status, body = self._exchange("GET", "/metrics")
        if status != HTTPStatus.OK:
            raise self._refused(status, body)
        return body.decode("utf-8", "replace")

    def replicas(self) -> list[Json]:
        """Return all replicas."""
        replicas: list[Json] = self.get("/replicas", "replicas")["replicas"]
        return replicas

    def replica(self, name: str) -> Json:
        """Return one replica."""
        for replica in self.replicas():
            if replica["name"] == name:
                return replica
        raise StartupError(f"no replica is named {name!r}", EXIT_FAILURE)

    def act(self, name: str, action: str) -> Json:
        """Begin an action on a replica; return the replica."""
        replica: Json = self.post(f"/replicas/{quote(name, safe='')}/{action}", "replica")[
            "replica"
        ]
        return replica

    def _call(self, method: str, path: str, expect: str, also: int | None = None) -> Json:
        status, body = self._exchange(method, path)
        if status not in (HTTPStatus.OK, HTTPStatus.ACCEPTED, also):
            raise self._refused(status, body)
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or expect not in answer:
            raise self._refused(status, body)
        return answer

    def _exchange(self, method: str, path: str) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        # An address to listen on is a fine address to connect to, save for "all of them".
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address.host, self.address.host)  # noqa: S104
        connection = http.client.HTTPConnection(host, self.address.port, timeout=CONNECT_TIMEOUT)
        try:
            connection.connect()
            connection.sock.settimeout(ANSWER_TIMEOUT)
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except TimeoutError:
            raise self._unreachable("no answer in time") from None
        except OSError as error:
            raise self._unreachable(error.strerror or str(error)) from None
        except http.client.HTTPException:
            raise self._unreachable("this is not HTTP") from None
        finally:
            connection.close()

    def _unreachable(self, reason: str) -> StartupError:
        return StartupError(
            f"cannot reach the admin API at {self.address}: {reason}", EXIT_UNAVAILABLE
        )

    def _refused(self, status: int, body: bytes) -> StartupError:
        try:
            message = json.loads(body)["error"]["message"]
        except (ValueError, TypeError, KeyError):
            message = "this is not the admin API of a gateway"
        hint = ""
        if status == HTTPStatus.UNAUTHORIZED:
            hint = f" (set {TOKEN_VARIABLES[0]} or use --token-file)"
        return StartupError(f"admin API at {self.address}: {status}: {message}{hint}", EXIT_FAILURE)


def _find_token(file: Path | None, environ: Mapping[str, str]) -> str | None:
    named = environ.get(TOKEN_FILE_VARIABLE)
    file = file or (Path(named) if named else None)
    if file is None:
        token = next(filter(None, map(environ.get, TOKEN_VARIABLES)), None)
        source = "the admin token in the environment"
    else:
        source = f"token file {file}"
        try:
            token = file.read_text("utf-8").strip()
        except OSError as error:
            raise ConfigError(f"{source}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{source}: not text") from None
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise ConfigError(f"{source}: must be printable ASCII without spaces, and not empty")
    return token


# Commands


def _api(args: argparse.Namespace) -> AdminApi:
    return AdminApi.from_args(args, os.environ)


def _status(args: argparse.Namespace) -> int:
    facts = _api(args).readiness()
    if args.json:
        _print_json(facts)
    else:
        for line in _readiness_lines(facts):
            print(line)
    return EXIT_OK if facts["ready"] else EXIT_FAILURE


def _readiness_lines(facts: Json) -> Iterator[str]:
    yield "ready" if facts["ready"] else "not ready"
    for reason in facts["reasons"]:
        yield f"  {_clean(reason)}"
    yield f"replicas: {facts['replicas_up']} of {facts['replicas']} up"


def _replicas(args: argparse.Namespace) -> int:
    replicas = _api(args).replicas()
    if args.json:
        _print_json({"replicas": replicas})
    else:
        _print_replicas(replicas)
    return EXIT_OK


def _print_replicas(replicas: Sequence[Json]) -> None:
    header = (
        "NAME", "STATE", "POOL", "ADDRESS", "VERSION", "LINKS", "SESSIONS", "IN-FLIGHT", "PROBE",
        "EJECTIONS", "RESTARTS", "NOTE",
    )  # fmt: skip
    rows = [
        (
            one["name"],
            one["state"],
            one["pool"],
            one["address"],
            one["version"],
            one["links"],
            one["sessions"],
            one["in_flight"],
            None if one["probe_seconds"] is None else _duration(one["probe_seconds"]),
            one["ejections"],
            one["restarts"],
            "drained" if one["drained"] else one["reason"] or "",
        )
        for one in replicas
    ]
    for line in _table(header, rows):
        print(line)


def _sessions(args: argparse.Namespace) -> int:
    api = _api(args)
    found: list[Json] = []
    cursor: str | None = None
    while True:
        wanted = _PAGE if args.all else min(_PAGE, args.limit - len(found))
        page = api.get(
            "/sessions",
            "sessions",
            limit=wanted,
            cursor=cursor,
            tenant=args.tenant,
            replica=args.replica,
        )
        found += page["sessions"]
        cursor = page["cursor"]
        if cursor is None or (not args.all and len(found) >= args.limit):
            break
    if args.json:
        _print_json({"sessions": found, "cursor": cursor})
        return EXIT_OK
    rows = [
        (
            one["session"],
            one["tenant"],
            one["user"],
            one["replica"],
            one["epoch"],
            "busy" if one["busy"] else "live" if one["live"] else "stored",
            one["clients"],
        )
        for one in found
    ]
    header = ("SESSION", "TENANT", "USER", "REPLICA", "EPOCH", "STATE", "CLIENTS")
    for line in _table(header, rows):
        print(line)
    if cursor is not None:
        print(f"only the first {len(found)}; use --limit or --all for more", file=sys.stderr)
    return EXIT_OK


def _drain(args: argparse.Namespace) -> int:
    api = _api(args)
    replica = api.act(args.name, "drain")
    if args.wait:
        replica = _poll(api, args.name, args.timeout, _is_drained)
    if args.json:
        _print_json(replica)
    elif replica["drained"]:
        print(f"{args.name} is drained")
    else:
        print(f"{args.name} is draining: {_left(replica)}")
    return EXIT_OK


def _undrain(args: argparse.Namespace) -> int:
    replica = _api(args).act(args.name, "undrain")
    if args.json:
        _print_json(replica)
    else:
        print(f"{args.name} is {replica['state']}")
    return EXIT_OK


def _recycle(args: argparse.Namespace) -> int:
    api = _api(args)
    replicas = (
        api.get("/replicas", "replicas")["replicas"] if args.all else [api.replica(args.name)]
    )
    if args.all:
        replicas = [one for one in replicas if one["supervised"]]
        if not replicas:
            raise StartupError("no replica was spawned by this gateway", EXIT_FAILURE)
    for before in replicas:
        name, restarts = before["name"], before["restarts"]
        api.act(name, "recycle")
        print(f"{name} is being recycled", flush=True)
        # All at once would leave no replica up: the next one begins when this one has ended.
        if args.wait or args.all:
            _poll(api, name, args.timeout, partial(_is_up_again, restarts))
            print(f"{name} is up again", flush=True)
    return EXIT_OK


def _is_up_again(restarts: int, replica: Json) -> bool:
    return bool(replica["state"] == "up" and replica["restarts"] > restarts)


def _reload(args: argparse.Namespace) -> int:
    answer = _api(args).post("/reload", "changes")
    if args.json:
        _print_json(answer)
    else:
        for change in answer["changes"] or ["nothing has changed"]:
            print(_clean(change))
    return EXIT_OK


def _poll(api: AdminApi, name: str, timeout: float | None, done: Callable[[Json], bool]) -> Json:
    """Look at a replica until ``done`` says so.

    Raises:
        StartupError: it took too long, or ``done`` found that it will never be.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        replica = api.replica(name)
        if done(replica):
            return replica
        if deadline is not None and time.monotonic() >= deadline:
            raise StartupError(
                f"{name} is {replica['state']} after {timeout:g} s: {_left(replica)}", EXIT_FAILURE
            )
        time.sleep(POLL_INTERVAL)


def _is_drained(replica: Json) -> bool:
    if replica["drained"]:
        return True
    if replica["state"] != "draining":
        raise StartupError(
            f"{replica['name']} is no longer draining: it is {replica['state']}", EXIT_FAILURE
        )
    return False


def _left(replica: Json) -> str:
    return f"{replica['sessions']} sessions and {replica['in_flight']} requests are left on it"


# Output


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _clean(value: object) -> str:
    """Return text that cannot do anything to a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value))


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return aligned lines; columns of numbers are flush right, a missing value is a dash."""
    cells = [[_clean("-" if cell is None else cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [
        bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        for index in range(len(header))
    ]
    return [
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [list(header), *cells]
    ]


def _duration(seconds: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _amount(number: float) -> str:
    """Return a number in three digits or so: 0.5, 12, 3.4k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.2g}" if number < 10 else f"{number:.0f}"


# top


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the gateway.

    Attributes:
        at: monotonic time in seconds.
        facts: what ``/readyz`` said.
        values: every series of ``/metrics``, by name and labels.
    """

    at: float
    facts: Json
    values: Mapping[str, Sequence[tuple[Mapping[str, str], float]]]

    @classmethod
    def take(cls, api: AdminApi) -> Sample:
        """Ask the gateway; raises like :class:`AdminApi`."""
        # Not needed for the other commands, which should start at once.
        from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

        facts = api.readiness()
        text = api.metrics()
        at = time.monotonic()
        values: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    values.setdefault(sample.name, []).append((sample.labels, sample.value))
        except ValueError:
            raise StartupError(
                f"admin API at {api.address}: its metrics cannot be read", EXIT_FAILURE
            ) from None
        return cls(at, facts, values)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the series that have these labels."""
        return sum(value for found, value in self.values.get(name, ()) if _has(found, labels))

    def names(self, name: str, label: str) -> list[str]:
        """Return the values of a label, in order of appearance."""
        return list(dict.fromkeys(found[label] for found, _ in self.values.get(name, ())))


def _has(found: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(found.get(key) == value for key, value in labels.items())


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two samples."""

    before: Sample
    after: Sample

    def rate(self, name: str, **labels: str) -> float:
        """Return a counter's growth per second; 0 if the gateway was restarted meanwhile."""
        grown = self.after.total(name, **labels) - self.before.total(name, **labels)
        return max(0.0, grown / max(self.after.at - self.before.at, 1e-3))

    def quantile(self, name: str, rank: float, **labels: str) -> float | None:
        """Return the upper bound in seconds of a histogram's quantile; None if nothing happened."""
        bucket = f"{name}_bucket"
        grown: dict[float, float] = {}
        for sample, sign in ((self.after, 1), (self.before, -1)):
            for found, value in sample.values.get(bucket, ()):
                if _has(found, labels):
                    bound = float(found["le"])
                    grown[bound] = grown.get(bound, 0.0) + sign * value
        total = grown.get(math.inf, 0.0)
        if total <= 0:
            return None
        return min((bound for bound, count in grown.items() if count >= rank * total), default=None)


def screen(interval: Interval, where: str) -> list[str]:
    """Return the lines of one screen of ``top``."""
    now, rate = interval.after, interval.rate
    prefix = "copilot_gateway_"
    version = next(iter(now.names(f"{prefix}build_info", "version")), "?")
    state = "ready" if now.facts["ready"] else "NOT READY: " + "; ".join(now.facts["reasons"])

    def gauge(name: str, **labels: str) -> str:
        return _amount(now.total(prefix + name, **labels))

    def per_second(name: str, **labels: str) -> str:
        return _amount(rate(f"{prefix}{name}_total", **labels)) + "/s"

    def times(name: str, **labels: str) -> tuple[str, str]:
        found = [interval.quantile(prefix + name, rank, **labels) for rank in (0.5, 0.99)]
        low, high = ("-" if one is None else _bound(one) for one in found)
        return low, high

    to_replica = times("time_in_gateway_seconds", direction="to_replica")
    to_client = times("time_in_gateway_seconds", direction="to_client")
    lines = [
        f"copilot-gateway {_clean(version)} at {where}  {_clean(state)}",
        "",
        f"clients   {gauge('clients_open')} open, {per_second('clients_accepted')} accepted, "
        f"{per_second('clients_rejected')} rejected, {per_second('clients_cut')} cut, "
        f"{per_second('authentications', outcome='failed')} wrong tokens",
        f"sessions  {gauge('sessions_live')} live, {gauge('sessions_waiting')} waiting, "
        f"{per_second('sessions_placed')} placed, {per_second('sessions_rebound')} rebound, "
        f"{per_second('sessions_failed')} failed",
        f"frames    {per_second('frames', direction='from_client')} from clients "
        f"({per_second('transferred_bytes', direction='from_client')[:-2]}B/s), "
        f"{per_second('frames', direction='to_client')} to clients "
        f"({per_second('transferred_bytes', direction='to_client')[:-2]}B/s)",
        f"gateway   p50 {to_replica[0]} p99 {to_replica[1]} to replicas, "
        f"p50 {to_client[0]} p99 {to_client[1]} to clients, "
        f"CPU {100 * rate('process_cpu_seconds_total'):.0f} %, "
        f"memory {_amount(now.total('process_resident_memory_bytes'))}B",
        "",
    ]
    requests = f"{prefix}requests_total"
    rows: list[tuple[object, ...]] = []
    for method in now.names(requests, "method"):
        total = rate(requests, method=method)
        if total:
            good = rate(requests, method=method, outcome="ok")
            durations = times("request_duration_seconds", method=method)
            rows.append((method, _amount(total), _amount(total - good), *durations))
    rows.sort(key=lambda row: str(row[0]))
    lines += _table(("METHOD", "REQUESTS/S", "NOT OK/S", "P50", "P99"), rows)
    lines.append("")

    replica_rows = []
    for name in now.names(f"{prefix}replica_state", "replica"):
        states = [
            found["state"]
            for found, value in now.values[f"{prefix}replica_state"]
            if found["replica"] == name and value
        ]
        probe = now.total(f"{prefix}replica_probe_duration_seconds", replica=name)
        replica_rows.append(
            (
                name,
                "/".join(states),
                *(
                    int(now.total(f"{prefix}replica_{column}", replica=name))
                    for column in ("links_open", "sessions_live", "requests_in_flight")
                ),
                _duration(probe) if probe else None,
                int(now.total(f"{prefix}replica_ejections_total", replica=name)),
                int(now.total(f"{prefix}replica_restarts_total", replica=name)),
            )
        )
    header = (
        "REPLICA", "STATE", "LINKS", "SESSIONS", "IN-FLIGHT", "PROBE", "EJECTIONS", "RESTARTS",
    )  # fmt: skip
    return lines + _table(header, replica_rows)


def _bound(seconds: float) -> str:
    return "off scale" if seconds == math.inf else f"<={_duration(seconds)}"


_ENTER: Final = "\x1b[?1049h\x1b[?25l"  # The alternate screen, without a cursor.
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"


def _top(args: argparse.Namespace) -> int:
    api = _api(args)
    where = str(api.address)
    before = Sample.take(api)
    if args.once:
        time.sleep(args.interval)
        print("\n".join(screen(Interval(before, Sample.take(api)), where)))
        return EXIT_OK
    live = sys.stdout.isatty()
    sys.stdout.write(_ENTER if live else "")
    try:
        pause = min(args.interval, POLL_INTERVAL)  # Something to look at soon.
        while True:
            time.sleep(pause)
            pause = args.interval
            try:
                after = Sample.take(api)
                lines = screen(Interval(before, after), where)
                before = after
            except StartupError as error:
                lines = [_clean(error)]  # It may come back; a restart is worth watching.
            _show(lines, live=live)
    except KeyboardInterrupt:
        return EXIT_OK
    finally:
        sys.stdout.write(_LEAVE if live else "")
        sys.stdout.flush()


def _show(lines: Sequence[str], *, live: bool) -> None:
    if live:
        size = shutil.get_terminal_size()
        shown = (f"{line[: size.columns]}\x1b[K" for line in lines[: size.lines])
        sys.stdout.write("\x1b[H" + "\r\n".join(shown) + "\x1b[J")
    else:
        sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.flush()
