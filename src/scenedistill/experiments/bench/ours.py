"""Our own distillation as a measured loop: one training that takes a few steps per turn and waits between turns."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from scenedistill.config import MachineConfig
from scenedistill.core.memory import keep_memory
from scenedistill.data.batches import ScenePart
from scenedistill.data.module import SceneDataModule
from scenedistill.data.scenes import PARTS
from scenedistill.data.splits.draw import assemble
from scenedistill.experiments.bench.loops import VIEWS, WARM_UP, Bench
from scenedistill.experiments.bench.processes import SECONDS
from scenedistill.metrics.cost import wait_for
from scenedistill.training.fitting import fit
from scenedistill.training.teacher_outputs.knowledge import Knowledge
from scenedistill.training.teacher_outputs.teachers import Teachers


class DistillationServer:
    """Process function of a distillation as in `scenedistill run`, with Lightning; timed between the ends of steps.

    All turns are in one epoch, so that the networks are compiled only once.

    Args:
        views: stored views of each image; 0 runs the teacher in every step.
    """

    def __init__(self, views: int) -> None:
        self.views = views

    def __call__(self, pipe: Connection, bench: Bench) -> None:
        """Train one turn for each request; see `processes.Serve`."""
        keep_memory()
        images = len(bench.cache.index)
        split = assemble(bench.cache.index, np.full(images, PARTS.index("train"), np.int8), None, None)
        split = replace(split, train=np.resize(np.arange(images), bench.images_wanted))  # repeated if too few
        knowledge = Knowledge(
            Teachers(
                [bench.new_teacher()], precision=bench.precision, image_size=bench.pixels, compiled=bench.compiled
            ),
            ScenePart(bench.cache, split.train),
            views=self.views,
            config=VIEWS,
            seed=0,
            root=bench.scratch / "knowledge",
        )
        if self.views:  # filled before the timing starts, as in every epoch but the first
            knowledge.open(0, bench.device)
        with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
            fit(
                bench.training(knowledge),
                SceneDataModule(bench.cache, split, batch_size=bench.batch_size, seed=0),
                Path(folder),
                MachineConfig(precision=bench.precision, compile=bench.compiled),
                title="bench",
                console=Console(quiet=True),
                callbacks=[_Turns(pipe, bench)],
            )


class _Turns(Callback):
    """Callback that lets the training take the steps of a turn, sends the seconds per step, and waits for the next."""

    def __init__(self, pipe: Connection, bench: Bench) -> None:
        self.pipe, self.bench = pipe, bench
        self.left = WARM_UP
        self.started: float | None = None  # None while it warms up

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left:
            return
        wait_for(self.bench.device)
        self.pipe.send("" if self.started is None else (time.perf_counter() - self.started) / self.bench.steps)
        trainer.should_stop = self.pipe.recv() != SECONDS
        self.left, self.started = self.bench.steps, time.perf_counter()
