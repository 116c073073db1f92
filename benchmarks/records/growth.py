"""A record of how the start of a run grows with the number of images, and its table."""

from __future__ import annotations

from dataclasses import dataclass

from scenedistill.core.text import markdown_table
from scenedistill.experiments.results.measurements import Measurement, machine_text

KIND = "growth"


@dataclass(frozen=True)
class GrowthRow:
    """Cost of one stage, after the imports.

    Attributes:
        what: a stage, such as `repeated start`.
        images: number of labelled images.
        unlabelled: number of images without labels.
        seconds: time by the clock.
        cpu_seconds: user and system time of the process.
        peak_memory_mib: largest resident memory of the process.
        imports_mib: resident memory before the stage.
        mapped_mib: pages of files in memory at the end, beyond those at the start; the system can drop them any time.
    """

    what: str
    images: int
    unlabelled: int
    seconds: float
    cpu_seconds: float
    peak_memory_mib: int
    imports_mib: int
    mapped_mib: int


@dataclass(frozen=True)
class Growth(Measurement):
    """Measurements of one call."""

    rows: tuple[GrowthRow, ...]
    kind: str = KIND


def growth_table(growth: Growth) -> str:
    """Return a Markdown table with a line on data and machine below it."""
    head = ["what", "images", "without labels", "seconds", "processor seconds", "memory beyond the imports (MiB)"]
    lines = [
        [
            row.what,
            f"{row.images:,}",
            f"{row.unlabelled:,}",
            f"{row.seconds:.1f}",
            f"{row.cpu_seconds:.1f}",
            row.peak_memory_mib - row.imports_mib,
        ]
        for row in growth.rows
    ]
    return (
        f"{markdown_table(head, lines, words=(0,))}\n\n{growth.data}; {machine_text(growth.hardware)}; {growth.date}."
    )
