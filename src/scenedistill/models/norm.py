"""Batch norm that takes a batch of one value a channel."""

from __future__ import annotations

from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over `[B, C, H, W]`; goes by its running statistics where a batch has but one value a channel, which
    does not vary."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `[B, C, H, W]`."""
        if self.training and input.numel() == input.shape[1]:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)
