"""The loss that compares whole feature maps, level by level."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.losses.base import DistillationLoss, require, warm_up
from scenedistill.models.norm import BatchNorm
from scenedistill.models.output import FeatureDims, SceneOutput

#: Sides of the grids that maps are averaged to beside their full size; each counts half as much as the one before.
GRIDS = (4, 2, 1)


class KnowledgeReview(DistillationLoss):
    """ReviewKD of Chen, Liu, Zhao and Jia, "Distilling Knowledge via Knowledge Review" (CVPR 2021).

    From the coarsest level to the finest, the student's feature is fused with what came from the coarser levels by two
    learned gates at each position (the paper's ABF), carried to the teacher's width, and compared with the teacher's
    feature of that level at several resolutions (its HCL). The levels are the pooled embedding, as a map of one pixel,
    and the stages. Weight 1, as in the authors' ImageNet code. The fusions are thrown away after training.

    The weight rises over the first twelfth of the training (`warm_up`), as in the authors' CIFAR code.

    Traps: that code has weights up to 8 by architecture. It compares features before their activation; here it is what
    a stage gives. The 3x3 convolutions of the fusions cost more than a light student. The teacher's maps are too large
    to be kept, so it is asked in every step, about fresh views.

    Args:
        student: widths of the student.
        teacher: widths of the teacher; of a different number of stages the coarsest shared ones are compared.
        middle: width of the fusions, at most that of the student's embedding; the authors have 512.

    Raises:
        ValueError: middle is below 1.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.review import KnowledgeReview
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> narrow, wide = FeatureDims(3, 4, stages=(2, 4)), FeatureDims(3, 8, stages=(4, 8))
        >>> maps = torch.rand(2, 2, 8, 8), torch.rand(2, 4, 4, 4)
        >>> student = SceneOutput(torch.rand(2, 3), torch.rand(2, 4), attention=(), features=maps)
        >>> maps = torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)
        >>> teacher = SceneOutput(torch.rand(2, 3), torch.rand(2, 8), attention=(), features=maps)
        >>> loss = KnowledgeReview(narrow, wide)
        >>> loss(student, teacher, labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    needs_features = True

    def __init__(self, student: FeatureDims, teacher: FeatureDims, *, middle: float = 512) -> None:
        super().__init__(student, teacher)
        require(1, middle=middle)
        self.shared = min(len(student.stages), len(teacher.stages))
        width = min(int(middle), student.embedding)
        ours, theirs = ((*dims.stages[-self.shared :], dims.embedding) for dims in (student, teacher))
        #: finest first; the last one, of the embedding, has nothing coarser to fuse with
        self.fusions = nn.ModuleList(
            Fusion(ours[level], width, theirs[level], fuses=level < self.shared) for level in range(self.shared + 1)
        )

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        total, coarser = student.logits.new_zeros(()), None
        levels = zip(self.fusions, self._levels(student), self._levels(teacher), strict=True)
        for fusion, ours, theirs in reversed(list(levels)):
            guided, coarser = cast(Fusion, fusion)(ours, coarser, theirs.shape[-2:])
            total = total + context_distance(guided, theirs)
        return warm_up(self.progress) * total

    def _levels(self, output: SceneOutput) -> list[Tensor]:
        return [*output.features[-self.shared :], output.embedding[:, :, None, None]]


class Fusion(nn.Module):
    """One level of the review (the paper's ABF, figure 3).

    Args:
        student: channels of the student's feature.
        middle: channels of what goes on to the next finer level.
        teacher: channels of the teacher's feature.
        fuses: a coarser level comes before this one.
    """

    def __init__(self, student: int, middle: int, teacher: int, *, fuses: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(student, middle, 1, bias=False), BatchNorm(middle))
        self.gates = nn.Conv2d(2 * middle, 2, 1) if fuses else None
        self.guide = nn.Sequential(nn.Conv2d(middle, teacher, 3, padding=1, bias=False), BatchNorm(teacher))
        for first in (self.reduce[0], self.guide[0]):
            nn.init.kaiming_uniform_(cast(Tensor, first.weight), a=1)

    def forward(self, feature: Tensor, coarser: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Fuse and carry to the teacher's width and size.

        Args:
            feature: of the student, `[B, C, H, W]`.
            coarser: what the coarser level gave second, `[B, middle, h, w]`; None where there is none.
            size: height and width of the teacher's feature.

        Returns:
            What is compared with the teacher's feature, `[B, C_t, *size]`, and what the next finer level takes,
            `[B, middle, *size]`.
        """
        fused: Tensor = self.reduce(feature)
        if self.gates is not None and coarser is not None:
            coarser = F.interpolate(coarser, fused.shape[-2:])
            gates = torch.sigmoid(self.gates(torch.cat((fused, coarser), 1)))
            fused = fused * gates[:, :1] + coarser * gates[:, 1:]
        fused = F.interpolate(fused, size)
        return self.guide(fused), fused


def context_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared error at full size and averaged to each smaller one of `GRIDS` (the paper's HCL).

    Args:
        ours: `[B, C, H, W]`.
        theirs: the same shape.

    Returns:
        A scalar: the weighted mean, weights 1, 1/2, 1/4, ... as far as the sizes go.

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
