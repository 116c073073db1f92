"""An average of a network's weights over its last steps, which is what validation sees and what training leaves."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from scenedistill.models.network import SceneNet
from scenedistill.training.base import SceneTraining


class AveragedWeights(Callback):
    """Keeps an exponential moving average of every network that trains, batch statistics included.

    After step t, counted from 1, the average moves by 1 - d towards the network, with d the smaller of `decay` and
    1 - t^(-2/3) (timm's `ModelEmaV3` with warm-up): it spans the last t^(2/3) or so of the first t steps, so that the
    start has no weight in the end however short the schedule is. Lightning's own `WeightAveraging` would copy and
    average the losses' adapters too, and what the module holds of the teacher.

    Validation, the best epoch and the final network are the averaged one; the steps go on from the other one. Both are
    in the checkpoint.

    Args:
        decay: d once it is warm, in (0, 1): the average spans about 1 / (1 - d) steps.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._averages: dict[str, ModelEmaV3] = {}
        self._loaded: dict[str, dict[str, Tensor]] = {}  # of a killed training that goes on

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with the network as it is, or with what the checkpoint holds."""
        for prefix, net in _networks(pl_module).items():
            self._averages[prefix] = ModelEmaV3(net, decay=self.decay, use_warmup=True)
            if prefix in self._loaded:
                self._averages[prefix].module.load_state_dict(self._loaded[prefix])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Move towards what the step has made of the network."""
        for prefix, net in _networks(pl_module).items():
            self._averages[prefix].update(net, step=trainer.global_step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the average into the network."""
        self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put back what trains; callbacks before this one have seen the average."""
        self._swap(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average, also where nothing was left to train."""
        for prefix, net in _networks(pl_module).items():
            average = self._averages[prefix].module.state_dict() if prefix in self._averages else self._loaded[prefix]
            net.load_state_dict(average)

    @torch.no_grad()
    def _swap(self, pl_module: L.LightningModule) -> None:
        for prefix, net in _networks(pl_module).items():
            ours, theirs = self._averages[prefix].module.state_dict(), net.state_dict()
            for name, tensor in ours.items():
                kept = tensor.clone()
                tensor.copy_(theirs[name])
                theirs[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return {prefix: dict(average.module.state_dict()) for prefix, average in self._averages.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the averages until the networks are in their place."""
        self._loaded = state_dict


def _networks(module: L.LightningModule) -> dict[str, SceneNet]:
    assert isinstance(module, SceneTraining)
    return module.networks()
