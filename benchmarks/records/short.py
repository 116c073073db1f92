"""The columns by which a user chooses a network, of a result file, in Markdown."""

from __future__ import annotations

from scenedistill.core.text import NONE, markdown_table, spread
from scenedistill.experiments.results.pairs import by_seed, paired_gain
from scenedistill.experiments.results.record import Result, Row
from scenedistill.experiments.results.table import conditions, grouped, middle, training


def short_table(result: Result) -> str:
    """Format accuracy, size and time of every network, and the lead over plain and over the teacher of the same seeds,
    in points of OA with the 95 % interval. The time for an image is the median over all trainings of the same network.
    `result_table` has more columns.
    """
    groups = grouped(result)
    teachers = {
        teacher: by_seed(rows, None, "teacher") for (student, _, teacher), rows in groups.items() if not student
    }
    if len(teachers) == 1:  # a plain student has no teacher, but is compared with the only one
        teachers[""] = next(iter(teachers.values()))
    lines = []
    for (student, variant, teacher), rows in groups.items():
        leads = [NONE, NONE]
        if student:
            own = by_seed(rows, student, variant)
            plain = {} if variant == "plain" else by_seed(result.rows, student, "plain")
            gains = [paired_gain(own, theirs) for theirs in (plain, teachers.get(teacher, {}))]
            leads = [gain.text if gain else NONE for gain in gains]
        sizes = [float(row.more["bytes"] or 0) / 1e6 for row in rows if "bytes" in row.more]
        times = [row.milliseconds for row in result.rows if _network(row) == _network(rows[0]) and row.milliseconds]
        minutes = [float(row.more["train_seconds"] or 0) / 60 for row in rows if "train_seconds" in row.more]
        figures = [spread([100 * row.oa for row in rows]), *leads, *map(middle, (sizes, times, minutes))]
        lines.append([student or teacher, training(variant, teacher), *figures])
    head = ["network", "training", "OA (%)", "ahead of plain (points)", "ahead of its teacher (points)"]
    table = markdown_table([*head, "size (MB)", "ms per image", "training (min)"], lines)
    seeds = len({row.seed for row in result.rows})
    meaning = f" {seeds} seeds: ± is the sample standard deviation, in brackets a 95 % interval." if seeds > 1 else ""
    return f"{table}\n\n{conditions(result)}{meaning}"


def _network(row: Row) -> tuple[str | None, int | None]:
    """Return what tells networks of different speed apart: one student may have DA modules or none."""
    return row.student or row.teacher, row.parameters
