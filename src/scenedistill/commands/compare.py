"""`scenedistill compare`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser, result_file


def parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(description="lead of methods of a run or a grid over all others, with intervals")
    parser.add_argument("folder", type=str, help="of a run or a grid")
    parser.add_argument("--methods", type=list[str], default=[], help="to compare; dkd and dkd_plus when not given")
    parser.add_argument("--cell", type=str | None, default=None, help="data set and ratio of a grid, such as AID-20")
    parser.add_argument("--figure", type=str | None, default=None, help="draw a forest plot: a .png, .svg or .pdf file")
    parser.add_argument("--results", type=str | None, default=None, help="write the figures to this results/NAME.json")
    return parser


def command(settings: Namespace, console: Console, text: str) -> None:
    """Run the command."""
    from scenedistill.core.errors import UserError
    from scenedistill.experiments.compare import compare
    from scenedistill.experiments.results.comparisons import comparison_table
    from scenedistill.experiments.results.measurements import write_record

    results, figure = result_file(settings.results), Path(settings.figure) if settings.figure else None
    if figure and figure.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--figure is {figure}; expected a .png, .svg or .pdf file.")
    result = compare(
        Path(settings.folder),
        methods=settings.methods,
        cell=settings.cell,
        experiment=results.stem if results else "comparison",
        command=text,
    )
    console.print(comparison_table(result), markup=False)
    if results:
        console.print(f"Result written to {write_record(result, results)}")
    if figure:
        from scenedistill.reporting.drawings import save_drawing
        from scenedistill.reporting.forest import forest_figure

        console.print(f"Figure written to {save_drawing(forest_figure(result.rows), figure)}")
