"""SimKD: the student is trained on the teacher's embedding and uses the teacher's head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.core.errors import UserError
from scenedistill.losses.base import DistillationLoss, TeacherStatistics
from scenedistill.models.norm import BatchNorm
from scenedistill.models.output import FeatureDims, SceneOutput

if TYPE_CHECKING:
    from scenedistill.models.network import SceneNet

#: Optimiser steps without a call of `after_step` after which the loss raises: the student's head would never be set.
MOST_STEPS = 100


class ReusedClassifier(DistillationLoss):
    """SimKD, knowledge distillation with the reused teacher classifier, of Chen et al. (CVPR 2022), equation 2.

    Mean squared difference of the teacher's embedding and the student's, which a linear layer and a batch norm project
    to the teacher's width. The teacher's head classifies the projected embedding. Projection and head are linear, so
    `after_step` folds them into the student's own head: the trained student has its usual size and needs nothing else.
    The labels are not used.

    Differences from the paper: its projector has three convolutions with ReLU on the last feature map, and stays in the
    student.

    Args:
        student: widths of the student.
        teacher: widths of the teacher, of the same classes.

    Raises:
        UserError: the numbers of classes differ.

    Examples:
        >>> import torch
        >>> from scenedistill.losses import ReusedClassifier, TeacherStatistics
        >>> from scenedistill.models import SceneNet
        >>> def network() -> SceneNet:
        ...     pool = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ...     return SceneNet.wrap(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), *pool, torch.nn.Linear(4, 5)), [])
        >>> student, teacher = network(), network()
        >>> loss = ReusedClassifier(student.dims, teacher.dims)
        >>> loss.prepare(TeacherStatistics.measure(teacher, [torch.rand(4, 3, 8, 8)]))
        >>> images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
        >>> loss(student(images), teacher(images), labels).backward()  # then the optimiser's step
        >>> loss.after_step(student)
    """

    needs_statistics = True
    head_weight: Tensor
    head_bias: Tensor

    def __init__(self, student: FeatureDims, teacher: FeatureDims) -> None:
        super().__init__(student, teacher)
        if student.classes != teacher.classes:
            raise UserError(
                f"SimKD puts the teacher's head into the student; it has {teacher.classes} classes, the student "
                f"{student.classes}."
            )
        self.layer = nn.Linear(student.embedding, teacher.embedding, bias=False)
        self.norm = BatchNorm(teacher.embedding)
        self.register_buffer("head_weight", torch.full((teacher.classes, teacher.embedding), torch.nan))
        self.register_buffer("head_bias", torch.full((teacher.classes,), torch.nan))
        self._version = self.layer.weight._version

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Store the teacher's head.

        Raises:
            UserError: the statistics hold no head.
        """
        if not statistics.head:
            raise UserError("SimKD needs the teacher's head; TeacherStatistics.measure records that of a SceneNet.")
        weight, bias = statistics.head
        self.head_weight.copy_(weight)
        self.head_bias.copy_(bias)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        if self.layer.weight._version > self._version + MOST_STEPS:  # an optimiser's step changes it in place
            raise UserError("SimKD sets the student's head: call loss.after_step(student) after each optimiser step.")
        projected = self.norm(self.layer(student.embedding))
        return F.mse_loss(projected, teacher.embedding)

    @torch.no_grad()
    def after_step(self, student: SceneNet) -> None:
        """Set the student's head to the projection followed by the teacher's head.

        Args:
            student: the student whose outputs the loss is computed on.

        Raises:
            UserError: the student's head has no bias.
        """
        if student.head.bias is None:
            raise UserError("SimKD sets weight and bias of the student's head, which has no bias. Give it one.")
        self._version = self.layer.weight._version
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - scale * norm.running_mean
        student.head.weight.copy_(self.head_weight @ (scale[:, None] * self.layer.weight))
        student.head.bias.copy_(self.head_weight @ shift + self.head_bias)
