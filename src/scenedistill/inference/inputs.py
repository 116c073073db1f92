"""Which images and rasters are meant by what somebody names: files, folders and patterns."""

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

#: More pixels than this are a raster, georeferenced or not: nobody means them as one scene.
RASTER_PIXELS = 50_000_000
#: GDAL's drivers of the formats of images. None of them opens a file that is not beside the image and named after it.
IMAGE_DRIVERS = ["GTiff", "PNG", "JPEG", "WEBP"]
#: TIFF tags of a CRS and of a place (OGC 19-008r4): GeoKeyDirectory, ModelPixelScale, ModelTransformation and
#: ModelTiepoint, which alone is a ground control point.
GEO_KEYS, PIXEL_SCALE, TRANSFORMATION, TIE_POINTS = 34735, 33550, 34264, 33922


@dataclass(frozen=True)
class Inputs:
    """What was found, each file once and in the order it was named; `twice` counts those named more than once.

    A raster may be something that GDAL knows by a name and that is no file. `points_only` are the images that have
    ground control points and no other place on the map.
    """

    images: tuple[Path, ...]
    rasters: tuple[str, ...]
    twice: int
    points_only: tuple[Path, ...] = ()


def find_inputs(given: Sequence[Path | str], *, raster: bool | None = None, leave_out: Path | None = None) -> Inputs:
    """Find the files behind names.

    A file is taken whatever its ending. A folder is searched to the bottom for files with an image's ending; hidden
    ones and system litter are left out, links to folders followed once. A pattern (`*`, `?`, `[`, `**`) gives the
    images and folders it fits. Within a folder or a pattern the order is that of the names.

    A file is a raster when its ending is .vrt or no image's, when it has a place on a map (by rasterio, where that is
    installed: in the file or in one beside it, with or without a CRS), or more than `RASTER_PIXELS`; but all files of a
    folder or a pattern are images, except a pattern's .vrt.

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
    points = list[Path]()
    rasters = {
        path for path, alone in files.values() if (alone and _is_raster(path, points) if raster is None else raster)
    }
    images = tuple(path for path, _ in files.values() if path not in rasters)
    there = tuple(str(path) for path, _ in files.values() if path in rasters)
    return Inputs(images, (*there, *named), seen - len(files), tuple(points))


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


def _is_raster(path: Path, points: list[Path]) -> bool:
    """Whether a file is to be mapped; adds it to `points` where it is not, and has ground control points."""
    suffix = path.suffix.lower()
    if suffix == ".vrt":
        return True
    try:
        import rasterio
    except ImportError:
        return _refused_if_placed(path, "maps need `pip install 'scenedistill[use]'`")
    if shown_path(path) != str(path):
        return _refused_if_placed(path, "GDAL takes only names in UTF-8. Rename it")
    try:
        # only files named after this one are looked for beside it: folders may hold a hundred thousand
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has no georeference
            if suffix not in IMAGE_SUFFIXES:
                open_raster(path).close()
                return True
            with open_raster(path, IMAGE_DRIVERS) as raster:
                if not raster.transform.is_identity or raster.width * raster.height > RASTER_PIXELS:
                    return True
                if raster.gcps[0] or raster.rpcs:
                    points.append(path)
    except (rasterio.errors.RasterioError, UserError):
        pass  # then it is read as an image, which says what is wrong
    return False


def _refused_if_placed(path: Path, reason: str) -> bool:
    """False for a file without a place on a map, told without rasterio.

    Raises:
        UserError: it has one.
    """
    if _is_placed_tiff(path) or any(path.with_suffix(end).exists() for end in _world_endings(path.suffix)):
        raise UserError(
            f"{shown_path(path)} is a raster with a georeference: {reason}. `--raster false` takes it as one image."
        )
    return False


def _world_endings(suffix: str) -> list[str]:
    """`.tif` -> `.tfw`, `.tifw`, `.wld`: a world file has the place of the image beside it."""
    return [f".{suffix[1:2]}{suffix[-1:]}w", f"{suffix}w", ".wld"] if suffix else []


def _is_placed_tiff(path: Path) -> bool:
    """Whether a file is a TIFF that says where it lies."""
    try:
        with tifffile.TiffFile(path) as file:
            tags = file.pages.first.tags
            return GEO_KEYS in tags or PIXEL_SCALE in tags or TRANSFORMATION in tags
    except Exception:  # tifffile has many for a damaged file; as an image it is then told what is wrong
        return False
