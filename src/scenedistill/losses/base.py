"""What all distillation losses share: float32 arithmetic, one call form, and the places where a loss may learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.models.output import FeatureDims, SceneOutput


class TeacherStatistics(NamedTuple):
    """Means and deviations of a teacher's features over the training images, seen whole (without augmentation).

    Attributes:
        embedding_mean: `[D_t]`.
        descriptor_mean: of each stage's channel descriptor, `[C_s]`.
        descriptor_std: of each stage's channel descriptor, `[C_s]`.
        embeddings: of the training images themselves, `[N, D_t]`, in their order; empty where they were not kept.
        labels: class indices of the same images, int64 `[N]`; empty where they are not known.
    """

    embedding_mean: Tensor
    descriptor_mean: tuple[Tensor, ...]
    descriptor_std: tuple[Tensor, ...]
    embeddings: Tensor = torch.empty(0)
    labels: Tensor = torch.empty(0, dtype=torch.int64)

    @classmethod
    def measure(cls, teacher: Callable[[Tensor], SceneOutput], loader: Iterable[Any]) -> TeacherStatistics:
        """Measure a teacher in one pass over the training images.

        Args:
            teacher: a `SceneNet`, which is put into eval mode and left there, or what `freeze` makes of one.
            loader: batches of images `[B, bands, H, W]` as the teacher expects them: tensors, tuples and lists that
                begin with one (a `DataLoader` of an `ImageFolder`), or mappings with an `image` (torchgeo). Without
                random transforms, and in a fixed order where outputs say their `rows`.

        Raises:
            UserError: no batches, or batches of another kind.
        """
        if isinstance(teacher, nn.Module):
            teacher.eval()
            device = next(teacher.parameters()).device
        else:
            device = getattr(teacher, "device", torch.device("cpu"))
        with torch.no_grad():
            return cls.of(teacher(_images(batch).to(device)) for batch in loader)

    @classmethod
    def of(cls, outputs: Iterable[SceneOutput]) -> TeacherStatistics:
        """The statistics of a teacher's outputs for all training images, batch by batch.

        Raises:
            UserError: there are none.
        """
        rows = [(o.embedding.float(), *(stage.descriptor.float() for stage in o.attention)) for o in outputs]
        if not rows:
            raise UserError("The teacher's statistics need training images, and the loader gave no batch.")
        embedding, *descriptors = (torch.cat(column).cpu() for column in zip(*rows, strict=True))
        return cls(
            embedding.mean(0),
            tuple(d.mean(0) for d in descriptors),
            tuple(d.std(0) if len(d) > 1 else torch.ones_like(d[0]) for d in descriptors),
            embedding.half().float(),  # as they are kept on the disk
        )


class DistillationLoss(nn.Module):
    """A scalar loss of a student's output against its teacher's.

    A leaf writes `compute`. What a leaf registers as parameters (adapters from the student's width to the teacher's)
    is trained with the student and thrown away after training.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.

    Raises:
        UserError: the loss compares stages, and a network has none.
    """

    #: True when the loss compares the images of a batch with each other: it is then given the whole batch of all
    #: processes, not one process's share.
    relational: ClassVar[bool] = False
    #: False when the loss looks at the labels only and no teacher is needed.
    needs_teacher: ClassVar[bool] = True
    #: True when the loss looks at the labels: it is then given the images that have one, and no others.
    needs_labels: ClassVar[bool] = False
    #: True when the loss looks at the attention of the stages, which else is not reported.
    needs_attention: ClassVar[bool] = False
    #: True when the loss looks at the feature maps of the stages; they are never kept, the teacher is asked every time.
    needs_features: ClassVar[bool] = False
    #: True when the loss is wrong without the teacher's statistics. Its own buffers are then NaN until `prepare` fills
    #: them, and it refuses to compute before.
    needs_statistics: bool = False
    #: Share of the training that is done at the end of the current epoch, in (0, 1], for losses that change with it.
    #: The training sets it; it is 1, the end, in a loop that does not.
    progress: float = 1.0

    def __init__(self, student: FeatureDims, teacher: FeatureDims) -> None:
        super().__init__()
        self.student_dims = student
        self.teacher_dims = teacher
        self._prepared = False  # whether the statistics were seen to be there: asking a GPU each time would cost a wait
        if self.needs_attention or self.needs_features:
            for who, dims in (("student", student), ("teacher", teacher)):
                if not dims.stages:
                    raise UserError(
                        f"{type(self).__name__} compares stages, and the {who} has none. Name the submodules whose "
                        "outputs are its stages: SceneNet.wrap(module, stages=[...])."
                    )

    def forward(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """The loss as a float32 scalar, whatever the autocast.

        Args:
            student: of a batch of B images; gradients flow into it.
            teacher: of the same B views; no gradient flows into it.
            labels: class indices, int64 `[B]`.

        Raises:
            UserError: an output lacks what the loss looks at, or the teacher's statistics are missing.
        """
        self._check_output("student", student)
        self._check_output("teacher", teacher)
        if self.needs_statistics and not self._prepared:
            self._check_prepared()
        with torch.autocast(student.logits.device.type, enabled=False):
            if not self.needs_features:  # large: not made float32 for nothing
                student, teacher = student._replace(features=()), teacher._replace(features=())
            return self.compute(student.map(_exact), teacher.map(_constant), labels)

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """The mathematics, on float32 (or float64) tensors."""
        raise NotImplementedError(f"{type(self).__name__} has no compute()")

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Take what is needed of the teacher's statistics, before the first step."""

    def _check_output(self, who: str, output: SceneOutput) -> None:
        asked = {"attention": self.needs_attention, "features": self.needs_features}
        for name in (name for name, needed in asked.items() if needed):
            if not getattr(output, name):
                raise UserError(
                    f"{type(self).__name__} compares the {name} of the stages, which the {who}'s output does not hold. "
                    f"Call the network with {name}=True."
                )

    def _check_prepared(self) -> None:
        if any(bool(buffer.isnan().any()) for buffer in self.buffers(recurse=False)):
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
    """Factor on the weight of a loss, 0..1: it rises linearly over the first twelfth of the training (20 of 240 epochs
    in the authors' code) and is 1 from then on.

    Args:
        progress: share of the training that is done, in (0, 1].

    Examples:
        >>> from scenedistill.losses.base import warm_up
        >>> [round(warm_up(epoch / 24), 2) for epoch in (1, 2, 3, 24)]
        [0.5, 1.0, 1.0, 1.0]
    """
    return min(1.0, 12 * progress)


def require(least: float, *, above: bool = False, **options: float) -> None:
    """See that options of a loss are `least` or more, or above it.

    Raises:
        ValueError: one is not.
    """
    for name, value in options.items():
        if not (value > least if above else value >= least):
            raise ValueError(
                f"{name} is {value:g}; expected {f'more than {least:g}' if above else f'{least:g} or more'}"
            )


def _images(batch: Any) -> Tensor:
    """The images of a loader's batch."""
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
