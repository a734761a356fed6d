"""What the demo writes to terminals, pipes and old encodings."""

from __future__ import annotations

import io

import pytest

from gateway.demo.screen import TEXT_WIDTH, Cell, Screen, duration


class Terminal(io.TextIOWrapper):
    """A stream with an encoding that may claim to be a terminal."""

    def __init__(self, encoding: str = "utf-8", tty: bool = True) -> None:
        self.bytes = io.BytesIO()
        self._tty = tty
        super().__init__(self.bytes, encoding=encoding, newline="\n")

    def isatty(self) -> bool:
        return self._tty

    @property
    def text(self) -> str:
        self.flush()
        return self.bytes.getvalue().decode(self.encoding)


def show(out: Terminal, env: dict[str, str]) -> str:
    screen = Screen(out, env)
    screen.heading("Part")
    screen.done(Cell("x", 4), screen.replica("cli-0", 7), "text", seconds=0.1)
    screen.failed("wrong")
    return out.text


def test_colour_on_a_terminal_only() -> None:
    assert "\x1b[" in show(Terminal(), {"TERM": "xterm"})
    for out, env in (
        (Terminal(tty=False), {}),
        (Terminal(), {"NO_COLOR": "1"}),
        (Terminal(), {"TERM": "dumb"}),
    ):
        assert "\x1b" not in show(out, env)


def test_colour_moves_no_column() -> None:
    plain = show(Terminal(tty=False), {})
    coloured = show(Terminal(), {})
    for code in ("0", "1", "2", "31", "32", "36"):
        coloured = coloured.replace(f"\x1b[{code}m", "")
    assert coloured == plain


def test_times_stand_in_one_column() -> None:
    out = Terminal(tty=False)
    screen = Screen(out, {})
    screen.done("short", seconds=0.003)
    screen.done("a longer text", seconds=12.3)
    screen.done("x" * (TEXT_WIDTH + 5), seconds=1.0)
    first, second, third = out.text.splitlines()
    assert len(first) == len(second)
    assert first.endswith("3 ms") and second.endswith("12.30 s")
    assert third.endswith("x " + f"{'1.00 s':>8}")


def test_each_replica_keeps_its_colour() -> None:
    screen = Screen(Terminal(), {})
    first = screen.replica("cli-0")
    assert screen.replica("cli-1").style != first.style
    assert screen.replica("cli-0") == first


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_without_marks(encoding: str) -> None:
    assert "  x wrong\n" in show(Terminal(encoding, tty=False), {})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ms"), (0.0126, "13 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"), (61.5, "61.50 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
