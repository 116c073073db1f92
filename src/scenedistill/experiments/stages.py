"""The stages of one seed: train the teacher, train a student, look at the test split."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from scenedistill.config import StudentConfig, TeacherConfig
from scenedistill.data.module import SceneDataModule, ScenePart
from scenedistill.data.splits import Split
from scenedistill.errors import UserError
from scenedistill.evaluation.cost import model_cost
from scenedistill.evaluation.metrics import scene_metrics
from scenedistill.evaluation.plots import write_confusion
from scenedistill.evaluation.predict import predict
from scenedistill.experiments.lab import Lab, plain
from scenedistill.experiments.results import Row
from scenedistill.losses.registry import resolve_weights
from scenedistill.models.files import load_net, weights_hash
from scenedistill.models.network import SceneNet
from scenedistill.models.student import build_student
from scenedistill.models.teacher import build_teacher
from scenedistill.training.fitting import fit
from scenedistill.training.knowledge import Knowledge
from scenedistill.training.runs import Stage
from scenedistill.training.student import StudentTraining
from scenedistill.training.teacher import TeacherTraining

WEIGHTS = "weights.safetensors"


def train_teacher(lab: Lab, seed: int, split: Split, folder: Path) -> Stage:
    """Train the teacher in the triplet Siamese frame, or take the one that `--teacher.checkpoint` names."""
    config = lab.config.teacher
    stage = lab.stage(folder, seed, split, {"teacher": plain(config)})
    done = lab.done(stage)
    if config.checkpoint:
        return _given_teacher(lab, config.checkpoint, stage)
    if done:
        return stage
    torch.manual_seed(seed)
    net, account = build_teacher(
        config.name,
        len(lab.classes),
        bands=lab.config.data.bands,
        image_size=lab.config.image_size,
        weights=config.weights,
        dual_attention=config.dual_attention,
    )
    if account:
        lab.console.print(str(account), markup=False)
    module = TeacherTraining(net, config, lab.config.views, image_size=lab.config.image_size, seed=seed)
    batches = SceneDataModule(
        lab.cache,
        split,
        batch_size=config.fit.batch_size,
        seed=seed,
        images_per_class=config.images_per_class if config.triplet_weight > 0 else 0,
    )
    record = fit(module, batches, folder, lab.config.machine, title="teacher", console=lab.console)
    record["weights_taken"] = str(account) if account else config.weights
    first = bool(account and account.stride_in_first_convolution)
    card = lab.card(config.name, config.dual_attention, stride_in_first_convolution=first)
    return lab.finish(stage, net, card, record)


def _given_teacher(lab: Lab, checkpoint: Path, stage: Stage) -> Stage:
    net, card = load_net(checkpoint)
    if card.classes != lab.classes:
        differing = sorted(set(card.classes) ^ set(lab.classes))[:5]
        raise UserError(
            f"{checkpoint} was trained for {len(card.classes)} classes and the data has {len(lab.classes)}; both must "
            f"be the same, in name and order. Only one of them has: {', '.join(differing) or '(another order)'}."
        )
    if card.bands != lab.config.data.bands:
        raise UserError(
            f"{checkpoint} takes {card.bands} bands and --data.bands is {lab.config.data.bands}; both must be the same."
        )
    if stage.done:
        if stage.record["weights_hash"] != weights_hash(net):  # the settings hold the file's name alone
            raise UserError(
                f"{stage.folder} was taken from another file than {checkpoint}, and what follows was made with "
                "that one. Give another run folder with --out."
            )
        return stage
    return lab.finish(stage, net, card, {"seconds": 0.0, "taken_from": checkpoint.name})


def train_student(
    lab: Lab, seed: int, split: Split, folder: Path, config: StudentConfig, teacher: Stage | None
) -> Stage:
    """Train a student, with a teacher by Algorithm 1 or, without one, plain."""
    settings: dict[str, Any] = {"student": plain(config)}
    if teacher:
        settings["teacher"] = teacher.fingerprint
    stage = lab.stage(folder, seed, split, settings)
    if lab.done(stage):
        return stage
    knowledge = _knowledge(lab, seed, split, config, teacher) if teacher else None
    torch.manual_seed(seed)
    net = build_student(
        config.name,
        len(lab.classes),
        bands=lab.config.data.bands,
        image_size=lab.config.image_size,
        dual_attention=config.dual_attention,
    )
    module = StudentTraining(
        net,
        config,
        resolve_weights(config.method, config.losses),
        lab.config.views,
        image_size=lab.config.image_size,
        seed=seed,
        knowledge=knowledge,
        statistics=knowledge.statistics(lab.device) if knowledge else None,
    )
    before = weights_hash(knowledge.teacher) if knowledge else None
    batches = SceneDataModule(lab.cache, split, batch_size=config.fit.batch_size, seed=seed)
    title = f"{config.name} {config.method}"
    record = fit(module, batches, folder, lab.config.machine, title=title, console=lab.console)
    if knowledge:
        record["teacher"] = teacher.record["name"] if teacher else None
        record["teacher_hash"] = weights_hash(knowledge.teacher)
        if record["teacher_hash"] != before:
            raise RuntimeError("the teacher's weights changed while it taught")
    return lab.finish(stage, net, lab.card(config.name, config.dual_attention), record)


def _knowledge(lab: Lab, seed: int, split: Split, config: StudentConfig, teacher: Stage) -> Knowledge:
    """The checked teacher's knowledge, shared by all students of one seed that use as many views."""
    key = (teacher.fingerprint, config.knowledge_views)
    if lab.knowledge is None or lab.knowledge[0] != key:
        net, _ = load_net(teacher.folder / WEIGHTS)
        check_teacher(lab, net, split, lab.config.teacher)
        knowledge = Knowledge(
            net.to(memory_format=torch.channels_last),
            ScenePart(lab.cache, split.train),
            views=config.knowledge_views,
            config=lab.config.views,
            image_size=lab.config.image_size,
            seed=seed,
            precision=lab.precision,
        )
        lab.knowledge = (key, knowledge)
    return lab.knowledge[1]


def check_teacher(lab: Lab, net: SceneNet, split: Split, config: TeacherConfig) -> None:
    """Refuse a teacher that knows next to nothing: by the validation images, or up to 1,000 training images where there
    are none. The test images stay unseen.

    Raises:
        UserError: its OA is below the least that `config` asks for.
    """
    rows, what = split.val, "validation"
    if not len(rows):
        rows, what = split.train[:: max(1, len(split.train) // 1000)], "training"
    part = ScenePart(lab.cache, rows)
    found = predict(net, part, image_size=lab.config.image_size, device=lab.device, precision=lab.precision)
    oa = float((found == part.labels).mean())
    chance = 1 / len(lab.classes)
    least = config.min_oa if config.min_oa is not None else (chance + 0.5) / 2
    if oa < least:
        raise UserError(
            f"The teacher is right on {oa:.1%} of {len(part)} {what} images (chance is {chance:.1%}), and needs "
            f"{least:.1%} to teach. Train it longer, start it from pretrained weights, or lower --teacher.min_oa."
        )
    lab.console.print(f"  teacher: right on {oa:.1%} of {len(part)} {what} images, fit to teach")


def test(lab: Lab, stage: Stage, split: Split, seed: int, variant: str) -> Row:
    """Look at the test split, once for each finished network, and keep what was seen."""
    final = Stage(stage.folder / "evaluation", {"of": stage.fingerprint, "test": split.hash})
    if not final.done:
        if lab.lead:
            _test(lab, final, stage, split)
        final.wait()
    seen, name = final.record, str(stage.record["name"])
    cost, teachers = seen["cost"], {"teacher": name, "plain": None}
    return Row(
        variant=variant,
        student=None if variant == "teacher" else name,
        teacher=teachers.get(variant, stage.record.get("teacher", lab.config.teacher.name)),
        seed=seed,
        oa=seen["oa"],
        aa=seen["aa"],
        kappa=seen["kappa"],
        macro_f1=seen["macro_f1"],
        parameters=cost["parameters"],
        milliseconds=cost["milliseconds"],
        more={
            "bytes": cost["bytes"],
            "operations": cost["operations"],
            "train_seconds": stage.record["seconds"],
            "test_seconds": seen["seconds"],
            "peak_memory_mib": stage.record.get("peak_memory_mib"),
        },
    )


def _test(lab: Lab, final: Stage, stage: Stage, split: Split) -> None:
    net, card = load_net(stage.folder / WEIGHTS)
    part = ScenePart(lab.cache, split.test)
    started = time.monotonic()
    found = predict(net, part, image_size=card.image_size, device=lab.device, precision=lab.precision)
    seconds = time.monotonic() - started
    metrics = scene_metrics(found, part.labels, lab.classes)
    final.begin()
    write_confusion(metrics, final.folder, "test")
    lab.console.print(
        f"  {stage.folder.relative_to(lab.out)}: OA {metrics.oa:.2%}  AA {metrics.aa:.2%}  kappa {metrics.kappa:.4f}  "
        f"on {len(part)} test images"
    )
    final.finish(
        {
            "oa": metrics.oa,
            "aa": metrics.aa,
            "kappa": metrics.kappa,
            "macro_f1": metrics.macro_f1,
            "per_class": metrics.per_class,
            "images": len(part),
            "seconds": round(seconds, 2),
            "cost": asdict(model_cost(net, card.image_size, card.bands)),
        }
    )


def plain_student(config: StudentConfig) -> StudentConfig:
    """The same student trained on the labels alone, all else equal."""
    return replace(config, method="plain", losses={}, loss_options={}, knowledge_views=0)
