"""Comparison of methods with all others of a run or a grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scenedistill.core.errors import UserError
from scenedistill.experiments.results.comparisons import ComparisonResult, ComparisonRow
from scenedistill.experiments.results.environment import measured_here
from scenedistill.experiments.results.pairs import OURS, paired_gain
from scenedistill.metrics.comparison import ImageGain, holm, image_gain
from scenedistill.runs.network import Network
from scenedistill.runs.run import Cell, Run


def compare(
    folder: Path | str,
    *,
    methods: Sequence[str] = (),
    cell: str | None = None,
    experiment: str = "comparison",
    command: str = "",
) -> ComparisonResult:
    """Compare methods with every other training of the same student, the teacher included.

    Args:
        folder: folder of a run or a grid.
        methods: labels of the methods to compare; when not given, those of `dkd` and `dkd_plus` that are there.
        cell: data set and ratio of a grid, such as `AID-20`; the first one when not given.
        experiment: name of the record.
        command: command that repeats the comparison, for the record.

    Raises:
        UserError: no such folder or cell, an unknown method, or nothing to compare with.
    """
    run = Run.open(folder)
    chosen = run.cell(cell)
    labels = {network.label for network in chosen.networks if network.student}
    unknown = sorted(set(methods) - labels)
    if unknown:
        raise UserError(f"{folder} has no method {unknown[0]}. There are: {', '.join(sorted(labels))}.")
    rows = comparison_rows(chosen, list(methods) or [label for label in OURS if label in labels])
    if not rows:
        raise UserError(
            f"{folder} has nothing to compare: it needs two trainings with a common seed, one of them of the methods "
            f"{', '.join(OURS)} or of --methods. There are: {', '.join(sorted(labels)) or 'none'}."
        )
    return ComparisonResult(
        experiment=experiment,
        command=command or "scenedistill.experiments.compare",
        **measured_here(),
        data=run.title_of(chosen),
        rows=tuple(rows),
    )


def comparison_rows(cell: Cell, methods: Sequence[str]) -> list[ComparisonRow]:
    """Compare each method with every other training of the same student, with corrected p-values."""
    rows: list[ComparisonRow] = []
    for ours in cell.groups().values():
        if ours[0].student and ours[0].label in methods:
            others = [group for group in cell.groups().values() if group[0].student in (ours[0].student, None)]
            found = [_compared(ours, theirs) for theirs in others if theirs[0].label != ours[0].label]
            rows += _corrected([row for row in found if row])
    return rows


def _compared(ours: Sequence[Network], theirs: Sequence[Network]) -> ComparisonRow | None:
    """Compare two groups of networks that differ by seed only; the p-values are not corrected."""
    our_oa, their_oa = ({network.seed: 100 * network.tested["oa"] for network in group} for group in (ours, theirs))
    gain = paired_gain(our_oa, their_oa)
    if gain is None:
        return None
    images = _image_gain(ours, theirs)
    return ComparisonRow(
        student=ours[0].student or "",
        method=ours[0].label,
        other=theirs[0].label,
        points=gain.mean,
        seeds=gain.n,
        low=gain.low,
        high=gain.high,
        p=gain.p,
        images=images.images if images else None,
        image_low=images.low if images else None,
        image_high=images.high if images else None,
        image_p=images.p if images else None,
    )


def _image_gain(ours: Sequence[Network], theirs: Sequence[Network]) -> ImageGain | None:
    """Compare image by image; None unless all common seeds have outputs on the same images."""
    pairs = [(a, b) for a in ours for b in theirs if a.seed == b.seed]
    first, second = {}, {}
    for a, b in pairs:
        if a.outputs is None or b.outputs is None or not np.array_equal(a.outputs.rows, b.outputs.rows):
            return None
        first[a.seed], second[b.seed] = a.outputs, b.outputs
    return image_gain(first, second)


def _corrected(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Correct the p-values over seeds and those over images, each by Holm's method."""
    over_seeds, over_images = _holm([row.p for row in rows]), _holm([row.image_p for row in rows])
    return [
        dataclasses.replace(row, p=p, image_p=image_p)
        for row, p, image_p in zip(rows, over_seeds, over_images, strict=True)
    ]


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct the known p-values."""
    corrected = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(corrected) for p in p_values]
