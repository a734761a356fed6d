"""The reference page of commands, written from the command line's own parser.

``python -m gateway.cli.pages`` writes it; a test holds it up to date.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from gateway.cli.main import PROGRAM, build_parser
from gateway.config.settings import REPLICAS, SETTINGS

_SETTING = re.compile(r" \[([a-z_]+(?:\.[a-z_]+)*)\]$")


def command_page() -> str:
    """Return the reference page in Markdown."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    parser = build_parser()
    commands = list(_commands(parser, PROGRAM))
    yield "# Commands"
    yield ""
    yield "<!-- Written by `python -m gateway.cli.pages` from gateway/cli. Do not edit. -->"
    yield ""
    yield (
        "Flags may not be abbreviated. Secrets are never flags: other users of the machine could "
        "read them. [Exit statuses](errors.md#exit-statuses) are the same for all commands."
    )
    yield ""
    yield "| command | what it does |"
    yield "|---|---|"
    for name, summary, _ in commands:
        yield f"| [`{name}`](#{name.replace(' ', '-')}) | {_cell(summary)} |"
    for name, summary, command in commands:
        yield from _command(name, summary, command)


def _commands(
    parser: argparse.ArgumentParser, prefix: str
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Yield name, summary and parser of every command that has no commands below it."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        summaries = {one.dest: one.help or "" for one in action._choices_actions}
        for name, command in action.choices.items():
            full = f"{prefix} {name}"
            below = list(_commands(command, full))
            if below:
                yield from below
            else:
                yield full, summaries.get(name, ""), command


def _command(name: str, summary: str, command: argparse.ArgumentParser) -> Iterator[str]:
    shown = [action for action in command._actions if action.help is not argparse.SUPPRESS]
    flags = [action for action in shown if action.option_strings and action.dest != "help"]
    arguments = [action for action in shown if not action.option_strings]
    yield ""
    yield f"## {name}"
    yield ""
    text = command.description or summary
    yield text[:1].upper() + text[1:].rstrip(".").replace("%%", "%") + "."
    yield ""
    yield "```"
    yield " ".join(
        [name, *(["[FLAG ...]"] if flags else []), *(_argument(one) for one in arguments)]
    )
    yield "```"
    if not flags and not arguments:
        return
    yield ""
    yield "| flag | meaning |"
    yield "|---|---|"
    for action in [*arguments, *flags]:
        yield f"| {_name(action)} | {_meaning(action)} |"


def _argument(action: argparse.Action) -> str:
    name = _metavar(action)
    if action.nargs == "?":
        return f"[{name}]"
    return f"{name} ..." if action.nargs == "+" else name


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return action.dest.upper()


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_metavar(action)}`"
    flag = ", ".join(action.option_strings)
    shown = flag if action.nargs == 0 else f"{flag} {_metavar(action)}"
    # A bar inside of a table cell, code or not, would end the cell.
    return f"`{_cell(shown)}`"


def _meaning(action: argparse.Action) -> str:
    """Return the help text; a flag of a setting links to it."""
    text = (action.help or "") % {**vars(action), "prog": PROGRAM}
    needed = " (required)" if action.required and action.option_strings else ""
    setting = _SETTING.search(text)
    if setting is not None and setting[1] in {*SETTINGS, REPLICAS.name}:
        anchor = setting[1].replace(".", "")
        text = f"{text[: setting.start()]}: [{setting[1]}](settings.md#{anchor})"
    return _cell(text) + needed


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
