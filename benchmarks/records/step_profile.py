"""A record of where the time of a student's step goes, and its table."""

from __future__ import annotations

from dataclasses import dataclass

from scenedistill.core.text import markdown_table
from scenedistill.experiments.results.measurements import Measurement, machine_text

KIND = "step_profile"
#: Kind of operation -> parts of its names in the profiler; the first match counts, other operations are `REST`.
KINDS = {
    "convolutions": ("conv", "mkldnn"),
    "batch norm": ("batch_norm",),
    "copies between formats and layouts": ("copy", "contiguous", "_to_"),
}
REST = "all other operations"


@dataclass(frozen=True)
class StepShare:
    """Share of a step's time taken by one kind of operation, 0..1."""

    student: str
    pixels: int
    batch_size: int
    kind: str
    share: float


@dataclass(frozen=True)
class StepProfile(Measurement):
    """Measurements of one run."""

    precision: str
    rows: tuple[StepShare, ...]
    kind: str = KIND


def kind_of_operation(name: str) -> str:
    """Return the kind of an operation by its name in the profiler."""
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), REST)


def profile_table(profile: StepProfile) -> str:
    """Return a Markdown table, a row for each student and size, with a line on data, settings and machine below it."""
    kinds = [*KINDS, REST]
    steps: dict[tuple[str, int, int], dict[str, float]] = {}
    for row in profile.rows:
        steps.setdefault((row.student, row.pixels, row.batch_size), {})[row.kind] = row.share
    head = ["student", "pixels", "batch", *(f"{kind} (%)" for kind in kinds)]
    lines = [[*step, *(f"{100 * shares.get(kind, 0.0):.0f}" for kind in kinds)] for step, shares in steps.items()]
    conditions = f"{profile.data}; one step forward, back and updated, in {profile.precision}, eager"
    return (
        f"{markdown_table(head, lines, words=(0,))}\n\n{conditions}; {machine_text(profile.hardware)}; {profile.date}."
    )
