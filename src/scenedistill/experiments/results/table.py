"""The table of the trained networks of a run or a grid, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scenedistill.core.text import NONE, duration, interval_text, markdown_table, spread
from scenedistill.data.names import as_markdown
from scenedistill.experiments.results.measurements import machine_text
from scenedistill.experiments.results.pairs import OURS, by_seed, own_heading, paired_gain
from scenedistill.experiments.results.record import Result, Row


def result_table(result: Result) -> str:
    """Format a result as a Markdown table with a line on data, settings and machine below it.

    Teachers come first, then each student: plain, then every method. A figure is the mean over seeds, followed by ± the
    sample standard deviation where there are two seeds or more. The gain is the OA in points over the plain student of
    the same name, paired over the common seeds; so is the lead of our own methods over another one, with the interval
    in brackets. Where a figure has fewer seeds than its row, their number follows it. "other epochs" is the number of
    epochs where it differs from the one below the table. Columns without a figure are left out. Equal results give
    equal text.
    """
    table = markdown_table(*cells(result))
    meaning = " ± is the sample standard deviation over seeds." if "±" in table else ""
    return f"{table}\n\n{conditions(result)}{meaning}"


def cells(result: Result) -> tuple[list[str], list[list[str]]]:
    """Return the headings and lines of a result's table, as text; the first two columns are words, the rest figures."""
    groups = grouped(result)
    found = [columns(rows, result.rows) for rows in groups.values()]
    kept = [heading for heading in found[0] if any(line[heading] != NONE for line in found)]
    lines = []
    for (student, variant, teacher), rows, line in zip(groups, groups.values(), found, strict=True):
        lines.append([student or teacher, training(variant, teacher), str(len(rows)), *(line[name] for name in kept)])
    return ["network", "training", "seeds", *kept], lines


def grouped(result: Result) -> dict[tuple[str, str, str], list[Row]]:
    """Return the rows by student, variant and teacher ("" for none), in the order of the table; rows of a group differ
    only by seed."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(result.rows, key=lambda row: row.key):
        groups.setdefault((row.student or "", row.variant, row.teacher or ""), []).append(row)
    return groups


def columns(rows: Sequence[Row], everything: Sequence[Row]) -> dict[str, str]:
    """Return the text of each column, by heading, for the rows of one network and method, which differ only by seed."""

    def known(name: str, factor: float = 1) -> list[float]:
        return [factor * value for row in rows if (value := getattr(row, name)) is not None]

    def known_more(name: str, factor: float = 1) -> list[float]:
        return [factor * float(value) for row in rows if (value := row.more.get(name)) is not None]

    seeds = len(rows)
    return {
        "OA (%)": spread(known("oa", 100), wanted=seeds),
        "OA of the best epoch (%)": spread(known_more("best_epoch_oa", 100), wanted=seeds),
        "gain (points)": spread(gains(rows, everything), "{:+.2f}", seeds),
        "95 % interval of the gain": interval(rows, everything),
        **{own_heading(own): ahead(own, rows, everything) for own in OURS},
        "AA (%)": spread(known("aa", 100), wanted=seeds),
        "kappa": spread(known("kappa"), "{:.3f}", seeds),
        "macro F1 (%)": spread(known("macro_f1", 100), wanted=seeds),
        "parameters (M)": middle(known("parameters", 1e-6)),
        "ms per image": middle(known("milliseconds")),
        "other epochs": ", ".join(dict.fromkeys(f"{count:.0f}" for count in known_more("epochs"))) or NONE,
        "training (min)": middle(known_more("train_seconds", 1 / 60)),
        "started from": started_from(rows),
    }


def started_from(rows: Sequence[Row]) -> str:
    """Return the names of the pretrained weights; NONE where the network was trained from scratch or they are
    unknown."""
    known = dict.fromkeys(str(row.more.get("weights") or "none") for row in rows)
    return ", ".join(name for name in known if name != "none") or NONE


def training(variant: str, teacher: str) -> str:
    """Describe how the network was trained: its variant and teacher."""
    return f"{variant}, from {teacher}" if teacher and variant != "teacher" else variant


def middle(values: Sequence[float]) -> str:
    """Format the median, for values that depend on the seed only through noise."""
    return f"{statistics.median(values):.2f}" if values else NONE


def gains(rows: Sequence[Row], everything: Sequence[Row]) -> list[float]:
    """Return the OA gain in points over the plain student of the same name for each common seed; empty for plain and
    teacher."""
    ours, plain = _compared(rows, everything)
    return [ours[seed] - plain[seed] for seed in ours if seed in plain]


def interval(rows: Sequence[Row], everything: Sequence[Row]) -> str:
    """Format the interval of the gain, by Student's t over the seeds; NONE for a single seed."""
    gain = paired_gain(*_compared(rows, everything))
    return interval_text(gain.low, gain.high) if gain else NONE


def ahead(own: str, rows: Sequence[Row], everything: Sequence[Row]) -> str:
    """Format the lead of one of our methods over another one, paired by seed; NONE for itself, plain and teacher."""
    theirs, _ = _compared(rows, everything)
    gain = paired_gain(by_seed(everything, rows[0].student, own), theirs) if rows[0].variant != own else None
    return gain.text if gain else NONE


def _compared(rows: Sequence[Row], everything: Sequence[Row]) -> tuple[dict[int, float], dict[int, float]]:
    """Return the OA in percent by seed, of the rows and of the plain student of the same name; empty for plain and
    teacher."""
    first = rows[0]
    if first.variant in ("teacher", "plain"):
        return {}, {}
    return {row.seed: 100 * row.oa for row in rows}, by_seed(everything, first.student, "plain")


def conditions(result: Result) -> str:
    """Format one line of the data, the settings, the time, the machine and the notes."""
    if isinstance(result.epochs, dict):
        epochs = ", ".join(f"{count} epochs ({name})" for name, count in result.epochs.items())
    else:
        epochs = f"{result.epochs} epochs"
    ratio = f", {100 * result.train_ratio:g} % training" if result.train_ratio is not None else ""
    took = f"{duration(result.wall_seconds)} on {machine_text(result.hardware)}"
    text = f"{as_markdown(result.data)}{ratio}, {result.pixels} pixels, {epochs}; {took}; {result.date}."
    return f"{text} {result.notes}".strip()
