"""One map over many rasters: a VRT over their class rasters, and a GeoPackage with all their polygons."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scenedistill.core.disk import read_json, write_json
from scenedistill.core.errors import UserError
from scenedistill.inference.raster.config import RasterConfig, RasterResult
from scenedistill.inference.raster.write import CHUNK, add_style, write_layer

if TYPE_CHECKING:
    from rasterio import Affine

VRT, POLYGONS, RECORD = "merged.vrt", "merged.gpkg", "merged.json"
KIND = "merged raster maps"


def check_mergeable(out: Path, config: RasterConfig) -> None:
    """Check that there will be maps to merge, and that the merged ones replace nothing but merged maps.

    Raises:
        UserError: the settings leave neither class rasters nor GeoPackages, or the folder has a file of the same name
            that was not written here.
    """
    if not config.classes and config.vectors != "gpkg":
        raise UserError("--merge true merges GeoTIFFs and GeoPackages: give --classes true or --vectors gpkg.")
    for path in (out / VRT, out / POLYGONS):
        if path.exists() and read_json(out / RECORD).get("kind") != KIND:
            raise UserError(f"{path} is there already, and not from here. Choose another folder, or move it away.")


def merge_maps(results: Sequence[RasterResult], out: Path) -> list[Path]:
    """Merge the maps of several rasters, which must have one CRS and need not touch.

    Args:
        results: results of the rasters, made with the same network and settings.
        out: folder for merged.vrt, which refers to the class rasters, merged.gpkg, which holds all polygons, with a
            field `raster` that names the map each is from, and merged.json, which lists them.

    Returns:
        The files written; without class rasters there is no VRT, and without GeoPackages no GeoPackage.

    Raises:
        UserError: the maps have different CRSs, or a raster is rotated or has no place on a map.
    """
    _check_places(results)
    classes = list(results[0].cells)
    rasters = {result.classes: result for result in results if result.classes}
    polygons = [result.polygons for result in results if result.polygons and result.polygons.suffix == ".gpkg"]
    made = dict[Path, Path]()  # unfinished file: its name once finished
    if rasters:
        made[_vrt(rasters, out, classes)] = out / VRT
    if polygons:
        made[_geopackage(polygons, out, classes)] = out / POLYGONS
    cells = {name: sum(result.cells[name] for result in results) for name in classes}
    records = [os.path.relpath(result.record, out) for result in results]
    write_json(out / RECORD, {"kind": KIND, "maps": records, "cells": cells})
    for unfinished, path in made.items():
        unfinished.replace(path)
    return list(made.values())


def _vrt(rasters: Mapping[Path, RasterResult], out: Path, classes: Sequence[str]) -> Path:
    """Write a VRT of two bands over class rasters, with their colours, at the finest of their resolutions.

    The last cells of a raster may reach over its edge. There they are seen only where no other raster is.
    """
    import rasterio

    about: dict[Path, Any] = {}
    for path in rasters:
        with rasterio.open(path) as file:
            about[path] = {**file.profile, "bounds": file.bounds}
            bands, colours, scales = file.descriptions, file.colormap(1), file.scales
    first = about[next(iter(rasters))]
    bounds = np.array([one["bounds"] for one in about.values()])
    (left, bottom), (right, top) = bounds[:, :2].min(0), bounds[:, 2:].max(0)
    width, height = (min(abs(one["transform"][i]) for one in about.values()) for i in (0, 4))
    size = {"rasterXSize": round((right - left) / width), "rasterYSize": round((top - bottom) / height)}
    root = _element(None, "VRTDataset", **size)
    if first["crs"] is not None:
        _element(root, "SRS", first["crs"].to_wkt())
    _element(root, "GeoTransform", f"{left}, {width}, 0, {top}, 0, {-height}")
    for number in (1, 2):
        kind = {"uint8": "Byte", "uint16": "UInt16"}[first["dtype"]]
        band = _element(root, "VRTRasterBand", dataType=kind, band=number)
        _element(band, "Description", bands[number - 1])
        _element(band, "NoDataValue", first["nodata"])
        if number == 1:
            _element(band, "ColorInterp", "Palette")
            table, names = _element(band, "ColorTable"), _element(band, "CategoryNames")
            for entry, name in enumerate(classes):
                _element(table, "Entry", **{f"c{i}": value for i, value in enumerate(colours[entry], start=1)})
                _element(names, "Category", name)
        else:
            _element(band, "Scale", scales[1])
        whole = [(path, one["width"], one["height"]) for path, one in about.items()]
        inside = [(path, *_cells_inside(rasters[path], one["transform"])) for path, one in about.items()]
        for path, columns, rows in [*(source for source in whole if source not in inside), *inside]:
            bounds, cell = about[path]["bounds"], about[path]["transform"]
            x, y = (bounds.left - left) / width, (top - bounds.top) / height
            across, down = columns * cell.a / width, rows * -cell.e / height
            if (path, columns, rows) not in whole:  # ends where a neighbour, whose cells may lie otherwise, begins
                across, down = max(1, round(x + across) - round(x)), max(1, round(y + down) - round(y))
            source = _element(band, "ComplexSource")
            _element(source, "SourceFilename", Path(os.path.relpath(path, out)).as_posix(), relativeToVRT=1)
            _element(source, "SourceBand", number)
            _element(source, "SrcRect", xOff=0, yOff=0, xSize=columns, ySize=rows)
            _element(source, "DstRect", xOff=x, yOff=y, xSize=across, ySize=down)
            _element(source, "NODATA", first["nodata"])
    ET.indent(root)
    unfinished = out / f".{VRT}"
    ET.ElementTree(root).write(unfinished, encoding="utf-8")
    return unfinished


def _cells_inside(result: RasterResult, cell: Affine) -> tuple[float, float]:
    """Return how many columns and rows of cells a raster fills; the last one of each may be filled in part."""
    plan = read_json(result.record)["plan"]
    (rows, columns), transform = plan["size"], plan["transform"]
    return round(columns * transform[0] / cell.a, 6), round(rows * transform[4] / cell.e, 6)


def _element(parent: ET.Element | None, tag: str, text: object = None, **attributes: object) -> ET.Element:
    """Create an XML element, below another one if given."""
    values = {name: str(value) for name, value in attributes.items()}
    found = ET.Element(tag, values) if parent is None else ET.SubElement(parent, tag, values)
    found.text = None if text is None else str(text)
    return found


def _check_places(results: Sequence[RasterResult]) -> None:
    """Raise a UserError unless all maps have one CRS and a place on it, and class rasters have north at their top."""
    from rasterio.crs import CRS

    first: tuple[Path, CRS | None] | None = None
    for result in results:
        plan, path = read_json(result.record)["plan"], result.classes or result.polygons or result.record
        crs = plan["crs"] and CRS.from_string(plan["crs"])
        width, turn, x, tilt, height, y = plan["transform"]
        first = first or (path, crs)
        if crs != first[1]:
            raise UserError(f"{first[0]} and {path} have different CRSs: they cannot be merged into one map.")
        if result.classes and (turn or tilt or width < 0 or height > 0):
            raise UserError(f"{path} is not north up: it cannot be merged with other maps.")
        if crs is None and not (x or y) and len(results) > 1:
            raise UserError(f"{path} has no place on a map: it cannot be merged with other maps.")


def _geopackage(sources: Sequence[Path], out: Path, classes: Sequence[str]) -> Path:
    """Write a GeoPackage with the layers of several, chunk by chunk."""
    import pyogrio
    import pyogrio.raw

    unfinished = out / f".{POLYGONS}"
    unfinished.unlink(missing_ok=True)
    layers = [name for name in ("scenes", "regions") if name in pyogrio.list_layers(sources[0])[:, 0]]
    for layer in layers:
        begun = False
        for path in sources:
            name = os.path.relpath(path, out).removesuffix("_scenes.gpkg")
            count = pyogrio.read_info(path, layer=layer)["features"]
            for start in range(0, max(count, 1), CHUNK):
                about, _, shapes, fields = pyogrio.raw.read(path, layer=layer, skip_features=start, max_features=CHUNK)
                values = dict(zip(about["fields"], fields, strict=True))
                values["raster"] = np.full(len(shapes), name, object)
                write_layer(unfinished, layer, shapes, values, crs=about["crs"], append=begun)
                begun = True
        add_style(unfinished, layer, classes)
    return unfinished
