"""Algorithm 1: the student's training with any weighted set of losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scenedistill.config import StudentConfig
from scenedistill.data.batches import SceneBatch
from scenedistill.data.views import ViewConfig
from scenedistill.losses.base import DistillationLoss, TeacherStatistics
from scenedistill.losses.registry import build_losses
from scenedistill.models.network import SceneNet
from scenedistill.models.output import SceneOutput
from scenedistill.training.base import SceneTraining
from scenedistill.training.distributed import gather, gather_output
from scenedistill.training.gradients import COLLAPSED, GRADIENT_PREFIX, due, gradient_norms, vital_signs
from scenedistill.training.teacher_outputs.knowledge import Knowledge


class Distillation(SceneTraining):
    """What every training with a teacher does before its losses."""

    #: whether this epoch's next step measures how hard each loss pulls
    measures = False
    #: whether a loss looks at the "attention" of the stages, at their "features"
    detail: Mapping[str, bool]

    def on_train_epoch_start(self) -> None:
        """Tell the losses how far the training is, and see whether to measure."""
        super().on_train_epoch_start()
        for module in self.modules():
            if isinstance(module, DistillationLoss):
                module.progress = (self.current_epoch + 1) / self.epochs
        self.measures = due(self.current_epoch, self.epochs, int(self.trainer.num_training_batches))

    def open(self, knowledge: Knowledge | None) -> None:
        """Make the teacher's knowledge ready for the epoch."""
        if knowledge is not None:
            with self.waiting("teacher"):
                knowledge.open(self.current_epoch, self.device)

    def view_and_target(self, batch: SceneBatch, knowledge: Knowledge | None) -> tuple[Tensor, SceneOutput | None]:
        """The batch's views of this epoch, and what the teacher says of them where there is one."""
        if knowledge is None:
            return self.view(batch, self.current_epoch), None
        view = self.view(batch, knowledge.view_number(self.current_epoch))
        with self.waiting("teacher"):
            target = knowledge.of(batch, self.current_epoch, view, **self.detail)
            return view, target._replace(rows=(batch.rows,))

    def log_vital_signs(
        self, students: Mapping[str, StudentTraining], batch: SceneBatch, view: Tensor, target: SceneOutput | None
    ) -> None:
        """Log, once in an epoch that measures, how each student fares: its gates, the spread of its embeddings and the
        gradient norm of each weighted loss; one loss alone is not compared.

        Args:
            students: what begins their names in the log, to student.
            batch: of this step.
            view: of the batch.
            target: what the teacher says of it.
        """
        if not self.measures:
            return
        self.measures = False
        norms = {
            f"{prefix}{GRADIENT_PREFIX}{name}": norm
            for prefix, student in students.items()
            if len(student.weights) > 1
            for name, norm in student.gradient_norms(batch, view, target).items()
        }
        signs: dict[str, float] = {}
        for prefix, student in students.items():
            own = vital_signs(student, student.net, view)
            signs |= {f"{prefix}{name}": value for name, value in own.items()}
            if len(view) > 1 and own["embedding_spread"] < COLLAPSED:
                self.alerts.append(
                    f"{prefix}the student has collapsed: its embeddings of different images are alike (spread "
                    f"{own['embedding_spread']:.1g} of 1). Lower --student.fit.lr or the weights of the losses."
                )
        for logger in self.loggers:
            logger.log_metrics({**norms, **signs, "epoch": self.current_epoch}, step=self.global_step)


class StudentTraining(Distillation):
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
        super().__init__(net, config.schedule(), views, image_size=image_size, seed=seed)
        self.weights = dict(weights)
        self.knowledge = knowledge
        teacher_dims = net.dims if knowledge is None else knowledge.teacher.dims
        self.losses = build_losses(weights, net.dims, teacher_dims, config.loss_options)
        self.detail = {
            "attention": any(loss.needs_attention for _, loss in self._losses()),
            "features": any(loss.needs_features for _, loss in self._losses()),
        }
        if statistics is not None:
            for _, loss in self._losses():
                loss.prepare(statistics)

    def on_train_epoch_start(self) -> None:
        """Have the teacher's knowledge of this epoch's views at hand."""
        super().on_train_epoch_start()
        self.open(self.knowledge)

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        """One step of Algorithm 1."""
        view, target = self.view_and_target(batch, self.knowledge)
        view = self.at_its_size(view)
        self.log_vital_signs({"": self}, batch, view, target)
        loss, parts, logits = self.lesson(batch, view, target)
        self.report(parts, logits, batch.labels)
        return loss

    def lesson(
        self, batch: SceneBatch, view: Tensor, target: SceneOutput | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss on a batch, its parts before they are weighted, and the student's logits `[B, K]`."""
        output = self.net(view, **self.detail)
        parts = self.parts(output, target, batch.labels)
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        if "ce" not in self.weights:
            # DDP wants a gradient for every parameter, also for those of a head that no loss looks at
            total = total + 0 * output.logits.float().sum()
        return total, parts, output.logits

    def parts(self, output: SceneOutput, target: SceneOutput | None, labels: Tensor) -> dict[str, Tensor]:
        """Each loss of the student's output, not weighted."""
        target = output if target is None else target
        whole: tuple[SceneOutput, SceneOutput, Tensor] | None = None
        parts = {}
        some_without = self.knowledge is not None and self.knowledge.part.some_without_label
        for name, loss in self._losses():
            seen = (output, target, labels)
            if loss.relational:
                seen = whole = whole or (gather_output(output), gather_output(target), gather(labels))
            if loss.needs_labels and some_without:
                parts[name] = _on_labelled(loss, *seen)
            else:
                parts[name] = loss(*seen)
        return parts

    def gradient_norms(self, batch: SceneBatch, view: Tensor, target: SceneOutput | None) -> dict[str, float]:
        """Norm of the gradient of each weighted loss with respect to the student's parameters."""

        def weighted() -> dict[str, Tensor]:
            output = self.net.forward(view, **self.detail)  # past the compiled one, whose graph serves but once
            return {name: self.weights[name] * part for name, part in self.parts(output, target, batch.labels).items()}

        return gradient_norms(self, self.net, weighted)

    def _losses(self) -> list[tuple[str, DistillationLoss]]:
        return [(name, loss) for name, loss in self.losses.items() if isinstance(loss, DistillationLoss)]


def _on_labelled(loss: DistillationLoss, output: SceneOutput, target: SceneOutput, labels: Tensor) -> Tensor:
    """A loss on the images of a batch that have a label; zero where none has."""
    known = (labels >= 0).nonzero().squeeze(1)
    if not len(known):
        return 0 * output.logits.float().sum()
    return loss(output.map(lambda tensor: tensor[known]), target.map(lambda tensor: tensor[known]), labels[known])  # type: ignore[no-any-return]
