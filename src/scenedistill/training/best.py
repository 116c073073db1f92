"""The epoch that was best on the validation images, kept beside the last one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scenedistill.training.base import SceneTraining
from scenedistill.training.runs import whole_file

BEST = "best"


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

    They lie in files of the folder `BEST`, not in the checkpoint: a killed training that goes on finds them there, as
    does whoever started the processes of a training.

    Args:
        folder: of the training.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / BEST

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """An epoch that was killed before its checkpoint was written is trained again: what it left goes."""
        for path in self.folder.glob("*.safetensors") if trainer.is_global_zero else ():
            if (kept := _facts(path)) is None or kept.epoch > trainer.current_epoch:
                path.unlink()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what is better than all before."""
        assert isinstance(pl_module, SceneTraining)
        if not trainer.is_global_zero:
            return
        for prefix, net in pl_module.networks().items():
            path, oa = _path(self.folder, prefix), float(trainer.callback_metrics[f"{prefix}val_oa"])
            kept = _facts(path)
            if kept is None or oa > kept.val_oa:
                tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
                facts = {"epoch": str(trainer.current_epoch + 1), "val_oa": repr(oa)}
                self.folder.mkdir(parents=True, exist_ok=True)
                with whole_file(path) as file:
                    file.write(save(tensors, metadata=facts))


def read_best(folder: Path, prefix: str) -> Best:
    """What a finished training in a folder has kept of the network with a prefix."""
    path = _path(folder / BEST, prefix)
    kept = _facts(path)
    assert kept is not None, f"{path} is missing or damaged"
    with safe_open(path, "pt") as file:
        return kept._replace(tensors={name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def _path(folder: Path, prefix: str) -> Path:
    return folder / f"{prefix.strip().replace(' ', '-') or 'net'}.safetensors"


def _facts(path: Path) -> Best | None:
    """All but the tensors; None where there is no such file or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata()
            return Best(int(facts["epoch"]), float(facts["val_oa"]), {})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
