"""One map over the maps of several rasters: every cell at its place, and nothing of others replaced."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyogrio", reason="needs pyogrio: pip install -e '.[use]'")
pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")

import pyogrio.raw
import rasterio

from scenedistill.core.errors import UserError
from scenedistill.inference.raster.config import RasterConfig
from scenedistill.inference.raster.many import map_rasters

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
Colours = runpy.run_path(str(Path(__file__).with_name("raster_worker.py")))["Colours"]
CONFIG = RasterConfig(window=10, regions=True)


def raster(path: Path, x: float, y: float, *, size: int = 60, crs: str | None = "EPSG:32632", **more: Any) -> str:
    """Noise of one metre a pixel whose upper left corner lies at (x, y)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = np.random.default_rng(int(x + y)).integers(0, 256, (3, size, size), dtype=np.uint8)
    place = {"crs": crs, "transform": rasterio.Affine(1, 0, x, 0, -1, y), **more}
    with rasterio.open(path, "w", driver="GTiff", count=3, height=size, width=size, dtype="uint8", **place) as file:
        file.write(bands)
    return str(path)


def test_each_map_lies_at_its_place_in_the_merged_one(tmp_path: Path) -> None:
    # two touch, one lies apart and off their cells, two have the same name
    rasters = [
        raster(tmp_path / "a.tif", 1000, 5000),
        raster(tmp_path / "b.tif", 1060, 5000, size=53),
        raster(tmp_path / "other" / "a.tif", 1200, 4935),
    ]
    out = tmp_path / "maps"
    results = map_rasters(Colours(), rasters, out, CONFIG, merge=True)
    assert len(results) == 3
    with rasterio.open(out / "merged.vrt") as merged:
        assert merged.crs.to_epsg() == 32632 and merged.res == (10, 10) and merged.nodata == 255
        assert merged.bounds[::3] == (1000, 5000)
        everywhere = 0
        for result in results:
            with rasterio.open(result.classes) as one:
                window = merged.window(*one.bounds)
                # the third lies half a cell off: its cells move by less than one
                same = merged.read(window=window.round_offsets().round_lengths()) == one.read()
                assert same.all() or "a_2" in str(result.classes)
                assert merged.colormap(1)[2] == one.colormap(1)[2] and merged.scales == one.scales
            everywhere += sum(result.cells.values())
        assert (merged.read(1) != 255).sum() == everywhere == 36 * 3
    meta, _, shapes, values = pyogrio.raw.read(out / "merged.gpkg", layer="scenes")
    fields = dict(zip(meta["fields"], values, strict=True))
    assert len(shapes) == everywhere and sorted(set(fields["raster"])) == ["a_1/a", "a_2/a", "b"]
    for name, result in zip(("a_1/a", "b", "a_2/a"), results, strict=True):
        about, _, own, cells = pyogrio.raw.read(result.polygons, layer="scenes")
        mine = fields["raster"] == name
        assert [bytes(shape) for shape in shapes[mine]] == [bytes(shape) for shape in own]
        for field, column in zip(about["fields"], cells, strict=True):
            assert (fields[field][mine] == column).all()
    layers = {name for name, _ in pyogrio.list_layers(out / "merged.gpkg")}
    assert layers == {"scenes", "regions", "layer_styles"}
    record = json.loads((out / "merged.json").read_text(encoding="utf-8"))
    assert record["maps"] == ["a_1/a_scenes.json", "b_scenes.json", "a_2/a_scenes.json"]
    assert sum(record["cells"].values()) == everywhere


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_cells_beyond_the_edge_of_a_raster_hide_no_neighbour(tmp_path: Path, order: tuple[int, int]) -> None:
    """The last row of the northern one holds 2 of its 10 pixels; the cells of the southern one begin right below."""
    north, south = raster(tmp_path / "n.tif", 0, 5062, size=62), raster(tmp_path / "s.tif", 0, 5000, size=60)
    results = map_rasters(Colours(), [[north, south][k] for k in order], tmp_path / "maps", CONFIG, merge=True)
    maps = [rasterio.open(results[k].classes).read(1) for k in order]
    with rasterio.open(tmp_path / "maps" / "merged.vrt") as merged:
        found = merged.read(1)
    assert (found[:6, :6] == maps[0][:6, :6]).all() and (found[6:, :6] == maps[1]).all()
    assert (found[:6, 6] == maps[0][:6, 6]).all(), "its own last column is seen, for nothing lies there"


def test_merged_maps_are_replaced_but_not_files_of_others(tmp_path: Path) -> None:
    rasters, out = [raster(tmp_path / f"{name}.tif", 60 * k, 60) for k, name in enumerate("ab")], tmp_path / "maps"
    map_rasters(Colours(), rasters[:1], out, CONFIG, merge=True)
    map_rasters(Colours(), rasters, out, CONFIG, merge=True)
    with rasterio.open(out / "merged.vrt") as merged:
        assert merged.shape == (6, 12)
    (out / "merged.json").unlink()
    for name in ("merged.vrt", "merged.gpkg"):
        other = tmp_path / name.removeprefix("merged.")
        other.mkdir()
        (other / name).write_text("mine")
        with pytest.raises(UserError, match=f"{name} is there already, and not from here"):
            map_rasters(Colours(), rasters, other, CONFIG, merge=True)
        assert [path.name for path in other.iterdir()] == [name], "told before the work"


def test_rasters_whose_maps_would_have_equal_names_get_a_folder_each(tmp_path: Path) -> None:
    rasters = [raster(tmp_path / f"{name}.tif", 0, 60) for name in ("a b", "a_b", "c")]
    results = map_rasters(Colours(), rasters, tmp_path / "maps", CONFIG)
    found = [result.record.relative_to(tmp_path / "maps").as_posix() for result in results]
    assert found == ["a b_1/a_b_scenes.json", "a_b_2/a_b_scenes.json", "c_scenes.json"]


def test_polygons_alone_are_merged_only_in_one_crs(tmp_path: Path) -> None:
    rasters = [raster(tmp_path / "a.tif", 0, 60), raster(tmp_path / "b.tif", 60, 60, crs="EPSG:32633")]
    with pytest.raises(UserError, match=r"a_scenes.gpkg and .*b_scenes.gpkg have different CRSs"):
        map_rasters(Colours(), rasters, tmp_path / "maps", RasterConfig(window=10, classes=False), merge=True)
    assert not (tmp_path / "maps" / "merged.gpkg").exists()
    with pytest.raises(UserError, match="--merge true merges GeoTIFFs and GeoPackages"):
        config = RasterConfig(window=10, classes=False, vectors="geojson")
        map_rasters(Colours(), rasters, tmp_path / "none", config, merge=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"crs": "EPSG:32633"}, "a_scenes.tif and .*b_scenes.tif have different CRSs"),
        ({"transform": rasterio.Affine(1, 0.5, 0, 0.5, -1, 0)}, "b_scenes.tif is not north up"),
        ({"transform": rasterio.Affine(1, 0, 60, 0, 1, 0)}, "b_scenes.tif is not north up"),
    ],
)
def test_maps_that_do_not_fit_together_are_kept_and_not_merged(
    second: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    rasters = [raster(tmp_path / "a.tif", 0, 60), raster(tmp_path / "b.tif", 60, 60, **second)]
    with pytest.raises(UserError, match=reason):
        map_rasters(Colours(), rasters, tmp_path / "maps", CONFIG, merge=True)
    assert {path.name for path in (tmp_path / "maps").glob("*_scenes.*")} >= {"a_scenes.tif", "b_scenes.tif"}
    assert not (tmp_path / "maps" / "merged.vrt").exists()


def test_rasters_without_a_place_are_not_merged(tmp_path: Path) -> None:
    rasters = [raster(tmp_path / f"{name}.tif", 0, 0, crs=None, transform=None) for name in "ab"]
    with pytest.raises(UserError, match=r"a_scenes.tif has no place on a map"):
        map_rasters(Colours(), rasters, tmp_path / "maps", CONFIG, merge=True)


def test_without_class_rasters_or_geopackages_the_rest_is_merged(tmp_path: Path) -> None:
    rasters = [raster(tmp_path / f"{name}.tif", 60 * k, 60) for k, name in enumerate("ab")]
    map_rasters(Colours(), rasters, tmp_path / "polygons", RasterConfig(window=10, classes=False), merge=True)
    map_rasters(Colours(), rasters, tmp_path / "classes", RasterConfig(window=10, vectors="none"), merge=True)
    for folder, ending in (("polygons", "gpkg"), ("classes", "vrt")):
        merged = {path.name for path in (tmp_path / folder).glob("merged*")}
        assert merged == {f"merged.{ending}", "merged.json"}
