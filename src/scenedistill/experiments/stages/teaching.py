"""Inputs of a distillation: training images, teacher outputs, and the check of the teacher's accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scenedistill.config import StudentConfig
from scenedistill.core.errors import UserError
from scenedistill.core.terminal import counted
from scenedistill.data.batches import ScenePart
from scenedistill.data.training_part import TrainingPart
from scenedistill.experiments.context import Experiment, SeedContext
from scenedistill.experiments.stages.files import open_net
from scenedistill.losses.registry import LOSSES
from scenedistill.metrics.predict import predict
from scenedistill.models.files import load_net
from scenedistill.models.network import SceneNet
from scenedistill.training.runs import Stage
from scenedistill.training.teacher_outputs.knowledge import Knowledge
from scenedistill.training.teacher_outputs.teachers import Teachers


def open_knowledge(context: SeedContext, config: StudentConfig, teacher: Stage) -> Knowledge:
    """Check the teacher and open its outputs, shared by all students of a seed with the same `distillation_inputs`."""
    experiment, views = context.experiment, kept_views(config)
    key = (teacher.fingerprint, *distillation_inputs(config))
    if context.knowledge is None or context.knowledge[0] != key:
        net, _ = open_net(teacher)
        others = [_further_teacher(experiment, path) for path in further_teachers(config, context.seed)]
        teachers = Teachers(
            [net, *others],
            precision=experiment.precision,
            image_size=config.ask_size or context.config.image_size,
            symmetries=config.symmetries,
            compiled=context.config.machine.compile,
        )
        knowledge = Knowledge(
            teachers,
            training_part(context, config),
            views=views,
            config=context.config.views,
            seed=context.seed,
            root=experiment.knowledge_home,
            about={
                "teacher": teacher.record["name"],
                "data": experiment.images.name,
                "pixels": context.config.image_size,
            },
        )
        check_teacher(context, knowledge)
        for line in knowledge.report:
            context.say(f"teacher made fast: {line}")
        if knowledge.store:
            context.say(knowledge.need(config.schedule(len(context.split.train)).epochs))
        context.knowledge = (key, knowledge)
    return context.knowledge[1]


def distillation_inputs(config: StudentConfig) -> tuple[Any, ...]:
    """Return the settings that students must have in common to use the same teacher outputs."""
    views = config.knowledge_views if stores_outputs(config) else 0
    return views, config.mixup, config.unlabelled, config.ask_size, config.symmetries, *config.also


def training_part(context: SeedContext, config: StudentConfig) -> TrainingPart:
    """Return the images that a distilled student trains on."""
    images, split = context.experiment.images, context.split
    pool = images.unlabelled(split) if config.unlabelled else None
    return TrainingPart(
        ScenePart(images.cache, split.train),
        pool.part if pool else None,
        share=context.config.data.unlabelled_share,
        mixup=config.mixup,
        seed=context.seed,
    )


def further_teachers(config: StudentConfig, seed: int) -> list[Path]:
    """Return the weights files of the further teachers of a seed, whose outputs are averaged with the teacher's.

    Raises:
        UserError: a file does not exist.
    """
    paths = [Path(path.replace("{seed}", str(seed))) for path in config.also]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"--student.also: no network at {path}. Expected the weights.safetensors of a finished teacher."
            )
    return paths


def _further_teacher(experiment: Experiment, path: Path) -> SceneNet:
    net, card = load_net(path)
    if card.classes != experiment.classes or card.bands != experiment.config.data.bands:
        raise UserError(
            f"--student.also: {path} was trained for {len(card.classes)} classes and {card.bands} bands, or for other "
            f"classes than these; the data has {len(experiment.classes)} and {experiment.config.data.bands}. All "
            "teachers must agree."
        )
    return net


def check_teacher(context: SeedContext, knowledge: Knowledge) -> None:
    """Check the OA of the teacher on the validation images, or on the training images where there are none. The test
    images are not used.

    Raises:
        UserError: the OA is below the minimum of the settings.
    """
    experiment, config, split = context.experiment, context.config.teacher, context.split
    if len(split.val):
        what, part = "validation", ScenePart(experiment.images.cache, split.val)
        size = knowledge.teachers.image_size
        found = predict(
            knowledge.teacher, part, image_size=size, device=experiment.device, precision=experiment.precision
        )
        oa = float((found == part.labels).mean())
    else:
        what, part = "training", knowledge.part.labelled
        oa = knowledge.statistics(experiment.device)[1]
    chance = 1 / len(experiment.classes)
    least = config.min_oa if config.min_oa is not None else (chance + 0.5) / 2
    if oa < least:
        better = "Train it longer, start it from pretrained weights"
        if config.as_is:
            better = "Name its classes in the order of its logits (--teacher.classes), train it (--teacher.as_is false)"
        raise UserError(
            f"The teacher is right on {oa:.1%} of {counted(len(part), f'{what} image')} (chance is {chance:.1%}), and "
            f"needs {least:.1%} to teach. {better}, or lower --teacher.min_oa."
        )
    context.say(f"teacher: right on {oa:.1%} of {counted(len(part), f'{what} image')}, fit to teach")


def stores_outputs(config: StudentConfig) -> bool:
    """Return whether teacher outputs are stored. They are not for a loss on whole feature maps, which are too large:
    the teacher runs in every step."""
    weights = config.loss_weights()
    return config.knowledge_views != 0 and not any(LOSSES[name].needs_features for name in weights)


def kept_views(config: StudentConfig) -> int:
    """Return the number of distinct views whose teacher outputs are stored, 0 where none are; `config` is closed."""
    if not stores_outputs(config):
        return 0
    if config.knowledge_views is None:
        raise ValueError("the number of views depends on the number of images: call `StudentConfig.closed`")
    return config.knowledge_views
