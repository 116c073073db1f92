"""timm's loop: what its train.py builds from `timm.data`, `timm.optim` and the logit distillation of `timm.task`."""

from __future__ import annotations

from collections.abc import Iterable

from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from .loop import CROP_SCALE, JITTER, KD_WEIGHT, TEMPERATURE, Loop, LoopSettings, Switches

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # the networks normalise by themselves


class TimmLoop(Loop):
    """Loop with train.py's defaults: four workers, its prefetcher (on a CPU too), persistent workers, fp32.

    The options set here are those that the comparison fixes: crop, flips, jitter and bilinear interpolation, no label
    smoothing, `--task-loss-weight 1 --distill-loss-weight 1 --kd-temperature 4`. Its learning-rate schedule, its
    validation and its checkpoints are left out.
    """

    name = "timm"
    own_workers = 4
    switched_on = "fused SGD, pinned memory on a GPU"

    def __init__(self, settings: LoopSettings, switches: Switches | None = None) -> None:
        super().__init__(settings, switches)
        from timm.task import DistillationTeacher, LogitDistillationTask  # older releases have none

        for net in (self.teacher, self.student):
            net.pretrained_cfg = PLAIN
        self._task = LogitDistillationTask(
            student_model=self.student,
            teacher_model=DistillationTeacher(self.teacher, device=settings.device),
            criterion=nn.CrossEntropyLoss(),
            task_loss_weight=1.0,
            distill_loss_weight=KD_WEIGHT,
            temperature=TEMPERATURE,
            device=settings.device,
            verbose=False,
        )
        if self.switches.compile:
            self._task.compile(mode=self.switches.compile, dynamic=False)
        self.optimizer = create_optimizer_v2(
            self.student,
            opt="sgd",  # with Nesterov momentum
            lr=settings.lr,
            momentum=0.9,
            weight_decay=settings.weight_decay,
            **({"fused": True} if self.switches.tuned else {}),
        )
        self._dataset = create_dataset(
            "", root=str(settings.data), split="train", is_training=True, search_split=False, input_img_mode="RGB"
        )

    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """See `Loop.batches`."""
        return create_loader(
            self._dataset,
            (3, self.given.pixels, self.given.pixels),
            self.given.batch_size,
            is_training=True,
            scale=CROP_SCALE,
            hflip=0.5,
            vflip=0.5,
            color_jitter=JITTER,
            interpolation="bilinear",
            **PLAIN,
            num_workers=self.workers,
            pin_memory=self.pinned,
            device=self.given.device,
        )

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """See `Loop.loss`."""
        return self._task(images, labels)["loss"]

    def update(self, loss: Tensor) -> None:
        """See `Loop.update`."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
