"""The weight of each method, chosen with the same budget for all on a part of the training images."""

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
    """What tuning found for one method: validation OA (0..1) of the last epoch by factor, the factor chosen, and how
    many epochs the runs had."""

    block: str
    student: str
    label: str
    scores: Mapping[float, float | None]  # None where the training diverged
    factor: float | None  # None where all of them did
    epochs: int


def tuned(student: StudentConfig, factor: float) -> StudentConfig:
    """The same student with the weight of every loss that asks the teacher times a factor; at 1 nothing changes."""
    if factor == 1:
        return student
    weights = resolve_weights(student.method, student.losses)
    # twelve digits: 0.9 x 0.1 is 0.09, and the fingerprint of a training should not hang on the last bit
    scaled = {name: float(f"{weight * factor:.12g}") for name, weight in weights.items() if LOSSES[name].needs_teacher}
    return replace(student, losses={**student.losses, **scaled})


def tuning_settings(base: RunConfig, tuning: TuningConfig) -> RunConfig:
    """The settings of the tuning runs: a validation part carved from the training part, which nothing trains on."""
    data = replace(base.data, val_fraction=tuning.val_fraction)
    return replace(base, seeds=[tuning.seed], best_epoch=False, data=data)


def tuning_student(student: StudentConfig, factor: float, tuning: TuningConfig) -> StudentConfig:
    """A method's student for one tuning run."""
    made = tuned(student, factor)
    return replace(made, fit=replace(made.fit, epochs=tuning.epochs, steps=None)) if tuning.epochs else made


def choose(scores: Mapping[float, float | None]) -> float | None:
    """The factor with the best score; of equal ones that nearest to the method's own weight, then the smaller. None
    where every training diverged."""
    there = {factor: score for factor, score in scores.items() if score is not None}
    return min(there, key=lambda factor: (-there[factor], abs(math.log(factor)), factor), default=None)


def write_choices(choices: list[Choice], tuning: TuningConfig, epochs: int, path: Path) -> None:
    """Keep all scores and choices as JSON: block -> student -> label.

    Args:
        choices: of every method whose tuning is complete.
        tuning: the budget.
        epochs: of a run that has no number of its own; what differs from it stands at its method.
        path: of the file.
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
            "what": "factor on the weight of all losses that ask the teacher; OA on the validation images after the "
            "last epoch, null where the training diverged; a factor of null where all did",
            "val_fraction": tuning.val_fraction,
            "seed": tuning.seed,
            "epochs": epochs,
            "factors": tuning.factors,
            "chosen": found,
        },
    )
