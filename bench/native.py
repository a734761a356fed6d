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
_TLS_FLAGS = ("-DHAVE_OPENSSL", "-lssl", "-lcrypto")


def _compiler() -> str:
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        raise BenchError("the benchmarks need a C compiler (Debian: apt install build-essential)")
    return compiler


@functools.cache
def has_header(name: str) -> bool:
    """Whether a C program can include ``name``."""
    tried = subprocess.run(
        [_compiler(), "-fsyntax-only", "-x", "c", "-"],
        input=f"#include <{name}>\n",
        capture_output=True,
        text=True,
        check=False,
    )
    return tried.returncode == 0


def speaks_tls() -> bool:
    """Whether the load generator can be built with TLS."""
    return has_header("openssl/ssl.h")


@functools.cache
def program(name: str) -> Path:
    """The executable built from ``bench/native/NAME.c``.

    Raises:
        BenchError: There is no C compiler, or it fails.
    """
    return _built(name, _TLS_FLAGS if name == "loadgen" and speaks_tls() else ())


@functools.cache
def library(name: str) -> Path:
    """The shared library built from ``bench/native/NAME.c``.

    Raises:
        BenchError: There is no C compiler, or it fails.
    """
    return _built(name, ("-shared", "-fPIC"))


def _built(name: str, extra: tuple[str, ...]) -> Path:
    compiler, flags = _compiler(), (*_FLAGS, *extra)
    sources = (_SOURCES / f"{name}.c", _SOURCES / "wire.h")
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in sources))
    digest.update(" ".join((compiler, *flags)).encode())
    binary = _CACHE / f"{name}-{digest.hexdigest()[:16]}"
    if not binary.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = binary.with_suffix(f".{os.getpid()}")
        command = [compiler, "-o", str(unfinished), str(sources[0]), *flags]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            raise BenchError(f"cannot compile {sources[0].name}:\n{built.stderr}")
        unfinished.rename(binary)
    return binary
