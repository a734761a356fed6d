"""Describes the machine that results were taken on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.native import ROOT


def now() -> str:
    """The time in the form of file names and result files."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")


def describe() -> dict[str, Any]:
    """CPU, kernel, versions and how busy the machine is before the run."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1
        ),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "haproxy": _version(["/usr/sbin/haproxy", "-v"]),
        "nginx": _version(["/usr/sbin/nginx", "-v"]),
        "commit": _version(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _version(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = (done.stdout or done.stderr).strip()
    return text.splitlines()[0] if done.returncode == 0 and text else None
