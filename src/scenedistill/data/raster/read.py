"""Read the pixels of a raster as uint8: any bands, any depth, with a mask of holes, and GDAL's errors in one line."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scenedistill.core.disk import shown_path
from scenedistill.core.errors import UserError
from scenedistill.data.raster.bands import choose_bands, inversion_sum, read_palette, to_network_bands
from scenedistill.data.raster.holes import Constant, find_holes, find_suspected_nodata
from scenedistill.data.raster.sources import check_opened, safe_drivers
from scenedistill.data.raster.stretch import parse_stretch, percentiles, to_uint8

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

#: Bytes of pixels, before they become uint8, that one reader holds at a time.
SLAB_BYTES = 16 << 20
#: Bytes of the largest block. GDAL decodes a block as a whole: a strip of rows, a tile, or the entire image.
BLOCK_BYTES = 512 << 20
#: The percentiles of a stretch are taken from this many patches along each axis, of this many pixels a side.
PATCHES, PATCH = 10, 256


@dataclass(frozen=True)
class RasterInfo:
    """How the pixels of a raster become the network's input; plain values, so that other processes can read too.

    Attributes:
        path: path or name that GDAL accepts.
        driver: GDAL driver that opened it, by which further threads and processes open it.
        bands: numbers of the bands read, from 1.
        colour: `bands` unchanged, one band `repeated` three times, `grey` from the first three (ITU-R 601), colours
            from a `palette`, or `grey palette` for their grey.
        stretch: for each band read, the values that become 0 and 255, the larger one first where the smallest value is
            white; None for 8-bit values as they are.
        hole: how pixels without data are detected: by `value`, by the file's own `mask`, or there are `none`.
        nodata: for each band read, the nodata value; with `hole` by `value` only.
    """

    path: str
    driver: str
    bands: tuple[int, ...]
    colour: Literal["bands", "repeated", "grey", "palette", "grey palette"]
    stretch: tuple[tuple[float, float], ...] | None
    hole: Literal["none", "value", "mask"]
    nodata: tuple[float, ...] = ()


def raster_library() -> Any:
    """Import and return the module `rasterio`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import rasterio
    except ImportError as problem:
        raise UserError(
            "Rasters need rasterio and pyogrio. `pip install 'scenedistill[use]'` brings them."
        ) from problem
    return rasterio


def open_raster(path: str | Path, drivers: Sequence[str] = (), vrt_sources: Sequence[str] = ()) -> DatasetReader:
    """Open a raster for reading.

    Args:
        path: a file, or any name that GDAL accepts.
        drivers: GDAL drivers that may open it, such as `GTiff`; those of `safe_drivers` when empty.
        vrt_sources: further folders that the files of a VRT may be in, see `safe_drivers`; `ANY` allows everything.

    Raises:
        UserError: GDAL cannot open the raster, it names files that are not allowed, it has no bands, or blocks of more
            than `BLOCK_BYTES`.
    """
    rasterio = raster_library()
    opened: DatasetReader | None = None
    for driver in drivers or safe_drivers(path, vrt_sources):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                opened = rasterio.open(str(path), driver=driver, sharing=False)
            break
        except rasterio.errors.RasterioError as problem:
            reason = gdal_reason(problem, path)
        except UnicodeEncodeError:
            reason = "GDAL takes only names in UTF-8. Rename it."
    if opened is None:
        raise UserError(f"{shown_path(path)} cannot be opened as a raster: {reason}")
    try:
        check_opened(opened, path, vrt_sources)
        _check_bands(opened, path)
    except UserError:
        opened.close()
        raise
    return opened


def _check_bands(raster: DatasetReader, path: str | Path) -> None:
    """Raise a UserError for a raster without bands, or with blocks of more than `BLOCK_BYTES`."""
    if raster.count == 0:
        inside = [f"\n  {name}" for name in raster.subdatasets]
        raise UserError(
            f"{path} holds {'several rasters. Give one of these:' if inside else 'no bands.'}" + "".join(inside)
        )
    together = raster.count if raster.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL" else 1
    for (height, width), kind in zip(raster.block_shapes, raster.dtypes, strict=True):
        needed = height * width * together * np.dtype(kind).itemsize
        if needed > BLOCK_BYTES:
            raise UserError(
                f"{path} has blocks of {height:,} x {width:,} pixels, {needed / 2**20:,.0f} MiB, and each is read as a "
                f"whole; the limit is {BLOCK_BYTES >> 20} MiB. gdal_translate -co TILED=YES makes smaller ones."
            )


def gdal_reason(problem: BaseException, path: str | Path = "") -> str:
    """Return GDAL's first error message, in one line."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    text = " ".join((getattr(problem, "errmsg", "") or str(problem) or type(problem).__name__).split())
    return text.removeprefix(f"{path}: ").removeprefix(f"'{path}' ")[:200]


def raster_info(
    raster: DatasetReader,
    wanted: int,
    *,
    bands: Sequence[int] = (),
    stretch: str = "auto",
    each_band: bool = False,
    nodata: float | None = None,
    constants: list[Constant] | None = None,
) -> RasterInfo:
    """Decide how a raster is read.

    Args:
        raster: the opened raster.
        wanted: number of bands of the network.
        bands: numbers of the bands to take, from 1, in the network's order; when empty the first ones that are not
            alpha.
        stretch: `auto`, `none`, `low%,high%` or `low,high`; see `RasterConfig`.
        each_band: take the percentiles of each band by itself.
        nodata: nodata value; by default the values that the file declares.
        constants: list to which a constant that most likely means nodata is added; not looked for when None.

    Raises:
        UserError: missing bands, values that are neither whole nor real numbers, an invalid stretch, or a nodata value
            that the bands cannot hold.
    """
    chosen, colour = choose_bands(raster, wanted, bands)
    kinds = {np.dtype(raster.dtypes[band - 1]) for band in chosen}
    for kind in kinds:
        if kind.kind not in "uif":
            raise UserError(f"{raster.name} holds {kind} values, expected whole or real numbers.")
    info = RasterInfo(raster.name, raster.driver, chosen, colour, None, *find_holes(raster, chosen, nodata))
    limits = parse_stretch(stretch)
    plain = kinds == {np.dtype(np.uint8)}
    bits = min(int(raster.tags(band, ns="IMAGE_STRUCTURE").get("NBITS", 8 * kind.itemsize)) for band in chosen)
    white = inversion_sum(raster, min(kinds, key=str), bits) if "palette" not in colour else None
    if limits == "none" and not plain:
        found = ", ".join(sorted(map(str, kinds)))
        raise UserError(f"--stretch none is for 8-bit values; {raster.name} has {found}. Give low,high or 2%,98%.")
    values: np.ndarray | None = None
    if constants is not None and "palette" not in colour:
        with contextlib.suppress(UserError):  # an unreadable part is reported when it is read
            values = _patches_of(raster, info)
            constants += filter(None, [find_suspected_nodata(values)])
    if "palette" in colour:
        return info
    if limits == "none" or (limits == "auto" and plain):
        ends = (0.0, 2.0**bits - 1)
        if white is None and bits == 8:
            return info
        return replace(info, stretch=(ends if white is None else ends[::-1],) * len(chosen))
    if limits == "auto":
        limits = ("%", 2.0, 98.0)
    unit, low, high = limits
    if not unit:
        ends = (low, high) if white is None else (white - low, white - high)
        return replace(info, stretch=(ends,) * len(chosen))
    values = _patches_of(raster, info) if values is None else values
    whole = max(raster.shape) <= PATCHES * PATCH
    low_high = percentiles(raster.name, values, low, high, each_band, whole=whole)
    return replace(info, stretch=low_high if white is None else tuple(ends[::-1] for ends in low_high))


def read_pixels(
    raster: DatasetReader, info: RasterInfo, row: int, column: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a window of a raster.

    Args:
        raster: `info.path`, opened and used by this thread alone.
        info: result of `raster_info`.
        row, column: first row and first column of the window.
        height, width: size of the window in pixels; it lies within the raster.

    Returns:
        Pixels, uint8 `[height, width, C]` with the network's C bands; and a mask that is true where there is data, bool
        `[height, width]`, or None if that is everywhere.

    Raises:
        UserError: the file is damaged there.
    """
    palette = read_palette(raster, info.bands[0]) if "palette" in info.colour else None
    pixels: np.ndarray | None = None
    known: np.ndarray | None = None
    for start, values, valid in _slabs(raster, info, row, column, height, width):
        part = to_network_bands(to_uint8(values, info.stretch), info.colour, palette)
        if pixels is None:
            pixels = np.empty((height, width, part.shape[2]), np.uint8)
        pixels[start : start + len(part)] = part
        if valid is not None:
            known = np.ones((height, width), bool) if known is None else known
            known[start : start + len(part)] = valid
    assert pixels is not None
    return pixels, known


def _slabs(
    raster: DatasetReader, info: RasterInfo, row: int, column: int, height: int, width: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """Yield first row, values `[bands, rows, width]` and mask of a window, some rows at a time."""
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    kind = np.result_type(*(raster.dtypes[band - 1] for band in info.bands))
    bytes_of_row = width * kind.itemsize * len(info.bands)
    rows = max(1, min(height, SLAB_BYTES // bytes_of_row))
    for start in range(0, height, rows):
        window = Window(column, row + start, width, min(rows, height - start))
        try:
            values = _read(raster, info.bands, window)
            mask = raster.read_masks(info.bands[0], window=window) if info.hole == "mask" else None
        except RasterioError as problem:
            where = f"rows {row + start} to {row + height - 1}, columns {column} to {column + width - 1}"
            raise UserError(
                f"{info.path} cannot be read at {where}: {gdal_reason(problem)}.",
                advice="What was found so far is kept; the same command goes on from there.",
            ) from problem
        valid: np.ndarray | None = None
        if mask is not None:
            valid = mask != 0
        elif info.hole == "value":
            valid = np.zeros(values.shape[1:], bool)
            for band, value in zip(values, info.nodata, strict=True):
                valid |= band != np.asarray(value).astype(band.dtype)
        if values.dtype.kind == "f":
            finite = np.isfinite(values).all(0)
            valid = finite if valid is None else valid & finite
        yield start, values, None if valid is None or valid.all() else valid


def _read(raster: DatasetReader, bands: tuple[int, ...], window: Any) -> np.ndarray:
    """Read values `[bands, rows, width]`; bands of different types are promoted to a common type."""
    if len({raster.dtypes[band - 1] for band in bands}) == 1:
        values: np.ndarray = raster.read(list(bands), window=window)
        return values
    return np.stack([raster.read(band, window=window) for band in bands])


def _patches_of(raster: DatasetReader, info: RasterInfo) -> np.ndarray:
    """Return the values with data, `[bands, n]`, of patches spread evenly over the raster, or of all of a small one."""
    found = []
    for row, height in _patches(raster.height):
        for column, width in _patches(raster.width):
            for _, values, valid in _slabs(raster, info, row, column, height, width):
                found.append(values.reshape(len(values), -1) if valid is None else values[:, valid])
    return np.concatenate(found, axis=1)


def _patches(length: int) -> list[tuple[int, int]]:
    """Return first pixel and length of the patches along an axis, which do not overlap."""
    if length <= PATCHES * PATCH:
        return [(start, min(PATCH, length - start)) for start in range(0, length, PATCH)]
    return [(int(start), PATCH) for start in np.linspace(0, length - PATCH, PATCHES).round()]
