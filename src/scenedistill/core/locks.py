"""A lock file that one process holds at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from scenedistill.core.terminal import plain_console


@contextlib.contextmanager
def held(file: Path, doing: str, *, tell: bool = True) -> Iterator[None]:
    """Hold a lock file, which the system frees when its holder dies; wait while another process holds it.

    Args:
        file: the lock file; it stays.
        doing: what the holder does, for the message, such as `drawing these scenes`.
        tell: print on the standard error that this process waits.
    """
    lock = filelock.FileLock(file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if tell:
            plain_console(stderr=True).print(f"Another process is {doing}; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
