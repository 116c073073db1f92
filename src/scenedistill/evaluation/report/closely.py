"""The sections about the few networks that are looked at closely and need only their records and outputs: classes,
curves, parts of the loss, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scenedistill.errors import UserError
from scenedistill.evaluation.calibration import calibration
from scenedistill.evaluation.curves import Curves, hints, read_curves
from scenedistill.evaluation.differences import class_gains
from scenedistill.evaluation.report.blocks import Charts, Section, Text
from scenedistill.evaluation.report.charts import Series, bar_chart, colour_class, line_chart
from scenedistill.evaluation.report.collect import Network
from scenedistill.evaluation.report.focus import Focus
from scenedistill.evaluation.report.tables import Table, class_table, number, word


def classes(focus: Focus) -> Section:
    """Gain of each class, of the last group over the one before it."""
    section = Section("classes", "Gain of each class")
    if len(focus.groups) < 2:
        return section
    (before_name, before), (after_name, after) = list(focus.groups.items())[-2:]
    both = {n.seed for n in before} & {n.seed for n in after}
    counts = [_confusion([n for n in group if n.seed in both]) for group in (before, after)]
    if counts[0] is not None and counts[1] is not None:
        gains = class_gains(counts[0], counts[1], focus.cell.classes)
        tips = [
            f"{g.name}: {100 * g.before:.1f} % to {100 * g.after:.1f} %, {g.points:+.1f} points, {g.images} images"
            for g in gains
        ]
        label = f"points of accuracy: {after_name} over {before_name}"
        chart = bar_chart([g.name for g in gains], [g.points for g in gains], x_label=label, tips=tips)
        worse = sum(g.points < 0 for g in gains)
        said = f"{worse} of {len(gains)} classes lose. Seeds taken together: {', '.join(map(str, sorted(both)))}."
        section.blocks.append(Charts([("", chart)], caption=said))
    if all(n.tested.get("per_class") for group in focus.groups.values() for n in group):
        section.blocks.append(class_table(focus.cell, focus.groups))
    return section


def curves(focus: Focus) -> Section:
    """Accuracy over the epochs of every training of the student, and of the teacher: means over seeds."""
    section = Section(
        "curves",
        "Learning curves",
        "Mean over seeds. The training views are varied anew in every epoch, so they are harder than the images "
        "themselves; no test image is looked at on the way.",
    )
    groups: dict[str, list[Curves]] = {}
    for network in focus.cell.networks:
        if network.student in (None, focus.student) and (found := _curves(network)):
            groups.setdefault(network.label, []).append(found)
    labels = list(groups)
    charts, tables = [], []
    for key, title in (("train_oa", "OA on training views (%)"), ("val_oa", "OA on validation images (%)")):
        lines = []
        for label, several in groups.items():
            epochs, values = _mean_curve([(c.epochs, 100 * c.accuracies[key]) for c in several if key in c.accuracies])
            if len(epochs):
                lines.append(Series(label, epochs.tolist(), values.tolist(), labels.index(label)))
        if lines:
            charts.append((title, line_chart(lines, x_label="epoch", y_label=title, form="{:.1f} %")))
            tables.append(_values(f"curves-{key}", f"Values: {title}", lines))
    if charts:
        section.blocks.append(Charts(charts, [(label, colour_class(i), None) for i, label in enumerate(labels)]))
    section.blocks += tables
    return section


def parts(focus: Focus) -> Section:
    """Parts of the loss and how hard each pulls, of the first seed in which that was measured, and hints."""
    section = Section(
        "parts",
        "Parts of the loss",
        "First each part times its weight; then, where it was measured, the norm of its gradient, which says how hard "
        "it pulls at the network: a part may be large and pull little.",
    )
    said: dict[str, list[str]] = {}  # of each training the hints of the first seed that has any
    for network in focus.cell.networks:
        if network.student in (None, focus.student) and (found := _curves(network)):
            lines = [f"{network.label}, seed {network.seed}: {hint}" for hint in hints(found)]
            said[network.label] = said.get(network.label) or lines
    section.blocks += [Text(line, "warn") for lines in said.values() for line in lines]
    for label, networks in focus.groups.items():
        known = {network.seed: curves for network in networks if (curves := _curves(network))}
        measured = [seed for seed, curves in known.items() if curves.pulls]
        seed = next(iter([*measured, *known]), None)
        if seed is None or len(known[seed].parts) < 2:
            continue
        found = known[seed]
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
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found.pull_shares.items())
        caption = f"Weights: {weights or 'not known'}." + (f" Shares of all pulls: {shares}." if shares else "")
        section.blocks.append(Charts(charts, [(name, colour_class(i), None) for i, name in enumerate(names)], caption))
        told = [replace(line, name=f"gradient of {line.name}") for line in pulls]
        section.blocks.append(_values(f"parts-{label}", f"Values: {label}", [*weighted, *told]))
    return section


def calibrations(focus: Focus) -> Section:
    """Confidence against accuracy, all seeds together."""
    section = Section(
        "calibration",
        "Calibration",
        "A point below the dashed line is a confidence that promises too much. ECE is the mean gap to that line.",
    )
    lines, rows, said = [], [], list[Text]()
    for (name, label), networks in focus.cell.groups().items():
        kept = [n.outputs for n in networks if n.outputs is not None]
        if not kept:
            continue
        pooled = np.concatenate([outputs.probabilities for outputs in kept])
        found = calibration(pooled, np.concatenate([outputs.labels for outputs in kept]))
        single = [calibration(outputs.probabilities, outputs.labels).ece for outputs in kept]
        if networks in focus.groups.values():
            filled = found.counts > 0
            place = list(focus.groups.values()).index(networks)
            places, heights = found.confidence[filled].tolist(), found.accuracy[filled].tolist()
            notes = [f", {count} images" for count in found.counts[filled]]
            lines.append(Series(label, places, heights, place, notes))
            said.append(Text(f"{label}: {found.words}"))
        rows.append(
            (
                word(name),
                word(label),
                number(100 * float(np.mean(single))),
                number(100 * found.mce),
                number(100 * found.mean_confidence),
                number(100 * found.oa),
            )
        )
    if not rows:
        return section
    if lines:
        chart = line_chart(
            lines,
            x_label="confidence",
            y_label="share of right ones",
            x_range=(0, 1),
            y_range=(0, 1),
            form="{:.3f}",
            diagonal=True,
        )
        legend = [(line.name, colour_class(line.colour), None) for line in lines]
        section.blocks += [Charts([("Reliability diagram", chart)], legend), *said]
    head = ("network", "training", "ECE (points)", "largest gap (points)", "mean confidence (%)", "OA (%)")
    note = "ECE with 15 bins of equal width, mean over seeds; the other columns take the seeds together."
    section.blocks.append(Table("calibration", "Calibration", head, tuple(rows), note=note))
    return section


def _values(key: str, caption: str, lines: Sequence[Series]) -> Table:
    """What a chart draws, for who cannot see it or wants to go on with it."""
    points = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    epochs = sorted({x for found in points for x in found})
    rows = [(number(x, "{:g}"), *(number(found.get(x), "{:.4g}") for found in points)) for x in epochs]
    return Table(key, caption, ("epoch", *(line.name for line in lines)), tuple(rows), folded=True)


def _confusion(networks: Sequence[Network]) -> np.ndarray | None:
    found = [n.confusion for n in networks if n.confusion is not None]
    return np.sum(found, axis=0) if found and len(found) == len(networks) else None


def _curves(network: Network) -> Curves | None:
    try:
        return read_curves(network.folder)
    except UserError:  # a teacher that was given and not trained
        return None


def _mean_curve(several: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Over the epochs that all of them have."""
    if not several:
        return np.zeros(0), np.zeros(0)
    epochs = several[0][0]
    for other, _ in several[1:]:
        epochs = np.intersect1d(epochs, other)
    return epochs, np.mean([values[np.isin(own, epochs)] for own, values in several], axis=0)
