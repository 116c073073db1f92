"""Keep freed memory in the process between training steps, or return it to the system after a task."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

# glibc's mallopt parameters, from malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_memory() -> None:
    """Tell glibc to reuse the large blocks that a CPU training step frees.

    By default each tensor above 32 MiB is mapped again in every step and its pages are zeroed one by one; on a virtual
    machine that can cost more than the arithmetic. Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    except (OSError, AttributeError):
        return


def release_memory() -> None:
    """Make glibc return freed memory to the system; by default it keeps the memory that decoding threads have used.

    Does nothing where there is no glibc.
    """
    gc.collect()
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return


def memory_pages() -> list[int]:
    """Return Linux's counts of this process's pages: total, resident, shared, code, 0, data; empty elsewhere."""
    try:
        return [int(field) for field in Path("/proc/self/statm").read_text(encoding="ascii").split()]
    except OSError:
        return []
