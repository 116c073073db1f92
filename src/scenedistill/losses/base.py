"""The base class of all distillation losses, the teacher statistics that some of them need, and shared helpers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.models.output import FeatureDims, SceneOutput

if TYPE_CHECKING:  # it loads timm, which losses alone do not need
    from scenedistill.models.network import SceneNet


class TeacherStatistics(NamedTuple):
    """Statistics of a teacher's features over the training images, without augmentation.

    Attributes:
        embedding_mean: mean embedding, `[D_t]`.
        descriptor_mean: mean channel descriptor of each stage, `[C_s]`.
        descriptor_std: standard deviation of the channel descriptor of each stage, `[C_s]`.
        embeddings: embeddings of the N training images in their order, `[N, D_t]`; empty if they are not stored.
        labels: class indices of the same images, int64 `[N]`; empty if they are not known.
        head: weight `[K, D_t]` and bias `[K]` of the teacher's head; empty if it is not known.
    """

    embedding_mean: Tensor
    descriptor_mean: tuple[Tensor, ...]
    descriptor_std: tuple[Tensor, ...]
    embeddings: Tensor = torch.empty(0)
    labels: Tensor = torch.empty(0, dtype=torch.int64)
    head: tuple[Tensor, ...] = ()

    @classmethod
    def measure(cls, teacher: Callable[[Tensor], SceneOutput], loader: Iterable[Any]) -> TeacherStatistics:
        """Compute the statistics of a teacher in one pass over the training images.

        Args:
            teacher: a `SceneNet`, which is switched to eval mode and stays in it, or a `FrozenTeacher`.
            loader: batches of images `[B, bands, H, W]` as the teacher expects them: tensors, tuples or lists that
                begin with a tensor (a `DataLoader` of an `ImageFolder`), or mappings with the key `image` (torchgeo).
                The loader must not apply random transforms. If teacher outputs carry `rows`, it must keep the order of
                the training images.

        Returns:
            The statistics, without `labels`.

        Raises:
            UserError: the loader yields no batches, or batches of another kind.
        """
        if isinstance(teacher, nn.Module):
            teacher.eval()
            device = next(teacher.parameters()).device
        else:
            device = getattr(teacher, "device", torch.device("cpu"))
        with torch.no_grad():
            found = cls.of(teacher(_images(batch).to(device)) for batch in loader)
        head = getattr(teacher, "head", None)
        return found._replace(head=head_tensors(head)) if isinstance(head, nn.Linear) else found

    @classmethod
    def of(cls, outputs: Iterable[SceneOutput]) -> TeacherStatistics:
        """Compute the statistics from a teacher's outputs for all training images, one output per batch.

        Raises:
            UserError: there are no outputs.
        """
        rows = [(o.embedding.float(), *(stage.descriptor.float() for stage in o.attention)) for o in outputs]
        if not rows:
            raise UserError("The teacher's statistics need training images, and the loader gave no batch.")
        embedding, *descriptors = (torch.cat(column).cpu() for column in zip(*rows, strict=True))
        return cls(
            embedding.mean(0),
            tuple(d.mean(0) for d in descriptors),
            tuple(d.std(0) if len(d) > 1 else torch.ones_like(d[0]) for d in descriptors),
            embedding.half().float(),  # rounded as in the files of stored outputs
        )


class DistillationLoss(nn.Module):
    """Base class of losses that compare a student's output with its teacher's output.

    Subclasses implement `compute`. Parameters of a loss (adapters from the student's width to the teacher's width) are
    trained with the student and discarded after training.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.

    Raises:
        UserError: the loss compares stages and one of the networks has none.
    """

    #: True if the loss compares the images of a batch with each other. Distributed training then passes it the batch of
    #: all processes.
    relational: ClassVar[bool] = False
    #: False if the loss uses only the student's output and the labels.
    needs_teacher: ClassVar[bool] = True
    #: True if the loss uses the labels. The training then passes it labelled images only.
    needs_labels: ClassVar[bool] = False
    #: True if the loss uses the attention of the stages, which networks return only on request.
    needs_attention: ClassVar[bool] = False
    #: True if the loss uses the feature maps of the stages. They are never stored: the teacher runs in every step.
    needs_features: ClassVar[bool] = False
    #: True if the loss needs the teacher's statistics. Its buffers are then NaN until `prepare` fills them, and calling
    #: it before that raises an error.
    needs_statistics: bool = False
    #: Share of the training completed at the end of the current epoch, in (0, 1]; the weight of some losses uses it.
    #: The training sets it; in a loop that does not, it stays 1.
    progress: float = 1.0

    def __init__(self, student: FeatureDims, teacher: FeatureDims) -> None:
        super().__init__()
        self.student_dims = student
        self.teacher_dims = teacher
        self._prepared = False  # caches the check of the buffers, which would synchronise a GPU in every step
        if self.needs_attention or self.needs_features:
            for who, dims in (("student", student), ("teacher", teacher)):
                if not dims.stages:
                    raise UserError(
                        f"{type(self).__name__} compares stages, and the {who} has none. Name the submodules whose "
                        "outputs are its stages: SceneNet.wrap(module, stages=[...])."
                    )

    def forward(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """Compute the loss of a batch in float32 (float64 inputs stay float64), regardless of autocast.

        Args:
            student: the student's output for a batch of B images; gradients flow into it.
            teacher: the teacher's output for the same B views; no gradients flow into it.
            labels: class indices, int64 `[B]`.

        Returns:
            A scalar.

        Raises:
            UserError: an output lacks attention or feature maps that the loss uses, or the teacher's statistics are
                missing.
        """
        self._check_output("student", student)
        self._check_output("teacher", teacher)
        if self.needs_statistics and not self._prepared:
            self._check_prepared()
        with torch.autocast(student.logits.device.type, enabled=False):
            if not self.needs_features:  # avoids a needless float32 copy of large maps
                student, teacher = student._replace(features=()), teacher._replace(features=())
            return self.compute(student.map(_exact), teacher.map(_constant), labels)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """Compute the loss from float32 (or float64) tensors; the arguments are those of `forward`."""
        raise NotImplementedError(f"{type(self).__name__} has no compute()")

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Store the statistics of the teacher that the loss needs; called before the first step."""

    def after_step(self, student: SceneNet) -> None:
        """Change the student after an optimiser step; most losses do nothing.

        Args:
            student: the student whose outputs the loss is computed on.
        """

    def _check_output(self, who: str, output: SceneOutput) -> None:
        for name, needed in (("attention", self.needs_attention), ("features", self.needs_features)):
            if needed and not getattr(output, name):
                raise UserError(
                    f"{type(self).__name__} compares the {name} of the stages, which the {who}'s output does not hold. "
                    f"Call the network with {name}=True."
                )

    def _check_prepared(self) -> None:
        if any(bool(buffer.isnan().any()) for buffer in self.buffers()):
            raise UserError(
                f"{type(self).__name__} has no statistics of its teacher. Before the first step, call "
                "loss.prepare(TeacherStatistics.measure(teacher, loader))."
            )
        self._prepared = True


class CrossEntropy(DistillationLoss):
    """Cross-entropy of the student's logits with the labels: the classification term of the paper's equation (15).

    Examples:
        >>> import torch
        >>> from scenedistill.losses.base import CrossEntropy
        >>> from scenedistill.models.output import FeatureDims, SceneOutput
        >>> dims = FeatureDims(classes=3, embedding=2, stages=())
        >>> student = SceneOutput(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 2), attention=())
        >>> teacher = SceneOutput(torch.tensor([[3.0, 2.0, 1.0]]), torch.zeros(1, 2), attention=())
        >>> loss = CrossEntropy(dims, dims)
        >>> loss(student, teacher, labels=torch.tensor([2]))
        tensor(0.4076)
    """

    needs_teacher = False
    needs_labels = True

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`."""
        return nn.functional.cross_entropy(student.logits, labels)


def warm_up(progress: float) -> float:
    """Return a factor for the weight of a loss, in (0, 1].

    The factor rises linearly over the first twelfth of the training (20 of 240 epochs in the authors' code) and stays 1
    afterwards.

    Args:
        progress: completed share of the training, in (0, 1].

    Examples:
        >>> from scenedistill.losses.base import warm_up
        >>> [round(warm_up(epoch / 24), 2) for epoch in (1, 2, 3, 24)]
        [0.5, 1.0, 1.0, 1.0]
    """
    return min(1.0, 12 * progress)


def head_tensors(head: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return copies of weight `[K, D]` and bias `[K]` of a head, float32 on the CPU; a missing bias is zeros."""
    weight = head.weight.detach().float().cpu().clone()
    bias = torch.zeros(len(weight)) if head.bias is None else head.bias.detach().float().cpu().clone()
    return weight, bias


def require(least: float, *, above: bool = False, **options: float) -> None:
    """Check that the options of a loss are finite and at least `least`, or greater than `least` if `above` is set.

    Raises:
        ValueError: an option is out of range.
    """
    for name, value in options.items():
        if not (least < value if above else least <= value) or math.isinf(value):
            raise ValueError(
                f"{name} is {value:g}; expected {f'more than {least:g}' if above else f'{least:g} or more'}"
            )


def _images(batch: Any) -> Tensor:
    """Return the images `[B, bands, H, W]` of a loader's batch."""
    found = batch
    if isinstance(batch, Mapping):
        found = batch.get("image")
    elif isinstance(batch, Sequence) and batch:
        found = batch[0]
    if not isinstance(found, Tensor) or found.ndim != 4:
        raise UserError(
            f"A batch of the loader is a {type(batch).__name__} without images; expected a tensor [B, bands, H, W], a "
            "tuple that begins with one, or a mapping with one under 'image'."
        )
    return found


def _exact(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float64, torch.int64) else tensor.float()


def _constant(tensor: Tensor) -> Tensor:
    return _exact(tensor).detach()
