"""`scenedistill evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser

Precision = Literal["auto", "bf16", "fp16", "fp32"]


def parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(description="test a trained network on a folder of images")
    parser.add_argument("weights", type=str, help="weights.safetensors of a finished training, or its folder")
    parser.add_argument("data", type=str, help="folder with the network's classes as sub-folders, or a CSV manifest")
    parser.add_argument("--split", type=str | None, default=None, help="split file; all images when not given")
    parser.add_argument("--part", type=Literal["train", "val", "test"], default="test", help="part of the split")
    parser.add_argument("--precision", type=Precision, default="auto", help="that of the run finds its figures again")
    parser.add_argument("--out", type=str, default="evaluation", help="folder for the figures and the confusion matrix")
    return parser


def command(settings: Namespace, console: Console, text: str) -> None:
    """Run the command."""
    from scenedistill.experiments.evaluate import evaluate

    split = Path(settings.split) if settings.split else None
    evaluate(
        Path(settings.weights),
        Path(settings.data),
        Path(settings.out),
        split=split,
        part=settings.part,
        precision=settings.precision,
        console=console,
    )
