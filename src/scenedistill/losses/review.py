"""ReviewKD, the loss that compares feature maps level by level."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.losses.base import DistillationLoss, TeacherStatistics, require, warm_up
from scenedistill.losses.standardise import Standardisation
from scenedistill.models.norm import BatchNorm
from scenedistill.models.output import FeatureDims, SceneOutput

#: Sides of the grids to which maps are averaged, in addition to their full size; each has half the previous weight.
GRIDS = (4, 2, 1)


class KnowledgeReview(DistillationLoss):
    """ReviewKD of Chen, Liu, Zhao and Jia, "Distilling Knowledge via Knowledge Review" (CVPR 2021).

    The levels are the stages and the embedding, as a map of one pixel. From the coarsest level to the finest, the
    student's feature is fused with the result of the coarser levels by two learned gates at each position (the paper's
    ABF), projected to the teacher's width, and compared with the teacher's feature of that level at several resolutions
    (the paper's HCL). The fusions are discarded after training. The weight of 1 is that of the authors' ImageNet code.

    The weight rises over the first twelfth of the training (`warm_up`), as in the authors' CIFAR code.

    Caveats: the CIFAR code uses weights up to 8, depending on the architecture. It compares features before their
    activation; here the outputs of the stages are compared, their channels standardised over the training set. The loss
    therefore needs the teacher's statistics (`prepare`). The 3x3 convolutions of the fusions need more computation
    than a light student. The teacher's maps are too large to store, so the teacher runs in every step on fresh views.

    Args:
        student: widths of the student.
        teacher: widths of the teacher. If the numbers of stages differ, the coarsest shared stages are compared.
        middle: width of the fusions, capped at the width of the student's embedding; the authors use 512.

    Raises:
        ValueError: middle is below 1.

    Examples:
        >>> import torch
        >>> from scenedistill.losses import KnowledgeReview, TeacherStatistics
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> narrow, wide = FeatureDims(3, 4, stages=(2, 4)), FeatureDims(3, 8, stages=(4, 8))
        >>> maps = torch.rand(2, 2, 8, 8), torch.rand(2, 4, 4, 4)
        >>> student = SceneOutput(torch.rand(2, 3), torch.rand(2, 4), attention=(), features=maps)
        >>> maps = torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)
        >>> teacher = SceneOutput(torch.rand(2, 3), torch.rand(2, 8), attention=(), features=maps)
        >>> loss = KnowledgeReview(narrow, wide)
        >>> means, stds = (torch.zeros(4), torch.zeros(8)), (torch.ones(4), torch.ones(8))
        >>> loss.prepare(TeacherStatistics(torch.zeros(8), means, stds))
        >>> loss(student, teacher, labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    needs_features = True
    needs_statistics = True

    def __init__(self, student: FeatureDims, teacher: FeatureDims, *, middle: float = 512) -> None:
        super().__init__(student, teacher)
        require(1, middle=middle)
        self.shared = min(len(student.stages), len(teacher.stages))
        width = min(int(middle), student.embedding)
        ours, theirs = ((*dims.stages[-self.shared :], dims.embedding) for dims in (student, teacher))
        #: finest first; the last one, for the embedding, has no coarser level
        self.fusions = nn.ModuleList(
            Fusion(ours[level], width, theirs[level], fuses=level < self.shared) for level in range(self.shared + 1)
        )
        self.standardise = nn.ModuleList(Standardisation(width) for width in theirs)

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Store mean and deviation of the teacher's channel descriptors and embedding."""
        *stages, embedding = cast(list[Standardisation], list(self.standardise))
        for i, standardise in enumerate(stages):
            standardise.store_stage(statistics, i - self.shared)
        embedding.store_embedding(statistics)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        total, coarser = student.logits.new_zeros(()), None
        levels = zip(self.fusions, self.standardise, self._levels(student), self._levels(teacher), strict=True)
        for fusion, standardise, ours, theirs in reversed(list(levels)):
            guided, coarser = cast(Fusion, fusion)(ours, coarser, theirs.shape[-2:])
            total = total + context_distance(guided, standardise(theirs))
        return warm_up(self.progress) * total

    def _levels(self, output: SceneOutput) -> list[Tensor]:
        return [*output.features[-self.shared :], output.embedding[:, :, None, None]]


class Fusion(nn.Module):
    """Attention-based fusion of one level with the coarser levels (the paper's ABF, figure 3).

    Args:
        student: number of channels of the student's feature.
        middle: number of channels of the fused feature.
        teacher: number of channels of the teacher's feature.
        fuses: whether there is a coarser level.
    """

    def __init__(self, student: int, middle: int, teacher: int, *, fuses: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(student, middle, 1, bias=False), BatchNorm(middle))
        self.gates = nn.Conv2d(2 * middle, 2, 1) if fuses else None
        self.guide = nn.Sequential(nn.Conv2d(middle, teacher, 3, padding=1, bias=False), BatchNorm(teacher))
        for first in (self.reduce[0], self.guide[0]):
            nn.init.kaiming_uniform_(cast(Tensor, first.weight), a=1)

    def forward(self, feature: Tensor, coarser: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Fuse two levels and project the result to the teacher's width and size.

        Args:
            feature: the student's feature, `[B, C, H, W]`.
            coarser: fused feature of the coarser level, `[B, middle, h, w]`; None if there is none.
            size: height and width of the teacher's feature.

        Returns:
            The feature to compare with the teacher's, `[B, C_t, *size]`, and the fused feature for the next finer
            level, `[B, middle, *size]`.
        """
        fused: Tensor = self.reduce(feature)
        if self.gates is not None and coarser is not None:
            coarser = F.interpolate(coarser, fused.shape[-2:])
            gates = torch.sigmoid(self.gates(torch.cat((fused, coarser), 1)))
            fused = fused * gates[:, :1] + coarser * gates[:, 1:]
        fused = F.interpolate(fused, size)
        return self.guide(fused), fused


def context_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean squared error at several resolutions (the paper's HCL).

    The resolutions are the full size and the grids of `GRIDS` that are smaller than it.

    Args:
        ours: the student's feature, `[B, C, H, W]`.
        theirs: the teacher's feature, of the same shape.

    Returns:
        A scalar: the weighted mean over the resolutions, with weights 1, 1/2, 1/4, ...

    Examples:
        >>> import torch
        >>> from scenedistill.losses.review import context_distance
        >>> context_distance(torch.zeros(1, 2, 8, 8), torch.full((1, 2, 8, 8), 2.0))
        tensor(4.)
    """
    total, weight, weights = F.mse_loss(ours, theirs), 1.0, 1.0
    for side in GRIDS:
        if side < ours.shape[2]:
            weight /= 2
            coarse = F.mse_loss(F.adaptive_avg_pool2d(ours, side), F.adaptive_avg_pool2d(theirs, side))
            total, weights = total + weight * coarse, weights + weight
    return total / weights
