"""How a raster is looked at, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scenedistill.core.errors import UserError


@dataclass
class RasterConfig:
    """How a raster is looked at, and what is written.

    Attributes:
        window: side of a window in `units`; the network's own (`stored_size`) when not given. Best is what the training
            scenes covered on the ground.
        units: `pixels`, or `metres` on the ground at the raster's middle.
        overlap: share of a window that the next one shows again, 0 to below 1. The step, and the side of a cell of the
            maps, is the window x (1 - overlap); a cell has the mean of all windows over it, weighted by area.
        bands: numbers of the bands the network is to see, in its order, such as 3,2,1; the first ones that are not
            alpha when not given.
        stretch: how values become 0..255: `auto` (8-bit as they are, others from their 2nd to 98th percentile over the
            raster), `none`, percentiles such as `1%,99%`, or values such as `0,4000`.
        each_band: take percentiles for each band by itself, not over all bands together.
        nodata: value that means no data where all bands have it; what the file says when not given.
        min_valid: share of a window's pixels that must hold data for the network to look at it, and of a cell's for it
            to be on the map, 0..1.
        vectors: polygons as `gpkg`, as `geojson` (in WGS84) or `none`.
        regions: also neighbouring cells of one class merged, with their mean probabilities.
        classes: a Cloud-Optimised GeoTIFF of the classes.
        batch_size: windows of one pass of the network.
        readers: threads that read; 4 at most, or as many as there are cores, when not given.
        processes: that work at once, each with the network in its memory.
        drivers: of GDAL that may open the raster, such as [GTiff]; when not given, the one of its content, of formats
            that hold their own pixels.
        vrt_sources: folders in which the files of a VRT may lie, beside its own folder; [any] lets it name every file
            and every address.
        restart: throw away the unfinished work of an earlier call instead of going on with it.
    """

    window: float | None = None
    units: Literal["pixels", "metres"] = "pixels"
    overlap: float = 0.0
    bands: list[int] | str | None = None
    stretch: str = "auto"
    each_band: bool = False
    nodata: float | None = None
    min_valid: float = 0.5
    vectors: Literal["gpkg", "geojson", "none"] = "gpkg"
    regions: bool = False
    classes: bool = True
    batch_size: int = 32
    readers: int | None = None
    processes: int = 1
    drivers: list[str] | None = None
    vrt_sources: list[str] | None = None
    restart: bool = False


@dataclass(frozen=True)
class RasterResult:
    """What came out.

    Attributes:
        polygons: GeoPackage (layers `scenes`, `regions`) or GeoJSON; None when not wanted.
        regions: where the regions are: the same GeoPackage, or a GeoJSON of their own; None when not wanted.
        classes: the GeoTIFF; None when not wanted.
        record: JSON with all below and how it was made.
        windows: of the grid.
        left_out: windows with too little data.
        resumed: windows that an earlier call had answered.
        cells: how many cells each class has.
        megapixels: of the raster, in millions.
        seconds: that this call took.
        reading: share of the seconds in which the network waited for pixels, 0..1.
        network: share of the seconds in the network.
        writing: share of the seconds in which only writing went on.
        notes: what about the raster deserves a second look.
    """

    polygons: Path | None
    regions: Path | None
    classes: Path | None
    record: Path
    windows: int
    left_out: int
    resumed: int
    cells: dict[str, int]
    megapixels: float
    seconds: float
    reading: float
    network: float
    writing: float
    notes: tuple[str, ...] = ()


def check_config(config: RasterConfig) -> None:
    """Refuse what cannot be.

    Raises:
        UserError: a setting outside its range, or nothing to be written.
    """
    for name, least in (("batch_size", 1), ("processes", 1), ("readers", 1)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: expected {least} or more.")
    if not 0 <= config.min_valid <= 1:
        raise UserError(f"--min_valid {config.min_valid:g}: expected 0 to 1.")
    if config.vectors == "none" and (config.regions or not config.classes):
        raise UserError("Nothing would be written: --vectors none leaves --classes true, and no regions.")


def band_numbers(bands: list[int] | str | None) -> list[int]:
    """The numbers in a list or a text such as `3,2,1`; none at all when not given.

    Raises:
        UserError: no such text.
    """
    if not isinstance(bands, str):
        return bands or []
    try:
        return [int(number) for number in bands.split(",")]
    except ValueError:
        raise UserError(f"--bands {bands}: expected numbers from 1 with commas between, such as 3,2,1.") from None
