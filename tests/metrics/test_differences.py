"""Where networks differ: matrices, classes, confused pairs and single images."""

from __future__ import annotations

import numpy as np
import pytest

from scenedistill.metrics.differences import (
    class_gains,
    confused_pairs,
    confusion_difference,
    most_different,
    row_percent,
)
from scenedistill.metrics.outputs import KeptOutputs

BEFORE = np.array([[6, 4, 0], [2, 8, 0], [0, 0, 0]])
AFTER = np.array([[9, 1, 0], [3, 7, 0], [0, 0, 0]])
CLASSES = ("beach", "forest", "port")


def outputs(sure: list[tuple[int, int, float]], classes: int = 4) -> KeptOutputs:
    """Images as (true class, named class, its probability); the rest is shared out evenly."""
    shares = np.full((len(sure), classes), np.nan)
    for i, (_, named, share) in enumerate(sure):
        shares[i] = (1 - share) / (classes - 1)
        shares[i, named] = share
    labels = np.array([true for true, _, _ in sure])
    return KeptOutputs(np.log(shares).astype(np.float32), labels, 10 * np.arange(len(sure)))


def test_the_difference_is_in_points_of_each_true_class() -> None:
    found = confusion_difference(BEFORE, AFTER)
    np.testing.assert_allclose(found[:2], [[30, -30, 0], [10, -10, 0]])
    assert np.isnan(found[2]).all(), "a class without images"
    np.testing.assert_allclose(row_percent(BEFORE)[0], [60, 40, 0])


def test_gains_are_sorted_and_absent_classes_left_out() -> None:
    first, second = class_gains(BEFORE, AFTER, CLASSES)
    assert (first.name, first.images, first.before, first.after) == ("beach", 10, 0.6, 0.9)
    assert first.points == pytest.approx(30)
    assert second.name == "forest" and second.points == pytest.approx(-10)


@pytest.mark.parametrize("wrong", [np.zeros((2, 2)), np.zeros((3, 2)), np.zeros(3)])
def test_matrices_that_do_not_fit_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected \[K, K\]"):
        confusion_difference(wrong, AFTER)
    with pytest.raises(ValueError, match="2 names"):
        class_gains(BEFORE, AFTER, CLASSES[:2])


def test_the_most_confused_pairs_with_the_most_certain_mistakes_first() -> None:
    tested = outputs(
        [(0, 1, 0.6), (0, 1, 0.9), (0, 0, 0.9), (1, 0, 0.7), (2, 3, 0.5), (2, 3, 0.8), (2, 3, 0.6), (3, 3, 0.9)]
    )
    first, second, third = confused_pairs(tested, examples=2)
    assert first == (2, 3, 3, 1.0, (5, 6))
    assert second._replace(share=0.0) == (0, 1, 2, 0.0, (1, 0)) and second.share == pytest.approx(2 / 3)
    assert third == (1, 0, 1, 1.0, (3,)), "each direction by itself"
    assert confused_pairs(tested, limit=1) == [(2, 3, 3, 1.0, (5, 6, 4))]


def test_a_network_without_mistakes_confuses_nothing() -> None:
    assert confused_pairs(outputs([(0, 0, 0.9), (1, 1, 0.5)])) == []


def test_the_images_that_networks_see_most_differently() -> None:
    teacher = outputs([(0, 0, 0.97), (0, 0, 0.9), (1, 1, 0.9), (2, 2, 0.5)])
    student = outputs([(0, 3, 0.97), (0, 1, 0.9), (1, 1, 0.9), (2, 2, 0.6)])
    found = most_different({"teacher": teacher, "student": student}, per_class=None)
    assert [entry.position for entry in found] == [0, 1, 3, 2]
    assert found[0].named == {"teacher": 0, "student": 3}
    assert 0.8 < found[0].divergence <= 1
    assert found[-1].divergence == pytest.approx(0, abs=1e-6)
    one_each = most_different({"teacher": teacher, "student": student}, limit=2)
    assert [(entry.position, entry.label) for entry in one_each] == [(0, 0), (3, 2)]


def test_the_divergence_is_one_where_none_share_an_answer() -> None:
    certain = [outputs([(0, named, 1 - 1e-12)]) for named in range(3)]
    found = most_different(dict(zip("abc", certain, strict=True)))
    assert found[0].divergence == pytest.approx(1, abs=1e-3)


def test_networks_tested_on_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="'b' was tested on other images than 'a'"):
        most_different({"a": outputs([(0, 0, 0.9)]), "b": outputs([(1, 0, 0.9)])})
    with pytest.raises(ValueError, match="two or more"):
        most_different({"a": outputs([(0, 0, 0.9)])})
