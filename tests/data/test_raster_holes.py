"""Constants that most likely mean no data, and images that have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from scenedistill.cli import main
from scenedistill.data.cache.build import build_cache
from scenedistill.data.images.read import read_image
from scenedistill.data.raster.holes import Constant, find_suspected_nodata
from scenedistill.data.scenes import scan

RNG = np.random.default_rng(0)
REFLECTANCE = RNG.uniform(0, 0.4, (3, 20_000)).astype(np.float32)
COUNTS = RNG.normal(3000, 900, (4, 20_000)).clip(200, 9000).astype(np.uint16)
HEIGHTS = RNG.normal(300, 90, (1, 20_000)).astype(np.int16)
PHOTOGRAPH = RNG.normal(120, 30, (3, 20_000)).clip(20, 240).astype(np.uint8)


def holed(values: np.ndarray, constant: float, share: float) -> np.ndarray:
    values = values.copy()
    values[:, : int(share * values.shape[1])] = constant
    return values


@pytest.mark.parametrize(
    ("values", "constant", "shown"),
    [
        (REFLECTANCE, -9999, "-9999"),
        (REFLECTANCE, 1e20, "1e+20"),
        (REFLECTANCE, -3.4028235e38, "-3.4028235e+38"),
        (REFLECTANCE.astype(np.float64), -1.7976931348623157e308, "-1.7976931348623157e+308"),
        (REFLECTANCE + 0.2, 0, "0"),
        (COUNTS, 0, "0"),
        (COUNTS, 65535, "65535"),
        (HEIGHTS, -32768, "-32768"),
        (HEIGHTS.astype(np.int32), -(2**31), "-2147483648"),
        (PHOTOGRAPH, 0, "0"),  # a black border
        (PHOTOGRAPH, 255, "255"),
    ],
)
@pytest.mark.parametrize("share", [0.02, 0.2, 0.7])
def test_a_constant_far_from_the_rest_is_found(values: np.ndarray, constant: float, shown: str, share: float) -> None:
    found = find_suspected_nodata(holed(values, constant, share))
    assert found is not None and found.share == pytest.approx(share, abs=0.002)
    assert np.asarray(found.value).astype(values.dtype) == np.asarray(constant).astype(values.dtype)
    assert str(found).startswith(f"About {share:.0%} of the pixels are {shown}, far from all others (")
    assert found.advice == f"If they are holes, give --nodata {shown}."
    others = values.astype(np.float64)
    assert others.min() <= found.low < found.high <= others.max()


def test_a_constant_of_one_band_alone_is_found() -> None:
    values = np.stack([holed(REFLECTANCE, -9999, 0.2)[0], *REFLECTANCE[1:]])
    found = find_suspected_nodata(values)
    assert found is not None and found.value == -9999 and found.share == pytest.approx(0.2, abs=0.002)


@pytest.mark.parametrize(
    "values",
    [
        REFLECTANCE,
        COUNTS,
        HEIGHTS,
        PHOTOGRAPH,
        holed(REFLECTANCE, -9999, 0.005),  # not enough of them
        holed(COUNTS, 3100, 0.3),  # amidst the others, such as water
        RNG.normal(120, 90, (3, 20_000)).clip(0, 255).astype(np.uint8),  # dark and bright ends that are cut
        RNG.integers(0, 9, (1, 20_000)).astype(np.uint8) * 20,  # classes
        np.full((3, 500), 7, np.uint16),
        np.zeros((3, 0), np.float32),
    ],
)
def test_an_image_without_such_a_constant_has_none(values: np.ndarray) -> None:
    assert find_suspected_nodata(values) is None


@pytest.mark.shared_data
def test_hardly_any_real_image_has_one(aid_folder: Path) -> None:
    paths = sorted(aid_folder.rglob("*.jpg"))[::100]
    found = [find_suspected_nodata(read_image(path).reshape(-1, 3).T) for path in paths]
    assert len(paths) > 50 and sum(one is not None for one in found) <= len(paths) // 50


@pytest.fixture
def holed_folder(tmp_path: Path) -> Path:
    """Two float images in folders of their classes, the second one with -9999 in a fifth of the pixels, unsaid."""
    values = np.random.default_rng(0).uniform(0, 0.4, (2, 40, 40)).astype(np.float32)
    values[1, :8] = -9999
    for name, image in zip(("bare", "field"), values, strict=True):
        (tmp_path / "holed" / name).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "holed" / name / "1.tif", image)
    return tmp_path / "holed"


def test_a_single_image_with_a_constant_is_reported(
    holed_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "field/1.tif: About 20% of the pixels are -9999, far from all others"
    cache = build_cache(scan(holed_folder), 16, folder=tmp_path / "cache", progress=False)
    assert said in capsys.readouterr().err and len(cache.images) == 2
    assert main(["data", "check", str(holed_folder)]) == 0
    told = capsys.readouterr().out
    assert said in told and "rio edit-info --nodata -9999 FILE" in told and "bare" not in told
    file, found = holed_folder / "field" / "1.tif", dict[Path, Constant]()
    tifffile.imwrite(file, tifffile.imread(file), extratags=[(42113, "s", 0, "-9999", False)])
    pixels = read_image(file, constants=found)
    assert not found and pixels[8:].mean() == pytest.approx(127, abs=10), "a file that says so itself is read right"
