"""Contrast stretch of a raster to uint8: choose the values that become black and white, and apply it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from scenedistill.core.errors import UserError


def parse_stretch(text: str) -> Any:
    """Parse the text of a stretch into `auto`, `none`, or ("%" or "", low, high).

    Raises:
        UserError: the text is anything else.
    """
    word = text.strip().lower()
    if word in ("auto", "none"):
        return word
    ends = [part.strip() for part in word.split(",")]
    unit = "%" if all(end.endswith("%") for end in ends) else ""
    with contextlib.suppress(ValueError):
        low, high = (float(end.removesuffix(unit)) for end in ends)
        if low < high and np.isfinite([low, high]).all() and (not unit or (low >= 0 and high <= 100)):
            return unit, low, high
    raise UserError(f"--stretch {text}: expected auto, none, percentiles such as 2%,98% or values such as 0,4000.")


def percentiles(
    name: str, bands: np.ndarray, low: float, high: float, each_band: bool, *, whole: bool
) -> tuple[tuple[float, float], ...]:
    """Return the values that become black and white in each band.

    Args:
        name: name of the raster.
        bands: finite values without nodata, `[bands, n]`.
        low: percentile that becomes black, 0..100.
        high: percentile that becomes white, 0..100.
        each_band: take the percentiles of each band by itself.
        whole: whether `bands` holds all values of the raster.

    Raises:
        UserError: `bands` is empty.
    """
    if not bands.size:
        if whole:
            raise UserError(f"{name} holds no data at all: every pixel is a hole.")
        found = f"{name} has no data in the parts that were read for its range of values."
        raise UserError(found, advice="Give --stretch low,high.")
    ends = []
    for values in bands if each_band else [bands.ravel()]:
        first, last = (float(end) for end in np.percentile(values, (low, high)))
        if first == last:
            first, last = float(values.min()), float(values.max())
        if first == last:  # one flat value becomes mid-grey
            first, last = first - 0.5, last + 0.5
        ends.append((first, last))
    return tuple(ends if each_band else ends * len(bands))


def to_uint8(values: np.ndarray, stretch: Sequence[tuple[float, float]] | None) -> np.ndarray:
    """Stretch `[bands, H, W]` to uint8 with the same arithmetic as `data.images.read.read_image`.

    Args:
        values: values of the bands, `[bands, H, W]`.
        stretch: for each band, the values that become 0 and 255; None for uint8 values, which are returned unchanged.
    """
    if stretch is None:
        return values
    found = np.empty(values.shape, np.uint8)
    for band, (low, high), out in zip(values, stretch, found, strict=True):
        if band.dtype.kind in "ui" and band.dtype.itemsize <= 2:
            unsigned = band.view(f"u{band.dtype.itemsize}")
            np.take(_table(band.dtype.str, low, high), unsigned, out=out, mode="clip")  # never clips, avoids a copy
        else:
            out[:] = _scaled(band, low, high)
    return found


@lru_cache(maxsize=64)
def _table(kind: str, low: float, high: float) -> np.ndarray:
    """Return the stretched values of all values of an 8- or 16-bit type, indexed by their bits."""
    dtype = np.dtype(kind)
    return _scaled(np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}").view(dtype), low, high)


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    exact = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    found: np.ndarray = np.rint(np.clip((exact - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return found
