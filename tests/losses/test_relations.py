"""Losses on how images lie to each other against loops, hand-computed numbers and other implementations."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor, nn

from scenedistill.losses.base import TeacherStatistics
from scenedistill.losses.relations import (
    ContrastiveRepresentation,
    CorrelationCongruence,
    PooledSimilarity,
    ProbabilisticTransfer,
    RelationalKnowledge,
    SimilarityPreserving,
)
from scenedistill.models.output import FeatureDims, SceneOutput

MakeOutput = Callable[..., SceneOutput]
LABELS = torch.tensor([0, 1, 2, 1, 0])
DIMS = FeatureDims(3, 2, ())


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a: list[float]) -> list[float]:
    return [x / math.hypot(*a) for x in a]


def mean_square(ours: list[list[float]], theirs: list[list[float]]) -> float:
    count = len(ours)
    return sum((ours[i][j] - theirs[i][j]) ** 2 for i in range(count) for j in range(count)) / count**2


def only_embedding(embedding: Tensor) -> SceneOutput:
    return SceneOutput(torch.zeros(len(embedding), 3), embedding, ())


def of_module(tensor: Tensor) -> dict[str, dict[str, Tensor]]:
    """How torchdistill hands a network's output to its losses."""
    return {"net": {"output": tensor}}


SIMILARITIES: list[tuple[type[SimilarityPreserving], Callable[[SceneOutput], Tensor]]] = [
    (SimilarityPreserving, lambda output: output.features[-1].reshape(len(output.features[-1]), -1)),
    (PooledSimilarity, lambda output: output.embedding),
]


@pytest.mark.parametrize(("kind", "rows"), SIMILARITIES)
def test_similarity_equals_a_loop(
    kind: type[SimilarityPreserving],
    rows: Callable[[SceneOutput], Tensor],
    output: MakeOutput,
    student_dims: FeatureDims,
    teacher_dims: FeatureDims,
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    grams = []
    for images in (rows(student).tolist(), rows(teacher).tolist()):
        grams.append([unit([dot(a, b) for b in images]) for a in images])
    loss = kind(student_dims, teacher_dims)
    assert loss(student, teacher, LABELS).item() == pytest.approx(mean_square(*grams), rel=1e-9)
    assert loss.relational and loss.needs_features == (kind is SimilarityPreserving)


def test_similarity_equals_a_value_computed_by_hand() -> None:
    # at right angles: rows (1, 0) and (0, 1); twice the same: rows (1, 1) / sqrt 2
    ours, theirs = only_embedding(torch.eye(2)), only_embedding(torch.tensor([[3.0, 0.0], [3.0, 0.0]]))
    root = math.sqrt(0.5)
    expected = ((1 - root) ** 2 + root**2) / 2
    assert PooledSimilarity(DIMS, DIMS)(ours, theirs, LABELS[:2]).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("kind", "features"), SIMILARITIES)
def test_similarity_equals_torchdistill(
    kind: type[SimilarityPreserving],
    features: Callable[[SceneOutput], Tensor],
    output: MakeOutput,
    student_dims: FeatureDims,
    teacher_dims: FeatureDims,
    mid_level: ModuleType,
) -> None:
    theirs = mid_level.SPKDLoss("net", "net", "batchmean")
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    # theirs divides each row by the sum of its absolute values, where the paper takes its length
    rows: list[Tensor] = [theirs.matmul_and_normalize(features(net)) for net in (student, teacher)]
    torch.testing.assert_close(rows[0].abs().sum(1), torch.ones(5, dtype=torch.float64))
    distance = torch.dist(nn.functional.normalize(rows[0], dim=1), nn.functional.normalize(rows[1], dim=1))
    found = kind(student_dims, teacher_dims)(student, teacher, LABELS)
    torch.testing.assert_close(found, distance**2 / 25)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_correlation_equals_a_loop(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, order: int
) -> None:
    def kernel(a: list[float], b: list[float]) -> float:
        series = ((2 * 0.3 * dot(unit(a), unit(b))) ** p / math.factorial(p) for p in range(order + 1))
        return math.exp(-2 * 0.3) * sum(series)

    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    kernels = [
        [[kernel(a, b) for b in rows] for a in rows]
        for rows in (student.embedding.tolist(), teacher.embedding.tolist())
    ]
    loss = CorrelationCongruence(student_dims, teacher_dims, gamma=0.3, order=order)
    assert loss(student, teacher, LABELS).item() == pytest.approx(mean_square(*kernels), rel=1e-9)
    assert loss.relational


def test_correlation_equals_a_value_computed_by_hand() -> None:
    # at right angles the kernel is exp(-1), of the same direction exp(-1) (1 + 1 + 1/2) at gamma = 1/2, P = 2
    ours, theirs = only_embedding(torch.eye(2)), only_embedding(torch.tensor([[3.0, 0.0], [5.0, 0.0]]))
    loss = CorrelationCongruence(DIMS, DIMS, gamma=0.5, order=2)
    assert loss(ours, theirs, LABELS[:2]).item() == pytest.approx((1.5 * math.exp(-1)) ** 2 / 2, rel=1e-5)


def test_correlation_of_a_high_order_is_the_gaussian(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    gaussians = []
    for net in (student, teacher):
        points = nn.functional.normalize(net.embedding, dim=1)
        gaussians.append((-0.4 * (points[:, None] - points[None]).square().sum(2)).exp())
    found = CorrelationCongruence(student_dims, teacher_dims, order=20.0)(student, teacher, LABELS)
    torch.testing.assert_close(found, (gaussians[0] - gaussians[1]).square().mean())


def test_correlation_equals_torchdistill(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, mid_level: ModuleType
) -> None:
    theirs = mid_level.CCKDLoss("net", "net", {"type": "gaussian", "gamma": 0.4, "max_p": 2}, "batchmean")
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    normal = [of_module(nn.functional.normalize(net.embedding, dim=1)) for net in (student, teacher)]
    # theirs leaves the length of the features to the caller, and divides the distance, not its square, by B^2
    distance = 25 * theirs(*normal)
    found = CorrelationCongruence(student_dims, teacher_dims)(student, teacher, LABELS)
    torch.testing.assert_close(found, distance**2 / 25)


def test_relational_knowledge_equals_a_value_computed_by_hand() -> None:
    right = only_embedding(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]))
    even = only_embedding(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]]))
    # sides 3/4, 1, 5/4 against 1, 1, 1; cosines 0, 3/5, 4/5 against 1/2, each twice among the 27 triples
    distance = 2 * 0.25**2 / 2 / 3
    angle = 2 * (0.5**2 + 0.1**2 + 0.3**2) / 2 / 27

    def value(**weights: float) -> float:
        found: float = RelationalKnowledge(DIMS, DIMS, **weights)(right, even, LABELS[:3]).item()
        return found

    assert value() == pytest.approx(25 * distance + 50 * angle, rel=1e-5)
    assert value(distance=3.0, angle=0.0) == pytest.approx(3 * distance, rel=1e-5)
    assert value(distance=0.0, angle=3.0) == pytest.approx(3 * angle, rel=1e-5)
    assert RelationalKnowledge.relational


def test_relational_knowledge_equals_torchdistill(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, mid_level: ModuleType
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    found = RelationalKnowledge(student_dims, teacher_dims, distance=0.7, angle=0.4)(student, teacher, LABELS)
    # theirs also counts each of the five images' distance to itself, which is zero
    theirs = mid_level.RKDLoss("net", "net", 0.7 * 5 / 4, 0.4, "mean")
    expected = theirs(of_module(student.embedding), of_module(teacher.embedding))
    torch.testing.assert_close(found, expected)


def contrastive(student: FeatureDims, teacher: FeatureDims, **options: float) -> ContrastiveRepresentation:
    torch.manual_seed(0)
    return ContrastiveRepresentation(student, teacher, **options).double()


def test_contrast_equals_a_loop(output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims) -> None:
    loss = contrastive(student_dims, teacher_dims, temperature=0.5, width=3.0)
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    ours = [unit(row) for row in loss.student_head(student.embedding).tolist()]
    theirs = [unit(row) for row in loss.teacher_head(teacher.embedding).tolist()]
    expected = 0.0
    for anchors, others in ((ours, theirs), (theirs, ours)):
        for i, anchor in enumerate(anchors):
            against = [j for j in range(5) if j == i or LABELS[j] != LABELS[i]]
            scores = {j: math.exp(dot(anchor, others[j]) / 0.5) for j in against}
            expected -= math.log(scores[i] / sum(scores.values())) / 5
    assert loss(student, teacher, LABELS).item() == pytest.approx(expected, rel=1e-9)
    assert loss.relational


def test_contrast_with_all_training_images_equals_a_loop(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, statistics: TeacherStatistics
) -> None:
    loss = contrastive(student_dims, teacher_dims, temperature=0.5, width=3.0)
    bank = torch.randn(7, teacher_dims.embedding, dtype=torch.float64)
    classes = [0, 1, 2, 2, 1, 0, 0]
    loss.prepare(statistics._replace(embeddings=bank, labels=torch.tensor(classes)))
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    ours = [unit(row) for row in loss.student_head(student.embedding).tolist()]
    theirs = [unit(row) for row in loss.teacher_head(teacher.embedding).tolist()]
    points = [unit(row) for row in loss.teacher_head(bank).tolist()]
    expected = 0.0
    for i, label in enumerate(LABELS.tolist()):
        negatives = [point for point, other in zip(points, classes, strict=True) if other != label]
        expected -= math.log(share(ours[i], theirs[i], negatives)) / 5
        negatives = [ours[j] for j in range(5) if LABELS[j] != label]
        expected -= math.log(share(theirs[i], ours[i], negatives)) / 5
    found = loss(student, teacher._replace(rows=(torch.arange(5),)), LABELS).item()
    assert found == pytest.approx(expected, rel=1e-9)
    alone = contrastive(student_dims, teacher_dims, temperature=0.5, width=3.0)
    torch.testing.assert_close(loss(student, teacher, LABELS), alone(student, teacher, LABELS))


def share(anchor: list[float], own: list[float], others: list[list[float]]) -> float:
    """Of the own vector among the others, at temperature 0.5."""
    score = math.exp(dot(anchor, own) / 0.5)
    return score / (score + sum(math.exp(dot(anchor, other) / 0.5) for other in others))


def test_contrast_equals_a_value_computed_by_hand() -> None:
    loss = ContrastiveRepresentation(DIMS, DIMS, temperature=1.0, width=2)
    for head in (loss.student_head, loss.teacher_head):
        nn.init.eye_(head.weight)
        nn.init.zeros_(head.bias)
    ours, theirs = only_embedding(torch.eye(2)), only_embedding(5 * torch.eye(2))
    # each has its own at 1 and the other at 0, in both directions
    assert loss(ours, theirs, torch.tensor([0, 1])).item() == pytest.approx(2 * math.log(1 + math.exp(-1)))
    assert loss(ours, theirs, torch.tensor([1, 1])).item() == 0  # of one class there is nothing to tell apart


def test_contrast_equals_pytorch_metric_learning(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    """torchdistill's CRDLoss is the estimator with a memory of all training images, which is another number."""
    loss = contrastive(student_dims, teacher_dims)
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    ours, theirs = loss.student_head(student.embedding), loss.teacher_head(teacher.embedding)
    itself = torch.arange(5)
    pairs = (itself, itself, *torch.nonzero(LABELS[:, None] != LABELS[None], as_tuple=True))
    entropy = NTXentLoss(temperature=0.07)
    expected = entropy(ours, indices_tuple=pairs, ref_emb=theirs) + entropy(theirs, indices_tuple=pairs, ref_emb=ours)
    torch.testing.assert_close(loss(student, teacher, LABELS), expected)


def test_probabilistic_transfer_equals_a_loop(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)

    def neighbours(embedding: Tensor) -> list[list[float]]:
        rows = [unit(row) for row in embedding.tolist()]
        similar = [[(dot(a, b) + 1) / 2 for b in rows] for a in rows]
        return [[value / sum(line) for value in line] for line in similar]

    ours, theirs = neighbours(student.embedding), neighbours(teacher.embedding)
    pairs = [(ours[i][j], theirs[i][j]) for i in range(len(ours)) for j in range(len(ours))]
    expected = sum(t * math.log(t / s) for s, t in pairs) / len(pairs)
    found = ProbabilisticTransfer(student_dims, teacher_dims)(student, teacher, LABELS)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_probabilistic_transfer_equals_torchdistill(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, mid_level: ModuleType
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    theirs = mid_level.PKTLoss("net", "output", "net", "output", eps=1e-7)
    expected = theirs(of_module(student.embedding), of_module(teacher.embedding))
    found = ProbabilisticTransfer(student_dims, teacher_dims)(student, teacher, LABELS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
