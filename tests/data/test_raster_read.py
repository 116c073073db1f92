"""Pixels of rasters of every kind as uint8, with their holes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")

import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from scenedistill.core.errors import UserError
from scenedistill.data.images.read import read_image
from scenedistill.data.raster import read as raster_read
from scenedistill.data.raster.read import open_raster, raster_info, read_pixels

pytestmark = pytest.mark.filterwarnings(f"ignore::{NotGeoreferencedWarning.__module__}.NotGeoreferencedWarning")
RNG = np.random.default_rng(0)


def write(path: Path, bands: np.ndarray, **more: Any) -> Path:
    """Bands `[C, H, W]` as a file."""
    after = {name: more.pop(name) for name in ("colorinterp", "mask", "palette") if name in more}
    count, height, width = bands.shape
    given = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype, **more}
    with rasterio.open(path, "w", **given) as file:
        file.write(bands)
        if "colorinterp" in after:
            file.colorinterp = after["colorinterp"]
        if "palette" in after:
            file.write_colormap(1, after["palette"])
        if "mask" in after:
            file.write_mask(after["mask"])
    return path


def read(path: Path, wanted: int = 3, part: tuple[int, int, int, int] | None = None, **more: Any) -> Any:
    with open_raster(path) as raster:
        source = raster_info(raster, wanted, **more)
        return read_pixels(raster, source, *(part or (0, 0, raster.height, raster.width)))


@pytest.fixture
def colours() -> np.ndarray:
    return RNG.integers(0, 256, (4, 40, 50), dtype=np.uint8)


FOUR = {"photometric": "MINISBLACK", "ALPHA": "NO"}  # GDAL takes a fourth 8-bit band for alpha


def test_bands_come_in_the_order_asked_for(tmp_path: Path, colours: np.ndarray) -> None:
    path = write(tmp_path / "a.tif", colours, **FOUR)
    assert np.array_equal(read(path)[0], colours[:3].transpose(1, 2, 0))
    assert np.array_equal(read(path, bands=[4, 2, 1])[0], colours[[3, 1, 0]].transpose(1, 2, 0))
    assert np.array_equal(read(path, 4)[0], colours.transpose(1, 2, 0))
    part, valid = read(path, part=(5, 7, 20, 30))
    assert np.array_equal(part, colours[:3, 5:25, 7:37].transpose(1, 2, 0)) and valid is None


def test_slabs_of_rows_are_put_together(tmp_path: Path, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    colours[:, 11:30, :9] = 0
    path = write(tmp_path / "a.tif", colours, nodata=0)
    whole, known = read(path)
    monkeypatch.setattr(raster_read, "SLAB_BYTES", 50 * 3 * 7)  # seven rows
    pixels, valid = read(path)
    assert np.array_equal(pixels, whole) and np.array_equal(valid, known)
    assert np.array_equal(valid, colours[:3].any(0)) and not valid.all()


def test_grey_and_palettes_become_three_bands_and_three_bands_grey(tmp_path: Path, colours: np.ndarray) -> None:
    grey = write(tmp_path / "grey.tif", colours[:1])
    assert np.array_equal(read(grey)[0], np.repeat(colours[0, :, :, None], 3, axis=2))
    three = write(tmp_path / "three.png", colours[:3], driver="PNG")
    assert np.array_equal(read(three, 1)[0], read_image(three, 1))
    table = {value: (value, 255 - value, value // 2, 255) for value in range(256)}
    palette = write(tmp_path / "palette.tif", colours[:1], palette=table, photometric="palette")
    expected = np.stack([colours[0], 255 - colours[0], colours[0] // 2], axis=2)
    assert np.array_equal(read(palette)[0], expected)


@pytest.mark.parametrize("kind", ["uint16", "int16", "float32", "float64", "int32"])
def test_deep_values_are_stretched_as_image_files_are(tmp_path: Path, kind: str) -> None:
    values = (RNG.normal(900, 300, (3, 40, 50)) - (700 if kind != "uint16" else 0)).clip(
        0 if kind == "uint16" else -5000, 5000
    )
    path = write(tmp_path / "deep.tif", values.astype(kind))
    expected = read_image(path)  # its own 2nd to 98th percentile over the bands together
    found, _ = read(path)
    assert np.abs(found.astype(int) - expected).max() <= (1 if kind == "float32" else 0)
    fixed, _ = read(path, stretch="100, 1500")
    assert np.array_equal(fixed, read_image(path, value_range=(100, 1500)))


def test_percentiles_may_be_chosen_for_each_band(tmp_path: Path) -> None:
    values = (np.arange(2000).reshape(1, 40, 50) * np.array([1, 2, 3])[:, None, None]).astype(np.uint16)
    path = write(tmp_path / "deep.tif", values)
    with open_raster(path) as raster:
        assert raster_info(raster, 3, stretch="0%,100%").stretch == ((0, 5997),) * 3
        each = raster_info(raster, 3, stretch="0%,100%", each_band=True)
        assert each.stretch == ((0, 1999), (0, 3998), (0, 5997))
    assert [int(band.max()) for band in read(path, stretch="10,1009")[0].transpose(2, 0, 1)] == [255] * 3


def test_eight_bits_stay_unless_a_stretch_is_given(tmp_path: Path, colours: np.ndarray) -> None:
    path = write(tmp_path / "a.tif", colours[:3] // 4)
    assert np.array_equal(read(path)[0], (colours[:3] // 4).transpose(1, 2, 0))
    assert read(path, stretch="0,63")[0].max() == 255
    assert np.array_equal(read(path, stretch="none")[0], read(path)[0])


def test_a_flat_raster_is_mid_grey(tmp_path: Path) -> None:
    assert (read(write(tmp_path / "flat.tif", np.full((3, 9, 9), 700, np.uint16)))[0] == 128).all()


def test_percentiles_of_a_large_raster_are_taken_all_over_it_and_not_from_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raster_read, "PATCHES", 4)
    monkeypatch.setattr(raster_read, "PATCH", 8)
    ramp = np.broadcast_to(np.arange(1, 201, dtype=np.float32), (1, 100, 200)).copy()
    ramp[:, 50:] = -9999
    with open_raster(write(tmp_path / "ramp.tif", ramp, nodata=-9999)) as raster:
        ((low, high),) = raster_info(raster, 1, stretch="0%,100%").stretch or ()
    assert (low, high) == (1, 200)


def test_a_pixel_is_a_hole_where_all_bands_say_so(tmp_path: Path, colours: np.ndarray) -> None:
    colours[:] = colours.clip(1)
    colours[:, :10] = 0
    colours[0, 20:30] = 0  # dark in one band only
    _, valid = read(write(tmp_path / "a.tif", colours, nodata=0))
    assert np.array_equal(valid, np.repeat(np.arange(40) >= 10, 50).reshape(40, 50))
    plain = write(tmp_path / "plain.tif", colours[:3])
    assert read(plain)[1] is None
    assert np.array_equal(read(plain, nodata=0)[1], valid)  # said by the user


def test_masks_and_alpha_mark_holes(tmp_path: Path, colours: np.ndarray) -> None:
    mask = RNG.random((40, 50)) < 0.7
    inside = write(tmp_path / "mask.tif", colours[:3], mask=mask)
    pixels, valid = read(inside)
    assert np.array_equal(valid, mask) and np.array_equal(pixels, colours[:3].transpose(1, 2, 0))
    rgba = np.concatenate([colours[:3], (mask * 255)[None].astype(np.uint8)])
    rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    alpha = write(tmp_path / "alpha.tif", rgba, colorinterp=rgb)
    pixels, valid = read(alpha)
    assert np.array_equal(valid, mask) and pixels.shape[2] == 3
    with pytest.raises(UserError, match=r"takes 4 bands; .* has 3 \(without alpha\)"):
        read(alpha, 4)
    pixels, valid = read(alpha, 4, bands=[1, 2, 3, 4])  # a near infrared that was declared wrongly
    assert valid is None and np.array_equal(pixels, rgba.transpose(1, 2, 0))


def test_nan_and_infinity_are_holes(tmp_path: Path) -> None:
    values = RNG.random((3, 20, 20), dtype=np.float32)
    values[1, :5] = np.nan
    values[0, 5:8] = np.inf
    pixels, valid = read(write(tmp_path / "a.tif", values), stretch="0,1")
    assert np.array_equal(valid, np.repeat(np.arange(20) >= 8, 20).reshape(20, 20))
    assert np.array_equal(pixels[8:], np.rint(values[:, 8:] * np.float64(255)).astype(np.uint8).transpose(1, 2, 0))
    _, valid = read(write(tmp_path / "b.tif", values, nodata=float("nan")), stretch="0,1")
    assert np.array_equal(valid, np.repeat(np.arange(20) >= 8, 20).reshape(20, 20))


def test_other_formats_and_virtual_rasters(tmp_path: Path, colours: np.ndarray) -> None:
    first = write(tmp_path / "a.tif", colours[:3])
    rasterio.shutil.copy(str(first), str(tmp_path / "a.vrt"), driver="VRT")
    rasterio.shutil.copy(str(first), str(tmp_path / "cog.tif"), driver="COG")
    write(tmp_path / "a.img", colours[:3], driver="HFA")
    for name in ("a.vrt", "cog.tif", "a.img"):
        assert np.array_equal(read(tmp_path / name)[0], colours[:3].transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"bands": [1, 2, 5]}, "--bands 5: .* has bands 1 to 4"),
        ({"bands": [0, 1, 2]}, "--bands 0"),
        ({"bands": [1, 2]}, "--bands names 2. Name 3 with --bands"),
        ({"stretch": "5"}, "--stretch 5: expected auto"),
        ({"stretch": "9,3"}, "--stretch 9,3"),
        ({"stretch": "1%,120%"}, "--stretch 1%,120%"),
        ({"stretch": "nan,3"}, "--stretch nan,3"),
    ],
)
def test_impossible_bands_and_stretches_are_refused(tmp_path: Path, colours: np.ndarray, more: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(write(tmp_path / "a.tif", colours), **more)


def test_values_that_are_no_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="complex64"):
        read(write(tmp_path / "a.tif", np.zeros((3, 9, 9), np.complex64)))
    with pytest.raises(UserError, match="--stretch none is for 8-bit"):
        read(write(tmp_path / "b.tif", np.zeros((3, 9, 9), np.uint16)), stretch="none")
    with pytest.raises(UserError, match="no data at all"):
        read(write(tmp_path / "c.tif", np.zeros((3, 9, 9), np.uint16), nodata=0))


def test_errors_of_gdal_are_reported_in_one_line(tmp_path: Path, colours: np.ndarray) -> None:
    path = write(tmp_path / "a.tif", colours[:3], compress="deflate")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    (tmp_path / "text.tif").write_text("no raster")
    rasterio.shutil.copy(str(write(tmp_path / "b.tif", colours[:3])), str(tmp_path / "b.vrt"), driver="VRT")
    (tmp_path / "b.tif").unlink()
    for name, said in [
        ("gone.tif", r"gone.tif cannot be opened as a raster: No such file or directory$"),
        ("text.tif", r"text.tif cannot be opened as a raster: not recognized as being in a supported file format\.$"),
        ("a.tif", r"a.tif cannot be (read at rows 0 to 39, columns 0 to 49|opened as a raster): \w"),
        ("b.vrt", r"b.vrt cannot be read at rows 0 to 39, columns 0 to 49: .*b.tif: No such file"),
    ]:
        with pytest.raises(UserError, match=said) as caught:
            read(tmp_path / name)
        assert len(str(caught.value).splitlines()) <= 2


def test_the_drivers_can_be_limited(tmp_path: Path, colours: np.ndarray) -> None:
    path = write(tmp_path / "a.tif", colours)
    rasterio.shutil.copy(str(path), str(tmp_path / "a.vrt"), driver="VRT")
    open_raster(path, ["PNG", "GTiff"]).close()
    with pytest.raises(UserError, match="cannot be opened"):
        open_raster(tmp_path / "a.vrt", ["PNG", "GTiff"])


def test_a_file_with_several_rasters_lists_them(tmp_path: Path, colours: np.ndarray) -> None:
    path = str(tmp_path / "two.gpkg")
    for table, more in (("first", {}), ("second", {"APPEND_SUBDATASET": "YES"})):
        with rasterio.open(
            path, "w", driver="GPKG", count=3, height=40, width=50, dtype="uint8", crs="EPSG:3857",
            transform=rasterio.Affine(1, 0, 0, 0, -1, 0), RASTER_TABLE=table, **more,
        ) as file:  # fmt: skip
            file.write(colours[:3])
    with pytest.raises(UserError, match=r"several rasters.*\n  GPKG:.*:first\n  GPKG:.*:second"):
        open_raster(path)
    open_raster(f"GPKG:{path}:second").close()


def two_types(folder: Path, first: np.ndarray, second: np.ndarray, nodata: tuple[str, str] = ("", "")) -> Path:
    """A virtual raster of two bands of different types."""
    height, width = first.shape
    lines = [f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">']
    for number, (values, kind, empty) in enumerate(zip((first, second), ("Byte", "UInt16"), nodata, strict=True), 1):
        write(folder / f"{number}.tif", values[None])
        lines.append(f'<VRTRasterBand dataType="{kind}" band="{number}">')
        lines.append(f"<NoDataValue>{empty}</NoDataValue>" if empty else "")
        lines.append(f'<SimpleSource><SourceFilename relativeToVRT="1">{number}.tif</SourceFilename></SimpleSource>')
        lines.append("</VRTRasterBand>")
    (folder / "two.vrt").write_text("".join(lines) + "</VRTDataset>")
    return folder / "two.vrt"


def test_bands_of_different_types_are_read_together(tmp_path: Path) -> None:
    first: np.ndarray = RNG.integers(1, 256, (20, 30), dtype=np.uint8)
    second: np.ndarray = RNG.integers(1, 4000, (20, 30), dtype=np.uint16)
    first[:5], second[:5] = 0, 3999
    first[5, 0] = 1  # the least there is, whatever was drawn
    path = two_types(tmp_path, first, second, ("0", "3999"))
    pixels, valid = read(path, 2, stretch="0,3998")
    assert np.array_equal(valid, np.repeat(np.arange(20) >= 5, 30).reshape(20, 30))
    for band, values in zip(pixels.transpose(2, 0, 1), (first, second), strict=True):
        assert np.array_equal(band[5:], np.rint(values[5:] / 3998 * 255).astype(np.uint8))
    with open_raster(path) as raster:
        assert raster_info(raster, 2, stretch="0%,100%").stretch == ((1, second[5:].max()),) * 2
    with pytest.raises(UserError, match=r"--nodata 3999: band 1 .* is uint8"):
        read(path, 2, nodata=3999)


@pytest.mark.parametrize(
    ("kind", "nodata"),
    [
        ("uint8", 256),
        ("uint8", 0.5),
        ("uint8", float("nan")),
        ("uint16", -9999),
        ("int16", float("inf")),
        ("float32", 1e300),
    ],
)
def test_a_nodata_value_that_bands_cannot_hold_is_refused(tmp_path: Path, kind: str, nodata: float) -> None:
    path = write(tmp_path / "a.tif", np.zeros((3, 9, 9), kind))
    with pytest.raises(UserError, match=rf"--nodata .*: band 1 of .*a.tif is {kind} and cannot hold it"):
        read(path, nodata=nodata, stretch="0,1")


def test_a_file_whose_nodata_value_no_pixel_can_have_has_no_holes(tmp_path: Path) -> None:
    first, second = np.zeros((9, 9), np.uint8), np.full((9, 9), 55_537, np.uint16)  # -9999, were it cut to 16 bits
    path = two_types(tmp_path, first, second, ("256", "-9999"))
    assert read(path, 2, stretch="0,1")[1] is None
    assert read(path, 2, stretch="0,1", nodata=0)[1] is None  # the second band has data


def test_a_real_nodata_value_is_rounded_as_the_band_rounds_it(tmp_path: Path) -> None:
    values = np.ones((3, 9, 9), np.float32)
    values[:, :4] = 0.1
    _, valid = read(write(tmp_path / "a.tif", values), nodata=0.1, stretch="0,1")
    assert valid is not None and not valid[:4].any() and valid[4:].all()
