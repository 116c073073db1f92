"""Standardisation of the teacher's features over the training set, so that one weight of a loss suits all teachers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scenedistill.losses.base import TeacherStatistics


class Standardisation(nn.Module):
    """Shift and scale the channels of features `[B, C]` or `[B, C, H, W]`; NaN until statistics are stored, so that
    `DistillationLoss.needs_statistics` notices.

    Args:
        channels: C.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((channels,), torch.nan))
        self.register_buffer("std", torch.full((channels,), torch.nan))

    def store_stage(self, statistics: TeacherStatistics, stage: int) -> None:
        """Store mean and deviation of the channel descriptor of a stage, for its descriptors and maps."""
        self.mean.copy_(statistics.descriptor_mean[stage])
        self.std.copy_(floored_std(statistics.descriptor_std[stage]))

    def store_embedding(self, statistics: TeacherStatistics) -> None:
        """Store mean and deviation of the embedding; a deviation of 1 without two stored embeddings."""
        self.mean.copy_(statistics.embedding_mean)
        several = len(statistics.embeddings) > 1
        self.std.copy_(floored_std(statistics.embeddings.std(0)) if several else torch.ones_like(self.std))

    def forward(self, features: Tensor) -> Tensor:
        """Return the features with each channel shifted and scaled."""
        shape = (-1, *(1,) * (features.ndim - 2))
        return (features - self.mean.view(shape)) / self.std.view(shape)


def floored_std(std: Tensor) -> Tensor:
    """Return standard deviations `[C]`, each at least a twentieth of their mean.

    Half of the channels of a fine-tuned teacher may be nearly constant. Divided by their own deviation, they would
    dominate a loss with noise.
    """
    return std.clamp(min=(0.05 * std.mean()).clamp(min=1e-6))
