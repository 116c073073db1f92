"""Running a grid of experiments: every cell once, also after interruptions, and its results against a baseline."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from scenedistill.core.disk import write_text
from scenedistill.core.errors import UserError
from scenedistill.core.terminal import plain_console
from scenedistill.experiments.grid.cells import (
    Board,
    Cell,
    can_share_teacher_pass,
    cell_student,
    dependencies,
    plan,
    uses_teacher,
)
from scenedistill.experiments.grid.config import GridConfig, check_grid, grid_home, grid_text, unknown
from scenedistill.experiments.grid.estimates import Clock
from scenedistill.experiments.grid.local import Ended, Engine, LocalEngine, Order, share
from scenedistill.experiments.grid.results import FAILURES, finish, keep_choices, read_failures, write_failures
from scenedistill.experiments.grid.table import Display, Progress, epochs_of, plan_table, summary_line
from scenedistill.experiments.results.record import Result
from scenedistill.experiments.teaching import kept_views


@dataclass(frozen=True)
class GridOutcome:
    """Outcome of a grid: a Result for each data set and ratio with a finished cell, and the reasons of failed cells."""

    results: Mapping[str, Result]
    failures: Mapping[str, str]


def grid(
    config: GridConfig,
    out: Path | str,
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    engine: Engine | None = None,
    command: str = "",
    console: Console | None = None,
) -> GridOutcome:
    """Run every cell that is not done, and write `results.json`, `summary.md` and, where cells failed, `failures.json`;
    where the folder has these of another grid, into a sub-folder of this grid's name.

    Each cell runs in its own process: call this below `if __name__ == "__main__":` in a script. An interrupted grid
    continues with the same call; cells that are done with the same settings are skipped. A failed cell is reported with
    its reason, and the others continue.

    Args:
        config: the grid.
        out: its folder; several grids may share it, and thus the cells that they have in common.
        only: labels of the methods to run; finished cells of others are reported too.
        jobs: cells at a time on this machine, which share its cores and GPUs.
        engine: engine that runs the cells; this machine when not given.
        command: command that repeats the grid, for the record.
        console: console for the messages.

    Raises:
        UserError: a problem that the user can correct, found before the first cell.
        OSError: the disk is full; every finished epoch is kept.
    """
    console, out = console or plain_console(), Path(out)
    check_grid(config)
    _check_call(config, only, jobs)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"{out} cannot be the grid's folder: {problem.strerror}. Give another with --out.") from problem
    home = grid_home(config, out)
    home.mkdir(exist_ok=True)
    write_text(home / "grid.yaml", grid_text(config))
    board = Board(config, out, console)
    cells = plan(config, only)
    _check_data(board, cells)
    if engine is None:
        engine = LocalEngine(jobs, config.base.machine.threads, share_gpus=config.base.machine.devices == 1)
    now = _Work(board, cells, engine, console, home).run()
    asked, there = {cell.name for cell in cells}, {cell.name for cell in plan(config)}
    before = {name: reason for name, reason in read_failures(home).items() if name in there - asked}
    failures = before | now
    write_failures(failures, home)
    results = finish(board, home, failures, command, console)
    if home != out:
        told = f"{out} holds another grid, so this one's summary.md, results.json and {FAILURES} are in {home}"
        console.print(told, markup=False)
    return GridOutcome(results, failures)


def dry_run(
    config: GridConfig, out: Path | str, *, only: Sequence[str] = (), jobs: int = 1, console: Console | None = None
) -> float | None:
    """Print every cell, whether it is done, and how long the rest will take; nothing is written to the grid's folder.

    Images are decoded if they are not, as the grid will need them. Where there is no finished cell of a kind, its time
    is measured by training on a few batches.

    Returns:
        Estimated seconds of the rest; None where they are unknown.
    """
    console = console or plain_console()
    check_grid(config)
    _check_call(config, only, jobs)
    threads = share(config.base.machine.threads, jobs)
    with TemporaryDirectory() as folder:
        board = Board(config, Path(out), console, home=Path(folder))
        cells = plan(config, only)
        _check_data(board, cells)
        for cell in [cell for cell in cells if board.broken(cell)]:
            console.print(f"{cell.name} cannot be done: {board.broken(cell)}", markup=False)
        cells = [cell for cell in cells if not board.broken(cell)]
        done = {cell: board.done(cell) for cell in cells}
        clock = Clock(board)
        for cell in cells:
            if done[cell]:
                clock.add(cell)
        todo = [cell for cell in cells if not done[cell]]
        known = sum(clock.seconds(cell) is not None for cell in todo)
        measured = clock.measure(todo, threads)
        ahead = _output_writers(config, cells, [cell for cell in cells if done[cell]])
        seconds = {cell: clock.seconds(cell, first=ahead.get(cell) == cell) for cell in todo}
    console.print(plan_table(cells, done, seconds))
    progress = Progress(cells, jobs, {cell: None for cell in cells if done[cell]}, expected=seconds)
    console.print(f"{summary_line(progress, time.monotonic())}, {jobs} at a time.")
    if todo:
        console.print(
            f"Estimated from finished cells of the same kind for {known} cells, from {measured} short measurements for "
            f"{len(todo) - known}."
        )
    return progress.seconds_left(time.monotonic())


def _check_call(config: GridConfig, only: Sequence[str], jobs: int) -> None:
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}; expected 1 or more.")
    for label in only:
        if label not in config.methods:
            raise UserError(f"--only: {unknown('method', label, config.methods)}")


def _check_data(board: Board, cells: Sequence[Cell]) -> None:
    """Check that at least one data set can be used; others that cannot are left out.

    Raises:
        UserError: no data set can be used.
    """
    reasons = list(dict.fromkeys(board.broken(cell) for cell in cells))
    if "" not in reasons:
        raise UserError("\n".join(reasons[:3]))


def _output_writers(config: GridConfig, cells: Sequence[Cell], done: Sequence[Cell]) -> dict[Cell, Cell]:
    """Map each cell that reads teacher outputs not stored yet to the cell (perhaps itself) that computes them.

    Two cells at the same time would both compute all of them.
    """
    first: dict[tuple[Cell, int], Cell | None] = {}
    leaders: dict[Cell, Cell] = {}
    for cell in [*done, *cells]:
        views = kept_views(cell_student(config, cell)) if cell.student else 0
        if cell.student and views and uses_teacher(config, cell.student, cell.label):
            leader = first.setdefault((cell.teacher, views), None if cell in done else cell)
            if leader and cell not in done:
                leaders[cell] = leader
    return leaders


class _Work:
    """Scheduler that passes cells to the engine in their order, as soon as the cells they need are done; side by side
    where they can share a teacher pass."""

    def __init__(self, board: Board, cells: Sequence[Cell], engine: Engine, console: Console, home: Path) -> None:
        self.board, self.engine, self.console, self.home = board, engine, console, home
        self.config = board.config
        self.clock = Clock(board)
        self.progress = Progress(cells, engine.slots)
        self.display = Display(self.progress, console)
        self.failures: dict[str, str] = {}
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
            elif self.board.done(cell):
                if cell.student is None:
                    self.board.check_teacher(cell)
                self._done(cell)
        self._expect()
        before = len(self.progress.oa)
        if before:
            self.console.print(f"{before} of {len(self.progress.cells)} cells were done before with the same settings.")
        done = list(self.progress.oa)
        self.leaders = _output_writers(self.config, self.progress.cells, done)
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
            if (factor := self._ready(cell)) is None:
                continue
            work = ((cell, factor), *self._beside(cell))
            order = Order(self.config, self.board.out, work, self.engine.threads)
            began = order.log.stat().st_size if order.log.exists() else 0
            for each in order.cells:
                self._logs[each] = order.log, began
                self.progress.running[each] = time.monotonic()
            self._orders += 1
            self.engine.start(order)

    def _beside(self, cell: Cell) -> list[tuple[Cell, float]]:
        """Return the cells that can start side by side with a cell, on the same teacher pass."""
        others = [other for other in self.progress.left if can_share_teacher_pass(self.config, cell, other)]
        free = [other for other in others if not {cell, other} & self._alone]
        return [(other, factor) for other in free if (factor := self._ready(other)) is not None]

    def _ready(self, cell: Cell) -> float | None:
        """Return the factor on the weight of a cell if it can start now; one that can never start is marked failed."""
        progress = self.progress
        if cell in progress.running or cell in progress.failed:
            return None
        wanted = dependencies(self.config, cell)
        if broken := next((other for other in wanted if other in progress.failed), None):
            self._failed(cell, f"it needs {broken.name}, which has failed", 0.0)
            return None
        waits = self.leaders.get(cell, cell) != cell and self.leaders[cell] in progress.left
        if waits or not all(other in progress.oa for other in wanted):
            return None
        factor = self.board.factor(cell)
        if factor is None:
            self._failed(cell, "its loss diverged with every weight that was tried in tuning", 0.0)
        return factor

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
            if cell.factor is not None:
                keep_choices(self.board, self.home)
            self._expect()
            self.display.ended(cell, seconds)

    def _done(self, cell: Cell) -> None:
        self.progress.oa[cell] = self.board.validation_oa(cell) if cell.tuning else self.board.row(cell).oa
        self.clock.add(cell)

    def _failed(self, cell: Cell, reason: str, seconds: float) -> None:
        self.progress.failed[cell] = reason
        self.failures[cell.name] = reason
        self.display.ended(cell, seconds)

    def _expect(self) -> None:
        for cell in self.progress.left:
            self.progress.expected[cell] = self.clock.seconds(cell)

    def _look(self) -> None:
        """Read the progress of the running cells from their logs."""
        for cell in self.progress.running:
            if found := epochs_of(*self._logs[cell]):
                self.progress.epochs[cell] = found
        self.display.refresh()
