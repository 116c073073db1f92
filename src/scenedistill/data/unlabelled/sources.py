"""Find the unlabelled images and rasters at the paths that the user gives."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scenedistill.core.errors import UserError
from scenedistill.data.scenes import did_you_mean
from scenedistill.data.unlabelled.tiles import is_raster
from scenedistill.data.walk import IMAGE_SUFFIXES, walk_names

_TIFF = (".tif", ".tiff")


@dataclass(frozen=True)
class ImageFolder:
    """Images below a folder, by their relative POSIX paths."""

    root: Path
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Raster:
    """A raster to be cut into tiles."""

    path: Path


def check_sources(given: Iterable[Path], tile: int | None) -> None:
    """Check the given paths without opening files.

    Raises:
        UserError: a path does not exist, or a file is not an image and no tile size is given.
    """
    for source in map(_plain, given):
        if not source.exists():
            raise UserError(f"--data.unlabelled {source} does not exist.{did_you_mean(source)}")
        if source.is_file() and source.suffix.lower() not in IMAGE_SUFFIXES and tile is None:
            raise UserError(
                f"--data.unlabelled {source} is no image ({', '.join(sorted(IMAGE_SUFFIXES))}). "
                "If it is a raster, give the side of its tiles in pixels with --data.unlabelled_tile."
            )


def find_sources(given: Sequence[Path], tile: int | None) -> list[ImageFolder | Raster]:
    """Find the images and rasters at paths of folders, images and rasters, each file once, in the given order.

    Folders are searched at any depth, whatever their layout. With a tile size, a TIFF is a raster if it has a
    georeference and room for a tile, or room for `MANY_TILES`; so is any given file without an image ending, such as a
    VRT. Everything else is an image.

    Raises:
        UserError: see `check_sources`; also a folder without images.
    """
    check_sources(given, tile)
    found: list[Path | Raster] = []  # folders and rasters
    images: dict[Path, list[str]] = {}  # of each folder
    singles: dict[Path, list[str]] = {}  # images given by themselves, of each folder
    seen: set[str] = set()
    parents: dict[str, str] = {}

    def new(path: str) -> bool:
        parent, name = os.path.split(path)
        if parent not in parents:
            parents[parent] = os.path.realpath(parent)
        real = os.path.join(parents[parent], name)  # noqa: PTH118  (a Path for each of many files is slow)
        fresh = real not in seen
        seen.add(real)
        return fresh

    for source in map(_plain, given):
        if source.is_dir():
            paths, any_there, cut = list[str](), False, len(str(source).rstrip(os.sep)) + 1
            for file in walk_names(source):
                any_there = True
                if not new(file):
                    continue
                if tile is not None and file.lower().endswith(_TIFF) and is_raster(Path(file), tile):
                    found.append(Raster(Path(file)))
                else:
                    paths.append(file[cut:].replace(os.sep, "/"))
            if not any_there:
                endings = ", ".join(sorted(IMAGE_SUFFIXES))
                raise UserError(f"No image in --data.unlabelled {source}: expected files ending in {endings}.")
            if paths:
                found.append(source)
                images[source] = paths
        elif new(str(source)):
            suffix = source.suffix.lower()
            if tile is not None and (suffix not in IMAGE_SUFFIXES or (suffix in _TIFF and is_raster(source, tile))):
                found.append(Raster(source))
            else:
                singles.setdefault(source.parent, []).append(source.name)
    for parent, names in singles.items():
        if parent not in images:
            found.append(parent)
        images.setdefault(parent, []).extend(names)  # a folder is one source: a second one would replace its cache
    return [one if isinstance(one, Raster) else ImageFolder(one, tuple(images[one])) for one in found]


def _plain(source: Path) -> Path:
    return Path(os.path.abspath(Path(source).expanduser()))  # noqa: PTH100  (links stay as they are named)
