"""Several processes are told how to open the network, and one that dies ends the work with a line."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")

import rasterio

from scenedistill.commands import predict
from scenedistill.core.errors import UserError
from scenedistill.core.machine import usable_cores
from scenedistill.inference.model import open_model
from scenedistill.inference.raster.config import RasterConfig
from scenedistill.inference.raster.pipeline import map_raster
from scenedistill.inference.raster.work import open_arguments

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def raster(path: Path) -> Path:
    with rasterio.open(path, "w", driver="GTiff", count=3, height=600, width=600, dtype="uint8") as file:
        file.write(np.random.default_rng(0).integers(0, 256, (3, 600, 600), dtype=np.uint8))
    return path


@pytest.mark.parametrize("ending", ["safetensors", "onnx", "pt2"])
def test_worker_processes_open_the_network_with_the_same_settings(exported_nets: dict[str, Path], ending: str) -> None:
    before = torch.get_num_threads()
    try:
        model = open_model(exported_nets[ending], device="cpu", threads=1, trust=True)
        how = open_arguments(model, 1)
        assert how["device"] == "cpu" and how["threads"] == 1
        open_model(exported_nets[ending], **how)
        torch.set_num_threads(1000)
        model = open_model(exported_nets[ending], device="cpu", trust=True)
        assert open_arguments(model, 1)["threads"] == usable_cores() and open_arguments(model, 1000)["threads"] == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.slow
def test_a_process_that_dies_is_reported_and_other_rasters_continue(
    exported_nets: dict[str, Path], tmp_path: Path
) -> None:
    names = [raster(tmp_path / name) for name in ("a.tif", "b.tif")]
    killer = threading.Thread(target=kill_first_worker, args=(children(),), daemon=True)  # other tests have theirs
    killer.start()
    console = Console(record=True, width=300)
    words = [exported_nets["safetensors"], *names, "--out", tmp_path / "out", "--device", "cpu", "--threads", "1"]
    words += ["--window", "100", "--batch_size", "18", "--raster", "true", "--processes", "2"]
    code = predict.command(predict.parser().parse_args([str(word) for word in words]), console, "")
    said = console.export_text()
    assert code == 0 and f"skipped {names[0]}: One of the processes ended unexpectedly" in said
    assert f"{names[1]}: 36 windows" in said and not killer.is_alive()


def children() -> set[str]:
    """The processes that this one has started."""
    return set("".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split())


def kill_first_worker(others: set[str]) -> None:
    """As the system does when memory is short."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for process in children() - others:
            if "spawn_main" in Path(f"/proc/{process}/cmdline").read_text():
                os.kill(int(process), signal.SIGKILL)
                return
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_worker_processes_report_a_full_disk(exported_nets: dict[str, Path], tmp_path: Path) -> None:
    model, source = open_model(exported_nets["safetensors"], device="cpu", threads=1), raster(tmp_path / "a.tif")
    config = RasterConfig(window=100, batch_size=4, processes=2)
    (tmp_path / "out").mkdir()
    end, done = time.monotonic() + 60, threading.Event()

    def fill() -> None:
        answers = tmp_path / "out" / "a_scenes.part" / "probabilities.bin"
        while not (answers.parent / "plan.json").exists() and time.monotonic() < end:
            time.sleep(0.001)
        answers.unlink()  # before the processes, which take a second to start, have opened it
        answers.symlink_to("/dev/full")
        done.set()

    threading.Thread(target=fill, daemon=True).start()
    with pytest.raises(UserError, match=r"^the disk is full"):
        map_raster(model, source, tmp_path / "out", config)
    assert done.is_set()
