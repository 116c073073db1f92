"""The comparison image by image against McNemar's test, a bootstrap and values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scenedistill.metrics.comparison import holm, image_gain
from scenedistill.metrics.outputs import KeptOutputs


def outputs(right: np.ndarray, rows: np.ndarray | None = None) -> KeptOutputs:
    """Outputs of two classes that are right where `right` is true."""
    labels = np.arange(len(right)) % 2
    named = np.where(right, labels, 1 - labels)
    return KeptOutputs(
        np.eye(2, dtype=np.float32)[named], labels, np.arange(len(right)) if rows is None else np.asarray(rows)
    )


def test_one_seed_is_mcnemars_test() -> None:
    """Of 200 images 30 are right with the first network alone and 14 with the second alone."""
    ours, theirs = np.ones(200, bool), np.ones(200, bool)
    theirs[:30], ours[30:44] = False, False
    gain = image_gain({0: outputs(ours)}, {0: outputs(theirs)})
    assert gain is not None and (gain.images, gain.seeds) == (200, 1)
    assert gain.points == pytest.approx(100 * 16 / 200)
    mcnemar = (30 - 14) ** 2 / (30 + 14 - 16**2 / 200)  # its variance is that of a gain, not of none
    assert gain.p == pytest.approx(math.erfc(math.sqrt(mcnemar * 199 / 200 / 2)))
    assert gain.high - gain.points == pytest.approx(1.959964 * 8 / math.sqrt(mcnemar * 199 / 200), rel=1e-6)


def test_the_same_networks_on_the_same_images_count_once() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = outputs(draw.random(300) < 0.8), outputs(draw.random(300) < 0.7)
    once = image_gain({0: ours}, {0: theirs})
    thrice = image_gain({0: ours, 1: ours, 2: ours}, {0: theirs, 1: theirs, 2: theirs, 9: theirs})
    assert once is not None and thrice is not None
    assert thrice.seeds == 3 and thrice.images == 300
    assert thrice[:4] == pytest.approx(once[:4])


def test_the_interval_is_that_of_a_bootstrap_over_images() -> None:
    """Three seeds that each test 80 % of 500 images; an image is easy or hard for all of them alike."""
    draw = np.random.default_rng(1)
    easy = draw.random(500)
    ours, theirs = {}, {}
    for seed in range(3):
        rows = np.sort(draw.permutation(500)[:400])
        ours[seed] = outputs(draw.random(400) < 0.5 + 0.5 * easy[rows], rows)
        theirs[seed] = outputs(draw.random(400) < 0.4 + 0.5 * easy[rows], rows)
    found = image_gain(ours, theirs)
    assert found is not None and found.images == 500 - (
        500 - len(np.unique(np.concatenate([o.rows for o in ours.values()])))
    )
    gains = []
    for _ in range(2000):
        times = np.bincount(draw.integers(0, 500, 500), minlength=500)
        total = weight = 0
        for seed in range(3):
            a, b = ((o.predicted == o.labels).astype(int) for o in (ours[seed], theirs[seed]))
            total += int(((a - b) * times[ours[seed].rows]).sum())
            weight += int(times[ours[seed].rows].sum())
        gains.append(100 * total / weight)
    low, high = np.percentile(gains, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.35) and found.high == pytest.approx(high, abs=0.35)
    assert found.points == pytest.approx(np.mean(gains), abs=0.15)


def test_equal_networks_have_no_gain_and_seeds_must_be_common() -> None:
    same = outputs(np.array([True, False, True]))
    gain = image_gain({0: same}, {0: same})
    assert gain is not None and (gain.points, gain.low, gain.high, gain.p) == (0, 0, 0, 1)
    assert image_gain({0: same}, {1: same}) is None


@pytest.mark.parametrize("count", [1, 5])
def test_images_that_all_differ_alike_are_as_sure_as_a_sign_test(count: int) -> None:
    right = outputs(np.ones(count, bool))
    gain = image_gain({0: right}, {0: outputs(np.zeros(count, bool))})
    assert gain is not None and gain.points == 100 and gain.p == 0.5 ** (count - 1)


def test_different_images_are_refused() -> None:
    with pytest.raises(ValueError, match="seed 4 were tested on different images"):
        image_gain({4: outputs(np.ones(3, bool))}, {4: outputs(np.ones(3, bool), np.array([0, 1, 3]))})


def test_holms_correction_equals_values_computed_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
