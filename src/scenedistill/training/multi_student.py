"""Several students in one training: one view and one teacher pass of each batch serve all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from scenedistill.data.batches import SceneBatch
from scenedistill.data.views import evaluation_view
from scenedistill.models.network import SceneNet
from scenedistill.training.student import Distillation, StudentTraining


class TogetherTraining(Distillation):
    """Trains students side by side, each to the weights it would have had alone.

    For a grid of ablations without kept knowledge, where the teacher's pass is most of the work. The students have
    nothing in common but the batches: parameters, losses and the norm at which gradients are clipped are their own.
    (A student that draws random numbers in its forward pass, as dropout does, draws others than alone; and in fp16 all
    skip a step in which the gradients of one of them overflow.)

    Args:
        students: by name; with the same views, seed, image size, schedule and knowledge.
    """

    def __init__(self, students: Mapping[str, StudentTraining]) -> None:
        first = next(iter(students.values()))
        for name, student in students.items():
            if student.fit != first.fit or student.knowledge is not first.knowledge:
                raise ValueError(f"'{name}' cannot train beside the others: another schedule or other knowledge")
        super().__init__(first.net, first.fit, first.views, image_size=first.image_size, seed=first.seed)
        del self.net, self.validation_oa  # each student has its own
        self.names = list(students)
        self.students = nn.ModuleList(students.values())  # a name may hold a dot, which a ModuleDict refuses
        self.knowledge = first.knowledge
        self.detail = {what: any(one.detail[what] for one in students.values()) for what in first.detail}

    def on_train_epoch_start(self) -> None:
        """Have the teacher's knowledge of this epoch's views at hand."""
        super().on_train_epoch_start()
        self.open(self.knowledge)

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        """One step of every student."""
        view, target = self.view_and_target(batch, self.knowledge)
        view = self.at_its_size(view)
        self.log_vital_signs({f"{name} ": student for name, student in self._each()}, batch, view, target)
        losses = []
        for name, student in self._each():
            loss, parts, logits = student.lesson(batch, view, target)
            self.report(parts, logits, batch.labels, prefix=f"{name} ")
            losses.append(loss)
        return torch.stack(losses).sum()

    def validation_step(self, batch: SceneBatch, batch_idx: int) -> None:
        """OA of every student on the validation part, from the evaluation view."""
        view = evaluation_view(batch.images, size=self.image_size)
        for name, student in self._each():
            student.validation_oa(student.net(view, attention=False).logits, batch.labels)
            self.log(f"{name} val_oa", student.validation_oa, prog_bar=True, on_epoch=True, batch_size=len(batch))

    def networks(self) -> dict[str, SceneNet]:
        """Every student's."""
        return {f"{name} ": student.net for name, student in self._each()}

    def clipped_apart(self, trained: list[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
        """Those of each student, in its own parts."""
        parts: dict[str, list[nn.Parameter]] = {}
        for name, student in self._each():
            own = set(student.parameters())
            mine = student.clipped_apart([parameter for parameter in trained if parameter in own])
            parts |= {f"{name} {column}": part for column, part in mine.items()}
        return parts

    def _advice(self) -> str:
        return f"{super()._advice()} Trained alone (--side_by_side false), the other students go on."

    def _each(self) -> Iterator[tuple[str, StudentTraining]]:
        return zip(self.names, cast(Iterable[StudentTraining], self.students), strict=True)
