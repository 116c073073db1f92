"""Distillation objectives of widely used libraries, as these libraries compute them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.losses.base import DistillationLoss, require
from scenedistill.losses.logits import SoftLogits
from scenedistill.losses.projected import TeacherQueue
from scenedistill.models.output import FeatureDims, SceneOutput


class TimmLogits(SoftLogits):
    """The term that timm's `LogitDistillationTask` adds to the cross-entropy: `SoftLogits` at a temperature of 1.

    Both terms have a weight of 1 by default there.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        temperature: T, > 0.

    Examples:
        >>> import torch
        >>> from scenedistill.losses import TimmLogits
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 2), attention=())
        >>> teacher = SceneOutput(torch.tensor([[3.0, 2.0, 1.0]]), torch.zeros(1, 2), attention=())
        >>> TimmLogits(dims, dims)(student, teacher, labels=torch.tensor([0]))
        tensor(1.1504)
    """

    def __init__(self, student: FeatureDims, teacher: FeatureDims, *, temperature: float = 1.0) -> None:
        super().__init__(student, teacher, temperature=temperature)


class TimmFeatures(DistillationLoss):
    """The term that timm's `FeatureDistillationTask` adds to the cross-entropy.

    Mean squared difference of the embeddings. Where the widths differ, a linear layer that is discarded after training
    projects the student's. Both terms have a weight of 1 by default there; its documentation uses 5.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.

    Examples:
        >>> import torch
        >>> from scenedistill.losses import TimmFeatures
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> narrow, wide = FeatureDims(3, 4, stages=()), FeatureDims(3, 8, stages=())
        >>> student = SceneOutput(torch.rand(2, 3), torch.rand(2, 4), attention=())
        >>> teacher = SceneOutput(torch.rand(2, 3), torch.rand(2, 8), attention=())
        >>> TimmFeatures(narrow, wide)(student, teacher, labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    def __init__(self, student: FeatureDims, teacher: FeatureDims) -> None:
        super().__init__(student, teacher)
        same = student.embedding == teacher.embedding
        self.projection = nn.Identity() if same else nn.Linear(student.embedding, teacher.embedding)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        return F.mse_loss(self.projection(student.embedding), teacher.embedding)


class LightlyQueue(TeacherQueue):
    """The objective of LightlyTrain's `distillationv1`, a distillation without labels.

    KL divergence of two softmax distributions over a queue of L2-normalised teacher embeddings: that of the teacher's
    cosines and that of the student's, both over the same temperature. A linear layer, discarded after training,
    projects the student's embedding to the teacher's width.

    Differences from the library: the queue holds the teacher's embeddings of all training images, not those of the last
    batches; without the teacher's statistics it holds those of the current batch.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        temperature: > 0.

    Examples:
        >>> import torch
        >>> from scenedistill.losses import LightlyQueue
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> narrow, wide = FeatureDims(3, 4, stages=()), FeatureDims(3, 8, stages=())
        >>> student = SceneOutput(torch.rand(2, 3), torch.rand(2, 4), attention=())
        >>> teacher = SceneOutput(torch.rand(2, 3), torch.rand(2, 8), attention=())
        >>> LightlyQueue(narrow, wide)(student, teacher, labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    def __init__(self, student: FeatureDims, teacher: FeatureDims, *, temperature: float = 0.07) -> None:
        super().__init__(student, teacher)
        require(0, above=True, temperature=temperature)
        self.temperature = temperature
        self.projection = nn.Linear(student.embedding, teacher.embedding)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        ours = F.normalize(self.projection(student.embedding), dim=1, eps=1e-6)
        theirs = F.normalize(teacher.embedding, dim=1, eps=1e-6)
        queue = self.queue if len(self.queue) else theirs
        log_ours, log_theirs = (F.log_softmax(side @ queue.T / self.temperature, dim=1) for side in (ours, theirs))
        return F.kl_div(log_ours, log_theirs, reduction="batchmean", log_target=True)
