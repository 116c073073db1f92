"""Loops whose speed is measured: the parts of ours and a naive loop, and the settings that all loops share."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from scenedistill.config import FitConfig, StudentConfig, StudentFitConfig
from scenedistill.core.precision import Precision, allow_compiling, autocast
from scenedistill.data.batches import SceneBatches, ScenePart
from scenedistill.data.cache.build import SceneCache, build_cache
from scenedistill.data.module import EpochBatches
from scenedistill.data.scenes import scan
from scenedistill.data.views import ViewConfig, training_view
from scenedistill.experiments.bench.speed import slow_steps
from scenedistill.losses.registry import METHODS
from scenedistill.metrics.cost import wait_for
from scenedistill.models.create import build_student, build_teacher
from scenedistill.models.depthwise import use_quick_depthwise
from scenedistill.models.freeze import GIVEN_UP, freeze
from scenedistill.models.network import SceneNet
from scenedistill.training.base import parameter_groups
from scenedistill.training.student import StudentTraining
from scenedistill.training.teacher_outputs.knowledge import Knowledge

VIEWS = ViewConfig()
WARM_UP = 4  # steps
WORKERS = 2  # data loader workers of the naive loop
METHOD = "kd"  # plain knowledge distillation, which every package has


@dataclass
class Bench:
    """Settings and data shared by all loops of one measurement.

    Attributes:
        data: folder with one sub-folder for each class.
        pixels: side of the network input.
        teacher: name of the teacher.
        student: name of the student.
        batch_size: images of a step.
        steps: timed steps of each turn.
        device: device of the computation.
        precision: precision of our own loops.
        compiled: whether our own loops compile the networks.
        scratch: folder for whatever a loop writes.
        repeats: turns of every loop.
        threads: CPU threads; all cores when not given.
    """

    data: Path
    pixels: int
    teacher: str
    student: str
    batch_size: int
    steps: int
    device: torch.device
    precision: Precision
    compiled: bool
    scratch: Path
    repeats: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        index = scan(self.data)
        stored = max(64, 32 * round(self.pixels * 1.15 / 32))
        self.cache: SceneCache = build_cache(index, stored, folder=self.scratch / f"cache{stored}", progress=False)
        self.classes = len(self.cache.index.classes)
        self.part = ScenePart(self.cache, np.arange(len(self.cache.index)))

    def __reduce__(self) -> tuple[type[Bench], tuple[object, ...]]:
        """Pickle only the settings; another process opens the decoded images itself."""
        return Bench, tuple(getattr(self, item.name) for item in fields(self))

    @property
    def slow_steps(self) -> int:
        """Steps per turn of a loop that is many times slower than ours."""
        return slow_steps(self.steps)

    @property
    def images_wanted(self) -> int:
        """Number of images in all turns of a loop."""
        return (WARM_UP + self.repeats * self.steps) * self.batch_size

    def new_teacher(self) -> SceneNet:
        """Build the same untrained teacher each time: speed does not depend on its weights."""
        torch.manual_seed(0)
        return build_teacher(self.teacher, self.classes, image_size=self.pixels).eval()

    def new_student(self) -> SceneNet:
        """Build the same untrained student each time."""
        torch.manual_seed(0)
        return build_student(self.student, self.classes, image_size=self.pixels)

    def view(self) -> Tensor:
        """Return the views of one batch, on the device."""
        batch = self.part.fetch(range(self.batch_size)).to(self.device)
        return training_view(batch.images, batch.ids, seed=0, epoch=0, size=self.pixels, config=VIEWS)

    def training(self, knowledge: Knowledge | None) -> StudentTraining:
        """Build the student's training as in a run."""
        fit = StudentFitConfig(epochs=1, batch_size=self.batch_size)
        config = StudentConfig(name=self.student, method=METHOD, fit=fit)
        return StudentTraining(
            self.new_student(),
            config,
            METHODS[METHOD],
            VIEWS,
            image_size=self.pixels,
            seed=0,
            knowledge=knowledge,
        )


class Loop(Protocol):
    """Interface of a measured loop; its constructor prepares it and warms it up."""

    def seconds(self) -> float:
        """Run one turn and return the seconds per step."""

    def close(self) -> None:
        """Release its resources."""


class Repeated:
    """A loop that calls one function for each step."""

    def __init__(self, bench: Bench, step: Callable[[], object]) -> None:
        self.step, self.device, self.steps = step, bench.device, bench.steps
        for _ in range(WARM_UP):
            step()

    def seconds(self) -> float:
        """See `Loop.seconds`."""
        wait_for(self.device)
        started = time.perf_counter()
        for _ in range(self.steps):
            self.step()
        wait_for(self.device)
        return (time.perf_counter() - started) / self.steps

    def close(self) -> None:
        """See `Loop.close`."""


def teacher_forward(bench: Bench) -> Loop:
    """Build the loop of the frozen teacher alone, on a view in memory.

    Raises:
        RuntimeError: compiling failed, where the teacher alone would go on uncompiled.
    """
    frozen = freeze(
        bench.new_teacher(),
        precision=bench.precision,
        device=bench.device,
        image_size=bench.pixels,
        compiled=bench.compiled,
    )
    view = bench.view()
    loop = Repeated(bench, lambda: frozen(view, attention=False))
    if failed := [line for line in frozen.report if line.startswith(GIVEN_UP)]:
        raise RuntimeError(failed[0])
    return loop


def student_step(bench: Bench) -> Loop:
    """Build the loop of the student alone: forward, loss, backward and update, with views and teacher outputs in
    memory."""
    view, labels = bench.view(), bench.part.fetch(range(bench.batch_size)).labels.to(bench.device)
    with torch.no_grad():
        target = bench.new_teacher().to(bench.device)(view, attention=False)
    net = bench.new_student().to(bench.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    use_quick_depthwise(net)  # as in training
    module = bench.training(None)
    module.net = net
    loss = module.losses[METHOD].to(bench.device)
    if bench.compiled:
        allow_compiling()
        net.compile(dynamic=False)
    weights = METHODS[METHOD]
    groups = parameter_groups(net, FitConfig())
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, fused=True)

    def step() -> None:
        with autocast(bench.device, bench.precision):
            output = net(view, attention=False)
        total = weights["ce"] * nn.functional.cross_entropy(output.logits.float(), labels)
        total = total + weights[METHOD] * loss(output, target, labels)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return Repeated(bench, step)


def data_only(bench: Bench) -> Loop:
    """Build the loop of the data alone: batches from the cache and their views."""
    order = EpochBatches(bench.part.labels, bench.batch_size, seed=0)
    batches = SceneBatches(bench.part, order, bench.device)

    def endless() -> Iterator[Tensor]:
        epoch = 0
        while True:
            order.set_epoch(epoch)
            for batch in batches:
                yield training_view(batch.images, batch.ids, seed=0, epoch=epoch, size=bench.pixels, config=VIEWS)
            epoch += 1

    views = endless()
    return Repeated(bench, lambda: next(views))


class Naive:
    """Straightforward loop: PIL and torchvision's transforms in worker processes, both networks in fp32."""

    description = f"PIL, torchvision, fp32, {WORKERS} workers"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.teacher, self.student = bench.new_teacher().to(bench.device), bench.new_student().to(bench.device)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        self.loss = bench.training(None).losses[METHOD]
        crop = transforms.RandomResizedCrop(bench.pixels, VIEWS.scale, VIEWS.ratio)
        flips = [transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip()]
        colour = transforms.ColorJitter(VIEWS.brightness, VIEWS.contrast, VIEWS.saturation)
        self.images = ImageFolder(bench.data, transforms.Compose([crop, *flips, colour, transforms.ToTensor()]))

    def seconds(self) -> float:
        """See `Loop.seconds`."""
        bench, started = self.bench, 0.0
        batches = DataLoader(self.images, bench.batch_size, shuffle=True, num_workers=WORKERS, drop_last=True)
        endless = itertools.chain.from_iterable(itertools.repeat(batches))
        for number, (images, labels) in enumerate(endless):
            if number == WARM_UP:
                wait_for(bench.device)
                started = time.perf_counter()
            self._step(images.to(bench.device), labels.to(bench.device))
            if number + 1 == WARM_UP + bench.slow_steps:
                break
        wait_for(bench.device)
        return (time.perf_counter() - started) / bench.slow_steps

    def _step(self, images: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            target = self.teacher(images, attention=False)
        output = self.student(images, attention=False)
        loss = METHODS[METHOD]["ce"] * nn.functional.cross_entropy(output.logits, labels)
        loss = loss + METHODS[METHOD][METHOD] * self.loss(output, target, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def close(self) -> None:
        """See `Loop.close`."""
