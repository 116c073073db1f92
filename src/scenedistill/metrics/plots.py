"""The confusion matrix as a table of counts and as a picture."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from scenedistill.data.names import as_cell
from scenedistill.metrics.accuracy import SceneMetrics

CELL = 0.36  # inches: leaves room for three readable digits
LONGEST_NAME = 28  # characters in the picture; the CSV has the whole name
PLAIN_FONT = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more


def write_confusion(metrics: SceneMetrics, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write `<stem>_confusion.csv` (counts) and `<stem>_confusion.png` (percent of each true class) into the folder.

    Rows are the true classes, columns the predicted ones, both named. The folder is made when absent.
    Returns the two paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table, picture = folder / f"{stem}_confusion.csv", folder / f"{stem}_confusion.png"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true / predicted", *map(as_cell, metrics.classes)])
        for name, row in zip(metrics.classes, metrics.confusion.tolist(), strict=True):
            writer.writerow([as_cell(name), *row])
    confusion_figure(metrics).savefig(picture, dpi=130)
    return table, picture


def confusion_figure(metrics: SceneMetrics) -> Figure:
    """Draw the confusion matrix in percent of each true class, zeros left empty, rows without images grey."""
    count = len(metrics.classes)
    labels, families = readable_names(metrics.classes)
    margin = 0.6 + 0.085 * max(len(label) for label in labels)  # inches, for the names
    side = max(CELL * count, 2.4)
    figure = Figure(figsize=(side + margin + 0.4, side + margin + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()

    totals = metrics.confusion.sum(axis=1, keepdims=True)
    percent = np.where(totals > 0, 100 * metrics.confusion / np.maximum(totals, 1), np.nan)
    axes.set_facecolor("0.88")  # visible in rows without images
    axes.imshow(np.ma.masked_invalid(percent), cmap="Blues", norm=PowerNorm(0.5, 0, 100))  # shows low values
    for row, column in np.argwhere(np.nan_to_num(percent) >= 0.5):
        value = percent[row, column]
        colour = "white" if value > 35 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7.5, color=colour)

    name_classes(axes, labels, families)
    axes.set_title(
        f"Percent of each true class\n{metrics.images} images: OA {100 * metrics.oa:.2f} %, "
        f"AA {100 * metrics.aa:.2f} %, kappa {metrics.kappa:.3f}",
        fontsize=9 + count / 10,
    )
    return figure


def name_classes(axes: Axes, labels: Sequence[str], families: Sequence[str]) -> None:
    """Label the rows (true) and columns (predicted) of a confusion matrix, and draw lines between its cells."""
    places = np.arange(len(labels))
    axes.set_xticks(places, labels, rotation=90, fontsize=8.5, fontfamily=families, parse_math=False)
    axes.set_yticks(places, labels, fontsize=8.5, fontfamily=families, parse_math=False)
    axes.set_xticks(places[1:] - 0.5, minor=True)
    axes.set_yticks(places[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")


def readable_names(names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the names as the figure can show them, and the font families needed.

    The fonts are that of matplotlib and, for characters it lacks, any installed font. A name that no font can show is
    replaced by its row number (from 1) in the CSV.
    """
    tidy = [" ".join(unicodedata.normalize("NFC", name).split()) for name in names]
    families = [PLAIN_FONT]
    shown = characters(findfont(PLAIN_FONT))
    for missing in sorted({ord(letter) for name in tidy for letter in name} - shown):
        if missing not in shown and (family := font_with(missing)):
            families.append(family)
            shown = shown | characters(findfont(family))
    labels = []
    for number, name in enumerate(tidy, start=1):
        short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        labels.append(short if {ord(letter) for letter in name} <= shown else f"class {number}")
    return labels, families


def font_with(character: int) -> str | None:
    """Find the first installed family, in alphabetical order, whose regular face has this character."""
    regular = {
        entry.name for entry in fontManager.ttflist if entry.style == "normal" and entry.weight in (400, "normal")
    }
    for family in sorted(name for name in regular if not name.startswith("Last Resort")):  # its glyphs are only boxes
        if character in characters(findfont(FontProperties(family=[family]))):
            return family
    return None


@cache
def characters(font_file: str) -> frozenset[int]:
    """Return the code points that a font file can show."""
    return frozenset(get_font(font_file).get_charmap())
