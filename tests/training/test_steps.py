"""A schedule in steps ends with its last step, validated and kept; on two processes too, see test_ema.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from scenedistill.config import (
    FitConfig,
    StudentConfig,
    StudentFitConfig,
    TeacherConfig,
    TeacherFitConfig,
)
from scenedistill.data.cache.build import SceneCache
from scenedistill.data.splits.draw import Split, assemble
from scenedistill.data.views import ViewConfig
from scenedistill.models.create import build_student
from scenedistill.models.files import weights_hash
from scenedistill.training.base import rate
from scenedistill.training.student import StudentTraining
from scenedistill.training.teacher import TeacherTraining

STEPS = 8  # of epochs of three


@pytest.fixture(scope="module")
def split(tiny_cache: SceneCache) -> Split:
    """Every fourth image validates: 48 train."""
    parts = torch.arange(64).remainder(4).eq(3).to(torch.int8).numpy()
    return assemble(tiny_cache.index, parts, None, None)


class Watch(StudentTraining):
    """Writes down the learning rate of every step, and which validations there were."""

    def __init__(self, views: ViewConfig, steps: int | None = STEPS, epochs: int = 3) -> None:
        torch.manual_seed(0)
        fit = StudentFitConfig(epochs=epochs, batch_size=16, lr=0.05, warmup_epochs=1, steps=steps, ema_decay=0.5)
        net = build_student("table1_printed", 4, image_size=32)
        super().__init__(net, StudentConfig(fit=fit), {"ce": 1.0}, views, image_size=32, seed=0)
        self.rates: list[float] = []
        self.validated: list[int] = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"] / 0.05)

    def on_validation_start(self) -> None:
        self.validated.append(self.global_step)


def test_the_cosine_ends_at_zero_with_the_last_step(train: Any, split: Split, mild: ViewConfig) -> None:
    module = Watch(mild)
    record = train(module, split=split)
    assert module.rates == pytest.approx([rate(step, STEPS, 3) for step in range(STEPS)])
    scheduler: Any = module.lr_schedulers()
    assert scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-9)
    assert module.validated == [3, 6, 8], "after the last step too"
    assert (record["epochs"], record["steps"]) == (3, STEPS)
    assert record["last_epoch"]["val_oa"] >= 0 and "epoch 3/3" in record["said"]


def test_a_number_of_steps_equal_to_some_epochs_gives_the_same_training(
    train: Any, split: Split, mild: ViewConfig
) -> None:
    by_steps, by_epochs = Watch(mild, steps=9), Watch(mild, steps=None)
    train(by_steps, split=split, folder="steps")
    record = train(by_epochs, split=split, folder="epochs")
    assert weights_hash(by_steps.net) == weights_hash(by_epochs.net) and record["steps"] == 9


class Killed(Callback):
    """Ends the training in its last, shorter epoch, or when nothing is left but to end."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if self.moment == "step" and trainer.global_step == STEPS - 1:
            raise InterruptedError

    def on_train_end(self, *_: Any) -> None:
        if self.moment == "end":
            raise InterruptedError


@pytest.mark.parametrize("moment", ["step", "end"])
def test_a_killed_training_in_steps_ends_with_the_same_weights(
    moment: str, train: Any, split: Split, mild: ViewConfig
) -> None:
    whole, killed, again = Watch(mild), Watch(mild), Watch(mild)
    expected = train(whole, split=split, folder="whole")
    with pytest.raises(InterruptedError):
        train(killed, split=split, folder="killed", callbacks=[Killed(moment)])
    record = train(again, split=split, folder="killed")
    assert weights_hash(again.net) == weights_hash(whole.net)
    assert len(again.rates) == (2 if moment == "step" else 0)
    assert record["last_epoch"] == expected["last_epoch"] and record["epochs"] == 3


def test_the_number_of_epochs_follows_from_the_batches(train: Any, split: Split, mild: ViewConfig) -> None:
    module = Watch(mild, epochs=77)  # as settings have it that do not know of further images
    record = train(module, split=split)
    assert record["epochs"] == 3 and len(module.rates) == STEPS


def test_a_teacher_can_be_trained_in_steps(train: Any, split: Split, mild: ViewConfig) -> None:
    torch.manual_seed(0)
    fit = TeacherFitConfig(**vars(FitConfig(epochs=2, batch_size=16, lr=0.02, steps=5)))
    net = build_student("table1_printed", 4, image_size=32)
    module = TeacherTraining(net, TeacherConfig(fit=fit), mild, image_size=32, seed=0)
    record = train(module, split=split, images_per_class=4)
    assert (record["epochs"], record["steps"]) == (2, 5)
