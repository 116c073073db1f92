"""Maps on a real Ray cluster of this machine: equal to those of one process, also when a worker or the command dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

ray = pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")
pytest.importorskip("pyogrio", reason="needs pyogrio: pip install -e '.[use]'")
pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")

import pyogrio.raw
import rasterio

from scenedistill.core.cluster import ClusterConfig, RayCluster
from scenedistill.core.errors import UserError
from scenedistill.inference.model import open_model
from scenedistill.inference.raster.cluster import RasterCluster
from scenedistill.inference.raster.config import RasterConfig, RasterResult
from scenedistill.inference.raster.many import map_rasters
from scenedistill.inference.raster.pipeline import map_raster
from scenedistill.inference.raster.progress import DONE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]
CONFIG = RasterConfig(window=20, batch_size=4)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of five CPUs, of which `on_cluster` takes four."""
    context = ray.init(num_cpus=5, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield context.address_info["address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def on_cluster(address: str, exported_nets: dict[str, Path]) -> Iterator[RasterCluster]:
    """Two workers."""
    config = ClusterConfig(gpus=0, cpus=2)
    cluster = RasterCluster(model(exported_nets), RayCluster(config, "worker"), config)
    assert cluster.workers == 2
    yield cluster
    cluster.close()


def model(exported_nets: dict[str, Path]) -> Any:
    return open_model(exported_nets["safetensors"], device="cpu", precision="fp32", threads=1)


def raster(path: Path, size: int = 600, x: float = 0) -> Path:
    bands = np.random.default_rng(int(x)).integers(0, 256, (3, size, size), dtype=np.uint8)
    bands[:, 100:200, 300:450] = 0  # nodata
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(1, 0, x, 0, -1, 5_300_000), "nodata": 0}
    with rasterio.open(path, "w", driver="GTiff", count=3, height=size, width=size, dtype="uint8", **place) as file:
        file.write(bands)
    return path


def assert_same(one: RasterResult, other: RasterResult) -> None:
    """All values of the maps of a raster are equal, probabilities up to the rounding of two threads instead of one."""
    assert one.left_out == other.left_out and one.cells == other.cells
    assert one.classes and one.polygons and other.classes and other.polygons
    with rasterio.open(one.classes) as file, rasterio.open(other.classes) as second:
        assert (file.read(1) == second.read(1)).all()
    tables = [pyogrio.raw.read(result.polygons, layer="scenes") for result in (one, other)]
    assert [bytes(shape) for shape in tables[0][2]] == [bytes(shape) for shape in tables[1][2]]
    for field, second in zip(tables[0][3], tables[1][3], strict=True):
        assert np.allclose(field, second, rtol=0, atol=1e-5) if field.dtype == "f4" else (field == second).all()


def workers() -> set[int]:
    """The processes in which workers have opened the network."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_Worker"):
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def after_first_answers(out: Path, act: Callable[[], None]) -> threading.Thread:
    """Do something as soon as some windows of a raster are answered; a thread that has been started."""

    def watch() -> None:
        end, done = time.monotonic() + 120, out / "a_scenes.part" / DONE
        while time.monotonic() < end:
            if done.exists() and any(done.read_bytes()):
                act()
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_killed_worker_leaves_no_gap(
    on_cluster: RasterCluster, exported_nets: dict[str, Path], tmp_path: Path
) -> None:
    source, killed = raster(tmp_path / "a.tif"), list[int]()

    def kill() -> None:
        killed.append(min(workers()))
        os.kill(killed[0], signal.SIGKILL)

    thread = after_first_answers(tmp_path / "out", kill)
    result = map_raster(model(exported_nets), source, tmp_path / "out", CONFIG, cluster=on_cluster)
    thread.join()
    assert killed and result.windows == 900 and killed[0] not in workers()
    alone = map_raster(model(exported_nets), source, tmp_path / "alone", CONFIG)
    assert_same(result, alone)


def test_maps_of_a_killed_command_are_finished_on_another_cluster(
    address: str, on_cluster: RasterCluster, exported_nets: dict[str, Path], tmp_path: Path
) -> None:
    source, out = raster(tmp_path / "a.tif"), tmp_path / "out"
    words = [sys.executable, "-m", "scenedistill.cli", "predict", exported_nets["safetensors"], source, "--out", out]
    words += ["--window", "20", "--batch_size", "4", "--ray", "true", "--cluster.address", address]
    words += ["--cluster.gpus", "0", "--precision", "fp32"]
    command = [str(word) for word in words]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    after_first_answers(out, first.kill)
    said = first.communicate(timeout=120)[0].decode()
    assert first.returncode == -signal.SIGKILL, said
    kept = sum((out / "a_scenes.part" / DONE).read_bytes())
    assert 0 < kept < 900
    made = map_raster(model(exported_nets), source, out, CONFIG, cluster=on_cluster)
    alone = map_raster(model(exported_nets), source, tmp_path / "alone", CONFIG)
    assert made.resumed == kept
    assert_same(made, alone)


def test_many_rasters_are_mapped_by_a_worker_each_and_merged(
    on_cluster: RasterCluster, exported_nets: dict[str, Path], tmp_path: Path
) -> None:
    names = [str(raster(tmp_path / f"{name}.tif", 200, 200 * k)) for k, name in enumerate("abc")]
    broken = tmp_path / "broken.tif"
    broken.write_bytes(Path(names[0]).read_bytes()[:70_000])
    console = Console(record=True, width=300)
    results = map_rasters(
        model(exported_nets),
        [names[0], str(broken), *names[1:]],
        tmp_path / "out",
        CONFIG,
        console=console,
        cluster=on_cluster,
        merge=True,
    )
    said = console.export_text()
    assert [result.record.name for result in results] == [f"{name}_scenes.json" for name in "abc"]
    assert f"skipped {broken}: " in said and "3 maps merged" in said and said.count("100 windows of 20 x 20") >= 3
    alone = map_rasters(model(exported_nets), names, tmp_path / "alone", CONFIG, merge=True)
    for one, other in zip(results, alone, strict=True):
        assert_same(one, other)
    with rasterio.open(tmp_path / "out" / "merged.vrt") as one, rasterio.open(tmp_path / "alone" / "merged.vrt") as two:
        assert one.shape == (10, 30) and (one.read() == two.read()).all()
    records = [json.loads((tmp_path / place / "merged.json").read_text()) for place in ("out", "alone")]
    assert records[0] == records[1]


def test_what_a_worker_cannot_read_is_told_in_one_line(
    on_cluster: RasterCluster, exported_nets: dict[str, Path], tmp_path: Path
) -> None:
    source = raster(tmp_path / "a.tif", 400)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])  # the head is whole, the last rows are gone
    with pytest.raises(UserError, match=r"a\.tif cannot be read at rows \d+ to \d+, columns "):
        map_raster(model(exported_nets), source, tmp_path / "out", CONFIG, cluster=on_cluster)
    source.write_bytes(whole)
    again = map_raster(
        model(exported_nets), source, tmp_path / "out", RasterConfig(**{**vars(CONFIG), "restart": True}),
        cluster=on_cluster,
    )  # fmt: skip
    assert again.windows == 400, "the workers go on"


def test_a_network_that_workers_do_not_find_is_told(
    address: str, exported_nets: dict[str, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "model.safetensors"
    moved.write_bytes(exported_nets["safetensors"].read_bytes())
    opened, config = open_model(moved, device="cpu", precision="fp32", threads=1), ClusterConfig(gpus=0)
    moved.unlink()
    cluster = RasterCluster(opened, RayCluster(config, "worker"), config)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        map_raster(opened, raster(tmp_path / "a.tif", 100), tmp_path / "out", CONFIG, cluster=cluster)
