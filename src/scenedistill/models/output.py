"""What every network of the package returns for a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class StageAttention(NamedTuple):
    """Where one stage of a network looks.

    Attributes:
        channel: gate c of every channel, `[B, C_s]`, in 0..1; the feature is multiplied by 2 c. 1/2 everywhere when the
            network has no DA modules.
        spatial: gate of every position, `[B, 1, H_s, W_s]`, in 0..1.
        energy: mean over the channels of the squared stage feature, `[B, H_s, W_s]`, >= 0.
        descriptor: mean over the positions of the stage feature, `[B, C_s]`.
    """

    channel: Tensor
    spatial: Tensor
    energy: Tensor
    descriptor: Tensor


class SceneOutput(NamedTuple):
    """A network's view of a batch of B scenes.

    Attributes:
        logits: class scores before the softmax, `[B, K]`.
        embedding: pooled last feature, `[B, D]`.
        attention: one entry a stage, from the finest (stride 4) to the coarsest (stride 32).
        features: the whole feature map of each stage, `[B, C_s, H_s, W_s]`, finest first; empty unless asked for.
        rows: position of each image among the training images, as one int64 `[B]`; empty where it is not known.

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
        """The same output with `function(tensor) -> tensor` applied to every tensor in it."""
        apply = torch.utils._pytree.tree_map
        mapped: SceneOutput = apply(function, self)
        return mapped


class FeatureDims(NamedTuple):
    """The widths a loss needs to know of a network.

    Attributes:
        classes: number of scene classes K.
        embedding: width D of the embedding.
        stages: number of channels C_s of each stage, finest first.
    """

    classes: int
    embedding: int
    stages: tuple[int, ...]
