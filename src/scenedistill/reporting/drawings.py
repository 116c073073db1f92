"""Matplotlib figures of an evaluation, legible in print and to the colour-blind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from scenedistill.metrics.calibration import Calibration
from scenedistill.metrics.differences import ClassGain, ConfusedPair
from scenedistill.metrics.plots import CELL, name_classes, readable_names
from scenedistill.runs.curves import Curves, hints

#: Palette of Okabe and Ito (2008), distinguishable with every common kind of colour blindness; each colour has its own
#: dash and marker, so that lines can be distinguished in greyscale too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
BETTER, WORSE = COLOURS[0], COLOURS[1]
SMALL = 7.5  # font size in points


def save_drawing(figure: Figure, path: Path, *, dpi: int = 160) -> Path:
    """Write a figure as PNG, SVG or PDF, by the file extension; the same figure gives the same SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    with mpl.rc_context({"svg.hashsalt": "scenedistill"}):
        figure.savefig(path, dpi=dpi, metadata=metadata)
    return path


def confusion_difference_figure(difference: np.ndarray, classes: Sequence[str], before: str, after: str) -> Figure:
    """Draw the difference of two confusion matrices: violet where the second network is better, orange where the first.

    Args:
        difference: percentage points from `differences.confusion_difference`, `[K, K]`.
        classes: names of the K classes.
        before: name of the first network.
        after: name of the second network.
    """
    count = len(classes)
    labels, families = readable_names(tuple(classes))
    side = max(CELL * count, 2.4)
    margin = 0.6 + 0.085 * max(len(label) for label in labels)
    figure, axes = _figure(side + margin + 0.4, side + margin + 0.9)
    better = np.where(np.eye(count, dtype=bool), difference, -difference)  # fewer mistakes are better
    axes.set_facecolor("0.88")  # background of rows without images
    norm = SymLogNorm(2, vmin=-100, vmax=100)  # makes small differences visible
    picture = axes.imshow(np.ma.masked_invalid(better), cmap="PuOr", norm=norm)
    for row, column in np.argwhere(np.abs(np.nan_to_num(difference)) >= 0.5):
        value = difference[row, column]
        colour = "white" if np.mean(picture.to_rgba(better[row, column])[:3]) < 0.5 else "black"
        axes.text(column, row, f"{value:+.0f}".replace("-", "−"), ha="center", va="center", fontsize=7, color=colour)
    name_classes(axes, labels, families)
    axes.set_title(
        f"{after} − {before}: points of each true class\nviolet: {after} is better, orange: {before} is better",
        fontsize=9 + count / 10,
        parse_math=False,
    )
    return figure


def class_gains_figure(gains: Sequence[ClassGain], before: str, after: str) -> Figure:
    """Draw the points gained or lost in each class, with the accuracy before and after beside each name."""
    labels, families = readable_names(tuple(gain.name for gain in gains))
    figure, axes = _figure(6.4, 1.2 + 0.2 * len(gains))
    points = [gain.points for gain in gains]
    bars = axes.barh(range(len(gains)), points, color=[BETTER if value >= 0 else WORSE for value in points])
    axes.bar_label(bars, [f"{value:+.1f}".replace("-", "−") for value in points], padding=2, fontsize=SMALL)
    names = [
        f"{label}  {100 * gain.before:.0f} → {100 * gain.after:.0f} %"
        for label, gain in zip(labels, gains, strict=True)
    ]
    axes.set_yticks(range(len(gains)), names, fontsize=SMALL, fontfamily=families, parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.margins(x=0.15, y=0.01)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("points of accuracy")
    axes.set_title(f"{after} against {before}, by class", fontsize=10, parse_math=False)
    return figure


def confused_pairs_figure(
    pairs: Sequence[ConfusedPair], classes: Sequence[str], images: Mapping[int, np.ndarray]
) -> Figure:
    """Draw a row for each confused pair: both classes, how often, and example images, the most confident errors first.

    Args:
        pairs: result of `differences.confused_pairs`, at least one pair.
        classes: class names.
        images: position in the outputs to image, uint8 `[H, W, bands]`; missing examples are left blank.
    """
    names, families = readable_names(tuple(classes))
    wide = max(1, *(len(pair.examples) for pair in pairs))
    figure = Figure(figsize=(1.7 + 1.05 * wide, 1.05 * len(pairs)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(pairs), wide + 1, squeeze=False, width_ratios=[1.6, *[1] * wide])
    for line, pair in zip(grid, pairs, strict=True):
        text = f"{names[pair.true]}\ntaken for\n{names[pair.named]}\n{pair.images} images, {100 * pair.share:.0f} %"
        line[0].text(
            0.98, 0.5, text, ha="right", va="center", fontsize=8, fontfamily=families, parse_math=False,
            transform=line[0].transAxes,
        )  # fmt: skip
        for axes in line:
            axes.axis("off")
        for axes, position in zip(line[1:], pair.examples, strict=False):
            if position in images:
                show_image(axes, images[position])
    return figure


def activation_figure(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    headings: Sequence[str],
    notes: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Draw the images with each network's class-activation maps: a column for each image, a row for each network.

    Args:
        images: uint8 `[B, H, W, bands]`.
        maps: network to its class-activation maps, float `[B, S, S]` in 0..1.
        headings: B texts above the columns, such as the true classes.
        notes: network to B texts below its pictures, such as the predicted class and the agreement.
    """
    shown, families = readable_names(tuple(headings))
    figure = Figure(figsize=(0.5 + 1.3 * len(images), 0.3 + 1.5 * (len(maps) + 1)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(maps) + 1, len(images), squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    for column, image in enumerate(images):
        grid[0][column].set_title(shown[column], fontsize=8, fontfamily=families, parse_math=False)
        show_image(grid[0][column], image)
    for line, (name, own) in zip(grid[1:], maps.items(), strict=True):
        line[0].set_ylabel(name, fontsize=8.5, parse_math=False)
        for column, axes in enumerate(line):
            show_map(axes, images[column], own[column])
            if notes:
                axes.set_xlabel(notes[name][column], fontsize=SMALL, fontfamily=families, parse_math=False)
    return figure


def embedding_figure(
    maps: Mapping[str, np.ndarray],
    labels: np.ndarray,
    classes: Sequence[str],
    notes: Mapping[str, str] | None = None,
) -> Figure:
    """Draw embedding maps side by side; each class has a colour, a marker and a number at the median of its images.

    Args:
        maps: network to coordinates from `embedding_map`, `[N, 2]`.
        labels: true classes, `[N]`.
        classes: class names.
        notes: network to a text below its map, such as the purity of its neighbourhoods.
    """
    names, families = readable_names(tuple(classes))
    lines = -(-len(classes) // 6)
    figure = Figure(figsize=(max(4.2 * len(maps), 6.4), 4.6 + 0.17 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, places) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        for number, class_name in enumerate(names):
            own = places[labels == number]
            if not len(own):
                continue
            colour = COLOURS[number % len(COLOURS)]
            marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
            text = f"{number + 1} {class_name}"
            axes.scatter(*own.T, s=9, c=colour, marker=marker, linewidths=0, alpha=0.75, label=text)
        for number in range(len(names)):
            if (labels == number).any():
                middle = np.median(places[labels == number], axis=0)
                box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "0.6", "linewidth": 0.4}
                axes.text(*middle, str(number + 1), fontsize=SMALL, ha="center", va="center", bbox=box)
        axes.set(xticks=[], yticks=[], aspect="equal", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
        axes.set_title(name, fontsize=10, parse_math=False)
        if notes and name in notes:
            axes.set_xlabel(notes[name], fontsize=8)
    handles, texts = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(
        handles, texts, loc="outside lower center", ncols=6, fontsize=SMALL, markerscale=1.8, frameon=False,
        handletextpad=0.1, columnspacing=1.0,
    )  # fmt: skip
    for entry in legend.get_texts():
        entry.set_fontfamily(families)
        entry.set_parse_math(False)
    return figure


def learning_figure(curves: Mapping[str, Curves]) -> Figure:
    """Draw overall accuracy over the epochs: on the training views, and on validation images where there are some."""
    figure, axes = _figure(5.6, 3.4)
    for number, (name, own) in enumerate(curves.items()):
        for column, what in (("train_oa", "training views"), ("val_oa", "validation")):
            if column in own.accuracies:
                style = _style(number, marker=column == "val_oa")
                axes.plot(own.epochs, 100 * own.accuracies[column], label=f"{name}, {what}", **style)
    axes.set(xlabel="epoch", ylabel="overall accuracy (%)")
    axes.grid(color="0.9")
    axes.legend(fontsize=8, frameon=False)
    return figure


def parts_figure(curves: Curves, name: str) -> Figure:
    """Draw the weighted terms of one training's loss over the epochs, their gradient norms if measured, and hints."""
    panels = 2 if curves.pulls else 1
    said = hints(curves)
    figure = Figure(figsize=(4.4 * panels, 3.4 + 0.32 * len(said)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, panels, squeeze=False)[0]
    for number, part in enumerate(curves.parts):
        weight = curves.weights.get(part)
        label = part if weight in (None, 1) else f"{weight:g} × {part}"
        grid[0].plot(curves.epochs, (weight or 1) * curves.parts[part], label=label, **_style(number, marker=False))
        if part in curves.pulls:
            measured = np.isfinite(curves.pulls[part])
            share = f"{label}, {100 * curves.gradient_shares.get(part, 0):.0f} %"
            values = curves.pulls[part][measured]
            grid[1].plot(curves.epochs[measured], values, label=share, **_style(number))
    titles = (f"{name}: parts of the loss", "norm of their gradients; median share of all")
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(title, fontsize=10, pad=24, parse_math=False)
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.grid(color="0.9")
        axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    if said:
        figure.supxlabel("\n".join(said), fontsize=SMALL, wrap=True, parse_math=False)
    return figure


def reliability_figure(calibrations: Mapping[str, Calibration]) -> Figure:
    """Draw accuracy against confidence, a panel for each network, with the share of the images in each bin below."""
    figure = Figure(figsize=(max(2.9 * len(calibrations), 3.4), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(calibrations), squeeze=False, sharex=True, sharey="row", height_ratios=[3, 1])
    for (above, below), (name, found) in zip(grid.T, calibrations.items(), strict=True):
        width = np.diff(found.edges)
        middle = found.edges[:-1] + width / 2
        above.bar(middle, found.accuracy, width, color="#56B4E9", edgecolor="white", linewidth=0.5, label="accuracy")
        gap = found.confidence - found.accuracy
        above.bar(
            middle, gap, width, found.accuracy, color="none", edgecolor=WORSE, hatch="////", linewidth=0.5,
            label="confidence − accuracy",
        )  # fmt: skip
        above.plot([0, 1], [0, 1], color="black", linewidth=0.8)
        below.bar(middle, 100 * found.counts / found.counts.sum(), width, color="0.5", edgecolor="white", linewidth=0.5)
        above.set_title(f"{name}\nECE {100 * found.ece:.1f} %, OA {100 * found.oa:.1f} %", fontsize=9, parse_math=False)
        above.set(xlim=(0, 1), ylim=(0, 1))
        below.set_xlabel("confidence")
    grid[0][0].set_ylabel("accuracy")
    grid[1][0].set_ylabel("images (%)")
    grid[0][0].legend(fontsize=SMALL, frameon=False, loc="upper left")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _style(number: int, *, marker: bool = True) -> dict[str, Any]:
    style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
    if marker:
        style |= {"marker": MARKERS[number % len(MARKERS)], "markersize": 4}
    return style


def show_image(axes: Axes, image: np.ndarray) -> None:
    """Draw an image, uint8 `[H, W, bands]`: the first three bands as RGB, or the first as grey."""
    axes.imshow(image[..., :3] if image.shape[-1] >= 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)


def show_map(axes: Axes, image: np.ndarray, heat: np.ndarray) -> None:
    """Draw a class-activation map, `[S, S]` in 0..1, over an image in grey, uint8 `[H, W, bands]`."""
    axes.imshow(image[..., :3].mean(-1), cmap="gray", vmin=0, vmax=255)
    height, width = image.shape[:2]
    edges = (-0.5, width - 0.5, height - 0.5, -0.5)  # the map may have another size than the image
    axes.imshow(heat, cmap="inferno", alpha=0.5, vmin=0, vmax=1, extent=edges, interpolation="bilinear")
