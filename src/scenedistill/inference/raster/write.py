"""Maps of the answers: polygons as GeoPackage or GeoJSON, and a Cloud-Optimised GeoTIFF of the classes."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
import tifffile

from scenedistill.core.errors import UserError
from scenedistill.data.raster.read import gdal_reason
from scenedistill.inference.raster.style import class_colours, qgis_style
from scenedistill.inference.raster.windows import Grid, to_map

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS

#: Polygons that go to a GeoPackage at a time.
CHUNK = 20_000
#: A disk with fewer bytes left is full: so many may be free again after a write that had no room.
FULL = 32 << 20


@dataclass(frozen=True)
class Place:
    """Where cells lie on the map.

    Attributes:
        grid: of the cells.
        transform: from pixels of the raster to the map.
        crs: of the map; None where not known.
    """

    grid: Grid
    transform: Affine
    crs: CRS | None

    def corners(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Map coordinates of corners of cells, which are counted as cells are: float64 `[..., 2]`."""
        x, y = to_map(self.transform, self.grid.edge(1, columns), self.grid.edge(0, rows))
        return np.stack([x, y], axis=-1)

    def squares(self, row: int, columns: np.ndarray) -> list[bytes]:
        """Cells of a row as polygons in well-known binary, anticlockwise."""
        import shapely

        down, across = (0, 1, 1, 0, 0), (0, 0, 1, 1, 0)
        if self.transform.determinant > 0:  # south is up: the other way round
            down, across = down[::-1], across[::-1]
        rings = self.corners(row + np.array([down]), columns[:, None] + np.array([across]))
        return list(shapely.to_wkb(shapely.polygons(rings), byte_order=1))

    def polygon(self, rings: Sequence[Sequence[Sequence[float]]]) -> bytes:
        """A polygon whose rings are given in cells, (column, row), as well-known binary."""
        import shapely

        columns_rows = (np.rint(ring).astype(np.int64).T for ring in rings)
        outer, *holes = (self.corners(rows, columns) for columns, rows in columns_rows)
        return bytes(shapely.to_wkb(shapely.Polygon(outer, holes), byte_order=1))

    @property
    def cell_transform(self) -> Affine:
        """From cells to the map: the transform of a raster with a pixel for each cell."""
        one, (down, across) = self.transform, self.grid.step
        return type(one)(one.a * across, one.b * down, one.c, one.d * across, one.e * down, one.f)

    @property
    def wkt(self) -> str | None:
        """The CRS as text."""
        return None if self.crs is None else self.crs.to_wkt(version="WKT2_2019")


class Polygons:
    """A layer of polygons with class, confidence and all probabilities.

    Args:
        path: a .gpkg, to which the layer is added, or a .geojson, which is written in WGS84 by `close` (RFC 7946).
        layer: its name.
        place: where the cells lie.
        classes: K names.
        numbers: names of the whole numbers that each polygon has besides.
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
            labels: class of each, int64 `[n]`.
            probabilities: float `[n, K]`.
            numbers: `[n, the numbers]`, int64.
        """
        self._waiting.append((shapes, labels, probabilities.astype(np.float32), numbers))
        self._count += len(shapes)
        if self._count >= CHUNK and not self.geojson:
            self._write()

    def close(self) -> None:
        """Write what is left, so that there is a layer even when nothing was added."""
        if self._waiting or not self.begun:
            self._write()
        if not self.geojson:
            self._add_style()

    def _write(self) -> None:
        names, count = np.array(self.classes, object), len(self.classes)
        labels = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in self._waiting)])
        probabilities = np.concatenate([np.zeros((0, count), np.float32), *(part[2] for part in self._waiting)])
        numbers = np.concatenate(
            [np.zeros((0, len(self.fields) - 2 - count), np.int64), *(part[3] for part in self._waiting)]
        )
        shapes = np.empty(len(labels), object)
        shapes[:] = [shape for part in self._waiting for shape in part[0]]
        _write_layer(
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

    def _add_style(self) -> None:
        """A row of the table in which QGIS looks for a layer's style."""
        row = {
            "f_table_catalog": "",
            "f_table_schema": "",
            "f_table_name": self.layer,
            "f_geometry_column": "geom",
            "styleName": self.layer,
            "styleQML": qgis_style(self.classes, class_colours(len(self.classes))),
            "styleSLD": "",
            "useAsDefault": True,
            "description": "classes by colour",
            "owner": "",
            "ui": "",
            "update_time": np.datetime64("now", "ms"),
        }
        values = {name: np.array([value], object if isinstance(value, str) else None) for name, value in row.items()}
        _write_layer(self.path, "layer_styles", None, values, append=_has_layer(self.path, "layer_styles"))


def probability_fields(classes: Sequence[str]) -> list[str]:
    """Names of the fields with the probabilities, `p_` and the class; no two are equal when case is not looked at."""
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


def _write_layer(
    path: Path,
    layer: str,
    shapes: np.ndarray | None,
    values: Mapping[str, np.ndarray],
    *,
    crs: str | None = None,
    append: bool = False,
    options: Mapping[str, str] | None = None,
) -> None:
    import pyogrio.errors
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
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, RuntimeError) as problem:
        raise _write_error(path, problem) from problem


def _write_error(path: Path, problem: Exception) -> Exception:
    """What to raise where GDAL could not write; of a full disk, whose errors have many names, what the system says."""
    told = re.search("no space left|disk is full|quota exceeded", str(problem), re.IGNORECASE)
    if told or shutil.disk_usage(path.parent).free < FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return UserError(f"{path.name} cannot be written: {gdal_reason(problem)}")


class ClassRaster:
    """A GeoTIFF with a pixel for each cell: band 1 the class, with colours and names, band 2 the confidence.

    The file is made cloud-optimised by `close`. Cells without data hold `nodata` in both bands. The confidence is kept
    as whole numbers with a scale that GDAL and QGIS apply.

    Args:
        path: of the file; a sidecar `.aux.xml` beside it holds the names, which a GeoTIFF cannot.
        scratch: folder for the unfinished file.
        place: where the cells lie.
        classes: K names.
        tags: what else the file says of itself.
    """

    def __init__(
        self, path: Path, scratch: Path, place: Place, classes: Sequence[str], tags: Mapping[str, str]
    ) -> None:
        import rasterio

        self.path, self.place, self.classes = path, place, classes
        small = len(classes) <= 250
        self.kind = "uint8" if small else "uint16"
        self.nodata = int(np.iinfo(self.kind).max)
        self.steps = 250 if small else 10_000  # of the confidence, from 0 to 1
        rows, columns = place.grid.cells
        self._draft = scratch / "classes.tif"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            self._file = rasterio.open(
                self._draft,
                "w",
                driver="GTiff",
                width=columns,
                height=rows,
                count=2,
                dtype=self.kind,
                nodata=self.nodata,
                crs=place.crs,
                transform=place.cell_transform,
                BIGTIFF="IF_SAFER",
            )
        self._file.write_colormap(1, dict(enumerate((*colour, 255) for colour in class_colours(len(classes)))))
        self._file.descriptions = ("class", "confidence")
        self._file.scales = (1.0, 1 / self.steps)
        self._file.update_tags(classes=json.dumps(list(classes), ensure_ascii=False), **tags)

    def add(self, row: int, labels: np.ndarray, confidence: np.ndarray, valid: np.ndarray) -> None:
        """Write a row of cells: class int64, confidence 0..1 and whether there is any, `[cells across]` each."""
        from rasterio.windows import Window

        level = np.rint(confidence * self.steps)
        bands = np.where(valid, np.stack([labels, level]), self.nodata).astype(self.kind)
        try:
            self._file.write(bands[:, None, :], window=Window(0, row, bands.shape[1], 1))
        except Exception as problem:  # not all of GDAL's errors have a base that is public
            raise _write_error(self.path, problem) from problem

    def close(self) -> None:
        """Make the file what it is to be."""
        import rasterio.shutil

        try:
            self._file.close()
            rasterio.shutil.copy(
                str(self._draft), str(self.path), driver="COG", COMPRESS="DEFLATE", OVERVIEW_RESAMPLING="NEAREST"
            )
        except Exception as problem:
            raise _write_error(self.path, problem) from problem
        self._draft.unlink()
        with tifffile.TiffFile(self.path, mode="r+") as file:
            for page in file.pages:  # GDAL declares the second band of a palette image as transparency; it is no such
                if isinstance(page, tifffile.TiffPage):
                    page.tags["ExtraSamples"].overwrite(0)
        names = "".join(f"<Category>{escape(name)}</Category>" for name in self.classes)
        band = f'<PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand>'
        Path(f"{self.path}.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>\n", encoding="utf-8")


def regions(labels: np.ndarray) -> np.ndarray:
    """Number the regions of cells of one class that share edges.

    Args:
        labels: class of each cell, int `[rows, columns]`; below 0 without data. Fewer than 2^31 cells,
            each of which takes about 30 bytes at most.

    Returns:
        int32 `[rows, columns]` from 0 in reading order; -1 without data.
    """
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    begins = np.ones(labels.shape, bool)  # a run of one class in a row
    np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    run = np.cumsum(begins, dtype=np.int32).reshape(labels.shape) - np.int32(1)
    # two runs touch along a stretch; of its columns the first, where one of them begins, is enough
    touch = (labels[1:] == labels[:-1]) & (begins[1:] | begins[:-1])
    ends, size = (run[:-1][touch], run[1:][touch]), int(run.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(size, size))
    region = connected_components(graph, directed=False)[1]  # of each run, numbered in reading order
    kept = np.zeros(region.max(initial=-1) + 1, bool)
    kept[region[run[labels >= 0]]] = True
    number = np.where(kept, np.cumsum(kept, dtype=np.int32) - np.int32(1), np.int32(-1))
    numbers: np.ndarray = number[region][run]
    return numbers


def outlines(numbers: np.ndarray, place: Place) -> Iterator[tuple[int, bytes]]:
    """Number and polygon of each region of `regions`."""
    from rasterio.features import shapes

    found: Iterable[tuple[Any, float]] = shapes(numbers, mask=numbers >= 0, connectivity=4)
    for shape, number in found:
        yield round(number), place.polygon(shape["coordinates"])
