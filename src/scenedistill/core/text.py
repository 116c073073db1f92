"""Text for people: Markdown tables, means with their deviations, durations."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Iterable, Sequence

NONE = "-"  # where there is no figure


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[object]], words: Collection[int] = (0, 1)) -> str:
    """A Markdown table; a `|` in a cell is escaped where it is not yet.

    Args:
        head: headings.
        lines: cells, as many in each line as there are headings.
        words: numbers of the columns set to the left; all others hold figures and are set to the right.
    """
    rule = ["---" if column in words else "---:" for column in range(len(head))]
    rows = [head, rule, *lines]
    return "\n".join("| " + " | ".join(re.sub(r"(?<!\\)\|", r"\|", str(cell)) for cell in row) + " |" for row in rows)


def plus_minus(mean: float | None, deviation: float | None, form: str = "{:.2f}", factor: float = 1.0) -> str:
    """Mean ± deviation, both times a factor; the mean alone where there is no deviation, a dash where there is no mean.

    The deviation has the mean's form without its sign.
    """
    if mean is None:
        return NONE
    spread = "" if deviation is None else f" ± {form.replace('+', '').format(factor * deviation)}"
    return form.format(factor * mean) + spread


def spread(values: Sequence[float], form: str = "{:.2f}", wanted: int | None = None) -> str:
    """Mean ± sample standard deviation; the mean alone for one value, a dash for none.

    Args:
        values: one for each seed that has one.
        form: of a figure.
        wanted: number of seeds; where values are missing their number follows.
    """
    if not values:
        return NONE
    text = plus_minus(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, form)
    return text if wanted in (None, len(values)) else f"{text} (n={len(values)})"


def duration(seconds: float | None) -> str:
    """A time as people say it."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02d} min" if hours < 48 else f"{hours / 24:.1f} days"
