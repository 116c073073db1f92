"""`scenedistill export`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser, build_config
from scenedistill.export.config import ExportConfig


def parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(description="write the student as files for other programs, each checked on test images")
    parser.add_argument("run", type=str, help="a run's folder, or the folder of one training in it")
    parser.add_argument("--out", type=str | None, default=None, help="folder (default: `export` in the training's own)")
    parser.add_argument("--data", type=str | None, default=None, help="the run's images, where it cannot find them")
    parser.add_argument("--push_to", type=str | None, default=None, help="Hugging Face repository USER/NAME")
    parser.add_class_arguments(ExportConfig)
    return parser


def command(settings: Namespace, console: Console, text: str) -> None:
    """Run the command."""
    from scenedistill.export.hub import check_name, push
    from scenedistill.export.run import export

    if settings.push_to:
        check_name(settings.push_to)
    data = Path(settings.data) if settings.data else None
    exported = export(settings.run, settings.out, build_config(ExportConfig, settings), data=data, console=console)
    names = ", ".join(file.name for file in exported.files)
    console.print(f"Written to {exported.folder}: {names}, README.md", markup=False)
    if settings.push_to:
        console.print(f"Uploaded to {push(exported.folder, settings.push_to)}", markup=False)
