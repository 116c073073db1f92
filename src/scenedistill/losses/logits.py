"""Losses that compare the class scores of student and teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from scenedistill.losses.base import DistillationLoss
from scenedistill.models.output import FeatureDims, SceneOutput


class SoftLogits(DistillationLoss):
    """Knowledge distillation of Hinton, Vinyals and Dean (2015, arXiv 1503.02531), equation 1 and section 2.

    `T^2 KL(softmax(t / T) || softmax(s / T))`, mean over the batch: the factor keeps the gradient's size when the
    temperature changes. A trap: `F.kl_div` with its default reduction divides by the number of classes too.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        temperature: T, > 0.
    """

    def __init__(self, student: FeatureDims, teacher: FeatureDims, *, temperature: float = 4.0) -> None:
        super().__init__(student, teacher)
        self.temperature = temperature

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        ours = F.log_softmax(student.logits / self.temperature, dim=1)
        theirs = F.log_softmax(teacher.logits / self.temperature, dim=1)
        return self.temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
