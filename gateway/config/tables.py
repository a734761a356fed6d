"""Settings that come as tables of the file: nested ones, and lists such as ``[[tenants]]``.

A table is a frozen dataclass whose fields are made by :func:`~gateway.config.settings.setting`,
like a section; it stands in the file only.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.config.kinds import Kind

if TYPE_CHECKING:
    from gateway.config.settings import Setting

T = TypeVar("T")

REQUIRED: Any = ""
"""Default of the keys that a table must have; none of them may be empty."""


@dataclass(frozen=True, slots=True)
class TableList:
    """The one definition of a list of tables.

    Attributes:
        name: where it stands: ``tenants``, or ``policy.methods`` in a section.
        owner: dataclass of one table.
        meaning: what it does, for the reference page.
        example: one table as TOML, for the example file.
        reloadable: whether SIGHUP applies a change.
    """

    name: str
    owner: type
    meaning: str
    example: str
    reloadable: bool


def table_list(owner: type, meaning: str, example: str, *, reloadable: bool = False) -> Any:
    """Declare a field that holds a list of tables; see :class:`TableList`."""
    made = TableList("", owner, meaning, example, reloadable)
    return dataclasses.field(default=(), metadata={"tables": made})


def settings_of(owner: type) -> Iterator[Setting]:
    """Yield the definitions of a table's keys."""
    for one in dataclasses.fields(owner):
        yield dataclasses.replace(one.metadata["setting"], key=one.name)


def table(owner: type[T]) -> Kind[T | None]:
    """A nested table; None where the file has none."""

    def read(value: object) -> T | None:
        return read_table(owner, value)

    def read_text(text: str) -> T | None:
        raise ValueError("can only be set in the file")

    return Kind("table", read, read_text, show_table)


def read_table(owner: type[T], value: object) -> T:
    """Make a table's dataclass from its TOML form.

    Raises:
        ValueError: begins with the key that is wrong.
    """
    if not isinstance(value, dict):
        raise ValueError("must be a table")
    known = {one.key: one for one in settings_of(owner)}
    for key in value:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
            raise ValueError(f"has an unknown key {key}{hint}")
    values: dict[str, Any] = {}
    for key, one in known.items():
        if key not in value:
            if one.required:
                raise ValueError(f"lacks {key}")
            continue
        try:
            values[key] = one.kind.read(value[key])
        except ValueError as error:
            quoted = f", not {_clip(value[key])}" if _quotable(one, value[key]) else ""
            raise ValueError(f"{key} {error}{quoted}") from None
    return owner(**values)


def show_table(value: Any) -> str:
    """Write a table's dataclass as an inline table, without the keys at their default."""
    if value is None:
        return "{}"
    shown = [
        f"{one.key} = {one.kind.show(getattr(value, one.key))}"
        for one in settings_of(type(value))
        if getattr(value, one.key) != one.default
    ]
    return "{ " + ", ".join(shown) + " }" if shown else "{}"


def read_tables(one: TableList, value: object, where: str) -> tuple[Any, ...]:
    """Make the dataclasses of a list of tables.

    Raises:
        ValueError: begins with which table is wrong.
    """
    if not isinstance(value, list):
        raise ValueError(f"{where}: {one.name} must be a list of tables: [[{one.name}]]")
    made: list[Any] = []
    for index, entry in enumerate(value):
        try:
            made.append(read_table(one.owner, entry))
        except ValueError as error:
            raise ValueError(f"{where}: {one.name}[{index}] {error}") from None
    return tuple(made)


def collect_tables(owners: Mapping[str, type], top: type) -> dict[str, TableList]:
    """Return the lists of tables among the fields of the sections and of the settings."""
    found: dict[str, TableList] = {}
    places: Sequence[tuple[str, type]] = [*owners.items(), ("", top)]
    for section, owner in places:
        for one in dataclasses.fields(owner):
            made: TableList | None = one.metadata.get("tables")
            if made is not None:
                name = f"{section}.{one.name}" if section else one.name
                found[name] = dataclasses.replace(made, name=name)
    return found


def _quotable(one: Setting, value: object) -> bool:
    return not one.private and not isinstance(value, dict | list)


def _clip(value: object) -> str:
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= 80 else shown[:77] + "..."
