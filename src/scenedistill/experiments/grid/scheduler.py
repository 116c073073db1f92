"""Scheduling of the cells of a grid: each is started as soon as the cells that it needs are done."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from scenedistill.experiments.grid.board import Board
from scenedistill.experiments.grid.cells import Cell, cell_student, dependencies, uses_teacher
from scenedistill.experiments.grid.estimates import Clock
from scenedistill.experiments.grid.local import Ended, Engine, Order
from scenedistill.experiments.grid.results import keep_choices
from scenedistill.experiments.grid.table import Display, Progress, epochs_of
from scenedistill.experiments.grid.tuning.search import Candidate
from scenedistill.experiments.grid.work import Work, can_share_teacher_pass
from scenedistill.experiments.stages.teaching import distillation_inputs, kept_views

#: What cells must have in common to read the same stored teacher outputs: the teacher, the number of views that the
#: epochs use, and the `distillation_inputs`.
Outputs = tuple[Any, ...]


def stored_outputs(board: Board, cell: Cell) -> Outputs | None:
    """Return which stored teacher outputs a cell reads; None where it reads none.

    Two cells that start at the same time would both compute all of them.
    """
    if cell.student is None or not uses_teacher(board.config, cell.student, cell.label):
        return None
    student = cell_student(board.config, cell).closed(len(board.context(cell).split.train))
    views = kept_views(student)
    return (cell.teacher, min(views, board.epochs(cell)), *distillation_inputs(student)) if views else None


class Scheduler:
    """Pass the cells of a grid to the engine in their order, as soon as the cells they need are done; side by side
    where they can share a teacher pass. Tuning runs that turn out not to be needed are done without running.

    Args:
        board: state of the cells.
        cells: cells to run.
        engine: engine that runs them.
        console: console for the messages.
        home: folder of the grid's own files.
    """

    def __init__(self, board: Board, cells: list[Cell], engine: Engine, console: Console, home: Path) -> None:
        self.board, self.engine, self.console, self.home = board, engine, console, home
        self.config = board.config
        self.clock = Clock(board)
        self.progress = Progress(cells, engine.slots)
        self.display = Display(self.progress, console)
        self.failures: dict[str, str] = {}
        self._wanted = {cell: dependencies(self.config, cell) for cell in cells}
        self._outputs: dict[Cell, Outputs | None] = {}  # stored teacher outputs that a cell reads
        self._stored: set[Outputs | None] = set()  # those that a finished cell has read
        self._logs: dict[Cell, tuple[Path, int]] = {}  # the log of a running cell, and the byte where it began
        self._orders = 0  # running orders
        self._alone: set[Cell] = set()  # cells that failed side by side

    def run(self) -> dict[str, str]:
        """Run all cells; return the reasons of those that failed, by name."""
        told = set[str]()
        for cell in self.progress.cells:
            if reason := self.board.broken(cell):
                self.progress.failed[cell] = self.failures[cell.name] = reason
                if reason not in told:
                    self.console.print(f"{cell.block} is left out: {reason}", markup=False)
                told.add(reason)
                continue
            self._outputs[cell] = stored_outputs(self.board, cell)
            if self.board.done(cell):
                self.board.check_start(cell)
                self._done(cell)
            elif self.board.needed(cell) is False:
                self.progress.oa[cell] = None
        self._expect()
        before = len(self.progress.oa)
        if before:
            self.console.print(f"{before} of {len(self.progress.cells)} cells were done before with the same settings.")
        try:
            with self.display:
                while self.progress.left:
                    self._start_some()
                    for order, ended in self.engine.wait(1.0):
                        self._ended(order, ended)
                    self._look()
        finally:
            self.engine.close()
        return self.failures

    def _start_some(self) -> None:
        for cell in self.progress.left:
            if self._orders >= self.engine.slots:
                return
            if (candidate := self._ready(cell)) is None:
                continue
            work = ((cell, candidate), *self._beside((cell, candidate)))
            order = Order(self.config, self.board.out, work, self.engine.threads)
            began = order.log.stat().st_size if order.log.exists() else 0
            for each in order.cells:
                self._logs[each] = order.log, began
                self.progress.running[each] = time.monotonic()
            self._orders += 1
            self.engine.start(order)

    def _beside(self, work: Work) -> list[Work]:
        """Return the cells that can start side by side with a cell, on the same teacher pass."""
        cell, _ = work
        others = [other for other in self.progress.left if other.teacher == cell.teacher and other != cell]
        free = [other for other in others if not {cell, other} & self._alone]
        ready = [(other, candidate) for other in free if (candidate := self._ready(other))]
        return [other for other in ready if can_share_teacher_pass(self.config, work, other)]

    def _ready(self, cell: Cell) -> Candidate | None:
        """Return the settings of a cell if it can start now; a tuning run that is not needed is marked done, and a cell
        that can never start failed."""
        progress = self.progress
        if cell in progress.running or cell in progress.failed or cell in progress.oa:
            return None
        if self.board.needed(cell) is False:
            progress.oa[cell] = None
            return None
        wanted = self._wanted[cell]
        if broken := next((other for other in wanted if other in progress.failed), None):
            self._failed(cell, f"it needs {broken.name}, which has failed", 0.0)
            return None
        if self._waits(cell) or not all(other in progress.oa for other in wanted):
            return None
        candidate = self.board.candidate(cell)
        if candidate is None:
            self._failed(cell, "its loss diverged with all settings that were tried in tuning", 0.0)
        return candidate

    def _waits(self, cell: Cell) -> bool:
        """Return whether a running cell computes the teacher outputs that this one would read."""
        outputs = self._outputs[cell]
        if outputs is None or outputs in self._stored:
            return False
        return any(self._outputs[other] == outputs for other in self.progress.running)

    def _ended(self, order: Order, ended: Ended) -> None:
        self._orders -= 1
        cells = order.cells
        # the time of cells side by side is divided evenly
        seconds = (time.monotonic() - self.progress.running[cells[0]]) / len(cells)
        for cell in cells:
            del self.progress.running[cell]
            self.progress.epochs.pop(cell, None)
        if ended.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.board.out))
        if ended.reason and len(cells) > 1:  # perhaps only one of them diverges, or all need too much memory at once
            self._alone.update(cells)
            self.console.print(f"{len(cells)} side by side: {ended.reason} Now each alone.", markup=False)
            return
        for cell in cells:
            if ended.reason:
                self._failed(cell, ended.reason, seconds)
                continue
            self._done(cell)
            if cell.tuning and cell.student:
                keep_choices(self.board, self.home)
            self._expect()
            self.display.ended(cell, seconds)

    def _done(self, cell: Cell) -> None:
        self.progress.oa[cell] = self.board.validation_oa(cell) if cell.tuning else self.board.row(cell).oa
        self._stored.add(self._outputs[cell])
        self.clock.add(cell)

    def _failed(self, cell: Cell, reason: str, seconds: float) -> None:
        self.progress.failed[cell] = reason
        self.failures[cell.name] = reason
        self.display.ended(cell, seconds)

    def _expect(self) -> None:
        for cell in self.progress.left:
            self.progress.expected[cell] = self.clock.expected(cell)

    def _look(self) -> None:
        """Read the progress of the running cells from their logs."""
        for cell in self.progress.running:
            if found := epochs_of(*self._logs[cell]):
                self.progress.epochs[cell] = found
        self.display.refresh()
