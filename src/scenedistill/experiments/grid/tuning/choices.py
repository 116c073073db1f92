"""Tuning of the weight and the learning rate of each method on validation images from the training part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from scenedistill.config import RunConfig, StudentConfig
from scenedistill.core.disk import write_json
from scenedistill.experiments.grid.tuning.config import TuningConfig
from scenedistill.experiments.grid.tuning.search import Candidate, Score
from scenedistill.experiments.results.record import tidy
from scenedistill.losses.registry import LOSSES

FILE = "tuning.json"


@dataclass(frozen=True)
class Choice:
    """Tuning result of one method.

    Attributes:
        block: folder name of the data set and ratio.
        student: name of the student.
        label: label of the method.
        scores: scores of all candidates, round by round, then those of the extensions.
        chosen: the best candidate of the last round and the extensions; None where all diverged.
        epochs: epochs of the last round.
    """

    block: str
    student: str
    label: str
    scores: tuple[Score, ...]
    chosen: Candidate | None
    epochs: int

    @property
    def last(self) -> dict[Candidate, float | None]:
        """Validation OA (0..1) by candidate, of the last round that was begun and of the extensions; None where a
        training diverged."""
        epochs = max(score.epochs for score in self.scores)
        return {score.candidate: score.oa for score in self.scores if score.epochs == epochs}

    @property
    def trainings(self) -> int:
        """Number of students trained."""
        return sum(len(score.folds) for score in self.scores)

    @property
    def trained_epochs(self) -> int:
        """Number of epochs of all trainings; a training that diverged counts as a whole one."""
        return sum(score.epochs * len(score.folds) for score in self.scores)

    def at_edge(self, name: str) -> bool:
        """Return whether the chosen value is the smallest or the largest of several that were tried.

        Args:
            name: `factor` or `learning_rate`.
        """
        chosen = getattr(self.chosen, name, None)
        tried = {value for score in self.scores if (value := getattr(score.candidate, name)) is not None}
        return chosen is not None and len(tried) > 1 and chosen in (min(tried), max(tried))


def tuned(student: StudentConfig, candidate: Candidate) -> StudentConfig:
    """Multiply the weight of every loss of a student that uses the teacher by the candidate's factor, and set its
    learning rate; with a factor of 1 and no learning rate nothing changes."""
    if candidate.learning_rate is not None:
        student = replace(student, fit=replace(student.fit, lr=candidate.learning_rate))
    factor = candidate.factor
    if factor is None or factor == 1:
        return student
    weights = student.loss_weights()
    # twelve digits: 0.9 x 0.1 is 0.09, and the fingerprint of a training should not depend on the last bit
    scaled = {name: float(f"{weight * factor:.12g}") for name, weight in weights.items() if LOSSES[name].needs_teacher}
    return replace(student, losses={**student.losses, **scaled})


def tuning_settings(base: RunConfig, tuning: TuningConfig) -> RunConfig:
    """Return the settings of the tuning runs, with a validation part that is held out of the training part."""
    data = replace(base.data, val_fraction=tuning.val_fraction)
    return replace(base, seeds=[tuning.seed], best_epoch=False, data=data)


def tuning_student(student: StudentConfig, candidate: Candidate, epochs: int | None) -> StudentConfig:
    """Return the settings of a method's student for one tuning run of so many epochs, or else of its own number."""
    made = tuned(student, candidate)
    return replace(made, fit=replace(made.fit, epochs=epochs, steps=None)) if epochs else made


def write_choices(choices: list[Choice], tuning: TuningConfig, epochs: int, path: Path) -> None:
    """Write the budget, all scores and the choices as JSON: block -> student -> label.

    Args:
        choices: choices of every method whose tuning is complete.
        tuning: the budget.
        epochs: usual number of epochs of a run; another number is written with its method.
        path: path of the file.
    """
    epochs = tuning.epochs or epochs
    found: dict[str, dict[str, dict[str, Mapping[str, object]]]] = {}
    for choice in choices:
        entry = _entry(choice)
        if choice.epochs != epochs:
            entry["epochs"] = choice.epochs
        found.setdefault(choice.block, {}).setdefault(choice.student, {})[choice.label] = entry
    write_json(
        path,
        {
            "what": "factor on the weight of all losses that use the teacher (null for a method without a teacher) and "
            "peak learning rate (null: the method's own); OA on the validation images after the last epoch, mean of "
            "the folds, null where a training diverged; factor and learning_rate of a method are those chosen, both "
            "null where all diverged; its trainings and trained_epochs are those of its students",
            "val_fraction": tuning.val_fraction,
            "folds": tuning.folds,
            "seed": tuning.seed,
            "epochs": epochs,
            "rounds": tuning.rounds,
            "keep": tidy(tuning.keep),
            "extend": tuning.extend,
            "factors": tuning.factors,
            "learning_rates": tuning.learning_rates,
            "chosen": found,
        },
    )


def _entry(choice: Choice) -> dict[str, object]:
    scores = []
    for score in choice.scores:
        candidate = score.candidate
        record = {"epochs": score.epochs, "factor": candidate.factor, "learning_rate": candidate.learning_rate}
        folds = {"folds": [tidy(oa) for oa in score.folds]} if len(score.folds) > 1 else {}
        scores.append({**record, "validation_oa": tidy(score.oa), **folds})
    chosen = choice.chosen or Candidate()
    return {
        "factor": chosen.factor,
        "learning_rate": chosen.learning_rate,
        "trainings": choice.trainings,
        "trained_epochs": choice.trained_epochs,
        "scores": scores,
    }
