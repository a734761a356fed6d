"""How the process keeps memory that it has freed."""

from __future__ import annotations

import ctypes

TRIM_BYTES = 32 * 1024 * 1024
"""Freed memory at the end of the heap up to this size stays with the process."""

MMAP_BYTES = 8 * 1024 * 1024
"""From this size on a block is mapped by itself, and unmapped when it is freed."""

TOP_PAD_BYTES = 1024 * 1024
"""What the heap grows by beyond what is asked for."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Tell the C library not to hand large buffers back to the kernel after each use.

    Every read of a stream allocates what it received and frees it once that is written. By default
    glibc gives blocks from 128 KiB on back at once, and the kernel clears and maps the same pages
    for the next read: half of the CPU time of 40 KiB events, measured. What is kept is bounded
    by :data:`TRIM_BYTES`.

    Returns:
        Whether this C library has such settings.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(
        mallopt(option, size) == 1
        for option, size in (
            (_M_TRIM_THRESHOLD, TRIM_BYTES),
            (_M_TOP_PAD, TOP_PAD_BYTES),
            (_M_MMAP_THRESHOLD, MMAP_BYTES),
        )
    )
