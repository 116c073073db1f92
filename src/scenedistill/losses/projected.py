"""Losses that carry the student's embedding into the teacher's space by a layer of their own and compare it there."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.losses.base import DistillationLoss, TeacherStatistics, require
from scenedistill.models.output import FeatureDims, SceneOutput

#: Teacher embeddings of training images that serve as SEED's queue, whose length in the paper this is.
QUEUE = 65_536


class ProjectorEnsemble(DistillationLoss):
    """PEFD, feature distillation with an ensemble of projectors, of Chen et al. (NeurIPS 2022), section 3.

    Mean over the batch of `1 - cos(g(s), t)`, where g is the mean of several linear layers with ReLU that start from
    different weights. The weight of `METHODS`, 25, and the three layers are the authors'.

    Traps: a teacher's embedding behind a ReLU is never negative, and so is g; a teacher with negative values, such as a
    transformer, cannot be reached. Their code divides by lengths that may be 0; a length of 0 gives a cosine of 0 here.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        projectors: number of layers, >= 1.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.projected import ProjectorEnsemble
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> narrow, wide = FeatureDims(3, 4, stages=()), FeatureDims(3, 8, stages=())
        >>> student = SceneOutput(torch.rand(2, 3), torch.rand(2, 4), attention=())
        >>> teacher = SceneOutput(torch.rand(2, 3), torch.rand(2, 8), attention=())
        >>> loss = ProjectorEnsemble(narrow, wide)
        >>> loss(student, teacher, labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    def __init__(self, student: FeatureDims, teacher: FeatureDims, *, projectors: float = 3) -> None:
        super().__init__(student, teacher)
        require(1, projectors=projectors)
        layers = (nn.Linear(student.embedding, teacher.embedding) for _ in range(int(projectors)))
        self.projectors = nn.ModuleList(layers)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        carried = torch.stack([projector(student.embedding).relu() for projector in self.projectors]).mean(0)
        cosine = F.cosine_similarity(carried, teacher.embedding, dim=1, eps=1e-6)
        return (1 - cosine).mean()


class OrthogonalProjection(DistillationLoss):
    """VkD, distillation through an orthogonal projection, of Miles, Elezi and Deng (CVPR 2024), sections 3.2 and 3.3.

    Mean squared difference of `P s` and the teacher's embedding with mean 0 and deviation 1 over its channels. P has
    orthonormal columns (rows where the student is the wider one), so that it can neither stretch the student's
    embedding nor fold it: what the loss learns goes into the student. Standardisation is the paper's choice for
    classification; for images that are generated it whitens.

    What differs from the paper: the embedding alone is compared, the weight of `METHODS` is ours.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.projected import OrthogonalProjection
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> narrow, wide = FeatureDims(3, 4, stages=()), FeatureDims(3, 8, stages=())
        >>> student = SceneOutput(torch.rand(2, 3), torch.rand(2, 4), attention=())
        >>> teacher = SceneOutput(torch.rand(2, 3), torch.rand(2, 8), attention=())
        >>> loss = OrthogonalProjection(narrow, wide)
        >>> loss(student, teacher, labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    def __init__(self, student: FeatureDims, teacher: FeatureDims) -> None:
        super().__init__(student, teacher)
        layer = nn.Linear(student.embedding, teacher.embedding, bias=False)
        self.projection = nn.utils.parametrizations.orthogonal(layer)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        target = F.layer_norm(teacher.embedding, (teacher.embedding.shape[1],))
        return F.mse_loss(self.projection(student.embedding), target)


class SelfSupervised(DistillationLoss):
    """SEED, self-supervised distillation of Fang et al. (ICLR 2021), equations 4 to 6.

    Cross-entropy of two softmax distributions over a queue of teacher embeddings: that of the teacher's cosines over
    its temperature, and that of the student's over its own. The image's own teacher embedding is the queue's first.

    What differs from the paper: the queue holds all training images instead of those of the last batches, except the
    image's own entry; the student is carried into the teacher's space by a two-layer perceptron, where the paper gives
    both networks a head of the same width; and the paper has no labels. Without the teacher's statistics, or where the
    teacher's output does not say its `rows`, the other images of the batch are the queue.

    Traps: at the paper's teacher temperature of 0.01 the own embedding has nearly all of the mass, so that the loss is
    close to InfoNCE; `SpatialStructureLoss` leaves the own embedding out.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        temperature: of the student, > 0.
        teacher_temperature: of the teacher, > 0.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.projected import SelfSupervised
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> narrow, wide = FeatureDims(3, 4, stages=()), FeatureDims(3, 8, stages=())
        >>> student = SceneOutput(torch.rand(2, 3), torch.rand(2, 4), attention=())
        >>> teacher = SceneOutput(torch.rand(2, 3), torch.rand(2, 8), attention=())
        >>> loss = SelfSupervised(narrow, wide)
        >>> loss(student, teacher, labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    relational = True
    queue: Tensor

    def __init__(
        self,
        student: FeatureDims,
        teacher: FeatureDims,
        *,
        temperature: float = 0.2,
        teacher_temperature: float = 0.01,
    ) -> None:
        super().__init__(student, teacher)
        require(0, above=True, temperature=temperature, teacher_temperature=teacher_temperature)
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        hidden = student.embedding
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, teacher.embedding))
        self.register_buffer("queue", torch.zeros(0, teacher.embedding), persistent=False)

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Take the teacher's embeddings of the training images."""
        if len(statistics.embeddings):
            first = next(self.head.parameters())
            self.queue = F.normalize(statistics.embeddings[:QUEUE].to(first), dim=1)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        ours = F.normalize(self.head(student.embedding), dim=1, eps=1e-6)
        theirs = F.normalize(teacher.embedding, dim=1, eps=1e-6)
        queue, own = theirs, torch.arange(len(theirs), device=theirs.device)
        if len(self.queue) and teacher.rows:
            queue, own = self.queue, teacher.rows[0]
        itself = own[:, None] == torch.arange(len(queue), device=own.device)

        def scores(side: Tensor, temperature: float) -> Tensor:
            """`[B, 1 + M]`, the own teacher embedding first."""
            others = (side @ queue.T).masked_fill(itself, -torch.inf)
            return torch.cat(((side * theirs).sum(1, keepdim=True), others), dim=1) / temperature

        return F.cross_entropy(
            scores(ours, self.temperature).clamp(min=-1e4), scores(theirs, self.teacher_temperature).softmax(1)
        )
