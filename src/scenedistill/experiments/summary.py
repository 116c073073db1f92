"""Summary of a run: a table on the terminal, `summary.json` and `summary.md`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from scenedistill.core.disk import write_json, write_text
from scenedistill.experiments.context import SeedContext
from scenedistill.experiments.results.environment import measured_here
from scenedistill.experiments.results.record import Result, Row, to_json
from scenedistill.experiments.results.table import cells, result_table

SHOWN = ("network", "training", "seeds", "OA (%)", "gain (points)", "kappa", "parameters (M)", "ms per image")


def summarise(contexts: Sequence[SeedContext], rows: Sequence[Row], *, name: str, command: str) -> Result:
    """Write and print the summary of the rows.

    Args:
        contexts: contexts of the seeds of one experiment; `summary.json` and `summary.md` go into its folder.
        rows: one for each trained network.
        name: name of the experiment.
        command: command that repeats the experiment.

    Returns:
        The result. Its wall seconds are those of training and testing, over all attempts.
    """
    experiment, images = contexts[0].experiment, len(contexts[-1].split.train)
    config = experiment.config
    splits = {str(context.seed): context.split.hash for context in contexts}
    result = Result(
        experiment=name,
        command=command or "scenedistill.run(...)",
        **measured_here(),
        data=experiment.images.name,
        pixels=config.image_size,
        train_ratio=None if config.data.split_file else config.data.train_ratio,
        split_hash=splits if len(splits) > 1 else next(iter(splits.values())),
        epochs={
            "teacher": config.teacher.schedule(images).epochs,
            "student": config.student.schedule(images).epochs,
        },
        wall_seconds=sum(_seconds(row) for row in rows),
        rows=tuple(rows),
        notes=f"{_tested(contexts[0])} {experiment.images.notes}".strip(),
    )
    if experiment.lead:
        out = experiment.folder.path
        write_json(out / "summary.json", to_json(result), checksum=True)
        text = f"# {name}\n\n`{result.command}`\n\n{result_table(result)}\n"
        write_text(out / "summary.md", text)
        experiment.console.print(terminal_table(result))
    return result


def _tested(context: SeedContext) -> str:
    """Return a note on the share of the images that tests, if it is not all that do not train."""
    ratio = context.experiment.config.data.test_ratio
    return "" if ratio is None or context.split.train_ratio is None else f"Tested on {100 * ratio:g} % of each class."


def terminal_table(result: Result) -> Table:
    """Create the terminal table of a result, with the columns that fit; `summary.md` has all of them."""
    head, lines = cells(result)
    shown = [number for number, heading in enumerate(head) if heading in SHOWN]
    table = Table(title=Text(f"{result.data}, {result.pixels} pixels"))
    for number in shown:
        table.add_column(head[number], justify="left" if number < 2 else "right")
    for line in lines:
        table.add_row(*(Text(line[number]) for number in shown))
    return table


def _seconds(row: Row) -> float:
    return sum(float(row.more.get(key) or 0) for key in ("train_seconds", "test_seconds"))
