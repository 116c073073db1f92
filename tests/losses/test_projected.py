"""Losses with layers of their own against loops over single images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor

from scenedistill.losses.base import TeacherStatistics
from scenedistill.losses.projected import OrthogonalProjection, ProjectorEnsemble, SelfSupervised
from scenedistill.models.output import FeatureDims, SceneOutput

MakeOutput = Callable[..., SceneOutput]
LABELS = torch.tensor([0, 1, 2, 1, 0])


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a: list[float]) -> list[float]:
    return [x / math.hypot(*a) for x in a]


@pytest.fixture
def outputs(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> tuple[SceneOutput, SceneOutput]:
    return output(student_dims), output(teacher_dims, seed=1)


def test_the_ensemble_equals_a_loop(
    outputs: tuple[SceneOutput, SceneOutput], student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    student, teacher = outputs
    loss = ProjectorEnsemble(student_dims, teacher_dims, projectors=2).double()
    total = 0.0
    for own, wanted in zip(student.embedding, teacher.embedding.tolist(), strict=True):
        first, second = (layer(own).tolist() for layer in loss.projectors)
        carried = [(max(a, 0) + max(b, 0)) / 2 for a, b in zip(first, second, strict=True)]
        total += 1 - dot(unit(carried), unit(wanted))
    assert loss(student, teacher, LABELS).item() == pytest.approx(total / len(LABELS))


def test_the_ensembles_layers_start_with_different_weights(
    student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    loss = ProjectorEnsemble(student_dims, teacher_dims)
    weights = [layer.get_parameter("weight") for layer in loss.projectors]
    assert len(weights) == 3 and not torch.equal(weights[0], weights[1])
    with pytest.raises(ValueError, match="projectors is 0; expected 1 or more"):
        ProjectorEnsemble(student_dims, teacher_dims, projectors=0)


@pytest.mark.parametrize(("narrow", "wide"), [(4, 7), (7, 4)])
def test_the_projection_equals_a_loop_and_keeps_lengths_and_angles(narrow: int, wide: int) -> None:
    torch.manual_seed(0)
    ours, theirs = FeatureDims(3, narrow, ()), FeatureDims(3, wide, ())
    loss = OrthogonalProjection(ours, theirs).double()
    optimiser = torch.optim.SGD(loss.parameters(), lr=1.0)
    student = SceneOutput(torch.zeros(5, 3), torch.randn(5, narrow).double(), ())
    teacher = SceneOutput(torch.zeros(5, 3), torch.randn(5, wide).double(), ())
    values = []
    for _ in range(3):  # it stays orthogonal while it learns
        matrix = cast(Tensor, loss.projection.weight)
        product = matrix.T @ matrix if narrow < wide else matrix @ matrix.T
        torch.testing.assert_close(product, torch.eye(min(narrow, wide), dtype=torch.float64), atol=1e-5, rtol=0)
        total = 0.0
        for own, wanted in zip(student.embedding, teacher.embedding.tolist(), strict=True):
            mean = sum(wanted) / wide
            deviation = math.sqrt(sum((value - mean) ** 2 for value in wanted) / wide + 1e-5)
            carried = (matrix @ own).tolist()
            total += sum((a - (b - mean) / deviation) ** 2 for a, b in zip(carried, wanted, strict=True))
        value = loss(student, teacher, LABELS)
        assert value.item() == pytest.approx(total / (5 * wide))
        values.append(value.item())
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    assert values[2] < values[0]


def seed_by_a_loop(
    loss: SelfSupervised, student: SceneOutput, teacher: SceneOutput, others: list[list[Tensor]]
) -> float:
    """`others`: of each image, the queue without its own entry."""
    total = 0.0
    for own, wanted, queue in zip(student.embedding, teacher.embedding.tolist(), others, strict=True):
        ours, theirs = unit(loss.head(own).tolist()), unit(wanted)
        points = [theirs, *(unit(point.tolist()) for point in queue)]
        target = [math.exp(dot(theirs, point) / loss.teacher_temperature) for point in points]
        scores = [math.exp(dot(ours, point) / loss.temperature) for point in points]
        total -= sum(t / sum(target) * math.log(s / sum(scores)) for t, s in zip(target, scores, strict=True))
    return total / len(others)


def test_seed_equals_a_loop_over_the_batch(
    outputs: tuple[SceneOutput, SceneOutput], student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    student, teacher = outputs
    loss = SelfSupervised(student_dims, teacher_dims, teacher_temperature=0.05).double()
    others = [[point for j, point in enumerate(teacher.embedding) if j != i] for i in range(len(LABELS))]
    assert loss(student, teacher, LABELS).item() == pytest.approx(seed_by_a_loop(loss, student, teacher, others))


def test_seed_equals_a_loop_over_the_training_images(
    outputs: tuple[SceneOutput, SceneOutput],
    student_dims: FeatureDims,
    teacher_dims: FeatureDims,
    statistics: TeacherStatistics,
) -> None:
    student, teacher = outputs
    bank = torch.randn(9, teacher_dims.embedding, dtype=torch.float64)
    loss = SelfSupervised(student_dims, teacher_dims, teacher_temperature=0.05).double()
    loss.prepare(statistics._replace(embeddings=bank))
    rows = torch.tensor([3, 0, 8, 5, 20])  # the last one is an image that the bank does not hold
    others = [[point for j, point in enumerate(bank) if j != row] for row in rows.tolist()]
    found = loss(student, teacher._replace(rows=(rows,)), LABELS).item()
    assert found == pytest.approx(seed_by_a_loop(loss, student, teacher, others))
