"""Choose the bands of a raster that a network uses, and convert them to the bands of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from scenedistill.core.errors import UserError

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


def choose_bands(raster: DatasetReader, wanted: int, bands: Sequence[int]) -> tuple[tuple[int, ...], Any]:
    """Return the band numbers to read, and how the network's bands are made of them; see `RasterInfo.colour`."""
    from rasterio.enums import ColorInterp

    for band in bands:
        if not 1 <= band <= raster.count:
            raise UserError(f"--bands {band}: {raster.name} has bands 1 to {raster.count}.")
    alpha = {number for number, kind in enumerate(raster.colorinterp, 1) if kind == ColorInterp.alpha}
    chosen = tuple(bands) or tuple(number for number in range(1, raster.count + 1) if number not in alpha)
    first = raster.colorinterp[chosen[0] - 1] if chosen else None
    coloured = len(chosen) == 1 and first == ColorInterp.palette and raster.dtypes[chosen[0] - 1] == "uint8"
    if wanted in (1, 3) and coloured:
        return chosen, "palette" if wanted == 3 else "grey palette"
    if wanted == 3 and len(chosen) == 1:
        return chosen, "repeated"
    if wanted == 1 and (len(chosen) == 3 or (len(chosen) > 3 and not bands)):
        return chosen[:3], "grey"
    if len(chosen) == wanted or (len(chosen) > wanted and not bands):
        return chosen[:wanted], "bands"
    found = f"--bands names {len(chosen)}" if bands else f"{raster.name} has {len(chosen)} (without alpha)"
    named = ",".join(map(str, range(wanted, 0, -1)))
    advice = f"Name {wanted} with --bands, such as --bands {named}."
    raise UserError(f"The network takes {wanted} bands; {found}.", advice=advice)


def inversion_sum(raster: DatasetReader, kind: np.dtype[Any], bits: int) -> float | None:
    """Return the sum of a value and its inverse if the smallest value is white (PHOTOMETRIC=MINISWHITE), else None.

    GDAL reports the tag but does not invert the values. See `data.images.tiffs.negative`.
    """
    if raster.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") != "YES":
        return None
    return {"u": 2.0**bits - 1, "i": -1.0}.get(kind.kind, 0.0)


def read_palette(raster: DatasetReader, band: int) -> np.ndarray:
    """Return the colour of each value of a band with a palette, uint8 `[256, 3]`."""
    table = np.zeros((256, 3), np.uint8)
    for value, colour in raster.colormap(band).items():
        table[value & 255] = colour[:3]
    return table


def to_network_bands(values: np.ndarray, colour: str, palette: np.ndarray | None) -> np.ndarray:
    """Convert bands to the network's input.

    Args:
        values: uint8 `[bands, H, W]`.
        colour: see `RasterInfo.colour`.
        palette: from `read_palette`, if `colour` uses one.

    Returns:
        uint8 `[H, W, C]`.
    """
    if palette is not None:
        coloured: np.ndarray = palette[values[0]]
        return _grey(coloured) if colour == "grey palette" else coloured
    pixels = values.transpose(1, 2, 0)
    if colour == "repeated":
        return np.repeat(pixels, 3, axis=2)
    return _grey(pixels) if colour == "grey" else pixels


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Convert `[H, W, 3]` to grey `[H, W, 1]` with Pillow's rounding, as for image files."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
