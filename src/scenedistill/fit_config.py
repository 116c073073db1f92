"""How long and by which steps a network is trained: the settings, and what is chosen where they leave it open."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from scenedistill.core.terminal import counted

#: Metadata of a setting that came later than the others: while it has its default, the fingerprint of a training is
#: what it was before there was such a setting.
LATER = {"later": True}

#: Images in one step where the settings do not say, and where fewer than `FEW_IMAGES` train: on few images the steps
#: are what lacks.
BATCH, SMALL_BATCH, FEW_IMAGES = 64, 32, 1000


@dataclass(frozen=True)
class Budget:
    """How many epochs suit so many images.

    Attributes:
        epochs: usual number of passes over the training part.
        least_steps: optimiser steps that a training takes at least; on few images it has more epochs for them.
        most_epochs: passes at the most, however few the images.
        most_steps: steps beyond which a training has fewer than the usual epochs.
    """

    epochs: int
    least_steps: int
    most_epochs: int
    most_steps: int

    def resolve_epochs(self, images: int, batch_size: int) -> int:
        """Epochs for so many training images: the usual number, raised to `least_steps` (by `most_epochs` at the most)
        or lowered to `most_steps`, but one at least."""
        steps = steps_of_epoch(images, batch_size)
        wanted = max(self.epochs, math.ceil(self.least_steps / steps))
        return max(1, min(wanted, self.most_epochs, max(1, self.most_steps // steps)))


#: Of a student from nothing, of one that starts from pretrained weights, of a teacher. What a student from nothing
#: lacks is steps: 40 epochs of 560 images in batches of 64 are 350.
FROM_NOTHING_BUDGET = Budget(epochs=60, least_steps=3_000, most_epochs=300, most_steps=30_000)
FINE_TUNING_BUDGET = Budget(epochs=16, least_steps=480, most_epochs=80, most_steps=8_000)
TEACHER_BUDGET = Budget(epochs=25, least_steps=750, most_epochs=100, most_steps=12_000)


def steps_of_epoch(images: int, batch_size: int) -> int:
    """Steps of one pass over the images: the last, smaller batch is left out, unless it is the only one."""
    return max(1, images // max(1, batch_size))


@dataclass
class FitConfig:
    """How one network is trained.

    Attributes:
        epochs: passes over the training part, >= 1.
        batch_size: images in one step, over all devices together.
        optimizer: `sgd` (Nesterov momentum) or `adamw`.
        lr: peak learning rate; cosine schedule to zero after the warm-up.
        fresh_lr_factor: the learning rate of freshly started parts (head, DA modules, adapters) over `lr`; for
            fine-tuning.
        weight_decay: on weights of convolutions and linear layers; biases and norms are left out.
        momentum: of SGD, 0..1.
        warmup_epochs: over which the rate rises linearly from nearly zero.
        label_smoothing: 0..1; of the cross-entropy of a teacher.
        clip_norm: largest norm of the network's gradient, and of that of the losses' adapters; 0 does not clip.
        ema_decay: of an exponential moving average of the weights, 0..1, which is then what is validated and kept:
            0.998 spans about 500 steps. 0 keeps the weights of the last step.
        first_size: side of the views at the start, a share of `image_size`, in (0, 1]: they grow to the full size,
            which the last third of the epochs has. The teacher's answers stay those of the full view. 1 does without.
        steps: optimiser steps, in place of epochs; the schedule ends with the last one.
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
    """How a student is trained. What is not given is chosen by what it starts from, see `FROM_NOTHING`, `FINE_TUNING`,
    and by the number of images, see `Budget`.

    Attributes:
        epochs: passes over the training part, >= 1; when not given, 60, or 16 when pretrained, and more where the
            images are few (docs/your-data.md).
        batch_size: images in one step, over all devices together; when not given, 64, or 32 for fewer than 1,000
            training images.
        optimizer: `sgd` (Nesterov momentum) or `adamw`; `sgd`, or `adamw` when pretrained.
        lr: peak learning rate; cosine schedule to zero after the warm-up; 0.1, or 0.001 when pretrained.
        fresh_lr_factor: the learning rate of freshly started parts (head, DA modules, adapters) over `lr`; 1, or 3
            when pretrained.
        weight_decay: on weights of convolutions and linear layers; biases and norms are left out; 0.0005, or 0.05 when
            pretrained.
        momentum: of SGD, 0..1.
        warmup_epochs: over which the rate rises linearly from nearly zero; 2, or 1 when pretrained.
        label_smoothing: of a teacher's cross-entropy only.
        clip_norm: largest norm of the network's gradient, and of that of the losses' adapters; 0 does not clip.
        ema_decay: of an exponential moving average of the weights, 0..1, which is then what is validated and kept:
            0.998 spans about 500 steps. 0 keeps the weights of the last step.
        first_size: side of the views at the start, a share of `image_size`, in (0, 1]: they grow to the full size,
            which the last third of the epochs has. The teacher's answers stay those of the full view. 1 does without.
        steps: optimiser steps, in place of epochs; the schedule ends with the last one.
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
    """How a teacher is trained. What is not given is chosen by the number of images, see `Budget`.

    Attributes:
        epochs: passes over the training part, >= 1; when not given, 25, and more where the images are few
            (docs/your-data.md).
        batch_size: images in one step, over all devices together; when not given, 64, or 32 for fewer than 1,000
            training images.
        optimizer: `sgd` (Nesterov momentum) or `adamw`.
        lr: peak learning rate; cosine schedule to zero after the warm-up.
        fresh_lr_factor: the learning rate of freshly started parts (head, DA modules) over `lr`.
        weight_decay: on weights of convolutions and linear layers; biases and norms are left out.
        momentum: of SGD, 0..1.
        warmup_epochs: over which the rate rises linearly from nearly zero.
        label_smoothing: 0..1; of the cross-entropy.
        clip_norm: largest norm of the gradient; 0 does not clip.
        ema_decay: of an exponential moving average of the weights, 0..1, which is then what is validated and kept:
            0.998 spans about 500 steps. 0 keeps the weights of the last step.
        first_size: side of the views at the start, a share of `image_size`, in (0, 1]: they grow to the full size,
            which the last third of the epochs has. 1 does without.
        steps: optimiser steps, in place of epochs; the schedule ends with the last one.
    """

    epochs: int | None = None  # type: ignore[assignment]
    batch_size: int | None = None  # type: ignore[assignment]
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 5e-4
    fresh_lr_factor: float = 3.0
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0


#: How a student is trained where the settings do not say: from random weights, and from pretrained ones.
FROM_NOTHING = FitConfig()
FINE_TUNING = FitConfig(
    epochs=16, optimizer="adamw", lr=1e-3, fresh_lr_factor=3.0, weight_decay=0.05, warmup_epochs=1.0
)


def close(fit: FitConfig, base: FitConfig, budget: Budget, images: int | None) -> FitConfig:
    """The same training with nothing left open.

    Args:
        fit: the settings; `epochs` and `batch_size` of None are chosen by the number of images, what else is None is
            taken from the base.
        base: see `fit`.
        budget: how many epochs suit so many images.
        images: number of training images; only to be left out where nothing depends on it.

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
    """A training's schedule in a line."""
    length = counted(fit.steps, "step") if fit.steps else counted(fit.epochs, "epoch")
    return (
        f"{fit.optimizer}, {length} in batches of {fit.batch_size}, learning rate {fit.lr:g} "
        f"({fit.lr * fit.fresh_lr_factor:g} of fresh parts), weight decay {fit.weight_decay:g}, "
        f"{counted(float(fit.warmup_epochs), 'epoch')} of warm-up"
    )
