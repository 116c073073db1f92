"""Losses that compare how the images of a batch lie to each other in student and teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.losses.base import DistillationLoss, TeacherStatistics, require
from scenedistill.losses.spatial_structure import angle_structure, distance_structure
from scenedistill.models.output import FeatureDims, SceneOutput


class SimilarityPreserving(DistillationLoss):
    """SP, similarity-preserving distillation of Tung and Mori (ICCV 2019), L_SP.

    Mean over all pairs of images of the squared difference of the two networks' similarities: dot products of the last
    stage's feature maps, each image's row of them divided by its length. Weight 3000, as in the paper.

    Traps: the matrix is `B x B` and its entries shrink as `1 / sqrt(B)`, so the 3000 goes with batches of about 64.
    Features behind a ReLU are never negative: all similarities are near each other, and differences small. The
    teacher's maps are too large to be kept, so it is asked in every step, about fresh views; `sp_pooled` does without.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.relations import SimilarityPreserving
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> narrow, wide = FeatureDims(3, 4, stages=(2, 4)), FeatureDims(3, 8, stages=(4, 8))
        >>> maps = torch.rand(2, 2, 8, 8), torch.rand(2, 4, 4, 4)
        >>> student = SceneOutput(torch.rand(2, 3), torch.rand(2, 4), attention=(), features=maps)
        >>> maps = torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)
        >>> teacher = SceneOutput(torch.rand(2, 3), torch.rand(2, 8), attention=(), features=maps)
        >>> loss = SimilarityPreserving(narrow, wide)
        >>> loss(student, teacher, labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    relational = True
    needs_features = True

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        return F.mse_loss(_similarity(self._rows(student)), _similarity(self._rows(teacher)))

    def _rows(self, output: SceneOutput) -> Tensor:
        """An image a row."""
        return output.features[-1].flatten(1)


class PooledSimilarity(SimilarityPreserving):
    """The same of the pooled last features, without their positions: what it needs of the teacher is kept.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.relations import PooledSimilarity
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), attention=())
        >>> teacher = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), attention=())
        >>> loss = PooledSimilarity(dims, dims)
        >>> loss(student, teacher, labels=torch.tensor([0, 1, 2]))
        tensor(0.2744)
    """

    needs_features = False

    def _rows(self, output: SceneOutput) -> Tensor:
        return output.embedding


class CorrelationCongruence(DistillationLoss):
    """CC, correlation congruence of Peng et al. (ICCV 2019), L_CC with the Gaussian kernel.

    Mean over all pairs of images of the squared difference of the two networks' kernels. The kernel is the Taylor
    series of `exp(-gamma |x - y|^2)` for features of unit length, the sum over p up to P of
    `exp(-2 gamma) (2 gamma x.y)^p / p!`.

    What differs from the paper: its features go through a linear layer to a common width, the teacher's too; kernels
    compare without one, and a teacher's layer that trains could fit itself to the student. Its way of drawing batches
    (several images of each class) is not part of the loss.
    Traps: the series is a Gaussian only for unit vectors, which reimplementations leave out, or they take another loss
    altogether; the weights in use (0.02, 0.003) go with those. The values here are a few hundredths, and the weight of
    `METHODS` is ours.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        gamma: > 0, the inverse squared width of the Gaussian.
        order: P, the highest power of the series, >= 1.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.relations import CorrelationCongruence
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), attention=())
        >>> teacher = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), attention=())
        >>> loss = CorrelationCongruence(dims, dims)
        >>> loss(student, teacher, labels=torch.tensor([0, 1, 2]))
        tensor(0.1035)
    """

    relational = True

    def __init__(self, student: FeatureDims, teacher: FeatureDims, *, gamma: float = 0.4, order: float = 2) -> None:
        super().__init__(student, teacher)
        require(0, above=True, gamma=gamma)
        require(1, order=order)
        self.gamma, self.order = gamma, int(order)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        return F.mse_loss(self._kernel(student.embedding), self._kernel(teacher.embedding))

    def _kernel(self, embedding: Tensor) -> Tensor:
        unit = F.normalize(embedding, dim=1, eps=1e-6)
        cosine = unit @ unit.T
        series = (cosine**p * ((2 * self.gamma) ** p / math.factorial(p)) for p in range(self.order + 1))
        return math.exp(-2 * self.gamma) * torch.stack(list(series)).sum(0)


class RelationalKnowledge(DistillationLoss):
    """RKD, relational knowledge distillation of Park, Kim, Lu and Cho (CVPR 2019), L_RKD-D and L_RKD-A.

    Huber loss of all pairwise distances, each set divided by its mean, and of the cosines of the angles of all triples.
    The weights 25 and 50 are those of the authors' classification code; for metric learning they take 1 and 2.

    Traps: the distances are averaged over the `B (B - 1) / 2` pairs of different images, the authors' code also counts
    each image's zero distance to itself, which makes its loss smaller by `(B - 1) / B`. That code gives the features
    unit length first and the field's common codebases do not, nor is it done here. The angles take `B^2 D` numbers
    and `B^3` cosines.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        distance: weight of the distances.
        angle: weight of the angles.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.relations import RelationalKnowledge
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), attention=())
        >>> teacher = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), attention=())
        >>> loss = RelationalKnowledge(dims, dims, distance=1.0, angle=2.0)
        >>> loss(student, teacher, labels=torch.tensor([0, 1, 2]))
        tensor(0.3174)
    """

    relational = True

    def __init__(
        self, student: FeatureDims, teacher: FeatureDims, *, distance: float = 25.0, angle: float = 50.0
    ) -> None:
        super().__init__(student, teacher)
        self.distance, self.angle = distance, angle

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        total = student.logits.new_zeros(())
        if self.distance:
            total = total + self.distance * distance_structure(student.embedding, teacher.embedding)
        if self.angle:
            total = total + self.angle * angle_structure(student.embedding, teacher.embedding)
        return total


class ProbabilisticTransfer(DistillationLoss):
    """PKT, probabilistic knowledge transfer of Passalis and Tefas (ECCV 2018), equation 8 with the cosine kernel.

    Each image's similarities to all images of the batch, `(cos + 1) / 2`, divided by their sum, are a distribution.
    The loss is the mean over all `B^2` pairs of `p_t log(p_t / p_s)`. Weight 30000, as in the field's common codebases.

    Traps: the mean over pairs, as in the authors' code, makes the value shrink as `1 / B^2`, so the 30000 goes with
    batches of about 64. The image itself is among its own neighbours.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.relations import ProbabilisticTransfer
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), attention=())
        >>> teacher = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), attention=())
        >>> loss = ProbabilisticTransfer(dims, dims)
        >>> loss(student, teacher, labels=torch.tensor([0, 1, 2]))
        tensor(0.0284)
    """

    relational = True

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        ours, theirs = _neighbours(student.embedding), _neighbours(teacher.embedding)
        return (theirs * (theirs / ours).log()).mean()


class ContrastiveRepresentation(DistillationLoss):
    """CRD, contrastive representation distillation of Tian, Krishnan and Isola (ICLR 2020).

    Both embeddings are carried by a linear layer each (trained, and thrown away after training) to unit vectors of a
    common width. Each image's student vector must be nearer to its own teacher vector than to those of the images of
    other classes, and the other way round: the cross-entropy of "which one is mine", summed over both directions.

    The negatives of a student vector are the teacher vectors of all training images, if the teacher's statistics hold
    their embeddings and labels (`prepare`) and the teacher's output holds its `rows`. Otherwise, and for a teacher
    vector, the negatives are the other images of the batch.

    What differs from the paper: it contrasts with 16384 images drawn from two memories of the training set, of slowly
    updated vectors, by noise-contrastive estimation. Here the teacher's embeddings are exact and carried by the current
    layer, there is no memory of student vectors, and the estimator is InfoNCE (van den Oord et al. 2018), which needs
    no constant. As in the paper, images of the same class are no negatives, temperature and width are 0.07 and 128,
    and the weight is 0.8.
    Traps: without the training images it needs large batches of many classes, and a batch of one class teaches nothing.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        temperature: tau, > 0.
        width: of the common space, >= 1.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.relations import ContrastiveRepresentation
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), attention=())
        >>> teacher = SceneOutput(torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), attention=())
        >>> loss = ContrastiveRepresentation(dims, dims)
        >>> loss(student, teacher, labels=torch.tensor([0, 1, 2])).shape
        torch.Size([])
    """

    relational = True
    needs_labels = True
    bank: Tensor
    bank_labels: Tensor

    def __init__(
        self, student: FeatureDims, teacher: FeatureDims, *, temperature: float = 0.07, width: float = 128
    ) -> None:
        super().__init__(student, teacher)
        require(0, above=True, temperature=temperature)
        require(1, width=width)
        self.temperature = temperature
        self.student_head = nn.Linear(student.embedding, int(width))
        self.teacher_head = nn.Linear(teacher.embedding, int(width))
        self.register_buffer("bank", torch.zeros(0, teacher.embedding), persistent=False)
        self.register_buffer("bank_labels", torch.zeros(0, dtype=torch.int64), persistent=False)

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Take the teacher's embeddings of the training images with their labels."""
        if len(statistics.embeddings) == len(statistics.labels) > 0:
            self.bank = statistics.embeddings.to(self.teacher_head.weight)
            self.bank_labels = statistics.labels.to(self.teacher_head.weight.device)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        ours = F.normalize(self.student_head(student.embedding), dim=1, eps=1e-6)
        theirs = F.normalize(self.teacher_head(teacher.embedding), dim=1, eps=1e-6)
        others, other_labels = theirs, labels
        if len(self.bank) and teacher.rows:
            others = F.normalize(self.teacher_head(self.bank), dim=1, eps=1e-6)
            other_labels = self.bank_labels
        return self._told_apart(ours, theirs, others, labels, other_labels) + self._told_apart(
            theirs, ours, ours, labels, labels
        )

    def _told_apart(self, anchors: Tensor, own: Tensor, others: Tensor, labels: Tensor, other_labels: Tensor) -> Tensor:
        """Cross-entropy of finding each anchor's own vector among the others of another class."""
        positive = (anchors * own).sum(1, keepdim=True)
        same = labels[:, None] == other_labels[None, :]  # no negatives, and the own one is there already
        negatives = (anchors @ others.T).masked_fill(same, -math.inf)
        scores = torch.cat((positive, negatives), dim=1) / self.temperature
        return F.cross_entropy(scores, torch.zeros(len(labels), dtype=torch.int64, device=labels.device))


def _similarity(embedding: Tensor) -> Tensor:
    """Dot products `[B, B]`, each row of unit length."""
    return F.normalize(embedding @ embedding.T, dim=1)


def _neighbours(embedding: Tensor) -> Tensor:
    """Probabilities `[B, B]` of each image's neighbours, above 0."""
    unit = F.normalize(embedding, dim=1, eps=1e-6)
    similarity = (unit @ unit.T + 1).clamp(min=0) / 2 + 1e-6
    return similarity / similarity.sum(1, keepdim=True)
