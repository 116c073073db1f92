"""Our own distillation as a measured loop: one training that takes a few steps a turn and waits in between."""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from scenedistill.config import MachineConfig
from scenedistill.data.batches import ScenePart
from scenedistill.data.module import SceneDataModule
from scenedistill.data.splits import PARTS, assemble
from scenedistill.evaluation.cost import wait_for
from scenedistill.experiments.bench_loops import VIEWS, WARM_UP, Bench
from scenedistill.training.fitting import fit
from scenedistill.training.knowledge import Knowledge

END = -1


class Ours:
    """A distillation as `scenedistill run` does it, Lightning and all; timed between the ends of steps.

    It runs in a thread. All turns lie within one epoch, so that what is compiled is compiled once.

    Args:
        bench: what is measured.
        views: kept views of each image; 0 asks the teacher.
    """

    def __init__(self, bench: Bench, views: int) -> None:
        self.bench = bench
        self.orders: queue.Queue[int] = queue.Queue()  # steps to take
        self.answers: queue.Queue[float | BaseException] = queue.Queue()  # seconds they took
        wanted = bench.images_wanted
        parts = np.full(len(bench.cache.index), PARTS.index("test"), np.int8)
        parts[:wanted] = PARTS.index("train")
        split = assemble(bench.cache.index, parts, None, None)
        knowledge = Knowledge(
            bench.new_teacher(),
            ScenePart(bench.cache, split.train),
            views=views,
            config=VIEWS,
            image_size=bench.pixels,
            seed=0,
            precision=bench.precision,
            root=bench.scratch / "knowledge",
            compiled=bench.compiled,
        )
        if views:  # filled before the clock starts, as in every epoch but the first
            knowledge.open(0, bench.device)
        batches = SceneDataModule(bench.cache, split, batch_size=bench.batch_size, seed=0)
        self.thread = threading.Thread(target=self._train, args=(knowledge, batches), daemon=True)
        self.thread.start()
        self._take(WARM_UP)

    def seconds(self) -> float:
        """See `bench_loops.Loop`."""
        return self._take(self.bench.steps) / self.bench.steps

    def close(self) -> None:
        """See `bench_loops.Loop`."""
        self.orders.put(END)
        self.thread.join()

    def _take(self, steps: int) -> float:
        self.orders.put(steps)
        answer = self.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _train(self, knowledge: Knowledge, batches: SceneDataModule) -> None:
        bench = self.bench
        try:
            with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
                fit(
                    bench.training(knowledge),
                    batches,
                    Path(folder),
                    MachineConfig(precision=bench.precision, compile=bench.compiled),
                    title="bench",
                    console=Console(quiet=True),
                    callbacks=[_Turns(self)],
                )
        except BaseException as problem:
            self.answers.put(problem)


class _Turns(Callback):
    """Lets the training take the ordered number of steps, says how long they took, and waits for the next order."""

    def __init__(self, loop: Ours) -> None:
        self.loop = loop
        self.left = 0
        self.started = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self._next()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            wait_for(self.loop.bench.device)
            self.loop.answers.put(time.perf_counter() - self.started)
            self._next()
        trainer.should_stop = self.left < 0

    def _next(self) -> None:
        self.left = self.loop.orders.get()
        self.started = time.perf_counter()
