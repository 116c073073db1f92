"""Calibration of a network's confidence: expected calibration error and the data of the reliability diagram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15  # as in the tables of Guo et al.


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in M bins of equal width; the confidence is the largest class probability.

    Attributes:
        edges: bin edges, float64 `[M + 1]`, 0 to 1; a bin includes its upper edge and excludes its lower edge.
        counts: images in each bin, int64 `[M]`.
        confidence: mean confidence in each bin, float64 `[M]`; NaN in an empty one.
        accuracy: share of correct images in each bin, float64 `[M]`; NaN in an empty one.
        ece: expected calibration error: mean over the images of |confidence - accuracy| of their bin, 0..1.
        mce: maximum calibration error: the largest such gap, 0..1.
        mean_confidence: mean confidence over all images, 0..1.
        oa: overall accuracy, 0..1.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float
    mce: float
    mean_confidence: float
    oa: float

    @property
    def words(self) -> str:
        """Summary of the calibration in one sentence."""
        off, sure, right = (100 * value for value in (self.ece, self.mean_confidence, self.oa))
        if self.ece < 0.02:
            return f"Its confidence may be taken at its word: its expected calibration error (ECE) is {off:.1f} points."
        side = "over-confident" if sure > right else "under-confident"
        return (
            f"It is {side}: {sure:.1f} % sure on average and right on {right:.1f} %; "
            f"the expected calibration error (ECE) is {off:.1f} points."
        )


def calibration(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = BINS) -> Calibration:
    """Compute the expected calibration error with equal-width bins (Guo et al., ICML 2017, equations 2 to 5).

    Args:
        probabilities: class probabilities, float `[N, K]`, each row summing to 1.
        labels: true classes, int `[N]`.
        bins: number of bins M, 1 or more.

    Raises:
        ValueError: no images, shapes that do not fit, or values that are no probabilities.

    Examples:
        >>> import numpy as np
        >>> from scenedistill.metrics.calibration import calibration
        >>> probabilities = np.array([[0.9, 0.1], [0.9, 0.1]])
        >>> round(calibration(probabilities, np.array([0, 1])).ece, 3)
        0.4
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels) or bins < 1:
        raise ValueError(
            f"probabilities {list(probabilities.shape)}, labels {list(labels.shape)}, {bins} bins; "
            "expected [N, K], [N] and 1 or more, with an image at least"
        )
    # torchmetrics' calibration error is the one number, without the bins that the diagram shows
    sure = probabilities.max(1).astype(np.float64)
    if not np.allclose(probabilities.sum(1), 1, atol=1e-3) or probabilities.min() < 0:
        raise ValueError("probabilities must be 0 or more and sum to 1 for each image; logits need a softmax first")
    right = (probabilities.argmax(1) == labels).astype(np.float64)
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.digitize(sure, edges, right=True) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # an empty bin has no mean
        confidence = np.bincount(place, sure, bins) / counts
        accuracy = np.bincount(place, right, bins) / counts
    gaps = np.abs(confidence - accuracy)[counts > 0]
    return Calibration(
        edges=edges,
        counts=counts,
        confidence=confidence,
        accuracy=accuracy,
        ece=float((gaps * counts[counts > 0]).sum() / len(labels)),
        mce=float(gaps.max()),
        mean_confidence=float(sure.mean()),
        oa=float(right.mean()),
    )
