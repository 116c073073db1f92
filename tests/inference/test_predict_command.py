"""`scenedistill predict`: images and rasters together, and the exit code."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from scenedistill.commands import predict
from scenedistill.commands.parsing import numbers_joined
from scenedistill.core.errors import UserError
from scenedistill.models.create import build_student
from scenedistill.models.files import NetCard, save_net

SIZE = 32
SRC = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def network(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    net = build_student("table1_printed", 3, image_size=SIZE)
    save_net(net, NetCard("table1_printed", ("field", "town", "sea"), 3, SIZE, stored_size=SIZE), path)
    return path


def call(*arguments: object) -> tuple[int, str]:
    console = Console(record=True, width=300)
    settings = predict.parser().parse_args([str(argument) for argument in arguments])
    return predict.command(settings, console, ""), console.export_text()


def test_images_are_predicted_and_rasters_mapped(network: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
    pytest.importorskip("pyogrio", reason="needs pyogrio: pip install -e '.[use]'")
    rng = np.random.default_rng(0)
    for place, name in enumerate(("one/map.tif", "two/map.tif")):
        (tmp_path / name).parent.mkdir()
        at = rasterio.transform.from_origin(500_000 + place * 1000, 5_000_000, 1, 1)
        shape = {"driver": "GTiff", "width": 96, "height": 64, "count": 3, "dtype": "uint8"}
        with rasterio.open(tmp_path / name, "w", crs="EPSG:32632", transform=at, **shape) as raster:
            raster.write(rng.integers(0, 255, (3, 64, 96), dtype=np.uint8))
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    names = [tmp_path / name for name in ("one/map.tif", "two/map.tif", "photo.png", "photo.png")]
    code, said = call(network, *names, "--out", out, "--device", "cpu", "--vectors", "none")
    assert code == 0 and "6 windows" in said and "1 named more than once" in said
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(tmp_path / "photo.png")]
    assert len(list(out.glob("map_1/*.tif"))) == len(list(out.glob("map_2/*.tif"))) == 1
    code, said = call(network, *names[:2], "--out", tmp_path / "as", "--device", "cpu", "--raster", "false")
    assert code == 0 and "2 images predicted" in said


def test_the_exit_code_is_1_when_nothing_worked_and_0_otherwise(network: Path, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.jpg", tmp_path / "good.png"
    bad.write_text("no image")
    Image.new("RGB", (50, 50)).save(good)
    code, said = call(network, bad, "--out", tmp_path / "out")
    assert code == 1 and "0 images predicted" in said and f"{bad}: not a JPEG" in said and "skipped.csv" in said
    code, said = call(network, bad, good, "--out", tmp_path / "out", "--embeddings", "true", "--sheet", "doubtful")
    assert code == 0 and "1 image predicted" in said and "embeddings.npz, skipped.csv and 1 contact sheet" in said
    with pytest.raises(UserError, match="nothing at"):
        call(network, tmp_path / "nowhere")
    with pytest.raises(UserError, match="--readers 0: expected 1 or more"):
        call(network, good, "--readers", "0")
    with pytest.raises(UserError, match="value_range"):
        call(network, good, "--value_range", "[5, 1]")


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        (["--stretch", "-900,4900"], ["--stretch=-900,4900"]),
        (["--nodata", "-3.4e38", "--regions", "true"], ["--nodata=-3.4e38", "--regions", "true"]),
        (["--a.b", "-.5", "-5"], ["--a.b=-.5", "-5"]),
        (["--nodata=-1", "-2"], ["--nodata=-1", "-2"]),
        (["a.tif", "-h"], ["a.tif", "-h"]),
        (["--x", "--y", "1"], ["--x", "--y", "1"]),
    ],
)
def test_negative_values_need_no_equals_sign(given: list[str], joined: list[str]) -> None:
    assert numbers_joined(given) == joined


@pytest.fixture
def odd_raster(tmp_path: Path) -> Path:
    """float32 in 0 to 0.4 as 4 x 4 flat squares with some noise, a fifth of it at -9999 and no word of that."""
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
    pytest.importorskip("pyogrio", reason="needs pyogrio: pip install -e '.[use]'")
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 0.4, (3, 4, 4)).repeat(40, axis=1).repeat(40, axis=2)
    pixels = (pixels + rng.normal(0, 0.01, pixels.shape)).clip(0, 0.4).astype(np.float32)
    pixels[:, :, :32] = -9999
    at = rasterio.transform.from_origin(500_000, 5_000_000, 1, 1)
    shape = {"driver": "GTiff", "width": 160, "height": 160, "count": 3, "dtype": "float32"}
    with rasterio.open(tmp_path / "odd.tif", "w", crs="EPSG:32632", transform=at, **shape) as raster:
        raster.write(pixels)
    return tmp_path / "odd.tif"


def test_a_constant_far_from_the_rest_is_reported_and_nodata_removes_it(
    network: Path, odd_raster: Path, tmp_path: Path
) -> None:
    import rasterio

    def classes(name: str, *more: str) -> tuple[np.ndarray, str]:
        where = ("--out", tmp_path / name, "--window", "40", "--device", "cpu", "--vectors", "none")
        code, said = call(network, odd_raster, *where, *numbers_joined(more))
        assert code == 0
        with rasterio.open(tmp_path / name / "odd_scenes.tif") as file:
            return file.read(1), said

    _, said = classes("silent")
    assert "20% of the pixels are -9999, far from all others (0" in said
    assert "If they are holes, give --nodata -9999." in said
    record = json.loads((tmp_path / "silent" / "odd_scenes.json").read_text(encoding="utf-8"))
    assert len(record["result"]["notes"]) == 1 and "-9999" in record["result"]["notes"][0]
    remedied, said = classes("remedied", "--nodata", "-9999")
    assert "far from all others" not in said and "4 of the windows hold too little data" in said
    with rasterio.open(odd_raster, "r+") as file:
        file.nodata = -9999
    declared, said = classes("declared")
    assert "far from all others" not in said
    assert np.array_equal(remedied, declared) and (declared[:, 0] == 255).all() and (declared[:, 1:] < 3).all()


def test_a_raster_without_data_is_reported_as_a_failure(network: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
    pytest.importorskip("pyogrio", reason="needs pyogrio: pip install -e '.[use]'")
    place = {"crs": "EPSG:32632", "transform": rasterio.transform.from_origin(500_000, 5_000_000, 1, 1), "nodata": 0}
    shape = {"driver": "GTiff", "width": 96, "height": 64, "count": 3}
    for kind, said_of_it in (("uint8", "all of the windows hold too little data"), ("uint16", "holds no data at all")):
        with rasterio.open(tmp_path / f"{kind}.tif", "w", dtype=kind, **place, **shape):
            pass
        given = (network, tmp_path / f"{kind}.tif", "--out", tmp_path / "out", "--device", "cpu")
        if kind == "uint16":
            with pytest.raises(UserError, match=said_of_it):
                call(*given)
            continue
        code, said = call(*given)
        assert code == 1 and said_of_it in said and "the maps are empty" in said
        assert call(*given)[0] == 1, "nor when it is finished already"


def test_names_are_printed_literally(network: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
    pytest.importorskip("pyogrio", reason="needs pyogrio: pip install -e '.[use]'")
    folder = tmp_path / "weird [bold] x[v2] #1"
    folder.mkdir()
    Image.new("RGB", (50, 50)).save(folder / "[red]a.png")
    place = {"crs": "EPSG:32632", "transform": rasterio.transform.from_origin(500_000, 5_000_000, 1, 1)}
    with rasterio.open(folder / "map[x].tif", "w", "GTiff", 64, 64, 3, dtype="uint8", **place) as file:
        file.write(np.full((3, 64, 64), 9, np.uint8))
    (folder / "bad [blue].jpg").write_text("no image")
    given = [folder / name for name in ("[red]a.png", "map[x].tif", "bad [blue].jpg")]
    code, said = call(network, *given, "--out", folder / "out [dim]", "--device", "cpu")
    assert code == 0
    for name in (given[1], given[2], folder / "out [dim]"):
        assert str(name) in said


@pytest.mark.slow
def test_names_that_are_not_utf8_are_predicted_and_written(network: Path, tmp_path: Path) -> None:
    """In a process of its own: what cannot be printed fails where it is printed."""
    odd = tmp_path / os.fsdecode(b"M\xfcller")
    odd.mkdir()
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(odd / "a.png")
    (odd / "bad.jpg").write_text("no image")

    def program(*arguments: str | Path, folder: Path = tmp_path) -> tuple[int, str, str]:
        words: list[str | Path] = [sys.executable, "-m", "scenedistill.cli", "predict", network, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(SRC), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([os.fspath(word) for word in words], capture_output=True, env=environment, cwd=folder)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    code, said, _ = program(odd / "a.png", odd / "bad.jpg", "--out", odd / "out")
    assert code == 0 and "1 image predicted" in said and r"M\xfcller/bad.jpg: not a JPEG" in said
    assert r"M\udcfcller/out" in said
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
    pytest.importorskip("pyogrio", reason="needs pyogrio: pip install -e '.[use]'")
    place = {"crs": "EPSG:32632", "transform": rasterio.transform.from_origin(500_000, 5_000_000, 1, 1)}
    with rasterio.open(tmp_path / "map.tif", "w", "GTiff", 64, 64, 3, dtype="uint8", **place) as file:
        file.write(np.full((3, 64, 64), 9, np.uint8))
    code, _, wrong = program("map.tif", "--out", odd / "out")
    assert code == 1 and "only names in UTF-8" in wrong and "Traceback" not in wrong
    (tmp_path / "map.tif").rename(odd / "map.tif")
    code, _, wrong = program(odd / "map.tif")
    assert code == 1 and "Rename it" in wrong and "Traceback" not in wrong
    code, said, _ = program("map.tif", folder=odd)  # what stands before a name that GDAL opens is nobody's business
    assert code == 0 and (odd / "predictions" / "map_scenes.gpkg").exists(), said


def test_a_cluster_is_only_for_rasters_and_not_with_processes(network: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    words = [network, tmp_path / "a.png", "--out", tmp_path / "out", "--device", "cpu", "--ray", "true"]
    code, said = call(*words)
    assert code == 0 and "images are classified in this process" in said and "1 image predicted" in said
    with pytest.raises(UserError, match="--processes are of this machine alone"):
        call(*words, "--processes", "2")
    with pytest.raises(UserError, match=r"cluster\.cpus is 0; see `scenedistill predict --help`"):
        call(*words, "--cluster.cpus", "0")
