"""Estimated time of the cells of a grid, from finished cells of the same kind or from a few measured batches."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console

from scenedistill.config import FitConfig
from scenedistill.core.errors import UserError
from scenedistill.data.splits.draw import Split
from scenedistill.experiments.context import Experiment, SeedContext
from scenedistill.experiments.grid.board import Board
from scenedistill.experiments.grid.cells import Cell, cell_student, uses_teacher
from scenedistill.experiments.run_folder import RunFolder
from scenedistill.experiments.stages.students import train_students
from scenedistill.experiments.stages.teacher import train_teacher
from scenedistill.experiments.stages.teaching import kept_views
from scenedistill.training.runs import Stage

Fit = TypeVar("Fit", bound=FitConfig)
BATCHES = 4  # batches of a measurement


@dataclass(frozen=True)
class Pace:
    """Seconds per training image: of an epoch, and of the teacher's pass over one view."""

    epoch: float
    ask: float = 0.0


class Clock:
    """Estimate the time of cells; cells of one kind (what they train) take equally long per image and epoch.

    Args:
        board: board of the grid.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        self._seen: dict[tuple[str, ...], list[float]] = {}
        self._measured: dict[tuple[str, ...], Pace] = {}

    def add(self, cell: Cell) -> None:
        """Add the time of a finished cell."""
        seconds = self.board.seconds(cell)
        if seconds > 0:  # a given teacher took none
            for kind in self._kinds(cell):
                self._seen.setdefault(kind, []).append(seconds / self._work(cell))

    def seconds(self, cell: Cell, *, first: bool = False) -> float | None:
        """Estimate the seconds of a cell from its start to its end; None where no cell of its kind is known.

        Args:
            cell: the cell.
            first: whether it computes the teacher outputs that are stored for the others.
        """
        for kind in self._kinds(cell):
            if kind in self._seen:
                return statistics.median(self._seen[kind]) * self._work(cell)
        for kind in self._kinds(cell):
            if kind in self._measured:
                pace = self._measured[kind]
                return pace.epoch * self._work(cell) + pace.ask * self._asked(cell, first)
        return None

    def expected(self, cell: Cell, *, first: bool = False) -> float | None:
        """Estimate the seconds that a cell takes on average: those of `seconds`, times the chance that a tuning run of
        a later round is needed."""
        chance = self.board.chance(cell)
        seconds = self.seconds(cell, first=first) if chance else 0.0
        return None if seconds is None else chance * seconds

    def measure(self, cells: Sequence[Cell], threads: int | None) -> int:
        """Train on a few batches of each kind without an estimate, in a temporary folder.

        Returns:
            The number of kinds measured.
        """
        count, failed = 0, set()
        for cell in cells:
            kinds = self._kinds(cell)
            if self.seconds(cell) is None and kinds[0] not in failed:
                try:
                    self._measured[kinds[-1]] = _measure(self.board, cell, threads)
                    count += 1
                except (UserError, RuntimeError):  # the cell itself will report it; another of its kind may work
                    failed.add(kinds[0])
        return count

    def _kinds(self, cell: Cell) -> list[tuple[str, ...]]:
        """Return the kinds of a cell, the most specific first."""
        if cell.student is None:
            return [("teacher",)]
        taught = "taught" if uses_teacher(self.board.config, cell.student, cell.label) else "alone"
        return [(cell.student, taught, cell.label), (cell.student, taught)]

    def _work(self, cell: Cell) -> int:
        return len(self.board.context(cell).split.train) * self.board.epochs(cell)

    def _asked(self, cell: Cell, first: bool) -> int:
        """Return the number of views for which the teacher is run."""
        if cell.student is None:
            return 0
        images = len(self.board.context(cell).split.train)
        student = cell_student(self.board.config, cell).closed(images)
        views, epochs = kept_views(student), student.schedule().epochs
        if not views:
            return images * epochs
        return images * min(views, epochs) if first else 0


def _measure(board: Board, cell: Cell, threads: int | None) -> Pace:
    """Measure the pace of a cell's kind on a few batches, without compiling."""
    split = board.context(cell).split
    images = len(split.train)
    with TemporaryDirectory() as name:
        quiet, folder = Console(quiet=True), Path(name)
        experiment = _small(board.experiment(cell), folder, images, threads, quiet)
        teacher_batch = experiment.config.teacher.schedule().batch_size
        if cell.student is None:
            part = _part(split, BATCHES * teacher_batch)
            stage = train_teacher(SeedContext(experiment, cell.seed, part), folder / "teacher")
        else:
            student = cell_student(board.config, cell).closed(images)
            part = _part(split, BATCHES * student.schedule().batch_size)
            student = replace(student, knowledge_views=0, fit=_short(student.fit))
            teacher = None
            if uses_teacher(board.config, cell.student, cell.label):
                few = SeedContext(experiment, cell.seed, _part(split, BATCHES * teacher_batch))
                teacher = _teacher(board, cell, few, folder)
            context = SeedContext(experiment, cell.seed, part)
            (stage,) = train_students(context, [(folder / "student", student)], teacher)
        asked = float(stage.record["waits"].get("teacher", 0.0))
        return Pace((stage.record["seconds"] - asked) / len(part.train), asked / len(part.train))


def _teacher(board: Board, cell: Cell, context: SeedContext, folder: Path) -> Stage:
    """Return the cell's own teacher where it is done, else one trained on a few batches."""
    own = board.stage(cell.teacher)
    return own if own and own.done else train_teacher(context, folder / "teacher")


def _small(experiment: Experiment, folder: Path, images: int, threads: int | None, console: Console) -> Experiment:
    """Return an experiment on the same images with the settings and the folder of a measurement."""
    if threads:
        torch.set_num_threads(threads)
    config = experiment.config
    config = replace(
        config,
        best_epoch=False,  # the reduced split has no validation images
        machine=replace(config.machine, threads=threads, compile=False),
        teacher=replace(config.teacher, min_oa=0.0, fit=_short(config.teacher.closed(images).fit)),
    )
    return replace(experiment, config=config, folder=RunFolder(folder, console, lead=True), console=console)


def _short(fit: Fit) -> Fit:
    return replace(fit, epochs=1, steps=None, warmup_epochs=0)


def _part(split: Split, images: int) -> Split:
    """Reduce a split to so many training images, evenly spread over the classes, and no validation images."""
    count = min(images, len(split.train))
    rows = split.train[np.linspace(0, len(split.train) - 1, count).astype(int)]
    return replace(split, train=rows, val=split.val[:0], hash=f"{split.hash}-{count}")
