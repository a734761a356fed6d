"""The direction of imports: each layer knows those before it, and nothing else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

GATEWAY = Path(__file__).resolve().parents[1] / "gateway"

_BASE = {"errors", "types"}
_PURE = {"wire", "routing", "policy"}
_CORE = _BASE | _PURE
_IO = _CORE | {"core", "config"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "wire": _BASE,
    "routing": _BASE | {"wire"},
    "policy": _BASE | {"wire"},
    "core": _CORE,
    "config": _BASE,
    "io": _IO,
    "app": _IO | {"io"},
    "demo": _IO | {"io", "testing"},
    "loadtest": _BASE | {"wire", "config", "io", "testing"},
    "cli": _IO | {"io", "app", "demo", "loadtest", "testing"},
    "testing": _BASE | {"wire"},
}
"""What the modules of each part of ``gateway`` may import from the other parts."""

OUTSIDE_WORLD = {
    "aiohttp",
    "http",
    "os",
    "random",
    "redis",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "threading",
    "time",
    "urllib",
    "uvloop",
}
"""Modules through which a pure layer would reach the outside, the clock included."""

HARMLESS = {
    # For the function that reads a certificate's form of a date.
    ("gateway.policy.certificate_identity", "ssl"),
    # For the draws that are handed to the pure balancer.
    ("gateway.core.placer", "random"),
}
"""Exceptions to :data:`OUTSIDE_WORLD`: who imports what."""


class Import(NamedTuple):
    """One import statement of a module of the gateway.

    Attributes:
        module: who imports, as ``gateway.core.client``.
        line: where.
        name: what is imported, as far as it is a module.
        typing: it stands under ``if TYPE_CHECKING``.
        lazy: it stands in a function.
    """

    module: str
    line: int
    name: str
    typing: bool
    lazy: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.name}"


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(GATEWAY.rglob("*.py")):
        parts = path.relative_to(GATEWAY.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _targets(module: str, path: Path, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        package = package[: len(package) - node.level + 1]
        base = ".".join([*package, base] if base else package)
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if inner in MODULES else base


def _imports(module: str, path: Path) -> Iterator[Import]:
    def walk(node: ast.AST, typing: bool, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                for name in _targets(module, path, child):
                    yield Import(module, child.lineno, name, typing, lazy)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, True, lazy)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                yield from walk(child, typing, lazy or inside)

    yield from walk(ast.parse(path.read_text()), False, False)


IMPORTS = [one for module, path in MODULES.items() for one in _imports(module, path)]


def _part(name: str) -> str:
    """Return the part of the gateway that a module belongs to; "" for the package itself."""
    return name.split(".")[1] if "." in name else ""


def test_every_part_has_its_place() -> None:
    assert {_part(module) for module in MODULES} - {""} == MAY_IMPORT.keys()


def test_the_table_itself_has_a_direction() -> None:
    assert list(TopologicalSorter(MAY_IMPORT).static_order())


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_layers_import_only_those_before_them(part: str) -> None:
    wrong = [
        str(one)
        for one in IMPORTS
        if one.name.startswith("gateway.")
        and _part(one.module) == part
        and _part(one.name) not in MAY_IMPORT[part] | {part}
    ]
    assert not wrong


@pytest.mark.parametrize("part", ["errors", "types", "wire", "routing", "policy", "core"])
def test_pure_layers_do_not_reach_outside(part: str) -> None:
    wrong = [
        str(one)
        for one in IMPORTS
        if _part(one.module) == part
        and one.name.split(".")[0] in OUTSIDE_WORLD
        and one.name != "urllib.parse"
        and (one.module, one.name) not in HARMLESS
    ]
    assert not wrong


@pytest.mark.parametrize("part", ["errors", "types", "wire", "routing", "policy"])
def test_only_the_core_waits(part: str) -> None:
    """Below the core there is nothing to await; what may be awaited is an interface."""
    wrong = [
        str(one) for one in IMPORTS if _part(one.module) == part and one.name.startswith("asyncio")
    ]
    assert not wrong


def test_modules_import_each_other_in_one_direction() -> None:
    graph: dict[str, set[str]] = {}
    for one in IMPORTS:
        if one.name in MODULES and not one.typing and not one.lazy and one.name != one.module:
            graph.setdefault(one.module, set()).add(one.name)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_gateway_does_not_import_its_tests() -> None:
    roots = {one.name.split(".")[0] for one in IMPORTS}
    assert not roots & {"tests", "bench"}
