"""L_SS against loops written from its definition, and against numbers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from scenedistill.losses.base import TeacherStatistics
from scenedistill.losses.spatial_structure import (
    SpatialStructureLoss,
    angle_structure,
    distance_structure,
    relation_divergence,
)
from scenedistill.models.output import FeatureDims, SceneOutput

Head = tuple[nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]

MakeOutput = Callable[..., SceneOutput]
LABELS = torch.tensor([0, 1, 2, 1, 0])
RIGHT = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # sides 3, 4, 5
EQUAL = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])  # sides 1, 1, 1


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def minus(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def unit(a: list[float]) -> list[float]:
    length = math.sqrt(dot(a, a))
    return [x / length for x in a] if length else a


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def loop_distances(points: Tensor) -> list[float]:
    rows = points.tolist()
    found = [math.dist(rows[i], rows[j]) for i in range(len(rows)) for j in range(i + 1, len(rows))]
    return [d / (sum(found) / len(found)) for d in found]


def loop_angles(points: Tensor) -> list[float]:
    """Cosine at a between i and k; zero where a is i or k."""
    rows = points.tolist()
    count = range(len(rows))
    return [
        dot(unit(minus(rows[i], rows[a])), unit(minus(rows[k], rows[a]))) for a in count for i in count for k in count
    ]


def loop_huber(ours: list[float], theirs: list[float]) -> float:
    return sum(huber(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)


def loop_softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def loop_relation(
    ours: list[list[float]], theirs: list[list[float]], points: list[list[float]], own: list[int], temperature: float
) -> float:
    total = 0.0
    for i in range(len(ours)):
        others = [point for j, point in enumerate(points) if j != own[i]]
        p = loop_softmax([dot(theirs[i], t) / temperature for t in others])
        q = loop_softmax([dot(ours[i], t) / temperature for t in others])
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(ours)


def test_the_loss_is_the_sum_of_its_parts_computed_by_loops(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, statistics: TeacherStatistics
) -> None:
    torch.manual_seed(0)
    loss = SpatialStructureLoss(
        student_dims, teacher_dims, cosine=0.9, relation=0.8, distance=0.7, angle=0.6, temperature=0.5
    ).double()
    loss.prepare(statistics)
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    linear, norm, _, last = cast(Head, tuple(loss.head))
    hidden = student.embedding @ linear.weight.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + norm.eps).sqrt()
    carried = [unit(row) for row in (hidden.clamp(min=0) @ last.weight.T + last.bias).tolist()]
    target = [unit(row) for row in (teacher.embedding - statistics.embedding_mean.double()).tolist()]
    expected = 0.9 * sum(1 - dot(a, b) for a, b in zip(carried, target, strict=True)) / 5
    expected += 0.8 * loop_relation(carried, target, target, list(range(5)), 0.5)
    expected += 0.7 * loop_huber(loop_distances(student.embedding), loop_distances(teacher.embedding))
    expected += 0.6 * loop_huber(loop_angles(student.embedding), loop_angles(teacher.embedding))
    assert float(loss(student, teacher, LABELS)) == pytest.approx(expected, rel=1e-9)
    assert loss.relational


@pytest.mark.parametrize("part", ["cosine", "relation", "distance", "angle"])
def test_each_weight_switches_its_part(
    part: str,
    output: MakeOutput,
    student_dims: FeatureDims,
    teacher_dims: FeatureDims,
    statistics: TeacherStatistics,
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    off = dict.fromkeys(("cosine", "relation", "distance", "angle"), 0.0)

    def value(**weights: float) -> float:
        torch.manual_seed(0)
        loss = SpatialStructureLoss(student_dims, teacher_dims, **{**off, **weights}).double()
        loss.prepare(statistics)
        return float(loss(student, teacher, LABELS))

    alone = SpatialStructureLoss(student_dims, teacher_dims, **{**off, part: 1.0}).double()
    alone.prepare(statistics)
    alone(student.map(lambda t: t.clone().requires_grad_()), teacher, LABELS).backward()
    assert all(parameter.grad is not None for parameter in alone.parameters())  # nothing idle: DDP would stop
    assert value() == 0
    assert value(**{part: 1.0}) > 0
    assert value(**{part: 3.0}) == pytest.approx(3 * value(**{part: 1.0}))


def test_distances_equal_a_value_computed_by_hand() -> None:
    # 3, 4, 5 over their mean are 3/4, 1, 5/4, and the teacher's are 1, 1, 1: (1/4)^2 / 2, twice, over three pairs
    assert float(distance_structure(RIGHT, EQUAL)) == pytest.approx(2 * 0.25**2 / 2 / 3)
    assert float(distance_structure(RIGHT, 7 * RIGHT + 100)) == pytest.approx(0, abs=1e-10)


def test_angles_equal_a_value_computed_by_hand() -> None:
    # cosines 0, 3/5, 4/5 against 1/2, each met twice among the 27 triples; those that name a point twice agree
    expected = 2 * (0.5**2 + 0.1**2 + 0.3**2) / 2 / 27
    assert float(angle_structure(RIGHT, EQUAL)) == pytest.approx(expected, rel=1e-5)
    assert float(angle_structure(RIGHT, -7 * RIGHT + 100)) == pytest.approx(0, abs=1e-10)


def test_the_bank_holds_all_training_images_but_the_images_own(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, statistics: TeacherStatistics
) -> None:
    bank = torch.randn(9, teacher_dims.embedding, generator=torch.Generator().manual_seed(3))
    loss = SpatialStructureLoss(student_dims, teacher_dims, cosine=0, relation=1, temperature=0.5).double()
    loss.prepare(statistics._replace(embeddings=bank))
    rows = [8, 0, 3, 11, 4]  # the image of row 11 is not among the nine
    student, teacher = output(student_dims), output(teacher_dims, seed=1)._replace(rows=(torch.tensor(rows),))
    linear, norm, _, last = cast(Head, tuple(loss.head))
    hidden = student.embedding @ linear.weight.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + norm.eps).sqrt()
    carried = [unit(row) for row in (hidden.clamp(min=0) @ last.weight.T + last.bias).tolist()]
    centre = statistics.embedding_mean.double()
    target = [unit(row) for row in (teacher.embedding - centre).tolist()]
    points = [unit(row) for row in (bank.double() - centre).tolist()]
    expected = loop_relation(carried, target, points, rows, 0.5)
    assert float(loss(student, teacher, LABELS)) == pytest.approx(expected, rel=1e-6)
    assert "points" not in loss.state_dict(), "the bank is built again, not written into every checkpoint"


def test_images_whose_rows_are_not_known_are_compared_with_their_batch(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, statistics: TeacherStatistics
) -> None:
    """An image's own point could not be left out of the bank."""
    bank = torch.randn(9, teacher_dims.embedding, generator=torch.Generator().manual_seed(3))
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    values = []
    for kept in (bank, torch.empty(0)):
        torch.manual_seed(0)
        loss = SpatialStructureLoss(student_dims, teacher_dims).double()
        loss.prepare(statistics._replace(embeddings=kept))
        values.append(float(loss(student, teacher, LABELS)))
    assert values[0] == values[1]


def test_relation_equals_a_value_computed_by_hand() -> None:
    # beside the own point there are two; the student has these exchanged: with s = sigmoid(1),
    # KL((s, 1 - s) || (1 - s, s)) = (2 s - 1) * 1
    points = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    own = torch.tensor([0])
    ours, theirs = points[[1]], points[[2]]
    assert float(relation_divergence(ours, theirs, points, own, 1.0)) == pytest.approx(math.tanh(0.5))
    assert float(relation_divergence(theirs, theirs, points, own, 0.1)) == pytest.approx(0, abs=1e-7)
    assert float(relation_divergence(points[[0]], theirs, points, own, 1.0)) > 0
    assert float(relation_divergence(ours, theirs, points[:2], own, 1.0)) == 0  # one other point says nothing


def test_the_anchored_part_equals_a_value_computed_by_hand() -> None:
    dims = FeatureDims(2, 2, ())
    loss = SpatialStructureLoss(dims, dims, cosine=1.0, relation=0.0)
    loss.head = nn.Sequential()
    loss.prepare(TeacherStatistics(torch.tensor([1.0, 1.0]), (), ()))

    def output(embedding: list[list[float]]) -> SceneOutput:
        return SceneOutput(torch.zeros(2, 2), torch.tensor(embedding), ())

    # centred, the teacher's points are (4, 0) and (0, 2); the student's are at 60 and 0 degrees from them
    student, teacher = output([[0.5, math.sqrt(0.75)], [0.0, 9.0]]), output([[5.0, 1.0], [1.0, 3.0]])
    assert float(loss(student, teacher, LABELS[:2])) == pytest.approx((1 - 0.5) / 2)


def test_a_structure_is_anchored_and_not_only_alike(output: MakeOutput) -> None:
    dims = FeatureDims(3, 4, ())
    loss = SpatialStructureLoss(dims, dims, distance=1.0, angle=1.0).double()
    loss.head = nn.Sequential()
    loss.prepare(TeacherStatistics(torch.zeros(4), (), ()))
    teacher = output(dims, sizes=())
    assert float(loss(teacher, teacher, LABELS)) == pytest.approx(0, abs=1e-12)
    turned = teacher._replace(embedding=-teacher.embedding)  # the same inner structure in another place
    assert float(distance_structure(turned.embedding, teacher.embedding)) == pytest.approx(0, abs=1e-12)
    assert float(loss(turned, teacher, LABELS)) > 5


@pytest.mark.parametrize("structure", [distance_structure, angle_structure])
def test_float32_is_enough_for_embeddings_far_from_the_origin(structure: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Pooled features behind a ReLU have a large part in common; the structure is in the small rest."""
    draw = torch.Generator().manual_seed(0)
    common = 20 * nn.functional.normalize(torch.rand(512, generator=draw, dtype=torch.float64), dim=0)
    ours = common + 0.1 * torch.randn(24, 512, generator=draw, dtype=torch.float64)
    theirs = torch.randn(24, 256, generator=draw, dtype=torch.float64)
    values, gradients = [], []
    for dtype in (torch.float64, torch.float32):
        points = ours.clone().to(dtype).requires_grad_()
        value = structure(points, theirs.to(dtype))
        torch.autograd.backward(value)
        values.append(value.detach().double())
        assert points.grad is not None
        gradients.append(points.grad.double())
    torch.testing.assert_close(values[1], values[0], rtol=1e-3, atol=0)
    assert (gradients[1] - gradients[0]).norm() < 1e-2 * gradients[0].norm()


def test_a_batch_of_one_uses_the_running_statistics_and_leaves_them(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, statistics: TeacherStatistics
) -> None:
    torch.manual_seed(0)
    loss = SpatialStructureLoss(student_dims, teacher_dims).double()
    loss.prepare(statistics)
    loss(output(student_dims), output(teacher_dims, seed=1), LABELS)
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    one = output(student_dims, 1), output(teacher_dims, 1, seed=1), LABELS[:1]
    alone = loss(*one)
    torch.testing.assert_close(loss.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(alone, loss.eval()(*one))
