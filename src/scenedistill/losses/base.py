"""What all distillation losses share: float32 arithmetic, one call form, and the places where a loss may learn."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from scenedistill.models.output import FeatureDims, SceneOutput


class TeacherStatistics(NamedTuple):
    """Of a teacher's features over the evaluation views of the training set.

    Attributes:
        embedding_mean: `[D_t]`.
        descriptor_mean: of each stage's channel descriptor, `[C_s]`.
        descriptor_std: of each stage's channel descriptor, `[C_s]`.
        embeddings: of the training images themselves, `[N, D_t]`, in their order; empty where they were not kept.
    """

    embedding_mean: Tensor
    descriptor_mean: tuple[Tensor, ...]
    descriptor_std: tuple[Tensor, ...]
    embeddings: Tensor = torch.empty(0)


class DistillationLoss(nn.Module):
    """A scalar loss of a student's output against its teacher's.

    A leaf writes `compute`. What a leaf registers as parameters (adapters from the student's width to the teacher's)
    is trained with the student and thrown away after training.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
    """

    #: True when the loss compares the images of a batch with each other: it is then given the whole batch of all
    #: processes, not one process's share.
    relational: ClassVar[bool] = False
    #: False when the loss looks at the labels only and no teacher is needed.
    needs_teacher: ClassVar[bool] = True
    #: True when the loss looks at the labels: it is then given the images that have one, and no others.
    needs_labels: ClassVar[bool] = False
    #: True when the loss looks at the attention of the stages, which else is not reported.
    needs_attention: ClassVar[bool] = False
    #: True when the loss looks at the feature maps of the stages; they are never kept, the teacher is asked every time.
    needs_features: ClassVar[bool] = False

    def __init__(self, student: FeatureDims, teacher: FeatureDims) -> None:
        super().__init__()
        self.student_dims = student
        self.teacher_dims = teacher

    def forward(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """The loss as a float32 scalar, whatever the autocast.

        Args:
            student: of a batch of B images; gradients flow into it.
            teacher: of the same B views; no gradient flows into it.
            labels: class indices, int64 `[B]`.
        """
        with torch.autocast(student.logits.device.type, enabled=False):
            if not self.needs_features:  # large: not made float32 for nothing
                student, teacher = student._replace(features=()), teacher._replace(features=())
            return self.compute(student.map(_exact), teacher.map(_constant), labels)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """The mathematics, on float32 (or float64) tensors."""
        raise NotImplementedError(f"{type(self).__name__} has no compute()")

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Take what is needed of the teacher's statistics, before the first step."""


class CrossEntropy(DistillationLoss):
    """Cross-entropy of the student's logits with the labels: the classification term of the paper's equation (15).

    Examples:
        >>> import torch
        >>> from scenedistill.losses.base import CrossEntropy
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 2), attention=())
        >>> teacher = SceneOutput(torch.tensor([[3.0, 2.0, 1.0]]), torch.zeros(1, 2), attention=())
        >>> loss = CrossEntropy(dims, dims)
        >>> loss(student, teacher, labels=torch.tensor([2]))
        tensor(0.4076)
    """

    needs_teacher = False
    needs_labels = True

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        return nn.functional.cross_entropy(student.logits, labels)


def require(least: float, *, above: bool = False, **options: float) -> None:
    """See that options of a loss are `least` or more, or above it.

    Raises:
        ValueError: one is not.
    """
    for name, value in options.items():
        if not (value > least if above else value >= least):
            raise ValueError(
                f"{name} is {value:g}; expected {f'more than {least:g}' if above else f'{least:g} or more'}"
            )


def _exact(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float64, torch.int64) else tensor.float()


def _constant(tensor: Tensor) -> Tensor:
    return _exact(tensor).detach()
