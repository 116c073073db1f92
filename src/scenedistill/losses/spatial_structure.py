"""L_SS, the spatial-structure distillation loss: the student learns the teacher's relations between images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.losses.base import DistillationLoss, TeacherStatistics, require
from scenedistill.models.norm import BatchNorm
from scenedistill.models.output import FeatureDims, SceneOutput

#: Maximum number of points of the bank. A larger training set contributes its first images only.
BANK = 16384


class SpatialStructureLoss(DistillationLoss):
    """Spatial-structure distillation: match the relations between the embeddings of different images.

    The loss has two parts:

    - anchored: a head p (the SS module, discarded after training) projects the student's embedding u_i to the teacher's
      space. There it must have the same similarities to the points b_j as the teacher's embedding t_i:
      `relation * KL(softmax(t_i . b_j / tau) || softmax(p(u_i) . b_j / tau)) + cosine * (1 - cos(p(u_i), t_i))`. The
      points b_j are the teacher embeddings of all training images except image i, which would take nearly all of the
      softmax. The KL term is the objective of SEED (Fang et al., ICLR 2021) with the training set in place of the
      queue. Teacher embeddings are centred with their mean over the training set and L2-normalised.
    - inner: Huber loss of the pairwise distances, divided by their mean in each network, and of the angles of all
      triples (Park et al., CVPR 2019).

    Li, Nan and Liu (2023) state that the loss compares the sets Tb and Sb of a batch's features; the terms are ours.

    The anchored part needs the teacher's statistics (`prepare`) and raises an error without them. If the embeddings
    were centred with the mean of the batch, the target of an image would depend on the other images of the batch, and a
    batch of one would have no target. The inner part needs no statistics. The bank of all training images is used only
    if the teacher's output holds the positions of its images in the training set (`SceneOutput.rows`), which are needed
    to exclude image i. Otherwise the points are the teacher embeddings of the batch.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        cosine: weight of `1 - cos`.
        relation: weight of the KL divergence.
        distance: weight of the pairwise distances.
        angle: weight of the angles.
        temperature: tau, > 0.
        bank: 1 takes the points b_j from the training set if the statistics hold its embeddings and the teacher's
            output its rows; 0 always takes them from the batch.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.spatial_structure import SpatialStructureLoss
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), attention=())
        >>> teacher = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), attention=())
        >>> loss = SpatialStructureLoss(dims, dims, cosine=0.0, relation=0.0, distance=1.0)
        >>> loss(student, teacher, labels=torch.tensor([0, 1, 2]))
        tensor(0.1127)
    """

    relational = True
    centre: Tensor
    points: Tensor

    def __init__(
        self,
        student: FeatureDims,
        teacher: FeatureDims,
        *,
        cosine: float = 5.0,
        relation: float = 2.0,
        distance: float = 0.0,
        angle: float = 0.0,
        temperature: float = 0.1,
        bank: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.cosine, self.relation, self.distance, self.angle = cosine, relation, distance, angle
        require(0, cosine=cosine, relation=relation, distance=distance, angle=angle)
        require(0, above=True, temperature=temperature)
        self.temperature, self.bank = temperature, bank
        self.needs_statistics = bool(cosine or relation)
        width = teacher.embedding
        self.head = nn.Sequential()
        if cosine or relation:  # only with the anchored part: DDP requires a gradient for every parameter
            self.head.extend(
                (
                    nn.Linear(student.embedding, width, bias=False),
                    BatchNorm(width),
                    nn.ReLU(),
                    nn.Linear(width, width),
                )
            )
        self.register_buffer("centre", torch.full((width,), torch.nan))
        self.register_buffer("points", torch.zeros(0, width), persistent=False)

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Store the mean and, for the bank, the embeddings of the teacher over the training set."""
        self.centre.copy_(statistics.embedding_mean)
        if self.bank and len(statistics.embeddings):
            self.points = F.normalize(statistics.embeddings[:BANK].to(self.centre) - self.centre, dim=1)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        total = student.logits.new_zeros(())
        if self.cosine or self.relation:
            target = F.normalize(teacher.embedding - self.centre, dim=1)
            carried = F.normalize(self.head(student.embedding), dim=1)
            total = total + self.cosine * (1 - (carried * target).sum(1)).mean()
            if self.relation:
                points, own = target, torch.arange(len(target), device=target.device)
                if len(self.points) and teacher.rows:
                    points, own = self.points, teacher.rows[0]
                total = total + self.relation * relation_divergence(carried, target, points, own, self.temperature)
        if self.distance:
            total = total + self.distance * distance_structure(student.embedding, teacher.embedding)
        if self.angle:
            total = total + self.angle * angle_structure(student.embedding, teacher.embedding)
        return total


def relation_divergence(ours: Tensor, theirs: Tensor, points: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Return `KL(softmax(t_i . b_j / tau) || softmax(s_i . b_j / tau))` over the points j, as a mean over the images i.

    The point of the image itself is left out. With fewer than 3 points the divergence is 0.

    Args:
        ours: unit vectors s of the student, `[B, D]`.
        theirs: unit vectors t of the teacher, `[B, D]`.
        points: unit vectors b, `[M, D]`.
        own: index of each image's own point in `points`, int64 `[B]`; M or more if it is not among them.
        temperature: tau, > 0.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.spatial_structure import relation_divergence
        >>> points = torch.eye(3)
        >>> own = torch.arange(3)
        >>> relation_divergence(points, points, points, own, temperature=0.1)
        tensor(0.)
        >>> relation_divergence(points.flip(0), points, points, own, temperature=0.1)
        tensor(2.8713)
    """
    if len(points) < 3:  # a softmax over the single other point is constant
        return ours.sum() * 0
    itself = own[:, None] == torch.arange(len(points), device=own.device)
    scores = (side @ points.T / temperature for side in (theirs, ours))
    teacher, student = (F.log_softmax(score.masked_fill(itself, -1e4), dim=1) for score in scores)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def distance_structure(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the Huber loss of all pairwise distances of `[B, D_s]` and `[B, D_t]`, divided by their mean in each set.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.spatial_structure import distance_structure
        >>> points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> distance_structure(points, 10 * points)
        tensor(0.)
        >>> distance_structure(points, torch.tensor([[0.0], [1.0], [2.0]]))
        tensor(0.0833)
    """
    if len(ours) < 2:
        return ours.sum() * 0
    return F.smooth_l1_loss(_distances(ours), _distances(theirs))


def angle_structure(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the Huber loss of the cosines of the angles of all triples of points in `[B, D_s]` and `[B, D_t]`.

    The mean is over all `B^3` triples. As in the authors' code, a triple whose vertex is also one of the other two
    points counts as 0.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.spatial_structure import angle_structure
        >>> points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> turned = points @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> angle_structure(points, turned)
        tensor(0.)
        >>> angle_structure(points, torch.tensor([[0.0], [1.0], [2.0]]))
        tensor(0.1200)
    """
    if len(ours) < 3:
        return ours.sum() * 0
    return F.smooth_l1_loss(_angles(ours), _angles(theirs))


def _distances(points: Tensor) -> Tensor:
    """Return all `B * (B - 1) / 2` distances divided by their mean; duplicates give 0 with a finite gradient."""
    products = points @ points.T
    squares = products.diagonal()
    squared = (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0)
    upper = torch.triu_indices(len(points), len(points), 1, device=points.device)
    distances = (squared[upper[0], upper[1]] + 1e-12).sqrt()
    return distances / distances.mean().clamp(min=1e-6)


def _angles(points: Tensor) -> Tensor:
    """Return cosines `[B, B, B]` of the angles at the first point between the other two; 0 if one is the first."""
    # from differences: a float32 Gram matrix would give nonzero vectors from a point to itself by rounding
    towards = F.normalize(points[None] - points[:, None], dim=2, eps=1e-6)  # [B, B, D], from the first to the second
    return towards @ towards.transpose(1, 2)
