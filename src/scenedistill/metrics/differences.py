"""Where two or more networks differ on the same test images: matrices, classes, confused pairs, single images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scenedistill.metrics.outputs import KeptOutputs


class ClassGain(NamedTuple):
    """One class before and after, accuracies in 0..1.

    Attributes:
        name: of the class.
        images: of the class in the test.
        before: share of right ones.
        after: share of right ones.
    """

    name: str
    images: int
    before: float
    after: float

    @property
    def points(self) -> float:
        """What was gained, in points."""
        return 100 * (self.after - self.before)


class ConfusedPair(NamedTuple):
    """Images of one class taken for another.

    Attributes:
        true: number of the true class.
        named: number of the class they were taken for.
        images: how many.
        share: of the images of the true class, 0..1.
        examples: positions in the outputs of some of them, the most certain mistakes first.
    """

    true: int
    named: int
    images: int
    share: float
    examples: tuple[int, ...]


class Disagreement(NamedTuple):
    """One image that the networks see differently.

    Attributes:
        position: in the outputs.
        label: number of its true class.
        divergence: Jensen-Shannon divergence of their class probabilities, 0 (all say the same) to 1.
        named: network to the number of the class it names.
    """

    position: int
    label: int
    divergence: float
    named: dict[str, int]


def row_percent(confusion: np.ndarray) -> np.ndarray:
    """Percent of each true class in each predicted one, float64 `[K, K]`; NaN in the row of a class without images.

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
    """How the second matrix differs from the first, in points of each true class.

    Args:
        before: counts, int `[K, K]`, rows the true class; may be a sum over seeds.
        after: counts of the same classes.

    Returns:
        float64 `[K, K]` in -100..100; NaN in the row of a class that one of them has no images of.

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
    """The classes that both tests have images of, from the largest gain to the largest loss.

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
    """The pairs of classes most often taken one for the other; a pair counts in each direction by itself.

    Args:
        outputs: of one network.
        limit: most pairs to name.
        examples: most images to name of each.
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
    """The images that the networks see most differently, the most different first.

    By the generalised Jensen-Shannon divergence of their class probabilities (Lin, IEEE Trans. Information Theory
    1991), in units of its largest possible value.

    Args:
        networks: two or more by name, of the same images in the same order.
        limit: most images to name.
        per_class: most images of one true class; None for any number.

    Raises:
        ValueError: fewer than two networks, or other images.
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
    """In nats, over the last axis."""
    entropy: np.ndarray = -(shares * np.log(np.maximum(shares, 1e-30))).sum(-1)
    return entropy


def _check_pair(before: np.ndarray, after: np.ndarray) -> None:
    if before.shape != after.shape or before.ndim != 2 or before.shape[0] != before.shape[1]:
        raise ValueError(f"matrices of {list(before.shape)} and {list(after.shape)}; expected [K, K] twice")
