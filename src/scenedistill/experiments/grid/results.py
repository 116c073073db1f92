"""Results of the finished cells of a grid: a Result for each data set and ratio, `summary.md` and a table to print."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scenedistill.core.disk import read_json, write_json, write_text
from scenedistill.core.text import markdown_table
from scenedistill.data.names import as_markdown
from scenedistill.experiments.grid.board import Board
from scenedistill.experiments.grid.cells import Cell, plan, trials
from scenedistill.experiments.grid.config import GridConfig, student_of
from scenedistill.experiments.grid.tuning.choices import FILE, Choice, write_choices
from scenedistill.experiments.grid.tuning.results import tuning_note, tuning_section
from scenedistill.experiments.results.pairs import pairs_lines
from scenedistill.experiments.results.published import published_table
from scenedistill.experiments.results.record import Result, to_json
from scenedistill.experiments.summary import summarise
from scenedistill.losses.registry import LOSSES

RESULTS, SUMMARY, FAILURES = "results.json", "summary.md", "failures.json"
#: How a loss differs from that of its paper, for the record; details are in its class.
DIFFERENCES = {
    "cc": "no linear layer to a common width, and a weight of our own",
    "crd": "negatives of the student from all training images, of the teacher from the batch, by InfoNCE",
    "fitnet": "beside the cross-entropy, not in a stage before it",
    "fitnet_pooled": "a hint averaged over its positions, beside the cross-entropy",
    "seed": "all training images as its queue, a head for the student alone, and labels beside it",
    "sp_pooled": "pooled features, not the last feature map",
    "vkd": "of the embedding alone, and a weight of our own",
}


def finish(board: Board, home: Path, failures: Mapping[str, str], command: str, console: Console) -> dict[str, Result]:
    """Write to `home` and print the results of all finished cells of the grid, also of those not requested now."""
    config = board.config
    cells = [cell for cell in plan(config) if not (cell.tuning or board.broken(cell)) and board.done(cell)]
    choices = keep_choices(board, home)
    notes = f"{tuning_note(config, choices)} {_differences(config, cells)}".strip()
    results, sections = {}, []
    for block in config.blocks():
        own = [cell for cell in cells if cell.block == block]
        if not own:
            continue
        contexts = list({cell.seed: board.context(cell) for cell in own}.values())
        name = config.name if len(config.blocks()) == 1 else f"{config.name}_{block}"
        result = summarise(contexts, [board.row(cell) for cell in own], name=name, command=command)
        result = dataclasses.replace(result, notes=f"{result.notes} {notes}".strip())
        results[block] = result
        place = home if len(config.blocks()) == 1 else home / block
        place.mkdir(exist_ok=True)
        write_json(place / RESULTS, to_json(result))
        ratio = f", {100 * result.train_ratio:g} % training" if result.train_ratio else ""
        heading = f"## {block}: {as_markdown(result.data)}{ratio}, {result.pixels} pixels"
        sections += [heading, markdown_table(*pairs_lines(result, list(config.methods), config.baseline))]
        if result.train_ratio and (others := published_table(result.data, result.train_ratio)):
            sections.append(others)
        _print(result, config, block, console)
    sections += [f"{_meaning(config)} {notes}".strip(), *tuning_section(choices), *_failure_section(failures)]
    text = "\n\n".join([f"# {config.name}", f"`{command or 'scenedistill.experiments.grid.run'}`", *sections])
    write_text(home / SUMMARY, text + "\n")
    for name, reason in failures.items():
        console.print(f"failed: {name}: {reason}", markup=False, highlight=False, style="red")
    return results


def keep_choices(board: Board, home: Path) -> list[Choice]:
    """Collect the choices of every method whose tuning is complete, and write them to `tuning.json`."""
    config, found = board.config, list[Choice]()
    for cell in plan(config):
        if cell.seed != config.seeds[0] or cell.tuning or board.broken(cell):
            continue
        if any(board.broken(trial) for trial in trials(config, cell)):
            continue
        if choice := board.choice(cell):
            found.append(choice)
    if config.tuning and found:
        write_choices(found, config.tuning, config.base.student.fit.epochs or found[0].epochs, home / FILE)
    return found


def _differences(config: GridConfig, cells: Sequence[Cell]) -> str:
    """Return the note on losses of these cells that differ from their papers, or train on other views than the rest; ""
    where there are none."""
    students = [student_of(config, cell.student, cell.label) for cell in cells if cell.student]
    used = {name for student in students for name in student.loss_weights()}
    told = [f"{name} ({difference})" for name, difference in DIFFERENCES.items() if name in used]
    notes = [f"Not as in their papers: {'; '.join(told)}."] if told else []
    online = sorted(name for name in used if LOSSES[name].needs_features)
    if online and config.base.student.knowledge_views != 0:
        notes.append(f"Fresh views in every epoch, for they need what cannot be kept: {', '.join(online)}.")
    return " ".join(notes)


def _print(result: Result, config: GridConfig, block: str, console: Console) -> None:
    head, lines = pairs_lines(result, list(config.methods), config.baseline)
    table = Table(title=Text(f"{block}, {result.pixels} pixels"))
    for number, heading in enumerate(head):
        table.add_column(heading, justify="left" if number < 2 else "right")
    for line in lines:
        table.add_row(*map(Text, line))
    console.print(table)


def _meaning(config: GridConfig) -> str:
    return (
        "± is the sample standard deviation over seeds. A gain is the mean over the n seeds that both have of the "
        f"difference in OA to {config.baseline} on the same split; its interval is that of "
        "Student's t with n - 1 degrees of freedom. It covers neither the choice of the data set nor that several "
        "methods are compared at once. The last epoch is reported."
    )


def _failure_section(failures: Mapping[str, str]) -> list[str]:
    if not failures:
        return []
    return ["## Failed", "\n".join(f"- `{name}`: {reason}" for name, reason in failures.items())]


def read_failures(home: Path) -> dict[str, str]:
    """Read the reasons of the cells that failed in the last call, by name."""
    return read_json(home / FAILURES)


def write_failures(failures: Mapping[str, str], home: Path) -> None:
    """Write the reasons of the failed cells; delete the file where there are none."""
    if failures:
        write_json(home / FAILURES, failures)
    else:
        (home / FAILURES).unlink(missing_ok=True)
