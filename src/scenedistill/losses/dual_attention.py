"""L_DA, the dual-attention distillation loss: the student learns to match the teacher's attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.losses.base import DistillationLoss, TeacherStatistics, require
from scenedistill.losses.standardise import floored_std
from scenedistill.models.output import FeatureDims, SceneOutput


class DualAttentionLoss(DistillationLoss):
    """Dual-attention distillation: match the attention of the stages of two networks.

    The loss is a weighted sum of three parts, summed over the stages:

    - energy: squared distance of the L2-normalised energy maps (Zagoruyko and Komodakis, ICLR 2017);
    - channel: mean squared distance of the channel descriptors. The teacher's descriptors are standardised, the
      student's are projected to the teacher's width by a linear layer that is discarded after training;
    - gates: mean squared distance of the spatial gates, standardised over the map. Without standardisation the gates of
      a well-trained teacher are nearly flat and carry no information.

    Li, Nan and Liu (2023) state that the loss transfers the teacher's dual-attention knowledge; the formula is ours.

    The channel part needs the teacher's statistics (`prepare`) and raises an error without them. With the statistics of
    a batch, the target of an image would depend on the other images of the batch, and channels that are near 0 in the
    whole batch would be divided by nearly 0. The other two parts need no statistics.

    Args:
        student: widths of the student.
        teacher: widths of the teacher. If the numbers of stages differ, the coarsest shared stages are compared.
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
        require(0, energy=energy, channel=channel, gates=gates)
        self.energy, self.channel, self.gates = energy, channel, gates
        self.needs_statistics = bool(channel)
        self.shared = min(len(student.stages), len(teacher.stages))
        pairs = zip(student.stages[-self.shared :], teacher.stages[-self.shared :], strict=True)
        # only with the channel part: DDP requires a gradient for every parameter
        self.carry = nn.ModuleList(nn.Linear(narrow, wide) for narrow, wide in pairs if channel)
        for i, wide in enumerate(teacher.stages[-self.shared :]):
            self.register_buffer(f"mean_{i}", torch.full((wide,), torch.nan))
            self.register_buffer(f"std_{i}", torch.full((wide,), torch.nan))

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Store mean and standard deviation of the teacher's channel descriptors over the training set."""
        for i in range(self.shared):
            self.get_buffer(f"mean_{i}").copy_(statistics.descriptor_mean[i - self.shared])
            self.get_buffer(f"std_{i}").copy_(floored_std(statistics.descriptor_std[i - self.shared]))

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
    """Return the squared distance of L2-normalised maps `[B, H, W]`, in 0..4, as a mean over the batch.

    Maps of different size are first averaged down to the smaller height and width.

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
    """Return the mean squared distance of gates `[B, H, W]`, each standardised over its own map.

    A flat map is treated as zeros. Maps of different size are first averaged down to the smaller height and width.

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
    # the constant under the root keeps the gradient of a flat map finite
    return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()


def _same_size(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    height, width = min(ours.shape[1], theirs.shape[1]), min(ours.shape[2], theirs.shape[2])
    if ours.shape[1:] == theirs.shape[1:]:
        return ours, theirs
    return tuple(F.adaptive_avg_pool2d(m.unsqueeze(1), (height, width)).squeeze(1) for m in (ours, theirs))  # type: ignore[return-value]
