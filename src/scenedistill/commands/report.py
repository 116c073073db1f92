"""`scenedistill report`."""

from __future__ import annotations

from typing import Literal

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser, build_config
from scenedistill.reporting.html.config import ReportConfig


def parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(description="one HTML page about a run or a grid")
    parser.add_argument("folder", type=str, help="of a run or a grid")
    parser.add_argument("--out", type=str | None, default=None, help="the page; FOLDER/report.html when not given")
    parser.add_argument(
        "--data",
        type=dict[str, str] | str | None,
        default=None,
        help="folder of the images where the record does not tell, or {NAME: folder} for the data sets of a grid",
    )
    parser.add_argument("--figures", type=str | None, default=None, help="folder for the pictures as files for a paper")
    parser.add_argument("--as", type=Literal["pdf", "svg", "png"], default="pdf", help="format of these files")
    parser.add_class_arguments(ReportConfig)
    return parser


def command(settings: Namespace, console: Console, text: str) -> None:
    """Run the command."""
    from scenedistill.reporting.html.page import write_report

    page = write_report(
        settings.folder,
        settings.out,
        data=settings.data,
        figures=settings.figures,
        ending=settings["as"],
        config=build_config(ReportConfig, settings),
        say=lambda line: console.print(f"  {line}", markup=False),
    )
    console.print(f"Report: {page} ({page.stat().st_size / 1e6:.1f} MB). Open it in a browser.", markup=False)
    if settings.figures:
        console.print(f"Figures: {settings.figures}", markup=False)
