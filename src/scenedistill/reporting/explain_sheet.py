"""Sheets of explained images: each image with every network's Grad-CAM map and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scenedistill.core.own_files import replaced
from scenedistill.metrics.gradcam import AGREEMENT
from scenedistill.metrics.plots import readable_names
from scenedistill.reporting.drawings import COLOURS, show_image, show_map
from scenedistill.reporting.explain import Explained, likeliest
from scenedistill.runs.network import TEACHER

ON_A_PAGE = 5  # images
TILE = 2.1  # inches


def draw_explained(explained: Sequence[Explained], folder: Path) -> list[Path]:
    """Write `explain_01.png` and further pages into a folder, `ON_A_PAGE` images on each, and return the files.

    Pages of an earlier call, as listed in `explain.files.json`, are deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for start in range(0, len(explained), ON_A_PAGE):
        written.append(folder / f"explain_{1 + start // ON_A_PAGE:02d}.png")
        explained_figure(explained[start : start + ON_A_PAGE]).savefig(written[-1], dpi=110)
    replaced(folder, "explain", written)
    return written


def explained_figure(explained: Sequence[Explained]) -> Figure:
    """Draw a row for each image: the image, each network's map over it, and the likeliest classes side by side."""
    networks = list(explained[0].explanations)
    figure = Figure(
        figsize=(TILE * (len(networks) + 1) + 3.4, (TILE + 0.55) * len(explained) + 0.3), layout="constrained"
    )
    FigureCanvasAgg(figure)
    widths = [1.0] * (len(networks) + 1) + [1.45]
    grid = figure.subplots(len(explained), len(widths), squeeze=False, width_ratios=widths)
    for number, (row, one) in enumerate(zip(grid, explained, strict=True)):
        (name, *_), families = readable_names((one.path.name, *one.classes))
        below = f"in the folder {one.classes[one.truth]}" if one.truth is not None else ""
        _picture(row[0], one.pixels, None, name, below, families)
        for axes, (network, explanation) in zip(row[1:], one.explanations.items(), strict=False):
            said = one.named(network)
            (label,), families = readable_names((one.classes[said],))
            title = f"{network}: {label} {100 * explanation.probabilities[said]:.0f} %"
            score = "" if explanation.agreement is None else f"agreement {explanation.agreement:.2f}"
            wrong = one.truth is not None and said != one.truth
            _picture(axes, one.pixels, explanation.heat, title, score, families, "#B00020" if wrong else "black")
        _bars(row[-1], one, legend=number == 0)
    asked = {one.classes[one.asked] for one in explained}
    leader = f"the {TEACHER}" if TEACHER in networks else networks[-1]
    what = f"the class {asked.pop()}" if len(asked) == 1 else f"the class that {leader} names"
    notes = [f"Colours: evidence for {what} (Grad-CAM)."]
    if TEACHER in networks and len(networks) > 1:
        notes.append(f"Agreement with the teacher: {AGREEMENT}.")
    if any(one.truth is not None for one in explained):
        notes.append("Red: not the class of the folder.")
    figure.supxlabel(" ".join(notes), fontsize=8, parse_math=False)
    return figure


def _picture(
    axes: Axes,
    pixels: np.ndarray,
    heat: np.ndarray | None,
    title: str,
    below: str,
    families: Sequence[str],
    colour: str = "black",
) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8.5, color=colour, fontfamily=list(families), parse_math=False)
    axes.set_xlabel(below, fontsize=8, fontfamily=list(families), parse_math=False)
    if heat is None:
        show_image(axes, pixels)
    else:
        show_map(axes, pixels, heat)


def _bars(axes: Axes, one: Explained, *, legend: bool) -> None:
    """Draw the likeliest classes from top to bottom, with a bar for each network."""
    shown = likeliest(one)
    labels, families = readable_names(tuple(one.classes[label] for label in shown))
    places, thick = np.arange(len(shown)), 0.8 / len(one.explanations)
    for number, (network, explanation) in enumerate(one.explanations.items()):
        values = [100 * float(explanation.probabilities[label]) for label in shown]
        offset = (number - (len(one.explanations) - 1) / 2) * thick
        axes.barh(places + offset, values, thick, color=COLOURS[number % len(COLOURS)], label=network)
    axes.set_yticks(places, labels, fontsize=8, fontfamily=families, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("probability (%)", fontsize=8)
    if legend:
        axes.legend(fontsize=7.5, frameon=False, loc="lower right")
