"""The epoch that was best on the validation images, kept beside the last one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scenedistill.core.disk import whole_file
from scenedistill.core.errors import Damaged, UserError
from scenedistill.models.files import read_tensors, with_checksum
from scenedistill.training.base import SceneTraining

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
            oa, epoch = float(trainer.callback_metrics[f"{prefix}val_oa"]), trainer.current_epoch + 1
            kept = _kept(self.folder, prefix)
            if not kept or oa > kept[0][0].val_oa:
                tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
                self.folder.mkdir(parents=True, exist_ok=True)
                facts = with_checksum({"epoch": str(epoch), "val_oa": repr(oa)}, tensors)
                with whole_file(self.folder / f"{_stem(prefix)}@{epoch}.safetensors") as file:
                    file.write(save(tensors, facts))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The checkpoint of the epoch before is written: what is no longer the best may go."""
        assert isinstance(pl_module, SceneTraining)
        for prefix in pl_module.networks() if trainer.is_global_zero else ():
            for _, path in _kept(self.folder, prefix)[1:]:
                path.unlink()


def read_best(folder: Path, prefix: str) -> Best:
    """What a finished training in a folder has kept of the network with a prefix.

    Raises:
        Damaged: it is gone, or is not what was written.
    """
    kept = _kept(folder / BEST, prefix)
    if not kept:
        raise Damaged(
            f"{folder / BEST} holds no best epoch of '{prefix}', or a damaged one. Remove {folder}: what was trained "
            "there is trained again."
        )
    best, path = kept[0]
    return best._replace(tensors=read_tensors(path)[0])


def damaged_best(folder: Path) -> Path | None:
    """The first file of an unfinished training in a folder that does not hold what was kept of an epoch."""
    for path in sorted((folder / BEST).glob("*.safetensors")):
        try:
            read_tensors(path)
        except UserError:
            return path
    return None


def _stem(prefix: str) -> str:
    return prefix.strip().replace(" ", "-") or "net"


def _kept(folder: Path, prefix: str) -> list[tuple[Best, Path]]:
    """What there is of a network, without the tensors; the best first."""
    own = (path for path in folder.glob("*.safetensors") if path.name.rpartition("@")[0] == _stem(prefix))
    found = [(facts, path) for path in own if (facts := _facts(path))]
    return sorted(found, key=lambda one: -one[0].val_oa)


def _facts(path: Path) -> Best | None:
    """All but the tensors; None where there is no such file or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata()
            return Best(int(facts["epoch"]), float(facts["val_oa"]), {})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
