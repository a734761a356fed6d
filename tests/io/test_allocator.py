"""The allocator keeps what large reads need again and again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gateway.io.allocator import keep_freed_memory

PROGRAM = """
import resource, sys
from gateway.io.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def read():
    buffers = [b"%d" % number * (100 << 10) for number in range(4)]
def faults():
    for _ in range(3):
        read()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        read()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library has no mallopt")
def test_pages_are_not_mapped_anew_for_every_buffer() -> None:
    # 50 times 400 KiB are 5,000 pages; what is kept is mapped once.
    assert faults("kept") * 10 < faults("default")
