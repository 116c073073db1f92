"""Learning curves of a finished or running training, and hints where one loss term dominates the others."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scenedistill.core.disk import file_damage
from scenedistill.core.errors import Damaged, UserError
from scenedistill.losses.registry import METHODS, resolve_weights
from scenedistill.training.gradients import CLIPPED, DIAGNOSTIC_PREFIXES, GRADIENT_PREFIX
from scenedistill.training.runs import read_stage, title_of

DOMINANT_SHARE = 0.9  # share of the summed gradient norms above which one loss term dominates
NEGLIGIBLE_SHARE = 0.02  # share below which a loss term has hardly any effect


@dataclass(frozen=True)
class Curves:
    """Logged values of a training in E epochs; a value that was not logged is NaN, a non-finite one is infinite.

    Attributes:
        epochs: epoch numbers from 1, int64 `[E]`.
        parts: mean of each loss term before weighting, float64 `[E]`.
        weights: weights of the loss terms; unknown ones are missing.
        pulls: gradient norm of each weighted loss term, in the epochs where it was measured, float64 `[E]`.
        accuracies: `train_oa` on the training views, `val_oa` where there is a validation part, 0..1, float64 `[E]`.
    """

    epochs: np.ndarray
    parts: dict[str, np.ndarray]
    weights: dict[str, float]
    pulls: dict[str, np.ndarray]
    accuracies: dict[str, np.ndarray]

    @property
    def gradient_shares(self) -> dict[str, float]:
        """Median share of each loss term in the summed gradient norms, 0..1; empty where none were measured."""
        if not self.pulls:
            return {}
        lengths = np.stack(list(self.pulls.values()))
        measured = lengths[:, np.isfinite(lengths).all(0) & (lengths.sum(0) > 0)]
        if not measured.size:
            return {}
        shares = np.median(measured / measured.sum(0), axis=1)
        return dict(zip(self.pulls, shares.tolist(), strict=True))


def read_curves(stage: Path) -> Curves:
    """Read the curves of a stage's folder over all its attempts; for a repeated epoch the later attempt counts.

    Raises:
        Damaged: a log file is damaged or missing.
        UserError: nothing was logged.
    """
    content = read_stage(stage)
    record = content.get("record") or {}
    kept = record.get("logs") or {}
    damaged = [stage / name for name, checksum in kept.items() if file_damage(stage / name, checksum)]
    if damaged:
        raise Damaged(f"{damaged[0]} is damaged or gone: it does not hold what the training has logged.")
    # students trained side by side share one log, outside their folders
    rows = _rows([stage / name for name in kept] or list(stage.glob("logs/attempt_*/metrics.csv")))
    prefix = f"{title_of(stage)} " if record.get("together", 1) > 1 else ""
    if not rows:
        raise UserError(f"{stage} has no log of a training. Give the folder of a teacher or of a student of a run.")
    by_epoch: dict[int, dict[str, float]] = {}
    for row in rows:
        by_epoch.setdefault(int(row["epoch"]), {}).update(row)
    epochs = sorted(by_epoch)
    columns = {
        name.removeprefix(prefix): np.array([by_epoch[epoch].get(name, math.nan) for epoch in epochs])
        for name in sorted({name for row in by_epoch.values() for name in row})
        if name.startswith(prefix)
    }
    other = {"epoch", "step"}
    accuracies = {name for name in columns if name.endswith("_oa")}
    pulls = {name for name in columns if name.startswith(GRADIENT_PREFIX)}
    other |= {name for name in columns if name.endswith("seconds") or name.startswith((CLIPPED, *DIAGNOSTIC_PREFIXES))}
    parts = [name for name in columns if name not in other | accuracies | pulls]
    return Curves(
        epochs=np.array(epochs, dtype=np.int64) + 1,
        parts={name: columns[name] for name in parts},
        weights=_weights(content.get("settings") or {}),
        pulls={name.removeprefix(GRADIENT_PREFIX): columns[name] for name in sorted(pulls)},
        accuracies={name: columns[name] for name in sorted(accuracies)},
    )


def hints(curves: Curves) -> list[str]:
    """Describe problems of the loss terms, each in one or two sentences; empty if there are none."""
    said = []
    for name, values in curves.parts.items():
        if np.isinf(values).any():
            first = curves.epochs[np.isinf(values)][0]
            said.append(f"'{name}' is not finite from epoch {first} on. Lower the learning rate or its weight.")
    shares = curves.gradient_shares
    if len(shares) < 2:
        return said
    largest, second = sorted(shares, key=lambda name: -shares[name])[:2]
    weight = curves.weights.get(largest)
    if shares[largest] > DOMINANT_SHARE:
        advice = ""
        if weight is not None:
            level = weight * shares[second] / shares[largest]
            advice = f" A weight of about {level:.1g} instead of {weight:g} would bring it level with '{second}'."
        said.append(
            f"'{largest}' drowns the others: {100 * shares[largest]:.0f} % of the length of all gradients is its own, "
            f"median over the measured epochs.{advice}"
        )
    for name, share in shares.items():
        if share < NEGLIGIBLE_SHARE and name != largest:
            said.append(
                f"'{name}' hardly counts: {100 * share:.1f} % of the length of all gradients is its own. "
                "Raise its weight if it is meant to matter."
            )
    return said


def _rows(files: Sequence[Path]) -> list[dict[str, float]]:
    """Read the rows of the logs of all attempts, oldest first, without empty values."""
    rows = []
    for path in sorted(files, key=lambda path: int(path.parent.name.rpartition("_")[2])):
        try:
            with path.open(encoding="utf-8", newline="") as file:
                found = [
                    {name: _number(value) for name, value in line.items() if name and value}
                    for line in csv.DictReader(file)
                ]
        except (ValueError, csv.Error) as problem:
            raise Damaged(f"{path} is damaged: it does not hold what the training has logged.") from problem
        rows += [row for row in found if math.isfinite(row.get("epoch", math.inf))]
    return rows


def _number(text: str) -> float:
    """Parse a logged value; NaN becomes infinity, because NaN means that nothing was logged."""
    value = float(text)
    return math.inf if math.isnan(value) else value


def _weights(settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the weights of the loss terms in a stage's settings."""
    student, teacher = settings.get("student"), settings.get("teacher")
    if isinstance(student, dict) and student.get("method") in METHODS:
        return resolve_weights(str(student["method"]), dict(student.get("losses") or {}))
    if isinstance(teacher, dict):
        return {"ce": 1.0, "triplet": float(teacher.get("triplet_weight", 1.0))}
    return {}
