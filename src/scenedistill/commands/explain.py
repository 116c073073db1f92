"""`scenedistill explain`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser
from scenedistill.core.errors import UserError

MOST = 60  # images, at most


def parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(description="predictions and Grad-CAM maps of a run's networks for a few images")
    parser.add_argument("run", type=str, help="a run's folder, or that of one of its students")
    parser.add_argument("images", type=str, nargs="+", help=f"images, folders or patterns; {MOST} images at most")
    parser.add_argument(
        "--of", type=str | None, default=None, help="class to explain; the teacher's prediction when not given"
    )
    parser.add_argument("--out", type=str, default="explained", help="folder for the sheet and the text")
    return parser


def command(settings: Namespace, console: Console, text: str) -> None:
    """Run the command."""
    from scenedistill.inference.inputs import find_inputs
    from scenedistill.reporting.explain import as_text, explain, networks_of
    from scenedistill.reporting.explain_sheet import draw_explained

    out = Path(settings.out)
    images = find_inputs(settings.images, raster=False, leave_out=out).images
    if len(images) > MOST:
        raise UserError(f"Found {len(images):,} images; explain takes {MOST} at most. Use predict for more.")
    networks = networks_of(Path(settings.run))
    explained = explain(networks, images, asked=settings.of)
    told = as_text(explained)
    console.print(told, markup=False, highlight=False, end="")
    pages = draw_explained(explained, out)
    (out / "explained.txt").write_text(told, encoding="utf-8")
    console.print(f"Written to {out}: explained.txt, {', '.join(page.name for page in pages)}", markup=False)
