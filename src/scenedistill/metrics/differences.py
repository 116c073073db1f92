"""Differences between networks on the same test images: confusion matrices, classes, confused pairs, single images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scenedistill.metrics.outputs import KeptOutputs


class ClassGain(NamedTuple):
    """Accuracy of one class before and after, in 0..1.

    Attributes:
        name: name of the class.
        images: number of its test images.
        before: share of correct ones before.
        after: share of correct ones after.
    """

    name: str
    images: int
    before: float
    after: float

    @property
    def points(self) -> float:
        """Gain in percentage points."""
        return 100 * (self.after - self.before)


class ConfusedPair(NamedTuple):
    """Images of one class predicted as another.

    Attributes:
        true: number of the true class.
        named: number of the predicted class.
        images: number of these images.
        share: their share of the images of the true class, 0..1.
        examples: positions of some of them in the outputs, the most confident errors first.
    """

    true: int
    named: int
    images: int
    share: float
    examples: tuple[int, ...]


class Disagreement(NamedTuple):
    """One image on which the networks disagree.

    Attributes:
        position: position of the image in the outputs.
        label: number of its true class.
        divergence: Jensen-Shannon divergence of the networks' class probabilities, 0 (all equal) to 1.
        named: number of the predicted class by network.
    """

    position: int
    label: int
    divergence: float
    named: dict[str, int]


def row_percent(confusion: np.ndarray) -> np.ndarray:
    """Convert counts to percent of each true class, float64 `[K, K]`; NaN in the row of a class without images.

    Examples:
        >>> import numpy as np
        >>> from scenedistill.metrics.differences import row_percent
        >>> row_percent(np.array([[3, 1], [0, 2]]))
        array([[ 75.,  25.],
               [  0., 100.]])
    """
    totals = confusion.sum(1, keepdims=True)
    shares: np.ndarray = np.where(totals > 0, 100 * confusion / np.maximum(totals, 1), np.nan)
    return shares


def confusion_difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Subtract the first confusion matrix from the second, in percentage points of each true class.

    Args:
        before: counts, int `[K, K]`, rows the true class; may be a sum over seeds.
        after: counts of the same classes.

    Returns:
        float64 `[K, K]` in -100..100; NaN in the row of a class without images in one of them.

    Examples:
        >>> import numpy as np
        >>> from scenedistill.metrics.differences import confusion_difference
        >>> confusion_difference(np.array([[3, 1], [0, 2]]), np.array([[4, 0], [1, 1]]))
        array([[ 25., -25.],
               [ 50., -50.]])
    """
    _check_pair(before, after)
    difference: np.ndarray = row_percent(after) - row_percent(before)
    return difference


def class_gains(before: np.ndarray, after: np.ndarray, classes: Sequence[str]) -> list[ClassGain]:
    """List the classes that have images in both tests, from the largest gain to the largest loss.

    Args:
        before: counts, int `[K, K]`, rows the true class.
        after: counts of the same classes.
        classes: the K names.

    Examples:
        >>> import numpy as np
        >>> from scenedistill.metrics.differences import class_gains
        >>> gains = class_gains(np.array([[3, 1], [0, 2]]), np.array([[4, 0], [1, 1]]), ["forest", "river"])
        >>> [(gain.name, float(gain.points)) for gain in gains]
        [('forest', 25.0), ('river', -50.0)]
    """
    _check_pair(before, after)
    if len(classes) != len(before):
        raise ValueError(f"{len(classes)} names for matrices of {len(before)} classes")
    gains = [
        ClassGain(name, int(after[k].sum()), before[k, k] / before[k].sum(), after[k, k] / after[k].sum())
        for k, name in enumerate(classes)
        if before[k].sum() and after[k].sum()
    ]
    return sorted(gains, key=lambda gain: -gain.points)


def confused_pairs(outputs: KeptOutputs, *, limit: int = 10, examples: int = 4) -> list[ConfusedPair]:
    """List the most frequent confusions of two classes; each direction counts separately.

    Args:
        outputs: outputs of one network.
        limit: maximum number of pairs.
        examples: maximum number of example images of each pair.
    """
    named, sure = outputs.predicted, outputs.probabilities.max(1)
    wrong = np.flatnonzero(named != outputs.labels)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    found: dict[tuple[int, int], list[int]] = {}
    for position in wrong.tolist():
        found.setdefault((int(outputs.labels[position]), int(named[position])), []).append(position)
    totals = np.bincount(outputs.labels)
    largest = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:limit]
    return [
        ConfusedPair(true, taken, len(places), len(places) / int(totals[true]), tuple(places[:examples]))
        for (true, taken), places in largest
    ]


def most_different(
    networks: Mapping[str, KeptOutputs], *, limit: int = 8, per_class: int | None = 1
) -> list[Disagreement]:
    """List the images on which the networks disagree most, the largest divergence first.

    The measure is the generalised Jensen-Shannon divergence of their class probabilities (Lin, IEEE Trans. Information
    Theory 1991), divided by its largest possible value.

    Args:
        networks: outputs of two or more networks by name, of the same images in the same order.
        limit: maximum number of images.
        per_class: maximum number of images of one true class; None for no limit.

    Raises:
        ValueError: fewer than two networks, or different images.
    """
    if len(networks) < 2:
        raise ValueError(f"{len(networks)} networks; a difference needs two or more")
    first = next(iter(networks.values()))
    for name, outputs in networks.items():
        if not (np.array_equal(outputs.rows, first.rows) and np.array_equal(outputs.labels, first.labels)):
            raise ValueError(f"'{name}' was tested on other images than '{next(iter(networks))}'")
    shares = np.stack([outputs.probabilities.astype(np.float64) for outputs in networks.values()])  # [M, N, K]
    divergence = (_entropy(shares.mean(0)) - _entropy(shares).mean(0)) / np.log(len(networks))
    taken: dict[int, int] = {}
    found: list[Disagreement] = []
    for position in np.argsort(-divergence, kind="stable").tolist():
        label = int(first.labels[position])
        if len(found) == limit:
            break
        if per_class is not None and taken.get(label, 0) >= per_class:
            continue
        taken[label] = taken.get(label, 0) + 1
        named = {name: int(outputs.logits[position].argmax()) for name, outputs in networks.items()}
        found.append(Disagreement(position, label, float(np.clip(divergence[position], 0, 1)), named))
    return found


def _entropy(shares: np.ndarray) -> np.ndarray:
    """Compute the entropy in nats over the last axis."""
    entropy: np.ndarray = -(shares * np.log(np.maximum(shares, 1e-30))).sum(-1)
    return entropy


def _check_pair(before: np.ndarray, after: np.ndarray) -> None:
    if before.shape != after.shape or before.ndim != 2 or before.shape[0] != before.shape[1]:
        raise ValueError(f"matrices of {list(before.shape)} and {list(after.shape)}; expected [K, K] twice")
