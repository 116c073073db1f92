"""`scenedistill quickstart`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser, result_file


def parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(description="teacher, plain and distilled student on generated scenes, in minutes")
    parser.add_argument("--folder", type=str, default="runs/quickstart", help="output folder")
    parser.add_argument("--teacher", type=str | None, default=None, help="another teacher, such as resnet101")
    parser.add_argument("--seeds", type=list[int], default=[0], help="one full run for each")
    parser.add_argument(
        "--results", type=str | None, default=None, help="also write the result to this results/NAME.json"
    )
    return parser


def command(settings: Namespace, console: Console, text: str) -> None:
    """Run the command."""
    from scenedistill.experiments.quickstart import quickstart
    from scenedistill.experiments.results.record import named, write_result

    results = result_file(settings.results)
    result = quickstart(
        Path(settings.folder), teacher=settings.teacher, seeds=settings.seeds, command=text, console=console
    )
    if results:
        console.print(f"Result written to {write_result(named(result, results.stem), results)}")
