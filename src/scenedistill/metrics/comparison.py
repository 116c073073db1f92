"""Comparison of two training methods image by image, and the correction for several comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scenedistill.metrics.outputs import KeptOutputs

Z = 1.959964  # 97.5 % quantile of the normal distribution


class ImageGain(NamedTuple):
    """Gain in OA of one method over another, with the uncertainty from the choice of the test images.

    Attributes:
        points: gain in percentage points, the mean over seeds and images.
        low: lower end of its 95 % interval.
        high: upper end.
        p: two-sided p-value of no gain, 0..1.
        images: number of different test images.
        seeds: number of seeds.
    """

    points: float
    low: float
    high: float
    p: float
    images: int
    seeds: int


def image_gain(ours: Mapping[int, KeptOutputs], theirs: Mapping[int, KeptOutputs]) -> ImageGain | None:
    """Compare two methods image by image, over all seeds that both have.

    The test images of different seeds overlap, so that the seeds are not independent. Each image is therefore one
    cluster of the differences "ours is right" minus "theirs is right" of all seeds that tested it, and the standard
    error is the cluster-robust one. For one seed and no gain this is McNemar's test without continuity correction.

    The trained networks are taken as given: the interval says how sure the gain of these networks is on further images,
    not how it varies with the split or the random start.

    Args:
        ours: outputs on the test images by seed.
        theirs: outputs of the other method by seed.

    Returns:
        The gain of ours over theirs; None without common seeds.

    Raises:
        ValueError: the outputs of a seed are of different images.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    rows, differences = [], []
    for seed in seeds:
        if not np.array_equal(ours[seed].rows, theirs[seed].rows):
            raise ValueError(f"the two networks of seed {seed} were tested on different images")
        right = [(outputs.predicted == outputs.labels).astype(np.int64) for outputs in (ours[seed], theirs[seed])]
        rows.append(ours[seed].rows)
        differences.append(right[0] - right[1])
    if not seeds or not len(np.concatenate(rows)):
        return None
    _, cluster = np.unique(np.concatenate(rows), return_inverse=True)
    summed = np.bincount(cluster, weights=np.concatenate(differences))  # [images]
    tested = np.bincount(cluster)
    gain, count = float(summed.sum() / tested.sum()), len(tested)
    error = math.sqrt(np.square(summed - gain * tested).sum() * count / max(count - 1, 1)) / float(tested.sum())
    # without an error all images differ alike, and p is that of the sign test
    p = math.erfc(abs(gain) / error / math.sqrt(2)) if error else 2.0 ** (1 - count) if gain else 1.0
    return ImageGain(100 * gain, 100 * (gain - Z * error), 100 * (gain + Z * error), p, count, len(seeds))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for the number of comparisons, by the step-down method of Holm (1979).

    Args:
        p_values: p-values of the comparisons, 0..1.

    Returns:
        Corrected p-values in the same order: comparisons below 0.05 have together at most a 5 % chance of a false one.

    Examples:
        >>> from scenedistill.metrics.comparison import holm
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    # SciPy corrects for the false discovery rate only; statsmodels would be a further dependency
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[number]))
        corrected[number] = highest
    return corrected
