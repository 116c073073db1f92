"""Execution of the cells of a grid: their experiments, stages and trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from scenedistill.experiments.context import Experiment, SeedContext
from scenedistill.experiments.grid.cells import Cell, cell_student, uses_teacher
from scenedistill.experiments.grid.config import GridConfig, needs_teacher
from scenedistill.experiments.grid.tuning.choices import tuning_settings
from scenedistill.experiments.grid.tuning.search import Candidate
from scenedistill.experiments.stages.students import student_stage, train_students
from scenedistill.experiments.stages.teacher import teacher_settings, train_teacher
from scenedistill.experiments.stages.teaching import distillation_inputs, stores_outputs
from scenedistill.experiments.stages.testing import test
from scenedistill.training.base import Diverged
from scenedistill.training.runs import Stage

DIVERGED = "diverged"  # key in the record of a tuning run

#: A cell with the settings that it tries, or that tuning has chosen for it.
Work = tuple[Cell, Candidate]


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
    data, ratio = config.blocks()[cell.block]
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
    if cell.tuning:
        assert config.tuning
        base = tuning_settings(base, config.tuning)
    return Experiment.open(Path(config.datasets[data]), out / cell.home, base, console, opening=opening)


def stage_of(
    context: SeedContext, config: GridConfig, out: Path, cell: Cell, candidate: Candidate | None = None
) -> Stage:
    """Return a cell's stage as `train_teacher` and `train_students` make it, for reading without a lock."""
    if cell.student is None:
        settings = teacher_settings(context.config.teacher, len(context.split.train))
        return context.stage(out / cell.folder, settings)
    student = cell_student(config, cell, candidate)
    teacher = stage_of(context, config, out, cell.teacher) if needs_teacher(student) else None
    return student_stage(context, out / cell.place(candidate or Candidate()), student, teacher)


def can_share_teacher_pass(config: GridConfig, one: Work, other: Work) -> bool:
    """Return whether two cells can share a teacher pass: students of one seed that run the teacher in every step."""
    (cell, _), (beside, _) = one, other
    if cell == beside or not (cell.student and beside.student) or cell.teacher != beside.teacher:
        return False
    if not all(uses_teacher(config, str(each.student), each.label) for each in (cell, beside)):
        return False
    first, second = cell_student(config, *one), cell_student(config, *other)
    return (
        config.base.side_by_side
        and not stores_outputs(first)
        and distillation_inputs(first) == distillation_inputs(second)
        and first.fit == second.fit
        and first.weights == second.weights
    )


def do_cells(config: GridConfig, out: Path, work: Sequence[Work], threads: int | None, console: Console) -> None:
    """Train and test a cell with its candidate, or several side by side; an interrupted attempt is continued. The
    cells that they need must be done.

    Raises:
        UserError: a problem that the user can correct, such as another process that works on the cell.
    """
    first, candidate = work[0]
    context = open_experiment(config, out, first, console, threads=threads).of_seed(first.seed, first.fold)
    context.keep()
    if first.student is None:
        stages = [train_teacher(context, out / first.folder)]
    else:
        students = [(out / cell.place(each), cell_student(config, cell, each)) for cell, each in work]
        teacher = stage_of(context, config, out, first.teacher) if needs_teacher(students[0][1]) else None
        try:
            stages = train_students(context, students, teacher)
        except Diverged as problem:
            if not first.tuning or len(work) > 1:
                raise
            # a candidate that diverges is a result of the tuning, recorded so that it is not tried again
            stage_of(context, config, out, first, candidate).finish({"seconds": 0.0, DIVERGED: str(problem)})
    if not first.tuning:
        for (cell, _), stage in zip(work, stages, strict=True):
            test(context, stage, cell.label)
