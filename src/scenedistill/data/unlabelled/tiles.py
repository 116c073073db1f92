"""Tiles of a raster, read in windows, as the scenes of a cache."""

from __future__ import annotations

import functools
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tifffile

from scenedistill.core.errors import UserError
from scenedistill.data.cache.files import Images, Stamp
from scenedistill.data.cache.write import file_stamp
from scenedistill.data.images.read import UnreadableImage, squash
from scenedistill.data.raster.read import RasterInfo, open_raster, raster_info, read_pixels

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

#: The reason why a tile without any data is left out.
NO_DATA = "no data"
#: A TIFF without a georeference is a raster if at least this many tiles can be cut from it.
MANY_TILES = 16
_GEO_TAGS = (33550, 33922, 34264, 34735)  # pixel scale, tie points, transformation, GeoKeys (OGC 19-008r4)


class TileReader:
    """The tiles of a raster on a grid from its upper left corner, each `tile` x `tile` pixels.

    Incomplete tiles at the right and the lower edge are dropped. A tile's path is "row,column" of its first pixel.

    Values deeper than 8 bits are stretched linearly from the 2nd to the 98th percentile of the whole raster (of patches
    spread over it), all bands together, so that tiles keep their relative brightness. Pixels without data are 0.

    Args:
        path: the raster, as GDAL takes it.
        tile: side of a tile in pixels of the raster.
        size: side that tiles are resized to.
        bands: bands of each tile.

    Raises:
        UserError: rasterio is missing, the raster cannot be opened, has too few bands or is smaller than a tile.
    """

    def __init__(self, path: Path, tile: int, size: int, bands: int) -> None:
        self.path, self.tile, self.size, self.bands = path, tile, size, bands
        with open_raster(path) as raster:
            height, width = raster.height, raster.width
            if (found := _colour_bands(raster)) < bands and not (found == 1 and bands == 3):
                raise UserError(
                    f"{path} has {found} band{'s' if found > 1 else ''} (without alpha), expected at least {bands}. "
                    "Give another raster or a smaller --data.bands."
                )
            stamps = [file_stamp(Path(name)) for name in raster.files or [str(path)]]  # a VRT's members are among them
        if min(height, width) < tile:
            raise UserError(
                f"{path} has {width} x {height} pixels, too few for a tile of {tile}. "
                "Give a smaller --data.unlabelled_tile."
            )
        self.paths = [f"{y},{x}" for y in range(0, height - tile + 1, tile) for x in range(0, width - tile + 1, tile)]
        self._stamp = sum(size for size, _ in stamps), max(time for _, time in stamps)
        self._lock, self._own = threading.Lock(), threading.local()

    def stamp(self, path: str) -> Stamp:
        """Return the total size and the latest mtime of the raster's files."""
        return self._stamp

    def read(self, path: str) -> Images:
        """Read a tile, uint8 `[size, size, bands]`.

        Raises:
            UnreadableImage: the tile holds no data, or the raster is damaged there.
        """
        row, column = map(int, path.split(","))
        with self._lock:
            source = self._source
        try:
            pixels, known = read_pixels(self._raster, source, row, column, self.tile, self.tile)
        except UserError as problem:
            raise UnreadableImage(self.path, str(problem).partition("\n")[0]) from problem
        if known is not None:
            if not known.any():
                raise UnreadableImage(self.path, NO_DATA)
            pixels[~known] = 0
        return squash(np.ascontiguousarray(pixels), self.size)

    @functools.cached_property
    def _source(self) -> RasterInfo:
        """How the raster's values are read; determined when the first tile is read."""
        with open_raster(self.path) as raster:
            try:
                return raster_info(raster, self.bands)
            except UserError as problem:
                advice = str(problem).replace("Give --stretch low,high.", "Convert it to 8 bits first.")
                raise UserError(advice) from problem

    @property
    def _raster(self) -> DatasetReader:
        """The raster, opened by this thread and closed with it: threads cannot share a GDAL handle."""
        if not hasattr(self._own, "raster"):
            self._own.raster = open_raster(self.path)
            weakref.finalize(threading.current_thread(), self._own.raster.close)
        raster: DatasetReader = self._own.raster
        return raster


def _colour_bands(raster: DatasetReader) -> int:
    from rasterio.enums import ColorInterp

    return sum(kind != ColorInterp.alpha for kind in raster.colorinterp)


def is_raster(path: Path, tile: int) -> bool:
    """Return whether a TIFF is to be cut into tiles, by its header: georeferenced and one fits, or `MANY_TILES` fit."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            width, height = page.imagewidth, page.imagelength
            placed = any(tag in page.tags for tag in _GEO_TAGS)
    except Exception:  # tifffile raises many for a damaged file; reading it as an image then gives the reason
        return False
    tiles = (width // tile) * (height // tile)
    return tiles >= (1 if placed else MANY_TILES)
