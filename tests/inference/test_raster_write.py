"""Polygons and class rasters lie where they should, and GIS programs understand them."""

from __future__ import annotations

import json
import tracemalloc
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

pytest.importorskip("pyogrio", reason="needs pyogrio: pip install -e '.[use]'")
pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")

import pyogrio
import pyogrio.raw
import rasterio
import rasterio.shutil
from rasterio import Affine
from rasterio.crs import CRS

from scenedistill.core.errors import UserError
from scenedistill.inference.raster.class_raster import ClassRaster
from scenedistill.inference.raster.style import class_colours, qgis_style
from scenedistill.inference.raster.windows import plan_grid
from scenedistill.inference.raster.write import Place, Polygons, outlines, probability_fields, regions

CLASSES = ("car park", "fields & <woods>", "forêt")
NORTH_UP = Affine(2, 0, 500_000, 0, -2, 5_000_000)


def place(transform: Affine = NORTH_UP, epsg: int | None = 32633) -> Place:
    """Cells of 4 x 4 pixels on a raster of 10 x 14, so that the last ones are cut."""
    return Place(plan_grid((10, 14), 4, 0), transform, None if epsg is None else CRS.from_epsg(epsg))


def at(transform: Affine, x: float, y: float) -> tuple[float, float]:
    """Where a pixel's corner lies on the map."""
    one = transform
    return one.a * x + one.b * y + one.c, one.d * x + one.e * y + one.f


def fill(polygons: Polygons, where: Place) -> np.ndarray:
    rows, columns = where.grid.cells
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(len(CLASSES)), (rows, columns))
    for row in range(rows):
        labels = probabilities[row].argmax(1)
        numbers = np.stack([np.full(columns, row), np.arange(columns)], axis=1)
        polygons.add(where.squares(row, np.arange(columns)), labels, probabilities[row], numbers)
    polygons.close()
    return probabilities


def ring_area(ring: list[list[float]]) -> float:
    """Twice the signed area, positive for an anticlockwise ring."""
    x, y = np.array(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())


def corners(shape: bytes) -> np.ndarray:
    """Points of a polygon of one ring in well-known binary."""
    return np.frombuffer(shape, "<f8", offset=13).reshape(-1, 2)


@pytest.mark.parametrize("transform", [NORTH_UP, Affine(1.9, 0.6, 500_000, 0.6, -1.9, 5e6), Affine(2, 0, 0, 0, 2, 0)])
def test_squares_are_the_cells_cut_at_the_edge_and_run_anticlockwise(transform: Affine) -> None:
    where = place(transform)
    for row in range(where.grid.cells[0]):
        for column, shape in enumerate(where.squares(row, np.arange(where.grid.cells[1]))):
            ring = corners(shape)
            top, bottom, left, right = 4 * row, min(4 * row + 4, 10), 4 * column, min(4 * column + 4, 14)
            expected = {at(transform, x, y) for x in (left, right) for y in (top, bottom)}
            assert {tuple(point) for point in ring.tolist()} == expected
            assert ring_area(ring.tolist()) > 0 and ring[0].tolist() == ring[-1].tolist()


@pytest.mark.parametrize("epsg", [32633, 4326, 2056, None])
def test_a_geopackage_holds_classes_probabilities_crs_and_style(tmp_path: Path, epsg: int | None) -> None:
    where, path = place(epsg=epsg), tmp_path / "a.gpkg"
    probabilities = fill(Polygons(path, "scenes", where, CLASSES, ("row", "column")), where)
    info = pyogrio.read_info(path, layer="scenes")
    assert info["features"] == 12 and info["geometry_type"] == "Polygon"
    assert info["crs"] == (None if epsg is None else f"EPSG:{epsg}")
    meta, _, shapes, values = pyogrio.raw.read(path, layer="scenes")
    table = dict(zip(meta["fields"], values, strict=True))
    assert list(table) == ["class", "confidence", "row", "column", *(f"p_{name}" for name in CLASSES)]
    found = np.stack([table[f"p_{name}"] for name in CLASSES], axis=1)[
        np.lexsort((table["column"], table["row"]))
    ].reshape(probabilities.shape)
    np.testing.assert_allclose(found, probabilities, rtol=1e-6)
    assert table["class"].tolist() == [CLASSES[k] for k in found.reshape(-1, 3).argmax(1)]
    np.testing.assert_allclose(table["confidence"], found.reshape(-1, 3).max(1))
    assert corners(shapes[5])[0].tolist() == list(at(NORTH_UP, 4, 4))  # row 1, column 1
    meta, _, _, values = pyogrio.raw.read(path, layer="layer_styles")
    style = dict(zip(meta["fields"], (value[0] for value in values), strict=True))
    assert (style["f_table_name"], style["f_geometry_column"], style["f_table_schema"]) == ("scenes", "geom", "")
    assert style["useAsDefault"] and style["styleQML"] == qgis_style(CLASSES, class_colours(3))


def test_a_second_layer_has_its_style_beside_the_first(tmp_path: Path) -> None:
    where, path = place(), tmp_path / "a.gpkg"
    for layer in ("scenes", "regions"):
        fill(Polygons(path, layer, where, CLASSES, ("row", "column")), where)
    assert sorted(pyogrio.list_layers(path)[:, 0]) == ["layer_styles", "regions", "scenes"]
    _, _, _, values = pyogrio.raw.read(path, layer="layer_styles", columns=["f_table_name"])
    assert sorted(values[0]) == ["regions", "scenes"]


def test_chunks_are_joined_into_one_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenedistill.inference.raster.write.CHUNK", 5)
    where = place()
    fill(Polygons(tmp_path / "a.gpkg", "scenes", where, CLASSES, ("row", "column")), where)
    _, _, shapes, values = pyogrio.raw.read(tmp_path / "a.gpkg", layer="scenes", columns=["row", "column"])
    assert len(shapes) == 12 and len(set(zip(*(value.tolist() for value in values), strict=True))) == 12


def test_an_empty_layer_can_be_written(tmp_path: Path) -> None:
    Polygons(tmp_path / "a.gpkg", "scenes", place(), CLASSES, ("row", "column")).close()
    info = pyogrio.read_info(tmp_path / "a.gpkg", layer="scenes")
    assert info["features"] == 0 and len(info["fields"]) == 7


@pytest.mark.parametrize(
    ("epsg", "transform"),
    [(32633, NORTH_UP), (4326, Affine(0.001, 0, 15, 0, -0.001, 45)), (3857, Affine(2, 0, 1e6, 0, 2, 5e6))],
)
def test_geojson_is_in_wgs84_and_anticlockwise(tmp_path: Path, epsg: int, transform: Affine) -> None:
    where, path = place(transform, epsg), tmp_path / "a.geojson"
    probabilities = fill(Polygons(path, "scenes", where, CLASSES, ("row", "column")), where)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection" and "crs" not in content and len(content["features"]) == 12
    one = content["features"][5]
    assert (one["properties"]["row"], one["properties"]["column"]) == (1, 1)
    assert one["properties"]["p_forêt"] == pytest.approx(probabilities[1, 1, 2], rel=1e-6)
    (ring,) = one["geometry"]["coordinates"]
    assert ring_area(ring) > 0
    from rasterio.warp import transform as reproject

    x, y = zip(*(at(transform, *point) for point in [(4, 4), (4, 8), (8, 8), (8, 4)]), strict=True)
    expected = np.stack(reproject(CRS.from_epsg(epsg), "EPSG:4326", x, y), axis=1)
    for point in expected:  # to a few centimetres, which is what seven decimals hold
        assert np.abs(np.array(ring) - point).max(1).min() < 2e-7


def test_geojson_across_the_antimeridian_is_cut(tmp_path: Path) -> None:
    where = place(Affine(0.1, 0, 179.45, 0, -0.1, 10), 4326)
    fill(Polygons(tmp_path / "a.geojson", "scenes", where, CLASSES, ("row", "column")), where)
    for one in json.loads((tmp_path / "a.geojson").read_text())["features"]:
        parts = one["geometry"]["coordinates"]
        rings = [part[0] for part in parts] if one["geometry"]["type"] == "MultiPolygon" else [parts[0]]
        assert len(rings) == (2 if one["properties"]["column"] == 1 else 1)
        for ring in rings:
            assert np.abs(ring).max() <= 180 and np.ptp(np.array(ring)[:, 0]) < 0.5


def test_field_names_do_not_clash() -> None:
    assert probability_fields(("River", "river", "RIVER", "sea")) == ["p_River", "p_river_2", "p_RIVER_3", "p_sea"]


@pytest.mark.parametrize("transform", [NORTH_UP, Affine(1.9, 0.6, 500_000, 0.6, -1.9, 5e6)])
def test_the_class_raster_has_colours_names_confidence_and_its_place(tmp_path: Path, transform: Affine) -> None:
    where, path = place(transform), tmp_path / "a.tif"
    raster = ClassRaster(path, tmp_path, where, CLASSES, {"model": "a net"})
    labels, confidence = np.array([0, 1, 2, 0]), np.array([0.5, 0.9996, 1, 0.248])
    for row in range(3):
        raster.add(row, labels, confidence, np.array([True, True, row != 1, True]))
    raster.close()
    with rasterio.open(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.shape == (3, 4) and file.crs == where.crs and file.nodata == 255
        for cell in [(0, 0), (2, 3)]:  # a pixel's corner is a cell's
            assert at(file.transform, *cell) == pytest.approx(at(transform, 4 * cell[0], 4 * cell[1]))
        assert file.read(1).tolist() == [[0, 1, 2, 0], [0, 1, 255, 0], [0, 1, 2, 0]]
        found = file.read(2, masked=True) * file.scales[1]
        np.testing.assert_allclose(found[0], confidence, atol=0.002)
        assert found.mask[1].tolist() == [False, False, True, False]
        assert file.descriptions == ("class", "confidence") and file.colorinterp[0].name == "palette"
        assert file.colorinterp[1].name != "alpha"
        assert [file.colormap(1)[k][:3] for k in range(3)] == class_colours(3)
        assert json.loads(file.tags()["classes"]) == list(CLASSES) and file.tags()["model"] == "a net"
    rasterio.shutil.copy(str(path), str(tmp_path / "a.vrt"), driver="VRT")  # says what GDAL has read
    names = ET.parse(tmp_path / "a.vrt").findall("VRTRasterBand[@band='1']/CategoryNames/Category")
    assert [name.text for name in names] == list(CLASSES)


def test_the_class_raster_takes_more_than_255_classes(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(300)]
    raster = ClassRaster(tmp_path / "a.tif", tmp_path, place(), names, {})
    for row in range(3):
        raster.add(row, np.array([0, 299, 260, 5]), np.full(4, 0.1234), np.array([True, True, True, row > 0]))
    raster.close()
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.read(1)[0].tolist() == [0, 299, 260, 65535]
        assert file.read(2)[1, 0] * file.scales[1] == pytest.approx(0.1234)
        assert file.colormap(1)[299][:3] == class_colours(300)[299]


@given(arrays(np.int64, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(-1, 2)))
@settings(max_examples=60, deadline=None)
def test_regions_are_the_connected_cells_of_one_class(labels: np.ndarray) -> None:
    expected, count = np.full(labels.shape, -1), 0
    for start in np.ndindex(labels.shape):
        if labels[start] < 0 or expected[start] >= 0:
            continue
        reach = [start]
        while reach:
            y, x = reach.pop()
            if expected[y, x] >= 0:
                continue
            expected[y, x] = count
            for near in [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]:
                inside = 0 <= near[0] < labels.shape[0] and 0 <= near[1] < labels.shape[1]
                if inside and labels[near] == labels[start]:
                    reach.append(near)
        count += 1
    assert np.array_equal(regions(labels), expected)


def test_numbering_regions_takes_little_memory() -> None:
    rng = np.random.default_rng(0)
    for labels in (rng.integers(-1, 3, (700, 800)), np.zeros((700, 800), int)):
        labels = labels.astype(np.int32)
        tracemalloc.start()
        found = regions(labels)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 40 * labels.size and found.dtype == np.int32


def test_outlines_are_cut_at_the_edge_and_have_holes() -> None:
    labels = np.zeros((3, 4), int)
    labels[1, 1], labels[2, 3] = 1, -1
    where = place()
    found = dict(outlines(regions(labels), where))
    assert sorted(found) == [0, 1]
    assert {tuple(point) for point in corners(found[1]).tolist()} == {
        at(NORTH_UP, *point) for point in [(4, 4), (8, 4), (8, 8), (4, 8)]
    }
    assert int.from_bytes(found[0][5:9], "little") == 2  # rings
    count = int.from_bytes(found[0][9:13], "little")
    outer = np.frombuffer(found[0], "<f8", count=2 * count, offset=13).reshape(-1, 2)
    assert outer.max(0).tolist() == [500_000 + 2 * 14, 5_000_000] and outer.min(0).tolist() == [500_000, 5e6 - 20]
    assert abs(ring_area(outer.tolist())) / 2 == 4 * (10 * 14 - 2 * 2)  # square metres without the cut corner cell


def test_the_style_is_xml_with_a_fill_for_each_class() -> None:
    root = ET.fromstring(qgis_style(CLASSES, class_colours(3)))
    categories = root.findall("renderer-v2/categories/category")
    assert [one.get("value") for one in categories] == list(CLASSES)
    symbols = {one.get("name"): one for one in root.findall("renderer-v2/symbols/symbol")}
    for one, colour in zip(categories, class_colours(3), strict=True):
        fill = symbols[one.get("symbol")].find("layer/Option/Option[@name='color']")
        assert fill is not None and fill.get("value") == ",".join(map(str, (*colour, 255)))


def test_the_colours_of_classes_differ() -> None:
    colours = np.array(class_colours(45), int)
    apart = np.abs(colours[:, None] - colours).sum(-1) + 999 * np.eye(45, dtype=int)
    assert apart.min() > 12


def test_a_large_class_raster_has_overviews_of_its_own_values(tmp_path: Path) -> None:
    where = Place(plan_grid((600, 700), 1, 0), NORTH_UP, None)
    raster = ClassRaster(tmp_path / "a.tif", tmp_path, where, CLASSES, {})
    for row in range(600):
        raster.add(row, np.full(700, 2 * (row % 2)), np.full(700, 0.5), np.full(700, True))
    raster.close()
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.overviews(1) == [2] and file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    with rasterio.open(tmp_path / "a.tif", OVERVIEW_LEVEL=0) as half:
        assert set(np.unique(half.read(1))) <= {0, 2} and half.colorinterp[1].name != "alpha"


def test_a_failed_write_is_reported_and_a_full_disk_as_the_systems_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tif").mkdir()
    for full, kind, said in ((0, UserError, "cannot be written"), (1 << 60, OSError, "No space left")):
        monkeypatch.setattr("scenedistill.inference.raster.write.FULL", full)
        raster = ClassRaster(tmp_path / "a.tif", tmp_path, place(), CLASSES, {})
        with pytest.raises(kind, match=said):
            raster.close()
