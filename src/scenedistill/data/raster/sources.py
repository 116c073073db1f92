"""Which of GDAL's drivers may open a file, so that it is read alone: no other file, no address on a network."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from scenedistill.core.errors import UserError
from scenedistill.data.images.tiff_heads import TIFF_HEADS, read_heads

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

#: Drivers of formats that hold their own pixels. Others of a local file are opened only where they are named: formats
#: such as VRT, WMS, ERS, MRF and many products of agencies say in a few words which other file or address to read.
OWN_PIXELS = (
    *("GTiff", "PNG", "JPEG", "WEBP", "JP2OpenJPEG", "JP2ECW", "JP2KAK", "JP2MrSID", "JPEGXL", "HEIF", "AVIF"),
    *("GIF", "BIGGIF", "BMP", "HFA", "KEA", "GPKG", "MBTiles", "ENVI", "EHdr", "AAIGrid", "GRASSASCIIGrid"),
    *("GSAG", "GSBG", "GS7BG", "GRIB", "NITF", "netCDF", "HDF5", "BAG", "RST", "SAGA", "RRASTER", "PCRaster"),
    *("USGSDEM", "DTED", "SRTMHGT", "XYZ", "PNM", "SGI", "TGA", "BT"),
)
#: In place of a folder: a VRT may name every file and address.
ANY = "any"

_SUBCLASSES = {
    *(None, "VRTWarpedDataset", "VRTPansharpenedDataset", "VRTSourcedRasterBand", "VRTDerivedRasterBand"),
    *("VRTWarpedRasterBand", "VRTPansharpenedRasterBand"),
}
# GDAL knows no namespaces, and takes names whatever their case, and an element for an attribute of its name.
_FILES = {"sourcefilename", "sourcedataset"}
#: What else in a VRT makes GDAL open a file, or run code.
_REFUSED = {"dempath", "geoloctransformer", "array", "group", "pixelfunctioncode", "pixelfunctionlanguage"}
_REFUSED |= {"subclass", "relativetovrt"}
_REFUSED_KEYS = {"X_DATASET", "Y_DATASET", "RPC_DEM", "OVERVIEW_FILE"}
#: How files begin that a VRT may name: with pixels of their own, whatever driver opens them. Others may name further
#: files: text of all kinds, HDF5, ERDAS Imagine, a GeoPackage that is an index of tiles.
_OWN_PIXELS = (
    *TIFF_HEADS,
    *(b"\x89PNG\r\n", b"\xff\xd8\xff", b"RIFF", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", b"GIF8", b"BM"),
    *(b"\xff\x0a", b"\0\0\0\x0cJXL", b"NITF", b"GRIB", b"ncols", b"nrows", b"NCOLS", b"NROWS", b"CDF\x01", b"CDF\x02"),
)
#: An address, GDAL's name for a part of a file or for another file system, or a dataset as text.
_NO_FILE = re.compile(r"$|\s*[<{]|/vsi|[\w+.-]{2,}:|.*://", re.IGNORECASE)
#: How a file of HDF5 begins, which netCDF-4, BAG and KEA are too: the values of its arrays may lie in any other file.
#: A block of its user's may come first.
_HDF5 = re.compile(rb"\A<HDF_UserBlock>|\x89HDF\r\n\x1a\n")
_DEEPEST = 8  # VRTs within VRTs


def safe_drivers(path: str | Path, folders: Sequence[str] = ()) -> tuple[str, ...]:
    """The drivers that may open a raster: the one of its content, or those of formats that hold their own pixels.

    A VRT is looked through first: all that it names, in VRTs within it too, must be files with pixels of their own,
    below its own folder or one of `folders`. HDF5 is refused unless `folders` has `any`. What is no file but a name
    that GDAL knows is the user's own word; only VRTs are left out there.

    Args:
        path: a file, or anything that GDAL takes as a name.
        folders: further folders that a VRT's files may lie in, or `any`.

    Raises:
        UserError: a VRT under another ending, one that names other things, HDF5, or a TIFF whose heads lead nowhere.
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
            read_heads(file)
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
    return tuple(name for name in OWN_PIXELS if name in known)


def check_opened(raster: DatasetReader, path: str | Path, folders: Sequence[str] = ()) -> None:
    """See that no other file is opened for the overviews of one, and for the pixels of an ERDAS Imagine file (HFA),
    which names the .ige that holds them, only one beside it that is called after it.

    Args:
        raster: `path` opened, nothing of it read; no VRT, which `safe_drivers` has looked through.
        path: of a file; a name that only GDAL knows is its user's own word.
        folders: `any` allows everything.

    Raises:
        UserError: it names other files.
    """
    file = Path(path)
    if ANY in folders or raster.driver == "VRT" or not os.path.isfile(file):  # noqa: PTH113  (see `safe_drivers`)
        return
    if other := raster.tags(ns="OVERVIEWS").get("OVERVIEW_FILE"):  # before GDAL lists the files, for which it opens it
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
    """Raise a UserError unless all that a VRT names may be read; `stamp` tells a changed file from the one before."""
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
        elif not head.startswith(_OWN_PIXELS):
            raise _refused(path, f"names {source}, which may name further files")


def _named(path: str) -> list[tuple[str | None, str, bool]]:
    """(tag, file, whether it is relative to the VRT) of all that a VRT names; the tag is None, and the text the reason,
    where it holds what is refused."""
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
    """An element's or attribute's name as GDAL compares it, and without its namespace."""
    return name.rpartition("}")[2].lower()


def _refused(path: str, reason: str) -> UserError:
    return UserError(
        f"{path} {reason}: it could read any file or ask any address. If you trust it, give --vrt_sources '[{ANY}]'."
    )
