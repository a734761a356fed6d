"""The figures a measurement yields, and which direction is better.

One round of one scenario on one target is a flat ``dict[str, float]`` from these names to values; a
figure that a target cannot have (CPU of the proxy on a direct connection) is absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Round = dict[str, float]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a figure means.

    Attributes:
        title: Column heading.
        unit: Unit of the stored value.
        better: Which direction is an improvement; ``None`` for figures that only explain others.
        digits: Decimals shown.
    """

    title: str
    unit: str
    better: Literal["lower", "higher"] | None
    digits: int = 0


METRICS: dict[str, Metric] = {
    "messages_per_second": Metric("messages/s", "1/s", "higher"),
    "requests_per_second": Metric("requests/s", "1/s", "higher"),
    "p50_us": Metric("p50", "µs", "lower", 1),
    "p99_us": Metric("p99", "µs", "lower", 1),
    "p999_us": Metric("p99.9", "µs", "lower", 1),
    "cpu_us_per_message": Metric("CPU per message", "µs", "lower", 2),
    "instructions_per_message": Metric("instructions per message", "", "lower"),
    "memory_per_connection": Metric("memory per connection", "bytes", "lower"),
    "memory_per_session": Metric("memory per session", "bytes", "lower"),
    "memory_peak_growth": Metric("memory growth", "bytes", "lower"),
    "cli_memory_at_start": Metric("memory at start", "bytes", None),
    "cli_memory_per_connection": Metric("memory per idle connection", "bytes", None),
    "cli_memory_per_session": Metric("memory per new session", "bytes", None),
    "cli_memory_per_used_session": Metric("memory per session with turns", "bytes", None),
    "cli_memory_kept_per_session": Metric("of that, kept after it was closed", "bytes", None),
    "cli_cpu_ms_per_turn": Metric("CPU per turn", "ms", None, 1),
    "events_per_turn": Metric("events per turn", "", None, 1),
    "bytes_per_turn": Metric("bytes per turn, both ways", "bytes", None),
    "proxy_cpu_share": Metric("proxy CPU", "cores", None, 2),
    "stub_cpu_share": Metric("stub CPU", "cores", None, 2),
    "loadgen_cpu_share": Metric("load generator CPU", "cores", None, 2),
}
