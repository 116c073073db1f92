"""The average of the weights is that of a slow loop, however often it is killed, on however many processes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor

from scenedistill.config import MachineConfig, StudentConfig, StudentFitConfig
from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import SceneCache
from scenedistill.data.module import SceneDataModule
from scenedistill.data.splits.draw import Split, assemble
from scenedistill.data.views import ViewConfig
from scenedistill.metrics.predict import predict
from scenedistill.models.create import build_student
from scenedistill.models.files import weights_hash
from scenedistill.models.network import SceneNet
from scenedistill.training.base import SceneTraining
from scenedistill.training.best import BestEpoch, read_best
from scenedistill.training.fitting import fit
from scenedistill.training.multi_student import MultiStudentTraining
from scenedistill.training.student import StudentTraining

CPU = MachineConfig(accelerator="cpu", precision="fp32")
EPOCHS = 3


def student(views: ViewConfig, decay: float = 0.6, name: str = "table1_printed", **changes: Any) -> StudentTraining:
    torch.manual_seed(0)
    fit = {"epochs": EPOCHS, "batch_size": 16, "lr": 0.05, "warmup_epochs": 0, "ema_decay": decay, **changes}
    schedule = StudentFitConfig(**fit)
    net: SceneNet = build_student(name, 4, image_size=32)
    return StudentTraining(net, StudentConfig(fit=schedule), {"ce": 1.0}, views, image_size=32, seed=0)


@pytest.fixture(scope="module")
def split(tiny_cache: SceneCache) -> Split:
    """Every fourth image validates."""
    parts = torch.arange(64).remainder(4).eq(3).to(torch.int8).numpy()
    return assemble(tiny_cache.index, parts, None, None)


def train(
    module: SceneTraining,
    cache: SceneCache,
    split: Split,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    machine: MachineConfig = CPU,
) -> dict[str, Any]:
    batches = SceneDataModule(cache, split, batch_size=module.fit.batch_size, seed=0)
    said = Console(file=io.StringIO())
    return fit(module, batches, folder, machine, title="tiny", console=said, callbacks=callbacks)


def state(net: SceneNet) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


class Steps(Callback):
    """Keeps the network as every step leaves it, and as it trains on after a validation."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.after: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.states.append(state(pl_module.net))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.after[len(self.states) - 1] = state(pl_module.net)


def test_what_a_loss_does_to_the_student_after_a_step_is_seen_by_the_average(
    tiny_cache: SceneCache, split: Split, mild: ViewConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SimKD, which folds its layers into the student's head."""
    module, steps = student(mild, decay=0.0, epochs=1), Steps()

    def set_bias(net: SceneNet) -> None:
        net.head.bias.detach().fill_(7.0)

    monkeypatch.setattr(module.losses["ce"], "after_step", set_bias)
    train(module, tiny_cache, split, tmp_path, [steps])
    assert len(steps.states) == 3 and all((seen["head.bias"] == 7).all() for seen in steps.states)


class Killed(Callback):
    """Ends the training in an epoch: in its validation, or once its checkpoint is written."""

    def __init__(self, epoch: int, where: str) -> None:
        self.epoch, self.where = epoch, where

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        if self.where == "validation" and trainer.current_epoch == self.epoch:
            raise InterruptedError

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        if self.where == "end":
            raise InterruptedError


def test_the_final_network_is_the_average_of_a_slow_loop(
    tiny_cache: SceneCache, split: Split, mild: ViewConfig, tmp_path: Path
) -> None:
    module, steps = student(mild), Steps()
    record = train(module, tiny_cache, split, tmp_path, [steps])
    assert len(steps.states) == 9
    average = steps.states[0]
    for number, seen in enumerate(steps.states[1:], start=2):
        decay = min(0.6, 1 - number ** (-2 / 3))
        for name, tensor in seen.items():
            floating = tensor.is_floating_point()
            average[name] = decay * average[name] + (1 - decay) * tensor if floating else tensor
    found = module.net.state_dict()
    for name, tensor in average.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
    last = steps.states[-1]
    assert (found["head.weight"] - last["head.weight"]).abs().max() > 1e-3
    norm = next(name for name in found if name.endswith("running_var"))
    assert (found[norm] - last[norm]).abs().max() > 1e-3, "batch statistics are averaged too"
    for number, tensors in steps.after.items():
        assert all(torch.equal(tensor, steps.states[number][name]) for name, tensor in tensors.items())

    part = ScenePart(tiny_cache, split.val)
    seen_classes = predict(module.net, part, image_size=32, device=torch.device("cpu"), precision="fp32")
    assert record["last_epoch"]["val_oa"] == pytest.approx(np.mean(seen_classes == part.labels), abs=1e-4)


def test_without_averaging_the_network_is_that_of_the_last_step(
    tiny_cache: SceneCache, split: Split, mild: ViewConfig, tmp_path: Path
) -> None:
    module, steps = student(mild, decay=0.0), Steps()
    train(module, tiny_cache, split, tmp_path, [steps])
    assert all(torch.equal(tensor, steps.states[-1][name]) for name, tensor in module.net.state_dict().items())


@pytest.mark.parametrize(("epoch", "where"), [*((epoch, "validation") for epoch in range(EPOCHS)), (EPOCHS - 1, "end")])
def test_a_resumed_training_ends_with_the_same_average(
    epoch: int, where: str, tiny_cache: SceneCache, split: Split, mild: ViewConfig, tmp_path: Path
) -> None:
    whole = student(mild)
    train(whole, tiny_cache, split, tmp_path / "whole", [BestEpoch(tmp_path / "whole")])
    folder = tmp_path / "killed"
    with pytest.raises(InterruptedError):
        train(student(mild), tiny_cache, split, folder, [BestEpoch(folder), Killed(epoch, where)])
    module = student(mild)
    train(module, tiny_cache, split, folder, [BestEpoch(folder)])
    assert weights_hash(module.net) == weights_hash(whole.net)

    best = read_best(folder, "")
    expected = read_best(tmp_path / "whole", "")
    assert best[:2] == expected[:2]
    assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in best.tensors.items())
    module.net.load_state_dict(best.tensors)
    part = ScenePart(tiny_cache, split.val)
    seen = predict(module.net, part, image_size=32, device=torch.device("cpu"), precision="fp32")
    assert best.val_oa == pytest.approx(np.mean(seen == part.labels)), "the best epoch's weights are those validated"


def test_students_trained_side_by_side_average_separately(
    tiny_cache: SceneCache, split: Split, mild: ViewConfig, tmp_path: Path
) -> None:
    alone = {}
    for name in ("table1_printed", "table1_resnet"):
        module = student(mild, name=name)
        train(module, tiny_cache, split, tmp_path / name)
        alone[name] = weights_hash(module.net)
    students = {name: student(mild, name=name) for name in alone}
    train(MultiStudentTraining(students), tiny_cache, split, tmp_path / "together")
    assert {name: weights_hash(one.net) for name, one in students.items()} == alone


@pytest.mark.slow
def test_two_processes_take_the_same_steps_and_average_like_one(
    tiny_cache: SceneCache, split: Split, mild: ViewConfig, tmp_path: Path
) -> None:
    found = {}
    for devices, decay in ((1, 0.6), (2, 0.6), (1, 0.0)):
        # a second epoch of one step; more of them, larger ones or smaller batches would let rounding grow
        module = student(mild, decay, steps=3, batch_size=24, lr=0.03)
        machine = MachineConfig(accelerator="cpu", precision="fp32", devices=devices)
        record = train(module, tiny_cache, split, tmp_path / f"{devices}-{decay}", machine=machine)
        assert (record["epochs"], record["steps"]) == (2, 3) and "val_oa" in record["last_epoch"]
        checkpoint = torch.load(tmp_path / f"{devices}-{decay}" / "checkpoints" / "last.ckpt", weights_only=False)
        assert checkpoint["global_step"] == 3
        found[devices, decay] = module.net.state_dict()
    one, two, raw = found.values()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    for name in ("head.weight", "backbone.stem.1.running_var"):
        assert (raw[name] - one[name]).abs().max() > 1e-3, "else the average was not tested"
