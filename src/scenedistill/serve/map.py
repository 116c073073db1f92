"""What the page says of a raster: the maps of `map_raster`, and all that a canvas needs to show them."""

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
from scenedistill.data.raster.read import describe, open_raster, read_pixels
from scenedistill.inference.model import SceneModel
from scenedistill.inference.raster.config import RasterConfig
from scenedistill.inference.raster.pipeline import map_raster
from scenedistill.inference.raster.style import class_colours
from scenedistill.inference.raster.windows import plan_grid, to_map
from scenedistill.serve.limits import ServeLimits

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.io import DatasetReader

#: The one driver of GDAL that may open an upload, by its ending. None of them reads another file than it is given.
DRIVERS = {".tif": "GTiff", ".png": "PNG", ".jpg": "JPEG"}
PREVIEW = 1600  # pixels, longer side of the raster below the map
CELLS = 2048  # longer side of the grid that the page gets; of a larger one every second, third ... cell


@dataclass(frozen=True)
class Cells:
    """The answer as a grid.

    Attributes:
        labels: class of each cell, int `[rows, columns]`; -1 without data.
        confidence: its probability, float `[rows, columns]` in 0..1.
        width: of a cell in pixels of the raster.
        height: the same, downwards.
        to_map: from cells to the map.
    """

    labels: np.ndarray
    confidence: np.ndarray
    width: float
    height: float
    to_map: Affine


def map_reason() -> str | None:
    """Why no maps can be made here; None where they can."""
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
    """Classify a raster window by window; the maps go into its folder.

    Args:
        model: to classify with.
        path: the raster.
        name: what the user calls it.
        limits: of cells and of seconds.
        seconds_of_window: that the network takes for one; 0 where that is not known.
        window: side in pixels; the network's own when not given.
        overlap: see `RasterConfig`.

    Raises:
        UserError: the raster cannot be read, or is none; or the map would have too many cells, or take too long.
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
    places = read_cells(result.classes, transform)
    result.polygons.rename(path.with_name("classes.gpkg"))
    result.classes.rename(path.with_name("classes.tif"))
    write_tables(path.parent, name, places, model.card.classes, None if crs is None else crs.to_string())
    step = max(1, -(-max(places.labels.shape) // CELLS))
    labels, confidence = places.labels[::step, ::step], places.confidence[::step, ::step]
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
            "cell_width": step * places.width,
            "cell_height": step * places.height,
            "classes": _base64((labels + 1).astype("<u2")),
            "confidence": _base64(np.rint(255 * confidence).astype(np.uint8)),
        },
        "legend": legend(places.labels, model.card.classes),
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
    """The grid out of the GeoTIFF of the classes.

    Args:
        classes: band 1 the class, band 2 the confidence.
        transform: of the raster, six numbers; None when it has none: then the map is in pixels, upside down.
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
    """The raster as the network sees its values, in at most `PREVIEW` pixels a side; clear where there is no data."""
    source = describe(raster, bands)
    factor = max(1.0, max(raster.shape) / PREVIEW)
    columns = max(1, round(raster.width / factor))
    strips, top, height = [], 0, 1024
    while top < raster.height:
        rows = min(height, raster.height - top)
        pixels, known = read_pixels(raster, source, top, 0, rows, raster.width)
        alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
        if known is not None:
            alpha[~known] = 0
        colours = pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
        strip = Image.fromarray(np.concatenate([colours, alpha], axis=2))
        # a strip's rows in the small picture, so that the strips' edges meet
        first, last = round(top / factor), max(round((top + rows) / factor), round(top / factor) + 1)
        strips.append(np.asarray(strip.resize((columns, last - first), Image.Resampling.BOX)))
        top += rows
    memory = io.BytesIO()
    Image.fromarray(np.concatenate(strips)).save(memory, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(memory.getvalue()).decode()}"


def legend(labels: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The classes on the map, the most common first, with their colours and their share of the cells with data."""
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
    """`result.csv` with a line for each cell that has data, and `result.json` with each class's share."""
    rows, columns = np.nonzero(cells.labels >= 0)
    x, y = to_map(cells.to_map, columns + 0.5, rows + 0.5)
    with (folder / "result.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "column", "x", "y", "class", "confidence"])
        found = zip(rows.tolist(), columns.tolist(), x.tolist(), y.tolist(), strict=True)
        for row, column, east, north in found:
            sure = round(float(cells.confidence[row, column]), 4)
            writer.writerow([row, column, east, north, as_cell(classes[cells.labels[row, column]]), sure])
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
