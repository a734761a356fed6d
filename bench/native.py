"""Compiles the C programs under ``bench/native`` on demand.

They are in C so that load generator and stub replicas leave the machine's cores to what is
measured. The binaries go to ``.cache/bench`` under a name that holds the sources' hash.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from bench.results import BenchError

ROOT = Path(__file__).resolve().parent.parent
_SOURCES = Path(__file__).resolve().parent / "native"
_CACHE = ROOT / ".cache" / "bench"
_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")


@functools.cache
def program(name: str) -> Path:
    """The executable built from ``bench/native/NAME.c``.

    Raises:
        BenchError: There is no C compiler, or it fails.
    """
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        raise BenchError("the benchmarks need a C compiler (Debian: apt install build-essential)")
    sources = (_SOURCES / f"{name}.c", _SOURCES / "wire.h")
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in sources))
    digest.update(" ".join((compiler, *_FLAGS)).encode())
    binary = _CACHE / f"{name}-{digest.hexdigest()[:16]}"
    if not binary.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = binary.with_suffix(f".{os.getpid()}")
        command = [compiler, *_FLAGS, "-o", str(unfinished), str(sources[0])]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            raise BenchError(f"cannot compile {sources[0].name}:\n{built.stderr}")
        unfinished.rename(binary)
    return binary
