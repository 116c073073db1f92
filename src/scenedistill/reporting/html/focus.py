"""Choice of the networks that a report looks at closely: teacher, plain and distilled student."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scenedistill.core.errors import UserError
from scenedistill.reporting.html.config import ReportConfig
from scenedistill.runs.network import TEACHER, Network
from scenedistill.runs.run import Cell, Run


@dataclass(frozen=True)
class Focus:
    """The networks that a report looks at closely.

    Attributes:
        cell: data set and ratio.
        student: name of the student; None where there are only teachers.
        groups: by caption, the networks that differ by seed only: those of teacher, baseline and chosen method, in this
            order, as far as they exist.
        note: a caution if the method was chosen by its test accuracy, else empty.
    """

    cell: Cell
    student: str | None
    groups: dict[str, list[Network]]
    note: str = ""

    def of_one_seed(self, *, outputs: bool = True) -> dict[str, Network]:
        """Return one network of each group, all of the seed for which most groups have kept their outputs.

        Args:
            outputs: leave out networks whose outputs were not kept.
        """

        def having(seed: int, outputs: bool) -> dict[str, Network]:
            found = {name: next((n for n in group if n.seed == seed), None) for name, group in self.groups.items()}
            return {name: n for name, n in found.items() if n is not None and (n.test_paths or not outputs)}

        seed = max(self.cell.seeds(), key=lambda seed: len(having(seed, True)))
        return having(seed, outputs)


def choose(data: Run, config: ReportConfig) -> Focus:
    """Choose the cell, student and method that the settings name, or the defaults of `ReportConfig`.

    Raises:
        UserError: a name in the settings is unknown.
    """
    cell = data.cells[0]
    if config.cell is not None:
        keys = [cell.key or data.name for cell in data.cells]
        cell = data.cells[_place("cell", config.cell, keys)]
    students = cell.students()
    student = students[0] if students else None
    if config.student is not None:
        student = students[_place("student", config.student, students)]
    groups: dict[str, list[Network]] = {}
    for network in cell.networks:
        if network.student in (None, student):
            groups.setdefault(network.label, []).append(network)
    methods = [label for label in groups if label not in (TEACHER, data.baseline)]
    method, note = _favourite(groups, methods)
    if config.method is not None:
        method, note = methods[_place("method", config.method, methods)], ""
    wanted = [label for label in (TEACHER, data.baseline, method) if label in groups]
    return Focus(cell, student, {label: groups[label] for label in wanted if label is not None}, note)


def _favourite(groups: dict[str, list[Network]], methods: Sequence[str]) -> tuple[str | None, str]:
    """Return the default method, and a caution if it was chosen by its test accuracy."""
    if "dkd" in methods or len(methods) < 2:
        return ("dkd" if "dkd" in methods else next(iter(methods), None)), ""
    best = max(methods, key=lambda label: statistics.fmean(n.tested["oa"] for n in groups[label]))
    return best, (
        f"{best} is shown because its mean OA on the test images is the highest of {len(methods)} methods, which "
        "is an optimistic choice: part of its lead is chance. Choose a method with --method."
    )


def _place(what: str, name: str, known: Sequence[str]) -> int:
    if name not in known:
        raise UserError(f"--{what} is {name}, which is not in the folder. There are: {', '.join(known) or 'none'}.")
    return list(known).index(name)
