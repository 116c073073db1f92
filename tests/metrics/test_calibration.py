"""The calibration error is that of the definition, and its data add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from scenedistill.metrics.calibration import calibration


def made_up(images: int = 500, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    scores = np.exp(2 * generator.normal(size=(images, classes)))
    shares = scores / scores.sum(1, keepdims=True)
    labels = np.where(generator.random(images) < 0.6, shares.argmax(1), generator.integers(0, classes, images))
    return shares, labels


def slow_ece(shares: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Guo et al. (2017), equation 3, image by image."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [i for i in range(len(labels)) if (m - 1) / bins < max(shares[i]) <= m / bins]
        if inside:
            accuracy = sum(int(np.argmax(shares[i]) == labels[i]) for i in inside) / len(inside)
            confidence = sum(max(shares[i]) for i in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_errors_equal_the_definition_and_torchmetrics(bins: int) -> None:
    shares, labels = made_up()
    found = calibration(shares, labels, bins=bins)
    assert found.ece == pytest.approx(slow_ece(shares, labels, bins), abs=1e-12)
    theirs = multiclass_calibration_error(torch.tensor(shares), torch.tensor(labels), 6, n_bins=bins)
    assert found.ece == pytest.approx(float(theirs), abs=1e-6)
    largest = multiclass_calibration_error(torch.tensor(shares), torch.tensor(labels), 6, n_bins=bins, norm="max")
    assert found.mce == pytest.approx(float(largest), abs=1e-6)


def test_the_errors_equal_values_computed_by_hand() -> None:
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])
    found = calibration(shares, np.array([0, 1, 1, 1]), bins=2)
    # (0, 0.5]: one image, sure 0.5, wrong; (0.5, 1]: three, sure 0.8 on average, two of them right
    assert found.counts.tolist() == [1, 3]
    assert found.confidence == pytest.approx([0.5, 0.8])
    assert found.accuracy == pytest.approx([0, 2 / 3])
    assert found.ece == pytest.approx(0.25 * 0.5 + 0.75 * (0.8 - 2 / 3))
    assert found.mce == pytest.approx(0.5)
    assert (found.mean_confidence, found.oa) == pytest.approx((0.725, 0.5))


def test_an_empty_bin_is_nan_and_the_images_add_up() -> None:
    found = calibration(np.eye(3), np.array([0, 1, 2]))
    assert found.counts.tolist() == [0] * 14 + [3]
    assert np.isnan(found.accuracy[:14]).all()
    assert found.ece == 0
    assert "at its word" in found.words


def test_the_text_says_over_or_under_confident() -> None:
    sure = np.tile([0.99, 0.01], (10, 1))
    assert "over-confident: 99.0 % sure on average and right on 50.0 %" in calibration(sure, np.arange(10) % 2).words
    unsure = np.tile([0.55, 0.45], (10, 1))
    assert "under-confident" in calibration(unsure, np.zeros(10, dtype=int)).words


@pytest.mark.parametrize(
    ("shares", "labels"),
    [
        (np.zeros((0, 3)), np.zeros(0, dtype=int)),
        (np.eye(3), np.array([0, 1])),
        (np.array([[3.0, -1.0]]), np.array([0])),  # logits
    ],
)
def test_values_that_are_no_probabilities_are_refused(shares: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected|probabilities must"):
        calibration(shares, labels)
