"""Contrast stretch of a raster: which values become black and white."""

from __future__ import annotations

import contextlib
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
        found = f"{name} has no data in the parts looked at for its range of values."
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
