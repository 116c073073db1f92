"""What the results of a grid say about its tuning: a note on the budget, and a table of the last round."""

from __future__ import annotations

from collections.abc import Sequence

from scenedistill.core.terminal import counted
from scenedistill.core.text import NONE, markdown_table, span_text
from scenedistill.experiments.grid.config import GridConfig
from scenedistill.experiments.grid.tuning.choices import Choice
from scenedistill.experiments.grid.tuning.config import TuningConfig
from scenedistill.experiments.grid.tuning.search import Candidate


def tuning_note(config: GridConfig, choices: Sequence[Choice]) -> str:
    """Return the note on the tuning for the results: its budget in one sentence, whether test images of other seeds
    were seen, and the methods whose choice is at the edge of what was tried; "" where there was none."""
    tuning = config.tuning
    if not tuning or not choices:
        return ""
    note = _budget(tuning, choices)
    if set(config.seeds) - {tuning.seed} and not config.base.data.split_file:
        note += " Other seeds draw other splits, so that some of these images are test images there."
    for name, words in (("factor", "factors"), ("learning_rate", "learning rates")):
        if edge := [choice.label for choice in choices if choice.at_edge(name)]:
            note += f" At the edge of the {words}, where more might be gained: {', '.join(dict.fromkeys(edge))}."
    return note


def _budget(tuning: TuningConfig, choices: Sequence[Choice]) -> str:
    """Return the sentence on the budget of the tuning."""
    what, tried = "Weights", counted(len(tuning.factors), "factor")
    if tuning.learning_rates:
        what, tried = "Weights and learning rates", f"{tried} x {counted(len(tuning.learning_rates), 'learning rate')}"
    if tuning.rounds:
        epochs = span_text(choice.epochs for choice in choices)
        told = ", ".join(map(str, tuning.rounds))
        tried += f" in rounds of {told} and {epochs} epochs, of which the best {100 * tuning.keep:.3g} % go on"
    if tuning.extend:
        tried += f", with up to {counted(tuning.extend, 'further factor')} where the best is outermost"
    folds = "" if tuning.folds == 1 else f"{tuning.folds} folds of "
    trainings, whole = span_text(each.trainings for each in choices), span_text(each.trained_epochs for each in choices)
    took = f"{trainings} training{'' if trainings == '1' else 's'} and {whole} epoch{'' if whole == '1' else 's'}"
    return f"{what} chosen from {tried}, on {folds}validation images of seed {tuning.seed}: {took} for each method."


def tuning_section(choices: Sequence[Choice]) -> list[str]:
    """Return the section of the summary on the tuning: the scores of the last round, a line for each method and
    learning rate; none where there was no tuning."""
    if not choices:
        return []
    candidates = [candidate for choice in choices for candidate in choice.last]
    factors = sorted({each.factor for each in candidates if each.factor is not None})
    columns = [*factors, *([None] if any(each.factor is None for each in candidates) else [])]
    rated = any(score.candidate.learning_rate is not None for choice in choices for score in choice.scores)
    lines = [line for choice in choices for line in _lines(choice, columns, rated)]
    heads = ["no factor" if factor is None else f"x {factor:g}" for factor in columns]
    head = ["data", "network", "method", *(["learning rate"] if rated else []), *heads, "chosen"]
    about = "OA (%) on validation images for each factor on the method's weight, in the last round."
    return ["## Tuning", about, markdown_table(head, lines, words=range(3))]


def _lines(choice: Choice, columns: Sequence[float | None], rated: bool) -> list[list[str]]:
    """Return the lines of one method, one for each learning rate of its last round.

    Args:
        choice: result of the method.
        columns: factors of the table.
        rated: whether the table names learning rates.
    """
    last, lines = choice.last, list[list[str]]()
    for rate in sorted({each.learning_rate for each in last}, key=lambda rate: rate or 0.0) or [None]:
        own = [Candidate(factor, rate) for factor in columns]
        scores = [NONE if each not in last else _percent(last[each]) for each in own]
        if choice.chosen is None:
            chosen = "none"
        elif choice.chosen.learning_rate != rate:
            chosen = ""
        else:
            chosen = "yes" if choice.chosen.factor is None else f"{choice.chosen.factor:g}"
        named = [NONE if rate is None else f"{rate:g}"] if rated else []
        lines.append([choice.block, choice.student, choice.label, *named, *scores, chosen])
    return lines


def _percent(oa: float | None) -> str:
    return "diverged" if oa is None else f"{100 * oa:.2f}"
