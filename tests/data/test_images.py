"""Every kind of file that `read_image` promises to read, and every kind that it must refuse."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from scenedistill.core.errors import UserError
from scenedistill.data.images.read import UnreadableImage, read_image, read_scene

HEIGHT, WIDTH = 24, 36
DOWN, RIGHT = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
COLOUR = np.stack([DOWN * 10, RIGHT * 7, 255 - DOWN * 5], axis=-1).astype(np.uint8)  # no symmetry, bands differ
GREY = COLOUR[:, :, 1]
TWELVE_BITS = np.stack([DOWN * 30 + 200, RIGHT * 40 + 100, DOWN + RIGHT], axis=-1).astype(np.uint16)  # 0..1500


def write_deep_png(path: Path, values: np.ndarray) -> None:
    """A 16-bit PNG of `[H, W, 1..4]`, which Pillow cannot write for colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, bands = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def with_alpha(pixels: np.ndarray, high: int = 255) -> np.ndarray:
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    alpha = (RIGHT[:, :, None] / WIDTH * high).astype(pixels.dtype)
    return np.concatenate([pixels, alpha], axis=2)


def stretched(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (2, 98))
    found: np.ndarray = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.tif", {}),
        ("lzw.tiff", {"compression": "tiff_lzw"}),
        ("deflate.tif", {"compression": "tiff_adobe_deflate"}),
        ("a.webp", {"lossless": True}),
        ("A.PNG", {}),
    ],
)
def test_lossless_rgb_comes_back_exactly(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    Image.fromarray(COLOUR).save(tmp_path / name, **options)
    pixels = read_image(tmp_path / name)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, COLOUR)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 95, "subsampling": 0}),
        ("progressive.jpg", {"progressive": True, "quality": 95}),
        ("a.webp", {"quality": 95}),
        ("jpeg.tif", {"compression": "jpeg", "quality": 95}),
    ],
)
def test_lossy_rgb_comes_back_closely(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    Image.fromarray(COLOUR).save(tmp_path / name, **options)
    assert np.abs(read_image(tmp_path / name).astype(int) - COLOUR).mean() < 4


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_grey_is_repeated_for_three_bands(tmp_path: Path, name: str) -> None:
    Image.fromarray(GREY).save(tmp_path / name, quality=100)
    pixels = read_image(tmp_path / name)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(pixels, np.repeat(GREY[:, :, None], 3, axis=2), atol=3)
    assert read_image(tmp_path / name, bands=1).shape == (HEIGHT, WIDTH, 1)


def test_one_band_of_colour_is_its_luminance(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    expected = COLOUR @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read_image(tmp_path / "a.png", bands=1)[:, :, 0], expected, atol=0.51)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_alpha_is_dropped_and_the_colour_kept(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    Image.fromarray(with_alpha(COLOUR)).save(tmp_path / name, **options)
    np.testing.assert_array_equal(read_image(tmp_path / name), COLOUR)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_alpha_of_a_grey_image_is_dropped(tmp_path: Path, name: str) -> None:
    Image.fromarray(with_alpha(GREY)).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name, bands=1)[:, :, 0], GREY)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(200))])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_palette_image_becomes_its_colours(tmp_path: Path, name: str, transparency: int | bytes | None) -> None:
    picture = Image.fromarray(COLOUR).quantize(16)
    expected = np.asarray(picture.convert("RGB"))
    options: dict[str, Any] = {} if transparency is None or name == "a.tif" else {"transparency": transparency}
    picture.save(tmp_path / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(tmp_path / name), expected)


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_becomes_rgb(tmp_path: Path, name: str) -> None:
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / name, quality=95)
    assert np.abs(read_image(tmp_path / name).astype(int) - COLOUR).mean() < 5


@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("a.tif", {}), ("fax.tif", {"compression": "group4"})])
def test_one_bit_becomes_black_and_white(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    Image.fromarray(GREY > 100).save(tmp_path / name, **options)
    np.testing.assert_array_equal(read_image(tmp_path / name, bands=1)[:, :, 0], np.where(GREY > 100, 255, 0))


@pytest.mark.parametrize("high", [300, 4095, 65535])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_uses_the_whole_range(tmp_path: Path, name: str, high: int) -> None:
    values = (RIGHT / WIDTH * high).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    pixels = read_image(tmp_path / name, bands=1)[:, :, 0]
    np.testing.assert_array_equal(pixels, stretched(values))
    assert pixels.min() == 0 and pixels.max() == 255


def test_twelve_bit_colour_png_keeps_all_bits_and_the_ratios_of_its_bands(tmp_path: Path) -> None:
    for values in (TWELVE_BITS, with_alpha(TWELVE_BITS, 65535)):
        write_deep_png(tmp_path / "a.png", values)
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), stretched(TWELVE_BITS))


def test_alpha_of_a_16_bit_grey_png_is_dropped(tmp_path: Path) -> None:
    write_deep_png(tmp_path / "a.png", with_alpha(TWELVE_BITS[:, :, 0], 65535))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 1)[:, :, 0], stretched(TWELVE_BITS[:, :, 0]))


def test_a_value_range_maps_every_deep_image_alike(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", TWELVE_BITS, photometric="rgb")
    pixels = read_image(tmp_path / "a.tif", value_range=(100, 1100))
    np.testing.assert_array_equal(pixels, np.rint(np.clip((TWELVE_BITS - 100.0) / 1000, 0, 1) * 255))
    Image.fromarray(COLOUR).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png", value_range=(100, 1100)), COLOUR)


def test_a_flat_deep_image_is_grey_not_an_error(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 900, np.uint16)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 128).all()


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_holes_of_a_float_tiff_are_zero_and_not_stretched(tmp_path: Path, compression: str | None) -> None:
    values = (RIGHT / WIDTH).astype(np.float32)
    holed = values.copy()
    holed[0, 0], holed[0, 1], holed[0, 2] = np.nan, np.inf, -9999
    nodata = (42113, "s", 0, "-9999", True)
    tifffile.imwrite(tmp_path / "a.tif", holed, compression=compression, extratags=[nodata])
    pixels = read_image(tmp_path / "a.tif", bands=1)[:, :, 0]
    assert (pixels[0, :3] == 0).all()
    sound = stretched(holed[(holed >= 0) & (holed < 2)])
    np.testing.assert_array_equal(pixels.reshape(-1)[3:], sound)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_chunky_and_planar_multi_band_tiffs_give_the_same_pixels(
    tmp_path: Path, planar: str, compression: str | None, dtype: type[np.generic]
) -> None:
    values = np.stack([DOWN * k + RIGHT * 3 for k in range(7)], axis=-1).astype(dtype)
    written = values if planar == "contig" else np.moveaxis(values, -1, 0)
    options: dict[str, Any] = {"planarconfig": planar, "photometric": "minisblack", "compression": compression}
    tifffile.imwrite(tmp_path / "a.tif", written, **options)
    for bands in (7, 5, 3):
        chosen = values[:, :, :bands]
        expected = chosen if dtype == np.uint8 else stretched(chosen)
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif", bands), expected)


def test_pages_are_bands(tmp_path: Path) -> None:
    values = np.stack([DOWN * k + RIGHT * 3 for k in range(5)]).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 5), np.moveaxis(values, 0, -1))


def test_an_overview_page_is_not_a_band(tmp_path: Path) -> None:
    values = (GREY * 5).astype(np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(values, photometric="minisblack")
        tif.write(values, photometric="minisblack", subfiletype=1)
    with pytest.raises(UnreadableImage, match="has 1 band "):
        read_image(tmp_path / "a.tif", 2)


def test_alpha_of_a_deep_tiff_is_no_band(tmp_path: Path) -> None:
    values = with_alpha(TWELVE_BITS, 65535)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), stretched(TWELVE_BITS))
    with pytest.raises(UnreadableImage, match=r"a\.tif: has 3 bands \(without alpha\), expected at least 4"):
        read_image(tmp_path / "a.tif", 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_fourth_band_that_is_not_alpha_is_kept(tmp_path: Path, dtype: type[np.generic]) -> None:
    values = with_alpha(COLOUR).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 4), values if dtype == np.uint8 else stretched(values))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_negative_tiff_is_turned(tmp_path: Path, dtype: type[np.uint8 | np.uint16]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(dtype), photometric="miniswhite")
    negative = np.iinfo(dtype).max - GREY.astype(float)
    expected = negative if dtype == np.uint8 else stretched(negative)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif", 1)[:, :, 0], expected, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg", exif=exif, quality=95)
    deep = TWELVE_BITS[:, :, :2].sum(axis=2).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="minisblack", extratags=[(274, "H", 1, orientation, True)])
    tagged = Image.fromarray(COLOUR)
    tagged.getexif()[0x0112] = orientation
    turned = np.asarray(ImageOps.exif_transpose(tagged))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), turned)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - turned).mean() < 5
    picture = Image.fromarray(deep.astype(np.float32))
    picture.getexif()[0x0112] = orientation
    expected = stretched(np.asarray(ImageOps.exif_transpose(picture)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 1)[:, :, 0], expected)


def test_broken_exif_data_does_not_cost_the_image(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg", exif=b"Exif\0\0nonsense" * 3, quality=95)
    assert read_image(tmp_path / "a.jpg").shape == COLOUR.shape


def test_the_content_counts_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a", "PNG")
    (tmp_path / "a").rename(tmp_path / "a.jpg")
    tifffile.imwrite(tmp_path / "b.png", COLOUR, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), COLOUR)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), COLOUR)


def write_bad(path: Path, kind: str) -> None:
    if kind in ("empty", "text", "svg"):
        path.write_bytes({"empty": b"", "text": b"no picture at all\n", "svg": b"<svg/>"}[kind])
    elif kind == "tiff header":
        path.write_bytes(b"II*\0\x08\0\0\0")
    elif kind == "deep tiff":
        noise = np.random.default_rng(0).integers(0, 4096, (64, 64, 6), np.uint16)
        tifffile.imwrite(path, noise, photometric="minisblack", planarconfig="contig")
        path.write_bytes(path.read_bytes()[:20_000])
    elif kind == "deep png":
        write_deep_png(path, np.random.default_rng(0).integers(0, 4096, (64, 64, 3)))
        path.write_bytes(path.read_bytes()[:9_000])
    else:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "the file is empty"),
        ("text", "not a JPEG, PNG, TIFF or WebP image"),
        ("svg", "not a JPEG, PNG, TIFF or WebP image"),
        ("tiff header", "."),
        ("deep tiff", "truncated"),
        ("deep png", "."),
        ("JPEG", "truncated"),
        ("PNG", "."),
        ("TIFF", "."),
        ("WEBP", "the file is damaged"),
    ],
)
def test_a_bad_file_is_named_with_a_short_reason(tmp_path: Path, kind: str, reason: str) -> None:
    path = tmp_path / "bad scene.jpg"
    write_bad(path, kind)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_image(path)
    assert isinstance(caught.value, UserError)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    assert 3 < len(caught.value.reason) < 160 and "\n" not in caught.value.reason


def test_a_missing_file_and_a_folder_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="no such file"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(UnreadableImage, match="is a directory"):
        read_image(tmp_path)


def test_a_chunk_that_claims_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[33:37] = b"\xff\xff\0\0"  # the length of the chunk with the pixels
    (tmp_path / "a.png").write_bytes(data)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), COLOUR)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["png", "deep png", "deep tiff"])
def test_more_pixels_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / "a.tif"
    if kind == "png":
        Image.fromarray(COLOUR).save(path, "PNG")
    elif kind == "deep png":
        write_deep_png(path, TWELVE_BITS)
    else:
        tifffile.imwrite(path, TWELVE_BITS, photometric="rgb")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH)
    read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    with warnings.catch_warnings(), pytest.raises(UnreadableImage, match=r"36 x 24 pixels, more than the limit of 863"):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        read_image(path)


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage(Path("a.jpg"), "truncated")))
    assert (str(error), error.path, error.reason) == ("a.jpg: truncated", Path("a.jpg"), "truncated")


@pytest.mark.parametrize("bands", [1, 3, 5])
@pytest.mark.parametrize("side", [16, 97])
def test_a_scene_is_square_and_shows_the_same(tmp_path: Path, bands: int, side: int) -> None:
    values = np.stack([DOWN * 10, RIGHT * 7, DOWN * 3 + RIGHT, 200 - DOWN, 90 + RIGHT], axis=-1).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig")
    scene = read_scene(tmp_path / "a.tif", side, bands)
    assert scene.shape == (side, side, bands) and scene.dtype == np.uint8 and scene.flags.c_contiguous
    whole = read_image(tmp_path / "a.tif", bands)
    np.testing.assert_allclose(scene.mean(axis=(0, 1)), whole.mean(axis=(0, 1)), atol=1.5)


def test_a_scene_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    assert np.abs(read_scene(tmp_path / "a.png", 30).astype(int) - 127.5).max() < 8


def test_the_shortcut_for_large_jpegs_changes_next_to_nothing(tmp_path: Path) -> None:
    down, right = np.mgrid[0:600, 0:600]
    waves = np.stack([np.sin(right / 9) * np.cos(down / 14), np.cos(right / 20), np.sin((right + down) / 30)], axis=-1)
    Image.fromarray((waves * 100 + 128).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    assert read_image(tmp_path / "a.jpg", at_least=256).shape == (300, 300, 3)
    assert read_image(tmp_path / "a.jpg", at_least=301).shape == (600, 600, 3)
    slow = Image.open(tmp_path / "a.jpg").resize((128, 128), Image.Resampling.BICUBIC)
    assert np.abs(read_scene(tmp_path / "a.jpg", 128).astype(int) - np.asarray(slow)).mean() < 1


def test_a_compression_that_needs_another_library_says_so(tmp_path: Path) -> None:
    values = (RIGHT * 100).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", compression="tiff_lzw")
    try:
        pixels = read_image(tmp_path / "a.tif", 1)
    except UnreadableImage as error:
        assert error.reason == "LZW in a TIFF needs `pip install imagecodecs`"
    else:
        np.testing.assert_array_equal(pixels[:, :, 0], stretched(values))
