"""Runs scenarios: rounds in which the targets take turns, each in fresh processes.

The targets of a scenario are interleaved, and their order rotates, so that whatever else happens on
the machine meets all of them alike. Proxies get a CPU core of their own; the load generator and the
replicas share what is left.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.certificate import Certificate
from bench.metrics import Round
from bench.native import program, speaks_tls
from bench.process import Process, placed
from bench.results import BenchError, Measured, Result, ScenarioResult
from bench.scenarios import Scenario
from bench.targets import TARGETS, Deployed, Fleet, Target

LOADGEN_EXTRA_SECONDS = 120.0
"""Setting up thousands of connections and draining, on top of warm-up and window."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run is done.

    Attributes:
        rounds: How often each scenario is run on each target.
        seconds: Length of the measured window.
        warmup: Seconds of the same traffic before it.
        pinned: Whether proxies and load are bound to CPU cores of their own.
    """

    rounds: int = 5
    seconds: float = 2.0
    warmup: float = 0.5
    pinned: bool = True

    def cores(self, wanted: int = 1) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """The cores of the proxy, and those of load generator and replicas.

        Args:
            wanted: How many the proxy can use. It gets them where the machine has twice as many.
        """
        available = sorted(os.sched_getaffinity(0))
        if not self.pinned or len(available) < 2:
            return None, None
        given = wanted if len(available) >= 2 * wanted else 1
        return tuple(available[-given:]), tuple(available[:-given])


def run(scenarios: Sequence[Scenario], targets: Sequence[str], settings: Settings) -> Result:
    """Measure ``scenarios`` on those of ``targets`` that they are meant for.

    Targets that this machine lacks are left out with a note on standard error. A round that fails
    is recorded, and the run goes on.
    """
    proxy_cores, load_cores = settings.cores()
    result = Result(
        machine.now(),
        machine.describe(),
        {
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "warmup": settings.warmup,
            "proxy_cores": proxy_cores,
            "load_cores": load_cores,
        },
    )
    usable = _usable(targets)
    for scenario in scenarios:
        if scenario.tls and not speaks_tls():
            _progress(f"left out: {scenario.title}: needs OpenSSL (Debian: apt install libssl-dev)")
            continue
        chosen = [target for target in usable if target.name in scenario.targets]
        measured = {target.name: Measured() for target in chosen}
        result.scenarios.append(
            ScenarioResult(scenario.name, scenario.title, scenario.parameters(), measured)
        )
        for number in range(settings.rounds):
            shift = number % len(chosen) if chosen else 0
            for target in chosen[shift:] + chosen[:shift]:
                _progress(f"{scenario.name} round {number + 1}/{settings.rounds}: {target.name}")
                rounds = measured[target.name]
                try:
                    rounds.rounds.append(measure(scenario, target, settings))
                except BenchError as error:
                    rounds.rounds.append(None)
                    rounds.errors.append(str(error))
                    _progress(f"{scenario.name} on {target.name} failed: {error}")
    return result


def measure(scenario: Scenario, target: Target, settings: Settings) -> Round:
    """One round: start everything, load it, stop everything.

    Raises:
        BenchError: Something did not start, or not every message was answered as expected.
    """
    proxy_cores, load_cores = settings.cores(target.cores)
    with (
        ExitStack() as stack,
        tempfile.TemporaryDirectory(prefix="copilot-gateway-bench-") as directory,
    ):
        here = Path(directory)
        replica_token = secrets.token_hex(16)
        replicas = [
            stack.enter_context(
                Process(
                    [str(program("stub_replica")), "0"],
                    cores=load_cores,
                    env={"COPILOT_CONNECTION_TOKEN": replica_token},
                    ready=r"listening on port (\d+)\n",
                    log=here / f"replica-{number}.log",
                )
            )
            for number in range(scenario.replicas)
        ]
        fleet = Fleet(
            tuple(f"127.0.0.1:{replica.port}" for replica in replicas),
            replica_token,
            secrets.token_hex(16),
            proxy_cores,
            load_cores,
            here,
            Certificate.make(here) if scenario.tls else None,
        )
        deployed = stack.enter_context(target.deploy(fleet))
        return _load(scenario, deployed, replicas, settings, load_cores)


def _load(
    scenario: Scenario,
    deployed: Deployed,
    replicas: Sequence[Process],
    settings: Settings,
    cores: tuple[int, ...] | None,
) -> Round:
    proxies = [pid for process in deployed.processes for pid in process.pids()]
    stubs = [pid for process in replicas for pid in process.pids()]
    command = [
        str(program("loadgen")),
        f"--target={','.join(deployed.addresses)}",
        f"--watch={','.join(map(str, proxies + stubs))}",
        f"--warmup={settings.warmup}",
        f"--seconds={settings.seconds}",
        *scenario.arguments(),
    ]
    try:
        done = subprocess.run(
            placed(command, cores),
            env={**os.environ, "COPILOT_CONNECTION_TOKEN": deployed.token},
            capture_output=True,
            text=True,
            check=False,
            timeout=settings.warmup + settings.seconds + LOADGEN_EXTRA_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError("the load generator did not finish") from error
    if done.returncode != 0:
        raise BenchError(done.stderr.strip() or f"load generator: exit status {done.returncode}")
    return figures(json.loads(done.stdout), len(proxies), scenario)


def figures(report: dict[str, Any], proxies: int, scenario: Scenario) -> Round:
    """Turn a load generator's report, whose first watched processes are proxies, into figures."""
    seconds, messages = report["seconds"], report["messages"]
    watched = report["watched"]
    found: Round = {"loadgen_cpu_share": report["loadgen_cpu_seconds"] / seconds}
    found["stub_cpu_share"] = _sum(watched[proxies:], "cpu_seconds") / seconds
    if messages:
        found["messages_per_second"] = messages / seconds
        found["requests_per_second"] = report["responses"] / seconds
    if report["latency_us"]:
        for name in ("p50", "p99", "p999"):
            found[f"{name}_us"] = report["latency_us"][name]
    if proxies:
        ours = watched[:proxies]
        cpu = _sum(ours, "cpu_seconds")
        before = _sum(ours, "memory_before")
        found["proxy_cpu_share"] = cpu / seconds
        found["memory_peak_growth"] = _sum(ours, "memory_after") - before
        if messages:
            found["cpu_us_per_message"] = cpu / messages * 1e6
        grown = _sum(ours, "memory_ready") - before
        if scenario.work == "idle":
            found["memory_per_connection"] = grown / scenario.connections
        if scenario.sessions > 1:
            found["memory_per_session"] = grown / (scenario.connections * scenario.sessions)
    return found


def _sum(watched: Sequence[dict[str, Any]], name: str) -> float:
    return float(sum(each[name] for each in watched))


def _usable(names: Sequence[str]) -> list[Target]:
    usable = []
    for name in names:
        target = TARGETS[name]
        if reason := target.missing():
            _progress(f"left out: {target.title}: {reason}")
        else:
            usable.append(target)
    return usable


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
