"""The whole experiment: for each seed a teacher, the plain student and the distilled student, each tested once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from scenedistill.config import FitConfig, RunConfig, TeacherConfig
from scenedistill.core.errors import UserError
from scenedistill.core.precision import compute_device, resolve_precision
from scenedistill.core.terminal import plain_console
from scenedistill.data.module import EpochBatches
from scenedistill.data.scenes import SceneIndex, scan
from scenedistill.data.unlabelled.sources import check_sources
from scenedistill.experiments.context import Experiment, SeedContext, split_of
from scenedistill.experiments.results.record import Result, Row
from scenedistill.experiments.stages.given_teacher import read_classes
from scenedistill.experiments.stages.students import plain_student, student_settings, train_students
from scenedistill.experiments.stages.teacher import teacher_settings, train_teacher
from scenedistill.experiments.stages.teaching import stores_outputs
from scenedistill.experiments.stages.testing import test
from scenedistill.experiments.storage import clear, stored
from scenedistill.experiments.summary import summarise
from scenedistill.losses.registry import build_losses, resolve_weights
from scenedistill.models.create import build_network
from scenedistill.models.files import LONGEST_SIDE, load_net
from scenedistill.models.network import SceneNet, check_name
from scenedistill.models.table1 import STUDENTS
from scenedistill.models.weights.files import check_file
from scenedistill.training.base import view_size
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


def check_settings(config: RunConfig) -> None:
    """Check the settings before hours of work.

    Raises:
        UserError: an invalid seed, name or range, or a device that does not exist.
    """
    if not config.seeds or min(config.seeds) < 0 or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"--seeds is {config.seeds}; expected one or more whole numbers from 0, each once.")
    for name, size in (("image_size", config.image_size), ("data.stored_size", config.data.stored_size)):
        if not 1 <= size <= LONGEST_SIDE:
            raise UserError(f"--{name} is {size}; expected a number of pixels, {LONGEST_SIDE} at most.")
    low, high = config.views.scale
    if not 0 < low <= high <= 1:
        raise UserError(f"--views.scale is a share of the image, 0 < smallest <= largest <= 1; found [{low}, {high}].")
    low, high = config.views.ratio
    if not 0 < low <= high:
        raise UserError(f"--views.ratio is width : height, 0 < smallest <= largest; found [{low}, {high}].")
    for name in ("brightness", "contrast", "saturation", "erasing"):
        if not 0 <= (share := getattr(config.views, name)) <= 1:
            raise UserError(f"--views.{name} is {share}; expected 0 to 1.")
    _check_unlabelled(config)
    if (config.student.knowledge_views or 0) < 0:
        raise UserError(
            f"--student.knowledge_views is {config.student.knowledge_views}; expected a number of views, or 0 to run "
            "the teacher in every epoch."
        )
    if not 0 <= config.student.mixup <= 1:
        raise UserError(f"--student.mixup is {config.student.mixup}; expected a share of the images, 0 to 1.")
    if config.student.ask_size is not None and not 1 <= config.student.ask_size <= config.data.stored_size:
        raise UserError(
            f"--student.ask_size is {config.student.ask_size}; expected up to the {config.data.stored_size} pixels at "
            "which the images are stored (--data.stored_size)."
        )
    if config.student.fit.label_smoothing:
        raise UserError("--student.fit.label_smoothing does nothing: it is of a teacher's cross-entropy. Leave it out.")
    devices = count_devices(config.machine)
    for name, fit in (("teacher", config.teacher.schedule(1)), ("student", config.student.schedule(1))):
        if fit.steps is not None and (fit.steps < 1 or getattr(config, name).fit.epochs is not None):
            epochs = getattr(config, name).fit.epochs
            raise UserError(
                f"--{name}.fit.steps is {fit.steps} and epochs {epochs}; expected 1 step or more, in place of epochs."
            )
        for setting, fits in (("epochs", fit.epochs >= 1), ("batch_size", fit.batch_size >= 1), ("lr", fit.lr > 0)):
            if not fits:
                raise UserError(f"--{name}.fit.{setting} is {getattr(fit, setting)}; expected more than 0.")
        if not 0 <= fit.ema_decay < 1:
            raise UserError(f"--{name}.fit.ema_decay is {fit.ema_decay}; expected 0 to less than 1, such as 0.998.")
        if not 0 < fit.first_size <= 1:
            raise UserError(f"--{name}.fit.first_size is {fit.first_size}; expected a share of image_size, 0 to 1.")
        if name == "teacher" and not (config.teacher.checkpoint or config.teacher.as_is):
            _check_groups(config.teacher)
        if fit.batch_size % devices:
            raise UserError(f"--{name}.fit.batch_size {fit.batch_size} cannot be shared evenly by {devices} devices.")
    _check_networks(config)


def _check_groups(teacher: TeacherConfig) -> None:
    batch, each = teacher.schedule(1).batch_size, teacher.images_per_class
    if teacher.triplet_weight <= 0:
        return
    if each < 2:
        raise UserError(f"--teacher.images_per_class is {each}; a triplet needs 2 or more.")
    if batch % each:
        near = " or ".join(str(size) for size in (batch // each * each, (batch // each + 1) * each) if size)
        raise UserError(
            f"--teacher.fit.batch_size {batch} cannot be made of --teacher.images_per_class {each}: give a multiple, "
            f"such as {near}."
        )


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
        told = [{**one, "fit": {k: v for k, v in one["fit"].items() if k not in left}} for one in networks]
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


def _check_teacher(teacher: TeacherConfig, bands: int) -> None:
    check_name(teacher.name, STUDENTS)
    read_classes(teacher.classes)
    for name in ("classes", "mean", "std"):
        if getattr(teacher, name) is not None and not teacher.as_is:
            raise UserError(f"--teacher.{name} is of a network that is taken as it is: add --teacher.as_is true.")
    mean, std = teacher.mean, teacher.std
    if (mean is None) != (std is None):
        raise UserError("--teacher.mean and --teacher.std belong together: give both.")
    if mean is not None and std is not None:
        fits = len(mean) in (1, bands) and len(std) in (1, bands) and all(0 <= value <= 1 for value in mean)
        if not fits or not all(0 < value <= 1 for value in std):
            raise UserError(
                f"--teacher.mean is {mean} and --teacher.std {std}; expected {bands} numbers each (or one for all), of "
                "images in 0..1: where yours are of 0..255, divide by 255."
            )
    if teacher.as_is and teacher.checkpoint:
        raise UserError("--teacher.as_is takes the network of --teacher.weights; leave --teacher.checkpoint out.")
    if teacher.as_is and teacher.weights in ("none", "timm", "torchvision", "lite"):
        raise UserError(
            f"--teacher.as_is takes a network with a head for these classes, and --teacher.weights is "
            f"{teacher.weights}. Give the file of a network that was trained on them."
        )


def _check_unlabelled(config: RunConfig) -> None:
    """Check that the unlabelled images exist and their settings are valid."""
    data = config.data
    if not 0 < data.unlabelled_share < 1:
        raise UserError(
            f"--data.unlabelled_share is {data.unlabelled_share}; expected a share of the batch between 0 and 1, such "
            "as 0.5. Leave --data.unlabelled out for a training with labels alone."
        )
    if data.unlabelled_tile is not None and data.unlabelled_tile < 1:
        raise UserError(f"--data.unlabelled_tile is {data.unlabelled_tile}; expected a number of pixels.")
    for name in ("unlabelled_tile", "transductive"):
        if not data.unlabelled and getattr(data, name):
            raise UserError(f"--data.{name} does nothing without images from --data.unlabelled. Leave it out.")
    check_sources(data.unlabelled, data.unlabelled_tile)


def _check_networks(config: RunConfig) -> None:
    """Build the students and their losses once, so that a wrong name is reported before the teacher is trained."""
    student = config.student
    weights = resolve_weights(student.method, student.losses)
    if student.method == "plain":
        raise UserError("The plain student is always trained for comparison. Give a method that distils, such as dkd.")
    _check_teacher(config.teacher, config.data.bands)
    for name in dict.fromkeys((config.students or [student.name]) + config.also_students):
        net, _ = build_network(
            name,
            2,
            bands=config.data.bands,
            image_size=config.image_size,
            weights=student.weights,
            partial=student.partial,
            dual_attention=student.dual_attention,
        )
        build_losses(weights, net.dims, net.dims, student.loss_options)
        _check_first_size("student", net, config, student.schedule(1))
    if config.teacher.fit.first_size < 1 and not (config.teacher.checkpoint or config.teacher.as_is):
        net, _ = build_network(config.teacher.name, 2, bands=config.data.bands, image_size=config.image_size)
        _check_first_size("teacher", net, config, config.teacher.schedule(1))


def _check_first_size(name: str, net: SceneNet, config: RunConfig, fit: FitConfig) -> None:
    """Check that the network accepts the small views of the first epochs; most transformers accept one size only."""
    side = view_size(0, fit.epochs, config.image_size, fit.first_size)
    if side == config.image_size:
        return
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, config.data.bands, side, side))
    except (RuntimeError, AssertionError, ValueError) as problem:
        raise UserError(
            f"--{name}.fit.first_size {fit.first_size}: the {name} does not take views of {side} pixels, but "
            f"{config.image_size} alone. Leave it out, or choose another network."
        ) from problem
