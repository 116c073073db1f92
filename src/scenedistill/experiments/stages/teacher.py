"""Training of a seed's teacher, or loading of a given one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scenedistill.config import TeacherConfig
from scenedistill.data.module import SceneDataModule
from scenedistill.experiments.context import SeedContext
from scenedistill.experiments.settings import plain
from scenedistill.experiments.stages.given_teacher import given_teacher, read_classes, teacher_as_it_is
from scenedistill.experiments.stages.starts import check_start, start_hash, start_record
from scenedistill.fit_config import schedule_text
from scenedistill.models.create import build_network
from scenedistill.training.fitting import fit
from scenedistill.training.runs import Stage
from scenedistill.training.teacher import TeacherTraining


def train_teacher(context: SeedContext, folder: Path) -> Stage:
    """Train the teacher in the triplet Siamese framework, or load the one of `--teacher.checkpoint` or, with
    `--teacher.as_is`, of `--teacher.weights`."""
    images, run = len(context.split.train), context.experiment.folder
    config = context.config.teacher.closed(images)
    stage = context.stage(folder, teacher_settings(config, images))
    with run.hold(stage):
        done = run.done(stage)
        if config.checkpoint:
            return given_teacher(context, config.checkpoint, stage)
        file = start_hash(config.weights, config.name)
        if not done:
            if config.as_is:
                return teacher_as_it_is(context, stage, file)
            return _train_teacher(context, config, stage, file)
        check_start(stage, config.weights, file)
        return stage


def teacher_settings(config: TeacherConfig, images: int) -> dict[str, Any]:
    """Return the settings that determine a teacher's training on so many images; `min_oa` is not one of them."""
    settings = plain(replace(config, min_oa=None, classes=read_classes(config.classes)))
    return {"teacher": settings | {"fit": plain(config.schedule(images))}}


def _train_teacher(context: SeedContext, config: TeacherConfig, stage: Stage, file: str | None) -> Stage:
    experiment, seed = context.experiment, context.seed
    torch.manual_seed(seed)
    net, account = build_network(
        config.name,
        len(experiment.classes),
        bands=context.config.data.bands,
        image_size=context.config.image_size,
        weights=config.weights,
        partial=config.partial,
        dual_attention=config.dual_attention,
    )
    if account:
        experiment.console.print(str(account), markup=False)
    context.say(f"teacher is trained by {schedule_text(config.schedule())}")
    module = TeacherTraining(net, config, context.config.views, image_size=context.config.image_size, seed=seed)
    batches = SceneDataModule(
        experiment.images.cache,
        context.split,
        batch_size=config.schedule().batch_size,
        seed=seed,
        images_per_class=config.images_per_class if config.triplet_weight > 0 else 0,
    )
    record = fit(module, batches, stage.folder, context.config.machine, title="teacher", console=experiment.console)
    record |= start_record(config.weights, account, file)
    first = bool(account and account.stride_in_first_convolution)
    card = experiment.card(config.name, config.dual_attention, stride_in_first_convolution=first)
    return experiment.folder.finish(stage, net, card, record)
