"""Settings and result of the classification of a raster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scenedistill.core.errors import UserError


@dataclass
class RasterConfig:
    """Settings of the classification of a raster and of its maps.

    Attributes:
        window: side of a window in `units`; by default the image size of the network (`stored_size`). Accuracy is best
            if it covers as much ground as a training scene.
        units: `pixels`, or `metres` on the ground at the middle of the raster.
        overlap: share of a window that the next one covers again, from 0 to below 1. The step between windows, which is
            also the side of a map cell, is window x (1 - overlap); the probabilities of a cell are the mean over the
            windows that cover it, weighted by area.
        bands: numbers of the bands to use, from 1, in the order of the network, such as 3,2,1; by default the first
            bands that are not alpha.
        stretch: conversion of values to 0..255: `auto` (8-bit values unchanged, others from the 2nd to the 98th
            percentile over the raster), `none`, percentiles such as `1%,99%`, or values such as `0,4000`.
        each_band: compute the percentiles for each band separately instead of over all bands.
        nodata: value that marks pixels without data if all bands have it; by default the value the file declares.
        min_valid: minimum share of valid pixels, 0..1: in a window for it to be classified, and in a cell for it to
            appear on the map.
        vectors: format of the polygons: `gpkg`, `geojson` (in WGS84) or `none`.
        regions: also write neighbouring cells of one class merged into regions, with their mean probabilities.
        classes: write a Cloud-Optimised GeoTIFF of the classes.
        batch_size: number of windows per forward pass.
        readers: number of reading threads; by default the number of cores, at most 4.
        processes: number of parallel processes, each with the network in its memory.
        drivers: GDAL drivers that may open the raster, such as [GTiff]; by default chosen by its content, from formats
            that contain their own pixels.
        vrt_sources: folders, besides its own, that the files of a VRT may be in; [any] allows every file and address.
        restart: discard the unfinished work of an earlier call instead of resuming it.
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
    """Files and statistics of the classification of a raster.

    Attributes:
        polygons: GeoPackage (layers `scenes` and `regions`) or GeoJSON of the cells; None if not written.
        regions: file of the regions: the same GeoPackage, or a separate GeoJSON; None if not written.
        classes: GeoTIFF of the classes; None if not written.
        record: JSON with the statistics below and the settings.
        windows: number of windows.
        left_out: number of windows with too little data.
        resumed: number of windows that an earlier call had classified.
        cells: number of cells of each class.
        megapixels: size of the raster in millions of pixels.
        seconds: duration of this call.
        reading: share of the duration spent waiting for pixels, 0..1.
        network: share of the duration spent in the network, 0..1.
        writing: share of the duration spent waiting for writing, 0..1.
        notes: warnings about the raster, such as a likely nodata value.
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
    """Check the settings that do not depend on the raster.

    Raises:
        UserError: a setting is out of range, or a wanted file would not be written.
    """
    for name, least in (("batch_size", 1), ("processes", 1), ("readers", 1)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: expected {least} or more.")
    if not 0 <= config.min_valid <= 1:
        raise UserError(f"--min_valid {config.min_valid:g}: expected 0 to 1.")
    if config.vectors == "none" and (config.regions or not config.classes):
        raise UserError("Nothing would be written: --vectors none needs --classes true and --regions false.")
    band_numbers(config.bands)


def band_numbers(bands: list[int] | str | None) -> list[int]:
    """Return band numbers from a list or a text such as `3,2,1`; an empty list for None.

    Raises:
        UserError: the text is anything else.
    """
    if not isinstance(bands, str):
        return bands or []
    try:
        return [int(number) for number in bands.split(",")]
    except ValueError:
        raise UserError(f"--bands {bands}: expected numbers from 1 with commas between, such as 3,2,1.") from None
