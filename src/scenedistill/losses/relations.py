"""Losses that compare the relations between the images of a batch in student and teacher."""

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

    Mean squared difference of the similarity matrices `[B, B]` of the two networks: dot products of the flattened
    feature maps of the last stage, with L2-normalised rows. The weight of 3000 is that of the paper.

    Caveats: the entries of the matrix shrink as `1 / sqrt(B)`, so the weight of 3000 suits batches of about 64. Because
    features after a ReLU are never negative, all similarities are close to each other and their differences are small.
    The teacher's maps are too large to store, so the teacher runs in every step on fresh views; `sp_pooled` uses stored
    outputs.

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
        """Return the features as one row per image, `[B, N]`."""
        return output.features[-1].flatten(1)


class PooledSimilarity(SimilarityPreserving):
    """Similarity-preserving distillation on the embeddings instead of the feature maps.

    It ignores positions in the image. The teacher's embeddings are stored, so the teacher need not run in every step.

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

    Mean squared difference of the kernel matrices `[B, B]` of the two networks. The kernel is the Taylor series of
    `exp(-gamma |x - y|^2)` for features of unit length: the sum of `exp(-2 gamma) (2 gamma x.y)^p / p!` for p = 0..P.

    Differences from the paper: the paper projects the features of both networks to a common width by linear layers.
    Kernels need no common width, and a trained layer on the teacher could adapt to the student. The paper's batches of
    several images per class are not part of the loss.

    Caveats: the series approximates a Gaussian for unit vectors only. Other implementations omit the normalisation or
    use a different loss, and the common weights (0.02, 0.003) belong to these. The values here are a few hundredths;
    the weight is ours.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        gamma: inverse squared width of the Gaussian, > 0.
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

    Huber loss of all pairwise distances, divided by their mean in each network, and of the cosines of the angles of all
    triples. The weights 25 and 50 are those of the authors' classification code; for metric learning the authors use 1
    and 2.

    Caveats: the mean is over the `B (B - 1) / 2` pairs of different images. The authors' code includes the distance of
    each image to itself, 0, which makes its distance loss smaller by a factor of `(B - 1) / B`. It also L2-normalises
    the features; this class, like widely used codebases, does not. The angles need memory for `B^2 D + B^3` values.

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
        require(0, distance=distance, angle=angle)
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

    The similarities `(cos + 1) / 2` of an image to all images of the batch, divided by their sum, form a probability
    distribution. The loss is the mean of `p_t log(p_t / p_s)` over all `B^2` pairs. The weight of 30000 is that of
    widely used codebases.

    Caveats: because of the mean over pairs, as in the authors' code, the value shrinks as `1 / B^2`, so the weight of
    30000 suits batches of about 64. Each image is one of its own neighbours.

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

    Linear layers, discarded after training, project the embeddings of both networks to unit vectors of a common width.
    The student vector of an image must be more similar to the teacher vector of the same image (positive) than to those
    of images of other classes (negatives), and vice versa. The loss is the cross-entropy of selecting the positive,
    summed over both directions.

    The negatives of a student vector are the teacher vectors of all training images of other classes if the teacher's
    statistics hold embeddings and labels (`prepare`) and the teacher's output holds its `rows`. Otherwise, and for a
    teacher vector, the negatives come from the batch.

    Differences from the paper: the paper draws 16384 negatives from two memories of slowly updated vectors of the
    training set and uses noise-contrastive estimation. Here the teacher's embeddings are exact and projected by the
    current layer, there is no memory of student vectors, and the estimator is InfoNCE (van den Oord et al. 2018), which
    needs no normalisation constant. As in the paper, images of the same class are not negatives, and temperature, width
    and weight are 0.07, 128 and 0.8.

    Caveats: without the embeddings of the training images, the loss needs large batches of many classes; a batch of one
    class gives no gradient.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        temperature: tau, > 0.
        width: width of the common space, >= 1.

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
        """Store the teacher's embeddings and the labels of the training images, if the statistics hold both."""
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
        student_loss = self._contrast(ours, theirs, others, labels, other_labels)
        return student_loss + self._contrast(theirs, ours, ours, labels, labels)

    def _contrast(self, anchors: Tensor, own: Tensor, others: Tensor, labels: Tensor, other_labels: Tensor) -> Tensor:
        """Return the cross-entropy of selecting each anchor's own vector among the vectors of other classes."""
        positive = (anchors * own).sum(1, keepdim=True)
        same = labels[:, None] == other_labels[None, :]  # excluded; these include the anchor's own vector
        negatives = (anchors @ others.T).masked_fill(same, -math.inf)
        scores = torch.cat((positive, negatives), dim=1) / self.temperature
        return F.cross_entropy(scores, torch.zeros(len(labels), dtype=torch.int64, device=labels.device))


def _similarity(embedding: Tensor) -> Tensor:
    """Return dot products `[B, B]` with L2-normalised rows."""
    return F.normalize(embedding @ embedding.T, dim=1)


def _neighbours(embedding: Tensor) -> Tensor:
    """Return positive similarities `[B, B]` whose rows sum to 1."""
    unit = F.normalize(embedding, dim=1, eps=1e-6)
    similarity = (unit @ unit.T + 1).clamp(min=0) / 2 + 1e-6
    return similarity / similarity.sum(1, keepdim=True)
