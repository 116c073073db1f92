"""`scenedistill bench`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser, build_config, result_file


def parser() -> CommandParser:
    """Return the command's parser, without the settings of `BenchConfig`."""
    parser = CommandParser(description="distillation speed on this machine, compared with its parts and a naive loop")
    parser.add_argument("--data", type=str | None, default=None, help="class folders; generated scenes when not given")
    parser.add_argument("--results", type=str | None, default=None, help="write the figures to this results/NAME.json")
    parser.add_argument("--picture", type=str | None, default=None, help="draw the figures to this PNG")
    return parser


def command(settings: Namespace, console: Console, text: str) -> int:
    """Run the command; return 1 if a loop had to be left out, else 0."""
    from scenedistill.config import BenchConfig
    from scenedistill.experiments.bench.run import bench, complete
    from scenedistill.experiments.bench.speed import draw_speed, speed_table

    results = result_file(settings.results)
    data = Path(settings.data) if settings.data else None
    config = build_config(BenchConfig, settings)
    result = bench(data, config, command=text, keep=results, console=console)
    console.print(speed_table(result), markup=False)
    if results:
        console.print(f"Result written to {results}")
    if settings.picture:
        console.print(f"Picture drawn to {draw_speed(result, Path(settings.picture))}")
    return int(not complete(result, config))
