"""The teacher's triplet loss on the L2-normalised embedding."""

from __future__ import annotations

from typing import Literal

import torch
from pytorch_metric_learning import miners
from torch import Tensor
from torch.nn import functional as F

Mining = Literal["hard", "semihard"]


def triplet_loss(embedding: Tensor, labels: Tensor, *, margin: float = 0.3, mining: Mining = "hard") -> Tensor:
    """Mean over the mined triplets of `max(0, |a - p| - |a - n| + margin)`.

    The three branches of the triplet Siamese frame (Li, Nan and Liu 2023, figure 3) share their weights, so one pass
    over a batch of P classes x K images holds all of them. Triplets are mined from the batch: for each anchor the
    farthest positive and the nearest negative (`hard`, Hermans et al. 2017), or every negative that is farther than the
    positive but within the margin (`semihard`, Schroff et al., CVPR 2015). Zero, with a gradient, where the batch holds
    no triplet.

    Args:
        embedding: `[B, D]`, any scale.
        labels: int64 `[B]`.
        margin: between the two distances of unit vectors, 0..2.
        mining: which triplets.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.triplet import triplet_loss
        >>> embedding = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> triplet_loss(embedding, torch.tensor([0, 0, 1, 1]))
        tensor(0.)
        >>> triplet_loss(embedding, torch.tensor([0, 1, 0, 1]))
        tensor(1.7142)
    """
    with torch.autocast(embedding.device.type, enabled=False):
        exact = embedding if embedding.dtype == torch.float64 else embedding.float()
        unit = F.normalize(exact, dim=1)
        miner = miners.BatchHardMiner() if mining == "hard" else miners.TripletMarginMiner(margin, "semihard")
        anchor, positive, negative = miner(unit.detach(), labels)
        if len(anchor) == 0:
            return unit.sum() * 0
        # torch's distance adds a small number to each difference, which keeps the gradient of duplicates finite
        return F.triplet_margin_loss(unit[anchor], unit[positive], unit[negative], margin=margin)
