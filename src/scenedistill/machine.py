"""What the machine gives to this process."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any


def usable_cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forking_context(module: str) -> Any:
    """The multiprocessing context that starts processes soonest and without what this process has in its memory.

    Args:
        module: what the processes import; once for all of them, where the system can fork.
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload([module])
    return context
