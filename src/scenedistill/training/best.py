"""The epoch that was best on the validation images, kept beside the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Callback
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from scenedistill.training.base import SceneTraining

FOLDER = "best"


class Best(NamedTuple):
    """What is kept of an epoch.

    Attributes:
        epoch: counted from 1.
        val_oa: OA on the validation images, 0..1.
        tensors: the network's state.
    """

    epoch: int
    val_oa: float
    tensors: dict[str, Tensor]


class BestEpoch(Callback):
    """Keeps, of each network that trains, the weights of the first epoch with the highest validation OA.

    They lie in files, not in the checkpoint: a killed training that goes on finds them there, as does whoever started
    the processes of a training.

    Args:
        folder: of the training.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What lies there from a try that did not finish an epoch is not of this training."""
        if trainer.current_epoch == 0 and trainer.is_global_zero:
            for path in self.folder.glob("*.safetensors"):
                path.unlink()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what is better than all before."""
        assert isinstance(pl_module, SceneTraining)
        if not trainer.is_global_zero:
            return
        for prefix, net in pl_module.networks().items():
            path, oa = _path(self.folder, prefix), float(trainer.callback_metrics[f"{prefix}val_oa"])
            if path.is_file() and oa <= float(_facts(path)["val_oa"]):
                continue
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
            facts = {"epoch": str(trainer.current_epoch + 1), "val_oa": repr(oa)}
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_bytes(save(tensors, metadata=facts))
            part.replace(path)


def read_best(folder: Path, prefix: str) -> Best:
    """What a finished training in a folder has kept of the network with a prefix."""
    path = _path(folder / FOLDER, prefix)
    facts = _facts(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Best(int(facts["epoch"]), float(facts["val_oa"]), tensors)


def _path(folder: Path, prefix: str) -> Path:
    return folder / f"{prefix.strip().replace(' ', '-') or 'net'}.safetensors"


def _facts(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        facts: dict[str, Any] = file.metadata()
    return facts
