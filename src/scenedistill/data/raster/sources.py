"""Choose the GDAL drivers that may open a file, so that no other file and no network address is read with it."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from scenedistill.core.errors import UserError
from scenedistill.data.images.tiff_heads import TIFF_HEADS, read_page_headers

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

#: Drivers of formats that contain their own pixels. Other drivers open a local file only if they are given explicitly:
#: formats such as VRT, WMS, ERS, MRF and many agency products are short texts that name another file or address.
SELF_CONTAINED_DRIVERS = (
    *("GTiff", "PNG", "JPEG", "WEBP", "JP2OpenJPEG", "JP2ECW", "JP2KAK", "JP2MrSID", "JPEGXL", "HEIF", "AVIF"),
    *("GIF", "BIGGIF", "BMP", "HFA", "KEA", "GPKG", "MBTiles", "ENVI", "EHdr", "AAIGrid", "GRASSASCIIGrid"),
    *("GSAG", "GSBG", "GS7BG", "GRIB", "NITF", "netCDF", "HDF5", "BAG", "RST", "SAGA", "RRASTER", "PCRaster"),
    *("USGSDEM", "DTED", "SRTMHGT", "XYZ", "PNM", "SGI", "TGA", "BT"),
)
#: In place of a folder: a VRT may name any file and address.
ANY = "any"

_SUBCLASSES = {
    *(None, "VRTWarpedDataset", "VRTPansharpenedDataset", "VRTSourcedRasterBand", "VRTDerivedRasterBand"),
    *("VRTWarpedRasterBand", "VRTPansharpenedRasterBand"),
}
# GDAL ignores namespaces and case, and accepts an element in place of the attribute of the same name.
_FILES = {"sourcefilename", "sourcedataset"}
#: Other parts of a VRT that make GDAL open a file, or run code.
_REFUSED = {"dempath", "geoloctransformer", "array", "group", "pixelfunctioncode", "pixelfunctionlanguage"}
_REFUSED |= {"subclass", "relativetovrt"}
_REFUSED_KEYS = {"X_DATASET", "Y_DATASET", "RPC_DEM", "OVERVIEW_FILE"}
#: First bytes of the files that a VRT may name: formats that contain their own pixels, whichever driver opens them.
#: Others may name further files: text formats, HDF5, ERDAS Imagine, a GeoPackage that is an index of tiles.
SELF_CONTAINED_SIGNATURES = (
    *TIFF_HEADS,
    *(b"\x89PNG\r\n", b"\xff\xd8\xff", b"RIFF", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", b"GIF8", b"BM"),
    *(b"\xff\x0a", b"\0\0\0\x0cJXL", b"NITF", b"GRIB", b"ncols", b"nrows", b"NCOLS", b"NROWS", b"CDF\x01", b"CDF\x02"),
)
#: Names that are not plain files: an address, GDAL's name for a part of a file or for a virtual file system, or a
#: dataset written as text.
_NO_FILE = re.compile(r"$|\s*[<{]|/vsi|[\w+.-]{2,}:|.*://", re.IGNORECASE)
#: Signature of HDF5, also of netCDF-4, BAG and KEA: the values of an array may be in any other file. A user block may
#: come first.
_HDF5 = re.compile(rb"\A<HDF_UserBlock>|\x89HDF\r\n\x1a\n")
_DEEPEST = 8  # nesting of VRTs


def safe_drivers(path: str | Path, folders: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the drivers that may open a raster: by its content, or those of formats that contain their own pixels.

    A VRT is checked first: everything that it or a nested VRT names must be a file with its own pixels, below the VRT's
    folder or one of `folders`. HDF5 is refused unless `folders` has `any`. A name that is not a file is trusted as the
    user's own input; only the VRT, derived and memory drivers are excluded for it.

    Args:
        path: a file, or any name that GDAL accepts.
        folders: further folders that the files of a VRT may be in, or `any`.

    Raises:
        UserError: an unreadable file, a VRT under another ending, a VRT that names anything else, HDF5, or a TIFF with
            invalid page headers.
    """
    file = Path(path)
    if not os.path.isfile(file):  # noqa: PTH113  (a name of GDAL's may be far too long for one)
        return tuple(name for name in _available() if name not in ("VRT", "DERIVED", "MEM", "Memory"))
    try:
        with file.open("rb") as opened:
            head = opened.read(4096)
    except OSError as problem:
        raise UserError(f"{path} cannot be read: {problem.strerror or problem}.") from problem
    if head.startswith(TIFF_HEADS):
        try:
            read_page_headers(file)
        except ValueError as problem:
            raise UserError(f"{path} cannot be opened as a raster: {problem}.") from problem
        return ("GTiff",)
    if b"<VRTDataset" in head:
        if file.suffix.lower() != ".vrt":
            raise UserError(f"{path} is a VRT, which only names other files, under another ending. Rename it to .vrt.")
        if ANY not in folders:
            status = file.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            _check_vrt(str(file), stamp, (str(file.resolve().parent), *(str(Path(f).resolve()) for f in folders)))
        return ("VRT",)
    if _HDF5.search(head) and ANY not in folders:
        raise _refused(str(path), "is HDF5 (or netCDF-4, BAG, KEA), whose values may lie in other files")
    known = _available()
    return tuple(name for name in SELF_CONTAINED_DRIVERS if name in known)


def check_opened(raster: DatasetReader, path: str | Path, folders: Sequence[str] = ()) -> None:
    """Check that an opened raster names no other files.

    Overviews in a named file are refused. An ERDAS Imagine file (HFA) may name an .ige file with its pixels, but only
    one in the same folder whose name begins with its stem.

    Args:
        raster: `path` opened, before anything is read; a VRT is not checked, as `safe_drivers` has done that.
        path: path of a file; a name that is not a file is trusted as the user's own input.
        folders: `any` allows everything.

    Raises:
        UserError: the raster names other files.
    """
    file = Path(path)
    if ANY in folders or raster.driver == "VRT" or not os.path.isfile(file):  # noqa: PTH113  (see `safe_drivers`)
        return
    for key, other in raster.tags(ns="OVERVIEWS").items():  # before `raster.files`, for which GDAL opens it
        if key.upper() == "OVERVIEW_FILE":
            raise _refused(str(path), f"names {other[:100]!r} for its overviews")
    for name in raster.files if raster.driver == "HFA" else ():
        beside = Path(name)
        if beside.resolve().parent != file.resolve().parent or not beside.name.startswith(file.stem):
            raise _refused(str(path), f"names {name}, which is not called after it")


@lru_cache(maxsize=1)
def _available() -> tuple[str, ...]:
    import rasterio

    with rasterio.Env() as environment:
        return tuple(environment.drivers())


@lru_cache(maxsize=64)
def _check_vrt(path: str, stamp: tuple[int, int], folders: tuple[str, ...], depth: int = 0) -> None:
    """Raise a UserError unless all that a VRT names may be read; `stamp` makes a changed file be checked again."""
    if depth > _DEEPEST:
        raise UserError(f"{path}: VRTs within VRTs, more than {_DEEPEST} deep.")
    seen: set[str] = set()
    for tag, text, relative in _named(path):
        if tag is None:
            raise _refused(path, text)
        base = Path(path).parent if relative else Path()
        source = base / text
        if text in seen:
            continue
        seen.add(text)
        if _NO_FILE.match(text):
            raise _refused(path, f"names {text[:100]!r}, which is no file")
        real = Path(os.path.realpath(source))
        if not any(real.is_relative_to(folder) for folder in folders):
            raise UserError(
                f"{path} names {source}, which lies outside its folder. If that is meant: --vrt_sources "
                f"'[{real.parent}]', or '[{ANY}]' for every file and address."
            )
        if not os.path.isfile(real):  # noqa: PTH113  (GDAL says where it is missed)
            continue
        with source.open("rb") as opened:
            head = opened.read(4096)
        if b"<VRTDataset" in head:
            status = source.stat()
            _check_vrt(str(source), (status.st_size, status.st_mtime_ns), folders, depth + 1)
        elif not head.startswith(SELF_CONTAINED_SIGNATURES):
            raise _refused(path, f"names {source}, which may name further files")


def _named(path: str) -> list[tuple[str | None, str, bool]]:
    """Return (tag, file, whether relative to the VRT) of all that a VRT names, and (None, reason, False) of all content
    that is refused."""
    found: list[tuple[str | None, str, bool]] = []
    try:
        with Path(path).open("rb") as file:
            for _, element in ET.iterparse(file):
                tag, text = _plain(element.tag), (element.text or "").strip()
                given = {_plain(name): value for name, value in element.items()}
                relative = given.get("relativetovrt", "0").strip()
                if given.get("subclass") not in _SUBCLASSES:
                    found.append((None, f"has a {given['subclass']}", False))
                elif tag in _REFUSED:
                    found.append((None, f"has a {element.tag}", False))
                elif keys := {value.strip().upper() for value in (text, *given.values())} & _REFUSED_KEYS:
                    found.append((None, f"has the entry {min(keys)}", False))
                elif tag in _FILES and relative not in ("0", "1"):
                    found.append((None, f"names a file with relativeToVRT={relative[:20]!r}", False))
                elif tag in _FILES:
                    found.append((tag, text, relative == "1"))
    except (ET.ParseError, OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read as a VRT: {problem}.") from problem
    return sorted(found, key=lambda one: one[0] is not None)  # what is refused comes first


def _plain(name: str) -> str:
    """Return the name of an element or attribute as GDAL compares it: in lower case, without namespace."""
    return name.rpartition("}")[2].lower()


def _refused(path: str, reason: str) -> UserError:
    found = f"{path} {reason}: it could read any file or ask any address."
    return UserError(found, advice=f"If you trust it, give --vrt_sources '[{ANY}]'.")
