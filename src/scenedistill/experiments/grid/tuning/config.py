"""Settings of the tuning of a grid's methods, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scenedistill.config import RunConfig, StudentConfig
from scenedistill.core.errors import UserError


@dataclass
class TuningConfig:
    """Tuning budget, the same for every method that uses the teacher.

    Attributes:
        factors: factors on the weight of all losses that use the teacher, each > 0; one short training for each.
        learning_rates: peak learning rates, each > 0, tried with every factor; methods without a teacher are then tuned
            too, over the learning rates alone. When empty, every method has its own learning rate.
        rounds: epochs of shorter first rounds (successive halving), ascending, each below the epochs of the last round.
            All candidates are trained in the first round, and the best of each round from the start in the next one.
            When empty, there is one round.
        keep: share of the candidates of a round that go on to the next one, in (0, 1); rounded up, so at least one.
        extend: largest number of further factors of a method, >= 0: one after the other is tried beyond the given ones
            as long as the smallest or the largest is the best.
        folds: number of validation parts without a common image, >= 1; every candidate is trained once for each, and
            its score is the mean. `folds` times `val_fraction` is at most 1.
        val_fraction: share of the training part on which they are compared, in (0, 1); the test part stays unseen.
        epochs: epochs of a student in the last round; those of the full training when not given.
        seed: seed of the split, the teachers and the tuning runs.
    """

    factors: list[float] = field(default_factory=lambda: [0.1, 1.0, 10.0])
    learning_rates: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    keep: float = 1 / 3
    extend: int = 0
    folds: int = 1
    val_fraction: float = 0.2
    epochs: int | None = None
    seed: int = 0


def check_tuning(tuning: TuningConfig, base: RunConfig, students: Mapping[str, StudentConfig]) -> None:
    """Check the settings of a tuning.

    Args:
        tuning: the settings.
        base: settings of all trainings of the grid.
        students: settings of a student of each tuned method, by the label of the method.

    Raises:
        UserError: a setting out of its range, or settings that exclude each other.
    """
    if not tuning.factors:
        raise UserError("tuning.factors is []; expected numbers above 0, each once.")
    _check_values("factors", tuning.factors)
    _check_values("learning_rates", tuning.learning_rates)
    if not 0 < tuning.val_fraction < 1:
        raise UserError(f"tuning.val_fraction is {tuning.val_fraction}; expected a share between 0 and 1.")
    if tuning.seed < 0 or (tuning.epochs is not None and tuning.epochs < 1):
        raise UserError("tuning.seed must be 0 or more, and tuning.epochs 1 or more.")
    if not 0 < tuning.keep < 1:
        raise UserError(f"tuning.keep is {tuning.keep}; expected a share between 0 and 1, such as 0.333.")
    if tuning.extend < 0:
        raise UserError(f"tuning.extend is {tuning.extend}; expected 0 or more further factors.")
    if tuning.folds < 1 or tuning.folds * tuning.val_fraction > 1 + 1e-9:
        raise UserError(
            f"tuning.folds is {tuning.folds} and tuning.val_fraction {tuning.val_fraction:g}; expected 1 fold or more, "
            "and together at most the whole training part: folds times val_fraction at most 1."
        )
    _check_rounds(tuning, students)
    if base.teacher.checkpoint or base.teacher.as_is:
        given = "checkpoint" if base.teacher.checkpoint else "as_is"
        raise UserError(
            f"Tuning needs a teacher that has not seen the validation images, and base.teacher.{given} takes one "
            "that was trained before. Leave one of the two out."
        )
    if base.data.split_file:
        raise UserError("Tuning carves its validation part itself; leave base.data.split_file or tuning out.")


def _check_values(name: str, values: Sequence[float]) -> None:
    if values and (min(values) <= 0 or len(set(values)) < len(values)):
        raise UserError(f"tuning.{name} is {values}; expected numbers above 0, each once.")
    for value in values:
        if float(f"{value:g}") != value:
            raise UserError(f"tuning.{name} holds {value}; expected six digits at most: they name folders.")


def _check_rounds(tuning: TuningConfig, students: Mapping[str, StudentConfig]) -> None:
    """Check that the rounds ascend and are shorter than the last one."""
    rounds = tuning.rounds
    if not rounds:
        return
    if min(rounds) < 1 or rounds != sorted(set(rounds)):
        raise UserError(f"tuning.rounds is {rounds}; expected epochs of 1 or more in ascending order, each once.")
    for label, student in students.items():
        last = tuning.epochs or (None if student.fit.steps is not None else student.fit.epochs)
        if last is None:
            raise UserError(
                "tuning.rounds needs tuning.epochs, the epochs of the last round: those of the full training follow "
                "from the number of images or of steps."
            )
        if rounds[-1] >= last:
            raise UserError(
                f"tuning.rounds is {rounds}; expected fewer epochs than the {last} of the last round ({label})."
            )
