"""A raster goes in, and every class comes out at its place: whole, in several processes, and after a kill."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

pytest.importorskip("pyogrio", reason="needs pyogrio: pip install -e '.[use]'")
pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")

import pyogrio.raw
import rasterio
import rasterio.shutil
from rasterio import Affine
from rasterio.windows import Window

from scenedistill.commands.parsing import CommandParser, build_config
from scenedistill.core.errors import UserError
from scenedistill.inference.model import SceneModel, open_model
from scenedistill.inference.raster.config import RasterConfig, RasterResult
from scenedistill.inference.raster.pipeline import map_raster
from scenedistill.inference.raster.work import Times
from scenedistill.models.create import build_student
from scenedistill.models.files import NetCard, save_net

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
WORKER = Path(__file__).with_name("raster_worker.py")
_worker = runpy.run_path(str(WORKER))
Colours, COLOURS, CLASSES = _worker["Colours"], _worker["COLOURS"], _worker["CLASSES"]

PLACES = {
    "utm": ("EPSG:32633", Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)),
    "turned": ("EPSG:32633", Affine(0.4, 0.3, 500_000, 0.3, -0.4, 5_000_000)),
    "degrees": ("EPSG:4326", Affine(1e-5, 0, 15, 0, -1e-5, 45)),
    "south up": ("EPSG:3857", Affine(2, 0, 1e6, 0, 2, 5e6)),
    "own place": (None, Affine(1, 0, 70, 0, -1, 90)),
}


def mosaic(rows: int, columns: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Class of each square, and the squares as uint8 `[3, H, W]`, the last ones cut."""
    labels = np.random.default_rng(seed).integers(0, 4, (rows, columns))
    pixels = COLOURS[np.kron(labels, np.ones((side, side), int))].astype(np.uint8)
    return labels, pixels.transpose(2, 0, 1)[:, : -side // 3, : -side // 2]


def write(path: Path, bands: np.ndarray, place: str | None = "utm", **more: Any) -> Path:
    crs, transform = PLACES[place] if place else (None, None)
    count, height, width = bands.shape
    given = {"count": count, "height": height, "width": width, "dtype": bands.dtype, "crs": crs, "transform": transform}
    with rasterio.open(path, "w", **{"driver": "GTiff", **given, **more}) as file:
        file.write(bands)
    return path


def table(path: Path, layer: str = "scenes") -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Fields of a layer, and the outer rings of its squares `[n, 5, 2]`."""
    meta, _, shapes, values = pyogrio.raw.read(path, layer=layer if path.suffix == ".gpkg" else None)
    rings = np.array([np.frombuffer(shape, "<f8", count=10, offset=13).reshape(5, 2) for shape in shapes])
    return dict(zip(meta["fields"], values, strict=True)), rings


def probabilities(path: Path) -> np.ndarray:
    """Of all cells in reading order, `[n, 4]`."""
    fields, _ = table(path)
    return np.stack([fields[f"p_{name}"] for name in CLASSES], 1)[np.lexsort((fields["column"], fields["row"]))]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small student, random but the same every time."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("student") / "weights.safetensors"
    save_net(build_student("table1_printed", 4, image_size=32), NetCard("table1_printed", CLASSES, 3, 32), path)
    return path


@pytest.mark.parametrize("place", PLACES)
def test_every_polygon_has_its_centre_and_class(tmp_path: Path, place: str) -> None:
    labels, pixels = mosaic(5, 7, 30)
    result = map_raster(Colours(), write(tmp_path / "a.tif", pixels, place), tmp_path, RasterConfig(window=30))
    assert result.polygons and result.classes
    fields, rings = table(result.polygons)
    crs, transform = PLACES[place]
    assert len(rings) == result.windows == 35 and result.left_out == 0
    with rasterio.open(result.classes) as file:
        assert file.shape == (5, 7) and (file.crs is None if crs is None else file.crs.to_string() == crs)
        band = file.read(1)
        for ring, row, column, name in zip(rings, fields["row"], fields["column"], fields["class"], strict=True):
            y, x = 30 * row, 30 * column
            bottom, right = min(y + 30, pixels.shape[1]), min(x + 30, pixels.shape[2])
            middle = ((x + right) / 2, (y + bottom) / 2)
            expected = np.array(
                (
                    transform.a * middle[0] + transform.b * middle[1] + transform.c,
                    transform.d * middle[0] + transform.e * middle[1] + transform.f,
                )
            )
            size = np.hypot(transform.a, transform.d)
            assert np.abs(ring[:4].mean(0) - expected).max() < 1e-6 * size
            if (bottom, right) == (y + 30, x + 30):
                assert np.abs(np.array(file.xy(row, column)) - expected).max() < 1e-6 * size
            if bottom < pixels.shape[1] - 20 and right < pixels.shape[2] - 20:  # the last windows show two squares
                assert name == CLASSES[labels[row, column]]
            assert CLASSES[band[file.index(*expected)]] == name


def test_polygons_hold_the_networks_result_for_each_window_alone(tmp_path: Path, student: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 100, 130), dtype=np.uint8)
    model = open_model(student, device="cpu", precision="fp32")
    config = RasterConfig(window=40, batch_size=5)
    result = map_raster(model, write(tmp_path / "a.tif", pixels), tmp_path, config)
    starts = [(y, x) for y in (0, 40, 60) for x in (0, 40, 80, 90)]  # the last ones moved inwards
    windows = [pixels[:, y : y + 40, x : x + 40].transpose(1, 2, 0) for y, x in starts]
    assert result.polygons and result.windows == 12
    np.testing.assert_allclose(probabilities(result.polygons), model.predict(windows).probabilities, atol=1e-5)


def test_overlapping_windows_are_averaged_and_all_files_agree(tmp_path: Path) -> None:
    _, pixels = mosaic(4, 6, 40)
    config = RasterConfig(window=32, overlap=0.5, regions=True)
    result = map_raster(Colours(), write(tmp_path / "a.tif", pixels), tmp_path, config)
    assert result.polygons and result.polygons == result.regions and result.classes
    _, rings = table(result.polygons)
    assert np.allclose(np.ptp(rings[:, :, 0], axis=1).max(), 16 * 0.5)  # a cell is a step
    found = probabilities(result.polygons)
    # the slow way: each cell lies in four places, less at the edges, and wholly in each
    model, total = Colours(), np.zeros((*(-(-np.array(pixels.shape[1:]) // 16)), 5))
    for i, y in enumerate(range(0, pixels.shape[1] - 16, 16)):
        for j, x in enumerate(range(0, pixels.shape[2] - 16, 16)):
            top, left = min(y, pixels.shape[1] - 32), min(x, pixels.shape[2] - 32)
            window = pixels[:, top : top + 32, left : left + 32].transpose(1, 2, 0)
            total[i : i + 2, j : j + 2, :4] += model.predict([window]).probabilities[0]
            total[i : i + 2, j : j + 2, 4] += 1
    np.testing.assert_allclose(found, (total[..., :4] / total[..., 4:]).reshape(-1, 4), atol=1e-5)
    with rasterio.open(result.classes) as file:
        assert np.array_equal(file.read(1).ravel(), found.argmax(1))
        np.testing.assert_allclose(file.read(2).ravel() * file.scales[1], found.max(1), atol=0.0021)
    assert result.cells == {name: int((found.argmax(1) == k).sum()) for k, name in enumerate(CLASSES)}
    merged, _ = table(result.regions, "regions")
    assert merged["cells"].sum() == len(found)
    for k, name in enumerate(CLASSES):
        weighted = (merged[f"p_{name}"] * merged["cells"]).sum()
        assert weighted == pytest.approx(found[:, k].sum(), rel=1e-4)
    record = json.loads(result.record.read_text(encoding="utf-8"))
    assert record["result"]["windows"] == result.windows and set(record["colours"]) == set(CLASSES)


def test_polygons_and_regions_can_be_written_as_geojson(tmp_path: Path) -> None:
    _, pixels = mosaic(3, 3, 20)
    config = RasterConfig(window=20, vectors="geojson", regions=True, classes=False)
    result = map_raster(Colours(), write(tmp_path / "a.tif", pixels), tmp_path / "out", config)
    assert result.classes is None and result.polygons and result.regions
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_regions.geojson",
        "a_scenes.geojson",
        "a_scenes.json",
    ]
    assert len(json.loads(result.polygons.read_text(encoding="utf-8"))["features"]) == 9
    assert json.loads(result.regions.read_text(encoding="utf-8"))["features"][0]["properties"]["cells"] >= 1


def test_windows_in_metres_are_as_large_on_the_ground_in_every_crs(tmp_path: Path) -> None:
    _, pixels = mosaic(5, 7, 30)
    for place, expected in (("utm", (32, 32)), ("degrees", (14, 20))):  # a pixel there is 1.11 m by 0.79 m
        raster, out = write(tmp_path / f"{place}.tif", pixels, place), tmp_path / place
        result = map_raster(Colours(), raster, out, RasterConfig(window=16, units="metres"))
        assert json.loads(result.record.read_text(encoding="utf-8"))["plan"]["window"] == list(expected)
        assert result.classes
        with rasterio.open(result.classes) as file:
            assert file.transform.a == pytest.approx(PLACES[place][1].a * expected[1])


def test_holes_are_neither_classified_nor_on_the_maps(tmp_path: Path) -> None:
    labels, pixels = mosaic(4, 4, 32)
    pixels = pixels[:, :96, :96]
    pixels[:, :32, 32:] = 0  # two windows without data
    pixels[:, 32:64, 32:52] = 0  # one with less than half
    pixels[:, 64:96, 64:70] = 0  # one with more: its hole must not be seen as black
    model = Colours()
    raster = write(tmp_path / "a.tif", pixels, nodata=0)
    result = map_raster(model, raster, tmp_path, RasterConfig(window=32, batch_size=2))
    assert (result.left_out, model.seen, result.windows) == (3, 6, 9)
    assert result.polygons and result.classes
    fields, _ = table(result.polygons)
    cells = set(zip(fields["row"].tolist(), fields["column"].tolist(), strict=True))
    assert cells == {(0, 0), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)}
    last = fields["confidence"][(fields["row"] == 2) & (fields["column"] == 2)]
    assert last[0] == pytest.approx(Colours().predict([pixels[:, 64:, 70:].transpose(1, 2, 0)]).probabilities.max())
    with rasterio.open(result.classes) as file:
        found = file.read(1)
        assert found[0].tolist() == [labels[0, 0], 255, 255] and found[1, 1] == 255
        assert np.array_equal(file.read(2) == 255, found == 255)
    # with overlap a hole stays a hole, although windows reach over it
    config = RasterConfig(window=32, overlap=0.5, min_valid=0.25, vectors="none")
    result = map_raster(Colours(), raster, tmp_path / "b", config)
    assert result.classes and result.polygons is None
    with rasterio.open(result.classes) as file:
        found = file.read(1) == 255
    assert found[:2, 2:].all() and found[2:4, 2].all() and not found[2:, 3:].any()


def test_a_raster_of_holes_gives_empty_maps(tmp_path: Path) -> None:
    raster = write(tmp_path / "a.tif", np.zeros((3, 50, 50), np.uint8), nodata=0)
    result = map_raster(Colours(), raster, tmp_path, RasterConfig(window=20, regions=True))
    assert result.left_out == result.windows == 9 and sum(result.cells.values()) == 0
    assert result.polygons and len(table(result.polygons)[1]) == 0


def test_sixteen_bits_other_bands_and_a_virtual_mosaic(tmp_path: Path) -> None:
    _, pixels = mosaic(4, 5, 30)
    deep = np.stack([pixels[2], np.full_like(pixels[0], 7), pixels[1], pixels[0]]).astype(np.uint16) * 16
    write(tmp_path / "a.tif", deep, compress="deflate", tiled=True, blockxsize=16, blockysize=16)
    rasterio.shutil.copy(str(tmp_path / "a.tif"), str(tmp_path / "a.vrt"), driver="VRT")
    config = RasterConfig(window=30, bands="4, 3, 1", stretch="0,4080")
    result = map_raster(Colours(), tmp_path / "a.vrt", tmp_path / "deep", config)
    plain = map_raster(Colours(), write(tmp_path / "b.tif", pixels), tmp_path / "plain", RasterConfig(window=30))
    assert result.polygons and plain.polygons
    np.testing.assert_allclose(probabilities(result.polygons), probabilities(plain.polygons), atol=1e-6)


def test_without_a_georeference_maps_are_in_pixels_as_qgis_shows_them(tmp_path: Path) -> None:
    _, pixels = mosaic(3, 4, 30)
    raster, said = write(tmp_path / "a.png", pixels, None, driver="PNG"), Console(record=True, quiet=False, width=200)
    result = map_raster(Colours(), raster, tmp_path, RasterConfig(window=30), console=said)
    assert "no georeference: the maps are in pixels" in said.export_text()
    assert result.polygons and result.classes
    fields, rings = table(result.polygons)
    second = rings[(fields["row"] == 1) & (fields["column"] == 2)][0]
    assert second[:4].mean(0).tolist() == [75, -45]
    with rasterio.open(result.classes) as file:
        assert file.crs is None and file.xy(1, 2) == (75, -45)
    with pytest.raises(UserError, match="no CRS, and a GeoJSON"):
        map_raster(Colours(), raster, tmp_path / "b", RasterConfig(vectors="geojson"))


def test_pixel_is_point_rasters_are_placed_as_by_gdal(tmp_path: Path) -> None:
    _, pixels = mosaic(2, 2, 30)
    raster = write(tmp_path / "a.tif", pixels)
    with rasterio.open(raster, "r+") as file:
        file.update_tags(AREA_OR_POINT="Point")
    with rasterio.open(raster) as file:
        corner = file.xy(0, 0, offset="ul")
    result = map_raster(Colours(), raster, tmp_path, RasterConfig(window=30))
    assert result.polygons and table(result.polygons)[1][0][0].tolist() == list(corner)


def test_networks_and_rasters_of_one_band_are_combined_with_three(tmp_path: Path) -> None:
    grey = write(tmp_path / "grey.tif", np.full((1, 40, 40), 90, np.uint8))
    assert map_raster(Colours(), grey, tmp_path / "a", RasterConfig(window=20)).windows == 4
    colour = write(tmp_path / "colour.tif", np.full((3, 40, 40), 90, np.uint8))
    assert map_raster(Colours(1), colour, tmp_path / "b", RasterConfig(window=20)).windows == 4


def test_finished_maps_are_not_made_again_unless_something_changed(tmp_path: Path) -> None:
    _, pixels = mosaic(3, 3, 20)
    raster, model = write(tmp_path / "a.tif", pixels), Colours()
    first = map_raster(model, raster, tmp_path, RasterConfig(window=20))
    assert model.seen == 9
    assert map_raster(model, raster, tmp_path, RasterConfig(window=20, batch_size=4)) == first and model.seen == 9
    second = map_raster(model, raster, tmp_path, RasterConfig(window=10))  # replaces the maps
    assert second.windows > 9 and model.seen == 9 + second.windows
    write(raster, pixels[:, ::-1])
    map_raster(model, raster, tmp_path, RasterConfig(window=10))
    assert model.seen == 9 + 2 * second.windows
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.tif", "a_scenes.gpkg", "a_scenes.json", "a_scenes.tif", "a_scenes.tif.aux.xml"
    ]  # fmt: skip


def test_files_of_other_programs_are_not_replaced(tmp_path: Path) -> None:
    _, pixels = mosaic(2, 2, 20)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.tif", pixels)
    out = tmp_path / "out"
    map_raster(Colours(), tmp_path / "one" / "a.tif", out, RasterConfig(window=20))
    with pytest.raises(UserError, match="another raster"):
        map_raster(Colours(), tmp_path / "two" / "a.tif", out, RasterConfig(window=20))
    write(tmp_path / "one" / "a_scenes.tif", pixels)  # a raster of the user's own
    with pytest.raises(UserError, match="there already"):
        map_raster(Colours(), tmp_path / "one" / "a.tif", tmp_path / "one", RasterConfig(window=20))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (RasterConfig(window=0), "window 0"),
        (RasterConfig(overlap=1), "overlap 1"),
        (RasterConfig(units="metres"), "--units metres needs --window"),
        (RasterConfig(bands="red"), "--bands red: expected numbers"),
        (RasterConfig(batch_size=0), "--batch_size 0"),
        (RasterConfig(min_valid=2), "--min_valid 2"),
        (RasterConfig(vectors="none", classes=False), "Nothing would be written"),
        (RasterConfig(vectors="none", regions=True), "Nothing would be written"),
        (RasterConfig(drivers=["PNG"]), "cannot be opened"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    tmp_path: Path, config: RasterConfig, said: str
) -> None:
    raster = write(tmp_path / "a.tif", mosaic(2, 2, 20)[1])
    with pytest.raises(UserError, match=said):
        map_raster(Colours(), raster, tmp_path / "out", config)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_settings_come_from_a_command_line() -> None:
    parser = CommandParser()
    parser.add_class_arguments(RasterConfig)

    def config(*words: str) -> RasterConfig:
        return build_config(RasterConfig, parser.parse_args(list(words)))

    assert config() == RasterConfig()
    assert config("--bands", "3,2,1", "--stretch", "2%,98%", "--window", "300", "--units", "metres") == RasterConfig(
        bands="3,2,1", stretch="2%,98%", window=300, units="metres"
    )
    assert config("--bands", "[3, 2, 1]").bands == [3, 2, 1]
    assert config("--bands", "2", "--stretch", "0,4000").stretch == "0,4000"


def test_results_before_an_unreadable_part_are_kept_for_the_next_try(tmp_path: Path) -> None:
    _, pixels = mosaic(6, 4, 32)
    middle, (height, width) = pixels.shape[1] // 2, pixels.shape[1:]
    write(tmp_path / "top.tif", pixels[:, :middle])
    bands = []
    for band in (1, 2, 3):
        bands.append(f'<VRTRasterBand dataType="Byte" band="{band}">')
        for name, top, rows in (("top", 0, middle), ("bottom", middle, height - middle)):
            size = f'xSize="{width}" ySize="{rows}"'
            bands += [
                f'<SimpleSource><SourceFilename relativeToVRT="1">{name}.tif</SourceFilename>',
                f"<SourceBand>{band}</SourceBand>",
                f'<SourceProperties RasterXSize="{width}" RasterYSize="{rows}" DataType="Byte"/>',
                f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="0" yOff="{top}" {size}/></SimpleSource>',
            ]
        bands.append("</VRTRasterBand>")
    raster = tmp_path / "a.vrt"
    raster.write_text(f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{"".join(bands)}</VRTDataset>')
    config, out = RasterConfig(window=32, batch_size=2), tmp_path / "out"
    with pytest.raises(UserError, match=r"a.vrt cannot be read at rows .*bottom.tif: No such file"):
        map_raster(Colours(), raster, out, config)
    kept = answered(out)
    write(tmp_path / "bottom.tif", pixels[:, middle:])
    model = Colours()
    result = map_raster(model, raster, out, config)
    assert 0 < kept == result.resumed < result.windows and model.seen == result.windows - kept
    same_maps(result, map_raster(Colours(), write(tmp_path / "b.tif", pixels, None), tmp_path / "b", config))


def start(raster: Path, out: Path, model: str | Path, **settings: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(WORKER), str(raster), str(out), json.dumps(settings), str(model)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE)


def wait_for(happened: Any, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, "the process ended before it could be killed"
        assert time.monotonic() < end, "the process made no progress"
        time.sleep(0.01)


def answered(out: Path) -> int:
    """How many windows an unfinished run has kept."""
    found = out / "a_scenes.part" / "done.bin"
    return sum(found.read_bytes()) if found.exists() else 0


def same_maps(one: RasterResult, other: RasterResult) -> None:
    """Equal to the last bit, each cell once."""
    assert one.polygons and other.polygons and one.classes and other.classes
    fields, _ = table(one.polygons)
    assert len(set(zip(fields["row"].tolist(), fields["column"].tolist(), strict=True))) == sum(one.cells.values())
    assert np.array_equal(probabilities(one.polygons), probabilities(other.polygons))
    with rasterio.open(one.classes) as first, rasterio.open(other.classes) as second:
        assert np.array_equal(first.read(), second.read())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill so hard")
def test_a_killed_mapping_resumes_without_gaps_or_duplicates(tmp_path: Path) -> None:
    _, pixels = mosaic(20, 20, 32)
    raster, out = write(tmp_path / "a.tif", pixels), tmp_path / "out"
    settings: dict[str, Any] = {"window": 32, "overlap": 0.25, "batch_size": 4}
    kept = 0
    for _ in range(2):  # killed twice
        process, before = start(raster, out, "slow colours", **settings), kept
        wait_for(lambda before=before: answered(out) > before, process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        kept = answered(out)
        assert kept > before
    model = Colours()
    found = map_raster(model, raster, out, RasterConfig(**settings))
    assert found.resumed == kept and model.seen == found.windows - kept > 0
    same_maps(found, map_raster(Colours(), raster, tmp_path / "whole", RasterConfig(**settings)))
    assert not list(out.glob("*.part"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.slow
def test_a_kill_at_any_rename_or_delete_leaves_nothing_permanent(tmp_path: Path) -> None:
    raster, own = write(tmp_path / "a.tif", mosaic(3, 3, 20)[1]), {"a_scenes.gpkg", "a_scenes.tif.aux.xml"}
    own |= {"a_scenes.tif", "a_scenes.json"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, WORKER.with_name("killed_at.py"), "raster", raster, tmp_path / "out"]
    done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True, check=True)
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) >= 12 and any(".a_scenes.done/plan.json" in kill["left"] for kill in kills)
    for kill in kills:
        assert set(kill["same"]) == own, kill
        finished = "a_scenes.json" in kill["left"] or ".a_scenes.done/maps/record.json" in kill["left"]
        if finished or "a_scenes.part/plan.json" not in kill["left"]:
            assert set(kill["other"]) == own, kill
        else:
            assert "unfinished work, begun otherwise" in kill["other"], kill


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_several_processes_give_the_same_maps_also_after_a_kill(tmp_path: Path, student: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1200, 1200), dtype=np.uint8)
    raster, out = write(tmp_path / "a.tif", pixels), tmp_path / "out"
    settings: dict[str, Any] = {"window": 32, "batch_size": 2, "processes": 2}
    process = start(raster, out, student, **settings)
    wait_for(lambda: answered(out), process)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    while any(is_worker(pid) for pid in children) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(is_worker(pid) for pid in children), "a process goes on although nobody waits for it"
    kept = answered(out)
    model = open_model(student, device="cpu", precision="fp32", threads=1)
    found = map_raster(model, raster, out, RasterConfig(**settings))
    assert 0 < kept == found.resumed < found.windows == 38 * 38
    alone = map_raster(model, raster, tmp_path / "alone", RasterConfig(window=32))
    assert found.polygons and alone.polygons
    np.testing.assert_allclose(probabilities(found.polygons), probabilities(alone.polygons), atol=1e-5)


def is_worker(pid: int) -> bool:
    try:
        return "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_a_second_process_is_told_to_wait(tmp_path: Path) -> None:
    import filelock

    raster = write(tmp_path / "a.tif", mosaic(2, 2, 20)[1])
    with filelock.FileLock(tmp_path / ".a_scenes.lock"), pytest.raises(UserError, match="Another process is at work"):
        map_raster(Colours(), raster, tmp_path)
    assert map_raster(Colours(), raster, tmp_path).windows > 0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is counted otherwise elsewhere")
@pytest.mark.parametrize("layout", [{"tiled": True, "blockxsize": 512, "blockysize": 512}, {"blockysize": 1}])
def test_memory_stays_below_two_gib_for_40000_by_40000(tmp_path: Path, student: Path, layout: dict[str, Any]) -> None:
    shape = {"driver": "GTiff", "count": 3, "height": 40_000, "width": 40_000, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", **shape, **layout, SPARSE_OK=True, BIGTIFF="YES") as file:
        file.write(np.full((3, 600, 600), 99, np.uint8), window=Window(20_000, 20_000, 600, 600))
    process = start(tmp_path / "a.tif", tmp_path / "out", student, window=1000, overlap=0, regions=True)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0 and 0 < int(said) < 2 * 2**20
    result = json.loads((tmp_path / "out" / "a_scenes.json").read_text(encoding="utf-8"))["result"]
    assert result["windows"] == 1600 and result["left_out"] == 0


def test_times_are_shares_of_the_whole(tmp_path: Path) -> None:
    raster = write(tmp_path / "a.tif", mosaic(10, 10, 20)[1])
    model: SceneModel = Colours(seconds=0.02)
    result = map_raster(model, raster, tmp_path, RasterConfig(window=20, batch_size=4))
    assert 0.02 * 25 / result.seconds <= result.network < 1
    assert result.reading + result.network + result.writing <= 1.001
    times = Times()
    with times.of("writing"):
        time.sleep(0.01)
    assert times.writing >= 0.01 and times.reading == 0


@pytest.mark.skipif(shutil.which("gdalinfo") is None, reason="needs gdalinfo: install GDAL's programs (gdal-bin)")
def test_gdalinfo_and_ogrinfo_read_the_maps(tmp_path: Path) -> None:
    raster = write(tmp_path / "a.tif", mosaic(3, 4, 30)[1])
    result = map_raster(Colours(), raster, tmp_path, RasterConfig(window=30))
    said = subprocess.run(["gdalinfo", str(result.classes)], capture_output=True, text=True, check=True).stdout
    assert "Pixel Size = (15.0000" in said and "Categories:" in said and "0: car park" in said
    assert "Scale:0.004" in said and "LAYOUT=COG" in said
    words = ["ogrinfo", "-so", str(result.polygons), "scenes"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "Feature Count: 12" in said and "p_forêt: Real" in said and "WGS 84 / UTM zone 33N" in said


def test_a_damaged_or_edited_map_is_named_and_replaced_only_on_request(tmp_path: Path) -> None:
    _, pixels = mosaic(3, 3, 20)
    raster, model = write(tmp_path / "a.tif", pixels), Colours()
    first = map_raster(model, raster, tmp_path, RasterConfig(window=20))
    for name in ("a_scenes.gpkg", "a_scenes.tif"):
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} is damaged: it does not fit its checksum, or was edited since"):
            map_raster(model, raster, tmp_path, RasterConfig(window=20))
        (tmp_path / name).unlink()
        again = map_raster(model, raster, tmp_path, RasterConfig(window=20))
        assert again.windows == first.windows and (tmp_path / name).is_file()
