"""Tuning of the weight of each method, with the same budget for all, on validation images from the training part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from scenedistill.config import RunConfig, StudentConfig
from scenedistill.core.disk import write_json
from scenedistill.experiments.grid.config import TuningConfig
from scenedistill.experiments.results.record import tidy
from scenedistill.losses.registry import LOSSES, resolve_weights

FILE = "tuning.json"


@dataclass(frozen=True)
class Choice:
    """Tuning result of one method: validation OA (0..1) of the last epoch by factor, the chosen factor, and the number
    of epochs of the runs."""

    block: str
    student: str
    label: str
    scores: Mapping[float, float | None]  # None where the training diverged
    factor: float | None  # None where all runs diverged
    epochs: int


def tuned(student: StudentConfig, factor: float) -> StudentConfig:
    """Multiply the weight of every loss of a student that uses the teacher by a factor; at 1 nothing changes."""
    if factor == 1:
        return student
    weights = resolve_weights(student.method, student.losses)
    # twelve digits: 0.9 x 0.1 is 0.09, and the fingerprint of a training should not depend on the last bit
    scaled = {name: float(f"{weight * factor:.12g}") for name, weight in weights.items() if LOSSES[name].needs_teacher}
    return replace(student, losses={**student.losses, **scaled})


def tuning_settings(base: RunConfig, tuning: TuningConfig) -> RunConfig:
    """Return the settings of the tuning runs, with a validation part that is held out of the training part."""
    data = replace(base.data, val_fraction=tuning.val_fraction)
    return replace(base, seeds=[tuning.seed], best_epoch=False, data=data)


def tuning_student(student: StudentConfig, factor: float, tuning: TuningConfig) -> StudentConfig:
    """Return the settings of a method's student for one tuning run."""
    made = tuned(student, factor)
    return replace(made, fit=replace(made.fit, epochs=tuning.epochs, steps=None)) if tuning.epochs else made


def choose(scores: Mapping[float, float | None]) -> float | None:
    """Return the factor with the best score; of equal ones that nearest to 1 (by ratio), then the smaller. None
    where every training diverged."""
    there = {factor: score for factor, score in scores.items() if score is not None}
    return min(there, key=lambda factor: (-there[factor], abs(math.log(factor)), factor), default=None)


def write_choices(choices: list[Choice], tuning: TuningConfig, epochs: int, path: Path) -> None:
    """Write all scores and choices as JSON: block -> student -> label.

    Args:
        choices: choices of every method whose tuning is complete.
        tuning: the budget.
        epochs: usual number of epochs of a run; another number is written with its method.
        path: path of the file.
    """
    epochs = tuning.epochs or epochs
    found: dict[str, dict[str, dict[str, object]]] = {}
    for choice in choices:
        scores = {f"{factor:g}": tidy(score) for factor, score in sorted(choice.scores.items())}
        entry: dict[str, object] = {"factor": choice.factor, "validation_oa": scores}
        if choice.epochs != epochs:
            entry["epochs"] = choice.epochs
        found.setdefault(choice.block, {}).setdefault(choice.student, {})[choice.label] = entry
    write_json(
        path,
        {
            "what": "factor on the weight of all losses that use the teacher; OA on the validation images after the "
            "last epoch, null where the training diverged; a factor of null where all did",
            "val_fraction": tuning.val_fraction,
            "seed": tuning.seed,
            "epochs": epochs,
            "factors": tuning.factors,
            "chosen": found,
        },
    )
