"""The best epoch of a training, however often it was killed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from safetensors import safe_open

from scenedistill.config import MachineConfig, StudentConfig, StudentFitConfig
from scenedistill.data.cache.build import SceneCache
from scenedistill.data.module import SceneDataModule
from scenedistill.data.splits.draw import assemble
from scenedistill.data.views import ViewConfig
from scenedistill.models.create import build_student
from scenedistill.training.best import BEST, Best, BestEpoch, read_best
from scenedistill.training.fitting import fit
from scenedistill.training.student import StudentTraining

EPOCHS = 4


class Killed(Callback):
    """Ends the training in the validation of an epoch, after what was best has been kept and before its checkpoint."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_validation_end(self, trainer: object, *_: object) -> None:
        if getattr(trainer, "current_epoch", None) == self.epoch:
            raise InterruptedError


def train(cache: SceneCache, mild: ViewConfig, folder: Path, *more: Callback) -> None:
    torch.manual_seed(0)
    schedule = StudentFitConfig(epochs=EPOCHS, batch_size=16, lr=0.1, warmup_epochs=0)
    net = build_student("table1_printed", 4, image_size=32)
    module = StudentTraining(net, StudentConfig(fit=schedule), {"ce": 1.0}, mild, image_size=32, seed=0)
    parts = torch.arange(64).remainder(4).eq(3).to(torch.int8).numpy()  # every fourth image validates
    batches = SceneDataModule(cache, assemble(cache.index, parts, None, None), batch_size=16, seed=0)
    machine = MachineConfig(accelerator="cpu", precision="fp32")
    said = Console(file=io.StringIO())
    fit(module, batches, folder, machine, title="tiny", console=said, callbacks=[BestEpoch(folder), *more])


def epoch_in(file: Path) -> int:
    """Return the epoch in the metadata of a file of weights."""
    with safe_open(file, "pt") as content:
        return int(content.metadata()["epoch"])


def same(one: Best, other: Best) -> bool:
    alike = all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    return one[:2] == other[:2] and one.tensors.keys() == other.tensors.keys() and alike


def test_a_training_killed_in_any_epoch_keeps_the_same_best_epoch(
    tiny_cache: SceneCache, mild: ViewConfig, tmp_path: Path
) -> None:
    train(tiny_cache, mild, tmp_path / "whole")
    whole = read_best(tmp_path / "whole", "")
    assert 1 <= whole.epoch <= EPOCHS and 0 < whole.val_oa <= 1
    for epoch in range(EPOCHS):
        folder = tmp_path / f"{epoch}"
        with pytest.raises(InterruptedError):
            train(tiny_cache, mild, folder, Killed(epoch))
        kept = [epoch_in(file) for file in (folder / BEST).glob("*.safetensors")]
        assert not epoch or min(kept) <= epoch, "the best one so far, which the checkpoint counts with"
        if epoch == 1:
            for file in (folder / BEST).iterdir():
                file.write_bytes(b"cut")  # what a power cut may leave
        train(tiny_cache, mild, folder)
        found = read_best(folder, "")
        assert len(list((folder / BEST).iterdir())) <= 2
        if epoch == 1 and whole.epoch == 1:
            assert found.epoch > 1, "the first epoch's was lost"
        else:
            assert same(found, whole), epoch
