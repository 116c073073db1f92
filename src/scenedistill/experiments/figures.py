"""A record of measured times and memory, and its table."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from scenedistill.errors import UserError
from scenedistill.experiments.results import Scalar, tidy
from scenedistill.training.runs import write_json

KIND = "figures"


@dataclass(frozen=True)
class Figure:
    """What one thing took, in a process of its own."""

    what: str
    images: int
    seconds: float
    peak_memory_mib: int


@dataclass(frozen=True)
class Figures:
    """Measurements of one run."""

    experiment: str
    command: str
    date: str
    hardware: dict[str, Scalar]
    versions: dict[str, Scalar]
    data: str
    rows: tuple[Figure, ...]
    notes: str = ""
    kind: str = KIND


def write_figures(figures: Figures, path: Path) -> Path:
    """Write the record as JSON, whole or not at all."""
    record = dataclasses.asdict(figures)
    record["rows"] = [{name: tidy(value) for name, value in row.items()} for row in record["rows"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return path


def read_figures(path: Path) -> Figures:
    """Read what `write_figures` wrote.

    Raises:
        UserError: no such file, or not one of ours.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Figures(**{**record, "rows": tuple(Figure(**row) for row in record["rows"])})
    except FileNotFoundError:
        raise UserError(f"There is no result file {path}.\nRun the measurement that writes it.") from None
    except (ValueError, TypeError, KeyError) as problem:
        raise UserError(f"{path} is no record of figures: {problem}.\nMeasure again.") from None


def figures_table(figures: Figures) -> str:
    """A Markdown table with a line of facts below it."""
    lines = ["| what | images | seconds | images/s | peak memory (MiB) |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in figures.rows:
        seconds = f"{row.seconds:.1f}" if row.seconds >= 1 else f"{row.seconds:.2f}"
        speed = f"{row.images / row.seconds:,.0f}"
        lines.append(f"| {row.what} | {row.images:,} | {seconds} | {speed} | {row.peak_memory_mib:,} |")
    on = figures.hardware
    machine = ", ".join(str(part) for part in (on.get("gpu"), on.get("cpu"), f"{on['cores']} cores") if part)
    text = f"{figures.data}; {machine}; {figures.date}. {figures.notes}".strip()
    return "\n".join(lines) + f"\n\n{text}"
