"""Running cells in separate processes, so that a crash does not affect the others, several at a time if wanted."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from rich.console import Console

from scenedistill.core.disk import disk_full
from scenedistill.core.errors import UserError
from scenedistill.core.machine import usable_cores
from scenedistill.core.processes import end_with_parent, forking_context
from scenedistill.core.terminal import plain_console
from scenedistill.core.text import one_line
from scenedistill.experiments.grid.cells import Cell
from scenedistill.experiments.grid.config import GridConfig, grid_words
from scenedistill.experiments.grid.work import Work, do_cells


@dataclass(frozen=True)
class Order:
    """A cell to run, or several side by side, with their settings.

    Attributes:
        config: the grid.
        out: its folder.
        work: each cell with the settings that it tries or that tuning has chosen.
        threads: CPU threads.
    """

    config: GridConfig
    out: Path
    work: tuple[Work, ...]
    threads: int | None = None

    @property
    def cells(self) -> list[Cell]:
        """The cells to run."""
        return [cell for cell, _ in self.work]

    @property
    def log(self) -> Path:
        """Path of the log of all cells."""
        return self.cells[0].log(self.out)


@dataclass(frozen=True)
class Ended:
    """How a cell, or several side by side, ended.

    Attributes:
        reason: why it failed, in one line; empty when it is done.
        full: whether the disk is full.
    """

    reason: str = ""
    full: bool = False


class Engine(Protocol):
    """Interface of what runs cells, several at a time."""

    slots: int  # orders at a time
    threads: int | None  # CPU threads of each order

    def start(self, order: Order) -> None:
        """Start an order and return immediately."""

    def wait(self, seconds: float) -> list[tuple[Order, Ended]]:
        """Return the orders that have ended, after at most so many seconds."""

    def close(self) -> None:
        """Stop the running orders; a later call continues them from their last epoch."""


class LocalEngine:
    """Run cells as processes of this machine, which divide its threads and GPUs between them.

    Args:
        jobs: processes at a time.
        threads: CPU threads of all processes together; all cores when not given.
        share_gpus: give each process one of several GPUs.
    """

    def __init__(self, jobs: int, threads: int | None = None, *, share_gpus: bool = True) -> None:
        self.slots = jobs
        self.threads = share(threads, jobs)
        self._context = forking_context(__name__)
        self._gpus = visible_gpus() if share_gpus and jobs > 1 else []
        self._free = list(range(jobs))
        self._running: dict[Any, tuple[Order, Any, Any, int]] = {}  # sentinel: order, process, answer, slot

    def start(self, order: Order) -> None:
        """Start an order in a new process."""
        slot = self._free.pop(0)
        gpu = self._gpus[slot % len(self._gpus)] if len(self._gpus) > 1 else None
        answer, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_child, args=(order, gpu, theirs), daemon=False)
        process.start()
        theirs.close()
        self._running[process.sentinel] = (order, process, answer, slot)

    def wait(self, seconds: float) -> list[tuple[Order, Ended]]:
        """Return the orders that have ended, after at most so many seconds."""
        if not self._running:
            time.sleep(min(seconds, 0.05))
        found = []
        for sentinel in connection.wait(list(self._running), timeout=seconds) if self._running else ():
            order, process, answer, slot = self._running.pop(sentinel)
            process.join()
            self._free.append(slot)
            try:
                ended = answer.recv()
            except EOFError:  # it was ended before it could answer
                ended = Ended(f"its process was ended from outside ({_signal(process.exitcode)})")
            answer.close()
            found.append((order, ended))
        return found

    def close(self) -> None:
        """Stop the processes."""
        running = [process for _, process, _, _ in self._running.values()]
        for process in running:
            process.terminate()
        for process in running:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        self._running.clear()


def attempt(order: Order, console: Console) -> Ended:
    """Run an order; an error is returned in one line, and logged in full."""
    try:
        do_cells(order.config, order.out, order.work, order.threads, console)
    except KeyboardInterrupt:
        return Ended("interrupted")
    except BaseException as problem:
        if disk_full(problem):
            return Ended("the disk is full", full=True)
        if not isinstance(problem, UserError):
            console.print(traceback.format_exc(), markup=False, highlight=False)
        return Ended(reason(problem))
    return Ended()


def reason(problem: BaseException) -> str:
    """Format an exception in one line, with options as they are named in a grid."""
    return grid_words(one_line(problem)) if isinstance(problem, UserError) else one_line(problem)


def share(threads: int | None, jobs: int) -> int | None:
    """Return the threads of one of several processes, out of those given or all cores; unchanged for one process."""
    if jobs == 1:
        return threads
    return max(1, (threads or usable_cores()) // jobs)


def visible_gpus() -> Sequence[str]:
    """List the GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    if not torch.cuda.is_available():
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def open_log(order: Order) -> TextIO:
    """Open the log of an order for appending; the logs of the cells after the first refer to it."""
    order.log.parent.mkdir(parents=True, exist_ok=True)
    for cell in order.cells[1:]:
        path = cell.log(order.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"trained side by side with {order.cells[0].name}: see its log\n")
    return order.log.open("a", encoding="utf-8")


def _child(order: Order, gpu: str | None, answer: Any) -> None:
    """Run an order in the new process, and send how it ended."""
    end_with_parent()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        with open_log(order) as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
            ended = attempt(order, plain_console(file=log, width=160))
    except OSError as problem:  # the log itself cannot be written
        ended = Ended(reason(problem), full=disk_full(problem))
    answer.send(ended)
    answer.close()


def _signal(code: int | None) -> str:
    return (
        f"signal {-code}" + (", as for want of memory" if code == -9 else "") if code and code < 0 else f"code {code}"
    )
