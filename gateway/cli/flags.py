"""Command line flags of settings, derived from :mod:`gateway.config`."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from pathlib import Path

from gateway.config.load import Source
from gateway.config.settings import CONFIG_VARIABLE, REPLICAS, SETTINGS, Setting

_PREFIX = "setting:"


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--config FILE``."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"configuration file in TOML (or set {CONFIG_VARIABLE})",
    )


def add_setting_flags(parser: argparse.ArgumentParser, names: Iterable[str] | None = None) -> None:
    """Add the flags of settings: of those named, or of all that have one."""
    flagged: dict[str, Setting] = {
        name: one for name, one in {**SETTINGS, REPLICAS.name: REPLICAS}.items() if one.flag
    }
    for name in flagged if names is None else names:
        one = flagged[name]
        # No defaults and no types here: a flag that was not given must leave the setting to the
        # environment and the file, and config.build validates all three sources alike.
        if one.kind.name == "boolean":
            parser.add_argument(
                one.flag,
                dest=_PREFIX + name,
                action="store_const",
                const=True,
                help=_help(one),
            )
            continue
        parser.add_argument(
            one.flag,
            dest=_PREFIX + name,
            metavar="|".join(one.kind.choices) or one.kind.metavar,
            action="append" if one.kind.many else "store",
            help=_help(one),
        )


def source_from(args: argparse.Namespace) -> Source:
    """Return where the settings come from: the flags given, the environment, the file."""
    flags = {
        name.removeprefix(_PREFIX): value
        for name, value in vars(args).items()
        if name.startswith(_PREFIX) and value is not None
    }
    file = args.config
    if file is None and (named := os.environ.get(CONFIG_VARIABLE)):
        file = Path(named)
    return Source(file, dict(os.environ), flags)


def _help(one: Setting) -> str:
    # The first sentence is enough for --help; the reference page has the rest.
    sentence = re.split(r"(?<=\.)\s", one.meaning.replace("`", ""), maxsplit=1)[0].rstrip(".")
    more = " (may be repeated)" if one.kind.many else ""
    return (sentence + more + f" [{one.name}]").replace("%", "%%")
