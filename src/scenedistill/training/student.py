"""Training of a student with any weighted set of losses (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from scenedistill.training.distributed import gather, gather_output, mean_over_processes
from scenedistill.training.gradients import COLLAPSED, GRADIENT_PREFIX, due, gradient_norms, student_diagnostics
from scenedistill.training.teacher_outputs.knowledge import Knowledge


class Distillation(SceneTraining):
    """Base class of trainings with a teacher: progress of the losses, teacher outputs and diagnostics."""

    #: whether the next step of this epoch logs diagnostics
    measures = False
    #: whether a loss uses the stages' "attention" and "features"
    detail: Mapping[str, bool]
    #: the teacher's outputs; None if no loss uses a teacher
    knowledge: Knowledge | None

    def on_train_epoch_start(self) -> None:
        """Set the progress of the losses, 0..1, and whether this epoch logs diagnostics; load or compute the teacher's
        outputs for this epoch."""
        super().on_train_epoch_start()
        for module in self.modules():
            if isinstance(module, DistillationLoss):
                module.progress = (self.current_epoch + 1) / self.epochs
        self.measures = due(self.current_epoch, self.epochs, int(self.trainer.num_training_batches))
        if self.knowledge is not None:
            with self.waiting("teacher"):
                self.knowledge.open(self.current_epoch, self.device)

    def optimizer_step(self, *step: Any, **more: Any) -> None:
        """Let the losses change their students after each step, see `DistillationLoss.after_step`. Callbacks, such as
        the average of the weights, come after it."""
        super().optimizer_step(*step, **more)
        for module in self.modules():
            if isinstance(module, StudentTraining):
                module.after_step()

    def view_and_target(self, batch: SceneBatch) -> tuple[Tensor, SceneOutput | None]:
        """Return the batch's views at the size of this epoch, `[B, bands, H, W]`, and the teacher's output for the
        full-size views, if any."""
        if self.knowledge is None:
            return self.resized_for_epoch(self.view(batch, self.current_epoch)), None
        view = self.view(batch, self.knowledge.view_number(self.current_epoch))
        with self.waiting("teacher"):
            target = self.knowledge.of(batch, self.current_epoch, view, **self.detail)._replace(rows=(batch.rows,))
        return self.resized_for_epoch(view), target

    def log_diagnostics(
        self, students: Mapping[str, StudentTraining], batch: SceneBatch, view: Tensor, target: SceneOutput | None
    ) -> None:
        """Log the gates, the embedding spread and the gradient norm of each weighted loss, once in an epoch that
        measures. A student with a single loss has no gradient norms.

        Args:
            students: students by the prefix of their names in the log.
            batch: batch of this step.
            view: views of the batch, `[B, bands, H, W]`.
            target: the teacher's output for the views.
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
            own = student_diagnostics(student, student.net, view)
            signs |= {f"{prefix}{name}": value for name, value in own.items()}
            if len(view) > 1 and own["embedding_spread"] < COLLAPSED:
                self.alerts.append(
                    f"{prefix}the student has collapsed: its embeddings of different images are alike (spread "
                    f"{own['embedding_spread']:.1g} of 1). Lower --student.fit.lr or the weights of the losses."
                )
        for logger in self.loggers:
            logger.log_metrics({**norms, **signs, "epoch": self.current_epoch}, step=self.global_step)


class StudentTraining(Distillation):
    """Training of a student with a weighted sum of losses; student and teacher use the same views.

    The teacher is not part of this module, and so not of its checkpoint, its optimiser or DDP.

    Args:
        net: the student.
        config: options of the losses, and the training schedule.
        weights: weight of each loss by name, > 0.
        views: ranges of the random views.
        image_size: side of the views in pixels.
        seed: seed of the run.
        knowledge: the teacher's outputs; None if no loss uses a teacher. For losses that need the statistics of the
            teacher's features, call `knowledge.statistics` before.
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
        if knowledge is not None and knowledge.teacher_statistics is not None:
            self.prepare(knowledge.teacher_statistics)

    def prepare(self, statistics: TeacherStatistics) -> None:
        """Give every loss the statistics of the teacher's features over the training images."""
        for _, loss in self._losses():
            loss.prepare(statistics)

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        """Return the loss on a batch, one step of Algorithm 1."""
        view, target = self.view_and_target(batch)
        self.log_diagnostics({"": self}, batch, view, target)
        loss, parts, logits = self.loss_of_batch(batch, view, target)
        self.report(parts, logits, batch.labels)
        return loss

    def loss_of_batch(
        self, batch: SceneBatch, view: Tensor, target: SceneOutput | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the loss on a batch, its unweighted parts by name, and the student's logits `[B, K]`."""
        output = self.net(view, **self.detail)
        parts = self.parts(output, target, batch.labels)
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        if "ce" not in self.weights:
            # DDP needs a gradient for every parameter, also for a head that no loss uses
            total = total + 0 * output.logits.float().sum()
        return total, parts, output.logits

    def parts(self, output: SceneOutput, target: SceneOutput | None, labels: Tensor) -> dict[str, Tensor]:
        """Return the unweighted losses by name.

        Args:
            output: the student's output for a batch.
            target: the teacher's output for the same views; None without a teacher.
            labels: labels `[B]`, -1 for images without a label.
        """
        target = output if target is None else target
        whole: tuple[SceneOutput, SceneOutput, Tensor] | None = None
        parts = {}
        some_without = self.knowledge is not None and self.knowledge.part.some_without_label
        for name, loss in self._losses():
            seen = (output, target, labels)
            if loss.relational:
                seen = whole = whole or (gather_output(output), gather_output(target), gather(labels))
            if loss.needs_labels and some_without:
                parts[name] = on_labelled(loss, *seen)
            else:
                parts[name] = loss(*seen)
        return parts

    def after_step(self) -> None:
        """Let each loss change the student after an optimiser step."""
        for _, loss in self._losses():
            loss.after_step(self.net)

    def gradient_norms(self, batch: SceneBatch, view: Tensor, target: SceneOutput | None) -> dict[str, float]:
        """Return the norm of the gradient of each weighted loss with respect to the student's parameters."""

        def weighted() -> dict[str, Tensor]:
            output = self.net.forward(view, **self.detail)  # not compiled: that graph allows one backward pass
            return {name: self.weights[name] * part for name, part in self.parts(output, target, batch.labels).items()}

        return gradient_norms(self, self.net, weighted)

    def _losses(self) -> list[tuple[str, DistillationLoss]]:
        return [(name, loss) for name, loss in self.losses.items() if isinstance(loss, DistillationLoss)]


def on_labelled(loss: DistillationLoss, output: SceneOutput, target: SceneOutput, labels: Tensor) -> Tensor:
    """Return a loss on the labelled images of a batch; zero if there are none. Each of them counts the same, however
    many of them each process has."""
    known = (labels >= 0).nonzero().squeeze(1)
    if len(known):
        value = loss(output.map(lambda tensor: tensor[known]), target.map(lambda tensor: tensor[known]), labels[known])
    else:
        unused = (output.logits, *loss.parameters())  # DDP needs a gradient for each
        value = 0 * torch.stack([each.float().sum() for each in unused]).sum()
    return value if loss.relational else mean_over_processes(value, len(known))
