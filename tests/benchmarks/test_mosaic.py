"""The mosaic benchmark, small: every image is found again at its place."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from records.use import read_use, use_table
from scenedistill.data.scenes import scan
from scenedistill.models.create import build_student
from scenedistill.models.files import NetCard, save_net

pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
pytest.importorskip("pyogrio", reason="needs pyogrio: pip install -e '.[use]'")
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "mosaic.py"
WORKER = Path(__file__).with_name("memory_worker.py")


@pytest.mark.slow
def test_a_mosaic_of_images_gives_their_classes_back(tiny_scenes: Path, commands: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, classes = build_student("table1_printed", 4, image_size=32), scan(tiny_scenes).classes
    save_net(net, NetCard("table1_printed", tuple(classes), 3, 32), tmp_path / "weights.safetensors")
    results = tmp_path / "use.json"
    results.write_text('{"other": 1}')
    words = (tiny_scenes, tmp_path / "weights.safetensors", results, "--out", tmp_path / "out")
    options = ("--side", "250", "--threads", "1", "--device", "cpu", "--precision", "fp32")
    ended = commands(*words, *options, script=SCRIPT)
    assert ended.code == 0, ended.out + ended.err
    content = json.loads(results.read_text(encoding="utf-8"))
    assert content["other"] == 1 and content["kind"] == "use"
    found = content["mosaic"]
    assert found["images"] == 25 and found["windows"] == 36
    assert found["agree_geotiff"] == found["agree_polygons"] == found["agree_files"] == 1
    assert found["largest_difference"] < 1e-4 and found["peak_memory_mib"] > 50
    assert found["network_alone_ms"] > 0 and found["of_network_alone"] > 0
    assert found["equal"] is True and found["network_share_reached"] == (found["network_share"] >= 0.85)
    said = " MODEL results/use.json --out out --side 250 --device cpu --precision fp32 --threads 1"
    assert found["command"].endswith(said)
    assert found["peak_memory_mib_of_workers"] == 0
    assert 0 < found["network_share"] < 1 and found["megapixels_per_second"] > 0
    assert "| class read back equals that of the image alone | 100.00 % of 25 images |" in use_table(read_use(results))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is counted otherwise elsewhere")
def test_the_peak_memory_of_each_process_is_measured_separately() -> None:
    known = runpy.run_path(str(SCRIPT))
    workers, ended = known["Workers"](), threading.Event()
    small, large = (
        subprocess.Popen([sys.executable, WORKER, mebibytes], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for mebibytes in ("0", "300")
    )
    watching = threading.Thread(target=workers.watch, args=(ended,))
    try:
        for process in (small, large):
            assert process.stdout and process.stdout.readline() == b"1\n"
        watching.start()
        end = time.monotonic() + 60
        while not {str(small.pid), str(large.pid)} <= set(workers.peaks) and time.monotonic() < end:
            time.sleep(0.05)
        found = dict(workers.peaks)
    finally:
        ended.set()
        watching.join()
        for process in (small, large):
            process.communicate(b"\n")
    assert 1 < found[str(small.pid)] < 60 < 300 < found[str(large.pid)] < 400  # not what this process holds
    assert known["own_peak"]() > 100 and known["peak_of"](str(small.pid)) == 0
