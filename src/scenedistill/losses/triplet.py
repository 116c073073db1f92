"""The teacher's triplet loss on L2-normalised embeddings."""

from __future__ import annotations

from typing import Literal

import torch
from pytorch_metric_learning import miners
from torch import Tensor
from torch.nn import functional as F

Mining = Literal["hard", "semihard"]


def triplet_loss(embedding: Tensor, labels: Tensor, *, margin: float = 0.3, mining: Mining = "hard") -> Tensor:
    """Return the mean of `max(0, |a - p| - |a - n| + margin)` over the triplets mined from a batch.

    The three branches of the triplet Siamese framework (Li, Nan and Liu 2023, figure 3) share their weights, so one
    pass over a batch of P classes x K images computes all of them. `hard` mining takes, for each anchor, the farthest
    positive and the nearest negative (Hermans et al. 2017). `semihard` mining takes every negative that is farther than
    the positive but within the margin (Schroff et al., CVPR 2015). A batch without triplets gives a loss of 0.

    Args:
        embedding: embeddings of any scale, `[B, D]`.
        labels: class indices, int64 `[B]`.
        margin: minimum difference of the two distances between unit vectors, 0..2.
        mining: `hard` or `semihard`.

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
        # embedding() picks rows as [] does, but the gradient of [] is summed in no fixed order on several CPU threads
        anchors, positives, negatives = (F.embedding(rows, unit) for rows in (anchor, positive, negative))
        # torch's distance adds a small constant to each difference, which keeps the gradient of duplicates finite
        return F.triplet_margin_loss(anchors, positives, negatives, margin=margin)
