"""Training of the students of one seed: alone, or side by side where they can share a teacher pass."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scenedistill.config import StudentConfig
from scenedistill.core.disk import file_hash
from scenedistill.core.errors import UserError
from scenedistill.data.module import SceneDataModule
from scenedistill.experiments.context import SeedContext
from scenedistill.experiments.settings import plain
from scenedistill.experiments.stages.starts import check_start, start_hash, start_record
from scenedistill.experiments.stages.teaching import further_teachers, open_knowledge
from scenedistill.fit_config import schedule_text
from scenedistill.losses.registry import REVISIONS
from scenedistill.models.create import build_network
from scenedistill.models.files import NetCard, weights_hash
from scenedistill.models.weights.take import WeightAccount
from scenedistill.training.best import BEST, BestEpoch, damaged_best, read_best
from scenedistill.training.fitting import fit
from scenedistill.training.multi_student import MultiStudentTraining
from scenedistill.training.runs import Stage, fingerprint, title_of
from scenedistill.training.student import StudentTraining
from scenedistill.training.teacher_outputs.knowledge import Knowledge


def train_students(
    context: SeedContext, wanted: Sequence[tuple[Path, StudentConfig]], teacher: Stage | None
) -> list[Stage]:
    """Train students, with a teacher by Algorithm 1 or, without one, plain; each in its folder, and once.

    Several students are trained side by side, on one view and one teacher pass of each batch: their settings may differ
    except for the schedule of the training and the stored views.
    """
    run = context.experiment.folder
    wanted = [(folder, config.closed(len(context.split.train))) for folder, config in wanted]
    stages = [student_stage(context, folder, config, teacher) for folder, config in wanted]
    everyone = [(stage, config) for stage, (_, config) in zip(stages, wanted, strict=True)]
    with contextlib.ExitStack() as held:
        for stage in stages:
            held.enter_context(run.hold(stage))
        todo = [one for one in everyone if not (run.done(one[0]) and _same_teacher(context, one[0], teacher))]
        for stage, config in everyone:
            if stage.done:
                check_start(stage, config.weights, start_hash(config.weights, config.name))
        if todo and _checkpoint(_shared_folder(context, everyone)).exists():
            todo = everyone  # interrupted: a training side by side continues as such
        if todo:
            _train(context, todo, teacher)
    return stages


def _same_teacher(context: SeedContext, stage: Stage, teacher: Stage | None) -> bool:
    """Return whether a finished student was distilled from the present weights of the teacher, and reopen it if not; a
    damaged teacher that was trained again may differ by rounding."""
    taught_by = stage.record.get("teacher_hash")
    if not (teacher and taught_by) or taught_by == teacher.record.get("weights_hash", taught_by):
        return True
    run = context.experiment.folder
    context.say(f"{run.name_of(stage)}: its teacher has other weights than the one there is; trained again")
    run.reopen(stage)
    return False


def student_stage(context: SeedContext, folder: Path, config: StudentConfig, teacher: Stage | None) -> Stage:
    """Return the stage of a student that is trained with a teacher or plain."""
    settings: dict[str, Any] = {"student": student_settings(config, len(context.split.train))}
    if teacher:
        settings["teacher"] = teacher.fingerprint
        if config.also:
            settings["also"] = [file_hash(path) for path in further_teachers(config, context.seed)]
        if config.unlabelled:
            settings |= context.experiment.images.unlabelled_settings(context.split)
    if context.config.best_epoch:  # left out otherwise, as before this setting existed
        settings["best_epoch"] = True
    return context.stage(folder, settings)


def student_settings(config: StudentConfig, images: int) -> dict[str, Any]:
    """Return the settings that determine a student's training on so many images, except files and images."""
    settings = plain(replace(config.closed(images), also=[], unlabelled=True))
    used = {config.method, *config.loss_weights()}
    revisions = {name: number for name, number in REVISIONS.items() if name in used}
    return settings | ({"revisions": revisions} if revisions else {})


def _train(context: SeedContext, todo: Sequence[tuple[Stage, StudentConfig]], teacher: Stage | None) -> None:
    if teacher and not teacher.done:
        raise UserError(
            f"{teacher.folder} is no longer this run's teacher: a run with other settings has put its own there. "
            "Give one of the two another run folder with --out."
        )
    experiment, shared = context.experiment, todo[0][1]
    knowledge = open_knowledge(context, shared, teacher) if teacher else None
    modules, starts, cards = dict[str, StudentTraining](), dict[str, dict[str, Any]](), dict[str, NetCard]()
    for stage, config in todo:
        name = title_of(stage.folder)
        file = start_hash(config.weights, config.name)
        modules[name], account = _module(context, config, knowledge)
        starts[name] = start_record(config.weights, account, file) if config.weights != "none" else {}
        first = bool(account and account.stride_in_first_convolution)
        cards[name] = experiment.card(config.name, config.dual_attention, stride_in_first_convolution=first)
    if len(modules) < len(todo):
        raise ValueError(f"two students side by side are called alike: {[stage.folder for stage, _ in todo]}")
    batches = SceneDataModule(
        experiment.images.cache,
        context.split,
        batch_size=shared.schedule().batch_size,
        seed=context.seed,
        training=knowledge.part if knowledge else None,
        views=knowledge.views if knowledge else 0,
    )
    folder = todo[0][0].folder
    title = title_of(folder)
    module: StudentTraining | MultiStudentTraining = modules[title]
    if len(todo) > 1:
        folder, title = _shared_folder(context, todo), f"{len(todo)} students"
        module = MultiStudentTraining(modules)
    watching = [BestEpoch(folder)] if context.config.best_epoch else []
    if watching and experiment.lead and (lost := damaged_best(folder)):
        context.say(f"{title}: {lost.name} is damaged; its training starts again")
        _checkpoint(folder).unlink(missing_ok=True)
        shutil.rmtree(folder / BEST, ignore_errors=True)
    record = fit(
        module, batches, folder, context.config.machine, title=title, console=experiment.console, callbacks=watching
    )
    if knowledge:
        record["teacher"] = teacher.record["name"] if teacher else None
        record["teacher_hash"] = weights_hash(knowledge.teacher)
        record["teacher_frozen"] = list(knowledge.report)
        record["also_taught_by"] = knowledge.teachers.hashes[1:]
        knowledge.check_untouched()
        if knowledge.store:
            record["knowledge"] = knowledge.store.folder.name
    # the time of the shared training is divided evenly
    record["seconds"] = round(record["seconds"] / len(todo), 1)
    for stage, _ in todo:
        name = title_of(stage.folder)
        last = _own(record["last_epoch"], name, len(todo))
        own = {**record, **starts[name], "together": len(todo), "last_epoch": last}
        prefix = f"{name} " if len(todo) > 1 else ""
        best = read_best(folder, prefix) if context.config.best_epoch and experiment.lead else None
        experiment.folder.finish(stage, modules[name].net, cards[name], own, best, folder)
    if experiment.lead:
        _checkpoint(folder).unlink(missing_ok=True)
        shutil.rmtree(folder / BEST, ignore_errors=True)


def _shared_folder(context: SeedContext, students: Sequence[tuple[Stage, StudentConfig]]) -> Path:
    """Return the folder of a training side by side."""
    name = fingerprint({"stages": [stage.fingerprint for stage, _ in students]})
    return context.folder / f"together-{name}"


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def _own(metrics: dict[str, float], title: str, students: int) -> dict[str, float]:
    """Select the metrics of one student from those of several."""
    if students == 1:
        return metrics
    return {name.removeprefix(f"{title} "): value for name, value in metrics.items() if name.startswith(f"{title} ")}


def _module(
    context: SeedContext, config: StudentConfig, knowledge: Knowledge | None
) -> tuple[StudentTraining, WeightAccount | None]:
    experiment = context.experiment
    torch.manual_seed(context.seed)
    net, account = build_network(
        config.name,
        len(experiment.classes),
        bands=context.config.data.bands,
        image_size=context.config.image_size,
        weights=config.weights,
        partial=config.partial,
        dual_attention=config.dual_attention,
    )
    if config.weights != "none":
        context.say(f"{config.name} starts from {account or config.weights}")
    how = "fine-tuned" if config.weights != "none" else "trained from nothing"
    losses = ", ".join(f"{name} {weight:g}" for name, weight in config.loss_weights().items())
    context.say(f"{config.name} is {how} by {schedule_text(config.schedule())}; losses: {losses}")
    if knowledge:
        knowledge.statistics(experiment.device)  # for the losses
    module = StudentTraining(
        net,
        config,
        config.loss_weights(),
        context.config.views,
        image_size=context.config.image_size,
        seed=context.seed,
        knowledge=knowledge,
    )
    return module, account


def plain_student(config: StudentConfig) -> StudentConfig:
    """Return the settings of the same student trained on the labels alone, all else equal."""
    return replace(
        config,
        method="plain",
        losses={},
        loss_options={},
        knowledge_views=0,
        mixup=0.0,
        ask_size=None,
        symmetries=False,
        also=[],
    )
