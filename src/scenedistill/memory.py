"""Keeping a process's memory between training steps instead of giving it back to the system after each."""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt parameters, from malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_memory() -> None:
    """Tell glibc to reuse the large blocks that a CPU training step frees.

    By default each tensor above 32 MiB is mapped afresh in every step and its pages are zeroed one by one; on a virtual
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
