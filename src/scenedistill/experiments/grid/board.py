"""State and results of the cells of a grid, read from their folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from scenedistill.core.errors import UserError
from scenedistill.experiments.context import Experiment, SeedContext
from scenedistill.experiments.grid.cells import Cell, cell_student, search_of, step, uses_teacher
from scenedistill.experiments.grid.config import GridConfig, grid_words
from scenedistill.experiments.grid.tuning.choices import Choice
from scenedistill.experiments.grid.tuning.search import Candidate, Course, Score, follow
from scenedistill.experiments.grid.work import DIVERGED, open_experiment, stage_of
from scenedistill.experiments.results.record import Row
from scenedistill.experiments.stages.files import stage_damage
from scenedistill.experiments.stages.starts import check_start, start_hash
from scenedistill.experiments.stages.teacher import train_teacher
from scenedistill.experiments.stages.testing import test
from scenedistill.training.runs import Stage


class Board:
    """State and results of the cells, read from their folders.

    Args:
        config: the grid.
        out: its folder.
        console: console for the messages on the data sets.
        home: folder for the experiments' own files, `out` when not given; another one leaves `out` unchanged.
    """

    def __init__(self, config: GridConfig, out: Path, console: Console, home: Path | None = None) -> None:
        self.config, self.out, self.console = config, out, console
        self._home = home or out
        self._experiments: dict[Path, Experiment] = {}  # by their path below the grid's folder
        self._contexts: dict[tuple[Path, int], SeedContext] = {}
        self._broken: dict[tuple[Path, int], str] = {}
        self._starts: dict[tuple[str, str], str | None] = {}  # hash of initial weights, by their name and the network's
        self._tried: dict[Cell, tuple[bool, float | None]] = {}  # of tuning runs: whether done, and the validation OA
        self._courses: dict[tuple[str, str, str], Course | None] = {}  # by block, student and label

    def broken(self, cell: Cell) -> str:
        """Return why the images of a cell cannot be used, in one line; empty where they can."""
        key = (cell.home, cell.seed)
        if key not in self._broken:
            try:
                self.context(cell)
                self._broken[key] = ""
            except UserError as problem:
                self._broken[key] = grid_words(" ".join(str(problem).split()))
        return self._broken[key]

    def experiment(self, cell: Cell) -> Experiment:
        """Return the cell's experiment, opened on first use."""
        if cell.home not in self._experiments:
            known = any(cell.block in home.parts for home in self._experiments)
            quiet = Console(quiet=True)
            self._experiments[cell.home] = open_experiment(
                self.config, self._home, cell, quiet, opening=quiet if known else self.console
            )
        return self._experiments[cell.home]

    def context(self, cell: Cell) -> SeedContext:
        """Return the cell's experiment and split.

        Raises:
            UserError: the images cannot be used, or the parts in their folder do not suit the grid.
        """
        key = (cell.home, cell.seed)
        if key not in self._contexts:
            context = self.experiment(cell).of_seed(cell.seed, cell.fold)
            if context.config.data.split_file:
                if len(self.config.ratios) > 1:
                    raise UserError("its folder has a training part of its own. Give one ratio.")
                if self.config.tuning and not len(context.split.val):
                    raise UserError("tuning needs validation images, and its folder has no part val.")
            self._contexts[key] = context
        return self._contexts[key]

    def stage(self, cell: Cell) -> Stage | None:
        """Return the cell's stage; None while its candidate is not known."""
        candidate = self.candidate(cell)
        return None if candidate is None else stage_of(self.context(cell), self.config, self.out, cell, candidate)

    def done(self, cell: Cell) -> bool:
        """Return whether the cell is trained and, except for a tuning run, tested."""
        stage = self.stage(cell)
        if stage is None or not stage.done or stage_damage(stage) or not self._same_teacher(cell, stage):
            return False
        return cell.tuning or ((test := self._test(cell, stage)).done and not test.damage())

    def check_start(self, cell: Cell) -> None:
        """Raise a UserError when a finished cell started from weights of other content than the settings name."""
        if cell.student is None:
            train_teacher(self.context(cell), self.out / cell.folder)
            return
        student, stage = cell_student(self.config, cell), self.stage(cell)
        assert stage
        key = (student.weights, student.name)
        if key not in self._starts:
            self._starts[key] = start_hash(*key)
        check_start(stage, student.weights, self._starts[key])

    def candidate(self, cell: Cell) -> Candidate | None:
        """Return the settings that tuning tries in a cell or has chosen for it; None while the earlier tuning runs are
        not complete, where all of them diverged, and for an extension that is not needed."""
        if cell.candidate:
            return cell.candidate
        if not (course := self.course(cell)):
            return Candidate()
        if not cell.extension:
            return course.chosen
        return course.extensions[cell.extension - 1] if course.extends(cell.extension) else None

    def course(self, cell: Cell) -> Course | None:
        """Return how far the tuning of a cell's method has come; None where it is not tuned."""
        if cell.student is None:
            return None
        key = (cell.block, cell.student, cell.label)
        if key not in self._courses:
            search = search_of(self.config, cell.student, cell.label)
            course = follow(search, lambda candidate, number: self._score(cell, candidate, number)) if search else None
            self._courses[key] = course
        return self._courses[key]

    def needed(self, cell: Cell) -> bool | None:
        """Return whether a cell is to be trained; None for a tuning run as long as that is not known."""
        course = self.course(cell) if cell.tuning else None
        if course is None:
            return True
        if cell.candidate:
            return course.reaches(cell.candidate, step(self.config, cell))
        return course.extends(cell.extension)

    def chance(self, cell: Cell) -> float:
        """Return the expected share, 0..1, of such cells that are trained: below 1 for a tuning run as long as it is
        not known whether it is needed."""
        needed, course = self.needed(cell), self.course(cell)
        search = search_of(self.config, cell.student, cell.label) if cell.student else None
        if needed is not None or not (course and search):
            return float(needed is not False)
        if cell.extension:
            return search.extension_chance(cell.extension)
        number = step(self.config, cell)
        return min(1.0, search.sizes[number] / max(1, len(course.rounds[-1])))

    def choice(self, cell: Cell) -> Choice | None:
        """Return the tuning result of a cell's method, once it is complete; no candidate where all runs diverged."""
        course = self.course(cell)
        if not course or not course.complete:
            return None
        epochs = self.epochs(self._trial(cell, Candidate(), len(course.rounds) - 1))
        return Choice(cell.block, str(cell.student), cell.label, course.scores, course.chosen, epochs)

    def validation_oa(self, cell: Cell) -> float | None:
        """Return the validation OA of the last epoch of a finished tuning run, 0..1; None where it diverged. It is read
        from the disk, and later scores use it."""
        stage, candidate = self.stage(cell), self.candidate(cell)
        assert stage and candidate
        oa = None if DIVERGED in stage.record else stage.record.get("last_epoch", {}).get("val_oa")
        self._tried[cell.trial(candidate)] = (True, oa)
        self._courses.pop((cell.block, str(cell.student), cell.label), None)  # it goes on from here
        return oa

    def seconds(self, cell: Cell) -> float:
        """Return the seconds of a finished cell, training and test."""
        stage = self.stage(cell)
        assert stage
        tested = 0.0 if cell.tuning else float(self._test(cell, stage).record["seconds"])
        return float(stage.record["seconds"]) + tested

    def epochs(self, cell: Cell) -> int:
        """Return the number of epochs of a cell's training."""
        context = self.context(cell)
        network = context.config.teacher if cell.student is None else cell_student(self.config, cell)
        return network.schedule(len(context.split.train)).epochs

    def row(self, cell: Cell) -> Row:
        """Return the result row of a finished cell."""
        stage = self.stage(cell)
        assert stage
        context = self.context(cell)
        row = test(context, stage, cell.label)
        if cell.student and not uses_teacher(self.config, cell.student, cell.label):
            row = replace(row, teacher=None)
        usual = self.config.base.student.schedule(len(context.split.train)).epochs
        if cell.student and (epochs := self.epochs(cell)) != usual:
            row = replace(row, more={**row.more, "epochs": epochs})
        candidate = self.candidate(cell) or Candidate()
        chosen = {"factor": candidate.factor, "lr": candidate.learning_rate}
        return replace(row, more={**row.more, **{name: value for name, value in chosen.items() if value is not None}})

    def _score(self, cell: Cell, candidate: Candidate, number: int) -> Score | None:
        """Return the score of a candidate of a cell's method in the round of this number; None while it is not
        complete."""
        assert self.config.tuning
        found = list[float | None]()
        for fold in range(self.config.tuning.folds):
            run = self._trial(cell, candidate, number, fold)
            if run not in self._tried:
                self._tried[run] = (False, None)
                if not self.broken(run) and (stage := self.stage(run)) and stage.done:
                    self.validation_oa(run)
            done, oa = self._tried[run]
            if not done:
                return None
            found.append(oa)
        return Score(candidate, self.epochs(self._trial(cell, candidate, number)), tuple(found))

    def _trial(self, cell: Cell, candidate: Candidate, number: int, fold: int = 0) -> Cell:
        """Return the tuning run of a candidate of a cell's method in the round of this number, from 0."""
        assert self.config.tuning
        epochs = (*self.config.tuning.rounds, None)[number]
        run = Cell(cell.block, self.config.tuning.seed, cell.student, cell.label, candidate, tuning=True, epochs=epochs)
        return replace(run, fold=fold)

    def _same_teacher(self, cell: Cell, stage: Stage) -> bool:
        """Return whether a finished student was distilled from the present weights of its teacher."""
        taught_by = stage.record.get("teacher_hash")
        teacher = self.stage(cell.teacher) if taught_by else None
        return teacher is None or (teacher.done and teacher.record.get("weights_hash", taught_by) == taught_by)

    def _test(self, cell: Cell, stage: Stage) -> Stage:
        return Stage(stage.folder / "evaluation", {"of": stage.fingerprint, "test": self.context(cell).split.hash})
