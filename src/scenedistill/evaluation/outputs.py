"""What a network said of each test image, kept beside its figures for whoever looks closer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

OUTPUTS = "outputs.npz"


class KeptOutputs(NamedTuple):
    """Of N test images and K classes.

    Attributes:
        logits: class scores before the softmax, float32 `[N, K]` (kept in half precision).
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
        """The named classes, int64 `[N]`."""
        named: np.ndarray = self.logits.argmax(1)
        return named


def save_outputs(logits: np.ndarray, labels: np.ndarray, rows: np.ndarray, path: Path) -> None:
    """Write them; half precision keeps three digits of a score."""
    np.savez(path, logits=logits.astype(np.float16), labels=labels, rows=rows)


def load_outputs(path: Path) -> KeptOutputs:
    """Read what `save_outputs` wrote.

    Raises:
        OSError: no such file.
    """
    with np.load(path) as kept:
        return KeptOutputs(kept["logits"].astype(np.float32), kept["labels"], kept["rows"])
