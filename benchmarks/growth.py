"""Time and memory of the start of a run as the number of images grows, without networks and training.

    python benchmarks/growth.py FOLDER results/growth.json [--sizes 1000 10000 100000] [--unlabelled 1] [OPTIONS OF run]

makes in FOLDER, for each size, so many JPEGs of 64 pixels in class folders and, for each of them, `--unlabelled` images
without labels. Each stage runs in a process of its own: decoding alone, a first start with an empty cache, a repeated
start, and an epoch of training views. A start is all that a run does up to its first training step, from the scan of
the folder to the first batch of the distilled student. FOLDER keeps the images, for the next call.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from records.command import this_command
from records.growth import Growth, GrowthRow
from scenedistill.cli import build_parser
from scenedistill.commands.parsing import build_config
from scenedistill.config import RunConfig
from scenedistill.data.batches import SceneBatches
from scenedistill.data.cache.build import build_cache
from scenedistill.data.module import SceneDataModule
from scenedistill.data.scenes import scan
from scenedistill.data.training_part import mixed_view
from scenedistill.experiments.context import Experiment, split_of
from scenedistill.experiments.results.environment import measured_here
from scenedistill.experiments.results.measurements import write_record
from scenedistill.experiments.stages.students import student_stage
from scenedistill.experiments.stages.teacher import teacher_settings
from scenedistill.experiments.stages.teaching import training_part
from scenedistill.training.fitting import peak_memory

SIDE, CLASSES = 64, 20
STAGES = ("decoding", "first start", "repeated start", "epoch of views")
OPTIONS = (
    *("--image_size", str(SIDE), "--data.stored_size", str(SIDE), "--data.train_ratio", "0.8", "--seeds", "[0]"),
    *("--teacher.weights", "none", "--student.name", "table1_printed", "--machine.accelerator", "cpu"),
)


def generate(folder: Path, count: int, classes: int, seed: int) -> Path:
    """Make images of smooth blobs of colour, no two alike, in `classes` folders; keep those that there are."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        path = folder / f"class {number % classes:02d}" / f"{number:07d}.jpg"
        colours = np.clip(rng.integers(40, 215, 3) + rng.normal(0, 40, (6, 6, 3)), 0, 255).astype(np.uint8)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    return folder


def settings_of(data: Path, more: list[str]) -> RunConfig:
    """Return the settings of a run on the generated images."""
    others = data.with_name("unlabelled")
    given = ["--data.unlabelled", json.dumps([str(others)])] if others.exists() else []
    words = ["run", str(data), *OPTIONS, *given, *more]
    config: RunConfig = build_config(RunConfig, build_parser().parse_args(words).run)
    return config


def start(data: Path, out: Path, config: RunConfig) -> SceneBatches:
    """Do all that `scenedistill run` does before the first batch of the distilled student, except networks; return its
    batches."""
    index = scan(data)
    split_of(config, index, config.seeds[0])  # checked before images are decoded
    experiment = Experiment.open(data, out, config, Console(quiet=True), index=index)
    for seed in config.seeds:
        context = experiment.of_seed(seed)
        context.keep()
        images, folder = len(context.split.train), context.folder
        teacher = context.stage(folder / "teacher", teacher_settings(config.teacher.closed(images), images))
        with experiment.folder.hold(teacher):
            student = config.student.closed(images)
            student_stage(context, folder / "plain", student, None)
            student_stage(context, folder / "distilled", student, teacher)
        batch, cache = config.student.schedule(images).batch_size, experiment.images.cache
        for _ in ("teacher", "plain"):
            SceneDataModule(cache, context.split, batch_size=batch, seed=seed).train_dataloader()
        part = training_part(context, config.student)
        assert part.content_hash
        batches = SceneDataModule(cache, context.split, batch_size=batch, seed=seed, training=part)
        loader = batches.train_dataloader()
    return loader


def epoch(batches: SceneBatches, config: RunConfig) -> None:
    """Make the training views of an epoch."""
    for batch in batches:
        mixed_view(batch, seed=0, epoch=0, size=config.image_size, config=config.views)


@contextmanager
def measured(what: str, data: Path) -> Iterator[list[GrowthRow]]:
    """Measure the body of a `with`; the row is in the list afterwards."""
    rows: list[GrowthRow] = []
    before, used, started = status(), cpu_seconds(), time.perf_counter()
    yield rows
    seconds, used = time.perf_counter() - started, cpu_seconds() - used
    images, others = (sum(len(found) for _, _, found in os.walk(one)) for one in (data, data.with_name("unlabelled")))
    mapped, imports = status()["RssFile"] - before["RssFile"], before["VmRSS"]
    rows.append(GrowthRow(what, images, others, round(seconds, 2), round(used, 2), peak_memory(), imports, mapped))


def cpu_seconds() -> float:
    """Return the user and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def status() -> dict[str, int]:
    """Return the memory of this process in MiB, by the names of /proc/self/status."""
    lines = (line.split() for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return {words[0].rstrip(":"): int(words[1]) // 1024 for words in lines if words[-1] == "kB"}


def stage(what: str, data: Path, more: list[str]) -> GrowthRow:
    """Run and measure one stage in this process."""
    config, out = settings_of(data, more), data.with_name("run")
    batches = start(data, out, config) if what == "epoch of views" else None
    with measured(what, data) as rows:
        if batches is not None:
            epoch(batches, config)
        elif what == "decoding":
            build_cache(scan(data), SIDE, progress=False)
        else:
            next(iter(start(data, out, config)))
    return rows[0]


def main() -> None:
    """Measure every stage and size in a process of its own; with --stage, measure that one in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--unlabelled", type=float, default=1.0, help="images without labels for each labelled one")
    parser.add_argument("--stage", choices=STAGES, help="measure one stage of the images in the folder")
    given, more = parser.parse_known_args()
    if given.stage:
        row = stage(given.stage, given.folder, more)
        given.results.write_text(json.dumps(vars(row)), encoding="utf-8")
        return
    rows = []
    for size in given.sizes:
        place = given.folder.absolute() / f"{size}"
        generate(place / "labelled", size, CLASSES, 0)
        generate(place / "unlabelled", round(size * given.unlabelled), 1, 1)
        for what in STAGES:
            if what in STAGES[:2]:  # with an empty cache
                for old in ("cache", "run"):
                    shutil.rmtree(place / old, ignore_errors=True)
            command = [sys.executable, __file__, str(place / "labelled"), str(place / "row.json"), "--stage", what]
            environment = {**os.environ, "SCENEDISTILL_CACHE": str(place / "cache")}
            subprocess.run([*command, *more], check=True, env=environment)
            rows.append(GrowthRow(**json.loads((place / "row.json").read_text(encoding="utf-8"))))
            print(rows[-1], flush=True)
    growth = Growth(
        experiment=given.results.stem,
        command=this_command(),
        **measured_here(),
        data=f"generated JPEGs of {SIDE} pixels",
        rows=tuple(rows),
    )
    print(write_record(growth, given.results))


if __name__ == "__main__":
    main()
