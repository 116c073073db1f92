"""Batch norm that accepts a training batch with one value per channel."""

from __future__ import annotations

from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over `[B, C, H, W]` or `[B, C]` that uses its running statistics for a training batch with one value
    per channel, because such a batch has no variance."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions, which is all that distinguishes torch's batch norms from each other."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `[B, C, H, W]` or `[B, C]`."""
        if self.training and input.numel() == input.shape[1]:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)
