"""What a network said of the test images is read back as it was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from scenedistill.metrics.outputs import OUTPUTS, load_outputs, save_outputs


def test_saved_outputs_are_loaded_unchanged(tmp_path: Path) -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).numpy() * 10
    labels, rows = np.arange(50) % 7, np.arange(50) * 3
    save_outputs(logits, labels, rows, tmp_path / OUTPUTS)
    found = load_outputs(tmp_path / OUTPUTS)
    np.testing.assert_allclose(found.logits, logits, atol=0.02)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.predicted, logits.argmax(1))
    np.testing.assert_allclose(found.probabilities, torch.tensor(found.logits).softmax(1).numpy(), atol=1e-6)


def test_the_predicted_class_survives_half_precision(tmp_path: Path) -> None:
    logits = np.array([[5.0, 5.0001, -1.0], [-2.00001, -3.0, -2.0], [1.0, 0.0, 0.0], [0.0, 1e-9, -1e-9]], np.float32)
    assert logits.astype(np.float16).argmax(1).tolist() != logits.argmax(1).tolist(), "else the test would say little"
    save_outputs(logits, np.zeros(4, int), np.arange(4), tmp_path / OUTPUTS)
    found = load_outputs(tmp_path / OUTPUTS)
    assert found.predicted.tolist() == logits.argmax(1).tolist() == [1, 2, 0, 1]
    np.testing.assert_allclose(found.logits, logits, atol=0.01)


def test_probabilities_of_huge_logits_stay_finite(tmp_path: Path) -> None:
    save_outputs(np.array([[3e4, -3e4]]), np.array([0]), np.array([0]), tmp_path / OUTPUTS)
    np.testing.assert_array_equal(load_outputs(tmp_path / OUTPUTS).probabilities, [[1.0, 0.0]])
