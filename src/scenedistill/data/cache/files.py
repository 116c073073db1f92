"""The files of an image cache: one array, and one manifest that names it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import re
import uuid
import zlib
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from scenedistill.core.disk import CHECKSUM, content_checksum, whole_file, without_checksum, write_text
from scenedistill.core.errors import Damaged, UserError

KIND = "scenedistill image cache"
_FORMAT = 1  # raise it when the meaning of the files, or the way of decoding, changes
_ARRAY_NAME = re.compile(r"(?:images|marks|copies)-([0-9a-f]{32}\.npy)(\.\w+\.part)?")
_COLUMNS = ("path", "bytes", "mtime_ns", "row")  # of a manifest; newer ones also have "crc32"
_MAPPED = 512 * 2**20  # bytes of an array that stay mapped after they were read
_ENTRIES = {"kind", "settings", "array", "reasons", *_COLUMNS, "crc32"}

Images = npt.NDArray[np.uint8]
Stamp = tuple[int, int]  # bytes, mtime in ns, to detect a changed file; (-1, -1) for a missing file
Entry = tuple[int, int, int]  # a stamp, and the row of the image in the array, -1 for an image that cannot be read


@dataclass(frozen=True)
class CacheSettings:
    """Settings that all rows of a cache were made with; rows made with other settings cannot be reused."""

    root: str
    size: int
    bands: int
    value_range: None = None  # always None; in the manifests and in the folder names of all caches
    format: int = _FORMAT

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.size, self.size, self.bands


@dataclass(frozen=True, eq=False)
class StoredCache:
    """An image cache opened from disk."""

    images: Images  # memory-mapped
    entries: dict[str, Entry]  # by path
    reasons: dict[str, str]  # by path: why an image cannot be read
    array: Path  # the file of `images`
    checksums: npt.NDArray[np.uint32] | None = None  # `row_checksum` of each row; None in an older version

    def is_damaged(self, row: int) -> bool:
        """Return whether an image in the array does not match its checksum."""
        return self.checksums is not None and row_checksum(self.images[row]) != self.checksums[row]

    def without_unreadable(self, paths: Container[str]) -> StoredCache:
        """Return the cache without the entries of those of these scenes that could not be read."""
        kept = {path: entry for path, entry in self.entries.items() if entry[2] >= 0 or path not in paths}
        return replace(self, entries=kept)


def open_stored(folder: Path, settings: CacheSettings) -> StoredCache | None:
    """Open the cache in a folder; None if it is missing, damaged or made with other settings."""
    for _ in range(5):
        manifest = read_manifest(folder)
        if manifest is None or manifest["settings"] != asdict(settings):
            return None
        try:
            images = np.load(folder / manifest["array"], mmap_mode="r")
        except FileNotFoundError:
            continue  # replaced since the manifest was read
        except Exception:  # NumPy raises various errors for a damaged header
            return None
        rows = np.array(manifest["row"], np.int64)
        good = rows >= 0
        if images.shape != (good.sum(), *settings.shape) or images.dtype != np.uint8:
            return None
        stamped = zip(manifest["bytes"], manifest["mtime_ns"], manifest["row"], strict=True)
        entries = dict(zip(manifest["path"], stamped, strict=True))
        checksums = None
        if "crc32" in manifest:
            checksums = np.zeros(len(images), np.uint32)
            checksums[rows[good]] = np.array(manifest["crc32"], np.uint32)[good]
        return StoredCache(images, entries, manifest["reasons"], folder / manifest["array"], checksums)
    return None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the content of the manifest in a folder; None if it is missing or damaged.

    Raises:
        UserError: neither the manifest nor the folder belongs to an image cache.
    """
    try:
        text = (folder / "manifest.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = without_checksum(json.loads(text), folder / "manifest.json")
    except (ValueError, RecursionError, Damaged):
        manifest = None
    if isinstance(manifest, dict) and manifest.get("kind") == KIND and _is_whole(manifest):
        return manifest
    if any(_ARRAY_NAME.fullmatch(entry.name) for entry in folder.iterdir()):
        return None  # a damaged cache, which is rebuilt
    raise UserError(f"{folder} is not an image cache: its manifest.json is something else. Use another folder.")


def _is_whole(manifest: dict[str, Any]) -> bool:
    """Return whether a manifest has all entries, of the right types, and a separate row for each image."""
    columns = [*_COLUMNS, *(["crc32"] if "crc32" in manifest else [])]
    if not (_ENTRIES - {"crc32"} <= manifest.keys() <= _ENTRIES and _ARRAY_NAME.fullmatch(str(manifest["array"]))):
        return False
    lists: list[Any] = [manifest[column] for column in columns]
    reasons = manifest["reasons"]
    if not all(isinstance(column, list) for column in lists) or len(set(map(len, lists))) > 1:
        return False
    paths: list[Any] = lists[0]
    if not all(type(number) is int for column in lists[1:] for number in column):
        return False
    rows = sorted(row for row in manifest["row"] if row >= 0)
    bad: list[str] = [path for path, row in zip(paths, manifest["row"], strict=True) if row < 0]
    return (
        all(isinstance(path, str) for path in paths)
        and len(set(paths)) == len(paths)
        and rows == list(range(len(rows)))
        and isinstance(reasons, dict)
        and all(isinstance(reasons.get(path), str) for path in bad)
        and all(0 <= one < 1 << 32 for one in manifest.get("crc32", ()))
    )


def row_checksum(row: npt.NDArray[np.uint8]) -> int:
    """Return the CRC-32 of a decoded image: 2.6 GB a second, and it detects every error burst of up to 32 bits."""
    return zlib.crc32(np.ascontiguousarray(row).data)


def take_rows(images: Images, rows: npt.NDArray[np.int64]) -> Images:
    """Return a copy of some rows; the pages of a large mapped file that were read for it are unmapped again.

    So the memory of a process that reads all images is bounded; the system keeps the pages as long as it has room.
    """
    found: Images = images[rows]
    if isinstance(images, np.memmap) and images.nbytes > _MAPPED and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        images._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
    return found


def write_header(file: BinaryIO, count: int, settings: CacheSettings) -> None:
    """Write the .npy header; numpy pads it so that its length does not depend on `count`."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *settings.shape)}
    np.lib.format.write_array_header_1_0(file, header)


def commit(
    folder: Path,
    array: str,
    settings: CacheSettings,
    entries: dict[str, Entry],
    reasons: dict[str, str],
    checksums: dict[str, int],
) -> None:
    """Replace the manifest by a new one, which makes the new array the current one."""
    sizes, times, rows = zip(*entries.values(), strict=True)
    manifest: dict[str, Any] = {"kind": KIND, "settings": asdict(settings), "array": array, "reasons": reasons}
    manifest |= {"path": list(entries), "bytes": list(sizes), "mtime_ns": list(times), "row": list(rows)}
    manifest |= {"crc32": [checksums.get(path, 0) for path in entries]}
    write_text(folder / "manifest.json", json.dumps({**manifest, CHECKSUM: content_checksum(manifest)}))


def kept_beside(
    array: Path,
    kind: Literal["marks", "copies"],
    make: Callable[[], npt.NDArray[Any]],
    dtype: npt.DTypeLike,
    key: bytes = b"",
) -> npt.NDArray[Any]:
    """Return what is computed from all images of a cache: read from the file beside their array, or computed and stored
    there, with a checksum.

    Args:
        array: file of the images, `images-*.npy`.
        kind: first word of the file's name: `marks` for fingerprints, `copies` for pairs of copies.
        make: function that computes it.
        dtype: its data type.
        key: hash of all that it depends on besides the images; the file of another key is replaced.
    """
    file = array.with_name(array.name.replace("images", kind, 1))

    def checksum(kept: npt.NDArray[Any]) -> bytes:
        return hashlib.sha256(key + np.ascontiguousarray(kept).tobytes()).digest()[:16]

    with contextlib.suppress(OSError, ValueError, EOFError), file.open("rb") as opened:
        kept: npt.NDArray[Any] = np.load(opened)
        found = opened.read()  # empty in a file of an older version
        if kept.dtype == dtype and (found == checksum(kept) or not (found or key)):
            return kept
    kept = make()
    with contextlib.suppress(OSError), whole_file(file, part=f"{uuid.uuid4().hex}.part") as into:
        np.save(into, kept)
        into.write(checksum(kept))
    return kept


def remove_arrays(folder: Path, keep: str) -> None:
    """Delete all arrays but the one named `keep` and the files beside it; the caller must hold the lock."""
    for entry in folder.iterdir():
        found = _ARRAY_NAME.fullmatch(entry.name)
        if found and (keep != f"images-{found[1]}" or found[2]):
            with contextlib.suppress(OSError):  # Windows keeps a mapped file; the next build removes it
                entry.unlink()
