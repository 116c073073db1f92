"""Grid of windows over a raster, and grid of map cells on which their probabilities are averaged."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from scenedistill.core.errors import UserError

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS

#: Largest side of a window in pixels; a network resizes a window to a few hundred pixels.
LARGEST_WINDOW = 8192


@dataclass(frozen=True)
class Grid:
    """Positions of the windows and cells of a raster.

    The nominal position of window (i, j) is pixel (i x step, j x step). If the last window of a row or column extends
    beyond the edge, its pixels are read from a position moved inwards, but its probabilities count at the nominal
    position. Cells are as large as the step: cell (r, c) begins at the nominal position of window (r, c). The last
    cells end at the edge.

    Attributes:
        size: height and width of the raster in pixels.
        window: height and width of a window in pixels, at most those of the raster.
        step: distance between windows, down and across, in pixels; from 1 to the size of the window.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    step: tuple[int, int]

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns of windows; the last is the first one that reaches the edge."""
        rows, columns = (
            -(-(size - window) // step) + 1
            for size, window, step in zip(self.size, self.window, self.step, strict=True)
        )
        return rows, columns

    @cached_property
    def cells(self) -> tuple[int, int]:
        """Number of rows and columns of cells."""
        rows, columns = (-(-size // step) for size, step in zip(self.size, self.step, strict=True))
        return rows, columns

    def start(self, axis: int, number: np.ndarray | int) -> np.ndarray:
        """Return the first pixel of windows along an axis (0 down, 1 across), int64, moved inwards at the edge."""
        first: np.ndarray = np.minimum(np.asarray(number) * self.step[axis], self.size[axis] - self.window[axis])
        return first

    def edge(self, axis: int, number: np.ndarray | int) -> np.ndarray:
        """Return the first pixel of cells along an axis; for the index after the last cell, the size of the raster."""
        first: np.ndarray = np.minimum(np.asarray(number) * self.step[axis], self.size[axis])
        return first

    def owned(self, axis: int, number: int) -> range:
        """Return the cells along an axis assigned to a window: that of its index, for the last one all that remain."""
        last = number == self.shape[axis] - 1
        return range(number, self.cells[axis] if last else number + 1)

    def weights(self, axis: int) -> list[np.ndarray]:
        """Return the weights of windows in the cells along an axis.

        Returns:
            For each offset o = 0, 1, ...: number of pixels of cell c that window c - o covers, float64 `[cells]`.
        """
        cells, windows = self.cells[axis], self.shape[axis]
        number = np.arange(cells)
        width = self.edge(axis, number + 1) - self.edge(axis, number)
        found = []
        for offset in range(-(-self.window[axis] // self.step[axis])):
            covered = np.minimum(width, self.window[axis] - offset * self.step[axis])
            exists = (number >= offset) & (number - offset < windows)
            found.append(np.where(exists, covered, 0).astype(np.float64))
        return found


def plan_grid(
    size: tuple[int, int], window: float, overlap: float, *, ground: tuple[float, float] = (1.0, 1.0)
) -> Grid:
    """Return the grid for a window size and an overlap.

    Args:
        size: height and width of the raster in pixels.
        window: side of a window, in the unit of `ground`.
        overlap: share of a window that the next one covers again along each axis, from 0 to below 1.
        ground: height and width of a pixel; 1 if `window` is in pixels.

    Raises:
        UserError: the window is smaller than a pixel or larger than `LARGEST_WINDOW`, or the overlap is out of range.
    """
    if not 0 <= overlap < 1:
        raise UserError(f"overlap {overlap:g}: expected 0 or more and less than 1, such as 0.5 for half a window.")
    wanted = [round(window / length) if 0 < window < math.inf else 0 for length in ground]
    if min(wanted) < 1 or max(wanted) > LARGEST_WINDOW:
        found = f"window {window:g}"
        if ground != (1.0, 1.0):
            found += f" metres, which are {wanted[0]} x {wanted[1]} pixels here"
        raise UserError(f"{found}: expected 1 to {LARGEST_WINDOW} pixels.")
    down, across = (min(side, length) for side, length in zip(wanted, size, strict=True))
    return Grid(size, (down, across), (_step(wanted[0], overlap, down), _step(wanted[1], overlap, across)))


def _step(wanted: int, overlap: float, window: int) -> int:
    return min(max(1, round(wanted * (1 - overlap))), window)


def average(grid: Grid, read_row: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
    """Average the probabilities of windows over cells, row by row; only the rows of windows still needed are held.

    The probabilities of a cell are the mean over the windows that cover it, weighted by the covered area.

    Args:
        grid: grid of windows and cells.
        read_row: returns the probabilities of a row of windows, float32 `[columns, K]`; all zeros for a window that was
            left out.

    Yields:
        Probabilities of a row of cells, float32 `[cells across, K]`; all zeros if no window covers the cell.
    """
    down, across = grid.weights(0), grid.weights(1)
    kept: deque[np.ndarray] = deque(maxlen=len(down))  # last row first
    for row in range(grid.cells[0]):
        if row < grid.shape[0]:
            kept.appendleft(_spread(read_row(row), across, grid.cells[1]))
        total = None
        # below the last row of windows, the distance to the last row held grows
        for age, known in enumerate(kept):
            offset = age + max(0, row - grid.shape[0] + 1)
            if offset < len(down):
                part = known * down[offset][row]
                total = part if total is None else total + part
        assert total is not None  # the last window reaches the edge
        weight = total[:, -1:]
        yield np.divide(total[:, :-1], weight, out=np.zeros_like(total[:, :-1]), where=weight > 0).astype(np.float32)


def _spread(windows: np.ndarray, weights: list[np.ndarray], cells: int) -> np.ndarray:
    """Sum windows `[columns, K]` over cells, weighted: float64 `[cells, K + 1]`; last column: sum of the weights."""
    known = (windows.sum(1, keepdims=True) > 0).astype(np.float64)
    values = np.concatenate([windows.astype(np.float64), known], axis=1)
    total = np.zeros((cells, values.shape[1]))
    for offset, weight in enumerate(weights):
        end = min(offset + len(values), cells)
        total[offset:end] += weight[offset:end, None] * values[: end - offset]
    return total


def ground_size(transform: Affine, crs: CRS | None, size: tuple[int, int]) -> tuple[float, float]:
    """Return the height and width of a pixel on the ground, in metres, at the middle of the raster.

    They are measured on the WGS84 ellipsoid, so they are also correct for degrees and for Web Mercator, whose metres
    are not metres on the ground.

    Args:
        transform: affine transform from pixels to the map.
        crs: CRS of the map.
        size: height and width of the raster in pixels.

    Raises:
        UserError: there is no CRS, or the size cannot be derived from it, such as for degrees beyond a pole.
    """
    from pyproj import Geod
    from rasterio.warp import transform as reproject

    if crs is None:
        raise UserError("A window in metres needs a CRS, and this raster has none. Give the window in pixels.")
    # over a hundred pixels, because the inverse of some projections is accurate to a millimetre only
    down, across = (min(100, length) for length in size)
    middle = (size[1] / 2, size[0] / 2)
    columns = middle[0] + np.array([-across / 2, across / 2, 0, 0])
    rows = middle[1] + np.array([0, 0, -down / 2, down / 2])
    x, y = to_map(transform, columns, rows)
    try:
        lon, lat = map(np.array, reproject(crs, "EPSG:4326", x, y))
    except Exception:  # the errors of PROJ have no public base class
        lon = lat = np.full(4, np.nan)
    metres = Geod(ellps="WGS84").inv(lon[::2], lat[::2], lon[1::2], lat[1::2])[2]
    if crs.is_projected and not np.isfinite(metres).all():  # such as the CRS of another planet
        metres = np.hypot(x[1::2] - x[::2], y[1::2] - y[::2]) * float(crs.linear_units_factor[1])
    if not (np.isfinite(metres) & (metres > 0)).all():  # such as a local CRS, or metres declared as degrees
        raise UserError("The size of a pixel in metres cannot be derived from the CRS. Give the window in pixels.")
    return float(metres[1]) / down, float(metres[0]) / across


def to_map(transform: Affine, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the map coordinates x and y of positions in pixels, where 0.5 is the centre of the first pixel."""
    x = transform.a * columns + transform.b * rows + transform.c
    y = transform.d * columns + transform.e * rows + transform.f
    return x, y
