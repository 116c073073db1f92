"""Decode every image once into a memory-mapped uint8 array that all later runs share."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from scenedistill.core.disk import short_hash
from scenedistill.core.errors import UserError
from scenedistill.core.terminal import counted
from scenedistill.data.cache.files import CacheSettings, Images
from scenedistill.data.cache.scenes import SceneCache
from scenedistill.data.cache.write import FileReader, stored_scenes
from scenedistill.data.scenes import SceneIndex

__all__ = ["SceneCache", "build_cache", "cache_home"]

_NAMED = 5  # how many bad images an error names before it only counts


def build_cache(
    index: SceneIndex,
    size: int,
    *,
    bands: int = 3,
    folder: Path | None = None,
    workers: int | None = None,
    on_bad: Literal["stop", "skip"] = "stop",
    progress: bool = True,
) -> SceneCache:
    """Decode the scenes with `read_scene`, or reuse those of an earlier call: only new files, and files with another
    size or mtime, are decoded.

    The array is written under a new name and `manifest.json`, which names it, is replaced last: a process killed at
    any moment leaves the old cache or none. One process builds at a time; others wait and then reuse. Images that are
    not in `index` are kept if their files are unchanged, so that building a subset does not discard the rest.

    Args:
        index: the scenes.
        size: side of the decoded images in pixels.
        bands: number of bands of the decoded images, see `read_image`.
        folder: folder of the cache; default: a folder in `cache_home()` for this root, size and bands.
        workers: number of threads; default: one for each core this process may use.
        on_bad: "stop" raises when any image cannot be read (the good ones stay cached, the bad ones are tried again the
            next time); "skip" leaves the bad ones out, and does not try them again until their file changes.
        progress: show a progress bar with images/s on the standard error.

    Raises:
        UserError: unreadable images and `on_bad="stop"`, no readable image at all, too little disk space, a folder that
            cannot be written or holds something else.
    """
    if size < 1 or len(index) == 0:
        raise ValueError(f"a cache needs a size of 1 or more pixels and 1 or more images, not {size} and {len(index)}")
    settings = CacheSettings(str(index.root), size, bands)
    default = cache_home() / "scenes" / folder_name(settings)
    folder = default if folder is None else Path(folder).expanduser().resolve()
    reader = FileReader(index.root, size, bands)
    stored, decoded = stored_scenes(
        settings, index.paths, reader, folder, retry=on_bad == "stop", workers=workers, progress=progress
    )
    rows = np.array([stored.entries[path][2] for path in index.paths])
    bad = tuple((path, stored.reasons[path]) for path, row in zip(index.paths, rows, strict=True) if row < 0)
    if bad and (on_bad == "stop" or len(bad) == len(index)):
        raise UserError(complaint(bad, len(index), index.root))
    reused = len(index) - decoded - len(bad)
    report = f"{counted(len(index), 'image')}: {reused:,} reused, {decoded:,} decoded, {len(bad):,} bad"
    row_indices = rows[rows >= 0]
    return SceneCache(
        index.subset(rows >= 0) if bad else index,
        _rows(stored.images, row_indices),
        size,
        bands,
        bad,
        folder,
        report,
        None if stored.checksums is None else stored.checksums[row_indices],
        row_indices,
        stored.array,
        reader,
    )


def cache_home() -> Path:
    """Return `$SCENEDISTILL_CACHE`, else `$XDG_CACHE_HOME/scenedistill`, else `~/.cache/scenedistill`."""
    if own := os.environ.get("SCENEDISTILL_CACHE"):
        return Path(own).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scenedistill"


def _rows(images: Images, rows: npt.NDArray[np.int64]) -> Images:
    """Return these rows, without a copy if they are contiguous."""
    if np.array_equal(rows, np.arange(len(images))):
        return images
    if np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return images[rows[0] : rows[0] + len(rows)]
    chosen = images[rows]
    chosen.flags.writeable = False
    return chosen


def complaint(bad: Sequence[tuple[str, str]], total: int, root: Path) -> str:
    """Compose the error message about unreadable images of a folder, with advice."""
    named = "; ".join(f"{path}: {reason}" for path, reason in bad[:_NAMED])
    more = f"; and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
    advice = "Mend or remove them" + (", or leave them out with --data.on_bad skip." if len(bad) < total else ".")
    return f"{len(bad):,} of {counted(total, 'image')} in {root} cannot be read: {named}{more}.\n{advice}"


def folder_name(settings: CacheSettings) -> str:
    """Return the name of a cache's folder, different for each root and each set of decoding settings."""
    digest = short_hash(json.dumps(asdict(settings)))[:12]
    name = re.sub(r"[^\w.-]+", "_", Path(settings.root).name)[:40]
    return f"{name}-{settings.size}x{settings.bands}-{digest}"
