"""Training of several students together, which share the views and the teacher pass of each batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from scenedistill.data.batches import SceneBatch
from scenedistill.data.views import evaluation_view
from scenedistill.models.network import SceneNet
from scenedistill.training.student import Distillation, StudentTraining


class MultiStudentTraining(Distillation):
    """Training of several students side by side, each to the same weights as alone.

    It saves time in ablations with fresh views in every epoch, where the teacher's pass is most of the work. The
    students share the batches only; each has its own parameters, losses and gradient clipping. There are two
    exceptions to the equality: students with dropout draw other random numbers than alone, and in fp16 a step in which
    the gradients of one student overflow is skipped for all.

    Args:
        students: students by name, with the same views, seed, image size, schedule and knowledge.

    Raises:
        ValueError: the students differ in their schedule or knowledge.
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

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        """Return the sum of the losses of all students on a batch."""
        view, target = self.view_and_target(batch)
        self.log_diagnostics({f"{name} ": student for name, student in self._each()}, batch, view, target)
        losses = []
        for name, student in self._each():
            loss, parts, logits = student.loss_of_batch(batch, view, target)
            self.report(parts, logits, batch.labels, prefix=f"{name} ")
            losses.append(loss)
        return torch.stack(losses).sum()

    def validation_step(self, batch: SceneBatch, batch_idx: int) -> None:
        """Update each student's OA on the validation images with the evaluation views of a batch."""
        view = evaluation_view(batch.images, size=self.image_size)
        for name, student in self._each():
            student.validation_oa(student.net(view, attention=False).logits, batch.labels)
            self.log(f"{name} val_oa", student.validation_oa, prog_bar=True, on_epoch=True, batch_size=len(batch))

    def networks(self) -> dict[str, SceneNet]:
        """Return the networks of all students, by the prefix of their names in the log."""
        return {f"{name} ": student.net for name, student in self._each()}

    def clipping_groups(self, trained: list[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
        """Return the clipping groups of all students, by log column."""
        parts: dict[str, list[nn.Parameter]] = {}
        for name, student in self._each():
            own = set(student.parameters())
            mine = student.clipping_groups([parameter for parameter in trained if parameter in own])
            parts |= {f"{name} {column}": part for column, part in mine.items()}
        return parts

    def _advice(self) -> str:
        return f"{super()._advice()} Trained alone (--side_by_side false), the other students go on."

    def _each(self) -> Iterator[tuple[str, StudentTraining]]:
        return zip(self.names, cast(Iterable[StudentTraining], self.students), strict=True)
