"""``serve`` and ``check``: run the gateway, or say whether it could."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gateway.cli.flags import add_config_flag, add_setting_flags, source_from
from gateway.config.load import check
from gateway.config.settings import REPLICAS, SETTINGS, TABLES, Settings
from gateway.config.tables import settings_of
from gateway.errors import EXIT_OK

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(subparsers: Subparsers) -> None:
    """Register ``serve`` and ``check``."""
    serve = subparsers.add_parser("serve", help="run the gateway", allow_abbrev=False)
    add_config_flag(serve)
    add_setting_flags(serve)
    serve.set_defaults(run=run_serve)
    checking = subparsers.add_parser(
        "check",
        help="validate the configuration without starting anything",
        allow_abbrev=False,
    )
    add_config_flag(checking)
    add_setting_flags(checking)
    checking.add_argument(
        "--print",
        action="store_true",
        dest="show",
        help="print every setting with its value and where that came from; secrets are masked",
    )
    checking.set_defaults(run=run_check)


def run_serve(args: argparse.Namespace) -> int:
    """Run the gateway until it is told to stop; return the exit status."""
    settings = source_from(args).load()
    check(settings)
    # Only now: a wrong setting is reported without waiting for the server's imports.
    from gateway.app import run  # noqa: PLC0415

    return run(settings)


def run_check(args: argparse.Namespace) -> int:
    """Validate the configuration; return the exit status."""
    settings = source_from(args).load()
    check(settings)
    from gateway.app.policies import check_policies  # noqa: PLC0415 - heavy

    check_policies(settings)
    if args.show:
        print("\n".join(effective(settings)))
    print("configuration ok")
    return EXIT_OK


def effective(settings: Settings) -> list[str]:
    """Return lines of TOML with every setting, its value and its origin; secrets are masked."""
    lines: list[str] = []
    section = ""
    for name, one in SETTINGS.items():
        if one.section != section:
            section = one.section
            lines += ["", f"[{section}]"]
        origin = settings.origins.get(name, "default")
        if one.in_file:
            lines.append(f"{one.key} = {one.kind.show(settings.get(name))}  # {origin}")
        else:
            lines.append(f"# {one.variable} is {'set' if settings.get(name) else 'not set'}")
    for name in TABLES:
        for entry in settings.get(name):
            lines += ["", f"[[{name}]]  # {settings.origins.get(name, 'default')}"]
            for one in settings_of(type(entry)):
                value = getattr(entry, one.key)
                if value != one.default:
                    lines.append(f"{one.key} = {one.kind.show(value)}")
    for replica in settings.replicas:
        lines += ["", "[[replicas]]  # " + settings.origins.get(REPLICAS.name, "default")]
        lines.append(f'name = "{replica.name}"')
        lines.append(f'address = "{replica.address}"')
        if replica.token_file is not None:
            lines.append(f'token_file = "{replica.token_file}"')
        elif replica.token is not None:
            lines.append('# token = "***"')
    return [*lines[1:], ""]
