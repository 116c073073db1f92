"""Losses that compare the logits of student and teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from scenedistill.losses.base import DistillationLoss, require, warm_up
from scenedistill.models.output import FeatureDims, SceneOutput


class SoftLogits(DistillationLoss):
    """Knowledge distillation of Hinton, Vinyals and Dean (2015, arXiv 1503.02531), equation 1 and section 2.

    `T^2 KL(softmax(t / T) || softmax(s / T))`, mean over the batch. The factor keeps the size of the gradient when the
    temperature changes. Caveat: `F.kl_div` with its default reduction also divides by the number of classes.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        temperature: T, > 0.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.logits import SoftLogits
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 2), attention=())
        >>> teacher = SceneOutput(torch.tensor([[3.0, 2.0, 1.0]]), torch.zeros(1, 2), attention=())
        >>> loss = SoftLogits(dims, dims, temperature=1.0)
        >>> loss(student, teacher, labels=torch.tensor([0]))
        tensor(1.1504)
    """

    def __init__(self, student: FeatureDims, teacher: FeatureDims, *, temperature: float = 4.0) -> None:
        super().__init__(student, teacher)
        require(0, above=True, temperature=temperature)
        self.temperature = temperature

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        ours = F.log_softmax(student.logits / self.temperature, dim=1)
        theirs = F.log_softmax(teacher.logits / self.temperature, dim=1)
        return self.temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class Decoupled(DistillationLoss):
    """Decoupled knowledge distillation of Zhao, Cui, Song, Qiu and Liang (CVPR 2022), equation 7.

    `T^2 (target * TCKD + rest * NCKD)`: TCKD is the KL divergence of the binary distributions (target class, all other
    classes), NCKD the KL divergence of the softmax over the other classes alone. Plain distillation is the same loss
    with `rest` equal to the teacher's probability of all other classes, which is near 0 if the teacher is confident.

    The weight rises over the first twelfth of the training (`warm_up`), as in the authors' code.

    Caveats: the loss uses the labels, so it ignores mixed and unlabelled images. The best `rest` depends on the
    teacher: the authors use 2 to 8 on CIFAR-100, and 0.5 with T = 1 on ImageNet.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        temperature: T, > 0.
        target: alpha, weight of TCKD.
        rest: beta, weight of NCKD.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.logits import Decoupled
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 2), attention=())
        >>> teacher = SceneOutput(torch.tensor([[3.0, 2.0, 1.0]]), torch.zeros(1, 2), attention=())
        >>> loss = Decoupled(dims, dims, temperature=1.0, rest=1.0)
        >>> loss(student, teacher, labels=torch.tensor([0]))
        tensor(1.4578)
    """

    needs_labels = True

    def __init__(
        self,
        student: FeatureDims,
        teacher: FeatureDims,
        *,
        temperature: float = 4.0,
        target: float = 1.0,
        rest: float = 8.0,
    ) -> None:
        super().__init__(student, teacher)
        require(0, target=target, rest=rest)
        require(0, above=True, temperature=temperature)
        self.temperature, self.target, self.rest = temperature, target, rest

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        split_s, others_s = _decouple(student.logits / self.temperature, labels)
        split_t, others_t = _decouple(teacher.logits / self.temperature, labels)
        target = F.kl_div(split_s, split_t, reduction="batchmean", log_target=True)
        rest = F.kl_div(others_s, others_t, reduction="batchmean", log_target=True)
        return warm_up(self.progress) * self.temperature**2 * (self.target * target + self.rest * rest)


class StrongerTeacher(DistillationLoss):
    """DIST, distillation from a stronger teacher, of Huang, You, Wang, Qian and Xu (NeurIPS 2022), section 4.

    `T^2 (inter * (1 - r over the classes of each image) + intra * (1 - r over the images of each class))`, where r is
    Pearson's correlation of the two networks' probabilities, and each part is the mean over images or classes. The
    authors' ImageNet runs use a weight of 2 and T = 1. The default T here is that of `SoftLogits`, because the teacher
    of a small data set is more confident.

    Caveats: for a batch of one the second part is the constant 1, and in small batches it is noisy. If a class has
    nearly the same probability for every image, r is meaningless and its gradient explodes; rows that vary by less than
    a thousandth of their norm are therefore pulled to a correlation of 0.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        temperature: T, > 0.
        inter: beta, weight of the correlation over classes.
        intra: gamma, weight of the correlation over images.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.logits import StrongerTeacher
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 2), attention=())
        >>> teacher = SceneOutput(torch.tensor([[3.0, 2.0, 1.0]]), torch.zeros(1, 2), attention=())
        >>> loss = StrongerTeacher(dims, dims, temperature=1.0, intra=0.0)
        >>> loss(student, teacher, labels=torch.tensor([0]))
        tensor(1.8671)
    """

    relational = True

    def __init__(
        self,
        student: FeatureDims,
        teacher: FeatureDims,
        *,
        temperature: float = 4.0,
        inter: float = 1.0,
        intra: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        require(0, inter=inter, intra=intra)
        require(0, above=True, temperature=temperature)
        self.temperature, self.inter, self.intra = temperature, inter, intra

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        ours = F.softmax(student.logits / self.temperature, dim=1)
        theirs = F.softmax(teacher.logits / self.temperature, dim=1)
        inter = 1 - correlation(ours, theirs).mean()
        intra = 1 - correlation(ours.T, theirs.T).mean()
        return self.temperature**2 * (self.inter * inter + self.intra * intra)


class StandardisedLogits(SoftLogits):
    """Logit-standardised distillation of Sun, Ren, Li, Wang and Cao (CVPR 2024), algorithm 1.

    `T^2 KL(softmax(z(t) / T) || softmax(z(s) / T))`, mean over the batch, where z standardises the logits of each image
    to mean 0 and standard deviation 1. The student learns the order and the spacing of the logits, not their scale.

    Caveats: the deviation divides by the number of classes K, as in the paper; the authors' code divides by K - 1,
    which corresponds to a slightly higher T. The loss does not depend on the scale of the student's logits, so it must
    be combined with the cross-entropy. The authors' weights are 0.1 for the cross-entropy and 9 for this loss.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        temperature: T, the base temperature, > 0.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.logits import StandardisedLogits
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 2), attention=())
        >>> teacher = SceneOutput(torch.tensor([[3.0, 2.0, 1.0]]), torch.zeros(1, 2), attention=())
        >>> loss = StandardisedLogits(dims, dims)
        >>> loss(student, teacher, labels=torch.tensor([0]))
        tensor(1.8844)
    """

    def __init__(self, student: FeatureDims, teacher: FeatureDims, *, temperature: float = 2.0) -> None:
        super().__init__(student, teacher, temperature=temperature)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        ours, theirs = (output._replace(logits=_standardised(output.logits)) for output in (student, teacher))
        return super().compute(ours, theirs, labels)


def correlation(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return Pearson's correlation `[N]`, in -1..1, of the rows of two matrices `[N, M]`; flat rows give about 0.

    Examples:
        >>> import torch
        >>> from scenedistill.losses.logits import correlation
        >>> rows = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
        >>> correlation(rows, torch.tensor([[2.0, 4.0, 6.0], [3.0, 2.0, 1.0]])).round(decimals=3)
        tensor([ 1., -1.])
    """
    return (_direction(ours) * _direction(theirs)).sum(1)


def _direction(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    least = 1e-3 * torch.linalg.vector_norm(rows, dim=1, keepdim=True).detach()
    return centred / torch.maximum(length, least.clamp(min=1e-12))


def _decouple(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return log probabilities `[B, 2]` of the target class and of all others, and `[B, K - 1]` among the others."""
    label = labels[:, None]
    column = torch.arange(scores.shape[1] - 1, device=scores.device)
    others = scores.gather(1, column + (column >= label))  # all columns except the label's
    split = torch.cat((scores.gather(1, label), others.logsumexp(1, keepdim=True)), dim=1)
    return F.log_softmax(split, dim=1), F.log_softmax(others, dim=1)


def _standardised(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(1, keepdim=True)
    deviation = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / logits.shape[1] ** 0.5
    # the lower bound limits the gradient if all logits are nearly equal, as at the start of the training
    standardised: Tensor = centred / deviation.clamp(min=0.01)
    return standardised
