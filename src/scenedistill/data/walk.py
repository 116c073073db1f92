"""Find the image files below a folder, at any depth."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from scenedistill.core.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"})
_LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"})


def walk_images(folder: Path, leave_out: Path | None = None) -> Iterator[Path]:
    """Yield the files with an `IMAGE_SUFFIXES` ending in any case, depth first and sorted by name in each folder.

    Hidden files and system litter are skipped; links to folders are followed once.

    Args:
        folder: folder to search.
        leave_out: resolved path of a folder below it that is not searched.

    Raises:
        UserError: a folder cannot be listed.
    """
    yield from map(Path, walk_names(folder, leave_out))


def walk_names(folder: Path, leave_out: Path | None = None) -> Iterator[str]:
    """Yield the same files as `walk_images`, as text: a Path for each of many files is slow."""
    # os.walk would go round a circle of links until the system stops it
    yield from _walk(folder, leave_out, set())


def is_litter(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that operating systems create."""
    return name.startswith(".") or name.lower() in _LITTER


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; False for a link that cannot be followed."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _walk(folder: Path, leave_out: Path | None, seen: set[Path]) -> Iterator[str]:
    real = folder.resolve()
    if real in seen:  # a link that leads back
        return
    seen.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as problem:
        raise UserError(f"Cannot list {folder}: {problem.strerror or problem}.") from problem
    for entry in entries:
        if is_litter(entry.name):
            continue
        if is_folder(entry):
            if Path(entry.path).resolve() != leave_out:
                yield from _walk(Path(entry.path), leave_out, seen)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122  (a Path for each file is slow)
            yield entry.path
