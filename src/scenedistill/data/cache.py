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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import filelock
import numpy as np
import numpy.typing as npt
from rich.console import Console

from scenedistill.data.decoding import decode_all
from scenedistill.data.scenes import SceneIndex
from scenedistill.errors import UserError

_KIND = "scenedistill image cache"
_FORMAT = 1  # raise it when the meaning of the files, or the way of decoding, changes
_NAMED = 5  # how many bad images an error names before it only counts
_SPARE_BYTES = 64 * 2**20  # disk space left free
_ARRAY_NAME = re.compile(r"images-[0-9a-f]{32}\.npy")

Images = npt.NDArray[np.uint8]
Stamp = tuple[int, int]  # bytes, mtime in ns: what tells a changed file; (-1, -1) for a file that is not there
Entry = tuple[int, int, int]  # a stamp, and the row of the image in the array, -1 for an image that cannot be read


@dataclass(frozen=True, eq=False)
class SceneCache:
    """Decoded scenes.

    Attributes:
        index: the scenes that could be read; bad ones are left out when `on_bad="skip"`.
        images: uint8 `[N, size, size, bands]`, read-only; row i is `index.paths[i]`. Memory-mapped, except when the
            index is a scattered subset of what the cache holds: then those rows are copied into memory.
        size: side in pixels.
        bands: bands of each image.
        bad: (path, reason) of each image that was left out.
        folder: where the cache lies.
        report: what was done, such as "10,000 images: 9,998 reused, 2 decoded, 0 bad".
    """

    index: SceneIndex
    images: Images
    size: int
    bands: int
    bad: tuple[tuple[str, str], ...]
    folder: Path
    report: str = ""


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
    settings = _Settings(str(index.root), size, bands, value_range)
    folder = _default_folder(settings) if folder is None else Path(folder).expanduser().resolve()
    stamps = {path: _stamp(index.root / path) for path in index.paths}
    retry = on_bad == "stop"

    stored, decoded = _open(folder, settings), 0
    if stored is None or not _is_current(stored, index.root, stamps, retry):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _lock(folder, progress):
                stored = _open(folder, settings)  # another process may have built it meanwhile
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
    images = _rows(stored.images, rows[rows >= 0])
    return SceneCache(index.subset(rows >= 0) if bad else index, images, size, bands, bad, folder, report)


def cache_home() -> Path:
    """`$SCENEDISTILL_CACHE`, else `$XDG_CACHE_HOME/scenedistill`, else `~/.cache/scenedistill`."""
    if own := os.environ.get("SCENEDISTILL_CACHE"):
        return Path(own).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scenedistill"


@dataclass(frozen=True)
class _Settings:
    """What all rows of a cache were made with; where it differs no row can be reused."""

    root: str
    size: int
    bands: int
    value_range: tuple[float, float] | None
    format: int = _FORMAT

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.size, self.size, self.bands


@dataclass(frozen=True, eq=False)
class _Stored:
    """A cache as it lies on the disk."""

    images: Images  # memory-mapped
    entries: dict[str, Entry]  # by path
    reasons: dict[str, str]  # by path: why an image cannot be read


def _open(folder: Path, settings: _Settings) -> _Stored | None:
    """The cache in the folder; None if there is none, or a damaged one, or one made with other settings."""
    for _ in range(5):
        try:
            manifest = json.loads((folder / "manifest.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            manifest = None
        if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
            raise UserError(f"{folder} is not an image cache: its manifest.json is something else. Use another folder.")
        if manifest["settings"] != json.loads(json.dumps(asdict(settings))):
            return None
        paths, sizes, times, rows = (manifest[column] for column in ("path", "bytes", "mtime_ns", "row"))
        count = sum(row >= 0 for row in rows)
        try:
            images = np.load(folder / manifest["array"], mmap_mode="r")
        except FileNotFoundError:
            continue  # replaced between our two looks
        except (ValueError, OSError):
            return None
        if images.shape != (count, *settings.shape) or images.dtype != np.uint8:
            return None
        entries = dict(zip(paths, zip(sizes, times, rows, strict=True), strict=True))
        return _Stored(images, entries, manifest["reasons"])
    return None


def _is_current(stored: _Stored, root: Path, stamps: dict[str, Stamp], retry: bool) -> bool:
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
    settings: _Settings,
    stored: _Stored | None,
    stamps: dict[str, Stamp],
    retry: bool,
    workers: int | None,
    progress: bool,
) -> tuple[_Stored, int]:
    """Write the array and the manifest anew, copying what is still valid; also the number of images decoded."""
    root, old = Path(settings.root), stored.entries if stored else {}
    kept = {path: entry[:2] for path, entry in old.items() if path not in stamps and entry[2] >= 0}
    sources = stamps | {path: stamp for path, stamp in kept.items() if _stamp(root / path) == stamp}
    valid = {path for path, stamp in sources.items() if path in old and old[path][:2] == stamp}
    todo = [path for path in sources if path not in valid or (retry and old[path][2] < 0)]
    _check_space(folder, len(sources) * int(np.prod(settings.shape)))
    _remove_arrays(folder, keep=_array_in_use(folder))  # left by builders that were killed; we hold the lock

    size, bands, value_range = settings.size, settings.bands, settings.value_range
    scenes = decode_all(root, todo, size, bands, value_range, workers=workers, progress=progress)
    entries: dict[str, Entry] = {}
    reasons: dict[str, str] = {}
    row = decoded = 0
    array = folder / f"images-{uuid.uuid4().hex}.npy"
    try:
        with array.open("wb") as file, contextlib.closing(scenes):
            _write_header(file, len(sources), settings)
            again = set(todo)
            for path, stamp in sources.items():
                if path in again:
                    scene = next(scenes)
                    decoded += not isinstance(scene, str)
                else:
                    assert stored is not None
                    scene = stored.images[old[path][2]] if old[path][2] >= 0 else stored.reasons[path]
                if isinstance(scene, str):
                    reasons[path] = scene
                    entries[path] = (*stamp, -1)
                else:
                    file.write(scene.data)
                    entries[path] = (*stamp, row)
                    row += 1
            file.seek(0)
            _write_header(file, row, settings)
            file.flush()
            os.fsync(file.fileno())
        _commit(folder, array.name, settings, entries, reasons)
    except BaseException:
        array.unlink(missing_ok=True)
        raise
    _remove_arrays(folder, keep=array.name)
    renewed = _open(folder, settings)
    assert renewed is not None
    return renewed, decoded


def _write_header(file: BinaryIO, count: int, settings: _Settings) -> None:
    """The .npy header; numpy pads it so that its length does not depend on `count`."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *settings.shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _commit(
    folder: Path, array: str, settings: _Settings, entries: dict[str, Entry], reasons: dict[str, str]
) -> None:
    """Put the new manifest in place of the old one: from here on the new array counts."""
    sizes, times, rows = zip(*entries.values(), strict=True)
    manifest = {"kind": _KIND, "settings": asdict(settings), "array": array, "reasons": reasons}
    manifest |= {"path": list(entries), "bytes": sizes, "mtime_ns": times, "row": rows}
    part = folder / "manifest.json.part"
    with part.open("w", encoding="utf-8") as file:
        json.dump(manifest, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / "manifest.json")


def _array_in_use(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads((folder / "manifest.json").read_bytes()).get("array"))
    return ""


def _remove_arrays(folder: Path, keep: str) -> None:
    for entry in folder.iterdir():
        if _ARRAY_NAME.fullmatch(entry.name) and entry.name != keep:
            with contextlib.suppress(OSError):  # Windows keeps what a reader has mapped; the next build removes it
                entry.unlink()


@contextlib.contextmanager
def _lock(folder: Path, progress: bool) -> Iterator[None]:
    """Hold the folder's lock, which the system frees when its holder dies."""
    lock = filelock.FileLock(folder / "build.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if progress:
            Console(stderr=True).print("Another process is building this image cache; waiting for it.")
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


def _default_folder(settings: _Settings) -> Path:
    digest = hashlib.sha256(json.dumps(asdict(settings)).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]+", "_", Path(settings.root).name)[:40]
    return cache_home() / "scenes" / f"{name}-{settings.size}x{settings.bands}-{digest}"
