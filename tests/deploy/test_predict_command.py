"""`scenedistill predict`: images and rasters together, and the exit code."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from scenedistill.commands import predict
from scenedistill.errors import UserError
from scenedistill.models.files import NetCard, save_net
from scenedistill.models.student import build_student

SIZE = 32


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


def test_images_and_rasters_go_their_ways(network: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    pytest.importorskip("pyogrio")
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
    with pytest.raises(UserError, match="value_range"):
        call(network, good, "--value_range", "[5, 1]")
