"""Algorithm 1: the student's training with any weighted set of losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scenedistill.config import StudentConfig
from scenedistill.data.module import SceneBatch
from scenedistill.data.views import ViewConfig
from scenedistill.losses.base import DistillationLoss, TeacherStatistics
from scenedistill.losses.registry import build_losses
from scenedistill.models.network import SceneNet
from scenedistill.models.output import SceneOutput
from scenedistill.training.base import SceneTraining
from scenedistill.training.distributed import gather, gather_output
from scenedistill.training.knowledge import Knowledge


class StudentTraining(SceneTraining):
    """The weighted sum of a set of losses on the same view for student and teacher.

    The teacher is no part of this module: not of its checkpoint, its optimiser or DDP.

    Args:
        net: the student.
        config: its losses and its training.
        weights: loss name to weight, all above 0.
        views: how the random views vary.
        image_size: side of the views in pixels.
        seed: of the run.
        knowledge: what the teacher says of a view; None when no loss asks it.
        statistics: of the teacher over the training set.
    """

    def __init__(
        self,
        net: SceneNet,
        config: StudentConfig,
        weights: Mapping[str, float],
        views: ViewConfig,
        *,
        image_size: int,
        seed: int,
        knowledge: Knowledge | None = None,
        statistics: TeacherStatistics | None = None,
    ) -> None:
        super().__init__(net, config.fit, views, image_size=image_size, seed=seed)
        self.weights = dict(weights)
        self.knowledge = knowledge
        teacher_dims = net.dims if knowledge is None else knowledge.teacher.dims
        self.losses = build_losses(weights, net.dims, teacher_dims, config.loss_options)
        if statistics is not None:
            for _, loss in self._losses():
                loss.prepare(statistics)

    def on_train_epoch_start(self) -> None:
        """Have the teacher's knowledge of this epoch's views at hand."""
        super().on_train_epoch_start()
        if self.knowledge is not None:
            self.knowledge.open(self.current_epoch, self.device)

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        """One step of Algorithm 1."""
        epoch = self.current_epoch if self.knowledge is None else self.knowledge.view_number(self.current_epoch)
        view = self.view(batch, epoch)
        output = self.net(view, attention=self.knowledge is not None)
        target = output if self.knowledge is None else self.knowledge.of(batch, view)
        whole: tuple[SceneOutput, SceneOutput, Tensor] | None = None
        parts = {}
        for name, loss in self._losses():
            if loss.relational:
                whole = whole or (gather_output(output), gather_output(target), gather(batch.labels))
                parts[name] = loss(*whole)
            else:
                parts[name] = loss(output, target, batch.labels)
        self.report(parts, output.logits, batch.labels)
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()

    def _losses(self) -> list[tuple[str, DistillationLoss]]:
        return [(name, loss) for name, loss in self.losses.items() if isinstance(loss, DistillationLoss)]
