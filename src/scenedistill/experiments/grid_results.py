"""What the finished cells of a grid say: a Result for each data set and ratio, `summary.md` and a table to print."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scenedistill.experiments.grid_cells import Board, plan, trials
from scenedistill.experiments.grid_config import GridConfig
from scenedistill.experiments.pairs import pairs_lines, pairs_table
from scenedistill.experiments.results import Result, to_json
from scenedistill.experiments.summary import summarise
from scenedistill.experiments.tuning import FILE, Choice, write_choices
from scenedistill.training.runs import write_json

RESULTS, SUMMARY, FAILURES = "results.json", "summary.md", "failures.json"


def finish(board: Board, failures: Mapping[str, str], command: str, console: Console) -> dict[str, Result]:
    """Write and print what all finished cells of the grid say, also those that were not asked for this time."""
    config, out = board.config, board.out
    cells = [cell for cell in plan(config) if not cell.tuning and board.done(cell)]
    choices = _choices(board)
    notes = ""
    if config.tuning and choices:
        write_choices(choices, config.tuning, config.base.student.fit.epochs, out / FILE)
        notes = f"Weights chosen from {len(config.tuning.factors)} factors on validation images."
    results, sections = {}, []
    for block in config.blocks():
        own = [cell for cell in cells if cell.block == block]
        if not own:
            continue
        lab = board.lab(own[0])
        splits = {str(cell.seed): board.split(cell).hash for cell in own}
        name = config.name if len(config.blocks()) == 1 else f"{config.name}_{block}"
        result = summarise(lab, [board.row(cell) for cell in own], name=name, command=command, splits=splits)
        result = dataclasses.replace(result, notes=notes)
        results[block] = result
        write_json((out if len(config.blocks()) == 1 else out / block) / RESULTS, to_json(result))
        heading = f"## {block}: {lab.data_name}, {100 * config.blocks()[block][1]:g} % training, {result.pixels} pixels"
        sections += [heading, pairs_table(result, list(config.methods), config.baseline)]
        _print(result, config, block, console)
    sections += [_meaning(config), *_tuning_section(choices), *_failure_section(failures)]
    text = "\n\n".join([f"# {config.name}", f"`{command or 'scenedistill.experiments.grid'}`", *sections])
    (out / SUMMARY).write_text(text + "\n", encoding="utf-8")
    for name, reason in failures.items():
        console.print(f"failed: {name}: {reason}", markup=False, highlight=False, style="red")
    return results


def _choices(board: Board) -> list[Choice]:
    """Of every method whose tuning is complete."""
    seed, found = board.config.seeds[0], []
    for cell in plan(board.config):
        if cell.seed == seed and cell.student and not cell.tuning and trials(board.config, cell):
            choice = board.choice(cell)
            if choice:
                found.append(choice)
    return found


def _print(result: Result, config: GridConfig, block: str, console: Console) -> None:
    head, lines = pairs_lines(result, list(config.methods), config.baseline)
    table = Table(title=f"{block}, {result.pixels} pixels")
    for number, heading in enumerate(head):
        table.add_column(heading, justify="left" if number < 2 else "right")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def _meaning(config: GridConfig) -> str:
    return (
        "± is the sample standard deviation over seeds. A gain is the mean over the n seeds that both have of the "
        f"difference in OA to {config.baseline} on the same split; its interval is that of "
        "Student's t with n - 1 degrees of freedom. It covers neither the choice of the data set nor that several "
        "methods are compared at once. The last epoch is reported."
    )


def _tuning_section(choices: Sequence[Choice]) -> list[str]:
    if not choices:
        return []
    factors = sorted({factor for choice in choices for factor in choice.scores})
    head = ["data", "network", "method", *(f"x {factor:g}" for factor in factors), "chosen"]
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3)]
    for choice in choices:
        scores = [choice.scores.get(factor) for factor in factors]
        shown = ["diverged" if score is None else f"{100 * score:.2f}" for score in scores]
        lines.append([choice.block, choice.student, choice.label, *shown, f"{choice.factor:g}"])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return ["## Tuning", "OA (%) on validation images for each factor on the method's weight.", table]


def _failure_section(failures: Mapping[str, str]) -> list[str]:
    if not failures:
        return []
    return ["## Failed", "\n".join(f"- `{name}`: {reason}" for name, reason in failures.items())]


def read_failures(out: Path) -> dict[str, str]:
    """Why cells failed the last time, by name."""
    try:
        found = json.loads((out / FAILURES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_failures(failures: Mapping[str, str], out: Path) -> None:
    """Keep why cells failed; no file where none did."""
    if failures:
        write_json(out / FAILURES, failures)
    else:
        (out / FAILURES).unlink(missing_ok=True)
