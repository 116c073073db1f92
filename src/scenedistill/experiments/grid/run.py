"""Running a grid of experiments: every cell once, also after interruptions, and its results against a baseline."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from scenedistill.core.disk import write_text
from scenedistill.core.errors import UserError
from scenedistill.core.terminal import plain_console
from scenedistill.experiments.grid.board import Board
from scenedistill.experiments.grid.cells import Cell, plan
from scenedistill.experiments.grid.config import GridConfig, check_grid, grid_home, grid_text, unknown
from scenedistill.experiments.grid.estimates import Clock
from scenedistill.experiments.grid.local import Engine, LocalEngine, share
from scenedistill.experiments.grid.results import FAILURES, finish, read_failures, write_failures
from scenedistill.experiments.grid.scheduler import Outputs, Scheduler, stored_outputs
from scenedistill.experiments.grid.table import Progress, plan_table, summary_line
from scenedistill.experiments.results.record import Result

#: States of a cell in a dry run; `if reached`: a tuning run of which it is not known yet whether it is needed.
DONE, TO_DO, IF_REACHED, LEFT_OUT = "done", "to do", "if reached", "left out"


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
    now = Scheduler(board, cells, engine, console, home).run()
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
        states = {cell: _state(board, cell) for cell in cells}
        clock = Clock(board)
        done = [cell for cell in cells if states[cell] == DONE]
        for cell in done:
            clock.add(cell)
        todo = [cell for cell in cells if states[cell] in (TO_DO, IF_REACHED)]
        known = sum(clock.seconds(cell) is not None for cell in todo)
        measured = clock.measure(todo, threads)
        ahead = _first_readers(board, todo, done)
        seconds = {cell: clock.seconds(cell, first=cell in ahead) for cell in todo}
        expected = {cell: clock.expected(cell, first=cell in ahead) for cell in todo}
    console.print(plan_table(cells, states, seconds))
    progress = Progress(cells, jobs, {cell: None for cell in cells if cell not in expected}, expected=expected)
    console.print(f"{summary_line(progress, time.monotonic())}, {jobs} at a time.")
    if todo:
        console.print(
            f"Estimated from finished cells of the same kind for {known} cells, from {measured} short measurements for "
            f"{len(todo) - known}."
        )
    if any(states[cell] == IF_REACHED for cell in todo):
        console.print(f"Cells marked '{IF_REACHED}' count in the total by the share of them that is expected to run.")
    return progress.seconds_left(time.monotonic())


def _state(board: Board, cell: Cell) -> str:
    """Return the state of a cell in a dry run."""
    if board.done(cell):
        return DONE
    return {True: TO_DO, None: IF_REACHED, False: LEFT_OUT}[board.needed(cell)]


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


def _first_readers(board: Board, cells: Sequence[Cell], done: Sequence[Cell]) -> set[Cell]:
    """Return the cells that compute teacher outputs which later ones read."""
    stored = {stored_outputs(board, cell) for cell in done}
    found: dict[Outputs, Cell] = {}
    for cell in cells:
        outputs = stored_outputs(board, cell)
        if outputs and outputs not in stored:
            found.setdefault(outputs, cell)
    return set(found.values())
