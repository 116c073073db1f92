"""The report's table of a grid's tuning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from scenedistill.core.text import span_text
from scenedistill.reporting.html.tables import Entry, Table, number_entry, text_entry

#: OA by (factor, learning rate), 0..1; None where the training diverged.
Scores = Mapping[tuple[float | None, float | None], float | None]


def tuning_table(tuning: Mapping[str, Any]) -> Table:
    """Return the table of the validation OA of the last round, from a grid's tuning.json: a row for each method and
    learning rate, a column for each factor.

    Files of older versions, which have neither learning rates nor rounds, are read too.
    """
    chosen = tuning["chosen"]
    entries = [entry for students in chosen.values() for labels in students.values() for entry in labels.values()]
    tried = [candidate for entry in entries for candidate in last_round(entry)]
    named = {float(factor) for factor in (*tuning["factors"], *(factor for factor, _ in tried)) if factor is not None}
    factors: list[float | None] = [*sorted(named), *([None] if any(factor is None for factor, _ in tried) else [])]
    rated = any(rate is not None for _, rate in tried)
    rows = []
    for block, students in chosen.items():
        for student, labels in students.items():
            for label, entry in labels.items():
                own = f"{label} ({entry['epochs']} epochs)" if "epochs" in entry else label
                names = tuple(text_entry(name) for name in (block, student, own))
                rows += [(*names, *row) for row in _rows(entry, factors, rated)]
    heads = ("OA (%) without a factor" if factor is None else f"OA (%) at {factor:g}" for factor in factors)
    rate = ("learning rate",) if rated else ()
    return Table(
        key="tuning",
        caption="Tuning: a factor on the weight of all losses that use the teacher"
        + (", and the learning rate" if rated else ""),
        head=("data", "network", "training", *rate, *heads, "chosen factor"),
        rows=tuple(rows),
        note=_note(tuning, entries),
    )


def last_round(entry: Mapping[str, Any]) -> Scores:
    """Return the scores of the last round of a method's entry in tuning.json, with those of its further factors."""
    if "scores" not in entry:  # of an older version
        return {(float(factor), None): oa for factor, oa in entry["validation_oa"].items()}
    last = max((score["epochs"] for score in entry["scores"]), default=0)
    scores = [score for score in entry["scores"] if score["epochs"] == last]
    return {(score["factor"], score["learning_rate"]): score["validation_oa"] for score in scores}


def _rows(entry: Mapping[str, Any], factors: list[float | None], rated: bool) -> list[tuple[Entry, ...]]:
    """Return the rows of one method, without its name."""
    scores, rows = last_round(entry), []
    chosen, rate_chosen = entry["factor"], entry.get("learning_rate")
    for rate in sorted({rate for _, rate in scores}, key=lambda rate: rate or 0.0):
        known = (scores.get((factor, rate)) for factor in factors)  # None: diverged, or not in the last round
        cells = [number_entry(None if oa is None else 100 * float(oa)) for oa in known]
        there = chosen is not None and rate == rate_chosen
        mark = number_entry(float(chosen) if there else None, "{:g}")
        if chosen is None and rate is not None and rate == rate_chosen:
            mark = Entry("chosen", 0.0)  # a method without a teacher has no factor
        rows.append((*([number_entry(rate, "{:g}")] if rated else []), *cells, mark))
    return rows


def _note(tuning: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]) -> str:
    """Return the text below the table: what the OA is, and what was spent on each method."""
    folds = int(tuning.get("folds", 1))
    parts = f"{folds} parts, each of " if folds > 1 else ""
    note = (
        f"OA on {parts}{100 * float(tuning['val_fraction']):g} % of the training part, which no network trained on, "
        f"seed {tuning['seed']}, after the last of {tuning['epochs']} epochs where no other number is given."
    )
    if rounds := tuning.get("rounds"):
        note += (
            f" Before that, rounds of {', '.join(map(str, rounds))} epochs, of which the best "
            f"{100 * float(tuning['keep']):.3g} % went on; a dash is for one that did not, or that diverged."
        )
    spent = [entry for entry in entries if "trainings" in entry]
    if spent:
        trainings, epochs = (span_text(entry[name] for entry in spent) for name in ("trainings", "trained_epochs"))
        note += f" {trainings} trainings and {epochs} epochs for every method;"
    else:
        note += " The same number of trials for every method;"
    return (
        f"{note} no test image of that seed's split was used. A choice at either end of the factors may not be the "
        "best one. Where all diverged, none is chosen."
    )
