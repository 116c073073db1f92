"""Objectives of other libraries against the libraries themselves, or a loop over single images."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import timm
import torch
from timm.task import FeatureDistillationTask, LogitDistillationTask

from scenedistill.losses import DistillationLoss, LightlyQueue, TeacherStatistics, TimmFeatures, TimmLogits
from scenedistill.models.output import FeatureDims, SceneOutput

MakeOutput = Callable[..., SceneOutput]
LABELS = torch.tensor([0, 1, 2, 1, 0])


@pytest.fixture
def networks() -> tuple[torch.nn.Module, torch.nn.Module]:
    """A student and a wider teacher of timm, without dropout or anything else that draws."""
    student = timm.create_model("test_resnet", num_classes=3)
    teacher = timm.create_model("test_vit2", num_classes=3, img_size=64)
    return student.eval(), teacher.eval()


def outputs(network: torch.nn.Module, images: torch.Tensor) -> SceneOutput:
    embedding = network.forward_head(network.forward_features(images), pre_logits=True)  # type: ignore[operator]
    return SceneOutput(network(images), embedding, ())


@pytest.mark.parametrize("task", [LogitDistillationTask, FeatureDistillationTask])
def test_the_losses_equal_timms_tasks(task: type, networks: tuple[torch.nn.Module, torch.nn.Module]) -> None:
    student, teacher = networks
    images = torch.rand(5, 3, 64, 64)
    theirs = task(student, teacher, criterion=torch.nn.CrossEntropyLoss(), verbose=False)
    theirs.teacher.normalize_input = lambda images, *_: images  # ours takes images in 0..1 and normalises them inside
    ours, wanted = outputs(student, images), outputs(teacher, images)
    dims = [FeatureDims(3, each.embedding.shape[1], ()) for each in (ours, wanted)]
    loss: DistillationLoss = TimmLogits(*dims)
    if task is FeatureDistillationTask:
        loss = TimmFeatures(*dims)
        loss.load_state_dict(
            {f"projection.{name}": value for name, value in theirs.trainable_module.projection.state_dict().items()}
        )
    with torch.no_grad():
        found = theirs(images, LABELS)
        ours = outputs(student, images)
    assert loss(ours, wanted, LABELS).item() == pytest.approx(float(found["kd_loss"]), rel=1e-4)
    total = torch.nn.functional.cross_entropy(ours.logits, LABELS) + loss(ours, wanted, LABELS)
    assert total.item() == pytest.approx(float(found["loss"]), rel=1e-4)


def test_embeddings_of_equal_width_are_not_projected(output: MakeOutput, student_dims: FeatureDims) -> None:
    student, teacher = output(student_dims), output(student_dims, seed=1)
    loss = TimmFeatures(student_dims, student_dims)
    assert not list(loss.parameters())
    wanted = (student.embedding - teacher.embedding).square().mean()
    assert loss(student, teacher, LABELS).item() == pytest.approx(wanted.item())


@pytest.mark.parametrize("stored", [False, True])
def test_lightlys_objective_equals_a_loop(
    stored: bool,
    output: MakeOutput,
    student_dims: FeatureDims,
    teacher_dims: FeatureDims,
    statistics: TeacherStatistics,
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    loss = LightlyQueue(student_dims, teacher_dims).double()
    queue = teacher.embedding
    if stored:
        queue = output(teacher_dims, 9, seed=2).embedding
        loss.prepare(statistics._replace(embeddings=queue))
    total = 0.0
    for u, t in zip(student.embedding, teacher.embedding, strict=True):
        p = loss.projection(u)
        ours, theirs = (
            [float(side @ q / side.norm() / q.norm()) / 0.07 for q in queue] for side in (p, t)
        )  # fmt: skip
        norm_ours, norm_theirs = (math.log(sum(map(math.exp, scores))) for scores in (ours, theirs))
        total += sum(
            math.exp(b - norm_theirs) * ((b - norm_theirs) - (a - norm_ours)) for a, b in zip(ours, theirs, strict=True)
        )
    assert loss(student, teacher, LABELS).item() == pytest.approx(total / len(LABELS))
