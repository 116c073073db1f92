"""Batches of windows of a raster, as a network takes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scenedistill.data.images.read import squash
from scenedistill.data.raster.read import Source, open_raster, read_pixels
from scenedistill.inference.raster.progress import RasterProgress
from scenedistill.inference.raster.windows import Grid

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

#: Pixels read at once by a reader, in bytes; a window larger than that is read alone.
REGION_BYTES = 32 << 20

Cells = list[tuple[slice, slice, Any]]


@dataclass(frozen=True)
class Job:
    """All that the work on windows needs, fit to be sent to other processes.

    Attributes:
        source: how pixels are read.
        grid: of windows and cells.
        folder: of the `RasterProgress`.
        classes: K.
        side: of the squares that the network takes, in pixels.
        bands: of the network.
        min_valid: share of a window's pixels, and of a cell's, that must hold data, 0..1.
        batch_size: windows of one pass.
        readers: threads that read.
    """

    source: Source
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
        """How many there are; window (i, j) has the number i x columns + j."""
        return self.grid.shape[0] * self.grid.shape[1]

    def open_progress(self) -> RasterProgress:
        """What is known so far, after `RasterProgress.begin`."""
        return RasterProgress(self.folder, self.windows, self.classes, self.grid.cells)


class Batch(NamedTuple):
    """Windows as the network takes them."""

    windows: np.ndarray  # all that were asked for, int64 [n]
    used: np.ndarray  # which of these the network is to see, int64 [m]; the others hold too little data
    images: np.ndarray  # uint8 [m, side, side, bands]
    cells: Cells  # for each piece: rows, columns, and whether they hold data


def read_batch(job: Job, raster: DatasetReader, windows: np.ndarray) -> Batch:
    """Read windows, leave out those with too little data, and squash the others to what the network takes."""
    images = np.empty((len(windows), job.side, job.side, job.bands), np.uint8)
    used: list[int] = []
    cells: Cells = []
    position = 0
    for row, columns in _runs(job, windows):
        top = int(job.grid.start(0, row))
        left, right = int(job.grid.start(1, columns.start)), int(job.grid.start(1, columns.stop - 1))
        height, width = job.grid.window
        pixels, valid = read_pixels(raster, job.source, top, left, height, right - left + width)
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
    """Row and columns of windows that lie side by side, no more than are to be read at once."""
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
    """Which of the cells that windows of a row look after hold data."""
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
    found = float(known.mean())
    return found > 0 and found >= share


def _filled(pixels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Holes in the mean colour of the rest, which the network takes less for something than black."""
    if known.all():
        return pixels
    filled = pixels.copy()
    filled[~known] = np.rint(pixels[known].mean(0)).astype(np.uint8)
    return filled


class Rasters:
    """The raster, opened once by each thread, because GDAL's handles are not to be shared."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._local, self._all = threading.local(), list["DatasetReader"]()

    def own(self) -> DatasetReader:
        """That of this thread."""
        if not hasattr(self._local, "raster"):
            self._local.raster = open_raster(self.source.path, self.source.drivers)
            self._all.append(self._local.raster)
        raster: DatasetReader = self._local.raster
        return raster

    def __enter__(self) -> Rasters:
        return self

    def __exit__(self, *_: object) -> None:
        for raster in self._all:
            raster.close()
