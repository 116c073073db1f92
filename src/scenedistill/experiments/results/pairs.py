"""Gains over a baseline, paired by seed, with confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scenedistill.core.text import NONE, interval_text, spread
from scenedistill.experiments.results.record import Result, Row

LEVEL = 0.95
OURS = ("dkd", "dkd_plus")  # our methods, to which every other one is compared, as to the baseline


@dataclass(frozen=True)
class Gain:
    """Mean of the differences over n common seeds, with its confidence interval by Student's t (n - 1 degrees of
    freedom) and the two-sided p-value of no gain; interval and p-value are None for one seed. The unit is that of the
    compared values."""

    mean: float
    low: float | None
    high: float | None
    n: int
    p: float | None = None

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def text(self) -> str:
        """The mean as text, with the interval where there is one."""
        return f"{self.mean:+.2f}" + ("" if self.low is None else f" [{self.low:+.2f}, {self.high:+.2f}]")


def paired_gain(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Gain | None:
    """Compute the gain of ours over theirs on the common seeds; None where there is none.

    A pair shares the split, and the teacher where both use one, so that their common effect cancels in the difference.

    Examples:
        >>> from scenedistill.experiments.results.pairs import paired_gain
        >>> gain = paired_gain({0: 80.0, 1: 82.0, 2: 81.0}, {0: 78.0, 1: 79.0, 2: 78.0})
        >>> gain.text
        '+2.67 [+1.23, +4.10]'
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    mean, n = statistics.fmean(differences), len(seeds)
    if n == 1:
        return Gain(mean, None, None, 1)
    from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

    error = statistics.stdev(differences) / math.sqrt(n)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)
    return Gain(mean, mean - half, mean + half, n, p)


def own_methods(labels: Sequence[str], baseline: str) -> list[str]:
    """Return the methods of OURS among the labels, if there is another method than the baseline to compare to."""
    others = [label for label in labels if label != baseline]
    return [own for own in OURS if own in others and len(others) > 1]


def own_heading(own: str) -> str:
    """Return the heading of the column with the lead of one of OURS over each other method."""
    return f"{own} minus it (points)"


def by_seed(rows: Sequence[Row], student: str | None, variant: str) -> dict[int, float]:
    """Return the OA in percent by seed, of one student and method."""
    return {row.seed: 100 * row.oa for row in rows if row.student == student and row.variant == variant}


def pairs_lines(result: Result, labels: Sequence[str], baseline: str) -> tuple[list[str], list[list[str]]]:
    """Return the headings and lines of the comparison: the teacher, then for each student every method with OA, AA and
    kappa (mean ± sample standard deviation), the gain over the baseline in points of OA with its interval and number n
    of seeds, and the lead of each of OURS over the method.
    """
    own = own_methods([label for label in labels if any(row.variant == label for row in result.rows)], baseline)
    head = [
        "network",
        "method",
        "seeds",
        "OA (%)",
        "AA (%)",
        "kappa",
        f"gain over {baseline} (points)",
        "95 % interval",
        *map(own_heading, own),
    ]
    lines = []
    teachers = [row for row in result.rows if row.student is None]
    if teachers:
        lines.append([teachers[0].teacher or "", "teacher", *_figures(teachers), NONE, NONE, *([NONE] * len(own))])
    for student in dict.fromkeys(row.student for row in result.rows if row.student):
        theirs = by_seed(result.rows, student, baseline)
        for label in labels:
            rows = [row for row in result.rows if row.student == student and row.variant == label]
            if rows:
                gain = paired_gain(by_seed(rows, student, label), theirs) if label != baseline else None
                ahead = [
                    paired_gain(by_seed(result.rows, student, name), by_seed(rows, student, label))
                    if label not in (name, baseline)
                    else None
                    for name in own
                ]
                lines.append([student, label, *_figures(rows), *_gain(gain), *(g.text if g else NONE for g in ahead)])
    return head, lines


def _figures(rows: Sequence[Row]) -> list[str]:
    """Format the number of seeds, OA, AA and kappa."""
    aa = [100 * row.aa for row in rows if row.aa is not None]
    kappa = [row.kappa for row in rows if row.kappa is not None]
    return [str(len(rows)), spread([100 * row.oa for row in rows]), spread(aa), spread(kappa, "{:.4f}")]


def _gain(gain: Gain | None) -> list[str]:
    if gain is None:
        return [NONE, NONE]
    if gain.low is None:
        return [f"{gain.mean:+.2f}", f"none (n = {gain.n})"]
    return [f"{gain.mean:+.2f}", f"{interval_text(gain.low, gain.high)} (n = {gain.n})"]
