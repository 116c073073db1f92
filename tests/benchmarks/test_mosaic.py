"""The mosaic benchmark, small: every image is found again at its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scenedistill.data.scenes import scan
from scenedistill.models.files import NetCard, save_net
from scenedistill.models.student import build_student

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "mosaic.py"


@pytest.mark.slow
def test_a_mosaic_of_images_gives_their_classes_back(tiny_scenes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, classes = build_student("table1_printed", 4, image_size=32), scan(tiny_scenes).classes
    save_net(net, NetCard("table1_printed", tuple(classes), 3, 32), tmp_path / "weights.safetensors")
    results = tmp_path / "use.json"
    results.write_text('{"latency": 1}')
    words = [sys.executable, SCRIPT, tiny_scenes, tmp_path / "weights.safetensors", results, "--out", tmp_path / "out"]
    options = ["--side", "250", "--threads", "1", "--device", "cpu", "--precision", "fp32"]
    subprocess.run([*words, *options], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    content = json.loads(results.read_text(encoding="utf-8"))
    assert content["latency"] == 1
    found = content["mosaic"]
    assert found["images"] == 25 and found["windows"] == 36
    assert found["agree_geotiff"] == found["agree_polygons"] == found["agree_files"] == 1
    assert found["largest_difference"] < 1e-4 and found["peak_memory_mib"] > 50
    assert found["network_alone_ms"] > 0 and found["of_network_alone"] > 0
    assert 0 < found["network_share"] < 1 and found["megapixels_per_second"] > 0
