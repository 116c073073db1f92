"""Decode every image once into a memory-mapped uint8 array that all later runs share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import filelock
import numpy as np
import numpy.typing as npt

from scenedistill.data.cache_files import (
    CacheSettings,
    Entry,
    Images,
    Stamp,
    StoredCache,
    array_in_use,
    commit,
    open_stored,
    read_manifest,
    remove_arrays,
    row_checksum,
    write_header,
)
from scenedistill.data.decoding import decode_all
from scenedistill.data.scene_cache import SceneCache
from scenedistill.data.scenes import SceneIndex
from scenedistill.disk import clear_parts
from scenedistill.errors import UserError
from scenedistill.terminal import plain_console

__all__ = ["SceneCache", "build_cache", "cache_home"]

_NAMED = 5  # how many bad images an error names before it only counts
_SPARE_BYTES = 64 * 2**20  # disk space left free


def build_cache(
    index: SceneIndex,
    size: int,
    *,
    bands: int = 3,
    folder: Path | None = None,
    workers: int | None = None,
    on_bad: Literal["stop", "skip"] = "stop",
    progress: bool = True,
    value_range: tuple[float, float] | None = None,
) -> SceneCache:
    """Decode the scenes as `read_scene` does, or take them from an earlier call: only new and changed files, told by
    size and time, are decoded.

    The array is written under a new name and `manifest.json`, which names it, is replaced last: a process killed at
    any moment leaves the old cache or none. One process builds at a time; others wait and then reuse. Images that are
    not in `index` but still lie unchanged on the disk are kept, so a subset does not cost the rest.

    Args:
        index: the scenes.
        size: side of the decoded images in pixels.
        bands: bands of the decoded images, see `read_image`.
        folder: where the cache lies; default: a folder in `cache_home()` for this root, size, bands and value range.
        workers: threads; default: one for each core this process may use.
        on_bad: "stop" raises when any image cannot be read (the good ones stay cached, the bad ones are tried again the
            next time); "skip" leaves the bad ones out, and does not try them again until their file changes.
        progress: show a progress bar with images/s on the standard error.
        value_range: for images deeper than 8 bits, see `read_image`.

    Raises:
        UserError: unreadable images and `on_bad="stop"`, no readable image at all, too little disk space, a folder that
            cannot be written or holds something else.
    """
    if size < 1 or len(index) == 0:
        raise ValueError(f"a cache needs a size of 1 or more pixels and 1 or more images, not {size} and {len(index)}")
    settings = CacheSettings(str(index.root), size, bands, value_range)
    folder = _default_folder(settings) if folder is None else Path(folder).expanduser().resolve()
    stamps = {path: _stamp(index.root / path) for path in index.paths}
    retry = on_bad == "stop"

    stored, decoded = open_stored(folder, settings), 0
    if stored is None and (folder / "manifest.json").exists() and read_manifest(folder) is None:
        plain_console(stderr=True).print(f"{folder / 'manifest.json'} is damaged: all images are decoded again.")
    if stored is None or not _is_current(stored, index.root, stamps, retry):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _lock(folder, progress):
                stored = open_stored(folder, settings)  # another process may have built it meanwhile
                if stored is None or not _is_current(stored, index.root, stamps, retry):
                    stored, decoded = _rebuild(folder, settings, stored, stamps, retry, workers, progress)
        except OSError as error:
            raise UserError(
                f"Cannot write the image cache in {folder}: {error.strerror or error}. Choose another place with the "
                "environment variable SCENEDISTILL_CACHE."
            ) from error

    rows = np.array([stored.entries[path][2] for path in index.paths])
    bad = tuple((path, stored.reasons[path]) for path, row in zip(index.paths, rows, strict=True) if row < 0)
    if bad and (on_bad == "stop" or len(bad) == len(index)):
        raise UserError(_complaint(bad, len(index), index.root))
    reused = len(index) - decoded - len(bad)
    report = f"{len(index):,} images: {reused:,} reused, {decoded:,} decoded, {len(bad):,} bad"
    places = rows[rows >= 0]
    return SceneCache(
        index.subset(rows >= 0) if bad else index,
        _rows(stored.images, places),
        size,
        bands,
        bad,
        folder,
        report,
        None if stored.checksums is None else stored.checksums[places],
        places,
        stored.array,
        value_range,
    )


def cache_home() -> Path:
    """`$SCENEDISTILL_CACHE`, else `$XDG_CACHE_HOME/scenedistill`, else `~/.cache/scenedistill`."""
    if own := os.environ.get("SCENEDISTILL_CACHE"):
        return Path(own).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scenedistill"


def _is_current(stored: StoredCache, root: Path, stamps: dict[str, Stamp], retry: bool) -> bool:
    """Whether the cache holds these sources as they are now (`retry`: and readable), in their order if there are no
    others, and nothing that is gone."""
    for path, stamp in stamps.items():
        entry = stored.entries.get(path)
        if entry is None or entry[:2] != stamp or (retry and entry[2] < 0):
            return False
    others = stored.entries.keys() - stamps.keys()
    if not others:  # a whole data set must be one run of rows; a subset may be copied out
        rows = [row for path in stamps if (row := stored.entries[path][2]) >= 0]
        return rows == sorted(rows)
    return all(_stamp(root / path) == stored.entries[path][:2] for path in others)


def _rebuild(
    folder: Path,
    settings: CacheSettings,
    stored: StoredCache | None,
    stamps: dict[str, Stamp],
    retry: bool,
    workers: int | None,
    progress: bool,
) -> tuple[StoredCache, int]:
    """Write the array and the manifest anew, copying what is still valid; also the number of images decoded."""
    root, old = Path(settings.root), stored.entries if stored else {}
    kept = {path: entry[:2] for path, entry in old.items() if path not in stamps and entry[2] >= 0}
    sources = stamps | {path: stamp for path, stamp in kept.items() if _stamp(root / path) == stamp}
    valid = {path for path, stamp in sources.items() if path in old and old[path][:2] == stamp}
    todo = [path for path in sources if path not in valid or (retry and old[path][2] < 0)]
    _check_space(folder, len(sources) * int(np.prod(settings.shape)))
    clear_parts(folder)
    remove_arrays(folder, keep=array_in_use(folder))  # left by builders that were killed; we hold the lock

    size, bands, value_range = settings.size, settings.bands, settings.value_range
    scenes = decode_all(root, todo, size, bands, value_range, workers=workers, progress=progress)
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
                        (scene,) = decode_all(root, [path], size, bands, value_range, progress=False)
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


@contextlib.contextmanager
def _lock(folder: Path, progress: bool) -> Iterator[None]:
    """Hold the folder's lock, which the system frees when its holder dies."""
    lock = filelock.FileLock(folder / "build.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if progress:
            plain_console(stderr=True).print("Another process is building this image cache; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _stamp(path: Path) -> Stamp:
    try:
        status = os.stat(path)  # noqa: PTH116  (twice as fast for tens of thousands of files)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _rows(images: Images, rows: npt.NDArray[np.int64]) -> Images:
    """These rows, without a copy where they lie in one run."""
    if np.array_equal(rows, np.arange(len(images))):
        return images
    if np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return images[rows[0] : rows[0] + len(rows)]
    chosen = images[rows]
    chosen.flags.writeable = False
    return chosen


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise UserError(
            f"The image cache in {folder} needs {needed / 2**30:,.1f} GiB; {free / 2**30:,.1f} GiB are free there. "
            "Free some space, choose another place with SCENEDISTILL_CACHE, or a smaller image size."
        )


def _complaint(bad: Sequence[tuple[str, str]], total: int, root: Path) -> str:
    named = "; ".join(f"{path}: {reason}" for path, reason in bad[:_NAMED])
    more = f"; and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
    advice = "Mend or remove them" + (", or leave them out with --data.on_bad skip." if len(bad) < total else ".")
    return f"{len(bad):,} of {total:,} images in {root} cannot be read: {named}{more}.\n{advice}"


def _default_folder(settings: CacheSettings) -> Path:
    digest = hashlib.sha256(json.dumps(asdict(settings)).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]+", "_", Path(settings.root).name)[:40]
    return cache_home() / "scenes" / f"{name}-{settings.size}x{settings.bands}-{digest}"
