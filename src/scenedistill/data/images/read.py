"""Read an image file of any common kind into a uint8 array `[H, W, bands]`."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from scenedistill.core.errors import UserError
from scenedistill.data.images.tiff_heads import TIFF_HEADS
from scenedistill.data.images.tiffs import Pixels, decode_tiff
from scenedistill.data.raster.holes import Constant, find_suspected_nodata

_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")


class UnreadableImage(UserError):
    """An image that cannot be used; `path` says which, `reason` why, in a few words."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it survives pickling
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(
    path: Path,
    bands: int = 3,
    *,
    at_least: int | None = None,
    value_range: tuple[float, float] | None = None,
    constants: dict[Path, Constant] | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode a JPEG, PNG, TIFF or WebP file (told by its content, not its name) to uint8 `[H, W, bands]`.

    Orientation: the EXIF/TIFF tag is applied. Colour: palette, CMYK, YCbCr and 1-bit become RGB or grey. Alpha is
    dropped, the colour under it kept. Animations: first frame. The single-band pages of a TIFF are taken as its bands.

    Bands: 1 from three or more is the ITU-R 601 luminance of the first three; 3 from one repeats it; otherwise the
    first `bands` bands of the file.

    Depth: 8-bit values are kept. Any deeper image (16-bit, float) is mapped linearly to 0..255 from its own 2nd to 98th
    percentile, taken over the chosen bands together so that their ratios survive, and clipped. So a 12-bit or
    small-valued reflectance image is never black, but absolute brightness is lost; `value_range=(low, high)` fixes the
    two ends for every deep image instead, e.g. `(0, 4000)`. NaN, infinities and GDAL's no-data value become 0.

    Args:
        path: the file.
        bands: number of bands wanted, 1 or more.
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep this many pixels.
        value_range: see above; ignored for 8-bit images.
        constants: dict to which a constant that most likely means nodata (see `find_suspected_nodata`) is added under
            the path; the stretch still includes it. Not looked for when None.

    Raises:
        UnreadableImage: missing, empty, truncated, not an image, more pixels than `PIL.Image.MAX_IMAGE_PIXELS` (in the
            tiles and pages of a TIFF, too), without any data, or too few bands.
    """
    if bands < 1:
        raise ValueError(f"bands must be 1 or more, not {bands}")
    path = Path(path)
    try:
        pixels, nodata = _decode(path, at_least)
        pixels = _take(pixels, bands)
        if constants is not None and pixels.dtype != np.uint8 and value_range is None:
            held = _valid(pixels, nodata).all(2)
            if found := find_suspected_nodata(pixels[held].T):
                constants[path] = found
        return _to_bands(_to_uint8(pixels, nodata, value_range), bands)
    except Exception as error:  # decoders raise nearly any exception for a broken file
        raise UnreadableImage(path, _reason(error)) from error


def read_scene(
    path: Path,
    size: int,
    bands: int = 3,
    *,
    value_range: tuple[float, float] | None = None,
    constants: dict[Path, Constant] | None = None,
) -> npt.NDArray[np.uint8]:
    """Read an image as the models see it: uint8 `[size, size, bands]`, the same pixels wherever it is called.

    The image is squashed to a square by an antialiased bicubic resize. For speed a JPEG is first decoded at 1/2, 1/4 or
    1/8 of its size as long as both sides keep 2 x `size` pixels, and any large image is box-averaged by a whole
    factor to no less than 3 x `size`; the difference is not visible. Arguments and errors: see `read_image`.
    """
    pixels = read_image(path, bands, at_least=2 * size, value_range=value_range, constants=constants)
    return squash(pixels, size)


def squash(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Resize an image, uint8 `[H, W, bands]`, to a square as `read_scene` does: `[size, size, bands]`."""
    bands = pixels.shape[2]
    if pixels.shape[:2] == (size, size):
        return pixels
    if bands in (1, 3):
        return _resize(pixels, size)
    return np.concatenate([_resize(pixels[:, :, band : band + 1], size) for band in range(bands)], axis=2)


def _resize(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    small = image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(small).reshape(size, size, -1)


def _decode(path: Path, at_least: int | None) -> tuple[Pixels, float | None]:
    """Decode a file, and return the pixels with the nodata value if the file declares one."""
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise ValueError("the file is empty")
    if head.startswith(TIFF_HEADS):
        return decode_tiff(path, lambda: _by_pillow(path, at_least))
    # Pillow reads as many bytes as a PNG chunk declares, and a file object allocates all of them
    return _by_pillow(io.BytesIO(path.read_bytes()) if head == b"\x89PNG" else path, at_least), None


def _by_pillow(path: Path | io.BytesIO, at_least: int | None) -> Pixels:
    with Image.open(path, formats=_FORMATS) as image:
        _check_size(*image.size)
        if image.format == "PNG" and image.tile[0].args in ("LA;16B", "RGB;16B", "RGBA;16B"):
            return _decode_deep_png(path, image.tile[0].args)
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
        with contextlib.suppress(Exception):  # the pixels are sound; broken EXIF data only loses the orientation
            ImageOps.exif_transpose(image, in_place=True)
        return _from_pil(image)


def _from_pil(image: Image.Image) -> Pixels:
    if image.mode in ("L", "I;16", "RGB", "RGBX"):
        plain: Image.Image = image
    elif image.mode in ("1", "LA"):
        plain = image.convert("L")
    elif image.mode in ("P", "PA", "RGBa"):
        plain = image.convert("RGBA").convert("RGB")  # by way of RGBA: palette transparency is then understood
    else:
        plain = image.convert("RGB")
    pixels = np.asarray(plain)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _decode_deep_png(path: Path | io.BytesIO, layout: str) -> Pixels:
    """Decode a 16-bit colour PNG, of which Pillow keeps only the upper bytes.

    The lower bytes are read in a second pass, in which the samples are declared little-endian.
    """

    def as_bytes(layout: str) -> npt.NDArray[np.uint16]:
        with Image.open(path, formats=("PNG",)) as image:
            image.tile = [image.tile[0]._replace(args=layout)]
            return np.asarray(image).astype(np.uint16)

    if layout == "LA;16B":
        four = as_bytes("RGBA")  # upper and lower byte of grey, then of alpha
        return four[:, :, :1] << 8 | four[:, :, 1:2]
    return (as_bytes(layout) << 8 | as_bytes(layout[:-1] + "L"))[:, :, :3]


def _check_size(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise Image.DecompressionBombError(f"{width} x {height} pixels, more than the limit of {limit:,}")


def _take(pixels: Pixels, bands: int) -> Pixels:
    """The bands of the file that `bands` output bands are made from."""
    found = pixels.shape[2]
    if bands == 1 and found >= 3:
        return pixels[:, :, :3]
    if bands == 3 and found == 1:
        return pixels
    if bands > found:
        raise ValueError(f"has {found} band{'s' if found > 1 else ''} (without alpha), expected at least {bands}")
    return pixels[:, :, :bands]


def _to_uint8(pixels: Pixels, nodata: float | None, value_range: tuple[float, float] | None) -> npt.NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    values = pixels.astype(np.float64)
    valid = _valid(pixels, nodata)
    if not valid.any():
        raise ValueError("it holds no data: every value is NaN, infinite or the no-data value")
    low, high = value_range or np.percentile(values[valid], (2, 98))
    if low == high:
        low, high = values[valid].min(), values[valid].max()
    if low == high:
        return np.where(valid, 128, 0).astype(np.uint8)  # one flat value: mid-grey
    scaled = np.clip((np.where(valid, values, low) - low) / (high - low), 0, 1)
    return np.where(valid, np.rint(scaled * 255), 0).astype(np.uint8)


def _valid(pixels: Pixels, nodata: float | None) -> npt.NDArray[np.bool_]:
    """Return where the values of a deep image are data, bool `[H, W, C]`."""
    values = pixels.astype(np.float64)
    valid = np.isfinite(values)
    return valid if nodata is None else valid & (values != nodata)


def _to_bands(pixels: npt.NDArray[np.uint8], bands: int) -> npt.NDArray[np.uint8]:
    found = pixels.shape[2]
    if bands == 1 and found == 3:
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
    elif bands == 3 and found == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, TIFF or WebP image"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, (LookupError, TypeError, AttributeError)) or "decoder object" in str(error):
        return "the file is damaged"  # an internal error of a decoder, with an unhelpful message
    return (str(error).splitlines() or [""])[0].strip()[:150] or type(error).__name__
