"""The triplet loss against loops, hand-computed numbers and pytorch-metric-learning's own."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning import losses, miners, reducers
from torch import Tensor

from scenedistill.losses.triplet import Mining, triplet_loss

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 2, 1])


@pytest.fixture
def embedding() -> Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loop_triplet_loss(embedding: Tensor, labels: Tensor, margin: float, mining: str) -> float:
    points = [[x / math.hypot(*row) for x in row] for row in embedding.tolist()]
    found = []
    for a, label in enumerate(labels.tolist()):
        positives = [math.dist(points[a], points[p]) for p, of in enumerate(labels.tolist()) if of == label and p != a]
        negatives = [math.dist(points[a], points[n]) for n, of in enumerate(labels.tolist()) if of != label]
        if mining == "hard" and positives and negatives:
            found.append(max(0.0, max(positives) - min(negatives) + margin))
        if mining == "semihard":
            found += [p - n + margin for p in positives for n in negatives if p < n <= p + margin]
    return sum(found) / len(found)


@pytest.mark.parametrize("mining", ["hard", "semihard"])
@pytest.mark.parametrize("margin", [0.1, 0.3, 1.0])
def test_the_loss_equals_a_loop(embedding: Tensor, margin: float, mining: Mining) -> None:
    expected = loop_triplet_loss(embedding, LABELS, margin, mining)
    assert expected > 0
    assert float(triplet_loss(embedding, LABELS, margin=margin, mining=mining)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mining", ["hard", "semihard"])
def test_the_loss_equals_pytorch_metric_learning(embedding: Tensor, mining: Mining) -> None:
    miner = miners.BatchHardMiner() if mining == "hard" else miners.TripletMarginMiner(0.3, "semihard")
    theirs = losses.TripletMarginLoss(margin=0.3, reducer=reducers.MeanReducer())
    expected = theirs(embedding, LABELS, miner(embedding, LABELS))
    assert float(triplet_loss(embedding, LABELS, mining=mining)) == pytest.approx(float(expected), abs=1e-5)


def test_the_loss_equals_values_computed_by_hand() -> None:
    # Two images of class 0 a quarter turn apart, one of class 1 opposite to the first; lengths do not matter.
    embedding = torch.tensor([[2.0, 0.0], [0.0, 0.5], [-1.0, 0.0]])
    # first: |a - p| = sqrt 2, |a - n| = 2, nothing to mend; second: both sqrt 2, the margin; third: no positive
    assert float(triplet_loss(embedding, torch.tensor([0, 0, 1]))) == pytest.approx(0.3 / 2, abs=1e-5)
    # semi-hard within 0.6: 2 is farther than sqrt 2, but not by 0.6
    value = triplet_loss(embedding, torch.tensor([0, 0, 1]), margin=0.6, mining="semihard")
    assert float(value) == pytest.approx(math.sqrt(2) - 2 + 0.6, abs=1e-5)


@pytest.mark.parametrize("mining", ["hard", "semihard"])
def test_the_gradient_equals_the_numerical_slope(embedding: Tensor, mining: Mining) -> None:
    points = embedding.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda e: triplet_loss(e, LABELS, mining=mining), points)


@pytest.mark.parametrize("mining", ["hard", "semihard"])
@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0]])
def test_a_batch_without_triplets_has_loss_zero_with_a_gradient(mining: Mining, labels: list[int]) -> None:
    embedding = torch.randn(len(labels), 4, requires_grad=True)
    value = triplet_loss(embedding, torch.tensor(labels), mining=mining)
    torch.autograd.backward(value)
    assert float(value) == 0 and embedding.grad is not None and not embedding.grad.any()


@pytest.mark.parametrize("mining", ["hard", "semihard"])
def test_duplicates_give_a_finite_value_and_gradient(embedding: Tensor, mining: Mining) -> None:
    for rows in ([0, 0, 1, 1, 2, 2, 3, 3], [0] * 8):
        points = embedding[rows].float().requires_grad_()
        value = triplet_loss(points, LABELS, mining=mining)
        torch.autograd.backward(value)
        assert value.isfinite() and points.grad is not None and points.grad.isfinite().all()
    dead = torch.zeros(8, 5, requires_grad=True)
    torch.autograd.backward(triplet_loss(dead, LABELS, mining=mining))
    assert dead.grad is not None and dead.grad.isfinite().all()


def test_the_loss_is_float32_under_autocast(embedding: Tensor) -> None:
    half = embedding.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = triplet_loss(half, LABELS)
    assert mixed.dtype == torch.float32
    assert mixed == triplet_loss(half.float(), LABELS)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("mining", ["hard", "semihard"])
def test_the_gradient_is_the_same_on_every_call(mining: Mining) -> None:
    # as large as in training: torch does smaller work in one thread
    embedding = torch.randn(64, 512).requires_grad_()
    labels = torch.arange(64) % 12
    first, *others = (
        torch.autograd.grad(triplet_loss(embedding, labels, margin=1.0, mining=mining), embedding)[0] for _ in range(20)
    )
    assert all(torch.equal(first, other) for other in others)
