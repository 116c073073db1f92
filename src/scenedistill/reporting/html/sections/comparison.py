"""Section that compares our methods, or the chosen one, with all others."""

from __future__ import annotations

import base64
import io

import matplotlib as mpl

from scenedistill.core.text import interval_text
from scenedistill.experiments.compare import comparison_rows
from scenedistill.experiments.results.comparisons import MEANING, ComparisonRow, p_text
from scenedistill.experiments.results.pairs import own_methods
from scenedistill.reporting.forest import forest_figure
from scenedistill.reporting.html.blocks import Gallery, Section, Tile
from scenedistill.reporting.html.focus import Focus
from scenedistill.reporting.html.tables import Entry, Table, number_entry, text_entry
from scenedistill.runs.network import TEACHER
from scenedistill.runs.run import Run


def compared_methods(data: Run, focus: Focus) -> list[ComparisonRow]:
    """Compare our methods with all others in the cell looked at closely, or the chosen method where there are none."""
    labels = [label for _, label in focus.cell.groups() if label != TEACHER]
    own = own_methods(labels, data.baseline) or [list(focus.groups)[-1]]
    return comparison_rows(focus.cell, own) if set(own) <= set(labels) else []


def comparison_section(rows: list[ComparisonRow]) -> Section:
    """Return the section of the comparisons; it has no blocks without them."""
    section = Section("comparison", "Comparison with all others", MEANING)
    if rows:
        head = ("network", "method", "compared with", "lead (points)")
        statistics = ("95 % over seeds", "p over seeds", "95 % over images", "p over images", "verdict")
        table = Table("comparison", "Lead in OA", (*head, *statistics), tuple(map(_entries, rows)))
        section.blocks += [table, _picture(rows)]
    return section


def _entries(row: ComparisonRow) -> tuple[Entry, ...]:
    return (
        text_entry(row.student),
        text_entry(row.method),
        text_entry(row.other),
        number_entry(row.points, "{:+.2f}"),
        text_entry(interval_text(row.low, row.high)),
        text_entry(p_text(row.p)),
        text_entry(interval_text(row.image_low, row.image_high)),
        text_entry(p_text(row.image_p)),
        text_entry(row.verdict),
    )


def _picture(rows: list[ComparisonRow]) -> Gallery:
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "scenedistill"}):
        forest_figure(rows).savefig(file, format="svg", metadata={"Date": None})
    uri = f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
    alt = "forest plot of the leads, with intervals over seeds and images"
    return Gallery([("Leads with intervals", "", [Tile(alt, "", uri)])])
