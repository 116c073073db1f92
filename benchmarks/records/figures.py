"""A record of measured times and memory, and its table."""

from __future__ import annotations

from dataclasses import dataclass

from scenedistill.core.text import markdown_table
from scenedistill.experiments.results.measurements import Measurement, machine_text

KIND = "figures"


@dataclass(frozen=True)
class Figure:
    """Time and peak memory of one stage, in a process of its own."""

    what: str
    images: int
    seconds: float
    peak_memory_mib: int


@dataclass(frozen=True)
class Figures(Measurement):
    """Measurements of one run."""

    rows: tuple[Figure, ...]
    notes: str = ""
    kind: str = KIND


def figures_table(figures: Figures) -> str:
    """Return a Markdown table with a line on data, settings and machine below it."""
    lines = []
    for row in figures.rows:
        seconds = f"{row.seconds:.1f}" if row.seconds >= 1 else f"{row.seconds:.2f}"
        speed = f"{row.images / row.seconds:,.0f}"
        lines.append([row.what, f"{row.images:,}", seconds, speed, f"{row.peak_memory_mib:,}"])
    table = markdown_table(["what", "images", "seconds", "images/s", "peak memory (MiB)"], lines, words=(0,))
    text = f"{figures.data}; {machine_text(figures.hardware)}; {figures.date}. {figures.notes}".strip()
    return f"{table}\n\n{text}"
