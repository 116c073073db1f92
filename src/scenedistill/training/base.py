"""What training a teacher and training a student share: views, optimiser, schedule, validation."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from scenedistill.config import FitConfig
from scenedistill.core.errors import UserError
from scenedistill.core.precision import allow_compiling, flush_denormals
from scenedistill.data.batches import SceneBatch
from scenedistill.data.training_part import mixed_view
from scenedistill.data.views import ViewConfig, evaluation_view, resized
from scenedistill.models.depthwise import use_quick_depthwise
from scenedistill.models.network import SceneNet
from scenedistill.training.distributed import share_batch_norm
from scenedistill.training.gradients import CLIPPED, SCALE


class Diverged(UserError):
    """A part of the loss is no finite number any more."""


class SceneTraining(L.LightningModule):
    """Trains `net` on random views.

    Args:
        net: the network; it alone is what training leaves behind.
        fit: optimiser, schedule, epochs.
        views: how the random views vary.
        image_size: side of the views in pixels.
        seed: of the run.
    """

    def __init__(self, net: SceneNet, fit: FitConfig, views: ViewConfig, *, image_size: int, seed: int) -> None:
        super().__init__()
        self.net = net
        self.fit, self.views, self.image_size, self.seed = fit, views, image_size, seed
        self.epochs = fit.epochs
        self.compiled = False
        #: seconds of the host spent so far on what a step waits for; on a GPU only the asking counts
        self.waits = {"data": 0.0}
        #: what the user is told at the end of the epoch
        self.alerts: list[str] = []
        self.validation_oa = MulticlassAccuracy(net.dims.classes, average="micro")
        self._lost: dict[tuple[str, ...], Tensor] = {}  # of parts of the loss: the first step at which each was lost
        self._scales: dict[str, list[Tensor]] = {}  # of this epoch's steps, by column: what clipping multiplied with

    def configure_model(self) -> None:
        """With several processes, batch norm uses the statistics of the whole batch; networks are compiled if asked."""
        flush_denormals()
        for net in self.networks().values():
            use_quick_depthwise(net)
        if self.trainer.world_size > 1:
            if self.device.type == "cuda" or self.trainer.strategy.root_device.type == "cuda":
                # timm's own: torch's drops the activations that timm's norms hold
                convert_sync_batchnorm(self)  # type: ignore[no-untyped-call]
            else:
                share_batch_norm(self)
        if self.compiled:
            allow_compiling()
            torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
            for net in self.networks().values():
                net.compile(dynamic=False)

    def networks(self) -> dict[str, SceneNet]:
        """What trains, by what begins its names in the log."""
        return {"": self.net}

    def transfer_batch_to_device(self, batch: SceneBatch, device: torch.device, dataloader_idx: int) -> SceneBatch:
        """A `SceneBatch` knows how to move itself."""
        return batch.to(device, non_blocking=True)

    def on_train_epoch_start(self) -> None:
        """Make what is random inside a network (dropout, stochastic depth) a function of (seed, epoch, process) too."""
        torch.manual_seed(((self.seed * 1_000_003 + self.current_epoch) * 4099 + self.global_rank) % 2**64)
        self._scales.clear()

    def view(self, batch: SceneBatch, epoch: int) -> Tensor:
        """The batch's random views of an epoch, `[B, bands, image_size, image_size]`."""
        with self.waiting("data"):
            return mixed_view(batch, seed=self.seed, epoch=epoch, size=self.image_size, config=self.views)

    def at_its_size(self, view: Tensor) -> Tensor:
        """Views as the network sees them in this epoch: the same, scaled down where it begins with smaller ones."""
        return resized(view, view_size(self.current_epoch, self.epochs, self.image_size, self.fit.first_size))

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Count the seconds spent inside as waiting for something."""
        started = time.perf_counter()
        yield
        self.waits[what] = self.waits.get(what, 0.0) + time.perf_counter() - started

    def report(self, parts: dict[str, Tensor], logits: Tensor, labels: Tensor, prefix: str = "") -> None:
        """Log the parts of the loss and the OA on the training views, the names behind a prefix."""
        known = labels >= 0
        oa = ((logits.detach().argmax(1) == labels) & known).sum() / known.sum().clamp(min=1)
        several = self.trainer.world_size > 1
        values = {f"{prefix}{name}": part.detach() for name, part in parts.items()}
        self._check_finite(values)
        self.log_dict(
            {**values, f"{prefix}train_oa": oa},
            prog_bar=True,
            on_step=False,
            on_epoch=True,
            batch_size=len(labels),
            sync_dist=several,
        )

    def on_train_batch_end(self, *_: Any) -> None:
        """After the last of so many steps, validate and end the epoch there. With Lightning's `max_steps` nothing would
        be validated, and a killed training would not go on."""
        if self.fit.steps is not None and self.global_step >= self.fit.steps:
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        """See that all is well before this epoch's checkpoint replaces the last good one."""
        self._stop_if_lost()
        if not torch.stack([parameter.isfinite().all() for parameter in self.parameters()]).all():
            raise Diverged(f"The weights are not finite numbers after epoch {self.current_epoch + 1}: {self._advice()}")
        self._log_clipping()

    def _check_finite(self, parts: dict[str, Tensor]) -> None:
        """Notice a loss that is no finite number: on a CPU at once; on a GPU, which one would have to wait for, at the
        end of the epoch."""
        finite = torch.stack([part.isfinite() for part in parts.values()])
        before = self._lost.setdefault(tuple(parts), torch.full(finite.shape, math.inf, device=finite.device))
        before.copy_(torch.where(finite, before, before.clamp(max=float(self.global_step))))
        if finite.device.type == "cpu":
            self._stop_if_lost()

    def _stop_if_lost(self) -> None:
        """Raises:
        Diverged: a part of the loss was not finite.
        """
        steps = {
            name: step for names, found in self._lost.items() for name, step in zip(names, found.tolist(), strict=True)
        }
        first = min(steps.values(), default=math.inf)
        if first == math.inf:
            return
        lost = [name for name, step in steps.items() if step == first]
        what = f"Part {', '.join(lost)} of the loss is" if len(lost) < len(steps) else "The loss is"
        raise Diverged(
            f"{what} not a finite number at step {first:.0f} (epoch {self.current_epoch + 1}): {self._advice()}"
        )

    def _advice(self) -> str:
        return (
            f"the training has diverged. Lower the learning rate (fit.lr is {self.fit.lr:g}), the loss's weight or the "
            f"largest norm of the gradient (fit.clip_norm is {self.fit.clip_norm:g}), or compute in "
            "--machine.precision fp32."
        )

    def validation_step(self, batch: SceneBatch, batch_idx: int) -> None:
        """OA on the validation part, from the evaluation view."""
        logits = self.net(evaluation_view(batch.images, size=self.image_size), attention=False).logits
        self.validation_oa(logits, batch.labels)
        self.log("val_oa", self.validation_oa, prog_bar=True, on_epoch=True, batch_size=len(batch))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each part of the gradient by its own norm; Lightning's own way refuses fused optimisers."""
        if gradient_clip_val:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for column, part in self.clipped_apart(trained).items():
                norm = torch.nn.utils.clip_grad_norm_(part, gradient_clip_val)
                self._scales.setdefault(column, []).append((gradient_clip_val / norm).clamp(max=1.0))

    def clipped_apart(self, trained: list[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
        """The trained parameters in the parts whose gradients are clipped each by its own norm, by column of the log:
        the network's, and those of the losses' adapters, whose gradients would else shorten the network's steps."""
        own = set(self.net.parameters())
        parts = {"net": [p for p in trained if p in own], "adapters": [p for p in trained if p not in own]}
        return {f"{CLIPPED}{name}": part for name, part in parts.items() if part}

    def _log_clipping(self) -> None:
        """Log how often clipping acted in this epoch, and how much."""
        found = {}
        for column, scales in self._scales.items():
            every = torch.stack(scales)
            found[column] = float((every < 1).float().mean())
            found[f"{column}{SCALE}"] = float(every.median())
        for logger in self.loggers if found else ():
            logger.log_metrics({**found, "epoch": self.current_epoch}, step=self.global_step)

    def configure_optimizers(self) -> Any:
        """SGD or AdamW under a linear warm-up and a cosine fall to zero, stepped with every batch."""
        groups = parameter_groups(self, self.fit)
        # one kernel for all parameters; not in fp16, whose gradients are unscaled and clipped before the step
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed"
        optimizer: torch.optim.Optimizer
        if self.fit.optimizer == "sgd":
            momentum = self.fit.momentum
            optimizer = torch.optim.SGD(groups, lr=self.fit.lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.fit.lr, fused=fused)
        whole = int(self.trainer.estimated_stepping_batches)  # of all epochs
        warmup = round(self.fit.warmup_epochs * whole / self.epochs)
        total = self.fit.steps or whole
        schedule = LambdaLR(optimizer, lambda step: rate(step, total, warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def view_size(epoch: int, epochs: int, size: int, first: float) -> int:
    """Side in pixels of the views of an epoch, counted from 0: from a share of the full size it grows in a line, in
    steps of 16 pixels (32 from a size of 160 on), to the full size, which the last third of the epochs has."""
    full = 2 * epochs // 3
    if first == 1 or epoch >= full:
        return size
    step = 16 if size < 160 else 32
    side = step * int((first + (1 - first) * epoch / full) * size / step + 0.5)
    return min(size, max(32, side))


def rate(step: int, total: int, warmup: int) -> float:
    """Share of the peak learning rate at a step: linear up to 1, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def parameter_groups(module: nn.Module, fit: FitConfig) -> list[dict[str, Any]]:
    """Parameters by learning rate (fresh parts learn faster when fine-tuning) and by weight decay (none on vectors)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            pretrained = "net.backbone." in name and ".attention." not in name
            groups.setdefault((pretrained, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": fit.lr if pretrained else fit.lr * fit.fresh_lr_factor,
            "weight_decay": fit.weight_decay if matrix else 0.0,
        }
        for (pretrained, matrix), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
