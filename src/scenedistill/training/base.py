"""Base class of teacher and student training: views, optimiser, schedule, clipping and validation."""

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
from scenedistill.models.attention import AttendedStage
from scenedistill.models.depthwise import use_quick_depthwise
from scenedistill.models.network import SceneNet
from scenedistill.training.distributed import share_batch_norm
from scenedistill.training.gradients import CLIPPED, SCALE


class Diverged(UserError):
    """A part of the loss, or a weight, is not finite."""


class SceneTraining(L.LightningModule):
    """Training of one network on random views.

    Args:
        net: the network; the only part that is kept after training.
        fit: optimiser, schedule and number of epochs.
        views: ranges of the random views.
        image_size: side of the views in pixels.
        seed: seed of the run.
    """

    def __init__(self, net: SceneNet, fit: FitConfig, views: ViewConfig, *, image_size: int, seed: int) -> None:
        super().__init__()
        self.net = net
        self.fit, self.views, self.image_size, self.seed = fit, views, image_size, seed
        self.epochs = fit.epochs
        self.compiled = False
        #: host seconds spent so far on each input of a step; on a GPU this is the time to launch the work
        self.waits = {"data": 0.0}
        #: warnings to print at the end of the epoch
        self.alerts: list[str] = []
        self.validation_oa = MulticlassAccuracy(net.dims.classes, average="micro")
        self._first_bad_step: dict[tuple[str, ...], Tensor] = {}  # first non-finite step of each part, by their names
        self._scales: dict[str, list[Tensor]] = {}  # by log column: clipping factors of this epoch's steps

    def configure_model(self) -> None:
        """Share batch norm statistics between processes, and compile the networks if `compiled` is set."""
        flush_denormals()
        for net in self.networks().values():
            use_quick_depthwise(net)
        if self.trainer.world_size > 1:
            if self.trainer.strategy.root_device.type == "cuda":
                # torch's conversion drops the activations inside timm's norm layers
                convert_sync_batchnorm(self)  # type: ignore[no-untyped-call]
            else:
                share_batch_norm(self)
        if self.compiled:
            allow_compiling()
            torch._dynamo.config.suppress_errors = True  # code that cannot be compiled runs uncompiled
            for net in self.networks().values():
                net.compile(dynamic=False)

    def networks(self) -> dict[str, SceneNet]:
        """Return the networks that train, by the prefix of their names in the log."""
        return {"": self.net}

    def transfer_batch_to_device(self, batch: SceneBatch, device: torch.device, dataloader_idx: int) -> SceneBatch:
        """Move a batch to a device."""
        return batch.to(device, non_blocking=True)

    def on_train_epoch_start(self) -> None:
        """Seed the random layers (dropout, stochastic depth) by the run's seed, the epoch and the process."""
        torch.manual_seed(((self.seed * 1_000_003 + self.current_epoch) * 4099 + self.global_rank) % 2**64)
        self._scales.clear()

    def view(self, batch: SceneBatch, epoch: int) -> Tensor:
        """Return the random views of a batch in an epoch, `[B, bands, image_size, image_size]`."""
        with self.waiting("data"):
            return mixed_view(batch, seed=self.seed, epoch=epoch, size=self.image_size, config=self.views)

    def resized_for_epoch(self, view: Tensor) -> Tensor:
        """Scale views `[B, bands, H, W]` down to the size of this epoch, see `view_size`."""
        return resized(view, view_size(self.current_epoch, self.epochs, self.image_size, self.fit.first_size))

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Add the seconds spent in the block to `waits[what]`."""
        started = time.perf_counter()
        yield
        self.waits[what] = self.waits.get(what, 0.0) + time.perf_counter() - started

    def report(self, parts: dict[str, Tensor], logits: Tensor, labels: Tensor, prefix: str = "") -> None:
        """Log the parts of the loss and the OA on the training views.

        Args:
            parts: scalar parts of the loss by name.
            logits: logits `[B, K]`.
            labels: labels `[B]`; images with a negative label do not count towards the OA.
            prefix: prefix of the logged names.

        Raises:
            Diverged: a part is not finite; on a GPU this is raised at the end of the epoch.
        """
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
        """End the epoch, with validation, after step `fit.steps`. With Lightning's `max_steps` there would be no
        validation, and a killed training could not be resumed."""
        if self.fit.steps is not None and self.global_step >= self.fit.steps:
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        """Check losses and weights before the checkpoint of this epoch replaces the previous one.

        Raises:
            Diverged: a part of the loss, or a weight, is not finite.
        """
        self._raise_if_diverged()
        if not torch.stack([parameter.isfinite().all() for parameter in self.parameters()]).all():
            raise Diverged(f"The weights are not finite numbers after epoch {self.current_epoch + 1}: {self._advice()}")
        self._log_clipping()

    def _check_finite(self, parts: dict[str, Tensor]) -> None:
        """Record the first non-finite step of each part. A CPU raises at once; a GPU, where reading the value would
        force a synchronisation, raises at the end of the epoch."""
        finite = torch.stack([part.isfinite() for part in parts.values()])
        before = self._first_bad_step.setdefault(tuple(parts), torch.full(finite.shape, math.inf, device=finite.device))
        before.copy_(torch.where(finite, before, before.clamp(max=float(self.global_step))))
        if finite.device.type == "cpu":
            self._raise_if_diverged()

    def _raise_if_diverged(self) -> None:
        """Raise `Diverged` if a part of the loss was not finite."""
        steps = {
            name: step
            for names, found in self._first_bad_step.items()
            for name, step in zip(names, found.tolist(), strict=True)
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
        """Update the OA on the validation images with the evaluation views of a batch."""
        logits = self.net(evaluation_view(batch.images, size=self.image_size), attention=False).logits
        self.validation_oa(logits, batch.labels)
        self.log("val_oa", self.validation_oa, prog_bar=True, on_epoch=True, batch_size=len(batch))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of each parameter group by its own norm; Lightning's clipping refuses fused optimisers."""
        if gradient_clip_val:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for column, part in self.clipping_groups(trained).items():
                norm = torch.nn.utils.clip_grad_norm_(part, gradient_clip_val)
                self._scales.setdefault(column, []).append((gradient_clip_val / norm).clamp(max=1.0))

    def clipping_groups(self, trained: list[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
        """Return the parameter groups that are clipped separately, by log column: those of the network and those of the
        losses' adapters. With a joint norm, large gradients of the adapters would shorten the network's steps."""
        own = set(self.net.parameters())
        parts = {"net": [p for p in trained if p in own], "adapters": [p for p in trained if p not in own]}
        return {f"{CLIPPED}{name}": part for name, part in parts.items() if part}

    def _log_clipping(self) -> None:
        """Log the share of this epoch's steps that were clipped, and the median of the clipping factors."""
        found = {}
        for column, scales in self._scales.items():
            every = torch.stack(scales)
            found[column] = float((every < 1).float().mean())
            found[f"{column}{SCALE}"] = float(every.median())
        for logger in self.loggers if found else ():
            logger.log_metrics({**found, "epoch": self.current_epoch}, step=self.global_step)

    def configure_optimizers(self) -> Any:
        """Return SGD or AdamW with a linear warm-up and a cosine decay to zero, stepped with every batch."""
        groups = parameter_groups(self, self.fit)
        # not fused in fp16, where gradients are unscaled and clipped before the step
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed"
        optimizer: torch.optim.Optimizer
        if self.fit.optimizer == "sgd":
            momentum = self.fit.momentum
            optimizer = torch.optim.SGD(groups, lr=self.fit.lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.fit.lr, fused=fused)
        whole = int(self.trainer.estimated_stepping_batches)  # steps of all epochs
        warmup = round(self.fit.warmup_epochs * whole / self.epochs)
        total = self.fit.steps or whole
        schedule = LambdaLR(optimizer, lambda step: rate(step, total, warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def view_size(epoch: int, epochs: int, size: int, first: float) -> int:
    """Return the side in pixels of the views of an epoch.

    The side grows linearly from `first * size` to `size`, rounded to 16 pixels (32 where `size` is at least 160), and
    is `size` in the last third of the epochs.

    Args:
        epoch: epoch, counted from 0.
        epochs: number of epochs.
        size: full side in pixels.
        first: share of the full side at the start, in (0, 1].
    """
    full = 2 * epochs // 3
    if first == 1 or epoch >= full:
        return size
    step = 16 if size < 160 else 32
    side = step * int((first + (1 - first) * epoch / full) * size / step + 0.5)
    return min(size, max(32, side))


def rate(step: int, total: int, warmup: int) -> float:
    """Return the share of the peak learning rate at a step: a linear warm-up to 1, then a cosine decay to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def parameter_groups(module: nn.Module, fit: FitConfig) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups: newly initialised parts have a learning rate of their own
    (`fit.fresh_lr_factor`), and vectors have no weight decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    attention = [stage.attention for stage in module.modules() if isinstance(stage, AttendedStage)]
    fresh = {parameter for each in attention for parameter in each.parameters()}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            pretrained = "net.backbone." in name and parameter not in fresh
            groups.setdefault((pretrained, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": fit.lr if pretrained else fit.lr * fit.fresh_lr_factor,
            "weight_decay": fit.weight_decay if matrix else 0.0,
        }
        for (pretrained, matrix), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
