"""Contact sheets: pages of thumbnails with the predicted class and confidence of each image."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from scenedistill.core.machine import usable_cores
from scenedistill.core.terminal import counted
from scenedistill.data.images.read import UnreadableImage, read_image
from scenedistill.metrics.plots import PLAIN_FONT, characters, font_with

#: `class`: by class, and within a class by rising confidence; `doubtful`: by rising confidence over all classes.
Order = Literal["class", "doubtful"]

SIDE = 144  # pixels, side of a thumbnail
CAPTION = 38  # pixels, height of the caption: class with confidence, file name
GAP = 8
COLUMNS, ROWS = 10, 6
HEAD = 40  # pixels, height of the title
PAPER, INK, FAINT = (255, 255, 255), (25, 25, 25), (120, 120, 120)
BANDS = ((232, 238, 246), (246, 238, 226))  # backgrounds of the captions, alternating between classes
SURE, UNSURE, DOUBTFUL = (46, 125, 80), (201, 138, 22), (183, 50, 50)


class Shown(NamedTuple):
    """One image of a sheet: its file, the name to print, the index of its class, and its confidence, 0..1."""

    path: Path
    name: str
    label: int
    confidence: float


@dataclass(frozen=True)
class Plan:
    """Images to draw, in order, and the title of the sheet."""

    shown: list[Shown]
    title: str


def plan(images: Sequence[Shown], order: Order, pages: int) -> Plan:
    """Choose and sort the images of a contact sheet.

    If they do not all fit, the images with the lowest confidence are kept; with `order="class"`, the same number per
    class.

    Args:
        images: all predicted images.
        order: see `Order`.
        pages: maximum number of pages, 1 or more.
    """
    room = pages * COLUMNS * ROWS
    doubtful = sorted(images, key=lambda image: (image.confidence, image.name))
    many = counted(len(images), "image")
    if order == "doubtful":
        shown = doubtful[:room]
        kept = many if len(shown) == len(images) else f"the {len(shown):,} least sure of {many}"
        return Plan(shown, f"{kept}, the least sure first")
    groups: dict[int, list[Shown]] = {}
    for image in doubtful:
        groups.setdefault(image.label, []).append(image)
    most = _fair_share([len(group) for group in groups.values()], room)
    shown = [image for label in sorted(groups) for image in groups[label][:most]][:room]
    if len(shown) == len(images):
        return Plan(shown, f"{many} by class, the least sure of each first")
    return Plan(shown, f"{many} by class; shown are the {most:,} least sure of each")


def draw_sheets(
    images: Sequence[Shown],
    classes: Sequence[str],
    folder: Path,
    *,
    bands: int = 3,
    order: Order = "class",
    pages: int = 20,
    value_range: tuple[float, float] | None = None,
) -> list[Path]:
    """Draw contact sheets and write them as `contact_sheet_01.png`, `contact_sheet_02.png`, ...

    Thumbnails keep their aspect ratio. The length of the bar below a thumbnail shows the confidence; it is green from
    90 %, amber from 60 %, and red below. An image that cannot be read is drawn as a grey square.

    Args:
        images: all predicted images.
        classes: names of the classes.
        folder: output folder.
        bands: number of bands of the network, see `read_image`; of more than three the first three are shown.
        order: see `Order`.
        pages: maximum number of pages, 1 or more.
        value_range: see `read_image`.

    Returns:
        The files written, in order.
    """
    planned = plan(images, order, pages)
    labels = list(dict.fromkeys(image.label for image in planned.shown))
    tint = {label: BANDS[place % 2] for place, label in enumerate(labels)}
    written: list[Path] = []
    starts = range(0, len(planned.shown), COLUMNS * ROWS)
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="draw") as pool:
        for number, start in enumerate(starts, start=1):
            batch = planned.shown[start : start + COLUMNS * ROWS]
            small = pool.map(lambda image: _thumbnail(image.path, bands, value_range), batch)
            tiles = [
                _tile(pixels, image, classes[image.label], tint[image.label])
                for pixels, image in zip(small, batch, strict=True)
            ]
            title = f"{planned.title}; page {number} of {len(starts)}" if len(starts) > 1 else planned.title
            written.append(folder / f"contact_sheet_{number:02d}.png")
            _page(tiles, title).save(written[-1])
    return written


def _fair_share(sizes: Sequence[int], room: int) -> int:
    """Return the largest limit on the size of each group for which all groups fit into `room`; at least 1."""
    most = max(sizes, default=0)
    while most > 1 and sum(min(size, most) for size in sizes) > room:
        most -= max(1, (sum(min(size, most) for size in sizes) - room) // len(sizes))
    return max(most, 1)


def _thumbnail(path: Path, bands: int, value_range: tuple[float, float] | None) -> Image.Image | None:
    try:
        pixels = read_image(path, bands, at_least=SIDE, value_range=value_range)
    except UnreadableImage:  # deleted since the prediction
        return None
    shown = pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
    image = Image.fromarray(np.ascontiguousarray(shown))
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _tile(small: Image.Image | None, image: Shown, name: str, tint: tuple[int, int, int]) -> Image.Image:
    tile = Image.new("RGB", (SIDE, SIDE + 5 + CAPTION), PAPER)
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, SIDE - 1, SIDE - 1), fill=(225, 225, 225))
    if small is not None:
        tile.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    colour = SURE if image.confidence >= 0.9 else UNSURE if image.confidence >= 0.6 else DOUBTFUL
    draw.rectangle((0, SIDE, SIDE - 1, SIDE + 4), fill=(215, 215, 215))
    draw.rectangle((0, SIDE, max(1, round(image.confidence * (SIDE - 1))), SIDE + 4), fill=colour)
    draw.rectangle((0, SIDE + 5, SIDE - 1, SIDE + 4 + CAPTION), fill=tint)
    percent = f"{100 * image.confidence:.0f} %"
    width = draw.textlength(percent, _font(percent, 13))
    draw.text((SIDE - 4 - width, SIDE + 9), percent, INK, _font(percent, 13))
    _fitted(draw, name, (4, SIDE + 9), SIDE - 14 - width, 13, INK)
    _fitted(draw, image.name, (4, SIDE + 26), SIDE - 8, 10, FAINT, keep_end=True)
    return tile


def _page(tiles: Sequence[Image.Image], title: str) -> Image.Image:
    columns = min(COLUMNS, max(len(tiles), 4))
    rows = -(-len(tiles) // columns)
    width, height = tiles[0].size
    page = Image.new("RGB", (GAP + columns * (width + GAP), HEAD + rows * (height + GAP)), PAPER)
    _fitted(ImageDraw.Draw(page), title, (GAP, 11), page.width - 2 * GAP, 16, INK)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        page.paste(tile, (GAP + column * (width + GAP), HEAD + row * (height + GAP)))
    return page


def _fitted(
    draw: ImageDraw.ImageDraw,
    text: str,
    at: tuple[int, int],
    width: float,
    size: int,
    colour: tuple[int, int, int],
    *,
    keep_end: bool = False,
) -> None:
    """Draw a line of text; if it is too wide, replace its end (its start for `keep_end`) with an ellipsis."""
    text = " ".join(text.split())
    font, cut = _font(text, size), text
    while cut and draw.textlength(cut if cut == text else f"{cut}…", font) > width:
        cut = cut[1:] if keep_end else cut[:-1]
    draw.text(at, cut if cut == text else f"…{cut}" if keep_end else f"{cut}…", colour, font)


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return the default font of matplotlib, or the first installed font with a character that this font lacks."""
    plain = findfont(PLAIN_FONT)
    missing = sorted({ord(letter) for letter in text} - characters(plain))
    return _loaded(_file_with(missing[0]) if missing else plain, size)


@cache
def _file_with(character: int) -> str:
    family = font_with(character)
    return findfont(FontProperties(family=[family or PLAIN_FONT]))


@cache
def _loaded(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)
