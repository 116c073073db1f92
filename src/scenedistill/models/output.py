"""The outputs of all networks of the package, and their widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class StageAttention(NamedTuple):
    """Attention of one stage of a network.

    Attributes:
        channel: channel gates c, `[B, C_s]`, in 0..1; the feature is multiplied by 2 c. They are 1/2 if the network has
            no DA modules.
        spatial: spatial gates m, `[B, 1, H_s, W_s]`, in 0..1; the feature is multiplied by 2 m.
        energy: mean over the channels of the squared gated feature, `[B, H_s, W_s]`, >= 0.
        descriptor: mean over the positions of the gated feature, `[B, C_s]`.
    """

    channel: Tensor
    spatial: Tensor
    energy: Tensor
    descriptor: Tensor


class SceneOutput(NamedTuple):
    """Output of a network for a batch of B images.

    Attributes:
        logits: class scores before the softmax, `[B, K]`.
        embedding: pooled last feature, `[B, D]`.
        attention: attention of each stage, from the finest (stride 4) to the coarsest (stride 32); empty unless
            requested.
        features: gated feature map of each stage, `[B, C_s, H_s, W_s]`, finest first; empty unless requested.
        rows: a tuple of one int64 tensor `[B]`, the index of each image among the training images; empty if unknown.

    Examples:
        >>> import torch
        >>> from scenedistill.models.output import SceneOutput
        >>> output = SceneOutput(logits=torch.zeros(2, 3), embedding=torch.zeros(2, 4), attention=())
        >>> output.map(torch.Tensor.double).logits.dtype
        torch.float64
    """

    logits: Tensor
    embedding: Tensor
    attention: tuple[StageAttention, ...]
    features: tuple[Tensor, ...] = ()
    rows: tuple[Tensor, ...] = ()

    def map(self, function: Callable[[Tensor], Tensor]) -> SceneOutput:
        """Return the output with `function(tensor) -> tensor` applied to every tensor in it."""
        apply = torch.utils._pytree.tree_map
        mapped: SceneOutput = apply(function, self)
        return mapped


class FeatureDims(NamedTuple):
    """Widths of a network's outputs.

    Attributes:
        classes: number of scene classes K.
        embedding: width D of the embedding.
        stages: number of channels C_s of each stage, finest first.
    """

    classes: int
    embedding: int
    stages: tuple[int, ...]
