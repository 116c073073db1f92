"""`scenedistill serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser, build_config
from scenedistill.serve.limits import ServeLimits
from scenedistill.serve.networks import ServedNetworks


def parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(description="a local web page that classifies an image or a small GeoTIFF")
    parser.add_argument("model", type=str, help="a run's folder, or a .safetensors, .onnx or .pt2 file")
    parser.add_argument(
        "--teacher", type=str | None, default=None, help="second network; `none` for none (default: the run's teacher)"
    )
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--names", type=list[str], default=[], help="host names of this machine that browsers may use")
    parser.add_argument("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="where to compute")
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads of each process")
    parser.add_argument("--trust", type=bool, default=False, help="open a .pt2, which may run any code")
    parser.add_class_arguments(ServeLimits, "limits")
    return parser


def command(settings: Namespace, console: Console, text: str) -> None:
    """Run the command."""
    from scenedistill.serve.server import serve

    served = ServedNetworks(
        Path(settings.model),
        teacher="auto" if settings.teacher is None else settings.teacher,
        device=settings.device,
        threads=settings.threads,
        trust=settings.trust,
    )
    serve(
        served,
        host=settings.host,
        port=settings.port,
        names=tuple(settings.names),
        limits=build_config(ServeLimits, settings.limits, "limits."),
        console=console,
    )
