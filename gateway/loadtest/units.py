"""Times and sizes as people read them. Pure."""

from __future__ import annotations


def format_micros(micros: float) -> str:
    """Write a latency with three significant digits: ``850us``, ``12.3ms``, ``4.56s``."""
    if micros < 0.5:
        return "0"
    if micros < 999.5:
        return f"{micros:.0f}us"
    if micros < 999_500:
        return f"{_three(micros / 1e3)}ms"
    return f"{_three(micros / 1e6)}s"


def format_number(value: float) -> str:
    """Write a count or a rate briefly: ``42``, ``9.5``, ``12.3k``, ``4.56M``."""
    if value < 10 and value != int(value):
        return f"{value:.2g}" if value < 1 else f"{value:.1f}"
    if value < 9_999.5:
        return f"{value:.0f}"
    if value < 999_500:
        return f"{_three(value / 1e3)}k"
    return f"{_three(value / 1e6)}M"


def format_seconds(seconds: float) -> str:
    """Write a duration: ``12.0s``, ``3m05s``, ``2h00m``."""
    if seconds < 99.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def format_bytes(count: float) -> str:
    """Write a number of bytes: ``512 B``, ``1.50 MB``."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{_three(count)} {unit}"
        count /= 1000
    return f"{_three(count)} GB"


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
