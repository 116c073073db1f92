"""Sections about the networks looked at closely, made from records and outputs alone: classes, learning curves, loss
terms, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from scenedistill.core.errors import UserError
from scenedistill.metrics.calibration import BINS, Calibration, calibration
from scenedistill.metrics.differences import class_gains
from scenedistill.reporting.html.blocks import Charts, Section, Text
from scenedistill.reporting.html.charts import Series, bar_chart, colour_class, line_chart
from scenedistill.reporting.html.focus import Focus
from scenedistill.reporting.html.tables import Table, class_table, number_entry, text_entry
from scenedistill.runs.curves import Curves, hints, read_curves
from scenedistill.runs.network import Network


class Compared(NamedTuple):
    """Two groups of networks on the seeds that both have.

    Attributes:
        names: captions of the first and the second.
        counts: the confusion matrix of each, a sum over the seeds, int64 `[K, K]`.
        seeds: the common seeds in ascending order.
    """

    names: tuple[str, str]
    counts: tuple[np.ndarray, np.ndarray]
    seeds: list[int]


def compared(focus: Focus) -> Compared | None:
    """Compare the last group with the one before it; None if there is only one, or a matrix is missing."""
    if len(focus.groups) < 2:
        return None
    (before_name, before), (after_name, after) = list(focus.groups.items())[-2:]
    both = {n.seed for n in before} & {n.seed for n in after}
    counts = [summed([n for n in group if n.seed in both]) for group in (before, after)]
    if counts[0] is None or counts[1] is None:
        return None
    return Compared((before_name, after_name), (counts[0], counts[1]), sorted(both))


def classes(focus: Focus) -> Section:
    """Return the section of each class's gain, of the last group over the one before it."""
    section = Section("classes", "Gain of each class")
    if pair := compared(focus):
        gains = class_gains(*pair.counts, focus.cell.classes)
        tips = [
            f"{g.name}: {100 * g.before:.1f} % to {100 * g.after:.1f} %, {g.points:+.1f} points, {g.images} images"
            for g in gains
        ]
        label = f"points of accuracy: {pair.names[1]} over {pair.names[0]}"
        chart = bar_chart([g.name for g in gains], [g.points for g in gains], x_label=label, tips=tips)
        worse = sum(g.points < 0 for g in gains)
        said = f"{worse} of {len(gains)} classes lose accuracy. Sum over the seeds: {', '.join(map(str, pair.seeds))}."
        section.blocks.append(Charts([("", chart)], caption=said))
    if len(focus.groups) > 1 and all(n.tested.get("per_class") for group in focus.groups.values() for n in group):
        section.blocks.append(class_table(focus.cell, focus.groups))
    return section


def curves(focus: Focus) -> Section:
    """Return the section of learning curves of the teacher and every training of the student, means over seeds."""
    section = Section(
        "curves",
        "Learning curves",
        "Mean over seeds. The random training views differ in every epoch and are harder than the images themselves; "
        "no test image is used during training.",
    )
    found = mean_curves(focus)
    labels = list(found)
    charts, tables = [], []
    for key, title in (("train_oa", "OA on training views (%)"), ("val_oa", "OA on validation images (%)")):
        lines = [
            Series(label, own.epochs.tolist(), (100 * own.accuracies[key]).tolist(), labels.index(label))
            for label, own in found.items()
            if key in own.accuracies and len(own.epochs)
        ]
        if lines:
            charts.append((title, line_chart(lines, x_label="epoch", y_label=title, form="{:.1f} %")))
            tables.append(_values(f"curves-{key}", f"Values: {title}", lines))
    if charts:
        section.blocks.append(Charts(charts, [(label, colour_class(i), None) for i, label in enumerate(labels)]))
    section.blocks += tables
    return section


def mean_curves(focus: Focus) -> dict[str, Curves]:
    """Return the accuracy curves of the teacher and every training of the student, by label.

    Each is a mean over seeds, at the epochs that all of them have.
    """
    groups: dict[str, list[Curves]] = {}
    for network in focus.cell.networks:
        if network.student in (None, focus.student) and (found := _curves(network)):
            groups.setdefault(network.label, []).append(found)
    means = {}
    for label, several in groups.items():
        epochs = several[0].epochs
        for other in several[1:]:
            epochs = np.intersect1d(epochs, other.epochs)
        known = [key for key in several[0].accuracies if all(key in one.accuracies for one in several)]
        accuracies = {
            key: np.mean([one.accuracies[key][np.isin(one.epochs, epochs)] for one in several], axis=0) for key in known
        }
        means[label] = Curves(epochs, {}, {}, {}, accuracies)
    return means


def parts(focus: Focus) -> Section:
    """Return the section of loss terms and gradient norms, of the first seed with measured norms, and of hints."""
    section = Section(
        "parts",
        "Parts of the loss",
        "First each part times its weight; then, where it was measured, the norm of its gradient, which shows how "
        "strongly it changes the network: a large part may have a small gradient.",
    )
    said: dict[str, list[str]] = {}  # label of a training -> hints of the first seed that has any
    for network in focus.cell.networks:
        if network.student in (None, focus.student) and (curves := _curves(network)):
            lines = [f"{network.label}, seed {network.seed}: {hint}" for hint in hints(curves)]
            said[network.label] = said.get(network.label) or lines
    section.blocks += [Text(line, "warn") for lines in said.values() for line in lines]
    for label, (seed, found) in loss_curves(focus).items():
        names = list(found.parts)
        epochs = found.epochs.tolist()
        weighted = [
            Series(name, epochs, (found.weights.get(name, 1.0) * values).tolist(), names.index(name))
            for name, values in found.parts.items()
        ]
        title = f"{label}, seed {seed}: parts, weighted"
        charts = [(title, line_chart(weighted, x_label="epoch", y_label="part of the loss", logarithmic=True))]
        pulls = [
            Series(name, epochs, values.tolist(), names.index(name) if name in names else len(names))
            for name, values in found.pulls.items()
        ]
        if pulls:
            drawn = line_chart(pulls, x_label="epoch", y_label="gradient norm", logarithmic=True)
            charts.append((f"{label}, seed {seed}: gradient norms", drawn))
        weights = ", ".join(f"{name} × {weight:g}" for name, weight in found.weights.items())
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found.gradient_shares.items())
        caption = f"Weights: {weights or 'not known'}." + (f" Shares of the gradients: {shares}." if shares else "")
        section.blocks.append(Charts(charts, [(name, colour_class(i), None) for i, name in enumerate(names)], caption))
        told = [replace(line, name=f"gradient of {line.name}") for line in pulls]
        section.blocks.append(_values(f"parts-{label}", f"Values: {label}", [*weighted, *told]))
    return section


def loss_curves(focus: Focus) -> dict[str, tuple[int, Curves]]:
    """Return by caption one seed and its curves, of trainings whose loss has several terms.

    The seed is the first one in which gradient norms were measured, or else the first one.
    """
    found = {}
    for label, networks in focus.groups.items():
        known = {network.seed: curves for network in networks if (curves := _curves(network))}
        measured = [seed for seed, curves in known.items() if curves.pulls]
        seed = next(iter([*measured, *known]), None)
        if seed is not None and len(known[seed].parts) > 1:
            found[label] = (seed, known[seed])
    return found


def calibrations(focus: Focus) -> Section:
    """Return the section of confidence against accuracy, over all seeds."""
    section = Section(
        "calibration",
        "Calibration",
        "Points below the dashed line are overconfident. The expected calibration error (ECE) is the mean gap to that "
        "line, weighted by the number of images.",
    )
    lines, rows, said = [], [], list[Text]()
    for (name, label), networks in focus.cell.groups().items():
        found = pooled(networks)
        if found is None:
            continue
        if networks in focus.groups.values():
            nonempty = found.counts > 0
            place = list(focus.groups.values()).index(networks)
            places, heights = found.confidence[nonempty].tolist(), found.accuracy[nonempty].tolist()
            notes = [f", {count} images" for count in found.counts[nonempty]]
            lines.append(Series(label, places, heights, place, notes))
            said.append(Text(f"{label}: {found.words}"))
        figures = [number_entry(100 * value) for value in (found.ece, found.mce, found.mean_confidence, found.oa)]
        rows.append((text_entry(name), text_entry(label), *figures))
    if not rows:
        return section
    if lines:
        chart = line_chart(lines, x_label="confidence", y_label="accuracy", form="{:.3f}", diagonal=True)
        legend = [(line.name, colour_class(line.colour), None) for line in lines]
        section.blocks += [Charts([("Reliability diagram", chart)], legend), *said]
    head = ("network", "training", "ECE (points)", "largest gap (points)", "mean confidence (%)", "OA (%)")
    note = f"The predictions of all seeds together, in {BINS} bins of equal width, as in the diagram."
    section.blocks.append(Table("calibration", "Calibration", head, tuple(rows), note=note))
    return section


def pooled(networks: Sequence[Network]) -> Calibration | None:
    """Compute the calibration of networks that differ by seed only, over all their outputs; None if none were kept."""
    kept = [network.outputs for network in networks if network.outputs is not None]
    if not kept:
        return None
    probabilities = np.concatenate([outputs.probabilities for outputs in kept])
    return calibration(probabilities, np.concatenate([outputs.labels for outputs in kept]))


def _values(key: str, caption: str, lines: Sequence[Series]) -> Table:
    """Return the values of a chart as a table, for screen readers and further use."""
    points = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    epochs = sorted({x for found in points for x in found})
    rows = [(number_entry(x, "{:g}"), *(number_entry(found.get(x), "{:.4g}") for found in points)) for x in epochs]
    return Table(key, caption, ("epoch", *(line.name for line in lines)), tuple(rows), folded=True)


def summed(networks: Sequence[Network]) -> np.ndarray | None:
    """Sum the confusion matrices, int64 `[K, K]`; None if one was not kept, or there are none."""
    found = [n.confusion for n in networks if n.confusion is not None]
    return np.sum(found, axis=0) if found and len(found) == len(networks) else None


def _curves(network: Network) -> Curves | None:
    try:
        return read_curves(network.folder)
    except UserError:  # a teacher that was given and not trained
        return None
