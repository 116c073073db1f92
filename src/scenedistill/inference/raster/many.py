"""Map several rasters, one after the other or on a cluster, and merge their maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from scenedistill.core.errors import UserError
from scenedistill.core.terminal import counted
from scenedistill.inference.raster.config import RasterConfig, RasterResult
from scenedistill.inference.raster.maps import Names, as_user_errors
from scenedistill.inference.raster.merge import check_mergeable, merge_maps
from scenedistill.inference.raster.pipeline import map_raster

if TYPE_CHECKING:
    from scenedistill.inference.model import SceneModel
    from scenedistill.inference.raster.cluster import RasterCluster


def map_rasters(
    model: SceneModel,
    rasters: Sequence[str],
    out: Path,
    config: RasterConfig,
    *,
    console: Console | None = None,
    cluster: RasterCluster | None = None,
    merge: bool = False,
) -> list[RasterResult]:
    """Map rasters; of several, one that fails is reported and skipped.

    Args:
        model: network from `open_model`.
        rasters: files, or names that GDAL can open.
        out: folder for the maps. Rasters of one name get a folder each below it.
        config: settings; the defaults if None.
        console: console for messages and the progress bar; by default nothing is printed.
        cluster: workers. Of at least as many rasters as workers, each worker maps its own; fewer are mapped one after
            the other, each by all workers.
        merge: also write one map over all rasters, see `merge_maps`.

    Returns:
        The results of those that were mapped, in the order of `rasters`.

    Raises:
        UserError: the only raster cannot be mapped, or the maps cannot be merged.
    """
    console = console or Console(quiet=True)
    say = partial(console.print, markup=False, highlight=False)
    if merge:
        check_mergeable(out, config)
    folders = _folders(rasters, out)
    whole = cluster is not None and len(rasters) >= max(2, cluster.workers)
    found = _on_workers(cluster, rasters, folders, config, console) if whole and cluster else None
    results: dict[int, RasterResult] = {}
    for number, result in found or _in_turn(model, rasters, folders, config, console, cluster):
        if isinstance(result, UserError):
            if len(rasters) == 1:
                raise result
            say(f"skipped {rasters[number]}: {result}")
            continue
        results[number] = result
        _describe(rasters[number], result, console)
    mapped = [results[number] for number in sorted(results)]
    if merge and mapped:
        with as_user_errors(str(out)):
            merged = merge_maps(mapped, out)
        say(f"{counted(len(mapped), 'map')} merged: {', '.join(map(str, merged))}")
    return mapped


Found = Iterator[tuple[int, RasterResult | UserError]]


def _folders(rasters: Sequence[str], out: Path) -> list[Path]:
    """Return the output folder of each raster: maps are named after it, so that equal names get a folder each."""
    names = [Names(out, raster).stem for raster in rasters]
    counts, seen, found = Counter(names), Counter[str](), list[Path]()
    for raster, name in zip(rasters, names, strict=True):
        seen[name] += 1
        found.append(out if counts[name] == 1 else out / f"{Path(raster).stem}_{seen[name]}")
    return found


def _in_turn(
    model: SceneModel,
    rasters: Sequence[str],
    folders: Sequence[Path],
    config: RasterConfig,
    console: Console,
    cluster: RasterCluster | None,
) -> Found:
    """Map one raster after the other."""
    for number, (raster, folder) in enumerate(zip(rasters, folders, strict=True)):
        try:
            yield number, map_raster(model, raster, folder, config, console=console, cluster=cluster)
        except UserError as problem:
            yield number, problem


def _on_workers(
    cluster: RasterCluster, rasters: Sequence[str], folders: Sequence[Path], config: RasterConfig, console: Console
) -> Found:
    """Map each raster on a worker of its own."""
    for number, result, said in cluster.map_each(rasters, folders, config):
        if said:
            console.print(said.rstrip(), markup=False, highlight=False)
        if isinstance(result, RasterResult) and not result.record.exists():
            raise UserError(f"A worker has written {result.record}, which is not here: share the folder.")
        yield number, result


def _describe(raster: str, result: RasterResult, console: Console) -> None:
    """Print the files, the time and the windows left out."""
    say = partial(console.print, markup=False, highlight=False)
    files = [file for file in dict.fromkeys((result.polygons, result.regions, result.classes)) if file]
    size = f"{counted(result.windows, 'window')}, {result.megapixels:,.1f} megapixels in {result.seconds:,.0f} s"
    say(f"{raster}: {size}: {', '.join(map(str, files))}")
    if result.left_out:
        left_out = "all" if result.left_out == result.windows else f"{result.left_out:,}"
        empty = "" if any(result.cells.values()) else "; the maps are empty"
        say(f"{raster}: {left_out} of the windows hold too little data (--min_valid) and were left out{empty}.")
