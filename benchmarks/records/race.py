"""A record of how long each loop takes to a fixed OA, and its table."""

from __future__ import annotations

from dataclasses import dataclass

from scenedistill.core.text import NONE, markdown_table
from scenedistill.experiments.results.measurements import Measurement, machine_text

KIND = "race"


@dataclass(frozen=True)
class RaceRow:
    """One loop, trained to the end of its schedule."""

    loop: str
    settings: str  # what is switched on
    seconds_to_target: float | None  # from making the loop to the end of the epoch that reaches it; None if none does
    epochs_to_target: int | None
    seconds: float  # to the end of the schedule, testing left out
    final_oa: float  # 0..1


@dataclass(frozen=True)
class Race(Measurement):
    """One run of the measurement."""

    teacher: str
    student: str
    pixels: int
    batch_size: int
    epochs: int
    target_oa: float  # 0..1
    rows: tuple[RaceRow, ...]
    kind: str = KIND


def race_table(race: Race) -> str:
    """Return a Markdown table with a line on data, settings and machine below it."""
    times = [f"seconds to {race.target_oa:.0%} OA", "epochs to it", f"seconds for {race.epochs} epochs"]
    lines = []
    for row in race.rows:
        reached = NONE if row.seconds_to_target is None else f"{row.seconds_to_target:,.0f}"
        epochs = NONE if row.epochs_to_target is None else row.epochs_to_target
        lines.append([row.loop, row.settings, reached, epochs, f"{row.seconds:,.0f}", f"{row.final_oa:.1%}"])
    table = markdown_table(["loop", "settings", *times, "OA then"], lines)
    return (
        f"{table}\n\n{race.data}; teacher {race.teacher}, student {race.student}, {race.pixels} pixels, batches of "
        f"{race.batch_size}. Starting, decoding, compiling and filling the store are counted; finding a rival's best "
        f"settings and testing are not. {machine_text(race.hardware)}; {race.date}."
    )
