"""The grid of windows over a raster, and the grid of cells that their answers are averaged on."""

from __future__ import annotations

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

#: Largest side of a window in pixels: of more, a network that looks at a few hundred pixels sees nothing.
LARGEST_WINDOW = 8192


@dataclass(frozen=True)
class Grid:
    """Where the windows of a raster lie, and the cells.

    Window (i, j) has its place at pixel (i x step, j x step). The last window of a row or a column, whose place reaches
    over the edge, is moved inwards, so that it shows the network a whole scene; it speaks for its place all the same.
    The cells are steps wide: cell (r, c) begins where window (r, c) has its place. The last cells end at the edge.

    Attributes:
        size: height and width of the raster in pixels.
        window: height and width of a window in pixels, at most those of the raster.
        step: from one window to the next, down and across, in pixels; 1 to the window's.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    step: tuple[int, int]

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of windows: the last is the first that reaches the edge."""
        rows, columns = (
            -(-(size - window) // step) + 1
            for size, window, step in zip(self.size, self.window, self.step, strict=True)
        )
        return rows, columns

    @cached_property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        rows, columns = (-(-size // step) for size, step in zip(self.size, self.step, strict=True))
        return rows, columns

    def start(self, axis: int, number: np.ndarray | int) -> np.ndarray:
        """First pixel of windows of an axis (0 down, 1 across), int64, already moved inwards."""
        first: np.ndarray = np.minimum(np.asarray(number) * self.step[axis], self.size[axis] - self.window[axis])
        return first

    def edge(self, axis: int, number: np.ndarray | int) -> np.ndarray:
        """Pixel at which cells of an axis begin; of the number behind the last, where the raster ends."""
        first: np.ndarray = np.minimum(np.asarray(number) * self.step[axis], self.size[axis])
        return first

    def owned(self, axis: int, number: int) -> range:
        """Cells of an axis whose pixels are looked at with a window's: its own, for the last window also the rest."""
        last = number == self.shape[axis] - 1
        return range(number, self.cells[axis] if last else number + 1)

    def weights(self, axis: int) -> list[np.ndarray]:
        """How much windows count in the cells of an axis.

        Returns:
            For each offset o = 0, 1, ...: pixels, float64 `[cells]`, that the place of window c - o covers of cell c.
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
    """The grid for windows of a size with an overlap.

    Args:
        size: height and width of the raster in pixels.
        window: side of a window, in the unit of `ground`.
        overlap: share of a window, along each axis, that the next one shows again, 0 to below 1.
        ground: height and width of a pixel; 1 where the window is given in pixels.

    Raises:
        UserError: a window of no size or of an absurd one, or an overlap outside its range.
    """
    if not 0 <= overlap < 1:
        raise UserError(f"overlap {overlap:g}: expected 0 or more and less than 1, such as 0.5 for half a window.")
    wanted = [round(window / length) if window > 0 else 0 for length in ground]
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
    """Every row of cells in turn, from the rows of windows, of which only those needed are kept.

    The probabilities of a cell are the mean over the windows whose places cover it, each weighted by the area covered.

    Args:
        grid: of windows and cells.
        read_row: gives float32 `[columns, K]` of a row of windows; all zeros for a window that was left out.

    Yields:
        float32 `[cells across, K]`, all zeros where no window says anything.
    """
    down, across = grid.weights(0), grid.weights(1)
    kept: deque[np.ndarray] = deque(maxlen=len(down))  # the newest first
    for row in range(grid.cells[0]):
        if row < grid.shape[0]:
            kept.appendleft(_spread(read_row(row), across, grid.cells[1]))
        total = None
        # behind the last row of windows the newest of those kept is further away
        for age, known in enumerate(kept):
            offset = age + max(0, row - grid.shape[0] + 1)
            if offset < len(down):
                part = known * down[offset][row]
                total = part if total is None else total + part
        assert total is not None  # the last window reaches the edge
        weight = total[:, -1:]
        yield np.divide(total[:, :-1], weight, out=np.zeros_like(total[:, :-1]), where=weight > 0).astype(np.float32)


def _spread(windows: np.ndarray, weights: list[np.ndarray], cells: int) -> np.ndarray:
    """Weighted sums along a row, and the weights' sum as a last column: `[columns, K]` to float64 `[cells, K + 1]`."""
    known = (windows.sum(1, keepdims=True) > 0).astype(np.float64)
    values = np.concatenate([windows.astype(np.float64), known], axis=1)
    total = np.zeros((cells, values.shape[1]))
    for offset, weight in enumerate(weights):
        end = min(offset + len(values), cells)
        total[offset:end] += weight[offset:end, None] * values[: end - offset]
    return total


def ground_size(transform: Affine, crs: CRS | None, size: tuple[int, int]) -> tuple[float, float]:
    """Height and width of a pixel on the ground, in metres, at the middle of the raster.

    Taken on the WGS84 ellipsoid, so that it also holds for degrees and for the stretched metres of Web Mercator.

    Raises:
        UserError: there is no CRS that would say.
    """
    from pyproj import Geod
    from rasterio.warp import transform as reproject

    if crs is None:
        raise UserError("A window in metres needs a CRS, and this raster has none. Give the window in pixels.")
    # a hundred pixels, because the inverse of some projections is good to a millimetre only
    down, across = (min(100, length) for length in size)
    middle = (size[1] / 2, size[0] / 2)
    columns = middle[0] + np.array([-across / 2, across / 2, 0, 0])
    rows = middle[1] + np.array([0, 0, -down / 2, down / 2])
    x, y = to_map(transform, columns, rows)
    try:
        lon, lat = map(np.array, reproject(crs, "EPSG:4326", x, y))
    except Exception:  # PROJ's errors have no common base that is public
        lon = lat = np.full(4, np.nan)
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):  # of a building site, or of another planet
        if not crs.is_projected:
            raise UserError("How many metres a pixel has cannot be told from its CRS. Give the window in pixels.")
        unit = float(crs.linear_units_factor[1])
        metres = np.hypot(x[1::2] - x[::2], y[1::2] - y[::2]) * unit
    else:
        metres = Geod(ellps="WGS84").inv(lon[::2], lat[::2], lon[1::2], lat[1::2])[2]
    return float(metres[1]) / down, float(metres[0]) / across


def to_map(transform: Affine, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map coordinates x and y of places in pixels, where 0.5 is the middle of the first pixel."""
    x = transform.a * columns + transform.b * rows + transform.c
    y = transform.d * columns + transform.e * rows + transform.f
    return x, y
