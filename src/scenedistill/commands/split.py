"""`scenedistill split`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser


def parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(description="draw a seeded, stratified split and write it to a file")
    parser.add_argument("data", type=str, help="folder with one sub-folder for each class")
    parser.add_argument("out", type=str, help="CSV file, or folder for the lists of the other layouts")
    parser.add_argument("--train_ratio", type=float, default=0.2, help="share of each class that trains, in (0, 1)")
    parser.add_argument(
        "--test_ratio", type=float | None, default=None, help="share of each class that tests; the rest if not given"
    )
    parser.add_argument(
        "--val_fraction", type=float, default=0.0, help="share of the training part kept for validation"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--layout", type=Literal["csv", "torchgeo", "rsp"], default="csv", help="format of the files")
    return parser


def command(settings: Namespace, console: Console, text: str) -> None:
    """Run the command."""
    from scenedistill.data.scenes import scan
    from scenedistill.data.splits.draw import make_split
    from scenedistill.data.splits.files import read_split, write_split

    index = scan(Path(settings.data))
    if index.parts is None:
        split = make_split(
            index, settings.train_ratio, settings.seed, settings.val_fraction, test_ratio=settings.test_ratio
        )
    else:  # a new draw would put test images into the training part
        split = read_split(index.root, index)
        console.print(f"{index.root} is split already by its folders; this split is written.", markup=False)
    written = write_split(split, index, Path(settings.out), settings.layout)
    sizes = ", ".join(f"{len(rows)} {part}" for part, rows in split.parts().items())
    console.print(f"{sizes}; split {split.hash}; written to {', '.join(map(str, written))}")
