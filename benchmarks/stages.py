"""Time and memory of every stage: decoding, an epoch of each training, testing.

    python benchmarks/stages.py path/to/AID results/stages.json [OPTIONS OF run ...]

uses the settings of `configs/aid20.yaml`, one epoch each, and runs every stage in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from records.command import this_command
from records.figures import Figure, Figures
from scenedistill.cli import build_parser
from scenedistill.commands.parsing import build_config
from scenedistill.config import RunConfig
from scenedistill.data.cache.build import build_cache
from scenedistill.data.scenes import scan
from scenedistill.experiments.results.environment import measured_here
from scenedistill.experiments.results.measurements import write_record
from scenedistill.experiments.run import run
from scenedistill.training.fitting import peak_memory

CONFIG = Path(__file__).parents[1] / "configs" / "aid20.yaml"
ONE_EPOCH = ["--teacher.fit.epochs", "1", "--student.fit.epochs", "1", "--teacher.min_oa", "0", "--seeds", "[0]"]
#: name of the stage -> the part of a run, its options, and its label in the table
TRAININGS = {
    "teacher": ("teacher", [], "an epoch of the teacher, triplets"),
    "plain": ("plain", [], "an epoch of the plain student"),
    "online": (
        "distilled",
        ["--student.knowledge_views", "0"],
        "an epoch of the distilled student",
    ),
    "gather": ("distilled", ["--student.knowledge_views", "1"], "the same, keeping the teacher's answers"),
    "store": (
        "distilled",
        ["--student.knowledge_views", "1", "--student.losses", "{da: 0.5}"],
        "the same, reading them",
    ),
}


def decoding(data: Path, size: int) -> list[Figure]:
    """Time decoding all images, and loading them from the cache again."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        for what in ("decoding once", "taking it again in a later run"):
            started = time.perf_counter()
            cache = build_cache(scan(data), size, folder=Path(place), progress=False)
            found.append(Figure(what, len(cache.index), time.perf_counter() - started, peak_memory()))
    return found


def training(data: Path, out: Path, stage: str, more: list[str]) -> list[Figure]:
    """Time one epoch of one stage, and its test."""
    part, options, what = TRAININGS[stage]
    words = ["run", str(data), "--config", str(CONFIG), "--also_students", "[]", *ONE_EPOCH, *options, *more]
    config = build_config(RunConfig, build_parser().parse_args(words).run)
    parts = ("teacher", "distilled") if part == "distilled" else (part,)
    with contextlib.redirect_stdout(io.StringIO()):
        result = run(data, out, config, parts=parts, console=Console(quiet=True))
    row = result.rows[-1]
    folder = out / "seed0" / ("teacher" if part == "teacher" else f"{config.students[0]}/{row.variant}")
    record = json.loads((folder / "stage.json").read_text(encoding="utf-8"))["record"]
    tested = json.loads((folder / "evaluation" / "stage.json").read_text(encoding="utf-8"))["record"]
    images = round(record["images_per_second"] * record["seconds"])
    found = [Figure(what, images, record["seconds"], record["peak_memory_mib"])]
    if stage in ("teacher", "plain"):
        name = "teacher" if stage == "teacher" else "student"
        found.append(Figure(f"testing the {name}", tested["images"], tested["seconds"], peak_memory()))
    return found


def main() -> None:
    """Measure every stage in a process of its own; with --stage, measure that one in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--stage", choices=["decoding", *TRAININGS])
    parser.add_argument("--out", type=Path)
    given, more = parser.parse_known_args()
    if given.stage:
        rows = decoding(given.data, 128) if given.stage == "decoding" else []
        rows = rows or training(given.data, given.out, given.stage, more)
        given.results.write_text(json.dumps([vars(row) for row in rows]), encoding="utf-8")
        return
    rows = []
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "SCENEDISTILL_CACHE": f"{place}/cache"}
        for stage in ("decoding", *TRAININGS):
            part = Path(place) / f"{stage}.json"
            command = [sys.executable, __file__, str(given.data), str(part), "--stage", stage, "--out", f"{place}/run"]
            subprocess.run([*command, *more], check=True, env=environment)
            rows += [Figure(**row) for row in json.loads(part.read_text(encoding="utf-8"))]
            print(*rows[-2:], sep="\n", flush=True)
    figures = Figures(
        experiment=given.results.stem,
        command=this_command(),
        **measured_here(),
        data=f"{given.data.resolve().name}, stored at 128 pixels, seen at 96",
        rows=tuple(rows),
    )
    print(write_record(figures, given.results))


if __name__ == "__main__":
    main()
