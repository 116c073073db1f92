"""L_DA, the dual-attention distillation loss: the student looks where its teacher looks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.losses.base import DistillationLoss, TeacherStatistics
from scenedistill.models.output import FeatureDims, SceneOutput


class DualAttentionLoss(DistillationLoss):
    """Sum over the stages of what differs between the two networks' attention.

    - energy: squared distance of the L2-normalised energy maps (Zagoruyko and Komodakis, ICLR 2017);
    - channel: squared distance of the standardised channel descriptors, the student's carried to the teacher's width
      by a linear map that is thrown away after training;
    - gates: squared distance of the spatial gates, standardised over the map (raw gates of a well-trained teacher are
      nearly flat and teach nothing).

    That the loss moves the teacher's dual-attention knowledge is stated by Li, Nan and Liu (2023); the formula is ours.

    The channel part needs the teacher's statistics (`prepare`) and refuses to compute without: a batch's own would make
    the target of an image depend on the images beside it, and divide by next to nothing where a channel is silent in
    all of them. The other two parts need none.

    Args:
        student: widths of the student.
        teacher: widths of the teacher; of a different number of stages the coarsest shared ones are compared.
        energy: weight of the energy maps.
        channel: weight of the channel descriptors.
        gates: weight of the spatial gates.

    Examples:
        >>> import torch
        >>> from scenedistill.losses import DualAttentionLoss, TeacherStatistics
        >>> from scenedistill.models.output import FeatureDims, SceneOutput, StageAttention
        >>> def output(dims: FeatureDims) -> SceneOutput:
        ...     width = dims.stages[0]
        ...     channel, spatial = torch.rand(2, width), torch.rand(2, 1, 4, 4)
        ...     energy, descriptor = torch.rand(2, 4, 4), torch.rand(2, width)
        ...     stage = StageAttention(channel, spatial, energy, descriptor)
        ...     return SceneOutput(torch.rand(2, 3), torch.rand(2, dims.embedding), attention=(stage,))
        >>> narrow, wide = FeatureDims(3, 4, stages=(4,)), FeatureDims(3, 8, stages=(8,))
        >>> loss = DualAttentionLoss(narrow, wide)
        >>> loss.prepare(TeacherStatistics.of(output(wide) for _ in range(4)))
        >>> loss(output(narrow), output(wide), labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    needs_attention = True

    def __init__(
        self,
        student: FeatureDims,
        teacher: FeatureDims,
        *,
        energy: float = 1.0,
        channel: float = 1.0,
        gates: float = 0.0,
    ) -> None:
        super().__init__(student, teacher)
        self.energy, self.channel, self.gates = energy, channel, gates
        self.needs_statistics = bool(channel)
        # a student and a teacher with a different number of stages are compared at the coarsest ones they share
        self.shared = min(len(student.stages), len(teacher.stages))
        pairs = zip(student.stages[-self.shared :], teacher.stages[-self.shared :], strict=True)
        # none without the part that trains it: DDP wants a gradient for every parameter
        self.carry = nn.ModuleList(nn.Linear(narrow, wide) for narrow, wide in pairs if channel)
        for i, wide in enumerate(teacher.stages[-self.shared :]):
            self.register_buffer(f"mean_{i}", torch.full((wide,), torch.nan))
            self.register_buffer(f"std_{i}", torch.full((wide,), torch.nan))

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Remember mean and deviation of the teacher's channel descriptors over the training set."""
        for i in range(self.shared):
            self.get_buffer(f"mean_{i}").copy_(statistics.descriptor_mean[i - self.shared])
            std = statistics.descriptor_std[i - self.shared]
            # half of a fine-tuned stage's channels may be all but dead: divided by their own deviation they would drown
            # the others in noise
            self.get_buffer(f"std_{i}").copy_(std.clamp(min=(0.05 * std.mean()).clamp(min=1e-6)))

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        total = student.logits.new_zeros(())
        stages = zip(student.attention[-self.shared :], teacher.attention[-self.shared :], strict=True)
        for i, (ours, theirs) in enumerate(stages):
            if self.energy:
                total = total + self.energy * map_distance(ours.energy, theirs.energy)
            if self.channel:
                target = (theirs.descriptor - self.get_buffer(f"mean_{i}")) / self.get_buffer(f"std_{i}")
                total = total + self.channel * (self.carry[i](ours.descriptor) - target).square().mean()
            if self.gates:
                total = total + self.gates * gate_distance(ours.spatial.squeeze(1), theirs.spatial.squeeze(1))
        return total


def map_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean over the batch of the squared distance of L2-normalised maps, `[B, H, W]` each: a number in 0..4.

    A map of another size is averaged down to the smaller of the two first.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.dual_attention import map_distance
        >>> left, right = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
        >>> map_distance(left, 3 * left)
        tensor(0.)
        >>> map_distance(left, right)
        tensor(2.)
    """
    ours, theirs = _same_size(ours, theirs)
    return (F.normalize(ours.flatten(1), dim=1) - F.normalize(theirs.flatten(1), dim=1)).square().sum(1).mean()


def gate_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared distance of gates `[B, H, W]`, each standardised over its own map; a flat map counts as zeros.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.dual_attention import gate_distance
        >>> gates = torch.tensor([[[0.4, 0.6]]])
        >>> gate_distance(gates, gates)
        tensor(0.)
        >>> gate_distance(gates, 1 - gates)
        tensor(3.9996)
    """
    ours, theirs = _same_size(ours, theirs)
    return (_standardised(ours) - _standardised(theirs)).square().mean()


def _standardised(gates: Tensor) -> Tensor:
    centred = gates.flatten(1) - gates.flatten(1).mean(1, keepdim=True)
    # the floor is added under the root: the gradient of a flat map stays finite
    return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()


def _same_size(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    height, width = min(ours.shape[1], theirs.shape[1]), min(ours.shape[2], theirs.shape[2])
    if ours.shape[1:] == theirs.shape[1:]:
        return ours, theirs
    return tuple(F.adaptive_avg_pool2d(m.unsqueeze(1), (height, width)).squeeze(1) for m in (ours, theirs))  # type: ignore[return-value]
