"""An image cache as it lies on the disk: one array, one manifest that names it."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from scenedistill.disk import write_text
from scenedistill.errors import UserError

KIND = "scenedistill image cache"
_FORMAT = 1  # raise it when the meaning of the files, or the way of decoding, changes
_ARRAY_NAME = re.compile(r"(?:images|marks)-([0-9a-f]{32}\.npy)(\.\w+\.part)?")

Images = npt.NDArray[np.uint8]
Stamp = tuple[int, int]  # bytes, mtime in ns: what tells a changed file; (-1, -1) for a file that is not there
Entry = tuple[int, int, int]  # a stamp, and the row of the image in the array, -1 for an image that cannot be read


@dataclass(frozen=True)
class CacheSettings:
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
class StoredCache:
    """A cache as it lies on the disk."""

    images: Images  # memory-mapped
    entries: dict[str, Entry]  # by path
    reasons: dict[str, str]  # by path: why an image cannot be read
    array: Path  # the file of `images`


def open_stored(folder: Path, settings: CacheSettings) -> StoredCache | None:
    """The cache in the folder; None if there is none, or a damaged one, or one made with other settings."""
    for _ in range(5):
        try:
            manifest = json.loads((folder / "manifest.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            manifest = None
        if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
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
        return StoredCache(images, entries, manifest["reasons"], folder / manifest["array"])
    return None


def write_header(file: BinaryIO, count: int, settings: CacheSettings) -> None:
    """The .npy header; numpy pads it so that its length does not depend on `count`."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *settings.shape)}
    np.lib.format.write_array_header_1_0(file, header)


def commit(
    folder: Path, array: str, settings: CacheSettings, entries: dict[str, Entry], reasons: dict[str, str]
) -> None:
    """Put the new manifest in place of the old one: from here on the new array counts."""
    sizes, times, rows = zip(*entries.values(), strict=True)
    manifest = {"kind": KIND, "settings": asdict(settings), "array": array, "reasons": reasons}
    manifest |= {"path": list(entries), "bytes": sizes, "mtime_ns": times, "row": rows}
    write_text(folder / "manifest.json", json.dumps(manifest))


def marks_file(array: Path) -> Path:
    """Where the marks of a cache's images lie: beside the array, whose number they carry."""
    return array.with_name(array.name.replace("images", "marks", 1))


def array_in_use(folder: Path) -> str:
    """Name of the array that counts; "" if there is none."""
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads((folder / "manifest.json").read_bytes()).get("array"))
    return ""


def remove_arrays(folder: Path, keep: str) -> None:
    """Delete all arrays but the one named `keep` and its marks; only for the holder of the lock."""
    for entry in folder.iterdir():
        found = _ARRAY_NAME.fullmatch(entry.name)
        if found and (keep != f"images-{found[1]}" or found[2]):
            with contextlib.suppress(OSError):  # Windows keeps what a reader has mapped; the next build removes it
                entry.unlink()
