"""Read windows of a raster into batches of network inputs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scenedistill.data.images.read import squash
from scenedistill.data.raster.read import RasterInfo, open_raster, read_pixels
from scenedistill.data.raster.sources import ANY
from scenedistill.inference.raster.progress import RasterProgress
from scenedistill.inference.raster.windows import Grid

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

#: Bytes of pixels that a reader reads at once; a larger window is read alone.
REGION_BYTES = 32 << 20

#: Rows, columns, and whether these cells have data, as a bool or a bool array.
Cells = list[tuple[slice, slice, Any]]


@dataclass(frozen=True)
class Job:
    """Description of the work on the windows of a raster; it can be pickled for other processes.

    Attributes:
        info: how pixels are read.
        grid: grid of windows and cells.
        folder: folder of the `RasterProgress`.
        classes: number of classes K.
        side: side of the network's input in pixels.
        bands: number of bands of the network.
        min_valid: minimum share of valid pixels in a window and in a cell, 0..1.
        batch_size: number of windows per forward pass.
        readers: number of reading threads.
    """

    info: RasterInfo
    grid: Grid
    folder: Path
    classes: int
    side: int
    bands: int
    min_valid: float
    batch_size: int
    readers: int

    @property
    def windows(self) -> int:
        """Number of windows; window (i, j) has the index i x columns + j."""
        return self.grid.shape[0] * self.grid.shape[1]

    def open_progress(self) -> RasterProgress:
        """Open the saved probabilities; `RasterProgress.begin` must have created them."""
        return RasterProgress(self.folder, self.windows, self.classes, self.grid.cells)


class Batch(NamedTuple):
    """Batch of n windows, of which m have enough data to be classified.

    Attributes:
        windows: indices of all windows, int64 `[n]`.
        used: positions in `windows` of those with enough data, int64 `[m]`.
        images: network inputs, uint8 `[m, side, side, bands]`.
        cells: cells assigned to the windows, and whether they have data.
    """

    windows: np.ndarray
    used: np.ndarray
    images: np.ndarray
    cells: Cells


def read_batch(job: Job, raster: DatasetReader, windows: np.ndarray) -> Batch:
    """Read windows, given by index, int64 `[n]`; resize those with enough data to the network's input size."""
    images = np.empty((len(windows), job.side, job.side, job.bands), np.uint8)
    used: list[int] = []
    cells: Cells = []
    position = 0
    for row, columns in _runs(job, windows):
        top = int(job.grid.start(0, row))
        left, right = int(job.grid.start(1, columns.start)), int(job.grid.start(1, columns.stop - 1))
        height, width = job.grid.window
        pixels, valid = read_pixels(raster, job.info, top, left, height, right - left + width)
        cells += _cells(job, row, columns, valid, top, left)
        for column in columns:
            start = int(job.grid.start(1, column)) - left
            part = pixels[:, start : start + width]
            known = None if valid is None else valid[:, start : start + width]
            if known is None or _enough(known, job.min_valid):
                images[len(used)] = squash(part if known is None else _filled(part, known), job.side)
                used.append(position)
            position += 1
    return Batch(windows, np.array(used, np.int64), images[: len(used)], cells)


def _runs(job: Job, windows: np.ndarray) -> Iterator[tuple[int, range]]:
    """Yield row and columns of adjacent windows that are read at once, at most `REGION_BYTES`."""
    height, width = job.grid.window
    most = REGION_BYTES // (height * job.bands)  # pixels across
    count = max(1, 1 + (most - width) // job.grid.step[1])
    rows, columns = np.divmod(windows, job.grid.shape[1])
    start = 0
    for end in range(1, len(windows) + 1):
        broken = end == len(windows) or rows[end] != rows[start] or columns[end] != columns[end - 1] + 1
        if broken or end - start == count:
            yield int(rows[start]), range(int(columns[start]), int(columns[end - 1]) + 1)
            start = end


def _cells(job: Job, row: int, columns: range, valid: np.ndarray | None, top: int, left: int) -> Cells:
    """Return which of the cells assigned to windows of a row have data."""
    grid = job.grid
    rows, last = grid.owned(0, row), grid.owned(1, columns[-1])
    across = range(columns[0], last.stop)
    whole = (slice(rows.start, rows.stop), slice(across.start, across.stop))
    if valid is None:
        return [(*whole, True)]
    found = np.zeros((len(rows), len(across)), bool)
    for i, cell_row in enumerate(rows):
        above, below = (int(grid.edge(0, number)) - top for number in (cell_row, cell_row + 1))
        for j, cell_column in enumerate(across):
            begin, end = (int(grid.edge(1, number)) - left for number in (cell_column, cell_column + 1))
            found[i, j] = _enough(valid[above:below, begin:end], job.min_valid)
    return [(*whole, found)]


def _enough(known: np.ndarray, share: float) -> bool:
    """Return whether any pixels, and at least this share of them, are valid."""
    found = float(known.mean())
    return found > 0 and found >= share


def _filled(pixels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill holes with the mean colour of the valid pixels, which affects the prediction less than black."""
    if known.all():
        return pixels
    filled = pixels.copy()
    filled[~known] = np.rint(pixels[known].mean(0)).astype(np.uint8)
    return filled


class Rasters:
    """Handles of a raster, one per thread, because GDAL handles are not thread-safe."""

    def __init__(self, info: RasterInfo) -> None:
        self.info = info
        self._local, self._all = threading.local(), list["DatasetReader"]()

    def own(self) -> DatasetReader:
        """Return the handle of the current thread, and open it at the first call."""
        if not hasattr(self._local, "raster"):
            self._local.raster = open_raster(self.info.path, [self.info.driver], [ANY])  # checked when mapping began
            self._all.append(self._local.raster)
        raster: DatasetReader = self._local.raster
        return raster

    def __enter__(self) -> Rasters:
        return self

    def __exit__(self, *_: object) -> None:
        for raster in self._all:
            raster.close()
