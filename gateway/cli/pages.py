"""The reference page of settings and the example file, written from their definitions.

``python -m gateway.cli.pages`` writes both, and the page of commands
(:mod:`gateway.cli.command_page`); tests hold them up to date.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from gateway.cli.command_page import command_page
from gateway.config.settings import (
    CONFIG_VARIABLE,
    ENV_PREFIX,
    REPLICA_KEYS,
    REPLICA_TOKEN_VARIABLE,
    REPLICAS,
    SECTIONS,
    SETTINGS,
    TABLES,
    Setting,
)
from gateway.config.tables import TableList, settings_of

REFERENCE = Path("docs/reference/settings.md")
EXAMPLE = Path("deploy/gateway.toml")
COMMANDS = Path("docs/reference/cli.md")

_WIDTH = 96


def reference_page() -> str:
    """Return the reference page in Markdown."""
    return "\n".join(_reference()) + "\n"


def example_file() -> str:
    """Return the example file: every setting, explained, commented out at its default."""
    return "\n".join(_example()) + "\n"


def main() -> int:
    """Write the files into the repository that is the current directory."""
    for path, content in (
        (REFERENCE, reference_page()),
        (EXAMPLE, example_file()),
        (COMMANDS, command_page()),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
        print(path)
    return 0


def _reference() -> Iterator[str]:
    yield "# Settings"
    yield ""
    yield "<!-- Written by `python -m gateway.cli.pages` from gateway/config. Do not edit. -->"
    yield ""
    yield (
        "A setting is a key of a section in the TOML file, an environment variable "
        f"`{ENV_PREFIX}<SECTION>_<KEY>` and, for the common ones, a flag of `serve` and `check`. "
        "The first of these wins: flag, environment, file, default. An environment variable that "
        "is set but empty counts as not set."
    )
    yield ""
    yield (
        f"The file is named by `--config FILE` or `{CONFIG_VARIABLE}`; there is no other place "
        "where one is looked for. A name that is not known, in the file or among variables "
        f"starting with `{ENV_PREFIX}`, is an error. `copilot-gateway check` validates all of it "
        "without starting anything, and `check --print` shows each value and where it came from."
    )
    yield ""
    yield (
        'Durations are seconds (`2.5`) or a string with a unit: `"200ms"`, `"5s"`, `"2m"`, '
        '`"1h"`, `"30d"`. Sizes are bytes (`65536`) or a string: `"64KiB"`, `"1MiB"`, `"1GiB"`. '
        "Lists are separated by commas in environment variables; a flag for a list is repeated."
    )
    yield ""
    yield (
        "*Reload* says whether SIGHUP or `copilot-gateway reload` applies a change; the other "
        "settings take effect at the next start."
    )
    for section, owner in SECTIONS.items():
        if section == "spawn":
            yield from _replicas_reference()
        yield ""
        yield f"## [{section}]"
        yield ""
        yield inspect.getdoc(owner) or ""
        for one in SETTINGS.values():
            if one.section == section:
                yield from _setting_reference(one)
        for tables in _tables_after(section):
            yield from _tables_reference(tables)


def _setting_reference(one: Setting) -> Iterator[str]:
    yield ""
    yield f"### {one.name}"
    yield ""
    yield one.meaning
    yield ""
    yield "| type | default | environment | flag | reload |"
    yield "|---|---|---|---|---|"
    default = f"`{one.kind.show(one.default)}`" if one.in_file else "none"
    flag = f"`{one.flag}`" if one.flag else "-"
    kind = one.kind.name + ("" if one.in_file else ", environment only")
    reload = "yes" if one.reloadable else "no"
    yield f"| {kind} | {default} | `{one.variable}` | {flag} | {reload} |"


def _tables_after(section: str) -> Iterator[TableList]:
    """Yield the lists of tables that are described after a section: its own, or those of none."""
    for name, tables in TABLES.items():
        if name.rpartition(".")[0] == section or ("." not in name and section == "auth.jwt"):
            yield tables


def _tables_reference(tables: TableList) -> Iterator[str]:
    yield ""
    yield f"## [[{tables.name}]]"
    yield ""
    reload = "A reload applies changes." if tables.reloadable else "Changes need a restart."
    yield f"{tables.meaning} One table each, in the file only. {reload}"
    yield ""
    yield "| key | type | meaning |"
    yield "|---|---|---|"
    for one in settings_of(tables.owner):
        meaning = one.meaning + (" Required." if one.required else "")
        yield f"| `{one.key}` | {one.kind.name} | {meaning.replace('|', '&#124;')} |"
    yield ""
    yield "```toml"
    yield f"[[{tables.name}]]"
    yield tables.example
    yield "```"


def _tables_example(tables: TableList) -> Iterator[str]:
    yield ""
    yield from _comment(f"{tables.meaning} One table each.")
    yield f"#[[{tables.name}]]"
    for line in tables.example.splitlines():
        yield f"#{line}"


def _replicas_reference() -> Iterator[str]:
    yield ""
    yield "## [[replicas]]"
    yield ""
    yield (
        f"{REPLICAS.meaning} One table each. `{REPLICAS.flag} [NAME=]HOST:PORT`, repeated, or "
        f"`{REPLICAS.variable}` (separated by commas) replaces the whole list; their connection "
        f"token is `{REPLICA_TOKEN_VARIABLE}`. A reload adds and removes replicas."
    )
    yield ""
    yield "| key | meaning |"
    yield "|---|---|"
    for key, meaning in REPLICA_KEYS.items():
        yield f"| `{key}` | {meaning} |"


def _example() -> Iterator[str]:
    yield from _comment(
        "Settings of copilot-gateway. Everything is commented out and shows its default: uncomment "
        "what you change. Flags and environment variables win over this file; "
        "docs/reference/settings.md names them. `copilot-gateway check --config FILE` validates it."
    )
    yield from _comment(
        "Written by `python -m gateway.cli.pages`; a test loads it and compares the defaults."
    )
    for section, owner in SECTIONS.items():
        if section == "spawn":
            yield from _replicas_example()
        yield ""
        yield from _comment(inspect.getdoc(owner) or "")
        yield f"[{section}]"
        for one in SETTINGS.values():
            if one.section != section:
                continue
            yield ""
            yield from _comment(one.meaning)
            if one.in_file:
                yield f"#{one.key} = {one.kind.show(one.default)}"
            else:
                yield from _comment(f"Not in this file: set {one.variable}.")
        for tables in _tables_after(section):
            yield from _tables_example(tables)


def _replicas_example() -> Iterator[str]:
    yield ""
    yield from _comment(
        f"{REPLICAS.meaning} One table each; {REPLICA_TOKEN_VARIABLE} holds the connection token "
        "unless a table names its own."
    )
    yield "#[[replicas]]"
    values = {
        "name": '"cli-a"',
        "address": '"10.0.0.5:4321"',
        "token_env": '"CLI_A_TOKEN"',
        "token_file": '"/run/secrets/cli-a"',
        "weight": "1",
        "backup": "false",
    }
    for key, meaning in REPLICA_KEYS.items():
        yield from _comment(meaning)
        yield f"#{key} = {values[key]}"


def _comment(text: str) -> list[str]:
    plain = text.replace("`", "")
    return textwrap.wrap(plain, _WIDTH, initial_indent="# ", subsequent_indent="# ")


if __name__ == "__main__":
    sys.exit(main())
