"""Run a training with Lightning's Trainer so that it can be killed at any moment and resumed."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console
from torch.multiprocessing.spawn import ProcessRaisedException

from scenedistill.config import MachineConfig
from scenedistill.core.disk import archive_damage
from scenedistill.core.errors import UserError
from scenedistill.core.precision import compute_device, resolve_precision
from scenedistill.core.terminal import plain_console
from scenedistill.data.module import SceneDataModule
from scenedistill.training.base import Diverged, SceneTraining
from scenedistill.training.checkpoint_io import AtomicCheckpoints
from scenedistill.training.ema import AveragedWeights

LIGHTNING_PRECISION: dict[str, Any] = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}


def fit(
    module: SceneTraining,
    data: SceneDataModule,
    folder: Path,
    machine: MachineConfig,
    *,
    title: str,
    console: Console,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train to the end, starting from the last finished epoch of an earlier attempt.

    A checkpoint is written atomically after every epoch. An epoch depends only on the state before it and the seed, so
    that a resumed training computes the same result as an uninterrupted one, to the same bits on a CPU.

    Args:
        module: module to train.
        data: its training and validation batches.
        folder: folder of the checkpoint and the logs.
        machine: devices, strategy and precision.
        title: title in the progress display.
        console: console to print to.
        callbacks: further callbacks; on validation they see the averaged weights, if there are any.

    Returns:
        `seconds` of training over all attempts, `epochs`, `steps`, `images_per_second`, `waits` (seconds by input),
        `last_epoch` (its metrics), `peak_memory_mib` and `precision`.

    Raises:
        UserError: the settings do not fit the data or the machine, or the training diverged (`Diverged`). With several
            processes it is the error of the first one that failed.
    """
    _silence_libraries()
    checkpoint = folder / "checkpoints" / "last.ckpt"
    clock = _Clock(title, console)
    keeper = ModelCheckpoint(
        dirpath=checkpoint.parent,
        filename="last",
        save_top_k=1,
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    averaging = [AveragedWeights(module.fit.ema_decay)] if module.fit.ema_decay else []
    watching = [*callbacks, *averaging, clock, keeper]  # the first see the average on validation
    if sys.stdout.isatty():
        watching.append(RichProgressBar(leave=False))
    if checkpoint.exists() and (problem := archive_damage(checkpoint)):
        console.print(f"  {title}: {problem}; the training starts again", markup=False)
        checkpoint.unlink(missing_ok=True)
    attempt = len(list((folder / "logs").glob("attempt_*")))  # of a repeated epoch, the last attempt counts
    # raise errors of the batches here rather than in one of several processes
    batches: Any = data.train_dataloader()
    if data.batch_size > len(data.training):
        console.print(f"  {title}: all {len(data.training)} training images make one batch", markup=False)
    if module.fit.steps is not None:  # images without labels make an epoch longer than the settings could know
        module.epochs = math.ceil(module.fit.steps / len(batches))
    trainer = L.Trainer(
        **_device_arguments(machine),
        max_epochs=module.epochs,
        gradient_clip_val=module.fit.clip_norm or None,
        callbacks=watching,
        logger=[
            CSVLogger(folder, name="logs", version=f"attempt_{attempt}"),
            TensorBoardLogger(folder, name="tensorboard", version=""),
        ],
        log_every_n_steps=1_000_000,  # epochs are logged, steps are not
        plugins=[AtomicCheckpoints()],
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty(),
        num_sanity_val_steps=0,
        inference_mode=False,
        benchmark=True,  # there are few image sizes, so finding the fastest algorithm of each pays off
    )
    devices = trainer.num_devices * trainer.num_nodes
    if 0 < len(data.validation) < devices:
        raise UserError(
            f"{len(data.validation)} validation images cannot be shared out to {devices} devices. Take more of them "
            "(--data.val_fraction), none, or fewer devices."
        )
    module.to(memory_format=torch.channels_last)
    module.compiled = machine.compile
    _reset_peak_memory()
    answer = signal.getsignal(signal.SIGINT) or signal.default_int_handler
    try:
        trainer.fit(module, data, ckpt_path=str(checkpoint) if checkpoint.exists() else None)
    except SystemExit as leaving:  # Lightning raises it on Ctrl-C, and then ignores the signal
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, answer)
        raise KeyboardInterrupt from leaving
    except ProcessRaisedException as problem:
        raise original_exception(problem) from problem
    if not trainer.callback_metrics:  # no epoch was left: killed between the last checkpoint and the end
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        clock.load_state_dict(state["callbacks"][clock.state_key])
    steps = module.fit.steps or len(batches) * module.epochs
    metrics = {name: round(float(value), 5) for name, value in (trainer.callback_metrics or clock.last).items()}
    seconds = metrics.pop("seconds", clock.seconds)  # this clock does not run with spawned processes
    waits = [name for name in metrics if name.endswith("_seconds")]
    return {
        "seconds": round(seconds, 1),
        "epochs": module.epochs,
        "steps": steps,
        "images_per_second": round(steps * batches.batch_sampler.batch_size / max(seconds, 1e-9), 1),
        "waits": {name.removesuffix("_seconds"): round(metrics.pop(name), 2) for name in waits},
        "last_epoch": metrics,
        "peak_memory_mib": peak_memory(),
        "precision": resolve_precision(machine.precision, compute_device(machine.accelerator)),
    }


def original_exception(problem: ProcessRaisedException) -> Exception:
    """Return the exception of a training process as it was raised there; only its text reaches this process."""
    text = str(problem)
    for kind in (Diverged, UserError):
        if found := re.search(rf"^{re.escape(f'{kind.__module__}.{kind.__qualname__}')}: (.*)", text, re.M | re.S):
            return kind(found[1].strip())
    if found := re.search(r"^OSError: \[Errno (\d+)\] (.*)", text, re.M):
        return OSError(int(found[1]), found[2])
    return problem


def count_devices(machine: MachineConfig) -> int:
    """Return the number of devices, over all machines, that a training runs on.

    Raises:
        UserError: the devices, the strategy or the precision are not available.
    """
    _silence_libraries()
    try:
        arguments = _device_arguments(machine)
        trainer = L.Trainer(**arguments, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except (MisconfigurationException, ValueError, RuntimeError) as problem:
        settings = f"accelerator {machine.accelerator}, devices {machine.devices}, strategy {machine.strategy}"
        reason = str(problem).strip().partition("\n")[0]
        raise UserError(
            f"--machine: {settings}, precision {machine.precision} is not available here: {reason}"
        ) from problem
    return trainer.num_devices * trainer.num_nodes


def _device_arguments(machine: MachineConfig) -> dict[str, Any]:
    """Return the Trainer's arguments for devices, strategy and precision."""
    strategy = machine.strategy
    if strategy == "auto" and machine.devices not in (1, "auto") and "WORLD_SIZE" not in os.environ:
        strategy = "ddp_spawn"  # with `ddp` the other processes would run the whole program
    precision = resolve_precision(machine.precision, compute_device(machine.accelerator))
    return {
        "accelerator": machine.accelerator,
        "devices": machine.devices,
        "num_nodes": machine.num_nodes,
        "strategy": strategy,
        "precision": LIGHTNING_PRECISION[precision],
    }


def _reset_peak_memory() -> None:
    """Reset `peak_memory`, if the system supports it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak on Linux


def peak_memory() -> int:
    """Return the peak memory of this process in MiB: of the GPU if there is one, else of the system."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    if sys.platform == "win32":
        return 0  # not reported on Windows
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10  # reported in bytes on macOS, in KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


class _Clock(Callback):
    """Callback that counts the seconds over all attempts and prints one line for each epoch."""

    def __init__(self, title: str, console: Console) -> None:
        self.title, self.console = title, console
        self.seconds = 0.0
        self.spent: dict[str, float] = {}  # seconds by input that a step waits for
        self.last: dict[str, float] = {}  # metrics of the last epoch
        self._start = time.monotonic()
        self._before: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start, self._before = time.monotonic(), _waits(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # the last steps are launched, but not yet done
        elapsed = time.monotonic() - self._start
        self.seconds += elapsed
        spent = {what: now - self._before.get(what, 0.0) for what, now in _waits(trainer, pl_module).items()}
        self.spent = {what: self.spent.get(what, 0.0) + seconds for what, seconds in spent.items()}
        if trainer.is_global_zero:
            assert isinstance(pl_module, SceneTraining)
            batches: Any = trainer.train_dataloader
            images = trainer.num_training_batches * batches.batch_sampler.batch_size
            line = self.line(trainer.callback_metrics, trainer.current_epoch, pl_module, images / elapsed)
            shares = "  ".join(f"{what} {seconds / elapsed:.1%}" for what, seconds in spent.items())
            self.console.print(f"{line}  time: {shares}", markup=False)
            for alert in pl_module.alerts:
                self.console.print(f"  {self.title}: {alert}", markup=False)
            pl_module.alerts.clear()
        own = {"seconds": self.seconds, **{f"{what}_seconds": seconds for what, seconds in self.spent.items()}}
        self.last = {**{name: float(value) for name, value in trainer.callback_metrics.items()}, **own}
        pl_module.log_dict(own)

    def line(self, metrics: Mapping[str, Any], epoch: int, module: SceneTraining, speed: float) -> str:
        """Return the line with the metrics and the speed of an epoch."""
        parts = [
            f"{name} {float(value):.3f}" for name, value in metrics.items() if not name.endswith(("_oa", "seconds"))
        ]
        rates = [
            f"{name.replace('_', ' ')} {100 * float(metrics[name]):.1f} %" for name in metrics if name.endswith("_oa")
        ]
        return f"  {self.title}  epoch {epoch + 1}/{module.epochs}  {'  '.join(parts + rates)}  {speed:.0f} images/s"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "console": None}  # a console cannot be sent to another process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, console=plain_console())
        _silence_libraries()  # runs in a spawned process

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "spent": self.spent, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.spent = state_dict["seconds"], state_dict.get("spent", {})
        self.last = state_dict.get("last", {})


def _waits(trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
    """Return the seconds since the start that steps have waited, by input."""
    assert isinstance(module, SceneTraining)
    batches: Any = trainer.train_dataloader
    return {**module.waits, "data": module.waits["data"] + batches.waited}


def _silence_libraries() -> None:
    """Silence the messages and warnings of Lightning and torch that do not concern users of this package."""
    for name in (
        "lightning.pytorch",
        "lightning.fabric",
        "lightning.pytorch.utilities.rank_zero",
        "torch.multiprocessing",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r"torch\.distributed\.nn\.functional\..* is deprecated")
    warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\).*")
