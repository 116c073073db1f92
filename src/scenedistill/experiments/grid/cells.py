"""Cells of a grid, each one training: planning, order, paths and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scenedistill.config import StudentConfig
from scenedistill.experiments.grid.config import GridConfig, needs_teacher, student_of
from scenedistill.experiments.grid.tuning.choices import tuned, tuning_student
from scenedistill.experiments.grid.tuning.search import Candidate, Search


@dataclass(frozen=True)
class Cell:
    """One training and its test: a teacher, or a student trained by one method, with one seed.

    Attributes:
        block: folder name of its data set and ratio.
        seed: seed of the split, the initial weights and the views.
        student: name of the student; None for the teacher.
        label: label of the method; `teacher` for the teacher.
        candidate: settings that a tuning run tries; None for an extension, whose factor follows from earlier runs.
        tuning: whether it is a tuning run, which holds out a validation part and is never tested.
        epochs: epochs of a shorter round of tuning; None in the last round, and outside tuning.
        extension: number of the extension of a method's tuning by a further factor, from 1; 0 for none.
        fold: number of the validation part of a tuning run, from 0.
    """

    block: str
    seed: int
    student: str | None = None
    label: str = "teacher"
    candidate: Candidate | None = None
    tuning: bool = False
    epochs: int | None = None
    extension: int = 0
    fold: int = 0

    @property
    def home(self) -> Path:
        """Path of its experiment below the grid's folder; every fold has its own split."""
        if not self.tuning:
            return Path(self.block)
        return Path("tuning", self.block, f"fold{self.fold}") if self.fold else Path("tuning", self.block)

    @property
    def folder(self) -> Path:
        """Path below the grid's folder, before a candidate is chosen."""
        seed = self.home / f"seed{self.seed}"
        if not self.student:
            return seed / "teacher"
        mark = f"@extension{self.extension}" if self.extension else self.candidate.mark if self.candidate else ""
        return seed / self.student / f"{self.label}{mark}{f'_{self.epochs}epochs' if self.epochs else ''}"

    def place(self, candidate: Candidate) -> Path:
        """Return the path for the chosen candidate: settings changed by tuning have their own path, so that grids with
        and without tuning may share a folder."""
        if self.tuning:
            return self.trial(candidate).folder
        return self.folder.with_name(f"{self.label}{candidate.final_mark}") if self.student else self.folder

    def trial(self, candidate: Candidate) -> Cell:
        """Return the tuning run that an extension is with its candidate; another cell is returned unchanged."""
        return replace(self, candidate=candidate, extension=0) if self.extension else self

    @property
    def name(self) -> str:
        """Name in tables and files."""
        return self.folder.as_posix()

    @property
    def teacher(self) -> Cell:
        """The teacher of its data, ratio, seed and fold."""
        return replace(self, student=None, label="teacher", candidate=None, epochs=None, extension=0)

    def log(self, out: Path) -> Path:
        """Return the path of its log file."""
        folder = out / "logs" / self.folder
        return folder.with_name(f"{folder.name}.log")


def plan(config: GridConfig, only: Sequence[str] = ()) -> list[Cell]:
    """List every cell in order of dependency: the tuning, then seed by seed the teacher and all methods.

    Tuning runs of which it is not known whether they will be trained are listed too: those of later rounds and the
    extensions.

    Args:
        config: the grid.
        only: labels of the methods wanted; all when empty.
    """
    labels = [label for label in config.methods if not only or label in only]
    taught = [label for label in labels if any(uses_teacher(config, student, label) for student in config.students)]
    cells: list[Cell] = []
    for block in config.blocks() if config.tuning else ():
        assert config.tuning
        first = Cell(block, config.tuning.seed, tuning=True)
        if taught:
            cells += [replace(first, fold=fold) for fold in range(config.tuning.folds)]
        for student in config.students:
            for label in labels:
                cells += trials(config, replace(first, student=student, label=label))
    for seed in config.seeds:
        for block in config.blocks():
            if taught:
                cells.append(Cell(block, seed))
            cells += [Cell(block, seed, student, label) for student in config.students for label in labels]
    return cells


def uses_teacher(config: GridConfig, student: str, label: str) -> bool:
    """Return whether a method's student uses the teacher."""
    return needs_teacher(student_of(config, student, label))


def search_of(config: GridConfig, student: str, label: str) -> Search | None:
    """Return what tuning tries for a method; None where it is not tuned."""
    tuning = config.tuning
    taught = tuning and uses_teacher(config, student, label)
    if not tuning or not (taught or tuning.learning_rates):
        return None
    return Search(
        factors=tuple(float(factor) for factor in tuning.factors) if taught else (),
        learning_rates=tuple(float(rate) for rate in tuning.learning_rates),
        rounds=len(tuning.rounds) + 1,
        keep=tuning.keep,
        extend=tuning.extend if taught else 0,
    )


def dependencies(config: GridConfig, cell: Cell) -> list[Cell]:
    """List the cells that must be done before this one."""
    if cell.student is None:
        return []
    found = [cell.teacher] if uses_teacher(config, cell.student, cell.label) else []
    runs = trials(config, cell)
    return found + [run for run in runs if not cell.tuning or step(config, run) < step(config, cell)]


def trials(config: GridConfig, cell: Cell) -> list[Cell]:
    """List the tuning runs of a cell's method: round by round, then the extensions; none where it is not tuned."""
    search = search_of(config, cell.student, cell.label) if cell.student else None
    if not (search and config.tuning):
        return []
    run = Cell(cell.block, config.tuning.seed, cell.student, cell.label, tuning=True)
    rounds = (*config.tuning.rounds, None)
    found = [replace(run, candidate=each, epochs=epochs) for epochs in rounds for each in search.candidates]
    found += [replace(run, extension=number) for number in range(1, search.extend + 1)]
    return [replace(one, fold=fold) for one in found for fold in range(config.tuning.folds)]


def step(config: GridConfig, run: Cell) -> int:
    """Return the position of a tuning run in the order of its method's tuning: its round, from 0, and for an extension
    as many steps after the last round."""
    assert config.tuning
    return config.tuning.rounds.index(run.epochs) if run.epochs else len(config.tuning.rounds) + run.extension


def cell_student(config: GridConfig, cell: Cell, candidate: Candidate | None = None) -> StudentConfig:
    """Return the settings of a student's cell; the candidate is the one that tuning has chosen."""
    assert cell.student is not None
    student, candidate = student_of(config, cell.student, cell.label), cell.candidate or candidate or Candidate()
    if cell.tuning:
        assert config.tuning
        return tuning_student(student, candidate, cell.epochs or config.tuning.epochs)
    return tuned(student, candidate)
