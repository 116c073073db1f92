"""Accuracies against numbers worked out by hand and a slow loop written from the definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scenedistill.core.errors import UserError
from scenedistill.metrics.accuracy import scene_metrics

THREE = ("car park", "forêt", "river")


def test_metrics_equal_values_computed_by_hand() -> None:
    # true 0: 2 of 3 right; true 1: 1 of 1; true 2: 1 of 2
    metrics = scene_metrics([0, 0, 1, 1, 2, 0], [0, 0, 0, 1, 2, 2], THREE)
    assert metrics.oa == pytest.approx(4 / 6)
    assert metrics.aa == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert metrics.per_class == pytest.approx({"car park": 2 / 3, "forêt": 1.0, "river": 0.5})
    chance = (3 * 3 + 1 * 2 + 2 * 1) / 36
    assert metrics.kappa == pytest.approx((4 / 6 - chance) / (1 - chance), abs=1e-6)
    assert metrics.macro_f1 == pytest.approx((2 * 2 / 6 + 2 * 1 / 3 + 2 * 1 / 3) / 3)
    assert metrics.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 1]]  # rows true
    assert metrics.confusion.dtype == np.int64
    assert metrics.images == 6


def test_a_class_without_images_is_left_out_of_the_means() -> None:
    metrics = scene_metrics([0, 0, 1, 2], [0, 0, 0, 2], THREE)  # one image taken for the absent class
    assert "forêt" not in metrics.per_class
    assert set(metrics.per_class) == {"car park", "river"}
    assert metrics.aa == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.macro_f1 == pytest.approx((4 / 5 + 1) / 2)
    assert metrics.confusion[0, 1] == 1


@pytest.mark.parametrize("classes", [("only",), ("only", "other")])
def test_one_class_alone_has_kappa_zero(classes: tuple[str, ...]) -> None:
    metrics = scene_metrics([0, 0], [0, 0], classes)
    assert (metrics.oa, metrics.aa, metrics.kappa, metrics.macro_f1) == (1, 1, 0, 1)
    assert metrics.confusion.shape == (len(classes), len(classes))


def slow(predictions: list[int], labels: list[int], count: int) -> tuple[float, float, float, float]:
    """OA, AA, kappa and macro F1 by counting, one image at a time."""
    pairs = list(zip(predictions, labels, strict=True))
    accuracies, f1s, chance = [], [], 0.0
    for c in range(count):
        hit = sum(p == c and t == c for p, t in pairs)
        true = sum(t == c for t in labels)
        said = sum(p == c for p in predictions)
        chance += true * said / len(pairs) ** 2
        if true:
            accuracies.append(hit / true)
            f1s.append(2 * hit / (true + said))
    oa = sum(p == t for p, t in pairs) / len(pairs)
    kappa = (oa - chance) / (1 - chance) if chance < 1 else 0.0
    return oa, sum(accuracies) / len(accuracies), kappa, sum(f1s) / len(f1s)


@settings(deadline=None)  # the first call loads much
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_metrics_equal_a_slow_loop(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = [p for p, _ in pairs], [t for _, t in pairs]
    metrics = scene_metrics(np.array(predictions), torch.tensor(labels), tuple("abcde"))
    found = (metrics.oa, metrics.aa, metrics.kappa, metrics.macro_f1)
    assert found == pytest.approx(slow(predictions, labels, 5), abs=1e-5)


def test_zero_images_are_refused() -> None:
    with pytest.raises(UserError, match="no images to evaluate"):
        scene_metrics([], [], THREE)


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([0, 1], [0], "2 predictions for 1 labels"),
        ([0, 3], [0, 1], "predictions hold 3; expected 0..2"),
        ([0, 1], [0, -1], "labels hold -1"),
        ([0.5, 1], [0, 1], "expected integers"),
        ([[0, 1]], [0], "shape \\[1, 2\\]"),
    ],
)
def test_values_that_are_no_class_numbers_are_refused(predictions: list[Any], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scene_metrics(predictions, labels, THREE)
