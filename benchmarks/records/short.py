"""The columns by which a user chooses a network, of a result file, in Markdown."""

from __future__ import annotations

from scenedistill.core.text import NONE, markdown_table, spread
from scenedistill.experiments.results.pairs import by_seed, paired_gain
from scenedistill.experiments.results.record import Result, Row
from scenedistill.experiments.results.table import conditions, middle, training


def short_table(result: Result) -> str:
    """Format accuracy, size and time of every network, and the lead over plain and over the teacher of the same seeds,
    in points of OA with the 95 % interval. The time for an image is the median over all trainings of the same network.
    `result_table` has more columns.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(result.rows, key=lambda row: row.key):
        groups.setdefault((row.student or "", row.variant, row.teacher or ""), []).append(row)
    teachers = {rows[0].teacher: by_seed(rows, None, "teacher") for rows in groups.values() if not rows[0].student}
    lines = []
    for (student, variant, teacher), rows in groups.items():
        own = by_seed(rows, rows[0].student, variant)
        leads = [NONE, NONE]
        if student:
            plain = by_seed(result.rows, student, "plain") if variant != "plain" else {}
            # a plain student has no teacher, but is compared with the only one
            theirs = teachers.get(teacher or None) or (next(iter(teachers.values())) if len(teachers) == 1 else {})
            gains = [paired_gain(own, plain), paired_gain(own, theirs)]
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
