"""Record of the comparison of methods with all others, and its table."""

from __future__ import annotations

from dataclasses import dataclass

from scenedistill.core.text import NONE, interval_text, markdown_table
from scenedistill.experiments.results.measurements import Measurement

KIND = "comparison"
LEVEL = 0.05  # of corrected p-values
MEANING = (
    "The lead is in OA. Over seeds: Student's t over the seeds that both have, each with its own split and teacher. "
    "Over images: the same trained networks on further test images, each image counted once although the test images "
    "of the seeds overlap. p-values are corrected for the number of comparisons by Holm's method; the verdict needs "
    "both below 0.05; with one seed it is not decided."
)


@dataclass(frozen=True)
class ComparisonRow:
    """Lead of one method over another one for a student, in percentage points of OA.

    p-values are corrected by Holm's method for all comparisons of the same method and student; those over seeds, and
    their interval, are None for a single seed, those over images without stored outputs.
    """

    student: str
    method: str
    other: str
    points: float  # mean over the common seeds
    seeds: int
    low: float | None  # 95 % interval over the seeds, Student's t
    high: float | None
    p: float | None
    images: int | None  # number of different test images
    image_low: float | None  # 95 % interval over the test images
    image_high: float | None
    image_p: float | None

    @property
    def clear(self) -> bool:
        """Whether both corrected p-values are below 0.05."""
        return None not in (self.p, self.image_p) and max(self.p or 0, self.image_p or 0) < LEVEL

    @property
    def verdict(self) -> str:
        """`ahead`, `behind`, `no clear difference`, or `not decided` where a p-value is missing."""
        if self.clear:
            return "ahead" if self.points > 0 else "behind"
        return "not decided" if None in (self.p, self.image_p) else "no clear difference"


@dataclass(frozen=True)
class ComparisonResult(Measurement):
    """One comparison."""

    rows: tuple[ComparisonRow, ...]
    kind: str = KIND


def comparison_table(result: ComparisonResult) -> str:
    """Format a Markdown table with a line for each comparison, and a line on its meaning."""
    head = [
        "network", "method", "compared with", "seeds", "lead (points)", "95 % over seeds", "p", "95 % over images", "p",
        "verdict",
    ]  # fmt: skip
    lines = [
        [
            row.student, row.method, row.other, str(row.seeds), f"{row.points:+.2f}",
            interval_text(row.low, row.high), p_text(row.p), interval_text(row.image_low, row.image_high),
            p_text(row.image_p), row.verdict,
        ]
        for row in result.rows
    ]  # fmt: skip
    return f"{markdown_table(head, lines, words=(0, 1, 2, 9))}\n\n{result.data}, {result.date}. {MEANING}"


def p_text(value: float | None) -> str:
    """Format a p-value; NONE if it is not known."""
    if value is None:
        return NONE
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
