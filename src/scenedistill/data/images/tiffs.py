"""Read a TIFF of any depth, layout and compression into its bands `[H, W, C]`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from scenedistill.data.images.tiff_heads import PageHeader, check_decoded_size, check_inflated, read_page_headers
from scenedistill.data.raster.holes import held_value

Pixels = npt.NDArray[Any]  # [H, W, C], any real dtype, alpha already dropped

_OTHERS, _GDALS = "`pip install imagecodecs`", "`pip install 'scenedistill[use]'` (or imagecodecs)"
#: Compressions that Pillow and tifffile read only with another package: name, and how to install the package.
CODECS = {
    5: ("LZW", _GDALS),
    6: ("old JPEG", _OTHERS),
    7: ("JPEG", _GDALS),
    33003: ("JPEG 2000", _OTHERS),
    33004: ("JPEG 2000", _OTHERS),
    33005: ("JPEG 2000", _OTHERS),
    34712: ("JPEG 2000", _OTHERS),
    34887: ("LERC", _GDALS),
    34892: ("lossy JPEG", _OTHERS),
    34925: ("LZMA", _GDALS),
    34926: ("ZSTD", _GDALS),
    34927: ("WebP", _GDALS),
    34933: ("PNG", _OTHERS),
    34934: ("JPEG XR", _OTHERS),
    50000: ("ZSTD", _GDALS),
    50001: ("WebP", _GDALS),
    50002: ("JPEG XL", _OTHERS),
    52546: ("JPEG XL", _OTHERS),
}
_USUAL = (1, 2, 3, 4, 8, 32773, 32946)  # none, fax, deflate, PackBits


def decode_tiff(path: Path, by_pillow: Callable[[], Pixels]) -> tuple[Pixels, float | None]:
    """Decode the bands of a TIFF, and return them with the nodata value if the file declares one.

    Pillow reads the files that it supports and tifffile the others; GDAL, if rasterio is installed, decompresses the
    files that neither can.

    Args:
        path: path of the file.
        by_pillow: function that reads the file with Pillow.

    Raises:
        ValueError: too large, damaged, or in an unsupported compression. Errors of the readers pass unchanged.
    """
    heads = read_page_headers(path)
    check_decoded_size(heads, Image.MAX_IMAGE_PIXELS)
    with tifffile.TiffFile(path) as tif:
        if not _is_plain(tif):
            return _decode(tif, path, heads)
        try:
            return by_pillow(), None
        except Exception:
            page = tif.pages.first
            if page.compression in _USUAL:
                raise
            if page.photometric not in (0, 1, 2):  # GDAL would not return grey or RGB
                what, _ = _codec(page)
                raise ValueError(f"{what} in a TIFF cannot be unpacked: damaged, or it needs {_OTHERS}") from None
            return _decode(tif, path, heads)


def _is_plain(tif: tifffile.TiffFile) -> bool:
    """Whether Pillow reads all of this TIFF: 8 bits or fewer, a usual colour space, one page."""
    page = tif.pages.first
    if page.bitspersample > 8 or page.sampleformat != 1:
        return False
    if tif.is_bigtiff and tif.byteorder == ">" and page.photometric in (0, 1, 2):
        return False  # not supported by Pillow
    if page.photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE):
        return page.samplesperpixel == 1 and len(_band_pages(tif)) == 1
    if page.photometric == tifffile.PHOTOMETRIC.RGB and page.samplesperpixel == 4:
        return page.extrasamples in ((1,), (2,))  # Pillow drops a fourth band even where it is not alpha
    return page.samplesperpixel <= 4


def _band_pages(tif: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The pages that are bands of one image: those like the first, without overviews and masks."""
    first = tif.pages.first
    if first.samplesperpixel > 1:
        return [first]
    kind = (first.shape, first.dtype, first.subfiletype)
    pages = [page for page in tif.pages if isinstance(page, tifffile.TiffPage)]
    return [page for page in pages if (page.shape, page.dtype, page.subfiletype) == kind]


def _decode(tif: tifffile.TiffFile, path: Path, heads: list[PageHeader]) -> tuple[Pixels, float | None]:
    page = tif.pages.first
    pages = _band_pages(tif)
    for band in pages:  # tifffile fills missing data with zeros; a hole must not pass for a black scene
        ends = (start + count for start, count in zip(band.dataoffsets, band.databytecounts, strict=False))
        if max(ends, default=0) > tif.filehandle.size:
            raise ValueError("the file is truncated")
    for band in pages:
        check_inflated(path, heads[band.index])
    # every page as [H, W, samples]: one sample is [H, W], planar files are [samples, H, W]
    arrays = [_unpacked(band, path) for band in pages]
    if page.samplesperpixel == 1:
        pixels = np.stack([array.reshape(page.imagelength, page.imagewidth) for array in arrays], axis=-1)
    else:
        pixels = np.moveaxis(arrays[0], 0, -1) if page.planarconfig == 2 else arrays[0]
    if pixels.dtype.kind not in "uif":
        raise ValueError(f"{pixels.dtype} values are not supported")
    nodata = _declared_nodata(page, pixels.dtype)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        bits = page.bitspersample
        nodata = None if nodata is None else float(negative(np.array([nodata], pixels.dtype), bits)[0])
        pixels = negative(pixels, bits)
    colours = page.samplesperpixel - len(page.extrasamples)
    alpha = [colours + i for i, kind in enumerate(page.extrasamples) if kind in (1, 2)]
    return _orient(np.delete(pixels, alpha, axis=-1), page.tags.valueof(274, default=1)), nodata


def negative(values: Pixels, bits: int) -> Pixels:
    """Invert the values of a file whose smallest value is white (PHOTOMETRIC=MINISWHITE)."""
    if values.dtype.kind == "u":
        return np.asarray(values.dtype.type(2**bits - 1) - values)
    return np.asarray(~values if values.dtype.kind == "i" else -values)


def _declared_nodata(page: tifffile.TiffPage, kind: np.dtype[Any]) -> float | None:
    """Return the nodata value that GDAL wrote for values of a type; None without one that the type can hold."""
    # not `page.nodata`, which is 0 for values that tifffile rejects: -9999 for unsigned types, and
    # -3.4028234663852886e+38 for float32, where it is the usual one
    with contextlib.suppress(ValueError):
        return held_value(float(str(page.tags.valueof(42113)).replace(",", ".")), kind)
    return None


def _unpacked(page: tifffile.TiffPage, path: Path) -> Pixels:
    """Read the pixels of a page in tifffile's layout, with tifffile or else with GDAL."""
    code = int(page.compression)
    try:
        return np.asarray(page.asarray(maxworkers=1))
    except Exception as problem:
        if code in _USUAL and "imagecodecs" not in str(problem):
            raise
    what, remedy = _codec(page)
    try:
        import rasterio
    except ImportError:
        raise ValueError(f"{what} in a TIFF needs {remedy}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with rasterio.open(f"GTIFF_DIR:{page.index + 1}:{path}", driver="GTiff") as raster:
                bands = raster.read()
    except rasterio.errors.RasterioError as problem:
        while problem.__cause__ is not None:  # the message of GDAL itself
            problem = problem.__cause__
        if "missing codec" in str(problem):
            raise ValueError(f"{what} in a TIFF needs {_OTHERS}") from problem
        raise ValueError(f"{what} in a TIFF cannot be unpacked: damaged, or it needs {_OTHERS}") from problem
    if bands.shape != (page.samplesperpixel, page.imagelength, page.imagewidth) or bands.dtype != page.dtype:
        raise ValueError(f"{what} in a TIFF needs {_OTHERS}")
    return np.asarray(bands if page.planarconfig == 2 else np.moveaxis(bands, 0, -1))


def _codec(page: tifffile.TiffPage) -> tuple[str, str]:
    """Return the name of the compression of a page, and how to install a package that reads it."""
    code = int(page.compression)
    if code in _USUAL:
        what = "the predictor of real numbers" if page.predictor == 3 else f"values of {page.bitspersample} bits"
        return what, _GDALS
    return CODECS.get(code, (f"compression {code}", _OTHERS))


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    """Apply TIFF orientation 1..8 to `[H, W, C]`."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
