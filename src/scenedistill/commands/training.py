"""`scenedistill run`, `teacher` and `distill`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser, build_config, result_file


def training_parser(description: str) -> CommandParser:
    """Return the parser of a training command, without the settings of `RunConfig`."""
    parser = CommandParser(description=description)
    parser.add_argument("folder", type=str, help="one sub-folder for each class, or a CSV manifest path,label")
    parser.add_argument("--config", action="config", help="YAML file of settings; options replace its values")
    parser.add_argument(
        "--out", type=str | None, default=None, help="the run's folder (default: runs/NAME of the data)"
    )
    parser.add_argument(
        "--results", type=str | None, default=None, help="also write the result to this results/NAME.json"
    )
    parser.add_argument(
        "--clear_knowledge", type=bool, default=False, help="delete the stored teacher outputs at the end"
    )
    return parser


def train(*parts: str) -> Callable[[Namespace, Console, str], None]:
    """Return a command that does these parts of a run."""

    def command(settings: Namespace, console: Console, text: str) -> None:
        from scenedistill.config import RunConfig
        from scenedistill.experiments.results.record import named, write_result
        from scenedistill.experiments.run import run

        data, results = Path(settings.folder), result_file(settings.results)
        out = Path(settings.out or Path("runs") / data.resolve().name)
        config, clear = build_config(RunConfig, settings), settings.clear_knowledge
        result = run(data, out, config, parts=parts, command=text, clear_knowledge=clear, console=console)
        console.print(
            f"Everything lies in {out}: summary.md, summary.json, and the networks as weights.safetensors", markup=False
        )
        if results:
            console.print(f"Result written to {write_result(named(result, results.stem), results)}")

    return command
