"""Training schedules: the settings of optimiser and length, and the defaults that depend on the number of images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from scenedistill.core.terminal import counted

#: Metadata of a setting that was added later: at its default it does not enter the fingerprint of a training, so that
#: earlier trainings remain valid.
LATER = {"later": True}

#: Default batch size, and that for fewer than `FEW_IMAGES` training images, where larger batches would give too few
#: steps.
BATCH, SMALL_BATCH, FEW_IMAGES = 64, 32, 1000


@dataclass(frozen=True)
class Budget:
    """Bounds on the length of a training, from which the number of epochs follows.

    Attributes:
        epochs: usual number of epochs.
        least_steps: least number of optimiser steps; few images take more epochs than usual to reach it.
        most_epochs: largest number of epochs.
        most_steps: largest number of optimiser steps; many images take fewer epochs than usual.
    """

    epochs: int
    least_steps: int
    most_epochs: int
    most_steps: int

    def resolve_epochs(self, images: int, batch_size: int) -> int:
        """Return the number of epochs, at least 1, for this many training images: the usual number, raised to reach
        `least_steps` but not above `most_epochs`, or lowered to stay within `most_steps`."""
        steps = steps_of_epoch(images, batch_size)
        wanted = max(self.epochs, math.ceil(self.least_steps / steps))
        return min(wanted, self.most_epochs, max(1, self.most_steps // steps))


#: Budgets of a student with random initial weights, of a pretrained student and of a teacher. Random initial weights
#: need many steps: 40 epochs of 560 images in batches of 64 are only 350.
FROM_NOTHING_BUDGET = Budget(epochs=60, least_steps=3_000, most_epochs=300, most_steps=30_000)
FINE_TUNING_BUDGET = Budget(epochs=16, least_steps=480, most_epochs=80, most_steps=8_000)
TEACHER_BUDGET = Budget(epochs=25, least_steps=750, most_epochs=100, most_steps=12_000)


def steps_of_epoch(images: int, batch_size: int) -> int:
    """Return the number of steps of an epoch; a last, smaller batch is left out unless it is the only one."""
    return max(1, images // max(1, batch_size))


@dataclass
class FitConfig:
    """Training schedule of one network.

    Attributes:
        epochs: number of passes over the training part, >= 1.
        batch_size: number of images in a step, over all devices together.
        optimizer: `sgd` (Nesterov momentum) or `adamw`.
        lr: peak learning rate, with a cosine decay to zero after the warm-up.
        fresh_lr_factor: factor on `lr` for newly initialised parts (head, DA modules, adapters); useful for
            fine-tuning.
        weight_decay: weight decay of convolutions and linear layers; biases and norms have none.
        momentum: momentum of SGD, 0..1.
        warmup_epochs: epochs in which the learning rate rises linearly to `lr`.
        label_smoothing: label smoothing of a teacher's cross-entropy, 0..1; students do not use it.
        clip_norm: largest norm of the network's gradient, and of that of the losses' adapters; 0 does not clip.
        ema_decay: decay of an exponential moving average of the weights, 0..1, which is then validated and saved;
            0.998 spans about 500 steps, and 0 uses the weights of the last step.
        first_size: initial side of the views as a share of `image_size`, in (0, 1]; it grows to 1 until the last third
            of the epochs. Outputs of a student's teacher are always those for full-size views.
        steps: number of optimiser steps, instead of `epochs`.
    """

    epochs: int = 60
    batch_size: int = BATCH
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    fresh_lr_factor: float = 1.0
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup_epochs: float = 2.0
    label_smoothing: float = 0.0
    clip_norm: float = 5.0
    ema_decay: float = field(default=0.0, metadata=LATER)
    first_size: float = field(default=1.0, metadata=LATER)
    steps: int | None = field(default=None, metadata=LATER)


@dataclass
class StudentFitConfig(FitConfig):
    """Training schedule of a student. Defaults depend on its initial weights (`FROM_NOTHING`, `FINE_TUNING`) and on the
    number of images (`Budget`).

    Attributes:
        epochs: number of passes over the training part, >= 1; when not given, 60, or 16 for a pretrained student, and
            more for few images (docs/your-data.md).
        batch_size: number of images in a step, over all devices together; when not given, 64, or 32 for fewer than
            1,000 training images.
        optimizer: `sgd` (Nesterov momentum) or `adamw`; when not given, `sgd`, or `adamw` for a pretrained
            student.
        lr: peak learning rate, with a cosine decay to zero after the warm-up; when not given, 0.1, or 0.001 for a
            pretrained student.
        fresh_lr_factor: factor on `lr` for newly initialised parts (head, DA modules, adapters); when not given, 1, or
            3 for a pretrained student.
        weight_decay: weight decay of convolutions and linear layers; biases and norms have none; when not given,
            0.0005, or 0.05 for a pretrained student.
        momentum: momentum of SGD, 0..1.
        warmup_epochs: epochs in which the learning rate rises linearly to `lr`; when not given, 2, or 1 for a
            pretrained student.
        label_smoothing: not used by students.
        clip_norm: largest norm of the network's gradient, and of that of the losses' adapters; 0 does not clip.
        ema_decay: decay of an exponential moving average of the weights, 0..1, which is then validated and saved;
            0.998 spans about 500 steps, and 0 uses the weights of the last step.
        first_size: initial side of the views as a share of `image_size`, in (0, 1]; it grows to 1 until the last third
            of the epochs. Outputs of a student's teacher are always those for full-size views.
        steps: number of optimiser steps, instead of `epochs`.
    """

    epochs: int | None = None  # type: ignore[assignment]
    batch_size: int | None = None  # type: ignore[assignment]
    optimizer: Literal["sgd", "adamw"] | None = None  # type: ignore[assignment]
    lr: float | None = None  # type: ignore[assignment]
    fresh_lr_factor: float | None = None  # type: ignore[assignment]
    weight_decay: float | None = None  # type: ignore[assignment]
    warmup_epochs: float | None = None  # type: ignore[assignment]


@dataclass
class TeacherFitConfig(FitConfig):
    """Training schedule of a teacher. Defaults depend on the number of images (`Budget`).

    Attributes:
        epochs: number of passes over the training part, >= 1; when not given, 25, and more for few images
            (docs/your-data.md).
        batch_size: number of images in a step, over all devices together; when not given, 64, or 32 for fewer than
            1,000 training images.
        optimizer: `sgd` (Nesterov momentum) or `adamw`.
        lr: peak learning rate, with a cosine decay to zero after the warm-up.
        fresh_lr_factor: factor on `lr` for newly initialised parts (head, DA modules).
        weight_decay: weight decay of convolutions and linear layers; biases and norms have none.
        momentum: momentum of SGD, 0..1.
        warmup_epochs: epochs in which the learning rate rises linearly to `lr`.
        label_smoothing: label smoothing of the cross-entropy, 0..1.
        clip_norm: largest norm of the network's gradient; 0 does not clip.
        ema_decay: decay of an exponential moving average of the weights, 0..1, which is then validated and saved;
            0.998 spans about 500 steps, and 0 uses the weights of the last step.
        first_size: initial side of the views as a share of `image_size`, in (0, 1]; it grows to 1 until the last third
            of the epochs.
        steps: number of optimiser steps, instead of `epochs`.
    """

    epochs: int | None = None  # type: ignore[assignment]
    batch_size: int | None = None  # type: ignore[assignment]
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 5e-4
    fresh_lr_factor: float = 3.0
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0


#: Defaults of a student's schedule with random and with pretrained initial weights.
FROM_NOTHING = FitConfig()
FINE_TUNING = FitConfig(
    epochs=16, optimizer="adamw", lr=1e-3, fresh_lr_factor=3.0, weight_decay=0.05, warmup_epochs=1.0
)


def close(fit: FitConfig, base: FitConfig, budget: Budget, images: int | None) -> FitConfig:
    """Return the complete schedule of a training.

    Args:
        fit: settings; None means the value of `base`, or for `epochs` and `batch_size` a value that depends on the
            number of images.
        base: defaults.
        budget: bounds from which the number of epochs follows.
        images: number of training images; may be None if epochs and batch size are given.

    Raises:
        ValueError: epochs or batch size depend on the number of images, and it is not given.
    """
    chosen = {name: value for name, value in vars(fit).items() if value is not None}
    closed = replace(base, **chosen)
    if images is None:
        if "epochs" not in chosen or "batch_size" not in chosen:
            raise ValueError("epochs and batch size are to be chosen by the number of images, which is not given")
        return closed
    if "batch_size" not in chosen:
        closed.batch_size = BATCH if images >= FEW_IMAGES else SMALL_BATCH
    if closed.steps is not None:
        closed.epochs = math.ceil(closed.steps / steps_of_epoch(images, closed.batch_size))
    elif "epochs" not in chosen:
        closed.epochs = budget.resolve_epochs(images, closed.batch_size)
    return closed


def schedule_text(fit: FitConfig) -> str:
    """Return a schedule as one line of text."""
    length = counted(fit.steps, "step") if fit.steps else counted(fit.epochs, "epoch")
    return (
        f"{fit.optimizer}, {length} in batches of {fit.batch_size}, learning rate {fit.lr:g} "
        f"({fit.lr * fit.fresh_lr_factor:g} of fresh parts), weight decay {fit.weight_decay:g}, "
        f"{counted(float(fit.warmup_epochs), 'epoch')} of warm-up"
    )
