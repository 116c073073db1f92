"""Keep the weights of the epoch with the best validation OA beside those of the last epoch."""

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
    """A kept epoch.

    Attributes:
        epoch: epoch, counted from 1.
        val_oa: OA on the validation images, 0..1.
        tensors: state of the network.
    """

    epoch: int
    val_oa: float
    tensors: dict[str, Tensor]


class BestEpoch(Callback):
    """Callback that keeps the weights of the first epoch with the highest validation OA, for each network that trains.

    The weights are files in the folder `BEST` rather than part of the checkpoint, so that a resumed training and the
    process that started the training processes can read them.

    Args:
        folder: folder of the training.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / BEST

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Delete the files of an epoch that was killed before its checkpoint was written; it is trained again."""
        for path in self.folder.glob("*.safetensors") if trainer.is_global_zero else ():
            if (kept := _read_metadata(path)) is None or kept.epoch > trainer.current_epoch:
                path.unlink()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the weights of each network whose validation OA is higher than in all epochs before."""
        assert isinstance(pl_module, SceneTraining)
        if not trainer.is_global_zero:
            return
        for prefix, net in pl_module.networks().items():
            oa, epoch = float(trainer.callback_metrics[f"{prefix}val_oa"]), trainer.current_epoch + 1
            kept = _kept_files(self.folder, prefix)
            if not kept or oa > kept[0][0].val_oa:
                tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
                self.folder.mkdir(parents=True, exist_ok=True)
                metadata = with_checksum({"epoch": str(epoch), "val_oa": repr(oa)}, tensors)
                with whole_file(self.folder / f"{_stem(prefix)}@{epoch}.safetensors") as file:
                    file.write(save(tensors, metadata))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Delete weights that are not the best ones; by now the checkpoint of the previous epoch is written."""
        assert isinstance(pl_module, SceneTraining)
        for prefix in pl_module.networks() if trainer.is_global_zero else ():
            for _, path in _kept_files(self.folder, prefix)[1:]:
                path.unlink()


def read_best(folder: Path, prefix: str) -> Best:
    """Return the best epoch of a finished training.

    Args:
        folder: folder of the training.
        prefix: prefix of the network's names in the log, see `SceneTraining.networks`.

    Raises:
        Damaged: the file is missing or damaged.
    """
    kept = _kept_files(folder / BEST, prefix)
    if not kept:
        raise Damaged(
            f"{folder / BEST} holds no best epoch of '{prefix}', or a damaged one. Remove {folder}, "
            "and give the same command to train it again."
        )
    best, path = kept[0]
    return best._replace(tensors=read_tensors(path)[0])


def damaged_best(folder: Path) -> Path | None:
    """Return the first damaged file of best weights in the folder of an unfinished training, or None."""
    for path in sorted((folder / BEST).glob("*.safetensors")):
        try:
            read_tensors(path)
        except UserError:
            return path
    return None


def _stem(prefix: str) -> str:
    return prefix.strip().replace(" ", "-") or "net"


def _kept_files(folder: Path, prefix: str) -> list[tuple[Best, Path]]:
    """Return the kept epochs of a network without their tensors, and their files; the best epoch first."""
    own = (path for path in folder.glob("*.safetensors") if path.name.rpartition("@")[0] == _stem(prefix))
    found = [(kept, path) for path in own if (kept := _read_metadata(path))]
    return sorted(found, key=lambda one: -one[0].val_oa)


def _read_metadata(path: Path) -> Best | None:
    """Read a kept epoch without its tensors; None if there is no such file or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            return Best(int(metadata["epoch"]), float(metadata["val_oa"]), {})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
