"""Losses that compare single images' features in student and teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.losses.base import DistillationLoss, require
from scenedistill.losses.dual_attention import map_distance
from scenedistill.models.norm import BatchNorm
from scenedistill.models.output import FeatureDims, SceneOutput


class Hint(DistillationLoss):
    """FitNets' hint of Romero et al. (ICLR 2015), equation 3.

    Mean squared error between the teacher's feature map of one stage and the student's, the latter carried to the
    teacher's width by a 1x1 convolution and a batch norm that are thrown away after training; maps of different size
    are averaged to the smaller one. Weight 100, as in the field's common codebases.

    What differs from the paper: it trains up to the hint first and distils the logits afterwards; here, as in those
    codebases, the hint is one term beside the cross-entropy, a mean over channels and positions (the paper has half
    the sum). The batch norm is theirs; without it students from nothing stayed at chance under a teacher whose
    features are small (AID at 64 pixels). Their ReLU after it is left out: not every backbone's
    stages end in one. The teacher's maps are too large to be kept, so it is asked in every step, about fresh views;
    `fitnet_pooled` does without.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        stage: which stage, counted from the coarsest as 1; the default is that of stride 16. A network with fewer
            stages gives its finest.

    Raises:
        ValueError: the stage is below 1.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.features import Hint
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> narrow, wide = FeatureDims(3, 4, stages=(2, 4)), FeatureDims(3, 8, stages=(4, 8))
        >>> maps = torch.rand(2, 2, 8, 8), torch.rand(2, 4, 4, 4)
        >>> student = SceneOutput(torch.rand(2, 3), torch.rand(2, 4), attention=(), features=maps)
        >>> maps = torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)
        >>> teacher = SceneOutput(torch.rand(2, 3), torch.rand(2, 8), attention=(), features=maps)
        >>> loss = Hint(narrow, wide)
        >>> loss(student, teacher, labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    needs_features = True

    def __init__(self, student: FeatureDims, teacher: FeatureDims, *, stage: float = 2) -> None:
        super().__init__(student, teacher)
        require(1, stage=stage)
        self.stage = -min(int(stage), len(student.stages), len(teacher.stages))
        ours, theirs = student.stages[self.stage], teacher.stages[self.stage]
        self.regressor = nn.Sequential(nn.Conv2d(ours, theirs, 1, bias=False), BatchNorm(theirs))

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        ours, theirs = self._map(student), self._map(teacher)
        height, width = (min(sides) for sides in zip(ours.shape[2:], theirs.shape[2:], strict=True))
        ours, theirs = (F.adaptive_avg_pool2d(each, (height, width)) for each in (ours, theirs))
        return F.mse_loss(self.regressor(ours), theirs)

    def _map(self, output: SceneOutput) -> Tensor:
        return output.features[self.stage]


class PooledHint(Hint):
    """The hint on the stage's channel descriptors, which are its map's mean over the positions.

    Looks at less than the other: it misses where in the image the two networks differ. What it needs of the teacher is
    kept.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.features import PooledHint
        >>> from scenedistill.models.output import FeatureDims, SceneOutput, StageAttention
        >>> def output(dims: FeatureDims) -> SceneOutput:
        ...     width = dims.stages[0]
        ...     channel, spatial = torch.rand(2, width), torch.rand(2, 1, 4, 4)
        ...     energy, descriptor = torch.rand(2, 4, 4), torch.rand(2, width)
        ...     stage = StageAttention(channel, spatial, energy, descriptor)
        ...     return SceneOutput(torch.rand(2, 3), torch.rand(2, dims.embedding), attention=(stage,))
        >>> narrow, wide = FeatureDims(3, 4, stages=(4,)), FeatureDims(3, 8, stages=(8,))
        >>> loss = PooledHint(narrow, wide)
        >>> loss(output(narrow), output(wide), labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    needs_features = False
    needs_attention = True

    def _map(self, output: SceneOutput) -> Tensor:
        return output.attention[self.stage].descriptor[:, :, None, None]


class AttentionTransfer(DistillationLoss):
    """Activation-based attention transfer of Zagoruyko and Komodakis (ICLR 2017), equation 2 as their code has it.

    Summed over the stages: mean over images and positions of the squared difference of the two networks' energy maps,
    each map of unit length. Weight 1000, as in the authors' code.

    Traps: equation 2 has the distance itself, halved, where the code has its square; what is called attention transfer
    in the literature is mostly the code. The mean over the positions, not the sum, is what the 1000 belongs to.

    Args:
        student: widths of the student.
        teacher: widths of the teacher; of a different number of stages the coarsest shared ones are compared.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.features import AttentionTransfer
        >>> from scenedistill.models.output import FeatureDims, SceneOutput, StageAttention
        >>> def output(dims: FeatureDims) -> SceneOutput:
        ...     width = dims.stages[0]
        ...     channel, spatial = torch.rand(2, width), torch.rand(2, 1, 4, 4)
        ...     energy, descriptor = torch.rand(2, 4, 4), torch.rand(2, width)
        ...     stage = StageAttention(channel, spatial, energy, descriptor)
        ...     return SceneOutput(torch.rand(2, 3), torch.rand(2, dims.embedding), attention=(stage,))
        >>> narrow, wide = FeatureDims(3, 4, stages=(4,)), FeatureDims(3, 8, stages=(8,))
        >>> loss = AttentionTransfer(narrow, wide)
        >>> loss(output(narrow), output(wide), labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    needs_attention = True

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        total = student.logits.new_zeros(())
        shared = min(len(student.attention), len(teacher.attention))
        for ours, theirs in zip(student.attention[-shared:], teacher.attention[-shared:], strict=True):
            height, width = (min(sides) for sides in zip(ours.energy.shape[1:], theirs.energy.shape[1:], strict=True))
            total = total + map_distance(ours.energy, theirs.energy) / (height * width)
        return total


class SimpleRecipe(DistillationLoss):
    """SRD, the simple recipe of Miles and Mikolajczyk, "Understanding the Role of the Projector ..." (AAAI 2024).

    `features * log(sum of |p(u) - t|^power) + logits * KL(softmax(t) || softmax(s))`, the first over all images and
    channels: p is a linear projector (thrown away after training), and both sides are batch-normalised without learned
    scale. Weights, power and the temperature of 1 are those of the authors' ImageNet code.

    Traps: the logarithm makes the gradient independent of the loss's scale, and the value depends on the number of
    images and channels, so values are comparable in one setting only. The mean and deviation of the whole batch are
    part of the loss: small batches make it noisy, and a batch of one teaches nothing. The projector has no bias,
    because the normalisation would take it away again.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        features: weight of the features.
        logits: weight of the class scores.
        power: > 1; the higher, the more the largest differences count.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.features import SimpleRecipe
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), attention=())
        >>> teacher = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), attention=())
        >>> loss = SimpleRecipe(dims, dims)
        >>> loss(student, teacher, labels=torch.tensor([0, 1, 2])).shape
        torch.Size([])
    """

    relational = True

    def __init__(
        self,
        student: FeatureDims,
        teacher: FeatureDims,
        *,
        features: float = 2.0,
        logits: float = 1.0,
        power: float = 4.0,
    ) -> None:
        super().__init__(student, teacher)
        require(1, above=True, power=power)
        self.features, self.logits, self.power = features, logits, power
        # none without the part that trains it: DDP wants a gradient for every parameter
        self.projector = nn.Linear(student.embedding, teacher.embedding, bias=False) if features else nn.Identity()

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        total = student.logits.new_zeros(())
        if self.features:
            gap = _standardised(self.projector(student.embedding)) - _standardised(teacher.embedding)
            # the small number keeps value and gradient finite where student and teacher agree
            total = total + self.features * (gap.abs().pow(self.power).sum() + 1e-8).log()
        if self.logits:
            ours, theirs = F.log_softmax(student.logits, dim=1), F.log_softmax(teacher.logits, dim=1)
            total = total + self.logits * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return total


def _standardised(features: Tensor) -> Tensor:
    """`[B, D]` with mean 0 and variance 1 over the batch in each channel; zeros for a batch of one."""
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    return (features - mean) * (variance + 1e-4).rsqrt()
