"""Base of all rival loops: their settings, their switches, and the steps from a data loader to updated weights."""

from __future__ import annotations

import copy
import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch._inductor.config
from torch import Tensor, nn

from scenedistill.core.machine import usable_cores
from scenedistill.core.precision import autocast
from scenedistill.models.network import SceneNet

#: The loss of every loop: cross-entropy + KD_WEIGHT * TEMPERATURE^2 * KL(teacher || student) at that temperature.
TEMPERATURE = 4.0
KD_WEIGHT = 1.0

#: The views of every loop: random-resized crop, both flips, colour jitter; pixel values in 0..1.
CROP_SCALE = (0.25, 1.0)
JITTER = 0.3


@dataclass(frozen=True)
class LoopSettings:
    """Data, networks and optimiser settings of a loop; the same for all.

    Attributes:
        data: class folders of image files.
        pixels: side of the views.
        batch_size: images in an update; at most the number of images.
        teacher: maps `[B, 3, H, W]` in 0..1 to logits `[B, K]`; each loop takes a copy.
        student: the same; each loop trains a copy, `Rival.student`.
        device: where the networks run.
        workers: the most worker processes a loop may use.
        lr: learning rate of SGD with Nesterov momentum 0.9.
        weight_decay: of SGD.
    """

    data: Path
    pixels: int
    batch_size: int
    teacher: nn.Module
    student: nn.Module
    device: torch.device
    workers: int = usable_cores()
    lr: float = 0.05
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class Switches:
    """Options that make a loop fast; `Switches()` is fp32 and eager, as in the library's own script.

    Attributes:
        tuned: use what costs nothing to use (fused optimiser, no reading back of the loss, the fastest decoder).
        workers: worker processes of the data loader; None for the library's own number, within `LoopSettings.workers`.
        bf16: autocast to bfloat16.
        channels_last: memory layout of networks and images.
        compile: mode of `torch.compile` for both networks; "" for eager.
        freeze: fold the teacher's weights into the compiled code (TORCHINDUCTOR_FREEZING).
    """

    tuned: bool = False
    workers: int | None = None
    bf16: bool = False
    channels_last: bool = False
    compile: str = ""
    freeze: bool = False


class Rival(Protocol):
    """Interface of a loop for the benchmark."""

    name: str  # "timm", "torchdistill", "textbook"
    settings: str  # "default", "tuned"
    description: str  # one line: what is switched on
    student: nn.Module  # the network in training
    optimizer: torch.optim.Optimizer  # whose learning rate may be set between steps

    def steps(self) -> Iterator[int]:
        """Yield the number of images of each finished update, endlessly over epochs.

        Worker processes start with the first step and end with `close`; `steps` may then be called again and continues
        with the same student.
        """

    def close(self) -> None:
        """End the worker processes; what was compiled stays."""


class LogitsOnly(nn.Module):
    """A SceneNet as a plain classifier: images to logits, without attention maps."""

    def __init__(self, net: SceneNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Map `[B, 3, H, W]` in 0..1 to logits `[B, K]`."""
        return self.net(images, attention=False).logits


class Loop(ABC):
    """Base of the rivals: a subclass gives the data loader, the loss and the update of its library."""

    name: str
    own_workers: int  # what the library's own script asks for
    switched_on: str = ""  # what else is on when tuned

    def __init__(self, settings: LoopSettings, switches: Switches | None = None) -> None:
        self.given, self.switches = settings, switches or Switches()
        self.settings = "tuned" if self.switches.tuned else "default"
        asked = self.own_workers if self.switches.workers is None else self.switches.workers
        self.workers = min(asked, settings.workers)
        layout = torch.channels_last if self.switches.channels_last else torch.contiguous_format
        self.teacher = copy.deepcopy(settings.teacher).to(settings.device, memory_format=layout)
        self.teacher.eval().requires_grad_(False)
        self.student = copy.deepcopy(settings.student).to(settings.device, memory_format=layout).train()
        self.description = self._describe()
        self._running: Generator[int, None, None] | None = None
        if self.switches.compile:
            # each loop is a further instance of the same code, and beyond the limit torch falls back to eager
            torch._dynamo.config.recompile_limit = 256
            torch._dynamo.config.accumulated_recompile_limit = 2048

    @abstractmethod
    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return a new data loader of one epoch; the worker processes end when it is released."""

    @abstractmethod
    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Do both forward passes of a batch on the device and return the loss."""

    @abstractmethod
    def update(self, loss: Tensor) -> None:
        """Do the backward pass and the optimiser's step."""

    def steps(self) -> Iterator[int]:
        """See `Rival.steps`."""
        self.close()
        self._running = self._steps()
        return self._running

    def close(self) -> None:
        """See `Rival.close`."""
        if self._running is not None:
            self._running.close()
            self._running = None
            gc.collect()  # a loader's processes end with its last reference

    def _steps(self) -> Generator[int, None, None]:
        benchmark = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True  # as the script of each library has it
        try:
            batches = self.batches()
            while True:
                self.student.train()
                count = 0
                for images, labels in batches:
                    yield self._step(images, labels)
                    count += 1
                if not count:
                    raise ValueError(f"{self.given.data} has fewer images than one batch of {self.given.batch_size}.")
        finally:
            torch.backends.cudnn.benchmark = benchmark

    def _step(self, images: Tensor, labels: Tensor) -> int:
        device = self.given.device
        images = images.to(device, non_blocking=self.switches.tuned)
        labels = labels.to(device, non_blocking=self.switches.tuned)
        if images.dtype == torch.uint8:
            images = images.float() / 255
        if self.switches.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.switches.compile:
            torch.compiler.cudagraph_mark_step_begin()  # both networks' outputs are needed until the step's end
        with (
            torch._inductor.config.patch(freezing=self.switches.freeze),
            autocast(device, "bf16" if self.switches.bf16 else "fp32"),
        ):
            loss = self.loss(images, labels)
        self.update(loss)
        if not self.switches.tuned and not torch.isfinite(loss).item():  # each script reads the loss of every step
            raise ValueError(f"the loss of {self.name} is {loss.item()}")
        return len(labels)

    def compiled(self, module: nn.Module) -> nn.Module:
        """Return the module, compiled if that is switched on."""
        mode = self.switches.compile
        return torch.compile(module, mode=mode, dynamic=False) if mode else module

    @property
    def pinned(self) -> bool:
        """Whether a tuned loader pins its memory."""
        return self.switches.tuned and self.given.device.type == "cuda"

    def _describe(self) -> str:
        on = self.switches
        parts = ["bf16 autocast" if on.bf16 else "fp32"]
        parts += ["channels-last"] * on.channels_last
        parts.append(f"compiled ({on.compile}{', frozen teacher' * on.freeze})" if on.compile else "eager")
        parts += [self.switched_on] if on.tuned and self.switched_on else []
        return ", ".join([*parts, f"{self.workers} workers"])


def pace(rival: Rival, device: torch.device, *, warm_steps: int = 2, steps: int = 2, seconds: float = 2.0) -> float:
    """Measure the images per second of a loop, with its workers started before and ended after.

    Args:
        rival: the loop.
        device: device of the loop, to synchronise with.
        warm_steps: the least number of updates not counted, which go on for at least `seconds`.
        steps: the least number of updates counted.
        seconds: the least time counted.
    """

    def run(walk: Iterator[int], least: int) -> float:
        start, images, done = time.perf_counter(), 0, 0
        while done < least or time.perf_counter() - start < seconds:
            images, done = images + next(walk), done + 1
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return images / (time.perf_counter() - start)

    try:
        walk = rival.steps()
        run(walk, warm_steps)
        return run(walk, steps)
    finally:
        rival.close()
