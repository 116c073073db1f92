"""TIFFs of every compression, negatives, and heads that ask for far more memory than the image they belong to."""

from __future__ import annotations

import struct
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from scenedistill.data.images.read import UnreadableImage, read_image
from scenedistill.data.images.tiff_heads import read_page_headers

DOWN, RIGHT = np.mgrid[0:40, 0:48]
COLOUR = np.stack([DOWN * 6, RIGHT * 5, 255 - DOWN - RIGHT], axis=-1).astype(np.uint8)


def tiff(*pages: dict[int, tuple[int, ...]], data: bytes = b"", loop: int | None = None, big: bool = False) -> bytes:
    """A TIFF by hand: tags of each page; `loop` is the page that the last one leads back to; `data` lies at byte 16."""
    count, word, size = ("<Q", "<Q", 20) if big else ("<H", "<I", 12)
    starts, at, outside = [], 16 + len(data), b""
    for tags in pages:
        starts.append(at)
        at += struct.calcsize(count) + size * len(tags) + struct.calcsize(word)
    body = b""
    for number, tags in enumerate(pages):
        body += struct.pack(count, len(tags))
        for code, values in sorted(tags.items()):
            wide = 4 * len(values)
            if wide <= struct.calcsize(word):
                place = struct.pack(f"<{len(values)}I", *values).ljust(struct.calcsize(word), b"\0")
            else:
                place = struct.pack(word, at + len(outside))
                outside += struct.pack(f"<{len(values)}I", *values)
            body += struct.pack("<HH", code, 4) + struct.pack(word, len(values)) + place
        following = starts[number + 1] if number + 1 < len(pages) else 0 if loop is None else starts[loop]
        body += struct.pack(word, following)
    head = b"II+\0\x08\0\0\0" + struct.pack("<Q", starts[0]) if big else b"II*\0" + struct.pack("<I", starts[0])
    return head.ljust(16, b"\0") + data + body + outside


def page(width: int, height: int, **more: int | tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Tags of an uncompressed grey page of 8 bits in one strip; `more` by the number of the tag, as t322=64."""
    tags: dict[int, tuple[int, ...]] = {256: (width,), 257: (height,), 258: (8,), 259: (1,), 262: (1,), 277: (1,)}
    tags |= {273: (16,), 278: (height,), 279: (width * height,)}
    return tags | {int(name[1:]): value if isinstance(value, tuple) else (value,) for name, value in more.items()}


def tiled(side: int, tile: int, count: int = 100, **more: int | tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    tags = page(side, side, **{"t322": tile, "t323": tile, "t324": 16, "t325": count, **more})
    return {code: value for code, value in tags.items() if code not in (273, 278, 279)}


HUGE = "tiles of 1,610,256,384 pixels"
OFFSETS = struct.pack("<HHHIII", 1, 273, 4, 2**32 - 1, 8, 0)
INFLATED = zlib.compress(bytes(200 << 20), 9)

BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a page that leads to itself": (lambda: tiff(page(8, 8), data=bytes(64), loop=0), "lead back to each other"),
    "two pages that lead to each other": (
        lambda: tiff(page(8, 8), page(8, 8), data=bytes(64), loop=0),
        "lead back to each other",
    ),
    "a BigTIFF whose page leads to itself": (
        lambda: tiff(page(8, 8), data=bytes(64), loop=0, big=True),
        "lead back to each other",
    ),
    "60 pages that share a strip": (
        lambda: tiff(*[page(9_000, 9_000, t259=8, t279=100)] * 60, data=bytes(100)),
        "GiB when decoded, more than the limit of 0.7",
    ),
    "60 pages of 16 bits that share a strip": (
        lambda: tiff(*[page(4_000, 4_000, t258=16, t279=100, t259=8)] * 60, data=bytes(100)),
        "1.8 GiB when decoded",
    ),
    "60 samples of real numbers": (
        lambda: tiff(page(4_000, 4_000, t258=(64,) * 60, t277=60, t339=(3,) * 60, t279=100, t259=8), data=bytes(100)),
        "7.2 GiB when decoded",
    ),
    "a small image in one huge tile": (
        lambda: tiff(tiled(64, 40_128), data=bytes(100)),
        "tiles of 1,610,256,384 pixels",
    ),
    "a huge tile of 16 bits": (
        lambda: tiff(tiled(64, 40_128, t258=16), data=bytes(100)),
        "tiles of 1,610,256,384 pixels",
    ),
    "a small image in a tile that is only wide": (
        lambda: tiff(tiled(64, 64, t322=2**31), data=bytes(100)),
        "tiles of 137,438,953,472 pixels",
    ),
    "a strip that holds 200 MiB in place of 128 bytes, in many pages": (
        lambda: tiff(*[page(8, 8, t258=16, t259=8, t279=len(INFLATED))] * 2, data=INFLATED),
        "holds more than its size",
    ),
    "4,100 pages": (lambda: tiff(*[page(1, 1, t258=16, t279=2)] * 4_100, data=bytes(64)), "more than 4,096 pages"),
    "a page of 60,000 tags": (
        lambda: b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + bytes(720_004),
        "too many tags",
    ),
    "four billion offsets": (
        lambda: b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 273, 4, 2**32 - 1, 8, 0),
        "truncated",
    ),
    "no size": (lambda: tiff({256: (0,), 257: (4,)}), "without a size"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_tiff_that_would_take_far_more_than_its_image_is_refused_at_once(tmp_path: Path, name: str) -> None:
    make, reason = BOMBS[name]
    (tmp_path / "a.tif").write_bytes(make())
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(UnreadableImage, match=reason):
            read_image(tmp_path / "a.tif")
        assert time.monotonic() - started < 10
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_tiles_that_share_their_bytes_are_checked(tmp_path: Path) -> None:
    data = zlib.compress(bytes(8 << 20), 9)
    shared = tiled(512, 64, t258=16, t259=8, t324=(16,) * 64, t325=(len(data),) * 64)
    (tmp_path / "a.tif").write_bytes(tiff(shared, data=data))
    with pytest.raises(UnreadableImage, match="a tile holds more than its size"):
        read_image(tmp_path / "a.tif")
    sound = zlib.compress(bytes(range(256)) * 32)
    shared |= {325: (len(sound),) * 64}
    (tmp_path / "a.tif").write_bytes(tiff(shared, data=sound))
    assert read_image(tmp_path / "a.tif").shape == (512, 512, 3)


@pytest.mark.parametrize(
    "options", [{}, {"tile": (16, 16)}, {"rowsperstrip": 7}, {"bigtiff": True}, {"byteorder": ">"}]
)
def test_headers_of_valid_files_are_read_correctly(tmp_path: Path, options: dict[str, Any]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", COLOUR.astype(np.uint16), photometric="rgb", **options)
    (head,) = read_page_headers(tmp_path / "a.tif")
    assert (head.width, head.height, head.samples, head.bits, head.compression) == (48, 40, 3, 16, 1)
    assert head.area == (48 * 48 if "tile" in options else 48 * 40)
    assert head.bytes == head.area * 6 and len(head.counts) == len(head.offsets)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").shape, COLOUR.shape)


def test_overviews_and_masks_take_no_part_in_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for kind in (0, 1, 1, 1, 1, 1, 1, 1, 1, 1):
            writer.write(DOWN.astype(np.uint16), photometric="minisblack", subfiletype=kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", DOWN.size)
    assert read_image(tmp_path / "a.tif", 1).shape == (40, 48, 1)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("compression", ["LERC", "LERC_ZSTD", "ZSTD", "LZMA", "LZW", "WEBP", "DEFLATE"])
def test_every_compression_gives_the_same_image(tmp_path: Path, compression: str, kind: type) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
    if compression == "WEBP" and kind is not np.uint8:
        pytest.skip("WebP has 8 bits")
    made = {"width": 48, "height": 40, "count": 3, "dtype": kind, "photometric": "RGB", "interleave": "pixel"}
    more = {"WEBP_LOSSLESS": "YES"} if compression == "WEBP" else {}
    if compression in ("ZSTD", "DEFLATE", "LZW"):
        more = {"predictor": "3" if kind is np.float32 else "2"}
    for name, options in (("a", {"compress": compression, **more}), ("plain", {})):
        with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", **made, **options) as file:
            file.write(np.moveaxis(COLOUR, -1, 0).astype(kind))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), read_image(tmp_path / "plain.tif"))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_an_unsupported_compression_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
    made = {"driver": "GTiff", "width": 48, "height": 40, "count": 1, "dtype": kind}
    with rasterio.open(tmp_path / "a.tif", "w", **made, compress="LERC") as file:
        file.write(DOWN.astype(kind), 1)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(
        UnreadableImage, match=r"LERC in a TIFF needs `pip install 'scenedistill\[use\]'` \(or imagecodecs"
    ):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("code", [34712, 50002, 33005, 47_110])
def test_a_compression_that_gdal_cannot_read_is_refused(tmp_path: Path, code: int) -> None:
    names = {34712: "JPEG 2000", 50002: "JPEG XL", 33005: "JPEG 2000", 47_110: "compression 47110"}
    for bits in (8, 16):
        (tmp_path / "a.tif").write_bytes(tiff(page(8, 8, t259=code, t258=bits, t279=64), data=bytes(64)))
        with pytest.raises(UnreadableImage, match=f"{names[code]} in a TIFF .*needs `pip install imagecodecs`"):
            read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float32])
def test_a_hole_of_a_negative_is_a_hole(tmp_path: Path, kind: type) -> None:
    values = (RIGHT + 5).astype(kind)
    values[0, 0] = 7
    options: dict[str, Any] = {"photometric": "miniswhite", "extratags": [(42113, "s", 0, "7", True)]}
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    pixels = read_image(
        tmp_path / "a.tif",
        1,
    )[:, :, 0]
    assert pixels[5, 0] > pixels[5, -1], "it is turned"
    if kind is not np.uint8:
        assert pixels[0, 0] == 0 and (pixels[values == 7] == 0).all()


def test_negative_whole_numbers_below_zero_are_turned(tmp_path: Path) -> None:
    values = (RIGHT * 1000 - 24_000).astype(np.int16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "b.tif", -1 - values, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), read_image(tmp_path / "b.tif"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -9999])
def test_an_image_of_holes_alone_is_no_image(tmp_path: Path, value: float) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((8, 8), value, np.float32), extratags=[(42113, "s", 0, "-9999", True)])
    with pytest.raises(UnreadableImage, match="it holds no data"):
        read_image(tmp_path / "a.tif", 1)


@pytest.mark.parametrize(
    ("kind", "declared", "hole"),
    [
        (np.float32, "-3.4028234663852886e+38", np.finfo(np.float32).min),
        (np.float32, "0.1", np.float32(0.1)),
        (np.int16, "-32768.0", -32768),
        (np.uint16, "-9999", None),
        (np.uint16, "nan", None),
        (np.uint16, "none", None),
    ],
)
def test_only_the_declared_nodata_value_is_a_hole(tmp_path: Path, kind: type, declared: str, hole: Any) -> None:
    values = (RIGHT * 100 - (0 if kind is np.uint16 else 1000)).astype(kind)
    tifffile.imwrite(tmp_path / "whole.tif", values)
    expected = read_image(tmp_path / "whole.tif", 1)
    if hole is not None:
        expected[:3, 20] = 0
        values[:3, 20] = hole
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(42113, "s", 0, declared, True)])
    found = read_image(tmp_path / "a.tif", 1).astype(int)
    assert np.abs(found - expected).max() <= 1  # a hole moves the percentiles a little


def test_an_image_in_a_page_that_is_marked_as_an_overview_is_read(tmp_path: Path) -> None:
    for values in (COLOUR, COLOUR[:, :, 0].astype(np.uint16)):
        tifffile.imwrite(tmp_path / "a.tif", values)
        expected = read_image(tmp_path / "a.tif")
        tifffile.imwrite(tmp_path / "a.tif", values, subfiletype=1)
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)


def test_pages_that_share_one_long_list_take_no_memory(tmp_path: Path) -> None:
    """Each page's offsets and byte counts are the same 100,000 numbers: read for every page they would be gigabytes."""
    length, pages = 100_000, 800
    data = bytearray(b"II*\0" + struct.pack("<I", 8 + 4 * length) + bytes(4 * length))
    shape = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (273, 4, length, 8), (279, 4, length, 8)]
    for page in range(pages):
        data += struct.pack("<H", len(shape)) + b"".join(struct.pack("<HHII", *tag) for tag in shape)
        data += struct.pack("<I", len(data) + 4 if page < pages - 1 else 0)
    path = tmp_path / "shared.tif"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match="its pages share one list of tiles"):
        read_page_headers(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
