"""`scenedistill data`: list, check, download, stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser

if TYPE_CHECKING:
    from scenedistill.data.raster.holes import Constant
    from scenedistill.data.scenes import SceneIndex


def parser() -> CommandParser:
    """Return the command's parser."""
    return CommandParser(description="list the known data sets, check a folder against them, download one")


def add_actions(parser: CommandParser) -> None:
    """Add the sub-commands, which is possible only when the parser above is complete."""
    commands = parser.add_subcommands(metavar="ACTION", dest="action")
    commands.add_subcommand("list", CommandParser(description="the data sets that are known"))
    check = CommandParser(description="which data set a folder is, and whether it is complete")
    check.add_argument("folder", type=str, help="folder with one sub-folder for each class")
    check.add_argument("--name", type=str | None, default=None, help="the data set it should be")
    check.add_argument(
        "--decode", type=bool, default=True, help="decode every image, to find those that cannot be read, and copies"
    )
    commands.add_subcommand("check", check)
    download = CommandParser(description="download a data set that has a stable public source")
    download.add_argument("name", type=str, help="name from `scenedistill data list`")
    download.add_argument("--folder", type=str, default="data", help="folder to download to")
    commands.add_subcommand("download", download)
    stored = CommandParser(description="list or delete what is stored: decoded images and teacher outputs")
    stored.add_argument(
        "--clear", type=list[str], default=[], help="delete these: names, or all `images`, `knowledge` or `all`"
    )
    stored.add_argument("--folder", type=str | None, default=None, help="cache folder; the usual one when not given")
    commands.add_subcommand("stored", stored)


def command(settings: Namespace, console: Console, text: str) -> int:
    """Run the command; return 1 for an incomplete known data set or unreadable images, else 0."""
    from scenedistill.data.known.catalogue import check, lookup, overview
    from scenedistill.data.known.download import download
    from scenedistill.data.scenes import scan

    options = settings[settings.action]
    if settings.action == "list":
        console.print(overview())
    elif settings.action == "check":
        index = scan(Path(options.folder))
        report = check(index, lookup(options.name) if options.name else None)
        for note in index.notes:
            console.print(note, markup=False)
        console.print(str(report), markup=False)
        readable = not options.decode or _decoded(index, console)
        return int(not readable or (report.info is not None and not report.complete))
    elif settings.action == "stored":
        _stored(options, console)
    else:
        console.print(f"Downloaded to {download(lookup(options.name), Path(options.folder))}")
    return 0


def _decoded(index: SceneIndex, console: Console) -> bool:
    """Print which images are unreadable and which are copies of others; return whether all were readable."""
    from scenedistill.data.duplicates import duplicates_in_folder
    from scenedistill.data.raster.holes import constants_text

    constants: dict[Path, Constant] = {}
    copies, bad = duplicates_in_folder(index, constants=constants)
    if constants:
        console.print(constants_text(constants), markup=False)
    for path, reason in bad[:20]:
        console.print(f"cannot be read: {path}: {reason}", markup=False)
    if len(bad) > 20:
        console.print(f"and {len(bad) - 20:,} more that cannot be read")
    console.print(copies.text() or "no image is a copy of another", markup=False)
    return not bad


def _stored(options: Namespace, console: Console) -> None:
    from scenedistill.data.cache.build import cache_home
    from scenedistill.experiments.storage import clear, stored, stored_table

    folder = Path(options.folder) if options.folder else cache_home()
    for entry in clear(options.clear, folder):
        console.print(f"deleted {entry.name}: {entry.kind}, {entry.what}", markup=False)
    entries = stored(folder)
    console.print(stored_table(entries) if entries else "nothing is kept", f"in {folder}", sep="\n")
