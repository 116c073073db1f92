"""Map files of a raster: write them from the probabilities, publish them atomically, and reuse finished ones."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from scenedistill import __version__
from scenedistill.core.disk import disk_full, file_damage, file_hash, shown_path, write_json
from scenedistill.core.errors import Damaged, UserError
from scenedistill.data.raster.read import gdal_reason
from scenedistill.inference.inputs import exists
from scenedistill.inference.raster.class_raster import ClassRaster
from scenedistill.inference.raster.config import RasterConfig, RasterResult
from scenedistill.inference.raster.progress import RasterProgress, read_plan
from scenedistill.inference.raster.style import class_colours
from scenedistill.inference.raster.windows import average
from scenedistill.inference.raster.write import CHUNK, Place, Polygons, outlines, regions

FILES = ("polygons", "regions", "classes")  # fields of `RasterResult`
RECORD = "record.json"  # name before publication


class Names:
    """Names of the map files of one raster.

    Args:
        out: output folder.
        raster: path or name of the raster as given.
    """

    def __init__(self, out: Path, raster: str) -> None:
        self.out = Path(out)
        stem = Path(raster).stem if exists(raster) else raster
        self.stem = (re.sub(r"[^\w.-]+", "_", stem).strip("._")[-100:] or "raster") + "_scenes"
        self.record = self.out / f"{self.stem}.json"
        self.unfinished = self.out / f"{self.stem}.part"
        self.made = self.unfinished / "maps"
        self.done = self.out / f".{self.stem}.done"  # name of `unfinished` once all maps are published

    def files(self, config: RasterConfig) -> dict[str, Path]:
        """Return the files to write, by their field in `RasterResult`."""
        found = {}
        if config.vectors != "none":
            found["polygons"] = self.out / f"{self.stem}.{config.vectors}"
            if config.regions:
                merged = self.stem.removesuffix("_scenes") + "_regions.geojson"
                found["regions"] = found["polygons"] if config.vectors == "gpkg" else self.out / merged
        if config.classes:
            found["classes"] = self.out / f"{self.stem}.tif"
        return found


@contextmanager
def locked(names: Names) -> Iterator[None]:
    """Lock the maps of a raster; the system releases the lock if the process dies.

    Raises:
        UserError: another process holds the lock, or the folder cannot be created.
    """
    if shown_path(names.out) != str(names.out):
        raise UserError(f"{shown_path(names.out)}: GDAL takes only names in UTF-8. Choose another folder.")
    try:
        names.out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"{names.out} cannot be written: {problem.strerror}. Choose another folder.") from problem
    lock = filelock.FileLock(names.out / f".{names.stem}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"Another process is at work on {names.record}. Wait for it, or choose another folder."
        ) from None
    try:
        _clear(names)
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def write_maps(
    classes: tuple[str, ...],
    place: Place,
    progress: RasterProgress,
    names: Names,
    config: RasterConfig,
    tags: Mapping[str, str],
) -> tuple[dict[str, int], int]:
    """Write all maps into `names.made`, from which `publish` moves them.

    Args:
        classes: names of the K classes.
        place: position of the cells on the map.
        progress: probabilities, with all windows done.
        names: names of the files.
        config: which maps to write.
        tags: metadata for the GeoTIFF.

    Returns:
        The number of cells of each class, and the number of windows that were left out.
    """
    shutil.rmtree(names.made, ignore_errors=True)
    names.made.mkdir()
    wanted, grid = names.files(config), place.grid
    made = {name: names.made / path.name for name, path in wanted.items()}
    polygons = Polygons(made["polygons"], "scenes", place, classes, ("row", "column")) if "polygons" in made else None
    raster = ClassRaster(made["classes"], names.made, place, classes, tags) if "classes" in made else None
    labels, left_out, across = np.full(grid.cells, -1, np.int32), 0, np.arange(grid.cells[1])
    counts = np.zeros(len(classes), np.int64)

    def read_row(row: int) -> np.ndarray:
        nonlocal left_out
        found = progress.probabilities(row * grid.shape[1], grid.shape[1])
        left_out += int((~found.any(1)).sum())
        return found

    for row, probabilities in enumerate(average(grid, read_row)):
        best, valid = probabilities.argmax(1), probabilities.any(1) & progress.holds_data(row)
        labels[row] = np.where(valid, best, -1)
        counts += np.bincount(best[valid], minlength=len(classes))
        if raster is not None:
            raster.add(row, best, probabilities.max(1), valid)
        if polygons is not None and valid.any():
            numbers = np.stack([np.full(valid.sum(), row), across[valid]], axis=1)
            polygons.add(place.squares(row, across[valid]), best[valid], probabilities[valid], numbers)
    if raster is not None:
        raster.close()
    if polygons is not None:
        polygons.close()
    if "regions" in made:
        merged = Polygons(made["regions"], "regions", place, classes, ("cells",))
        _add_regions(merged, labels, place, progress)
        merged.close()
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}, left_out


def _add_regions(merged: Polygons, labels: np.ndarray, place: Place, progress: RasterProgress) -> None:
    """Add regions of neighbouring cells of one class as polygons with their mean probabilities."""
    numbers, columns = regions(labels), place.grid.shape[1]
    count = int(numbers.max(initial=-1)) + 1
    sums = np.zeros((count, len(merged.classes)), np.float32)
    cells, named = np.zeros(count, np.int32), np.zeros(count, np.int32)
    rows = average(place.grid, lambda row: progress.probabilities(row * columns, columns))
    for row, probabilities in enumerate(rows):
        valid = numbers[row] >= 0
        which, turn = np.unique(numbers[row][valid], return_inverse=True)
        part = np.zeros((len(which), len(merged.classes)))  # sums per row first, to avoid rounding errors
        np.add.at(part, turn, probabilities[valid])
        sums[which] += part
        cells[which] += np.bincount(turn, minlength=len(which)).astype(np.int32)
        named[numbers[row][valid]] = labels[row][valid]
    found = outlines(numbers, place)
    while chunk := list(islice(found, CHUNK)):
        which = np.array([number for number, _ in chunk])
        means = sums[which] / cells[which, None]
        merged.add([shape for _, shape in chunk], named[which], means, cells[which, None])


def find_finished(names: Names, plan: Mapping[str, Any], config: RasterConfig) -> RasterResult | None:
    """Return the result of an earlier call with the same plan, if all its files exist; otherwise None.

    Raises:
        Damaged: a file has changed since it was written. It may have been edited, so it is not replaced.
    """
    record = _read_record(names)
    wanted = names.files(config)
    if record is None or record["plan"] != plan or record["files"] != {name: wanted[name].name for name in wanted}:
        return None
    if not all(path.exists() for path in wanted.values()):
        return None
    for name, checksum in record.get("checksums", {}).items():
        if problem := file_damage(names.record.with_name(name), checksum):
            raise Damaged(
                f"{names.record.parent}: {problem}, or was edited since. Remove it, and the same command makes the "
                "maps again; or give another --out."
            )
    if read_plan(names.unfinished) in (plan, None):  # without a plan it is useless, with another plan it is other work
        shutil.rmtree(names.unfinished, ignore_errors=True)
    files: dict[str, Any] = {name: wanted.get(name) for name in FILES}
    result = {**record["result"], "notes": tuple(record["result"].get("notes", ()))}
    return RasterResult(**files, record=names.record, **result)


def check_replaceable(names: Names, plan: Mapping[str, Any], config: RasterConfig) -> None:
    """Check that the output files are absent, or are maps of the same raster.

    Raises:
        UserError: a file was not written by scenedistill, or there are maps of or unfinished work on another raster.
    """
    begun = read_plan(names.unfinished)
    if begun is not None and begun.get("raster") != plan["raster"]:
        raise UserError(
            f"{names.unfinished} is unfinished work on another raster, {begun.get('raster')}. Choose another folder for"
            " this one, or remove that."
        )
    record = _read_record(names)
    if record is not None and record["plan"].get("raster") != plan["raster"]:
        raise UserError(
            f"{names.record} is of another raster, {record['plan'].get('raster')}. Choose another folder for this one."
        )
    for path in names.files(config).values():
        if path.exists() and record is None and not names.unfinished.exists():
            raise UserError(f"{path} is there already, and not from here. Choose another folder, or move it away.")


def publish(names: Names, config: RasterConfig, plan: Mapping[str, Any], result: RasterResult) -> None:
    """Move the maps to the output folder, then the record, and delete the intermediate files.

    The old record is deleted before the maps are replaced, so that after a kill no record describes other maps. The
    folder of intermediate files is renamed before it is deleted, so that a kill never leaves a part of it that looks
    like unfinished work.
    """
    wanted, classes = names.files(config), plan["class names"]
    content = {
        "kind": "raster map",
        "scenedistill": __version__,
        "plan": dict(plan),
        "files": {name: path.name for name, path in wanted.items()},
        "checksums": {path.name: file_hash(names.made / path.name) for path in dict.fromkeys(wanted.values())},
        "colours": dict(
            zip(classes, [f"#{bytes(colour).hex()}" for colour in class_colours(len(classes))], strict=True)
        ),
        "result": {name: value for name, value in asdict(result).items() if name not in (*FILES, "record")},
    }
    write_json(names.made / RECORD, content)
    names.record.unlink(missing_ok=True)
    for path in dict.fromkeys(wanted.values()):
        for made in (names.made / f"{path.name}.aux.xml", names.made / path.name):
            if made.exists():
                made.replace(path.with_name(made.name))
    names.unfinished.rename(names.done)
    _clear(names)


def _clear(names: Names) -> None:
    """Do the last step of `publish`: move the record and delete the folder, also after an earlier call was killed."""
    record = names.done / names.made.name / RECORD
    if record.exists():
        record.replace(names.record)
    shutil.rmtree(names.done, ignore_errors=True)


@contextmanager
def as_user_errors(raster: str) -> Iterator[None]:
    """Convert errors of the system and of GDAL to `UserError`."""
    from rasterio.errors import CRSError, RasterioError

    try:
        yield
    except (OSError, RasterioError, CRSError) as problem:
        if disk_full(problem):
            advice = "Make room and give the same command: it goes on from where it was."
            raise UserError("the disk is full.", advice=advice) from problem
        named = isinstance(problem, OSError) and problem.filename
        reason = f"{problem.strerror}: {problem.filename}" if named else gdal_reason(problem)
        raise UserError(f"{raster} cannot be mapped: {reason}") from problem


def _read_record(names: Names) -> dict[str, Any] | None:
    """Return the record of published maps; None if there is no valid one."""
    try:
        content = json.loads(names.record.read_text(encoding="utf-8"))
        return content if content["kind"] == "raster map" and {"plan", "files", "result"} <= set(content) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
