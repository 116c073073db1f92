"""The whole experiment: for each seed a teacher, the plain student and the distilled student, each tested once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from scenedistill.config import FitConfig, RunConfig
from scenedistill.core.precision import compute_device, resolve_precision
from scenedistill.core.terminal import plain_console
from scenedistill.data.module import EpochBatches
from scenedistill.data.scenes import SceneIndex, scan
from scenedistill.experiments.checks import check_settings
from scenedistill.experiments.context import Experiment, SeedContext, split_of
from scenedistill.experiments.results.record import Result, Row
from scenedistill.experiments.stages.students import plain_student, student_settings, train_students
from scenedistill.experiments.stages.teacher import teacher_settings, train_teacher
from scenedistill.experiments.stages.teaching import stores_outputs
from scenedistill.experiments.stages.testing import test
from scenedistill.experiments.storage import clear, stored
from scenedistill.experiments.summary import summarise
from scenedistill.models.files import load_net
from scenedistill.models.weights.files import check_file
from scenedistill.training.fitting import count_devices
from scenedistill.training.runs import Stage, read_stage
from scenedistill.training.trial import try_student, try_teacher

PARTS = ("teacher", "plain", "distilled")


def run(
    data: Path | str,
    out: Path | str,
    config: RunConfig | None = None,
    *,
    parts: Sequence[str] = PARTS,
    command: str = "",
    clear_knowledge: bool = False,
    console: Console | None = None,
) -> Result:
    """Train and test teacher, plain student and distilled student for each seed; every stage is done once.

    Args:
        data: folder with one sub-folder for each class, or a CSV manifest.
        out: the run's folder; its name is that of the experiment. An interrupted run continues with the same call;
            stages that are done with the same settings are skipped.
        config: every setting.
        parts: which of `teacher`, `plain` and `distilled` to do; a distilled student needs its teacher.
        command: command that repeats the experiment, for the record.
        clear_knowledge: delete the stored teacher outputs that this run wrote or read, once all is done.
        console: console for the messages.

    Returns:
        The result, also written to the folder as `summary.json` and `summary.md`.

    Raises:
        UserError: a problem that the user can correct.
    """
    config = config or RunConfig()
    check_settings(config)
    index = scan(Path(data))
    _check_images(index, config, parts)
    _try_networks(config, Path(out), parts)
    experiment = Experiment.open(Path(data), Path(out), config, console or plain_console(), index=index)
    rows: list[Row] = []
    trained: list[Stage] = []
    contexts: list[SeedContext] = []
    for seed in config.seeds:
        context = experiment.of_seed(seed)
        context.keep()
        contexts.append(context)
        if "distilled" in parts and config.student.unlabelled:
            experiment.images.unlabelled(context.split)  # what is wrong with them is told before a teacher is trained
        folder = context.folder
        with context.hold():
            teacher = None
            if "teacher" in parts or "distilled" in parts:
                teacher = train_teacher(context, folder / "teacher")
                rows.append(test(context, teacher, "teacher"))
            names = config.students or [config.student.name]
            names = names + (config.also_students if seed == config.seeds[0] else [])
            students = [replace(config.student, name=student) for student in dict.fromkeys(names)]
            if "plain" in parts:
                for student in students:
                    wanted = (folder / student.name / "plain", plain_student(student))
                    (stage,) = train_students(context, [wanted], None)
                    rows.append(test(context, stage, "plain"))
            if "distilled" in parts:
                distilled = [(folder / student.name / student.method, student) for student in students]
                # stored teacher outputs serve each student alone; a teacher run in every step can serve all students
                alone = stores_outputs(config.student) or not config.side_by_side
                for group in [[one] for one in distilled] if alone else [distilled]:
                    for stage in train_students(context, group, teacher):
                        trained.append(stage)
                        rows.append(test(context, stage, config.student.method))
        context.knowledge = None  # frees its arrays and the teacher's weights
    result = summarise(contexts, rows, name=Path(out).resolve().name, command=command)
    if clear_knowledge and experiment.lead:
        used = {stage.record.get("knowledge") for stage in trained}
        kept = [entry.name for entry in stored(experiment.knowledge_home.parent) if entry.name in used]
        for entry in clear(kept, experiment.knowledge_home.parent):
            experiment.console.print(f"knowledge {entry.name} deleted")
    return result


def _try_networks(config: RunConfig, out: Path, parts: Sequence[str]) -> None:
    """Run one training step of every network that has no stage in the folder yet, and load a given teacher: one that
    cannot be trained or loaded is reported before images are decoded and a teacher is trained."""
    if config.teacher.checkpoint:
        load_net(config.teacher.checkpoint)
    device = compute_device(config.machine.accelerator)
    precision = resolve_precision(config.machine.precision, device)
    begun = [read_stage(path.parent).get("settings") or {} for path in out.glob("seed*/**/stage.json")]
    begun = [settings for settings in begun if settings.get("image_size") == config.image_size]

    def new(name: str, settings: dict[str, Any], fit: FitConfig) -> bool:
        """Return whether no stage has these settings; open ones that depend on the number of images are ignored."""
        left = [item for item in ("epochs", "batch_size") if getattr(fit, item) is None]
        networks = [one[name] for one in (*begun, {name: settings}) if isinstance(one.get(name), dict)]
        fits = ({k: v for k, v in one["fit"].items() if k not in left} for one in networks)
        # nor does a step depend on the number of views, which may follow from the epochs
        told = [{**one, "fit": each, "knowledge_views": None} for one, each in zip(networks, fits, strict=True)]
        return told[-1] not in told[:-1]

    teacher = config.teacher
    asked = not teacher.checkpoint and set(parts) & {"teacher", "distilled"}
    if asked and new("teacher", teacher_settings(teacher, 1)["teacher"], teacher.fit):
        check_file(teacher.weights, teacher.name)
        if not teacher.as_is:
            try_teacher(config, device, precision)
    for name in dict.fromkeys((config.students or [config.student.name]) + config.also_students):
        student = replace(config.student, name=name)
        student = student if "distilled" in parts else plain_student(student)
        if set(parts) & {"plain", "distilled"} and new("student", student_settings(student, 1), student.fit):
            try_student(config, student, device, precision)


def _check_images(index: SceneIndex, config: RunConfig, parts: Sequence[str]) -> None:
    """Check before decoding, from the list of images alone, that the split exists and has enough images for a batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warnings of a split are shown when it is used
        split = split_of(config, index, config.seeds[0])
    world, labels = count_devices(config.machine), index.labels[split.train]
    teacher, fit = config.teacher, config.teacher.schedule(len(labels))
    if not (teacher.checkpoint or teacher.as_is) and set(parts) & {"teacher", "distilled"}:
        groups = teacher.images_per_class if teacher.triplet_weight > 0 else 0
        EpochBatches(labels, fit.batch_size, 0, images_per_class=groups, world=world)
    if set(parts) & {"plain", "distilled"}:
        EpochBatches(labels, config.student.schedule(len(labels)).batch_size, 0, world=world)
