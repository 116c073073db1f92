"""What the start of a run reads and keeps in memory as the number of images grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from scenedistill.core.disk import read_json, write_json
from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import build_cache
from scenedistill.data.scenes import scan
from scenedistill.data.splits.draw import make_split
from scenedistill.experiments.run_folder import RunFolder

WORKER = Path(__file__).with_name("growth_worker.py")
SIZE = 64


def pictures(folder: Path, count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for number in range(count):
        place = folder / f"class {number % 4}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).save(place / f"{number}.png", compress_level=0)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_a_repeated_start_reads_no_pixels_and_its_memory_is_bounded(tmp_path: Path) -> None:
    data, others = pictures(tmp_path / "labelled", 20_000, 0), pictures(tmp_path / "unlabelled", 2_000, 1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SCENEDISTILL_CACHE": str(tmp_path / "cache")}

    def start() -> tuple[dict[str, int], str]:
        command = [sys.executable, str(WORKER), str(data), str(tmp_path / "run"), "--seeds", "[0, 1, 2]"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1]), ended.stderr

    assert start()[0]["opened"] >= 22_000
    changed = [data / "class 1" / "1.png", others / "class 2" / "2.png"]
    for number, path in enumerate(changed):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(path)
    assert start()[0]["opened"] == 2 * len(changed), "each for its first bytes, and then as an image"
    for array in (tmp_path / "cache").rglob("images-*.npy"):  # all pixels become 0: whoever reads them complains
        size = array.stat().st_size
        os.truncate(array, 128)
        os.truncate(array, size)
    told, complaints = start()
    assert told["opened"] == 0 and "damaged" not in complaints
    assert told["mib"] < 0.5 * 20_000 * SIZE * SIZE * 3 / 2**20


@pytest.mark.parametrize("same", [True, False])
def test_the_images_of_a_folder_of_an_earlier_version_are_compared_once(
    tiny_scenes: Path, tmp_path: Path, same: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    index = scan(tiny_scenes)
    cache, split = build_cache(index, 32, folder=tmp_path / "cache", progress=False), make_split(index, 0.5, 0)
    rows = np.concatenate([split.train, split.val, split.test])
    name = f"{split.hash}, 32 pixels, 3 bands"
    file = tmp_path / "run" / "seed0" / "images.json"
    file.parent.mkdir(parents=True)
    write_json(file, {name: ScenePart(cache, rows).pixel_hash() if same else "another"}, checksum=True)

    def begin() -> bool:
        RunFolder(tmp_path / "run", Console(width=300), True).write_seed(0, "{}", split, cache)
        return "these are not the images" in capsys.readouterr().out

    assert begin() is not same
    known = read_json(file)
    assert len(known) == 1 + same and known[name]
    if same:  # from now on the checksums count
        write_json(file, {**known, name: "not compared any more"}, checksum=True)
        assert not begin()
        write_json(file, {one: "another" for one in known}, checksum=True)
    assert begin()
