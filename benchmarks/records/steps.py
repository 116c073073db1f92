"""A record of the speed of a training step of students, in several ways, and its table."""

from __future__ import annotations

from dataclasses import dataclass

from scenedistill.core.text import markdown_table
from scenedistill.experiments.results.measurements import Measurement, machine_text

KIND = "steps"
#: Ways in which a step is computed; the last is what training takes where the CPU computes bfloat16.
WAYS = ("fp32", "bf16", "bf16, fast depthwise gradients")


@dataclass(frozen=True)
class StepSpeed:
    """Speed of the training step of a student in one of `WAYS`, with its spread over turns and share of the peak."""

    student: str
    way: str
    images_per_second: float  # median over the turns
    min: float
    max: float
    share_of_peak: float
    macs: int  # of a forward pass for one image


@dataclass(frozen=True)
class Steps(Measurement):
    """Measurements of one run."""

    pixels: int
    batch_size: int
    peaks: dict[str, float]  # GFLOP/s of a matrix product, by precision
    rows: tuple[StepSpeed, ...]
    kind: str = KIND


def steps_table(steps: Steps) -> str:
    """Return a Markdown table, a row for each student, with a line on data, settings and machine below it."""
    found: dict[str, dict[str, StepSpeed]] = {}
    for row in steps.rows:
        found.setdefault(row.student, {})[row.way] = row
    lines = []
    for student, ways in found.items():
        speeds = [ways[way].images_per_second for way in WAYS]
        cells = [f"{ways[way].images_per_second:.0f} ({100 * ways[way].share_of_peak:.0f} %)" for way in WAYS]
        lines.append([student, f"{ways[WAYS[0]].macs / 1e9:.3f}", *cells, f"{speeds[2] / speeds[1]:.2f}"])
    head = ["student", "GMAC", *(f"{way} (images/s)" for way in WAYS), "last / bf16"]
    peaks = " and ".join(f"{peak:,.0f} in {precision}" for precision, peak in steps.peaks.items())
    return (
        f"{markdown_table(head, lines, words=(0,))}\n\n{steps.data}, {steps.pixels} pixels, batches of "
        f"{steps.batch_size}, channels-last; median over turns; in brackets the share of the GFLOP/s of a matrix "
        f"product, {peaks}, a step counted as three forward passes; {machine_text(steps.hardware)}; {steps.date}."
    )
