"""Text output: Markdown tables, means with standard deviations, intervals, durations."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Iterable, Sequence

from scenedistill.core.errors import UserError

NONE = "-"  # where there is no figure


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[object]], words: Collection[int] = (0, 1)) -> str:
    """Format a Markdown table; a `|` in a cell is escaped unless it already is.

    Args:
        head: headings.
        lines: rows of cells, as many in each row as there are headings.
        words: indices of the left-aligned columns; all others hold numbers and are right-aligned.
    """
    rule = ["---" if column in words else "---:" for column in range(len(head))]
    rows = [head, rule, *lines]
    return "\n".join("| " + " | ".join(re.sub(r"(?<!\\)\|", r"\|", str(cell)) for cell in row) + " |" for row in rows)


def plus_minus(mean: float | None, deviation: float | None, form: str = "{:.2f}", factor: float = 1.0) -> str:
    """Format mean ± deviation, both times `factor`; only the mean without a deviation, a dash without a mean.

    The deviation has the format string of the mean without its `+`.
    """
    if mean is None:
        return NONE
    spread = "" if deviation is None else f" ± {form.replace('+', '').format(factor * deviation)}"
    return form.format(factor * mean) + spread


def spread(values: Sequence[float], form: str = "{:.2f}", wanted: int | None = None) -> str:
    """Format mean ± sample standard deviation; only the mean for one value, a dash for none.

    Args:
        values: one value for each seed that has one.
        form: format string of a number.
        wanted: number of seeds; if values are missing, `(n=...)` with the number of values is appended.
    """
    if not values:
        return NONE
    text = plus_minus(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, form)
    return text if wanted in (None, len(values)) else f"{text} (n={len(values)})"


def interval_text(low: float | None, high: float | None) -> str:
    """Format an interval of differences, such as `-0.12 to +1.30`; a dash if it is not known."""
    return NONE if low is None or high is None else f"{low:+.2f} to {high:+.2f}"


def span_text(numbers: Iterable[int]) -> str:
    """Format the range of at least one number, such as `3` or `3 to 5`."""
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def duration(seconds: float | None) -> str:
    """Format a duration: `45 s`, `12 min`, `3 h 05 min` or `2.5 days`; `?` for None."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02d} min" if hours < 48 else f"{hours / 24:.1f} days"


def one_line(problem: BaseException) -> str:
    """Format an exception in one line: its kind is named unless it is a `UserError`."""
    if isinstance(problem, UserError):
        return " ".join(str(problem).split())
    first = str(problem).strip().partition("\n")[0]
    return f"{type(problem).__name__}: {first}".rstrip(": ")
