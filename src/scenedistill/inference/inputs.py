"""Find the images and rasters that files, folders and patterns refer to."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tifffile

from scenedistill.core.disk import shown_path
from scenedistill.core.errors import UserError
from scenedistill.data.raster.read import open_raster
from scenedistill.data.walk import IMAGE_SUFFIXES, is_litter, walk_images

#: An image with more pixels than this is treated as a raster, georeferenced or not: it is too large for one scene.
RASTER_PIXELS = 50_000_000
#: GDAL drivers of the image formats. They open no other files than sidecar files of the image.
IMAGE_DRIVERS = ["GTiff", "PNG", "JPEG", "WEBP"]
#: TIFF tags of a georeference (OGC 19-008r4): GeoKeyDirectory, ModelPixelScale, ModelTransformation and ModelTiepoint.
#: ModelTiepoint alone gives ground control points.
GEO_KEYS, PIXEL_SCALE, TRANSFORMATION, TIE_POINTS = 34735, 33550, 34264, 33922


@dataclass(frozen=True)
class Inputs:
    """Files found, each listed once, in the order of the inputs.

    Attributes:
        images: image files.
        rasters: raster files, or other names that GDAL can open.
        twice: number of repeated inputs.
        points_only: images whose only georeference is ground control points.
    """

    images: tuple[Path, ...]
    rasters: tuple[str, ...]
    twice: int
    points_only: tuple[Path, ...] = ()


def find_inputs(given: Sequence[Path | str], *, raster: bool | None = None, leave_out: Path | None = None) -> Inputs:
    """Find the images and rasters that the inputs refer to.

    A file is used regardless of its suffix. A folder is searched recursively for files with an image suffix; hidden
    files and files such as `Thumbs.db` are left out, and links to folders are followed once. A pattern (`*`, `?`, `[`,
    `**`) stands for the images and folders that match it. The files of a folder or pattern are sorted by name.

    A file given by its path is a raster if its suffix is .vrt or not that of an image, if it has a georeference (in the
    file or a sidecar file, with or without a CRS, as read by rasterio if installed), or if it has more than
    `RASTER_PIXELS` pixels. Files from a folder or a pattern are images, except .vrt files that match a pattern.

    Args:
        given: paths and patterns.
        raster: True treats every file as a raster, and a path that does not exist as a name for GDAL; False treats
            every file as an image; None decides as above.
        leave_out: output folder, whose contact sheets are left out.

    Raises:
        UserError: a path does not exist, a pattern is invalid, no image is found, or a file with a georeference cannot
            be read as a raster.
    """
    missing, named = list[str](), list[str]()
    files, seen = dict[tuple[str, str], tuple[Path, bool]](), 0
    parents: dict[str, str] = {}
    for name in given:
        found = list(_behind(Path(name), leave_out))
        if not found and not exists(name):
            (named if raster else missing).append(str(name))
        for path, alone in found:
            seen += 1
            parent = str(path.parent)
            if parent not in parents:
                parents[parent] = os.path.realpath(parent)
            files.setdefault((parents[parent], path.name), (path, alone))
    if missing:
        raise UserError(
            f"There is nothing at {', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}. Give images, "
            "folders, patterns such as 'tiles/*.jpg', or rasters."
        )
    if not files and not named:
        raise UserError(
            f"No image in {', '.join(map(str, given))}: expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    points = list[Path]()
    rasters = {
        path for path, alone in files.values() if (alone and _is_raster(path, points) if raster is None else raster)
    }
    images = tuple(path for path, _ in files.values() if path not in rasters)
    there = tuple(str(path) for path, _ in files.values() if path in rasters)
    return Inputs(images, (*there, *named), seen - len(files), tuple(points))


def exists(name: Path | str) -> bool:
    """Return whether there is a file or folder of this name; a name for GDAL may be too long for `Path.exists`."""
    return os.path.exists(name)  # noqa: PTH110


def _behind(path: Path, leave_out: Path | None) -> Iterator[tuple[Path, bool]]:
    """Yield the files of one input, and whether each may be a raster; files of a folder or pattern may not."""
    own = leave_out.resolve() if leave_out else None
    if exists(path) and path.is_dir():
        yield from ((file, False) for file in _in_folder(path, own))
    elif exists(path):
        yield path, True
    elif glob.has_magic(str(path)):
        for found in _fitting(path):
            if found.suffix.lower() in IMAGE_SUFFIXES | {".vrt"} and not found.is_dir():
                yield found, found.suffix.lower() == ".vrt"
            elif "**" not in path.parts and found.is_dir():
                yield from ((file, False) for file in _in_folder(found, own))


def _fitting(pattern: Path) -> list[Path]:
    """Return the sorted matches of a pattern. The `**` of pathlib does not follow links, which may form cycles."""
    parts = list(pattern.parts)
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    base, rest = Path(*parts[:first]), parts[first:]
    if rest[-1] == "**":
        rest.append("*")
    try:
        found = list(base.glob(str(Path(*rest))))
    except ValueError as problem:  # such as `a**`
        raise UserError(f"{pattern} is no pattern: {problem}.") from problem
    return sorted(path for path in found if not any(map(is_litter, path.relative_to(base).parts)))


def _in_folder(folder: Path, own: Path | None) -> Iterator[Path]:
    """Yield the images of a folder recursively, without the contact sheets in the output folder `own`."""
    for file in walk_images(folder, own):
        if not (file.name.startswith("contact_sheet_") and file.parent.resolve() == own):
            yield file


def _is_raster(path: Path, points: list[Path]) -> bool:
    """Return whether a file is a raster; add an image with ground control points to `points`."""
    suffix = path.suffix.lower()
    if suffix == ".vrt":
        return True
    try:
        import rasterio
    except ImportError:
        return _refused_if_placed(path, "maps need `pip install 'scenedistill[use]'`")
    if shown_path(path) != str(path):
        return _refused_if_placed(path, "GDAL takes only names in UTF-8. Rename it")
    if suffix not in IMAGE_SUFFIXES:
        return True  # if GDAL cannot open it, mapping reports the error
    try:
        # GDAL does not list the folder, which may hold a hundred thousand files; it tests for sidecar files by name
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NotGeoreferencedWarning
            with open_raster(path, IMAGE_DRIVERS) as raster:
                if not raster.transform.is_identity or raster.width * raster.height > RASTER_PIXELS:
                    return True
                if raster.gcps[0] or raster.rpcs:
                    points.append(path)
    except (rasterio.errors.RasterioError, UserError):
        pass  # reading it as an image reports the error
    return False


def _refused_if_placed(path: Path, reason: str) -> bool:
    """Return False for a file without a georeference, checked without rasterio.

    Raises:
        UserError: the file has a georeference.
    """
    placed = not tiff_tags(path).isdisjoint((GEO_KEYS, PIXEL_SCALE, TRANSFORMATION))
    if placed or any(path.with_suffix(end).exists() for end in _world_endings(path.suffix)):
        raise UserError(
            f"{shown_path(path)} is a raster with a georeference: {reason}. `--raster false` takes it as one image."
        )
    return False


def _world_endings(suffix: str) -> list[str]:
    """Return the suffixes of the world files of an image: `.tif` -> `.tfw`, `.tifw`, `.wld`."""
    return [f".{suffix[1:2]}{suffix[-1:]}w", f"{suffix}w", ".wld"] if suffix else []


def tiff_tags(path: Path) -> set[int]:
    """Return the numbers of the tags in the first page of a TIFF; none of a damaged or other file."""
    try:
        with tifffile.TiffFile(path) as file:
            return {tag.code for tag in file.pages.first.tags}
    except Exception:  # tifffile raises many types for a damaged file; reading it as an image reports the error
        return set()
