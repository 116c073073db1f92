"""Write cells and regions as polygons, to a GeoPackage or a GeoJSON."""

from __future__ import annotations

import errno
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scenedistill.core.errors import UserError
from scenedistill.data.raster.read import gdal_reason
from scenedistill.inference.raster.style import class_colours, qgis_style
from scenedistill.inference.raster.windows import Grid, to_map

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS

#: Number of polygons written to a GeoPackage at a time.
CHUNK = 20_000
#: A disk with fewer free bytes is treated as full: a failed write may have freed this much again.
FULL = 32 << 20


@dataclass(frozen=True)
class Place:
    """Position of the cells on the map.

    Attributes:
        grid: grid of the cells.
        transform: affine transform from pixels of the raster to the map.
        crs: CRS of the map; None if unknown.
    """

    grid: Grid
    transform: Affine
    crs: CRS | None

    def corners(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the map coordinates of the first corners of cells given by row and column, float64 `[..., 2]`."""
        x, y = to_map(self.transform, self.grid.edge(1, columns), self.grid.edge(0, rows))
        return np.stack([x, y], axis=-1)

    def squares(self, row: int, columns: np.ndarray) -> list[bytes]:
        """Return cells of a row as polygons in well-known binary, counterclockwise."""
        import shapely

        down, across = (0, 1, 1, 0, 0), (0, 0, 1, 1, 0)
        if self.transform.determinant > 0:  # south is up: reverse the order
            down, across = down[::-1], across[::-1]
        rings = self.corners(row + np.array([down]), columns[:, None] + np.array([across]))
        return list(shapely.to_wkb(shapely.polygons(rings), byte_order=1))

    def polygon(self, rings: Sequence[Sequence[Sequence[float]]]) -> bytes:
        """Return a polygon, whose rings are given as (column, row) of cells, in well-known binary."""
        import shapely

        columns_rows = (np.rint(ring).astype(np.int64).T for ring in rings)
        outer, *holes = (self.corners(rows, columns) for columns, rows in columns_rows)
        return bytes(shapely.to_wkb(shapely.Polygon(outer, holes), byte_order=1))

    @property
    def cell_transform(self) -> Affine:
        """Affine transform from cells to the map: that of a raster with one pixel per cell."""
        one, (down, across) = self.transform, self.grid.step
        return type(one)(one.a * across, one.b * down, one.c, one.d * across, one.e * down, one.f)

    @property
    def wkt(self) -> str | None:
        """CRS as well-known text; None if unknown."""
        return None if self.crs is None else self.crs.to_wkt(version="WKT2_2019")


class Polygons:
    """Writer for a layer of polygons with class, confidence and all probabilities.

    Args:
        path: a .gpkg, to which the layer is added, or a .geojson, which `close` writes in WGS84 (RFC 7946).
        layer: name of the layer.
        place: position of the cells on the map.
        classes: names of the K classes.
        numbers: names of the M further integer fields.
    """

    def __init__(self, path: Path, layer: str, place: Place, classes: Sequence[str], numbers: Sequence[str]) -> None:
        self.path, self.layer, self.place, self.classes = path, layer, place, tuple(classes)
        self.fields = ["class", "confidence", *numbers, *probability_fields(classes)]
        self.geojson = path.suffix == ".geojson"
        self.begun = False
        self._waiting: list[tuple[list[bytes], np.ndarray, np.ndarray, np.ndarray]] = []
        self._count = 0

    def add(self, shapes: list[bytes], labels: np.ndarray, probabilities: np.ndarray, numbers: np.ndarray) -> None:
        """Add n polygons.

        Args:
            shapes: n polygons in well-known binary.
            labels: class indices, int64 `[n]`.
            probabilities: float `[n, K]`, 0..1.
            numbers: values of the further fields, int64 `[n, M]`.
        """
        self._waiting.append((shapes, labels, probabilities.astype(np.float32), numbers))
        self._count += len(shapes)
        if self._count >= CHUNK and not self.geojson:
            self._write()

    def close(self) -> None:
        """Write the remaining polygons and the style; the layer is created even if it has no polygons."""
        if self._waiting or not self.begun:
            self._write()
        if not self.geojson:
            add_style(self.path, self.layer, self.classes)

    def _write(self) -> None:
        names, count = np.array(self.classes, object), len(self.classes)
        labels = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in self._waiting)])
        probabilities = np.concatenate([np.zeros((0, count), np.float32), *(part[2] for part in self._waiting)])
        numbers = np.concatenate(
            [np.zeros((0, len(self.fields) - 2 - count), np.int64), *(part[3] for part in self._waiting)]
        )
        shapes = np.empty(len(labels), object)
        shapes[:] = [shape for part in self._waiting for shape in part[0]]
        write_layer(
            self.path,
            self.layer,
            shapes,
            dict(
                zip(
                    self.fields,
                    [names[labels], probabilities[np.arange(len(labels)), labels], *numbers.T, *probabilities.T],
                    strict=True,
                )
            ),
            crs=self.place.wkt,
            append=self.begun,
            options={"RFC7946": "YES"} if self.geojson else {},
        )
        self.begun, self._waiting, self._count = True, [], 0


def add_style(path: Path, layer: str, classes: Sequence[str]) -> None:
    """Add the colours of a layer's classes to a GeoPackage, in the table from which QGIS reads styles."""
    row = {
        "f_table_catalog": "",
        "f_table_schema": "",
        "f_table_name": layer,
        "f_geometry_column": "geom",
        "styleName": layer,
        "styleQML": qgis_style(classes, class_colours(len(classes))),
        "styleSLD": "",
        "useAsDefault": True,
        "description": "classes by colour",
        "owner": "",
        "ui": "",
        "update_time": np.datetime64("now", "ms"),
    }
    values = {name: np.array([value], object if isinstance(value, str) else None) for name, value in row.items()}
    write_layer(path, "layer_styles", None, values, append=_has_layer(path, "layer_styles"))


def probability_fields(classes: Sequence[str]) -> list[str]:
    """Return the names of the probability fields, `p_` and the class, made unique case-insensitively."""
    found: list[str] = []
    for name in classes:
        field, count = f"p_{name}", 1
        while field.casefold() in {other.casefold() for other in found}:
            count += 1
            field = f"p_{name}_{count}"
        found.append(field)
    return found


def _has_layer(path: Path, layer: str) -> bool:
    import pyogrio

    return layer in pyogrio.list_layers(path)[:, 0]


def write_layer(
    path: Path,
    layer: str,
    shapes: np.ndarray | None,
    values: Mapping[str, np.ndarray],
    *,
    crs: str | None = None,
    append: bool = False,
    options: Mapping[str, str] | None = None,
) -> None:
    """Write polygons, or rows without a shape, to a layer of a file.

    Args:
        path: a .gpkg or .geojson.
        layer: name of the layer.
        shapes: n polygons in well-known binary, object `[n]`; None for a table without shapes.
        values: n values of each field.
        crs: CRS as well-known text; None if unknown.
        append: add to the layer instead of creating it.
        options: options of GDAL for the layer.

    Raises:
        OSError: the disk is full (ENOSPC).
        UserError: the file cannot be written for another reason.
    """
    import pyogrio.raw

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'crs' was not provided")
            pyogrio.raw.write(
                str(path),
                shapes,
                list(values.values()),
                list(values),
                layer=layer,
                driver="GeoJSON" if path.suffix == ".geojson" else "GPKG",
                geometry_type=None if shapes is None else "Polygon",
                crs=crs,
                append=append,
                layer_options=dict(options or {}),
            )
    except RuntimeError as problem:  # the errors of pyogrio are of this kind
        raise write_error(path, problem) from problem


def write_error(path: Path, problem: Exception) -> Exception:
    """Return the exception for a failed write of GDAL: for a full disk, an `OSError` with ENOSPC."""
    told = re.search("no space left|disk is full|quota exceeded", str(problem), re.IGNORECASE)
    if told or shutil.disk_usage(path.parent).free < FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return UserError(f"{path.name} cannot be written: {gdal_reason(problem)}")


def regions(labels: np.ndarray) -> np.ndarray:
    """Number the regions of edge-connected cells of one class.

    Memory use is about 30 bytes per cell at most.

    Args:
        labels: class index of each cell, int `[rows, columns]`, fewer than 2^31 cells; negative without data.

    Returns:
        Region number of each cell, int32 `[rows, columns]`, from 0 in reading order; -1 without data.
    """
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    begins = np.ones(labels.shape, bool)  # start of a run of cells of one class in a row
    np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    run = np.cumsum(begins, dtype=np.int32).reshape(labels.shape) - np.int32(1)
    # two adjacent runs are linked once, in the first column that they share
    touch = (labels[1:] == labels[:-1]) & (begins[1:] | begins[:-1])
    ends, size = (run[:-1][touch], run[1:][touch]), int(run.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(size, size))
    region = connected_components(graph, directed=False)[1]  # region of each run, numbered in reading order
    kept = np.zeros(region.max(initial=-1) + 1, bool)
    kept[region[run[labels >= 0]]] = True
    number = np.where(kept, np.cumsum(kept, dtype=np.int32) - np.int32(1), np.int32(-1))
    numbers: np.ndarray = number[region][run]
    return numbers


def outlines(numbers: np.ndarray, place: Place) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the polygon, in well-known binary, of each region found by `regions`."""
    from rasterio.features import shapes

    found: Iterable[tuple[Any, float]] = shapes(numbers, mask=numbers >= 0, connectivity=4)
    for shape, number in found:
        yield round(number), place.polygon(shape["coordinates"])
