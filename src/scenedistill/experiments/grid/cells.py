"""Cells of a grid, each one training: planning, paths, state and execution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from scenedistill.config import StudentConfig
from scenedistill.core.errors import UserError
from scenedistill.experiments.context import Experiment, SeedContext
from scenedistill.experiments.grid.config import GridConfig, grid_words, needs_teacher, student_of
from scenedistill.experiments.grid.tuning import Choice, choose, tuned, tuning_settings, tuning_student
from scenedistill.experiments.results.record import Row
from scenedistill.experiments.stage_files import stage_damage
from scenedistill.experiments.stages import teacher_settings, test, train_teacher
from scenedistill.experiments.students import student_stage, train_students
from scenedistill.experiments.teaching import distillation_inputs, kept_views
from scenedistill.training.base import Diverged
from scenedistill.training.runs import Stage

DIVERGED = "diverged"  # key in the record of a tuning run


@dataclass(frozen=True)
class Cell:
    """One training and its test: a teacher, or a student trained by one method, with one seed.

    Attributes:
        block: folder name of its data set and ratio.
        seed: seed of the split, the initial weights and the views.
        student: name of the student; None for the teacher.
        label: label of the method; `teacher` for the teacher.
        factor: factor on the method's weight, in a tuning run.
        tuning: whether it is a tuning run, which holds out a validation part and is never tested.
    """

    block: str
    seed: int
    student: str | None = None
    label: str = "teacher"
    factor: float | None = None
    tuning: bool = False

    @property
    def folder(self) -> Path:
        """Path below the grid's folder, before a factor is chosen."""
        upper = Path("tuning") / self.block if self.tuning else Path(self.block)
        label = self.label if self.factor is None else f"{self.label}@{self.factor:g}"
        return upper / f"seed{self.seed}" / (Path(self.student) / label if self.student else "teacher")

    def place(self, factor: float = 1.0) -> Path:
        """Return the path for the chosen factor: a weight changed by tuning has its own path, so that grids with and
        without tuning may share a folder."""
        return self.folder if self.tuning or factor == 1 else self.folder.with_name(f"{self.label}@{factor:g}")

    @property
    def name(self) -> str:
        """Name in tables and files."""
        return self.folder.as_posix()

    @property
    def teacher(self) -> Cell:
        """The teacher of its data, ratio and seed."""
        return replace(self, student=None, label="teacher", factor=None)

    def log(self, out: Path) -> Path:
        """Return the path of its log file."""
        folder = out / "logs" / self.folder
        return folder.with_name(f"{folder.name}.log")


def plan(config: GridConfig, only: Sequence[str] = ()) -> list[Cell]:
    """List every cell in order of dependency: the tuning, then seed by seed the teacher and all methods.

    Args:
        config: the grid.
        only: labels of the methods wanted; all when empty.
    """
    labels = [label for label in config.methods if not only or label in only]
    taught = [label for label in labels if any(uses_teacher(config, student, label) for student in config.students)]
    cells: list[Cell] = []
    for block in config.blocks() if config.tuning and taught else ():
        assert config.tuning
        first = Cell(block, config.tuning.seed, tuning=True)
        runs = [replace(first, student=student, label=label) for student in config.students for label in taught]
        cells += [first, *(replace(run, factor=factor) for run in runs for factor in config.tuning.factors)]
    for seed in config.seeds:
        for block in config.blocks():
            if taught:
                cells.append(Cell(block, seed))
            cells += [Cell(block, seed, student, label) for student in config.students for label in labels]
    return cells


def uses_teacher(config: GridConfig, student: str, label: str) -> bool:
    """Return whether a method's student uses the teacher."""
    return needs_teacher(student_of(config, student, label))


def dependencies(config: GridConfig, cell: Cell) -> list[Cell]:
    """List the cells that must be done before this one."""
    if cell.student is None or not uses_teacher(config, cell.student, cell.label):
        return []
    return [cell.teacher, *([] if cell.tuning else trials(config, cell))]


def trials(config: GridConfig, cell: Cell) -> list[Cell]:
    """List the tuning runs from which a cell's weight is chosen."""
    if not config.tuning or cell.student is None or not uses_teacher(config, cell.student, cell.label):
        return []
    run = replace(cell, seed=config.tuning.seed, tuning=True)
    return [replace(run, factor=factor) for factor in config.tuning.factors]


def cell_student(config: GridConfig, cell: Cell, factor: float = 1.0) -> StudentConfig:
    """Return the settings of a student's cell; the factor is the one that tuning has chosen."""
    assert cell.student is not None
    student = student_of(config, cell.student, cell.label)
    if cell.tuning:
        assert config.tuning and cell.factor
        return tuning_student(student, cell.factor, config.tuning)
    return tuned(student, factor)


def open_experiment(
    config: GridConfig,
    out: Path,
    cell: Cell,
    console: Console,
    *,
    threads: int | None = None,
    opening: Console | None = None,
) -> Experiment:
    """Open the experiment of a cell: the decoded images and the folder of its data set and ratio."""
    block, tuning = cell.block, cell.tuning
    data, ratio = config.blocks()[block]
    base = config.base
    cache = base.data.cache_dir
    if cache and len(config.datasets) > 1:
        cache = cache / data  # a cache folder holds the images of only one data set
    base = replace(
        base,
        seeds=config.seeds,
        students=config.students,
        data=replace(base.data, train_ratio=ratio, cache_dir=cache),
        machine=replace(base.machine, threads=threads or base.machine.threads),
    )
    if tuning:
        assert config.tuning
        base = tuning_settings(base, config.tuning)
    folder = out / "tuning" / block if tuning else out / block
    return Experiment.open(Path(config.datasets[data]), folder, base, console, opening=opening)


def stage_of(context: SeedContext, config: GridConfig, out: Path, cell: Cell, factor: float = 1.0) -> Stage:
    """Return a cell's stage as `train_teacher` and `train_students` make it, for reading without a lock."""
    if cell.student is None:
        settings = teacher_settings(context.config.teacher, len(context.split.train))
        return context.stage(out / cell.folder, settings)
    student = cell_student(config, cell, factor)
    teacher = stage_of(context, config, out, cell.teacher) if needs_teacher(student) else None
    return student_stage(context, out / cell.place(factor), student, teacher)


def can_share_teacher_pass(config: GridConfig, cell: Cell, other: Cell) -> bool:
    """Return whether two cells can share a teacher pass: students of one seed that run the teacher in every step."""
    if cell == other or not (cell.student and other.student) or cell.teacher != other.teacher:
        return False
    if not all(uses_teacher(config, str(one.student), one.label) for one in (cell, other)):
        return False
    first, second = cell_student(config, cell, 1), cell_student(config, other, 1)
    return (
        config.base.side_by_side
        and not kept_views(first)
        and distillation_inputs(first) == distillation_inputs(second)
        and first.fit == second.fit
        and first.weights == second.weights
    )


def do_cells(
    config: GridConfig, out: Path, cells: Sequence[tuple[Cell, float]], threads: int | None, console: Console
) -> None:
    """Train and test a cell with the factor on its weight, or several side by side; an interrupted attempt is
    continued. The cells that they need must be done.

    Raises:
        UserError: a problem that the user can correct, such as another process that works on the cell.
    """
    first, _ = cells[0]
    context = open_experiment(config, out, first, console, threads=threads).of_seed(first.seed)
    context.keep()
    if first.student is None:
        stages = [train_teacher(context, out / first.folder)]
    else:
        students = [(out / cell.place(factor), cell_student(config, cell, factor)) for cell, factor in cells]
        teacher = stage_of(context, config, out, first.teacher) if needs_teacher(students[0][1]) else None
        try:
            stages = train_students(context, students, teacher)
        except Diverged as problem:
            if not first.tuning or len(cells) > 1:
                raise
            # a weight that is too large is a result of the tuning, recorded so that it is not tried again
            stage_of(context, config, out, first).finish({"seconds": 0.0, DIVERGED: str(problem)})
    if not first.tuning:
        for (cell, _), stage in zip(cells, stages, strict=True):
            test(context, stage, cell.label)


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
        self._experiments: dict[tuple[str, bool], Experiment] = {}
        self._contexts: dict[tuple[str, bool, int], SeedContext] = {}
        self._broken: dict[tuple[str, bool, int], str] = {}

    def broken(self, cell: Cell) -> str:
        """Return why the images of a cell cannot be used, in one line; empty where they can."""
        key = (cell.block, cell.tuning, cell.seed)
        if key not in self._broken:
            try:
                self.context(cell)
                self._broken[key] = ""
            except UserError as problem:
                self._broken[key] = grid_words(" ".join(str(problem).split()))
        return self._broken[key]

    def experiment(self, cell: Cell) -> Experiment:
        """Return the cell's experiment, opened on first use."""
        key = (cell.block, cell.tuning)
        if key not in self._experiments:
            known = any(block == cell.block for block, _ in self._experiments)
            quiet = Console(quiet=True)
            self._experiments[key] = open_experiment(
                self.config, self._home, cell, quiet, opening=quiet if known else self.console
            )
        return self._experiments[key]

    def context(self, cell: Cell) -> SeedContext:
        """Return the cell's experiment and split."""
        key = (cell.block, cell.tuning, cell.seed)
        if key not in self._contexts:
            self._contexts[key] = self.experiment(cell).of_seed(cell.seed)
        return self._contexts[key]

    def stage(self, cell: Cell) -> Stage | None:
        """Return the cell's stage; None while its weight is not chosen."""
        factor = self.factor(cell)
        if factor is None:
            return None
        return stage_of(self.context(cell), self.config, self.out, cell, factor)

    def done(self, cell: Cell) -> bool:
        """Return whether the cell is trained and, except for a tuning run, tested."""
        stage = self.stage(cell)
        if stage is None or not stage.done or stage_damage(stage):
            return False
        return cell.tuning or ((test := self._test(cell, stage)).done and not test.damage())

    def check_teacher(self, cell: Cell) -> None:
        """Raise a UserError when a finished teacher was made from another file than the settings name."""
        train_teacher(self.context(cell), self.out / cell.folder)

    def factor(self, cell: Cell) -> float | None:
        """Return the factor on the method's weight; None while the tuning is not complete, or where all runs
        diverged."""
        if cell.tuning or not trials(self.config, cell):
            return 1.0
        choice = self.choice(cell)
        return choice.factor if choice else None

    def choice(self, cell: Cell) -> Choice | None:
        """Return the tuning result of a cell's method, once it is complete; no factor where all runs diverged."""
        scores: dict[float, float | None] = {}
        for trial in trials(self.config, cell):
            stage = self.stage(trial)
            if stage is None or not stage.done:
                return None
            assert trial.factor
            scores[trial.factor] = self.validation_oa(trial)
        epochs = self.epochs(trials(self.config, cell)[0])
        return Choice(cell.block, str(cell.student), cell.label, scores, choose(scores), epochs)

    def validation_oa(self, cell: Cell) -> float | None:
        """Return the validation OA of the last epoch of a finished tuning run, 0..1; None where it diverged."""
        stage = self.stage(cell)
        assert stage
        return None if DIVERGED in stage.record else stage.record.get("last_epoch", {}).get("val_oa")

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
        if trials(self.config, cell):
            row = replace(row, more={**row.more, "factor": self.factor(cell)})
        return row

    def _test(self, cell: Cell, stage: Stage) -> Stage:
        return Stage(stage.folder / "evaluation", {"of": stage.fingerprint, "test": self.context(cell).split.hash})
