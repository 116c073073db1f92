"""`scenedistill cost`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser, result_file


def parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(description="parameters, operations and time of the networks of a run or a grid")
    parser.add_argument("folder", type=str, help="of a run or a grid")
    parser.add_argument("--cell", type=str | None, default=None, help="data set and ratio of a grid, such as AID-20")
    parser.add_argument(
        "--beside", type=list[str], default=[], help="networks with random weights to compare with, such as [resnet101]"
    )
    parser.add_argument("--batch_sizes", type=list[int], default=[1, 64], help="images in a pass; each is timed")
    parser.add_argument("--repeats", type=int, default=100, help="timed passes")
    parser.add_argument("--threads", type=int | None, default=None, help="of the CPU; all cores when not given")
    parser.add_argument("--results", type=str | None, default=None, help="write the figures to this results/NAME.json")
    return parser


def command(settings: Namespace, console: Console, text: str) -> None:
    """Run the command."""
    from scenedistill.experiments.measure_costs import measure_costs
    from scenedistill.experiments.results.costs import costs_table
    from scenedistill.experiments.results.measurements import write_record

    results = result_file(settings.results)
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        console.print(f"Other work is going on here (load {os.getloadavg()[0]:.1f}): the times will be too long.")
    result = measure_costs(
        Path(settings.folder),
        cell=settings.cell,
        beside=settings.beside,
        batch_sizes=settings.batch_sizes,
        repeats=settings.repeats,
        threads=settings.threads,
        command=text,
    )
    console.print(costs_table(result), markup=False)
    if results:
        console.print(f"Result written to {write_record(replace(result, experiment=results.stem), results)}")
