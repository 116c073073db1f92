"""Check the size and the georeference of an upload by its header, before anything is decoded."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image

from scenedistill.core.errors import UserError
from scenedistill.data.images.tiff_heads import read_page_headers
from scenedistill.inference.inputs import PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, tiff_tags
from scenedistill.serve.limits import ServeLimits

#: Maximum memory of a decoded file, in bytes per pixel of `limits.pixels`. A scene is decoded as a whole; a raster is
#: read by windows, but its blocks may be large.
SCENE_BYTES, RASTER_BYTES = 8, 64
#: Maximum number of bytes in memory per byte of the file, if they are more than `MOST_EMPTY` in total: unwritten or
#: uniform pixels compress to almost nothing, but take as long to process as others.
MOST_UNPACKED, MOST_EMPTY = 2000, 64 << 20


def check_size(path: Path, limits: ServeLimits, kind: str) -> tuple[int, int]:
    """Return width and height in pixels from a file's header, and check its size without decoding it.

    Args:
        path: file with the suffix .jpg, .png, .webp or .tif.
        limits: limit on pixels.
        kind: `scene` for the limit on a scene; otherwise that on a raster.

    Raises:
        UserError: the file has too many pixels, would take too much memory, or its header cannot be read.
    """
    try:
        width, height, decoded = _decoded_size(path)
    except Exception as problem:  # decoders raise nearly any exception for damaged files
        raise UserError(f"{path.name} cannot be read: the file is damaged.") from problem
    if width * height > limits.pixels:
        found = f"{width:,} x {height:,} pixels, {width * height / 1e6:,.1f} million"
        raise UserError(f"{path.name} has {found}; the limit of this page is {limits.megapixels:g} million.")
    largest = limits.pixels * (SCENE_BYTES if kind == "scene" else RASTER_BYTES)
    if decoded > largest:
        raise UserError(
            f"{path.name} takes {decoded / 2**20:,.0f} MiB of memory; "
            f"the limit of this page is {largest / 2**20:,.0f} MiB."
        )
    size = path.stat().st_size
    if decoded > max(MOST_EMPTY, MOST_UNPACKED * size):
        found = f"{size / 1024:,.0f} KiB for {decoded / 2**20:,.0f} MiB of pixels"
        raise UserError(f"{path.name} has {found}: nearly all of it is empty. Cut out the part that is not.")
    return width, height


def _decoded_size(path: Path) -> tuple[int, int, int]:
    """Return width, height, and bytes in memory during processing, from a file's header."""
    if path.suffix == ".tif":
        heads = read_page_headers(path)
        first = heads[0]
        # tiles are decoded as a whole, also at the edge; pages may be the bands of one image
        area = sum(head.area for head in (heads if first.samples == 1 else heads[:1]))
        deep = max(8, first.bits // 8) if first.bits > 8 else 1  # stretched in float64
        return first.width, first.height, area * first.samples * deep
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `check_size` reports it
        largest, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
                deep = 8 if image.format == "PNG" and _png_depth(path) > 8 else 1
                return *image.size, 4 * image.width * image.height * deep
        finally:
            Image.MAX_IMAGE_PIXELS = largest


def _png_depth(path: Path) -> int:
    """Return the bits per sample of a PNG."""
    with path.open("rb") as file:
        return file.read(25)[24]


def georeference_kind(path: Path) -> str | None:
    """Return the georeference of a TIFF, with or without a CRS: `transform`, ground control `points` only, or None."""
    tags = tiff_tags(path)
    if PIXEL_SCALE in tags or TRANSFORMATION in tags:
        return "transform"
    return "points" if TIE_POINTS in tags else None
