"""The cross-entropy term, and what the common base class promises."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scenedistill.losses.base import CrossEntropy, DistillationLoss
from scenedistill.models.output import FeatureDims, SceneOutput

MakeOutput = Callable[..., SceneOutput]


def test_cross_entropy_equals_a_loop(output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims) -> None:
    student, labels = output(student_dims), torch.tensor([0, 2, 1, 1, 0])
    expected = 0.0
    for scores, label in zip(student.logits.tolist(), labels.tolist(), strict=True):
        expected -= scores[label] - math.log(sum(math.exp(score) for score in scores))
    loss = CrossEntropy(student_dims, teacher_dims)
    assert float(loss(student, output(teacher_dims), labels)) == pytest.approx(expected / 5, rel=1e-12)
    assert not loss.needs_teacher and not loss.relational and not list(loss.parameters())


def test_cross_entropy_equals_a_value_computed_by_hand(student_dims: FeatureDims, teacher_dims: FeatureDims) -> None:
    # softmax(ln 1, ln 2, ln 5) = (1/8, 2/8, 5/8)
    logits = torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]).log()
    student = SceneOutput(logits, torch.zeros(2, 4), ())
    value = CrossEntropy(student_dims, teacher_dims)(student, student, torch.tensor([1, 2]))
    assert float(value) == pytest.approx((math.log(4) + math.log(8 / 5)) / 2)


def test_compute_receives_float32_outputs_and_a_detached_teacher(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    class Watching(DistillationLoss):
        def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
            self.seen = student, teacher, torch.is_autocast_enabled("cpu")
            return student.embedding.sum()

    loss = Watching(student_dims, teacher_dims)
    student = output(student_dims, dtype=torch.float16).map(lambda t: t.requires_grad_())
    teacher = output(teacher_dims, dtype=torch.bfloat16).map(lambda t: t.requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(student, teacher, torch.zeros(5, dtype=torch.long))
    ours, theirs, autocast = loss.seen
    assert not autocast
    for tensor in (ours.logits, ours.embedding, *ours.attention[0]):
        assert tensor.dtype == torch.float32 and tensor.requires_grad
    for tensor in (theirs.logits, theirs.embedding, *theirs.attention[1]):
        assert tensor.dtype == torch.float32 and not tensor.requires_grad


def test_a_loss_without_compute_raises_not_implemented(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    class Empty(DistillationLoss):
        pass

    with pytest.raises(NotImplementedError, match="Empty"):
        Empty(student_dims, teacher_dims)(output(student_dims), output(teacher_dims), torch.zeros(5, dtype=torch.long))
