"""The demo's output: aligned lines with times, in colour where the terminal shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

TEXT_WIDTH = 68
"""Columns between the mark at the start of a line and the time at its end."""

_TIME_WIDTH = 8

BOLD = "1"
DIM = "2"
RED = "31"
GREEN = "32"
_REPLICA_STYLES = ("36", "35", "33", "34")


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of a line.

    Attributes:
        text: what it says.
        width: columns to fill; longer text is not cut.
        style: SGR parameters of the terminal, or "".
    """

    text: str
    width: int = 0
    style: str = ""


class Screen:
    """Writes lines to ``out`` as things happen."""

    def __init__(self, out: TextIO, env: Mapping[str, str]) -> None:
        self._out = out
        self._colour = out.isatty() and not env.get("NO_COLOR") and env.get("TERM") != "dumb"
        encoding = (out.encoding or "ascii").lower().replace("-", "")
        self._good, self._bad = ("✓", "✗") if encoding.startswith("utf") else ("+", "x")
        self._replicas: dict[str, str] = {}

    def replica(self, name: str, width: int = 0) -> Cell:
        """Return a replica's name in a colour of its own."""
        style = _REPLICA_STYLES[len(self._replicas) % len(_REPLICA_STYLES)]
        return Cell(name, width, self._replicas.setdefault(name, style))

    def heading(self, text: str) -> None:
        """Begin a part."""
        self._write("", self._styled(text, BOLD))

    def note(self, text: str) -> None:
        """Explain something."""
        self._write("  " + self._styled(text, DIM))

    def done(self, *cells: Cell | str, seconds: float | None = None) -> None:
        """Show something that happened, and how long it took."""
        parts, length = [], 0
        for cell in cells:
            piece = cell if isinstance(cell, Cell) else Cell(cell)
            padding = " " * (piece.width - len(piece.text))
            parts.append(self._styled(piece.text, piece.style) + padding)
            length += len(piece.text) + len(padding)
        line = f"  {self._styled(self._good, GREEN)} {''.join(parts)}"
        if seconds is not None:
            line += " " * max(1, TEXT_WIDTH - length)
            line += self._styled(f"{duration(seconds):>{_TIME_WIDTH}}", DIM)
        self._write(line)

    def failed(self, text: str) -> None:
        """Show what did not happen as it should have."""
        self._write(f"  {self._styled(self._bad, RED)} {text}")

    def _styled(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self._colour and style and text else text

    def _write(self, *lines: str) -> None:
        self._out.write("".join(f"{line}\n" for line in lines))
        self._out.flush()


def duration(seconds: float) -> str:
    """Return a time span for people: ``3 ms``, ``1.07 s``."""
    return f"{seconds:.2f} s" if seconds >= 0.9995 else f"{seconds * 1000:.0f} ms"
