"""Command line: ``python -m tests.chaos``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from pathlib import Path

from tests.chaos.fleet import MissingProgramError
from tests.chaos.report import complaints, table
from tests.chaos.run import Options, StartError, run
from tests.chaos.schedule import Kind
from tests.support.stack import CliMissingError

_SHOWN = 30
"""Lines of details; the JSON file has all."""


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Real clients and replicas under faults: is any conversation lost or forked?",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--target",
        nargs="+",
        choices=("gateway", "haproxy"),
        default=["gateway"],
        help="what stands in front of the replicas; several run one after the other",
    )
    add("--minutes", type=float, default=3.0, help="how long faults strike")
    add("--sessions", type=int, default=24, help="conversations at a time")
    add("--replicas", type=int, default=3, help="number of real CLIs")
    add("--gateways", type=int, default=2, help="number of gateways, or of balancers")
    add("--storage", choices=("shared", "local"), default="shared", help="disks of the replicas")
    add(
        "--durable",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a gateway acknowledges a prompt when it is in the journal",
    )
    add("--seed", type=int, default=1, help="of the faults and of what the clients say")
    add(
        "--faults",
        nargs="*",
        choices=[str(kind) for kind in Kind],
        default=[str(kind) for kind in Kind],
        help="kinds of faults that may strike; none given: none do",
    )
    add("--json", type=Path, metavar="FILE", help="write everything here")
    add("--keep", type=Path, metavar="FOLDER", help="keep homes and logs in this new folder")
    add("--verbose", action="store_true", help="say what is being done")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run; return 1 if the gateway lost, forked or left waiting anything."""
    given = _parse(argv)
    logging.basicConfig(level=logging.CRITICAL, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("tests.chaos").setLevel(logging.INFO if given.verbose else logging.ERROR)
    results = []
    for target in given.target:
        keep = None
        if given.keep is not None:
            keep = (given.keep / target).resolve()
            keep.mkdir(parents=True)
        options = Options(
            target=target,
            seconds=given.minutes * 60,
            sessions=given.sessions,
            replicas=given.replicas,
            gateways=given.gateways,
            storage=given.storage,
            durable=given.durable,
            seed=given.seed,
            kinds=tuple(Kind(kind) for kind in given.faults),
            keep=keep,
        )
        print(f"{target}: {options.seconds:.0f} s of faults, seed {options.seed}", file=sys.stderr)
        try:
            results.append(asyncio.run(run(options)))
        except (CliMissingError, MissingProgramError) as error:
            print(error, file=sys.stderr)
            return 3
        except StartError as error:
            print(f"the conversations did not get going:\n{error}", file=sys.stderr)
            return 1
        for line in complaints(results[-1])[:_SHOWN]:
            print(f"{target}: {line}", file=sys.stderr)
    print(table(results))
    if given.json is not None:
        given.json.write_text(json.dumps([each.to_dict() for each in results], indent=1) + "\n")
    return int(any(not each.good for each in results if each.target == "gateway"))


if __name__ == "__main__":
    raise SystemExit(main())
