"""Losses on class scores against loops and hand-computed numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from scenedistill.losses.logits import SoftLogits
from scenedistill.models.output import FeatureDims, SceneOutput

LABELS = torch.tensor([0, 1, 2, 1, 0])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_logits_by_a_loop(
    output: Callable[..., SceneOutput], student_dims: FeatureDims, teacher_dims: FeatureDims, temperature: float
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    expected = 0.0
    for ours, theirs in zip(student.logits.tolist(), teacher.logits.tolist(), strict=True):
        s, t = ([math.exp(value / temperature) for value in values] for values in (ours, theirs))
        for a, b in zip(s, t, strict=True):
            a, b = a / sum(s), b / sum(t)
            expected += b * math.log(b / a) * temperature**2 / len(LABELS)
    loss = SoftLogits(student_dims, teacher_dims, temperature=temperature)
    assert loss(student, teacher, LABELS).item() == pytest.approx(expected, rel=1e-9)


def test_soft_logits_by_hand() -> None:
    dims = FeatureDims(2, 1, ())
    ours = SceneOutput(torch.tensor([[0.0, 0.0]]), torch.zeros(1, 1), ())
    theirs = SceneOutput(torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 1), ())
    # at T = 2 the teacher says 3/4 and 1/4, the student 1/2 and 1/2: 4 (3/4 log 3/2 + 1/4 log 1/2)
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    found = SoftLogits(dims, dims, temperature=2.0)(ours, theirs, LABELS[:1])
    assert found.item() == pytest.approx(expected, rel=1e-6)
    assert SoftLogits(dims, dims)(ours, ours, LABELS[:1]).item() == 0
