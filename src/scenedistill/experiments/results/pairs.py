"""Gains over a baseline, seed by seed, with what the number of seeds allows to say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scenedistill.core.text import NONE, spread
from scenedistill.experiments.results.record import Result, Row

LEVEL = 0.95
OURS = ("dkd", "dkd_plus")  # the methods that every other one is compared with, beside the baseline


@dataclass(frozen=True)
class Gain:
    """Mean of the differences over n seeds that both have, with its confidence interval by Student's t (n - 1 degrees
    of freedom); the interval is None for one seed, which has no spread. The unit is that of what was compared."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def text(self) -> str:
        """In points, with the interval where there is one."""
        return f"{self.mean:+.2f}" + ("" if self.low is None else f" [{self.low:+.2f}, {self.high:+.2f}]")


def paired_gain(ours: Mapping[int, float], theirs: Mapping[int, float], level: float = LEVEL) -> Gain | None:
    """The gain of ours over theirs on the seeds both have; None where there is no such seed.

    A pair shares the split, and the teacher where both ask one, so that what these do to both falls out of the
    difference.

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
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    half = float(stdtrit(n - 1, (1 + level) / 2)) * statistics.stdev(differences) / math.sqrt(n)
    return Gain(mean, mean - half, mean + half, n)


def own_methods(labels: Sequence[str], baseline: str) -> list[str]:
    """Those of OURS that have another method than the baseline beside them."""
    others = [label for label in labels if label != baseline]
    return [own for own in OURS if own in others and len(others) > 1]


def own_heading(own: str) -> str:
    """Of the column that says how far one of OURS is ahead of each other method."""
    return f"{own} minus it (points)"


def by_seed(rows: Sequence[Row], student: str | None, variant: str) -> dict[int, float]:
    """OA in percent of one network trained one way."""
    return {row.seed: 100 * row.oa for row in rows if row.student == student and row.variant == variant}


def pairs_lines(result: Result, labels: Sequence[str], baseline: str) -> tuple[list[str], list[list[str]]]:
    """Headings and lines: the teacher, then for each student every method with OA, AA and kappa (mean ± sample standard
    deviation) and the gain over the baseline in points of OA, with its interval and the number n of seeds it rests on;
    then how far each of OURS is ahead of it.
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
    """Number of seeds, OA, AA, kappa."""
    aa = [100 * row.aa for row in rows if row.aa is not None]
    kappa = [row.kappa for row in rows if row.kappa is not None]
    return [str(len(rows)), spread([100 * row.oa for row in rows]), spread(aa), spread(kappa, "{:.4f}")]


def _gain(gain: Gain | None) -> list[str]:
    if gain is None:
        return [NONE, NONE]
    if gain.low is None:
        return [f"{gain.mean:+.2f}", f"none (n = {gain.n})"]
    return [f"{gain.mean:+.2f}", f"{gain.low:+.2f} to {gain.high:+.2f} (n = {gain.n})"]
