"""Classification of an uploaded raster with `map_raster`, and the data with which the page draws the map."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from scenedistill.core.errors import UserError
from scenedistill.core.terminal import counted
from scenedistill.data.names import as_cell
from scenedistill.data.raster.read import open_raster, raster_info, read_pixels
from scenedistill.inference.model import SceneModel
from scenedistill.inference.raster.config import RasterConfig
from scenedistill.inference.raster.pipeline import map_raster
from scenedistill.inference.raster.style import class_colours
from scenedistill.inference.raster.windows import plan_grid, to_map
from scenedistill.serve.limits import ServeLimits

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.io import DatasetReader

#: GDAL driver that may open an upload, by its suffix. These drivers read no other files.
DRIVERS = {".tif": "GTiff", ".png": "PNG", ".jpg": "JPEG"}
PREVIEW = 1600  # pixels, longer side of the preview below the map
CELLS = 2048  # longer side of the grid sent to the page; larger grids are subsampled


@dataclass(frozen=True)
class Cells:
    """Classified cells of a raster.

    Attributes:
        labels: class index of each cell, int `[rows, columns]`; -1 without data.
        confidence: probability of this class, float `[rows, columns]`, 0..1.
        width: width of a cell in pixels of the raster.
        height: height of a cell in pixels of the raster.
        to_map: affine transform from cells to the map.
    """

    labels: np.ndarray
    confidence: np.ndarray
    width: float
    height: float
    to_map: Affine


def map_reason() -> str | None:
    """Return why maps are not available; None if they are."""
    missing = [name for name in ("rasterio", "pyogrio") if find_spec(name) is None]
    return f"Maps need {' and '.join(missing)}: `pip install 'scenedistill[use]'`." if missing else None


def map_answer(
    model: SceneModel,
    path: Path,
    name: str,
    limits: ServeLimits,
    seconds_of_window: float = 0.0,
    *,
    window: int | None,
    overlap: float,
) -> dict[str, Any]:
    """Classify a raster window by window and write the maps to its folder.

    Args:
        model: the network.
        path: the raster.
        name: name of the file given by the user.
        limits: limits on cells and seconds.
        seconds_of_window: seconds that the network needs per window; 0 if unknown.
        window: side of a window in pixels; by default the image size of the network.
        overlap: see `RasterConfig`.

    Returns:
        The results as JSON values for the page.

    Raises:
        UserError: the file is not a raster or cannot be read, or the map would have too many cells or take too long.
    """
    if path.suffix not in DRIVERS:
        raise UserError(f"{name} cannot be a map: give a TIFF, PNG or JPEG.")
    drivers = [DRIVERS[path.suffix]]
    config = RasterConfig(window=window, overlap=overlap, regions=True, drivers=drivers)
    with open_raster(path, drivers) as raster:
        size, crs = (raster.height, raster.width), raster.crs
        grid = plan_grid(size, window or model.stored_size, overlap)
        cells, seconds = math.prod(grid.cells), seconds_of_window * math.prod(grid.shape)
        if cells > limits.cells or seconds > limits.seconds:
            found = f"have {cells:,} cells; the limit of this page is {limits.cells:,}"
            if cells <= limits.cells:
                found = f"take {seconds:,.0f} seconds or more; the limit of this page is {limits.seconds:g}"
            raise UserError(f"The map of {name} would {found}. Choose a larger window or less overlap.")
        transform = None if raster.transform.is_identity else list(raster.transform)[:6]
        shown = preview(raster, model.card.bands)
    result = map_raster(model, path, path.parent, config)
    assert result.polygons and result.classes
    found_cells = read_cells(result.classes, transform)
    result.polygons.rename(path.with_name("classes.gpkg"))
    result.classes.rename(path.with_name("classes.tif"))
    write_tables(path.parent, name, found_cells, model.card.classes, None if crs is None else crs.to_string())
    step = max(1, -(-max(found_cells.labels.shape) // CELLS))
    labels, confidence = found_cells.labels[::step, ::step], found_cells.confidence[::step, ::step]
    notes = list(result.notes)
    if result.left_out:
        notes.append(f"{result.left_out:,} of {result.windows:,} windows hold too little data and are left out.")
    return {
        "kind": "map",
        "name": name,
        "width": size[1],
        "height": size[0],
        "preview": shown,
        "grid": {
            "rows": labels.shape[0],
            "columns": labels.shape[1],
            "cell_width": step * found_cells.width,
            "cell_height": step * found_cells.height,
            "classes": _base64((labels + 1).astype("<u2")),
            "confidence": _base64(np.rint(255 * confidence).astype(np.uint8)),
        },
        "legend": legend(found_cells.labels, model.card.classes),
        "transform": transform,
        "geographic": bool(crs is not None and crs.is_geographic),
        "facts": [
            "no coordinate system" if crs is None else crs.to_string()[:60],
            f"{counted(result.windows, 'window')}, {result.windows / result.seconds:,.0f} a second",
        ],
        "note": " ".join(notes) or None,
        "seconds": result.seconds,
        "files": ["classes.gpkg", "classes.tif", "result.csv", "result.json"],
    }


def read_cells(classes: Path, transform: Sequence[float] | None) -> Cells:
    """Read the cells from the GeoTIFF of the classes.

    Args:
        classes: GeoTIFF written by `ClassRaster`: band 1 is the class, band 2 the confidence.
        transform: the six coefficients of the raster's affine transform; None without a georeference, for which the map
            is in pixels with y upwards.
    """
    import rasterio
    from affine import Affine

    with rasterio.open(classes, driver="GTiff") as file:
        labels, level = file.read()
        missing = labels == file.nodata
        confidence = np.where(missing, 0, level * file.scales[1])
        whole = Affine(*transform) if transform else Affine.scale(1, -1)
        scale = ~whole * file.transform
        return Cells(np.where(missing, -1, labels.astype(np.int64)), confidence, scale.a, scale.e, file.transform)


def preview(raster: DatasetReader, bands: int) -> str:
    """Return the raster as a data URI, stretched as for the network, at most `PREVIEW` pixels a side."""
    info = raster_info(raster, bands)
    factor = max(1.0, max(raster.shape) / PREVIEW)
    columns = max(1, round(raster.width / factor))
    strips, top, height = [], 0, 1024
    while top < raster.height:
        rows = min(height, raster.height - top)
        pixels, known = read_pixels(raster, info, top, 0, rows, raster.width)
        alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
        if known is not None:
            alpha[~known] = 0
        colours = pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
        strip = Image.fromarray(np.concatenate([colours, alpha], axis=2))
        # first and last row of the strip in the preview, without gaps between strips
        first, last = round(top / factor), max(round((top + rows) / factor), round(top / factor) + 1)
        strips.append(np.asarray(strip.resize((columns, last - first), Image.Resampling.BOX)))
        top += rows
    memory = io.BytesIO()
    Image.fromarray(np.concatenate(strips)).save(memory, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(memory.getvalue()).decode()}"


def legend(labels: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the classes on the map, most frequent first, with colour and share of the cells with data."""
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    colours = class_colours(len(classes))
    return [
        {
            "number": int(number),
            "name": classes[number],
            "colour": f"#{bytes(colours[number]).hex()}",
            "share": float(counts[number] / counts.sum()),
        }
        for number in np.argsort(-counts, kind="stable")
        if counts[number]
    ]


def write_tables(folder: Path, name: str, cells: Cells, classes: Sequence[str], crs: str | None) -> None:
    """Write `result.csv` with a row for each cell with data, and `result.json` with the share of each class."""
    rows, columns = np.nonzero(cells.labels >= 0)
    x, y = to_map(cells.to_map, columns + 0.5, rows + 0.5)
    with (folder / "result.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "column", "x", "y", "class", "confidence"])
        found = zip(rows.tolist(), columns.tolist(), x.tolist(), y.tolist(), strict=True)
        for row, column, east, north in found:
            confidence = round(float(cells.confidence[row, column]), 4)
            writer.writerow([row, column, east, north, as_cell(classes[cells.labels[row, column]]), confidence])
    content = {
        "path": name,
        "crs": crs,
        "transform": list(cells.to_map)[:6],
        "rows": cells.labels.shape[0],
        "columns": cells.labels.shape[1],
        "classes": {one["name"]: one["share"] for one in legend(cells.labels, classes)},
    }
    (folder / "result.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
