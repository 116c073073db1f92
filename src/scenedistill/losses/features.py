"""Losses that compare the features of each image in student and teacher."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.losses.base import DistillationLoss, TeacherStatistics, require
from scenedistill.losses.dual_attention import map_distance
from scenedistill.losses.standardise import Standardisation, floored_std
from scenedistill.models.norm import BatchNorm
from scenedistill.models.output import FeatureDims, SceneOutput


class Hint(DistillationLoss):
    """FitNets' hint of Romero et al. (ICLR 2015), equation 3.

    Mean squared error between the feature maps of one stage of teacher and student. A 1x1 convolution and a batch norm,
    discarded after training, project the student's map to the teacher's width. Maps of different size are averaged down
    to the smaller height and width.

    The channels of the teacher's map are shifted and scaled by mean and deviation of their descriptors over the
    training set, so that one weight suits all teachers; the paper takes the map as it is. The loss therefore needs the
    teacher's statistics (`prepare`) and raises an error without them.

    Differences from the paper: the paper first trains the network up to the hint and then distils the logits. Here, as
    in widely used codebases, the hint is added to the cross-entropy, as a mean over channels and positions (the paper
    has half the sum). Their weight of 100 belongs to maps that are not standardised; the weight here is ours. The batch
    norm comes from those codebases; without it, students trained from scratch stayed at chance level under a teacher
    with small features (AID at 64 pixels). Their ReLU after it is omitted, because the stages of some backbones do not
    end in one. The teacher's maps are too large to store, so the teacher runs in every step on fresh views;
    `fitnet_pooled` uses stored outputs.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        stage: number of the stage, counted from 1, the coarsest; the default is usually the stage of stride 16. If a
            network has fewer stages, the finest shared stage is used.

    Raises:
        ValueError: the stage is below 1.

    Examples:
        >>> import torch
        >>> from scenedistill.losses import Hint, TeacherStatistics
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> narrow, wide = FeatureDims(3, 4, stages=(2, 4)), FeatureDims(3, 8, stages=(4, 8))
        >>> maps = torch.rand(2, 2, 8, 8), torch.rand(2, 4, 4, 4)
        >>> student = SceneOutput(torch.rand(2, 3), torch.rand(2, 4), attention=(), features=maps)
        >>> maps = torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)
        >>> teacher = SceneOutput(torch.rand(2, 3), torch.rand(2, 8), attention=(), features=maps)
        >>> loss = Hint(narrow, wide)
        >>> means, stds = (torch.zeros(4), torch.zeros(8)), (torch.ones(4), torch.ones(8))
        >>> loss.prepare(TeacherStatistics(torch.zeros(8), means, stds))
        >>> loss(student, teacher, labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    needs_features = True
    needs_statistics = True

    def __init__(self, student: FeatureDims, teacher: FeatureDims, *, stage: float = 2) -> None:
        super().__init__(student, teacher)
        require(1, stage=stage)
        self.stage = -min(int(stage), len(student.stages), len(teacher.stages))
        self.regressor = _regressor(student.stages[self.stage], teacher.stages[self.stage])
        self.standardise = Standardisation(teacher.stages[self.stage])

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Store mean and deviation of the teacher's channel descriptors of the stage."""
        self.standardise.store_stage(statistics, self.stage)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        ours, theirs = student.features[self.stage], teacher.features[self.stage]
        height, width = (min(sides) for sides in zip(ours.shape[2:], theirs.shape[2:], strict=True))
        ours, theirs = (F.adaptive_avg_pool2d(each, (height, width)) for each in (ours, theirs))
        return F.mse_loss(self.regressor(ours), self.standardise(theirs))


class PooledHint(DistillationLoss):
    """The hint on the channel descriptors of all shared stages, that is, on the mean of each map over the positions.

    Mean squared error as in `Hint`, with the same projection and the same use of the teacher's statistics, averaged
    over the stages. It ignores where in the image the two networks differ. The teacher's descriptors are stored, so the
    teacher need not run in every step.

    Args:
        student: widths of the student.
        teacher: widths of the teacher. If the numbers of stages differ, the coarsest shared stages are compared.

    Examples:
        >>> import torch
        >>> from scenedistill.losses import PooledHint, TeacherStatistics
        >>> from scenedistill.models.output import FeatureDims, SceneOutput, StageAttention
        >>> def output(dims: FeatureDims) -> SceneOutput:
        ...     width = dims.stages[0]
        ...     channel, spatial = torch.rand(2, width), torch.rand(2, 1, 4, 4)
        ...     energy, descriptor = torch.rand(2, 4, 4), torch.rand(2, width)
        ...     stage = StageAttention(channel, spatial, energy, descriptor)
        ...     return SceneOutput(torch.rand(2, 3), torch.rand(2, dims.embedding), attention=(stage,))
        >>> narrow, wide = FeatureDims(3, 4, stages=(4,)), FeatureDims(3, 8, stages=(8,))
        >>> loss = PooledHint(narrow, wide)
        >>> loss.prepare(TeacherStatistics.of(output(wide) for _ in range(4)))
        >>> loss(output(narrow), output(wide), labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    needs_attention = True
    needs_statistics = True

    def __init__(self, student: FeatureDims, teacher: FeatureDims) -> None:
        super().__init__(student, teacher)
        self.shared = min(len(student.stages), len(teacher.stages))
        pairs = zip(student.stages[-self.shared :], teacher.stages[-self.shared :], strict=True)
        self.regressors = nn.ModuleList(_regressor(narrow, wide) for narrow, wide in pairs)
        self.standardise = nn.ModuleList(Standardisation(wide) for wide in teacher.stages[-self.shared :])

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Store mean and deviation of the teacher's channel descriptors."""
        for i, standardise in enumerate(self.standardise):
            cast(Standardisation, standardise).store_stage(statistics, i - self.shared)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        total = student.logits.new_zeros(())
        stages = zip(student.attention[-self.shared :], teacher.attention[-self.shared :], strict=True)
        for i, (ours, theirs) in enumerate(stages):
            target = self.standardise[i](theirs.descriptor[:, :, None, None])
            total = total + F.mse_loss(self.regressors[i](ours.descriptor[:, :, None, None]), target)
        return total / self.shared


def _regressor(narrow: int, wide: int) -> nn.Sequential:
    """Return the projection of maps `[B, narrow, H, W]` to `[B, wide, H, W]`."""
    return nn.Sequential(nn.Conv2d(narrow, wide, 1, bias=False), BatchNorm(wide))


class AttentionTransfer(DistillationLoss):
    """Activation-based attention transfer of Zagoruyko and Komodakis (ICLR 2017), equation 2 as their code has it.

    Squared difference of the L2-normalised energy maps of the two networks, as a mean over images and positions, summed
    over the stages. The weight of 1000 is that of the authors' code.

    Caveats: equation 2 has half the distance, the code its square; most of the literature means the code. The weight of
    1000 applies to the mean over the positions, not to the sum.

    Args:
        student: widths of the student.
        teacher: widths of the teacher. If the numbers of stages differ, the coarsest shared stages are compared.

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

    `features * log(sum of |p(u) - t|^power) + logits * KL(softmax(t) || softmax(s))`. The sum is over all images and
    channels; p is a linear projector that is discarded after training; p(u) and t are batch-normalised without a
    learned scale. Weights, power and the temperature of 1 are those of the authors' ImageNet code.

    Caveats: the logarithm makes the gradient independent of the scale of the sum, and the value depends on the number
    of images and channels, so values of different settings are not comparable. The loss uses the mean and deviation of
    the batch: small batches make it noisy, and the features of a batch of one give no gradient. The projector has no
    bias, because the normalisation would remove it.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        features: weight of the features.
        logits: weight of the class scores.
        power: exponent of the differences, > 1; a higher one puts more weight on large differences.

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
    alive: Tensor

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
        require(0, features=features, logits=logits)
        require(1, above=True, power=power)
        self.features, self.logits, self.power = features, logits, power
        # only with the feature part: DDP requires a gradient for every parameter
        self.projector = nn.Linear(student.embedding, teacher.embedding, bias=False) if features else nn.Identity()
        self.register_buffer("alive", torch.ones(teacher.embedding))

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Store which channels of the teacher's embedding vary over the training set."""
        if len(statistics.embeddings) > 1:
            std = statistics.embeddings.std(0)
            self.alive.copy_(std == floored_std(std))

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        total = student.logits.new_zeros(())
        if self.features:
            gap = _standardised(self.projector(student.embedding)) - _standardised(teacher.embedding)
            gap = gap * self.alive
            # the constant keeps value and gradient finite if student and teacher agree
            total = total + self.features * (gap.abs().pow(self.power).sum() + 1e-8).log()
        if self.logits:
            ours, theirs = F.log_softmax(student.logits, dim=1), F.log_softmax(teacher.logits, dim=1)
            total = total + self.logits * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return total


def _standardised(features: Tensor) -> Tensor:
    """Standardise each channel of `[B, D]` over the batch; a batch of one gives zeros."""
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    return (features - mean) * (variance + 1e-4).rsqrt()
