"""How the pixels of a raster that hold no data are told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scenedistill.errors import UserError

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


def find_holes(raster: DatasetReader, bands: tuple[int, ...], nodata: float | None) -> tuple[Any, tuple[float, ...]]:
    """How pixels without data are told: `hole` and `nodata` of a `Source`.

    Args:
        raster: opened.
        bands: numbers of the bands read, from 1; of whole or real numbers.
        nodata: value that means no data in all of them; what the file says when not given.

    Raises:
        UserError: a band cannot hold the value given.
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
        return "none", ()  # asked for as a band, such as a near infrared that was declared wrongly
    flags = [raster.mask_flag_enums[band - 1] for band in bands]
    if all(MaskFlags.nodata in flag for flag in flags):
        held = [held_value(raster.nodatavals[band - 1], kind) for band, kind in zip(bands, kinds, strict=True)]
        values = tuple(value for value in held if value is not None)
        # a hole is one in all bands: where a band cannot have any, there are none
        return ("value", values) if len(values) == len(bands) else ("none", ())
    return ("none" if all(MaskFlags.all_valid in flag for flag in flags) else "mask"), ()


def held_value(value: float | None, kind: np.dtype[Any]) -> float | None:
    """A value as a band of a type holds it, 0.1 rounded for float32; None where it cannot, such as 256 as uint8."""
    if value is None:
        return None
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            found = float(kind.type(value))
        return None if np.isinf(found) and not np.isinf(value) else found
    limits = np.iinfo(kind)
    whole = bool(np.isfinite(value)) and value == int(value)
    return int(value) if whole and limits.min <= value <= limits.max else None
