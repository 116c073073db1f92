"""Seconds to a fixed OA: the same distillation by our loops and by the rivals', each in a process of its own.

    python benchmarks/time_to_accuracy.py path/to/AID TEACHER.safetensors results/race.json --split SPLIT.csv

All train the same student by the same loss, at the same learning rate in every step, on the training part of the split,
and are tested after every epoch on one image in four of the test part; nothing is chosen by these tests.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from records.command import this_command
from records.race import Race, RaceRow, race_table
from rivals import KD_WEIGHT, RIVALS, LogitsOnly, LoopSettings
from scenedistill.config import FitConfig, MachineConfig, StudentConfig
from scenedistill.core.memory import keep_memory
from scenedistill.core.precision import compute_device, resolve_precision
from scenedistill.core.processes import forking_context
from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import SceneCache, build_cache
from scenedistill.data.module import SceneDataModule
from scenedistill.data.scenes import scan
from scenedistill.data.splits.draw import Split
from scenedistill.data.splits.files import read_split
from scenedistill.data.views import ViewConfig
from scenedistill.experiments.bench.processes import use_default_processes
from scenedistill.experiments.results.environment import measured_here
from scenedistill.experiments.results.measurements import write_record
from scenedistill.metrics.cost import wait_for
from scenedistill.metrics.predict import predict
from scenedistill.models.create import build_student
from scenedistill.models.files import load_net
from scenedistill.models.network import SceneNet
from scenedistill.training.base import rate
from scenedistill.training.fitting import fit
from scenedistill.training.student import StudentTraining
from scenedistill.training.teacher_outputs.knowledge import Knowledge
from scenedistill.training.teacher_outputs.teachers import Teachers

OURS = {"scenedistill, online": 0, "scenedistill, from the store": 8}  # loop -> kept views of each image


@dataclass(frozen=True)
class Track:
    """Settings that all loops share; see the options of the command."""

    data: Path
    teacher: Path
    split_file: Path
    student: str
    epochs: int
    batch_size: int
    lr: float
    target: float
    scratch: Path

    def open(self, cache: str = "cache") -> tuple[SceneCache, Split, SceneNet, SceneNet, int]:
        """Return the images, decoded into the folder `cache`, split, teacher, untrained student, and image size."""
        teacher, card = load_net(self.teacher)
        index = scan(self.data)
        decoded = build_cache(index, card.stored_size or card.image_size, folder=self.scratch / cache, progress=False)
        torch.manual_seed(0)
        student = build_student(self.student, len(card.classes), image_size=card.image_size)
        return decoded, read_split(self.split_file, index), teacher, student, card.image_size


class Watch:
    """Clock that stops while the student is tested."""

    def __init__(self, track: Track, cache: SceneCache, split: Split, pixels: int, started: float) -> None:
        self.track, self.pixels = track, pixels
        self.part = ScenePart(cache, split.test[::4])
        self.device = compute_device("auto")
        self.started = started
        self.found: list[tuple[float, float]] = []  # seconds and OA after each epoch

    def look(self, student: SceneNet) -> None:
        """Test the student after an epoch."""
        wait_for(self.device)
        now = time.perf_counter()
        precision = resolve_precision("auto", self.device)
        # a copy: testing changes the memory layout of a network, which would change the loop
        named = predict(
            copy.deepcopy(student), self.part, image_size=self.pixels, device=self.device, precision=precision
        )
        self.found.append((now - self.started, float((named == self.part.labels).mean())))
        self.started += time.perf_counter() - now

    def row(self, loop: str, settings: str) -> RaceRow:
        """Return the result of the loop."""
        reached = [number for number, (_, oa) in enumerate(self.found) if oa >= self.track.target]
        first = reached[0] if reached else None
        return RaceRow(
            loop,
            settings,
            None if first is None else round(self.found[first][0], 1),
            None if first is None else first + 1,
            round(self.found[-1][0], 1),
            self.found[-1][1],
        )


def run_rival(name: str, track: Track) -> RaceRow:
    """Time a loop of another package; the search for its best settings is not counted."""
    cache, split, teacher, student, pixels = track.open()
    folder = linked(cache, split, track.scratch / "training")
    settings = LoopSettings(
        data=folder,
        pixels=pixels,
        batch_size=track.batch_size,
        teacher=LogitsOnly(teacher),
        student=LogitsOnly(student),
        device=compute_device("auto"),
        lr=track.lr,
    )
    make = partial(RIVALS[name], settings)
    if name.endswith("-tuned"):
        make = partial(make, notes=track.scratch / "rivals")
        make()  # the trial
    steps = len(split.train) // track.batch_size
    watch = Watch(track, cache, split, pixels, time.perf_counter())
    rival: Any = make()
    walk = rival.steps()
    for epoch in range(track.epochs):
        for step in range(steps):
            for group in rival.optimizer.param_groups:
                group["lr"] = track.lr * rate(epoch * steps + step, track.epochs * steps, steps)
            next(walk)
        watch.look(rival.student.net)
    rival.close()
    return watch.row(name, f"{rival.settings}: {rival.description}")


def run_ours(name: str, compiled: bool, track: Track) -> RaceRow:
    """Time our own training, as `scenedistill run` does it."""
    started = time.perf_counter()
    keep_memory()
    cache, split, teacher, student, pixels = track.open(f"{name}{compiled}")
    device = compute_device("auto")
    precision = resolve_precision("auto", device)
    fitting = FitConfig(
        epochs=track.epochs, batch_size=track.batch_size, lr=track.lr, weight_decay=1e-4, warmup_epochs=1, clip_norm=0
    )
    watch = Watch(track, cache, split, pixels, started)
    knowledge = Knowledge(
        Teachers([teacher], precision=precision, image_size=pixels, compiled=compiled),
        ScenePart(cache, split.train),
        views=OURS[name],
        config=ViewConfig(),
        seed=0,
        root=track.scratch / f"knowledge-{compiled}",
    )
    module = StudentTraining(
        student,
        StudentConfig(name=track.student, method="kd", fit=fitting),
        {"ce": 1.0, "kd": KD_WEIGHT},
        ViewConfig(),
        image_size=pixels,
        seed=0,
        knowledge=knowledge,
    )

    class WatchEpochs(Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            watch.look(module.net)

    batches = SceneDataModule(cache, split, batch_size=track.batch_size, seed=0)
    with tempfile.TemporaryDirectory(dir=track.scratch) as folder:
        machine = MachineConfig(compile=compiled)
        fit(module, batches, Path(folder), machine, title=name, console=Console(quiet=True), callbacks=[WatchEpochs()])
    kept = f", {OURS[name]} views of each image" * bool(OURS[name])
    return watch.row(name + ", compiled" * compiled, f"{precision}{', compiled' * compiled}{kept}")


def linked(cache: SceneCache, split: Split, folder: Path) -> Path:
    """Link the training images into class folders and return the folder of these."""
    index = cache.index
    for row in split.train:
        path = Path(index.paths[row])
        link = folder / index.classes[index.labels[row]] / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to((index.root / path).resolve())
    return folder


def main() -> None:
    """Run every loop in turn; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("teacher", type=Path, help="weights.safetensors of the teacher")
    parser.add_argument("results", type=Path)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--student", default="table1_resnet")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.02, help="at 0.05 some loops diverged: none clips gradients")
    parser.add_argument("--target", type=float, default=0.5, help="OA to reach, 0..1")
    parser.add_argument("--loops", nargs="*", help="only these")
    given = parser.parse_args()
    ours = [(f"{name}{', compiled' * on}", partial(run_ours, name, on)) for name in OURS for on in (False, True)]
    loops = {**dict(ours), **{name: partial(run_rival, name) for name in RIVALS}}
    names = given.loops or list(loops)
    _, card = load_net(given.teacher)
    race = Race(
        experiment=given.results.stem,
        command=this_command(),
        **measured_here(),
        data=given.data.resolve().name,
        teacher=card.name,
        student=given.student,
        pixels=card.image_size,
        batch_size=given.batch_size,
        epochs=given.epochs,
        target_oa=given.target,
        rows=(),
    )
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # no loop may reuse what an earlier one has compiled
    context = forking_context("scenedistill.experiments.bench.ours")
    with tempfile.TemporaryDirectory() as scratch:
        track = Track(
            given.data, given.teacher, given.split, given.student, given.epochs, given.batch_size, given.lr,
            given.target, Path(scratch),
        )  # fmt: skip
        for name in names:
            with ProcessPoolExecutor(1, mp_context=context, initializer=use_default_processes) as alone:
                try:
                    row = alone.submit(loops[name], track).result()
                except Exception:  # a loop may fail in any way, which must not end the race of the others
                    traceback.print_exc()
                    print(f"{name}: left out", file=sys.stderr, flush=True)
                    continue
            print(row, file=sys.stderr, flush=True)
            race = replace(race, rows=(*race.rows, row))
            write_record(race, given.results)  # after each loop: an interrupted race leaves its rows
    print(race_table(race))
    print(given.results)
    sys.exit(len(race.rows) < len(names))


if __name__ == "__main__":
    main()
