"""Fill the tables of README and docs from result files.

    python benchmarks/tables.py README.md docs/*.md [--check]

replaces the text between the lines `<!-- table:NAME -->` and `<!-- /table -->` by the table of `results/NAME.json`;
`<!-- table:NAME short -->` gives the columns by which a user chooses a network.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from records import figures, growth, race, step_profile, steps, use
from records.short import short_table
from scenedistill.core.errors import UserError
from scenedistill.experiments.bench import speed
from scenedistill.experiments.results import comparisons, costs
from scenedistill.experiments.results.measurements import kind_of, read_record
from scenedistill.experiments.results.record import read_result
from scenedistill.experiments.results.table import result_table

START = re.compile(r"^<!-- table:(?P<name>[\w.-]+)(?P<short> short)? -->$")
END = "<!-- /table -->"
#: kind of a measurement -> the table of a file of that kind
KINDS: dict[str, Callable[[Path], str]] = {
    comparisons.KIND: lambda path: comparisons.comparison_table(
        read_record(path, comparisons.ComparisonResult, comparisons.ComparisonRow)
    ),
    costs.KIND: lambda path: costs.costs_table(read_record(path, costs.CostResult, costs.CostRow)),
    figures.KIND: lambda path: figures.figures_table(read_record(path, figures.Figures, figures.Figure)),
    growth.KIND: lambda path: growth.growth_table(read_record(path, growth.Growth, growth.GrowthRow)),
    race.KIND: lambda path: race.race_table(read_record(path, race.Race, race.RaceRow)),
    speed.KIND: lambda path: speed.speed_table(read_record(path, speed.SpeedResult, speed.SpeedRow)),
    step_profile.KIND: lambda path: step_profile.profile_table(
        read_record(path, step_profile.StepProfile, step_profile.StepShare)
    ),
    steps.KIND: lambda path: steps.steps_table(read_record(path, steps.Steps, steps.StepSpeed)),
    use.KIND: lambda path: use.use_table(use.read_use(path)),
}


def fill(text: str, results: Path, where: str) -> str:
    """Return the document with every table rebuilt; `where` names it in messages.

    Raises:
        UserError: a marker has no end, an end no start, or a result file is missing or not valid.
    """
    lines: list[str] = []
    opened: tuple[int, str, bool] | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        start = START.match(line.strip())
        if line.strip() != END and not start:
            if opened is None:
                lines.append(line)
            continue
        if start and opened:
            raise UserError(f"{where}, line {opened[0]}: table:{opened[1]} has no end before line {number}; add {END}")
        if start:
            opened = (number, start["name"], bool(start["short"]))
            lines.append(line)
        elif opened:
            lines += ["", table_of(results / f"{opened[1]}.json", short=opened[2]), "", line]
            opened = None
        else:
            raise UserError(f"{where}, line {number}: {END} without a <!-- table:NAME --> before it")
    if opened:
        raise UserError(f"{where}, line {opened[0]}: table:{opened[1]} has no end; add a line {END}")
    return "\n".join(lines)


def table_of(path: Path, *, short: bool = False) -> str:
    """Return the table of a result file of any kind, or the short one of trained networks."""
    if short:
        return short_table(read_result(path))
    if table := KINDS.get(kind_of(path) or ""):
        return table(path)
    return result_table(read_result(path))


def names_in(text: str) -> list[str]:
    """Return the names of the tables that a document has markers for, with `short` after those of short tables."""
    return [start["name"] + (start["short"] or "") for line in text.split("\n") if (start := START.match(line.strip()))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the documents, or with --check only compare; return the exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/tables.py", description=__doc__.splitlines()[0])
    parser.add_argument("documents", nargs="+", type=Path, metavar="DOCUMENT", help="Markdown file with table markers")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the result files")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 when a table differs from its result"
    )
    given = parser.parse_args(arguments)
    stale = []
    try:
        for document in given.documents:
            if not document.is_file():
                raise UserError(f"There is no file {document}; give Markdown files such as README.md.")
            text = document.read_text(encoding="utf-8")
            filled = fill(text, given.results, str(document)) if names_in(text) or END in text else text
            if filled == text:
                continue
            if given.check:
                stale.append(document)
            else:
                document.write_text(filled, encoding="utf-8", newline="\n")
                print(f"{document}: tables updated ({', '.join(names_in(text))})")
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    for document in stale:
        print(f"{document}: a table differs from its result file; run this without --check", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
