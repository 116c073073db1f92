"""Progress of a grid, as a live table or, without a terminal, as a line for each finished cell."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scenedistill.core.text import duration, spread
from scenedistill.experiments.grid.cells import Cell

EPOCH = re.compile(r" epoch (\d+)/(\d+) ")
TAIL = 4096  # bytes at the end of a log that are searched for the last epoch


@dataclass
class Progress:
    """Progress of a grid.

    Attributes:
        cells: all cells, in their order.
        slots: cells at a time.
        oa: OA of the finished cells, 0..1, on the test part or, for a tuning run, on the validation part; None where
            there is none, as for tuning runs that turned out not to be needed.
        failed: reason of each failed cell.
        running: start of each running cell, in seconds of `time.monotonic`.
        epochs: epochs trained and total epochs of the running cells.
        expected: expected seconds of each whole cell; None where unknown.
    """

    cells: Sequence[Cell]
    slots: int = 1
    oa: dict[Cell, float | None] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)
    running: dict[Cell, float] = field(default_factory=dict)
    epochs: dict[Cell, tuple[int, int]] = field(default_factory=dict)
    expected: dict[Cell, float | None] = field(default_factory=dict)

    @property
    def left(self) -> list[Cell]:
        """Cells that are neither finished nor failed."""
        return [cell for cell in self.cells if cell not in self.oa and cell not in self.failed]

    def seconds_left(self, now: float) -> float | None:
        """Estimate the seconds until all cells are done; None while they are unknown."""
        each = [self._seconds_left(cell, now) for cell in self.left]
        known = [seconds for seconds in each if seconds is not None]
        return None if len(known) < len(each) else max([sum(known) / self.slots, *known], default=0.0)

    def _seconds_left(self, cell: Cell, now: float) -> float | None:
        whole, begun = self.expected.get(cell), self.running.get(cell)
        if begun is None:
            return whole
        done, total = self.epochs.get(cell, (0, 0))
        if done:  # more accurate than the expected seconds alone
            return (now - begun) / done * (total - done) if whole is None else whole * (1 - done / total)
        return None if whole is None else max(whole - (now - begun), 0.0)


def summary_line(progress: Progress, now: float) -> str:
    """Format the numbers of finished, running and failed cells and the time left."""
    parts = [f"{len(progress.oa)} of {len(progress.cells)} done"]
    if progress.running:
        parts.append(f"{len(progress.running)} running")
    if progress.failed:
        parts.append(f"{len(progress.failed)} failed")
    left = progress.seconds_left(now)
    if progress.left:
        parts.append(f"about {duration(left)} left" if left is not None else "time left not known yet")
    return ", ".join(parts)


def progress_table(progress: Progress, now: float) -> Table:
    """Create the progress table: one line for each network of each data set and ratio, over its seeds."""
    table = Table(title=summary_line(progress, now), title_justify="left", title_style="")
    for heading in ("data", "network", "method"):
        table.add_column(heading)
    for heading in ("done", "OA (%)"):
        table.add_column(heading, justify="right")
    table.add_column("now")
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in progress.cells:
        block = f"{cell.block} tuning" if cell.tuning else cell.block
        groups.setdefault((block, cell.student or "teacher", cell.label if cell.student else ""), []).append(cell)
    for names, cells in groups.items():
        found = [100 * oa for cell in cells if (oa := progress.oa.get(cell)) is not None]
        shown = "" if cells[0].tuning else spread(found) if found else ""
        done = sum(cell in progress.oa for cell in cells)
        table.add_row(*map(Text, (*names, f"{done}/{len(cells)}", shown)), _now(progress, cells))
    return table


def _now(progress: Progress, cells: Sequence[Cell]) -> Text:
    text = Text()
    for cell in cells:
        if cell in progress.failed:
            text.append(f"{_what(cell)} failed  ", "red")
        elif cell in progress.running:
            done, total = progress.epochs.get(cell, (0, 0))
            text.append(f"{_what(cell)}: epoch {done}/{total}  " if total else f"{_what(cell)}: starting  ", "cyan")
    return text


def _what(cell: Cell) -> str:
    """Return what a cell is among those of its line."""
    what = f"seed {cell.seed}"
    if cell.candidate:
        what = cell.candidate.text
    elif cell.extension:
        what = f"extension {cell.extension}"
    return f"{what}, fold {cell.fold}" if cell.fold else what


def plan_table(cells: Sequence[Cell], states: Mapping[Cell, str], seconds: Mapping[Cell, float | None]) -> Table:
    """Create the table of a dry run: one line for each cell.

    Args:
        cells: the cells in their order.
        states: state of each cell.
        seconds: estimated seconds of the cells that are left.
    """
    table = Table()
    for heading in ("cell", "state"):
        table.add_column(heading, overflow="fold")
    table.add_column("estimate", justify="right")
    for cell in cells:
        table.add_row(Text(cell.name), states[cell], duration(seconds[cell]) if cell in seconds else "")
    return table


def epochs_of(log: Path, start: int) -> tuple[int, int] | None:
    """Read the last epoch in a log after byte `start`, and the total number of epochs; None where there is none."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(start, end - TAIL))
            found = EPOCH.findall(file.read().decode("utf-8", errors="replace"))
    except OSError:
        return None
    return (int(found[-1][0]), int(found[-1][1])) if found else None


class Display:
    """Display of the progress: a live table on a terminal, otherwise a line when a cell ends.

    Args:
        progress: progress to show.
        console: console to show it on.
    """

    def __init__(self, progress: Progress, console: Console) -> None:
        self.progress, self.console = progress, console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
            self.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def refresh(self) -> None:
        """Draw the table again."""
        if self._live:
            self._live.update(progress_table(self.progress, time.monotonic()), refresh=True)

    def ended(self, cell: Cell, seconds: float) -> None:
        """Report the end of a cell."""
        if self._live:
            self.refresh()
            return
        if cell in self.progress.failed:
            what = f"failed: {self.progress.failed[cell]}"
        else:
            oa = self.progress.oa.get(cell)
            part = "validation " if cell.tuning else ""
            what = f"{part}OA {oa:.2%} in {duration(seconds)}" if oa is not None else f"done in {duration(seconds)}"
        line = f"{cell.name}: {what}; {summary_line(self.progress, time.monotonic())}"
        self.console.print(line, markup=False, highlight=False)
