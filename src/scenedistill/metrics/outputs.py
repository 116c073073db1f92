"""Logits of a network for each test image, stored beside its metrics for later analysis."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scenedistill.core.disk import archive_damage, whole_file
from scenedistill.core.errors import Damaged

OUTPUTS = "outputs.npz"


class KeptOutputs(NamedTuple):
    """Outputs of a network for N test images and K classes.

    Attributes:
        logits: logits, float32 `[N, K]` (stored in half precision).
        labels: the true classes, int64 `[N]`.
        rows: number of each image in the scene index, int64 `[N]`.
    """

    logits: np.ndarray
    labels: np.ndarray
    rows: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, float32 `[N, K]`."""
        powers = np.exp(self.logits - self.logits.max(1, keepdims=True))
        shares: np.ndarray = powers / powers.sum(1, keepdims=True)
        return shares

    @property
    def predicted(self) -> np.ndarray:
        """Predicted classes, int64 `[N]`."""
        named: np.ndarray = self.logits.argmax(1)
        return named


def save_outputs(logits: np.ndarray, labels: np.ndarray, rows: np.ndarray, path: Path) -> None:
    """Write the outputs atomically; half precision keeps three digits of a logit, and the predicted class always."""
    half, winners = logits.astype(np.float16), logits.argmax(1)
    tied = np.flatnonzero(half.argmax(1) != winners)  # the two largest logits differ by less than half precision shows
    half[tied, winners[tied]] = np.nextafter(half[tied].max(1), np.float16(np.inf))
    with whole_file(path) as file:
        np.savez(file, logits=half, labels=labels, rows=rows)


def load_outputs(path: Path) -> KeptOutputs:
    """Read what `save_outputs` wrote.

    Raises:
        OSError: no such file.
        Damaged: the file is damaged or holds other arrays.
    """
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if damage := archive_damage(path):
        raise Damaged(f"{path.parent}: {damage}. The run's command writes it again.")
    try:
        with np.load(path, allow_pickle=False) as kept:
            logits, labels, rows = kept["logits"], kept["labels"], kept["rows"]
    except (ValueError, KeyError, TypeError, EOFError) as problem:
        raise Damaged(f"{path} holds other arrays than a test writes. The run's command writes it again.") from problem
    if not (logits.ndim == 2 and labels.shape == rows.shape == logits.shape[:1]):
        raise Damaged(f"{path} holds arrays of other shapes than a test writes. The run's command writes it again.")
    return KeptOutputs(logits.astype(np.float32), labels, rows)
