"""Detect the pixels of a raster or of an image that hold no data (holes)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scenedistill.core.disk import shown_path
from scenedistill.core.errors import UserError
from scenedistill.core.terminal import counted

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


#: A constant is reported as likely nodata if it fills more than this share of the pixels, ...
LEAST_SHARE = 0.01
#: ... hardly any other value is closer to it than this share of the range of the others, ...
MARGIN = 1 / 8
#: ... and there are more than this many other values: fewer are classes or levels, and not an image.
LEVELS = 32


class Constant(NamedTuple):
    """A value far from all others, which most likely means nodata but is not declared as such in the file.

    Attributes:
        value: the value.
        share: share of the sampled pixels that have it, 0..1.
        low: 1st percentile of the other values.
        high: 99th percentile of the other values.
    """

    value: float
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        others = f"far from all others ({self.low:.6g} to {self.high:.6g})"
        return f"About {self.share:.0%} of the pixels are {self.value}, {others}, and are taken for data."

    @property
    def advice(self) -> str:
        """What to do at the command line."""
        return f"If they are holes, give --nodata {self.value}."


def find_suspected_nodata(values: np.ndarray) -> Constant | None:
    """Find the most frequent constant far from the other values, such as -9999, 0 or 65535; None if there is none.

    The constant must fill a pixel in all bands; if there is none, each band is searched by itself.

    Args:
        values: finite values, `[bands, n]`.
    """
    if values.size == 0:
        return None
    values = values[:, :: max(1, values.shape[1] // 300_000)]
    bands = [] if values.dtype == np.uint8 else [values[i : i + 1] for i in range(len(values))]  # 8 bits just saturate
    return next((found for part in (values, *bands) if (found := _constant_of_all(part))), None)


def _constant_of_all(values: np.ndarray) -> Constant | None:
    found: list[Constant] = []
    for value in {values.min(), values.max()}:
        hole = (values == value).all(0)
        rest = values[:, ~hole].astype(np.float64)
        share = float(hole.mean())
        if share <= LEAST_SHARE or len(np.unique(rest)) <= LEVELS:
            continue
        low, high = np.percentile(rest, (1, 99))
        near = float((np.abs(rest - float(value)) <= MARGIN * (high - low)).all(0).sum()) / values.shape[1]
        if not low <= value <= high and near < share / 10:
            shown = float(str(value))  # shortest form in its dtype, such as -3.4028235e+38 for float32
            whole = shown == int(shown) and abs(shown) < 2**53
            found.append(Constant(int(shown) if whole else shown, share, float(low), float(high)))
    return max(found, key=lambda one: one.share, default=None)


def constants_text(found: Mapping[Path, Constant]) -> str:
    """Describe image files with such a constant for the user; empty if there are none."""
    if not found:
        return ""
    path, constant = min(found.items())
    others = f", and so in {counted(len(found) - 1, 'other file')}" if len(found) > 1 else ""
    return (
        f"{shown_path(path)}: {constant}{others}. The contrast is stretched over them. If they are holes, say so in "
        f"the file: rio edit-info --nodata {constant.value} FILE"
    )


def find_holes(raster: DatasetReader, bands: tuple[int, ...], nodata: float | None) -> tuple[Any, tuple[float, ...]]:
    """Return how pixels without data are detected: `hole` and `nodata` of a `RasterInfo`.

    Args:
        raster: the opened raster.
        bands: numbers of the bands read, from 1; their values are whole or real numbers.
        nodata: nodata value of all these bands; by default the values that the file declares.

    Raises:
        UserError: a band cannot hold the given value.
    """
    from rasterio.enums import ColorInterp, MaskFlags

    kinds = [np.dtype(raster.dtypes[band - 1]) for band in bands]
    if nodata is not None:
        held = [held_value(nodata, kind) for kind in kinds]
        for band, kind, value in zip(bands, kinds, held, strict=True):
            if value is None:
                raise UserError(f"--nodata {nodata:g}: band {band} of {raster.name} is {kind} and cannot hold it.")
        return "value", tuple(value for value in held if value is not None)
    if any(raster.colorinterp[band - 1] == ColorInterp.alpha for band in bands):
        return "none", ()  # alpha read as a band, such as near infrared that is declared wrongly
    flags = [raster.mask_flag_enums[band - 1] for band in bands]
    if all(MaskFlags.nodata in flag for flag in flags):
        held = [held_value(raster.nodatavals[band - 1], kind) for band, kind in zip(bands, kinds, strict=True)]
        values = tuple(value for value in held if value is not None)
        # a hole has nodata in all bands: if one band cannot hold it, there are no holes
        return ("value", values) if len(values) == len(bands) else ("none", ())
    return ("none" if all(MaskFlags.all_valid in flag for flag in flags) else "mask"), ()


def held_value(value: float | None, kind: np.dtype[Any]) -> float | None:
    """Convert a value to the type of a band (0.1 is rounded for float32); None if impossible, such as 256 as uint8."""
    if value is None:
        return None
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            found = float(kind.type(value))
        return None if np.isinf(found) and not np.isinf(value) else found
    limits = np.iinfo(kind)
    whole = bool(np.isfinite(value)) and value == int(value)
    return int(value) if whole and limits.min <= value <= limits.max else None
