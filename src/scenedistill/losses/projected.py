"""Losses that project the student's embedding to the teacher's space by learned layers and compare it there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.losses.base import DistillationLoss, TeacherStatistics, require
from scenedistill.models.output import FeatureDims, SceneOutput

#: Maximum number of teacher embeddings in SEED's queue: the queue length of the paper.
QUEUE = 65_536


class ProjectorEnsemble(DistillationLoss):
    """PEFD, feature distillation with an ensemble of projectors, of Chen et al. (NeurIPS 2022), section 3.

    Mean over the batch of `1 - cos(g(s), t)`, where g is the mean of several linear layers with ReLU that are
    initialised differently. The weight of 25 and the three layers are those of the authors.

    Caveats: g is never negative, as is an embedding after a ReLU, so it cannot match a teacher with negative values,
    such as a transformer. The authors' code divides by norms that may be 0; here a norm of 0 gives a cosine of 0.

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

    Mean squared difference of `P s` and the teacher's embedding, standardised to mean 0 and deviation 1 over its
    channels. P has orthonormal columns, or orthonormal rows if the student is wider. It cannot stretch the student's
    embedding, so the student itself must learn the teacher's structure. The paper standardises for classification and
    whitens for image generation.

    Differences from the authors' code: it uses the smooth L1 loss and adds soft logits; the weight here is ours.

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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the weights, as torch pickles no parametrised layer and several processes receive the loss so."""
        return _orthogonal_projection, (self.student_dims, self.teacher_dims, self.state_dict())

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        target = F.layer_norm(teacher.embedding, (teacher.embedding.shape[1],))
        return F.mse_loss(self.projection(student.embedding), target)


def _orthogonal_projection(
    student: FeatureDims, teacher: FeatureDims, state: dict[str, Tensor]
) -> OrthogonalProjection:
    with torch.random.fork_rng(devices=[]):
        loss = OrthogonalProjection(student, teacher).to(next(iter(state.values())).dtype)
    loss.load_state_dict(state)
    return loss


class TeacherQueue(DistillationLoss):
    """Base class of losses that compare with a queue: the teacher's embeddings of all training images.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.

    Attributes:
        queue: L2-normalised teacher embeddings, `[M, D_t]`; empty before `prepare`.
    """

    relational = True
    queue: Tensor

    def __init__(self, student: FeatureDims, teacher: FeatureDims) -> None:
        super().__init__(student, teacher)
        self.register_buffer("queue", torch.zeros(0, teacher.embedding), persistent=False)

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Store the teacher's embeddings of the training images, if the statistics hold them."""
        if len(statistics.embeddings):
            self.queue = F.normalize(statistics.embeddings[:QUEUE].to(self.queue), dim=1)


class SelfSupervised(TeacherQueue):
    """SEED, self-supervised distillation of Fang et al. (ICLR 2021), equations 4 to 6.

    Cross-entropy of two softmax distributions over a queue of teacher embeddings. The logits are the cosines of the
    teacher's (target) or the student's embedding to the queue, divided by the temperature of that network. The first
    entry of the queue is the teacher embedding of the image itself.

    Differences from the paper: the queue holds the other training images instead of those of the last batches. A
    two-layer perceptron projects the student to the teacher's space; the paper gives both networks a head of the same
    width. The paper uses no labels. Without the teacher's statistics, or if the teacher's output has no `rows`, the
    queue consists of the other images of the batch.

    Caveats: at the paper's teacher temperature of 0.01, the image's own embedding has nearly all of the probability, so
    the loss is close to InfoNCE; `SpatialStructureLoss` leaves this embedding out.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        temperature: temperature of the student, > 0.
        teacher_temperature: temperature of the teacher, > 0.

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

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        ours = F.normalize(self.head(student.embedding), dim=1, eps=1e-6)
        theirs = F.normalize(teacher.embedding, dim=1, eps=1e-6)
        queue, own = theirs, torch.arange(len(theirs), device=theirs.device)
        if len(self.queue) and teacher.rows:
            queue, own = self.queue, teacher.rows[0]
        itself = own[:, None] == torch.arange(len(queue), device=own.device)

        def scores(side: Tensor, temperature: float) -> Tensor:
            """Return logits `[B, 1 + M]`, those of the image's own teacher embedding first."""
            others = (side @ queue.T).masked_fill(itself, -torch.inf)
            return torch.cat(((side * theirs).sum(1, keepdim=True), others), dim=1) / temperature

        return F.cross_entropy(
            scores(ours, self.temperature).clamp(min=-1e4), scores(theirs, self.teacher_temperature).softmax(1)
        )
