"""Windows cover a raster to its edges, and cells are the means of the windows over them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")

from rasterio import Affine
from rasterio.crs import CRS

from scenedistill.core.errors import UserError
from scenedistill.inference.raster.windows import Grid, average, ground_size, plan_grid, to_map


def turned(degrees: float, across: float, down: float, x: float, y: float) -> Affine:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return Affine(cosine * across, -sine * down, x, sine * across, cosine * down, y)


GRIDS = st.builds(
    lambda height, width, window, overlap: plan_grid((height, width), window, overlap),
    *(st.integers(1, 40), st.integers(1, 40), st.integers(1, 15), st.sampled_from([0, 0.2, 0.5, 0.7, 0.9])),
)


@given(GRIDS)
@settings(max_examples=60, deadline=None)
def test_windows_lie_within_the_raster_and_cover_all_of_it(grid: Grid) -> None:
    for axis in (0, 1):
        starts = grid.start(axis, np.arange(grid.shape[axis]))
        assert starts[0] == 0 and starts[-1] + grid.window[axis] == grid.size[axis]
        assert (np.diff(starts) > 0).all() and (np.diff(starts) <= grid.step[axis]).all()
        edges = grid.edge(axis, np.arange(grid.cells[axis] + 1))
        assert edges[0] == 0 and edges[-1] == grid.size[axis] and (np.diff(edges) > 0).all()
        owned = [cell for number in range(grid.shape[axis]) for cell in grid.owned(axis, number)]
        assert owned == list(range(grid.cells[axis]))
        for number in range(grid.shape[axis]):  # a window shows all pixels of the cells it looks after
            cells = grid.owned(axis, number)
            assert starts[number] <= edges[cells.start]
            assert edges[cells.stop] <= starts[number] + grid.window[axis]


@given(GRIDS, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_cell_is_the_mean_over_its_pixels_of_the_windows_on_them(grid: Grid, seed: int) -> None:
    rng = np.random.default_rng(seed)
    answers = rng.random((*grid.shape, 3)).astype(np.float32)
    answers[rng.random(grid.shape) < 0.2] = 0  # windows that were left out
    found = np.stack(list(average(grid, lambda row: answers[row])))
    # the slow way: every window on every pixel of its place, then the mean over the pixels of each cell
    total, count = np.zeros((*grid.size, 3)), np.zeros(grid.size)
    for i, j in np.ndindex(grid.shape):
        if answers[i, j].any():
            y, x = i * grid.step[0], j * grid.step[1]
            total[y : y + grid.window[0], x : x + grid.window[1]] += answers[i, j]
            count[y : y + grid.window[0], x : x + grid.window[1]] += 1
    assert found.shape == (*grid.cells, 3)
    for r, c in np.ndindex(grid.cells):
        y, x = r * grid.step[0], c * grid.step[1]
        cell = (slice(y, y + grid.step[0]), slice(x, x + grid.step[1]))
        weight = count[cell].sum()
        expected = total[cell].sum((0, 1)) / weight if weight else np.zeros(3)
        np.testing.assert_allclose(found[r, c], expected, atol=1e-5)


def test_cells_and_means_equal_values_computed_by_hand() -> None:
    grid = plan_grid((10, 25), 10, 0.5)
    assert (grid.shape, grid.cells, grid.step) == ((1, 4), (1 * 2, 5), (5, 5))
    assert grid.start(1, np.arange(4)).tolist() == [0, 5, 10, 15]
    assert grid.edge(1, np.arange(6)).tolist() == [0, 5, 10, 15, 20, 25]
    answers = np.array([[[1, 0], [0, 1], [0, 0], [1, 0]]], np.float32)
    first = next(average(grid, lambda row: answers[row]))
    assert first.tolist() == [[1, 0], [0.5, 0.5], [0, 1], [1, 0], [1, 0]]


def test_without_overlap_a_cell_has_the_result_of_its_window_also_at_the_edge() -> None:
    grid = plan_grid((7, 23), 5, 0)
    answers = np.random.default_rng(0).random((*grid.shape, 2)).astype(np.float32)
    assert grid.shape == grid.cells == (2, 5)
    np.testing.assert_allclose(np.stack(list(average(grid, lambda row: answers[row]))), answers, rtol=1e-6)


def test_a_raster_smaller_than_the_window_is_one_window() -> None:
    grid = plan_grid((30, 200), 64, 0.5)
    assert (grid.window, grid.step) == ((30, 64), (30, 32))
    assert plan_grid((3, 4), 64, 0).shape == (1, 1)


@pytest.mark.parametrize(
    ("window", "overlap", "said"),
    [
        (0, 0, "window 0"),
        (-3, 0, "window -3"),
        (9000, 0, "1 to 8192"),
        (float("inf"), 0, "window inf"),
        (8, 1, "overlap 1"),
        (8, -0.1, "overlap -0.1"),
    ],
)
def test_impossible_windows_and_overlaps_are_refused(window: float, overlap: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan_grid((100, 100), window, overlap)


def test_metres_become_pixels_of_each_axis() -> None:
    grid = plan_grid((1000, 1000), 100, 0.5, ground=(0.5, 0.25))
    assert (grid.window, grid.step) == ((200, 400), (100, 200))
    with pytest.raises(UserError, match="1 metres, which are 0 x 0 pixels"):
        plan_grid((1000, 1000), 1, 0, ground=(10, 10))


@pytest.mark.parametrize("turn", [0, 30, 90])
def test_the_ground_size_in_utm_is_in_metres(turn: float) -> None:
    transform = turned(turn, 0.5, -2, 500_000, 5_000_000)
    down, across = ground_size(transform, CRS.from_epsg(32633), (4000, 3000))
    assert across == pytest.approx(0.5 / 0.9996, rel=1e-4)  # the scale of UTM at its middle meridian
    assert down == pytest.approx(2 / 0.9996, rel=1e-4)


def test_the_ground_size_in_web_mercator_shrinks_towards_the_pole() -> None:
    from rasterio.warp import transform

    (x,), (y,) = transform("EPSG:4326", "EPSG:3857", [10], [60])
    down, across = ground_size(Affine(1, 0, x, 0, -1, y), CRS.from_epsg(3857), (10, 10))
    assert across == pytest.approx(0.5, rel=0.01) and down == pytest.approx(0.5, rel=0.01)


def test_the_ground_size_in_degrees_is_in_metres() -> None:
    down, across = ground_size(Affine(0.001, 0, 179.99, 0, -0.001, 60), CRS.from_epsg(4326), (20, 20))
    assert down == pytest.approx(111.4, abs=0.1)  # a degree of latitude at 60 degrees is 111,412 m
    assert across == pytest.approx(55.8, abs=0.1)  # and one of longitude 55,800 m; this raster crosses the antimeridian


def test_the_ground_size_in_feet_on_another_planet_and_in_a_local_system_is_in_metres() -> None:
    feet = CRS.from_epsg(2263)  # New York, US survey feet
    down, across = ground_size(Affine(1, 0, 985_000, 0, -1, 200_000), feet, (10, 10))
    assert across == pytest.approx(0.3048, rel=1e-3) and down == pytest.approx(0.3048, rel=1e-3)
    moon = CRS.from_wkt(
        'PROJCS["Moon",GEOGCS["Moon",DATUM["Moon",SPHEROID["Moon",1737400,0]],PRIMEM["R",0],'
        'UNIT["degree",0.0174532925199433]],PROJECTION["Equirectangular"],UNIT["kilometre",1000]]'
    )
    assert ground_size(Affine(0.2, 0, 0, 0, -0.4, 0), moon, (10, 10)) == pytest.approx((400, 200))
    site = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    with pytest.raises(UserError, match="in pixels"):
        ground_size(Affine(0.2, 0, 0, 0, -0.4, 0), site, (10, 10))


@pytest.mark.parametrize(("x", "y"), [(500_000, 5_000_000), (0, 90.05)], ids=["metres called degrees", "at a pole"])
def test_degrees_beyond_a_pole_have_no_ground_size(x: float, y: float) -> None:
    with pytest.raises(UserError, match="in pixels"):
        ground_size(Affine(0.001, 0, x, 0, -0.001, y), CRS.from_epsg(4326), (100, 100))


def test_a_window_in_metres_without_a_crs_is_refused() -> None:
    with pytest.raises(UserError, match="in pixels"):
        ground_size(Affine(1, 0, 0, 0, -1, 0), None, (10, 10))


def test_map_coordinates_are_those_of_rasterio() -> None:
    from rasterio.transform import xy

    transform = turned(33, 2, -3, 7, 8)
    x, y = to_map(transform, np.array([4.5]), np.array([2.5]))
    assert (x[0], y[0]) == pytest.approx(xy(transform, 2, 4))
