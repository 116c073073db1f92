"""Child processes that start quickly and end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection
from typing import Any


def forking_context(module: str) -> Any:
    """Return the multiprocessing context that starts processes fastest without copying this process's memory.

    Args:
        module: module that the processes import; imported once for all of them if the system can fork.
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload([module])
    return context


def end_with_parent() -> None:
    """End this process, and its process group if it leads one, as soon as its parent has ended.

    Otherwise it would continue after a `kill -9` of the parent.
    """
    # multiprocessing ends daemonic children only where the parent leaves normally; Linux's PR_SET_PDEATHSIG is not on
    # other systems, and already fires when the thread ends that started the process
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="watch the parent", daemon=True).start()
