"""Which named files are maps: GDAL is asked, whatever the ending and wherever the place is written."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from scenedistill.core.disk import shown_path
from scenedistill.core.errors import UserError
from scenedistill.inference.inputs import find_inputs

rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")

PLACE = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
WORLD_FILE = "10\n0\n0\n-10\n500005\n4999995\n"
PIXELS = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
ODD = "M\udcfcller"  # the byte FC, which is no UTF-8

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def tiff(path: Path, **more: Any) -> Path:
    shape = {"driver": "GTiff", "width": 40, "height": 40, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **{**shape, **more}) as file:
        file.write(PIXELS.transpose(2, 0, 1))
    return path


def picture(path: Path, world_file: str = "") -> Path:
    Image.fromarray(PIXELS).save(path)
    if world_file:
        path.with_suffix(world_file).write_text(WORLD_FILE)
    return path


def with_aux(path: Path) -> Path:
    with rasterio.open(picture(path), "r+") as file:
        file.transform, file.crs = PLACE, "EPSG:32632"
    assert Path(f"{path}.aux.xml").exists()
    return path


def corners() -> list[Any]:
    point = rasterio.control.GroundControlPoint
    places = [(0, 0), (0, 40), (40, 0), (40, 40)]
    return [point(row, column, 500_000 + 10 * column, 5e6 - 10 * row + row * column / 99) for row, column in places]


PLACED = {
    "CRS and transform": lambda folder: tiff(folder / "a.tif", crs="EPSG:32632", transform=PLACE),
    "transform without CRS": lambda folder: tiff(folder / "a.tif", transform=PLACE),
    "TIFF and .tfw": lambda folder: picture(folder / "a.tif", ".tfw"),
    "PNG and .pgw": lambda folder: picture(folder / "a.png", ".pgw"),
    "JPEG and .jgw": lambda folder: picture(folder / "a.jpg", ".jgw"),
    "JPEG and .wld": lambda folder: picture(folder / "a.jpeg", ".wld"),
    "PNG and .aux.xml": lambda folder: with_aux(folder / "a.png"),
    "JPEG and .aux.xml": lambda folder: with_aux(folder / "a.jpg"),
    "capital letters": lambda folder: picture(folder / "A.PNG", ".PGW"),
}


@pytest.mark.parametrize("kind", PLACED)
def test_a_named_file_with_a_georeference_is_a_raster(tmp_path: Path, kind: str) -> None:
    path = PLACED[kind](tmp_path)
    found = find_inputs([path])
    assert found.rasters == (str(path),) and not found.images and not found.points_only
    assert find_inputs([path], raster=False).images == (path,)
    assert not find_inputs([tmp_path]).rasters, "the files of a folder are scenes"


def test_a_file_without_a_georeference_is_an_image_and_ground_control_points_are_reported(tmp_path: Path) -> None:
    plain = [picture(tmp_path / f"plain.{ending}") for ending in ("png", "jpg", "tif", "webp")]
    points = tiff(tmp_path / "points.tif", gcps=corners(), crs="EPSG:32632")
    found = find_inputs([*plain, points])
    assert found.images == (*plain, points) and not found.rasters and found.points_only == (points,)


def test_a_file_with_another_suffix_than_an_images_is_a_raster_even_if_gdal_refuses_it(tmp_path: Path) -> None:
    (tmp_path / "sea.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert find_inputs([tmp_path / "sea.nc"]).rasters == (str(tmp_path / "sea.nc"),), "--vrt_sources may allow it"


def test_names_for_gdal_may_be_too_long_for_a_file_and_patterns_must_be_valid(tmp_path: Path) -> None:
    name = f"/vsicurl/https://site.example/{300 * 'x'}"
    assert find_inputs([name], raster=True).rasters == (name,)
    with pytest.raises(UserError, match="There is nothing at"):
        find_inputs([name])
    with pytest.raises(UserError, match=r"a\*\*/b.png is no pattern"):
        find_inputs([f"{tmp_path}/a**/b.png"])


def test_a_raster_whose_name_is_not_utf8_must_be_renamed(tmp_path: Path) -> None:
    plain, placed, beside = (tmp_path / f"{ODD} {number}.tif" for number in range(3))
    for path, place in ((plain, {}), (placed, {"crs": "EPSG:32632", "transform": PLACE}), (beside, {})):
        tiff(tmp_path / "a.tif", **place).rename(path)
    beside.with_suffix(".tfw").write_text(WORLD_FILE)
    assert find_inputs([plain]).images == (plain,)
    for path in (placed, beside):
        with pytest.raises(UserError, match=r"M\\xfcller \d.tif is a raster .* only names in UTF-8. Rename it") as told:
            find_inputs([path])
        str(told.value).encode()
        assert find_inputs([path], raster=False).images == (path,)
    assert shown_path(placed) == os.fsencode(placed).decode("utf-8", "backslashreplace")


@pytest.mark.parametrize("kind", ["CRS and transform", "transform without CRS", "TIFF and .tfw", "PNG and .pgw"])
def test_without_rasterio_no_raster_is_treated_as_a_photograph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = PLACED[kind](tmp_path)
    tifffile.imwrite(tmp_path / "plain.tif", PIXELS)
    monkeypatch.setitem(sys.modules, "rasterio", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"is a raster .*scenedistill\[use\]"):
        find_inputs([path])
    assert find_inputs([tmp_path / "plain.tif"]).images == (tmp_path / "plain.tif",)
