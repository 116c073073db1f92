"""Checks of a run's settings, before hours of work."""

from __future__ import annotations

import torch

from scenedistill.config import FitConfig, RunConfig, StudentConfig, TeacherConfig
from scenedistill.core.errors import UserError
from scenedistill.data.unlabelled.sources import check_sources
from scenedistill.experiments.stages.given_teacher import read_classes
from scenedistill.losses.registry import build_losses
from scenedistill.models.backbones import check_name
from scenedistill.models.create import build_network
from scenedistill.models.files import LONGEST_SIDE
from scenedistill.models.network import SceneNet
from scenedistill.training.base import view_size
from scenedistill.training.fitting import count_devices


def check_settings(config: RunConfig) -> None:
    """Check the settings before hours of work.

    Raises:
        UserError: an invalid seed, name or range, or a device that does not exist.
    """
    if not config.seeds or min(config.seeds) < 0 or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"--seeds is {config.seeds}; expected one or more whole numbers from 0, each once.")
    data, machine = config.data, config.machine
    for name, size in (("image_size", config.image_size), ("data.stored_size", data.stored_size)):
        if not 1 <= size <= LONGEST_SIDE:
            raise UserError(f"--{name} is {size}; expected a number of pixels, {LONGEST_SIDE} at most.")
    counts = {"data.bands": data.bands, "data.workers": data.workers or 1, "machine.threads": machine.threads or 1}
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"--{name} is {count}; expected 1 or more.")
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
    _check_fit("teacher", config.teacher)
    if not (config.teacher.checkpoint or config.teacher.as_is):
        _check_groups(config.teacher)
    check_student(config.student, data.stored_size)
    devices = count_devices(machine)
    for name, fit in (("teacher", config.teacher.schedule(1)), ("student", config.student.schedule(1))):
        if fit.batch_size % devices:
            raise UserError(f"--{name}.fit.batch_size {fit.batch_size} cannot be shared evenly by {devices} devices.")
    _check_networks(config)


def check_student(student: StudentConfig, stored_size: int) -> None:
    """Check the ranges of a student's settings.

    Args:
        student: the settings.
        stored_size: side in pixels of the decoded images.

    Raises:
        UserError: a setting is out of range.
    """
    if (student.knowledge_views or 0) < 0:
        raise UserError(
            f"--student.knowledge_views is {student.knowledge_views}; expected a number of views, or 0 to run the "
            "teacher in every epoch."
        )
    if not 0 <= student.mixup <= 1:
        raise UserError(f"--student.mixup is {student.mixup}; expected a share of the images, 0 to 1.")
    if student.ask_size is not None and not 1 <= student.ask_size <= stored_size:
        raise UserError(
            f"--student.ask_size is {student.ask_size}; expected up to the {stored_size} pixels at which the images "
            "are stored (--data.stored_size)."
        )
    if student.fit.label_smoothing:
        raise UserError("--student.fit.label_smoothing does nothing: it is of a teacher's cross-entropy. Leave it out.")
    _check_fit("student", student)


def _check_fit(name: str, network: TeacherConfig | StudentConfig) -> None:
    """Check the ranges of a schedule; `name` is `teacher` or `student`."""
    fit, epochs = network.schedule(1), network.fit.epochs
    if fit.steps is not None and (fit.steps < 1 or epochs is not None):
        raise UserError(
            f"--{name}.fit.steps is {fit.steps} and epochs {epochs}; expected 1 step or more, in place of epochs."
        )
    for setting, fits, expected in (
        ("epochs", fit.epochs >= 1, "more than 0"),
        ("batch_size", fit.batch_size >= 1, "more than 0"),
        ("lr", fit.lr > 0, "more than 0"),
        ("fresh_lr_factor", fit.fresh_lr_factor >= 0, "0 or more"),
        ("weight_decay", fit.weight_decay >= 0, "0 or more"),
        ("momentum", 0 <= fit.momentum <= 1, "0 to 1"),
        ("warmup_epochs", fit.warmup_epochs >= 0, "0 or more"),
        ("label_smoothing", 0 <= fit.label_smoothing <= 1, "0 to 1"),
        ("clip_norm", fit.clip_norm >= 0, "0 or more"),
        ("ema_decay", 0 <= fit.ema_decay < 1, "0 to less than 1, such as 0.998"),
        ("first_size", 0 < fit.first_size <= 1, "a share of image_size, 0 to 1"),
    ):
        if not fits:
            raise UserError(f"--{name}.fit.{setting} is {getattr(fit, setting)}; expected {expected}.")


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


def _check_teacher(teacher: TeacherConfig, bands: int) -> None:
    check_name(teacher.name)
    read_classes(teacher.classes)
    if teacher.frozen_stages < 0 or (teacher.frozen_stages and teacher.weights == "none"):
        raise UserError(
            f"--teacher.frozen_stages is {teacher.frozen_stages} and --teacher.weights {teacher.weights}; expected 0, "
            "or a number of stages that keep their pretrained weights."
        )
    if teacher.min_oa is not None and not 0 <= teacher.min_oa <= 1:
        raise UserError(f"--teacher.min_oa is {teacher.min_oa}; expected a share of the images, 0 to 1.")
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
    weights = student.loss_weights()
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
        check_first_size("student", net, config, student.schedule(1))
    if config.teacher.fit.first_size < 1 and not (config.teacher.checkpoint or config.teacher.as_is):
        net, _ = build_network(config.teacher.name, 2, bands=config.data.bands, image_size=config.image_size)
        check_first_size("teacher", net, config, config.teacher.schedule(1))


def check_first_size(name: str, net: SceneNet, config: RunConfig, fit: FitConfig) -> None:
    """Check that the network accepts the small views of the first epochs; most transformers accept one size only.

    Args:
        name: `teacher` or `student`.
        net: the network.
        config: settings of the run.
        fit: schedule of the network.

    Raises:
        UserError: it does not.
    """
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
