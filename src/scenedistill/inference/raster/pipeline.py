"""Classify a raster of any size window by window, and write maps of the scene classes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from scenedistill import __version__
from scenedistill.core.disk import file_hash, shown_path
from scenedistill.core.errors import UserError
from scenedistill.core.machine import usable_cores
from scenedistill.core.terminal import counted
from scenedistill.data.raster.holes import Constant
from scenedistill.data.raster.read import open_raster, raster_info, raster_library
from scenedistill.inference.inputs import exists
from scenedistill.inference.raster.batches import REGION_BYTES, Job
from scenedistill.inference.raster.config import RasterConfig, RasterResult, band_numbers, check_config
from scenedistill.inference.raster.maps import (
    Names,
    as_user_errors,
    check_replaceable,
    find_finished,
    locked,
    publish,
    write_maps,
)
from scenedistill.inference.raster.progress import RasterProgress
from scenedistill.inference.raster.windows import Grid, ground_size, plan_grid, to_map
from scenedistill.inference.raster.work import GDAL_CACHE, Times, classify_all
from scenedistill.inference.raster.write import Place

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.io import DatasetReader

    from scenedistill.inference.model import SceneModel
    from scenedistill.inference.raster.cluster import RasterCluster

Say = Callable[[str], None]

#: Maximum number of polygons in a GeoJSON, which is written, and read by other programs, as a whole in memory.
MOST_GEOJSON = 500_000


def map_raster(
    model: SceneModel,
    raster: Path | str,
    out: Path | str,
    config: RasterConfig | None = None,
    *,
    console: Console | None = None,
    cluster: RasterCluster | None = None,
) -> RasterResult:
    """Classify a raster window by window and write maps of it.

    If an earlier call was interrupted, the same call resumes it; if it was finished, its result is returned.

    Args:
        model: network from `open_model`.
        raster: a file, or any name that GDAL can open; it may be far larger than memory.
        out: folder for the maps, which are named after the raster: NAME_scenes.gpkg, .tif and .json.
        config: settings; the defaults if None.
        console: console for messages and the progress bar; by default nothing is printed.
        cluster: classify the windows on a cluster instead of in this process; `config.processes` is then ignored.

    Returns:
        The files written, with statistics.

    Raises:
        UserError: the raster cannot be read, a setting does not fit it, or the maps cannot be written. If the disk is
            full, `core.disk.disk_full` returns True for the error.
        Damaged: a map of an earlier finished call has changed since.
    """
    config, console = config or RasterConfig(), console or Console(quiet=True)
    say: Say = partial(console.print, markup=False, highlight=False)  # a name may hold brackets
    check_config(config)
    started, waited = time.perf_counter(), Times()
    names, rasterio = Names(Path(out), str(raster)), raster_library()
    with as_user_errors(str(raster)), locked(names), rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
        with waited.of("reading"):
            job, place, plan, constants = _plan(model, str(raster), names, config, say)
        for constant in constants:
            say(f"{constant} {constant.advice}")
        if (known := find_finished(names, plan, config)) is not None:
            say(f"{names.record} is finished already.")
            return known
        check_replaceable(names, plan, config)
        progress = RasterProgress.begin(
            names.unfinished, plan, job.windows, job.classes, job.grid.cells, restart=config.restart
        )
        try:
            if resumed := progress.done:
                say(f"Going on: {resumed:,} of {counted(job.windows, 'window')} were classified before.")
            worked = classify_all(model, job, config.processes, console, cluster)
            with waited.of("writing"):
                tags = {"model": model.card.name, "TIFFTAG_SOFTWARE": f"scenedistill {__version__}"}
                cells, left_out = write_maps(model.card.classes, place, progress, names, config, tags)
        finally:
            progress.close()
        seconds, files = time.perf_counter() - started, names.files(config)
        result = RasterResult(
            polygons=files.get("polygons"),
            regions=files.get("regions"),
            classes=files.get("classes"),
            record=names.record,
            windows=job.windows,
            left_out=left_out,
            resumed=resumed,
            cells=cells,
            megapixels=job.grid.size[0] * job.grid.size[1] / 1e6,
            seconds=seconds,
            reading=(waited.reading + worked.reading) / seconds,
            network=worked.network / seconds,
            writing=(waited.writing + worked.writing) / seconds,
            notes=tuple(map(str, constants)),
        )
        publish(names, config, plan, result)
    return result


def _plan(
    model: SceneModel, raster: str, names: Names, config: RasterConfig, say: Say
) -> tuple[Job, Place, dict[str, Any], list[Constant]]:
    """Return the work, the position of the cells, all values that the result depends on, and suspected nodata."""
    constants = list[Constant]()
    with open_raster(raster, config.drivers or (), config.vrt_sources or ()) as opened:
        transform, crs = _georeference(opened, say)
        size = (opened.height, opened.width)
        ground = ground_size(transform, crs, size) if config.units == "metres" else (1.0, 1.0)
        side = model.card.stored_size or model.card.image_size
        if config.window is None and config.units == "metres":
            raise UserError("--units metres needs --window, such as --window 300.")
        grid = plan_grid(size, side if config.window is None else config.window, config.overlap, ground=ground)
        if config.vectors == "geojson":
            _check_geojson(raster, grid, crs)
        info = raster_info(
            opened,
            model.card.bands,
            bands=band_numbers(config.bands),
            stretch=config.stretch,
            each_band=config.each_band,
            nodata=config.nodata,
            constants=constants,
        )
        files = _watched(raster, opened, config.vrt_sources or ())
    window_bytes = grid.window[0] * grid.window[1] * model.card.bands
    readers = config.readers or min(4, usable_cores())
    readers = max(1, min(readers, 8 * REGION_BYTES // max(window_bytes, REGION_BYTES)))
    job = Job(
        info=info,
        grid=grid,
        folder=names.unfinished,
        classes=len(model.card.classes),
        side=side,
        bands=model.card.bands,
        min_valid=config.min_valid,
        batch_size=config.batch_size,
        readers=readers,
    )
    _describe(job, raster, crs, config, ground, say)
    file = Path(raster)
    plan = {
        "raster": shown_path(file.resolve()) if exists(file) and file.is_file() else raster,
        "files": files,
        "size": grid.size,
        "transform": list(transform)[:6],
        "crs": None if crs is None else crs.to_string(),
        "model": file_hash(model.source) if model.source.is_file() else model.source.name,
        "precision": str(getattr(model, "precision", "")),
        "class names": model.card.classes,
        "bands": info.bands,
        "colour": info.colour,
        "stretch": info.stretch,
        "nodata": [info.hole, *map(str, info.nodata)],
        "window": grid.window,
        "overlap": grid.step,
        "min_valid": config.min_valid,
    }
    return job, Place(grid, transform, crs), json.loads(json.dumps(plan)), constants


def _watched(raster: str, opened: DatasetReader, vrt_sources: Sequence[str]) -> dict[str, list[int]]:
    """Return size and modification time of every file that the raster is read from, including files named by VRTs.

    Overviews (.ovr) are not read, and the statistics that GIS programs write to an .aux.xml do not change the pixels.
    """
    found: dict[str, list[int]] = {}
    names = [raster, *opened.files]
    for name in names:  # the list grows meanwhile
        path = Path(name)
        beside = name != raster and name.endswith((".aux.xml", ".ovr"))
        if beside or not (exists(path) and path.is_file()) or shown_path(path.resolve()) in found:
            continue
        stat = path.stat()
        found[shown_path(path.resolve())] = [stat.st_size, stat.st_mtime_ns]
        if path.suffix.lower() == ".vrt" and name != raster:
            with suppress(UserError), open_raster(path, (), vrt_sources) as inner:
                names += inner.files
    return found


def _check_geojson(raster: str, grid: Grid, crs: CRS | None) -> None:
    """Raise a UserError if the polygons cannot be written as GeoJSON."""
    count = grid.cells[0] * grid.cells[1]
    if crs is None:
        raise UserError(f"{raster} has no CRS, and a GeoJSON is in WGS84. Give --vectors gpkg.")
    if count > MOST_GEOJSON:
        raise UserError(f"{count:,} polygons are too many for a GeoJSON ({MOST_GEOJSON:,}). Give --vectors gpkg.")


def _georeference(raster: DatasetReader, say: Say) -> tuple[Affine, CRS | None]:
    """Return transform and CRS; without a georeference, pixel coordinates with y upwards, as QGIS shows such rasters.

    Raises:
        UserError: the transform is not invertible or not finite.
    """
    if raster.transform.is_identity:
        points = "ground control points only; gdalwarp makes a map of it" if raster.gcps[0] else "no georeference"
        say(f"{raster.name} has {points}: the maps are in pixels, with y from 0 downwards to -{raster.height}.")
        return type(raster.transform)(1, 0, 0, 0, -1, 0), None
    rows, columns = (np.array(ends) for ends in ((0, 1, 0, raster.height), (0, 0, 1, raster.width)))
    with np.errstate(all="ignore"):
        x, y = to_map(raster.transform, columns, rows)
        turn = (x[2] - x[0]) * (y[1] - y[0]) - (x[1] - x[0]) * (y[2] - y[0])
    if not (np.isfinite([*x, *y, turn]).all() and turn):
        numbers = ", ".join(f"{number:g}" for number in list(raster.transform)[:6])
        found = f"{raster.name} has a georeference by which its pixels lie nowhere on a map: {numbers}."
        raise UserError(found, advice="gdal_edit.py -a_ullr gives it another; --raster false takes it as one image.")
    return raster.transform, raster.crs


def _describe(
    job: Job, raster: str, crs: CRS | None, config: RasterConfig, ground: tuple[float, float], say: Say
) -> None:
    """Print the size of the raster, the windows, the stretch and the bands."""
    grid = job.grid
    size, window, step = (f"{width:,} x {height:,}" for height, width in (grid.size, grid.window, grid.step))
    pixel = f" (a pixel is {ground[1]:.4g} x {ground[0]:.4g} m)" if config.units == "metres" else ""
    say(f"{raster}: {size} pixels, {'no CRS' if crs is None else crs.to_string()[:60]}{pixel}")
    say(f"{counted(job.windows, 'window')} of {window} pixels, one every {step}, which is a cell of the maps")
    if job.info.stretch is not None:
        ends = "; ".join(dict.fromkeys(f"{low:g} to {high:g}" for low, high in job.info.stretch))
        say(f"Values {ends} become 0 to 255")
    if job.info.bands != tuple(range(1, job.bands + 1)):
        say(f"Bands {', '.join(map(str, job.info.bands))}")
