"""Exponential moving average of a network's weights, for validation and as the result of training."""

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
    """Callback that keeps an exponential moving average of every network that trains, batch statistics included.

    After step t, counted from 1, the average moves by 1 - d towards the network, where d is the smaller of `decay` and
    1 - t^(-2/3) (timm's `ModelEmaV3` with warm-up). The average then spans about t^(2/3) steps, so that the initial
    weights have no influence even in a short training. Lightning's `WeightAveraging` is not used because it averages
    the whole module, the losses' adapters included.

    Validation, the best epoch and the final network use the average; the optimiser steps from the network's own
    weights. The checkpoint contains both.

    Args:
        decay: d after the warm-up, in (0, 1): the average spans about 1 / (1 - d) steps.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._averages: dict[str, ModelEmaV3] = {}
        self._loaded: dict[str, dict[str, Tensor]] = {}  # from the checkpoint of a resumed training

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the averages from the networks, or from the checkpoint of a resumed training."""
        for prefix, net in _networks(pl_module).items():
            self._averages[prefix] = ModelEmaV3(net, decay=self.decay, use_warmup=True)
            if prefix in self._loaded:
                self._averages[prefix].module.load_state_dict(self._loaded[prefix])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Update the averages after a step."""
        for prefix, net in _networks(pl_module).items():
            self._averages[prefix].update(net, step=trainer.global_step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swap the averages into the networks."""
        self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swap the trained weights back; callbacks before this one have used the averages."""
        self._swap(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the averages into the networks, also if no epoch was left to train."""
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
        """Return the averages by the networks' prefixes."""
        return {prefix: dict(average.module.state_dict()) for prefix, average in self._averages.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the averages until `on_train_start`, when the networks are on their device."""
        self._loaded = state_dict


def _networks(module: L.LightningModule) -> dict[str, SceneNet]:
    assert isinstance(module, SceneTraining)
    return module.networks()
