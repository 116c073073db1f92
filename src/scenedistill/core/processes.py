"""Processes of our own: started soon, and ended with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection
from typing import Any


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


def end_with_parent() -> None:
    """From now on, end this process, and its group where it leads one, as soon as the one that started it has ended: a
    kill of that one (-9) would leave this one at work that nobody waits for."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="watch the parent", daemon=True).start()
