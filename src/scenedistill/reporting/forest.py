"""Forest plot: the lead of a method over all others, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scenedistill.experiments.results.comparisons import ComparisonRow
from scenedistill.reporting.drawings import BETTER, SMALL, WORSE


def forest_figure(rows: Sequence[ComparisonRow]) -> Figure:
    """Draw a panel for each method and student, with a line for each compared training, the smallest lead at the top.

    A thick line is the 95 % interval over the test images, a thin one that over the seeds. A filled point is a clear
    difference after correction.

    Args:
        rows: comparisons, at least one.
    """
    panels: dict[tuple[str, str], list[ComparisonRow]] = {}
    for row in rows:
        panels.setdefault((row.student, row.method), []).append(row)
    most = max(map(len, panels.values()))
    figure = Figure(figsize=(1.0 + 4.0 * len(panels), 1.1 + 0.24 * most), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, ((student, method), found) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        found = sorted(found, key=lambda row: row.points)
        for y, row in enumerate(found):
            colour = BETTER if row.points > 0 else WORSE
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [y, y], color=colour, linewidth=0.9)
            if row.image_low is not None and row.image_high is not None:
                axes.plot([row.image_low, row.image_high], [y, y], color=colour, linewidth=3.2, alpha=0.55)
            axes.plot(row.points, y, "o", color=colour, markersize=5, markerfacecolor=colour if row.clear else "white")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(found)), [row.other for row in found], fontsize=SMALL + 0.5, parse_math=False)
        axes.invert_yaxis()
        axes.margins(y=0.06)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.set_xlabel(f"{method} minus the other (points of OA)", fontsize=8, parse_math=False)
        axes.set_title(student, fontsize=9, parse_math=False)
    figure.supxlabel(
        "thick: 95 % over the test images, thin: over the seeds; filled: clear after correction", fontsize=SMALL
    )
    return figure
