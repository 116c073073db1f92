"""Accuracies published by others on the same data sets, shown beside ours and never mixed with them.

Each figure has its source and a note on what is uncertain about it. Methods whose figures could not be read anywhere
are left out, and so are figures without a training ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scenedistill.core.errors import UserError
from scenedistill.core.text import markdown_table, plus_minus
from scenedistill.data.known.catalogue import lookup
from scenedistill.experiments.results.published_entries import ENTRIES, Entry

#: Caution to show with these figures everywhere.
CAUTION = (
    "Figures of other people, as published: with other splits, image sizes, pretraining, tuning and ways to choose the "
    "epoch than ours, so a small difference from ours means nothing."
)
UNVERIFIED = "†"


@dataclass(frozen=True)
class PublishedResult:
    """One published accuracy.

    Attributes:
        method: name of the method and its network.
        data: key of the data set in the catalogue, such as `aid`.
        ratio: training ratio, 0..1.
        oa: overall accuracy on the rest, 0..1.
        std: standard deviation over repeated runs, in the unit of `oa`; None where none was given.
        teaching: pretraining or teacher, in words; "" where not stated.
        parameters: number of parameters; None where not stated.
        source: authors, year and table.
        url: DOI or address of the source.
        verified: True where the figure was read in its authors' text or repository; False where it was quoted by
            others, computed, or is uncertain, which the note explains.
        note: remarks on the figure.
    """

    method: str
    data: str
    ratio: float
    oa: float
    std: float | None
    teaching: str
    parameters: int | None
    source: str
    url: str
    verified: bool
    note: str = ""


def published(data: str, ratio: float | None = None) -> tuple[PublishedResult, ...]:
    """List the published results for a data set and a training ratio, by ratio and then the highest OA first.

    Args:
        data: the data set's name or key, in any of the catalogue's spellings; other data sets have no results.
        ratio: training ratio, 0..1; all ratios when not given.
    """
    try:
        key = lookup(data).key
    except UserError:
        return ()
    found = [result for result in PUBLISHED if result.data == key]
    if ratio is not None:
        found = [result for result in found if math.isclose(result.ratio, ratio, abs_tol=1e-6)]
    return tuple(sorted(found, key=lambda result: (result.ratio, -result.oa, result.method)))


def published_rows(results: tuple[PublishedResult, ...]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and lines of a table of published figures, as text; a figure that is not verified has a †.

    Columns: method, pretraining or teacher, OA in %, parameters in millions where any are stated, source.
    """
    stated = any(result.parameters for result in results)
    head = ["method", "pretraining or teacher", "OA (%)", *(["parameters (M)"] if stated else []), "source"]
    lines = []
    for result in results:
        oa = plus_minus(result.oa, result.std, factor=100)
        size = [f"{result.parameters / 1e6:.1f}" if result.parameters else "-"] if stated else []
        mark = "" if result.verified else f" {UNVERIFIED}"
        lines.append([result.method, result.teaching or "-", oa + mark, *size, result.source])
    return head, lines


def published_table(data: str, ratio: float) -> str:
    """Format the results as Markdown: a heading, the table with linked sources, the notes and the caution; "" where
    there are none."""
    results = published(data, ratio)
    if not results:
        return ""
    head, lines = published_rows(tuple(replace(one, source=f"[{one.source}]({one.url})") for one in results))
    table = markdown_table(head, lines, words=(0, 1, len(head) - 1))
    title = f"**Published by others: {lookup(data).name}, {100 * ratio:g} % training**"
    listed = "\n".join(f"- {note}" for note in notes(results))
    return "\n\n".join(filter(None, [title, table, listed, CAUTION]))


def notes(results: tuple[PublishedResult, ...]) -> list[str]:
    """List the notes on single figures, each distinct note once."""
    said: dict[str, list[str]] = {}
    for result in results:
        if result.note:
            said.setdefault(result.note, []).append(result.method)
    told = [f"{', '.join(dict.fromkeys(methods))}: {note}" for note, methods in said.items()]
    if any(not result.verified for result in results):
        told.insert(0, f"{UNVERIFIED} quoted by others, computed, or uncertain.")
    return told


def _results(entry: Entry) -> list[PublishedResult]:
    """Convert an entry to one result for each figure, from percent to 0..1."""
    return [
        PublishedResult(
            method=entry.method,
            data=data,
            ratio=ratio,
            oa=round(percent / 100, 6),
            std=None if std is None else round(std / 100, 6),
            teaching=entry.teaching,
            parameters=entry.parameters,
            source=entry.source.name,
            url=entry.source.url,
            verified=entry.verified and data not in entry.doubtful,
            note=" ".join(filter(None, [entry.note, entry.doubtful.get(data, "")])),
        )
        for (data, ratio), (percent, std) in entry.figures.items()
    ]


PUBLISHED: tuple[PublishedResult, ...] = tuple(result for entry in ENTRIES for result in _results(entry))
