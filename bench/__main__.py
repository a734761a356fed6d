"""Command line of the benchmarks: ``python -m bench``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import (
    capacity,
    cli_cost,
    compare,
    instructions,
    plot,
    report,
    results,
    runner,
    scenarios,
    sdk,
)
from bench.native import ROOT
from bench.results import BenchError, Result
from bench.targets import TARGETS

README = Path(__file__).resolve().parent / "README.md"
FRONT_PAGE = ROOT / "README.md"
CAPACITY_PAGE = ROOT / "docs" / "explanation" / "capacity.md"
RESULTS = Path(__file__).resolve().parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.set_defaults(
        run=_run_all,
        scenarios=None,
        targets=None,
        out=None,
        publish=False,
        **_settings_defaults(),
    )
    commands = parser.add_subparsers(title="commands")

    everything = commands.add_parser("all", help="everything there is (the default)")
    everything.set_defaults(run=_run_all)
    everything.add_argument(
        "--publish", action="store_true", help="put the results into the documentation"
    )
    some = commands.add_parser("run", help="some scenarios, on some targets")
    some.set_defaults(run=_run_some)
    proxies = commands.add_parser("proxies", help="the short comparison with HAProxy")
    proxies.set_defaults(run=_run_proxies)
    for command in (everything, some, proxies):
        _add_settings(command)
        command.add_argument("--targets", type=_list, help="only these, comma separated")
    some.add_argument("--scenarios", type=_list, required=True, help="names, comma separated")

    sdks = commands.add_parser("sdk", help="real SDKs against the real CLI, direct and through")
    sdks.add_argument("--rounds", type=int, default=3, help="times each side is measured")
    sdks.add_argument("--cli", type=Path, help="the Copilot CLI (default: looked for)")
    sdks.add_argument("--out", type=Path, help="result file (default: bench/results/DATE-sdk.json)")
    sdks.set_defaults(run=_run_sdk)

    costs = commands.add_parser("cli", help="memory and CPU time of a real CLI")
    costs.add_argument("--cli", type=Path, help="the Copilot CLI (default: looked for)")
    costs.add_argument(
        "--out", type=Path, help="result file (default: bench/results/DATE-cli.json)"
    )
    costs.set_defaults(run=_run_cli)

    counted = commands.add_parser(
        "instructions", help="instructions per message of the gateway's own code, by callgrind"
    )
    counted.add_argument(
        "--out", type=Path, help="result file (default: bench/results/DATE-instructions.json)"
    )
    counted.set_defaults(run=_run_instructions)

    listing = commands.add_parser("list", help="name the scenarios and the targets")
    listing.set_defaults(run=_list_all)

    shown = commands.add_parser("report", help="print a result file as Markdown tables")
    shown.add_argument("result", type=Path)
    shown.set_defaults(run=_report)

    compared = commands.add_parser(
        "compare", help="name what got worse from one result file to another; status 1 if any"
    )
    compared.add_argument("before", type=Path)
    compared.add_argument("after", type=Path)
    compared.add_argument(
        "--tolerance",
        type=float,
        default=compare.TOLERANCE,
        help="relative change that is never reported (default: %(default)s)",
    )
    compared.set_defaults(run=_compare)

    plotted = commands.add_parser("plot", help="draw a result file as SVG")
    plotted.add_argument("result", type=Path)
    plotted.add_argument("--out", type=Path, help="folder (default: that of the result file)")
    plotted.set_defaults(run=_plot)

    published = commands.add_parser(
        "publish", help="put tables and plots of result files into the documentation"
    )
    published.add_argument("result", type=Path, nargs="+")
    published.set_defaults(run=_publish)
    return parser


def _settings_defaults() -> dict[str, object]:
    defaults = runner.Settings()
    return {
        "rounds": defaults.rounds,
        "seconds": defaults.seconds,
        "warmup": defaults.warmup,
        "no_pin": False,
    }


def _add_settings(parser: argparse.ArgumentParser) -> None:
    defaults = _settings_defaults()
    parser.add_argument("--rounds", type=int, default=defaults["rounds"])
    parser.add_argument("--seconds", type=float, default=defaults["seconds"], help="per round")
    parser.add_argument("--warmup", type=float, default=defaults["warmup"], help="seconds before")
    parser.add_argument(
        "--no-pin", action="store_true", help="do not bind proxies and load to cores of their own"
    )
    parser.add_argument("--out", type=Path, help="result file (default: bench/results/DATE.json)")


def _list(text: str) -> list[str]:
    return [each for each in text.split(",") if each]


def _settings(arguments: argparse.Namespace) -> runner.Settings:
    return runner.Settings(
        arguments.rounds, arguments.seconds, arguments.warmup, not arguments.no_pin
    )


def _targets(arguments: argparse.Namespace) -> list[str]:
    names = arguments.targets or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        raise BenchError(f"unknown target {unknown[0]} (there are: {', '.join(TARGETS)})")
    return names


def _scenarios(names: Sequence[str]) -> list[scenarios.Scenario]:
    chosen = []
    for name in names:
        scenario = scenarios.by_name(name)
        if scenario is None:
            raise BenchError(f"unknown scenario {name} (see `python -m bench list`)")
        chosen.append(scenario)
    return chosen


def _run_all(arguments: argparse.Namespace) -> int:
    result = runner.run(scenarios.SCENARIOS, _targets(arguments), _settings(arguments))
    status = _finish(result, arguments.out or RESULTS / f"{result.date}.json")
    found = [result]
    others: tuple[tuple[str, Callable[[], Result]], ...] = (
        ("sdk", sdk.run),
        ("cli", cli_cost.run),
        ("instructions", instructions.run),
    )
    for name, run in others:
        try:
            other = run()
        except BenchError as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
            continue
        status = _finish(other, RESULTS / f"{result.date}-{name}.json") or status
        found.append(other)
    if arguments.publish:
        _publish_results(found)
    else:
        for drawn in plot.draw(result, RESULTS / result.date):
            print(f"plot: {drawn}", file=sys.stderr)
    return status


def _run_some(arguments: argparse.Namespace) -> int:
    chosen = _scenarios(arguments.scenarios)
    result = runner.run(chosen, _targets(arguments), _settings(arguments))
    return _finish(result, arguments.out or RESULTS / f"{result.date}.json")


def _run_proxies(arguments: argparse.Namespace) -> int:
    targets = arguments.targets or ["haproxy", "gateway"]
    arguments.targets = targets
    chosen = _scenarios(scenarios.PROXIES)
    result = runner.run(chosen, _targets(arguments), _settings(arguments))
    return _finish(result, arguments.out or RESULTS / f"{result.date}-proxies.json")


def _run_sdk(arguments: argparse.Namespace) -> int:
    result = sdk.run(arguments.rounds, arguments.cli)
    return _finish(result, arguments.out or RESULTS / f"{result.date}-sdk.json")


def _run_cli(arguments: argparse.Namespace) -> int:
    result = cli_cost.run(arguments.cli)
    return _finish(result, arguments.out or RESULTS / f"{result.date}-cli.json")


def _run_instructions(arguments: argparse.Namespace) -> int:
    result = instructions.run()
    return _finish(result, arguments.out or RESULTS / f"{result.date}-instructions.json")


def _finish(result: Result, path: Path) -> int:
    results.save(result, path)
    print(_text(result))
    print(f"results: {path}", file=sys.stderr)
    return 1 if result.failed() else 0


def _text(result: Result) -> str:
    return _KINDS[_kind(result)](result)


_KINDS: dict[str, Callable[[Result], str]] = {
    "sdk": sdk.text,
    "cli": cli_cost.text,
    "instructions": instructions.text,
    "scenarios": report.text,
}
"""How each kind of result is shown; the names are those of sections in ``bench/README.md``."""


def _kind(result: Result) -> str:
    if sdk.is_sdk(result):
        return "sdk"
    if cli_cost.is_cli(result):
        return "cli"
    return "instructions" if instructions.is_instructions(result) else "scenarios"


def _list_all(arguments: argparse.Namespace) -> int:
    print("scenarios:")
    for scenario in scenarios.SCENARIOS:
        print(f"  {scenario.name:<16} {scenario.title}")
    print("targets:")
    for target in TARGETS.values():
        print(f"  {target.name:<18} {target.missing() or target.title}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    print(_text(results.load(arguments.result)))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    changes = compare.compare(
        results.load(arguments.before), results.load(arguments.after), arguments.tolerance
    )
    print(compare.text(changes))
    return 1 if any(change.worse for change in changes) else 0


def _plot(arguments: argparse.Namespace) -> int:
    folder = arguments.out or arguments.result.with_suffix("")
    for drawn in plot.draw(results.load(arguments.result), folder):
        print(drawn)
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    _publish_results([results.load(path) for path in arguments.result])
    return 0


def _publish_results(found: Sequence[Result]) -> None:
    """Put results into the documentation; of a kind that comes twice, the last counts.

    Raises:
        BenchError: A page lacks the markers of its section.
    """
    kinds = {_kind(result): result for result in found}
    for kind, result in kinds.items():
        text = _text(result)
        if kind == "scenarios":
            drawn = plot.draw(result, README.parent / "plots")
            images = "\n".join(f"![{each.stem}](plots/{each.name})" for each in drawn)
            text = f"{text}\n{images}\n"
            if short := report.proxies(result, scenarios.PROXIES):
                report.publish(FRONT_PAGE, "table: proxies", short)
        if kind == "sdk":
            report.publish(FRONT_PAGE, "table: sdk", text)
        report.publish(README, kind, text)
    sections = capacity.sections(kinds.get("scenarios"), kinds.get("cli"))
    for section, text in sections.items():
        report.publish(CAPACITY_PAGE, section, text)


if __name__ == "__main__":
    sys.exit(main())
