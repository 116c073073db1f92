"""The quickstart: the whole experiment on generated scenes, sized for two cores and a few minutes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from scenedistill.config import DataConfig, RunConfig, StudentConfig, StudentFitConfig, TeacherConfig, TeacherFitConfig
from scenedistill.data.synthetic.demo import generate
from scenedistill.data.views import ViewConfig
from scenedistill.experiments.results.record import Result
from scenedistill.experiments.run import run

PER_CLASS = 200  # images of each of the twelve classes
SIZE = 64  # pixels
TEACHER = "resnet10t"  # learns these small images in fewer minutes than a ResNet-18


def settings(teacher: str | None = None, seeds: Sequence[int] = (0,)) -> RunConfig:
    """Return the quickstart's settings: a teacher from scratch and the light student of Table 1.

    The crops are large because the images are small, and the batches are small to allow more steps. The triplets are
    semihard, because the hardest ones make a network trained from scratch collapse.
    """
    return RunConfig(
        image_size=SIZE,
        seeds=list(seeds),
        data=DataConfig(train_ratio=0.5, stored_size=SIZE),
        views=ViewConfig(scale=(0.7, 1.0), brightness=0.2, contrast=0.2, saturation=0.2),
        teacher=TeacherConfig(
            name=teacher or TEACHER,
            weights="none",
            triplet_weight=0.3,
            mining="semihard",
            images_per_class=2,
            fit=TeacherFitConfig(epochs=20, batch_size=32, optimizer="adamw", lr=2e-3, weight_decay=0.05),
        ),
        student=StudentConfig(name="table1_printed", fit=StudentFitConfig(epochs=10, batch_size=32, lr=0.05)),
    )


def quickstart(
    folder: Path, *, teacher: str | None = None, seeds: Sequence[int] = (0,), command: str = "", console: Console
) -> Result:
    """Generate scenes, then `run` on them, and print where the results are.

    Args:
        folder: folder of the scenes and the run.
        teacher: another teacher than the default.
        seeds: one full run for each.
        command: command that repeats the experiment, for the record.
        console: console for the messages.
    """
    started = time.monotonic()
    console.print("scenedistill quickstart: generated scenes, a teacher, a plain and a distilled student", style="bold")
    generate(folder / "scenes", per_class=PER_CLASS, size=SIZE)
    result = run(folder / "scenes", folder / "run", settings(teacher, seeds), command=command, console=console)
    oa = {
        variant: statistics.fmean(row.oa for row in result.rows if row.variant == variant)
        for variant in ("teacher", "plain", "dkd")
    }
    console.print(
        f"In {time.monotonic() - started:.0f} s: the plain student is right on {oa['plain']:.1%} of the test images, "
        f"the distilled one on {oa['dkd']:.1%}, their teacher on {oa['teacher']:.1%}."
    )
    console.print(f"Scenes: {folder / 'scenes'}   run: {folder / 'run'} (start with summary.md)", markup=False)
    console.print("Next, your own images in one folder for each class:  scenedistill run path/to/images")
    return result
