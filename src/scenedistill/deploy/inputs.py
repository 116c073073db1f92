"""Which images and rasters are meant by what somebody names: files, folders and patterns."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tifffile

from scenedistill.data.walk import IMAGE_SUFFIXES, is_litter, walk_images
from scenedistill.errors import UserError

#: More pixels than this are a raster, georeferenced or not: nobody means them as one scene.
RASTER_PIXELS = 50_000_000
#: A file of these kinds is not asked for a georeference; one of another kind that GDAL opens is a raster.
PLAIN_SUFFIXES = IMAGE_SUFFIXES - {".tif", ".tiff"}
#: A photograph of more than `RASTER_PIXELS` is at least this large, as a rule.
LARGE_BYTES = 5_000_000
#: The TIFF tag of a CRS, GeoKeyDirectory (OGC 19-008r4).
GEO_KEYS = 34735


@dataclass(frozen=True)
class Inputs:
    """What was found, each file once and in the order it was named; `twice` counts those named more than once.

    A raster may be something that GDAL knows by a name and that is no file.
    """

    images: tuple[Path, ...]
    rasters: tuple[str, ...]
    twice: int


def find_inputs(given: Sequence[Path | str], *, raster: bool | None = None, leave_out: Path | None = None) -> Inputs:
    """Find the files behind names.

    A file is taken whatever its ending. A folder is searched to the bottom for files with an image's ending; hidden
    ones and system litter are left out, links to folders followed once. A pattern (`*`, `?`, `[`, `**`) gives the
    images and folders it fits. Within a folder or a pattern the order is that of the names.

    A file is a raster when its ending is .vrt or no image's, when it has a georeference (by rasterio, where that is
    installed), or more than `RASTER_PIXELS`; but all files of a folder or a pattern are images, except a pattern's
    .vrt.

    Args:
        given: what was named.
        raster: True takes every file as a raster, and a name with nothing behind it for one that GDAL knows; False
            takes every file as an image.
        leave_out: folder of the results, which are no input.

    Raises:
        UserError: a name with nothing behind it, or nothing found at all.
    """
    missing, named = list[str](), list[str]()
    files, seen = dict[tuple[str, str], tuple[Path, bool]](), 0
    parents: dict[str, str] = {}
    for name in given:
        found = list(_behind(Path(name), leave_out))
        if not found and not Path(name).is_dir():
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
    rasters = {path for path, alone in files.values() if (alone and _is_raster(path) if raster is None else raster)}
    images = tuple(path for path, _ in files.values() if path not in rasters)
    there = tuple(str(path) for path, _ in files.values() if path in rasters)
    return Inputs(images, (*there, *named), seen - len(files))


def _behind(path: Path, leave_out: Path | None) -> Iterator[tuple[Path, bool]]:
    """The files behind one name, and whether each may be a raster: those of a folder or a pattern are many scenes."""
    own = leave_out.resolve() if leave_out else None
    if path.is_dir():
        yield from ((file, False) for file in _in_folder(path, own))
    elif path.exists():
        yield path, True
    elif glob.has_magic(str(path)):
        for found in _fitting(path):
            if found.suffix.lower() in IMAGE_SUFFIXES | {".vrt"} and not found.is_dir():
                yield found, found.suffix.lower() == ".vrt"
            elif "**" not in path.parts and found.is_dir():
                yield from ((file, False) for file in _in_folder(found, own))


def _fitting(pattern: Path) -> list[Path]:
    """What fits a pattern, sorted; by pathlib, whose `**` does not follow links, which may go in circles."""
    parts = list(pattern.parts)
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    base, rest = Path(*parts[:first]), parts[first:]
    if rest[-1] == "**":
        rest.append("*")
    found = base.glob(str(Path(*rest)))
    return sorted(path for path in found if not any(map(is_litter, path.relative_to(base).parts)))


def _in_folder(folder: Path, own: Path | None) -> Iterator[Path]:
    """Images to the bottom of a folder, without what an earlier call has put into the folder of the results."""
    for file in walk_images(folder, own):
        if not (file.name.startswith("contact_sheet_") and file.parent.resolve() == own):
            yield file


def _is_raster(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix == ".vrt":
        return True
    if suffix in PLAIN_SUFFIXES and path.stat().st_size < LARGE_BYTES:
        return False
    try:
        import rasterio
    except ImportError:
        if _has_geokeys(path):
            raise UserError(
                f"{path} is a raster with a georeference: maps need `pip install 'scenedistill[use]'`. "
                "`--raster false` takes it as one image."
            ) from None
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has no georeference
            with rasterio.open(path) as raster:
                placed = raster.crs is not None and not raster.transform.is_identity
                return placed or suffix not in IMAGE_SUFFIXES or raster.width * raster.height > RASTER_PIXELS
    except rasterio.errors.RasterioError:
        return False  # then it is read as an image, which says what is wrong


def _has_geokeys(path: Path) -> bool:
    """Whether a file is a TIFF that names its CRS, told without rasterio."""
    try:
        with tifffile.TiffFile(path) as file:
            return GEO_KEYS in file.pages.first.tags
    except Exception:  # tifffile has many for a damaged file; as an image it is then told what is wrong
        return False
