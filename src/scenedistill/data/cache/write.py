"""Write a decoded cache atomically, one process at a time; only new and changed scenes are decoded."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from scenedistill.core.disk import clear_parts, read_json
from scenedistill.core.errors import UserError
from scenedistill.core.locks import held
from scenedistill.core.terminal import plain_console
from scenedistill.data.cache.decoding import decode_all
from scenedistill.data.cache.files import (
    CacheSettings,
    Entry,
    Images,
    Stamp,
    StoredCache,
    commit,
    open_stored,
    read_manifest,
    remove_arrays,
    row_checksum,
    write_header,
)
from scenedistill.data.images.read import read_scene
from scenedistill.data.raster.holes import Constant, constants_text

_SPARE_BYTES = 64 * 2**20  # disk space left free


class SceneReader(Protocol):
    """Source of the scenes of a cache; several threads call it at the same time."""

    def stamp(self, path: str) -> Stamp:
        """Return a stamp that changes when the scene does."""

    def read(self, path: str) -> Images:
        """Read a scene, uint8 `[size, size, bands]`; raises UnreadableImage."""


@dataclass(frozen=True)
class FileReader:
    """Scenes that are image files; paths are relative to `root`. `constants` collects what `read_image` finds."""

    root: Path
    size: int
    bands: int
    constants: dict[Path, Constant] = field(default_factory=dict, compare=False, repr=False)

    def stamp(self, path: str) -> Stamp:
        """Return size and mtime of the file."""
        return file_stamp(f"{self.root}/{path}")  # a Path for each of many files is slow

    def read(self, path: str) -> Images:
        """See `read_scene`."""
        return read_scene(self.root / path, self.size, self.bands, constants=self.constants)


def stored_scenes(
    settings: CacheSettings,
    paths: Sequence[str],
    reader: SceneReader,
    folder: Path,
    *,
    retry: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[StoredCache, int]:
    """Return an up-to-date cache of these scenes, and how many had to be decoded; see `build_cache`.

    Args:
        settings: settings that all scenes of the cache are made with.
        paths: paths of the scenes; the cache has an entry for each, with row -1 if it cannot be read.
        reader: source of the scenes.
        folder: folder of the cache.
        retry: read again the scenes that could not be read before.
        workers, progress: see `build_cache`.
    """
    stamps = {path: reader.stamp(path) for path in paths}

    def opened() -> StoredCache | None:
        found = open_stored(folder, settings)
        return found.without_unreadable(stamps) if found and retry else found

    stored, decoded = opened(), 0
    if stored is None and (folder / "manifest.json").exists() and read_manifest(folder) is None:
        plain_console(stderr=True).print(f"{folder / 'manifest.json'} is damaged: all images are decoded again.")
    if stored is None or not _is_current(stored, reader, stamps):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with held(folder / "build.lock", "building this image cache", tell=progress):
                stored = opened()  # another process may have built it meanwhile
                if stored is None or not _is_current(stored, reader, stamps):
                    stored, decoded = _rebuild(folder, settings, reader, stored, stamps, workers, progress)
        except OSError as error:
            raise UserError(
                f"Cannot write the image cache in {folder}: {error.strerror or error}. Choose another place with the "
                "environment variable SCENEDISTILL_CACHE."
            ) from error
    if isinstance(reader, FileReader) and reader.constants:
        plain_console(stderr=True).print(constants_text(reader.constants))
    return stored, decoded


def _is_current(stored: StoredCache, reader: SceneReader, stamps: dict[str, Stamp]) -> bool:
    """Return whether all scenes in the cache are up to date, and these are all there.

    If the cache holds no other scenes, its rows must also be in the order of `stamps`.
    """
    for path, stamp in stamps.items():
        entry = stored.entries.get(path)
        if entry is None or entry[:2] != stamp:
            return False
    others = stored.entries.keys() - stamps.keys()
    if not others:  # a whole data set must be rows in order; a subset may be copied
        rows = [row for path in stamps if (row := stored.entries[path][2]) >= 0]
        return rows == sorted(rows)
    return all(reader.stamp(path) == stored.entries[path][:2] for path in others)


def _rebuild(
    folder: Path,
    settings: CacheSettings,
    reader: SceneReader,
    stored: StoredCache | None,
    stamps: dict[str, Stamp],
    workers: int | None,
    progress: bool,
) -> tuple[StoredCache, int]:
    """Rewrite the array and the manifest, copying rows that are still valid; also return the number decoded."""
    old = stored.entries if stored else {}
    kept = {path: entry[:2] for path, entry in old.items() if path not in stamps and entry[2] >= 0}
    sources = stamps | {path: stamp for path, stamp in kept.items() if reader.stamp(path) == stamp}
    valid = {path for path, stamp in sources.items() if path in old and old[path][:2] == stamp}
    todo = [path for path in sources if path not in valid]
    _check_space(folder, len(sources) * int(np.prod(settings.shape)))
    clear_parts(folder)
    # left by builders that were killed; we hold the lock
    remove_arrays(folder, keep=read_json(folder / "manifest.json").get("array", ""))

    scenes = decode_all(todo, reader.read, workers=workers, progress=progress)
    entries: dict[str, Entry] = {}
    reasons: dict[str, str] = {}
    checksums: dict[str, int] = {}
    row = decoded = 0
    array = folder / f"images-{uuid.uuid4().hex}.npy"
    try:
        with array.open("wb") as file, contextlib.closing(scenes):
            write_header(file, len(sources), settings)
            again = set(todo)
            for path, stamp in sources.items():
                if path in again:
                    scene = next(scenes)
                    decoded += not isinstance(scene, str)
                else:
                    assert stored is not None
                    place = old[path][2]
                    if place < 0:
                        scene = stored.reasons[path]
                    elif stored.is_damaged(place):
                        (scene,) = decode_all([path], reader.read, progress=False)
                        decoded += not isinstance(scene, str)
                    else:
                        scene = stored.images[place]
                if isinstance(scene, str):
                    reasons[path] = scene
                    entries[path] = (*stamp, -1)
                else:
                    file.write(scene.data)
                    checksums[path] = row_checksum(scene)
                    entries[path] = (*stamp, row)
                    row += 1
            file.seek(0)
            write_header(file, row, settings)
            file.flush()
            os.fsync(file.fileno())
        commit(folder, array.name, settings, entries, reasons, checksums)
    except BaseException:
        array.unlink(missing_ok=True)
        raise
    remove_arrays(folder, keep=array.name)
    renewed = open_stored(folder, settings)
    assert renewed is not None
    return renewed, decoded


def file_stamp(path: Path | str) -> Stamp:
    """Return size and mtime of a file, to detect a changed one; (-1, -1) if it is missing."""
    try:
        status = os.stat(path)  # noqa: PTH116  (twice as fast for tens of thousands of files)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise UserError(
            f"The image cache in {folder} needs {needed / 2**30:,.1f} GiB; {free / 2**30:,.1f} GiB are free there. "
            "Free some space, choose another place with SCENEDISTILL_CACHE, or a smaller image size."
        )
