"""The numbers of ``docs/explanation/capacity.md``, from result files.

What one core carries is derived from CPU time per message, because load generator and replicas
share the machine: the proxy is rarely the one that is busy all the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench import cli_cost, report
from bench.results import Result, ScenarioResult
from bench.scenarios import SWEEPS
from bench.stats import figures, summarize

SUBJECT = "gateway"

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30

CARRIED = (
    ("request-32", "requests and their answers, 32 connections", 2.0),
    ("request-32-tls", "the same over TLS", 2.0),
    ("stream-32", "events of 350 B in bursts", 1.0),
    ("trickle-32", "events of 350 B written one by one", 1.0),
    ("stream-32-tls", "events of 350 B in bursts, over TLS", 1.0),
    ("events-4k", "events of 4 KiB", 1.0),
    ("events-40k", "events of 40 KiB", 1.0),
    ("events-2m", "events of 2 MiB", 1.0),
)
"""Scenario, what is counted in it, and how many messages one of these is."""

PER_SECOND = (
    ("connect", "connections opened and authenticated"),
    ("connect-tls", "the same over TLS"),
    ("create", "sessions created"),
)
"""Scenarios in which requests are counted, whatever else passes because of them."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What the arithmetic takes for granted; every field is a row of the page.

    Attributes:
        online: Share of all users that are connected at the busiest time.
        sessions: Live sessions of each of them.
        turns_per_hour: Turns that each of them starts.
        events: Events of a turn.
        requests: Requests of a turn, answers to permissions and tools included.
        sessions_per_cli: Live sessions that one CLI is given.
        busy: Share of a core that is planned with.
    """

    online: float = 0.1
    sessions: float = 2.0
    turns_per_hour: float = 12.0
    events: float = 500.0
    requests: float = 6.0
    sessions_per_cli: float = 200.0
    busy: float = 0.5

    def rows(self) -> list[list[str]]:
        """The table of assumptions."""
        return [
            ["", "symbol", "value"],
            ["users online at the busiest time", "o", f"{self.online:.0%}"],
            ["live sessions of a user online", "s", f"{self.sessions:g}"],
            ["turns per hour of a user online", "t", f"{self.turns_per_hour:g}"],
            ["events of a turn", "e", f"{self.events:g}"],
            ["requests of a turn", "r", f"{self.requests:g}"],
            ["live sessions per CLI", "k", f"{self.sessions_per_cli:g}"],
            ["share of a core that is planned with", "b", f"{self.busy:.0%}"],
        ]


ASSUMED = Assumptions()
USERS = (1_000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured, as far as the arithmetic needs it.

    Attributes:
        message: CPU microseconds of the gateway per message with a read and a write of its own.
        connection: Bytes of the gateway's memory per idle connection.
        session: The same per session.
        cli_base: Bytes of a CLI's memory at start.
        cli_session: Bytes of a CLI's memory per session with turns.
        cli_event: CPU milliseconds of a CLI per event of a turn.
    """

    message: float
    connection: float
    session: float
    cli_base: float
    cli_session: float
    cli_event: float


@dataclass(frozen=True, slots=True)
class Needed:
    """What a number of users needs."""

    turns: float
    events: float
    gateway_cores: float
    gateway_memory: float
    clis: int
    cli_cores: float
    cli_memory: float


def needed(users: float, costs: Costs, assumed: Assumptions = ASSUMED) -> Needed:
    """Apply the formulas that the page states."""
    online = users * assumed.online
    live = online * assumed.sessions
    turns = online * assumed.turns_per_hour / 3600
    per_turn = (assumed.events + 2 * assumed.requests) * costs.message
    clis = math.ceil(live / assumed.sessions_per_cli)
    return Needed(
        turns,
        turns * assumed.events,
        turns * per_turn / 1e6 / assumed.busy,
        online * costs.connection + live * costs.session,
        clis,
        turns * assumed.events * costs.cli_event / 1e3 / assumed.busy,
        clis * costs.cli_base + live * costs.cli_session,
    )


def sections(load: Result | None, cli: Result | None) -> dict[str, str]:
    """Markdown by section of the page, as far as the results have the figures."""
    found = {}
    if load is not None:
        found["capacity-core"] = _core(load)
        found["capacity-growth"] = _growth(load)
        found["capacity-memory"] = _memory(load)
    if cli is not None:
        found["capacity-cli"] = cli_cost.text(cli)
    if load is not None and cli is not None and (costs := costs_of(load, cli)) is not None:
        found["capacity-users"] = _users(costs)
    return {name: text for name, text in found.items() if text}


def costs_of(load: Result, cli: Result) -> Costs | None:
    """Collect the costs; ``None`` if a result lacks one."""
    scenario = cli.scenario(cli_cost.NAME)
    assert scenario is not None
    values = (
        _median(load, "request-32", "cpu_us_per_message"),
        _median(load, "idle-5000", "memory_per_connection"),
        _median(load, "sessions-1000", "memory_per_session"),
        _of(scenario, "cli_memory_at_start", "direct"),
        _of(scenario, "cli_memory_per_used_session", "direct"),
        _of(scenario, "cli_cpu_ms_per_turn", "direct"),
        _of(scenario, "events_per_turn", "direct"),
    )
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    costs = Costs(*known[:6])
    return replace(costs, cli_event=costs.cli_event / known[6])


def _of(scenario: ScenarioResult | None, metric: str, target: str = SUBJECT) -> float | None:
    if scenario is None or target not in scenario.targets:
        return None
    summary = summarize(figures(scenario.targets[target].rounds, metric))
    return summary.median if summary else None


def _median(result: Result, scenario: str, metric: str, target: str = SUBJECT) -> float | None:
    return _of(result.scenario(scenario), metric, target)


def _core(result: Result) -> str:
    rows = [["one core of one worker", "CPU each, µs", "per second", "MB/s"]]
    for name, what, messages in CARRIED:
        cpu = _median(result, name, "cpu_us_per_message")
        scenario = result.scenario(name)
        if cpu is None or scenario is None:
            continue
        each = cpu * messages
        size = scenario.parameters["event_bytes"] if scenario.parameters["events"] else None
        volume = f"{size / each:,.0f}" if size else "-"
        rows.append([what, f"{each:,.2f}", _rounded(1e6 / each), volume])
    for name, what in PER_SECOND:
        rate = _median(result, name, "requests_per_second")
        share = _median(result, name, "proxy_cpu_share")
        if rate and share:
            rows.append([what, f"{share / rate * 1e6:,.0f}", _rounded(rate / share), "-"])
    return f"{report.table(rows)}\n\n{report.conditions(result)}" if len(rows) > 1 else ""


def _memory(result: Result) -> str:
    rows = [["", "HAProxy", "copilot-gateway"]]
    for name, metric, what in (
        ("idle-5000", "memory_per_connection", "idle authenticated connection, KiB"),
        ("sessions-1000", "memory_per_session", "session (one of 1,000 of a connection), KiB"),
    ):
        theirs = _median(result, name, metric, "haproxy")
        ours = _median(result, name, metric)
        if ours is not None:
            rows.append([what, *("-" if v is None else f"{v / _KIB:.1f}" for v in (theirs, ours))])
    return report.table(rows) if len(rows) > 1 else ""


def _growth(result: Result) -> str:
    tables = []
    for sweep in SWEEPS:
        rows = [[sweep.parameter.replace("_", " "), "CPU per message, µs", "p99, µs"]]
        for name in sweep.scenarios:
            scenario = result.scenario(name)
            cpu, late = (_of(scenario, metric) for metric in ("cpu_us_per_message", "p99_us"))
            if scenario is not None and cpu is not None and late is not None:
                grown = scenario.parameters[sweep.parameter]
                rows.append([f"{grown:,}", f"{cpu:,.2f}", f"{late:,.0f}"])
        if len(rows) > 1:
            tables.append(f"{sweep.title}:\n\n{report.table(rows)}")
    return "\n\n".join(tables)


def _users(costs: Costs) -> str:
    rows = [
        [
            "users",
            "turns/s",
            "events/s",
            "gateway cores",
            "gateway memory",
            "CLIs",
            "CLI cores",
            "CLI memory",
        ]
    ]
    for users in USERS:
        found = needed(users, costs)
        rows.append(
            [
                f"{users:,}",
                _rounded(found.turns),
                _rounded(found.events),
                f"{found.gateway_cores:,.2f}",
                _size(found.gateway_memory),
                f"{found.clis:,}",
                f"{found.cli_cores:,.1f}",
                _size(found.cli_memory),
            ]
        )
    return f"{report.table(ASSUMED.rows())}\n\n{_measured(costs)}\n\n{report.table(rows)}"


def _measured(costs: Costs) -> str:
    rows: Sequence[Sequence[str]] = (
        ["measured above", "symbol", "value"],
        ["gateway CPU per message that is read and written alone", "c", f"{costs.message:.2f} µs"],
        ["gateway memory per connection", "m_c", f"{costs.connection / _KIB:.1f} KiB"],
        ["gateway memory per session", "m_s", f"{costs.session / _KIB:.1f} KiB"],
        ["CLI memory at start", "M_0", f"{costs.cli_base / _MIB:.0f} MiB"],
        ["CLI memory per session", "M_s", f"{costs.cli_session / _MIB:.1f} MiB"],
        ["CLI CPU per event", "C_e", f"{costs.cli_event:.2f} ms"],
    )
    return report.table(rows)


def _rounded(value: float) -> str:
    """Two significant digits: more would claim too much."""
    if value <= 0:
        return "0"
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def _size(size: float) -> str:
    for unit, name in ((2**40, "TiB"), (_GIB, "GiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / _MIB:,.1f} MiB"
