"""What the work behind the page takes and leaves: memory, time, processes, folders; and what it says to people."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import re
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
from PIL import Image

from scenedistill.core.errors import UserError
from scenedistill.serve import worker as serve_work
from scenedistill.serve.answers import Answerer
from scenedistill.serve.files import PREFIX, ResultStore
from scenedistill.serve.limits import ServeLimits
from scenedistill.serve.networks import ServedNetworks
from scenedistill.serve.worker import Worker

rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")

SRC = Path(__file__).resolve().parents[2] / "src"
COMMAND = (sys.executable, "-u", "-m", "scenedistill.cli", "serve")
PLACE = rasterio.Affine(2, 0, 500_000, 0, -2, 5_400_000)
RNG = np.random.default_rng(0)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def tiff(path: Path, bands: np.ndarray | None, **more: Any) -> Path:
    """A GeoTIFF of bands `[C, H, W]`; a sparse one where there are none."""
    shape: dict[str, Any] = {"driver": "GTiff", "crs": "EPSG:32632", "transform": PLACE}
    if bands is not None:
        shape |= dict(zip(("count", "height", "width"), bands.shape, strict=True), dtype=bands.dtype)
    with rasterio.open(path, "w", **{**shape, **more}) as file:
        if bands is not None:
            file.write(bands)
    return path


def with_overviews(path: Path, name: str) -> Path:
    """A GeoTIFF that says that its overviews are in another file."""
    with rasterio.open(tiff(path, noise(96)), "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=name)
    return path


def noise(side: int, bands: int = 3, kind: str = "uint8") -> np.ndarray:
    return RNG.integers(0, 256, (bands, side, side)).astype(kind)


def resident(pid: int) -> float:
    """MiB of a process in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture(scope="module")
def worker(page_networks: tuple[Path, Path]) -> Iterator[Worker]:
    """A process with the student alone, started."""
    limits = ServeLimits()
    one = Worker(ServedNetworks(page_networks[0], "none", device="cpu", threads=1), limits)
    one.start()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def answerer(page_networks: tuple[Path, Path]) -> Answerer:
    return Answerer(ServedNetworks(page_networks[0], "none", "cpu"))


# memory


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted otherwise elsewhere")
@pytest.mark.slow
def test_memory_is_flat_over_two_hundred_requests(page: Any, tmp_path: Path, wait_until: Callable[..., None]) -> None:
    """Scenes of all sizes that the page takes, what it refuses, and now and then a map, which takes longer."""
    scenes = [b"no image"]
    for side in (60, 96, 500, 700):
        memory = io.BytesIO()
        Image.fromarray(noise(side).transpose(1, 2, 0)).save(memory, "JPEG")
        scenes.append(memory.getvalue())
    scenes.append(scenes[-1][:2000])
    town = tiff(tmp_path / "town.tif", noise(192)).read_bytes()
    statuses, sizes = set[int](), list[float]()
    for number in range(200):
        body = town if number % 20 == 0 else scenes[number % len(scenes)]
        statuses.add(page.call("POST", "/classify?name=a", body)[0])
        if number % 20 == 19:
            wait_until(lambda: not page.workers.all[0].cleaning_up)
            sizes.append(resident(page.workers.all[0].process.pid))
    assert statuses == {200, 415, 422}
    assert max(sizes[2:]) - sizes[1] < 24, sizes


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted otherwise elsewhere")
def test_memory_of_a_large_file_is_released(worker: Worker, tmp_path: Path) -> None:
    assert worker.process and worker.process.pid
    small, large = (tmp_path / name / "upload.tif" for name in ("small", "large"))
    for path, side in ((small, 96), (large, 3000)):
        path.parent.mkdir()
        tiff(path, noise(side, kind="float32"))
    sizes = []
    for path in (small, large, large):
        answer = worker.run({"upload": str(path), "name": "a.tif", "kind": "map", "window": 512})
        assert answer["kind"] == "map"
        worker.start()
        sizes.append(resident(worker.process.pid))
    peak = int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{worker.process.pid}/status").read_text())[0]) / 1024
    assert peak > sizes[0] + 300, "it took much"
    assert max(sizes[1:]) - sizes[0] < (peak - sizes[0]) / 2, (sizes, peak)  # nearly all of it stayed otherwise


@pytest.mark.slow
def test_a_process_that_keeps_too_much_is_replaced(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = tiff(tmp_path / "upload.tif", noise(96))
    task = {"upload": str(upload), "name": "a.tif", "kind": "scene"}
    assert worker.process
    worker.start()
    before = worker.process.pid
    worker.run(task)
    worker.start()
    assert worker.process.pid == before
    worker.run(task)
    monkeypatch.setattr(serve_work, "KEPT_BYTES", -(1 << 40))  # a gibibyte would have to be kept otherwise
    worker.start()
    assert worker.process.pid != before and worker.run(task)["kind"] == "scene"


# time


def test_a_file_with_too_few_bytes_for_its_pixels_is_refused(answerer: Answerer, tmp_path: Path) -> None:
    shape = {"count": 3, "height": 7000, "width": 7000, "dtype": "float64"}
    sparse = tiff(tmp_path / "upload.tif", None, **shape, SPARSE_OK=True, blockysize=1)
    assert sparse.stat().st_size < 60_000
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"KiB for .* MiB of pixels: nearly all of it is empty"):
        answerer.answer(str(sparse), "a.tif", "map")
    tiles = {"tiled": True, "blockxsize": 2048, "blockysize": 2048}
    flat = tiff(sparse, np.zeros((3, 6144, 6144), np.uint8), compress="zstd", **tiles)
    with pytest.raises(UserError, match="nearly all of it is empty"):
        answerer.answer(str(flat), "a.tif", "map")
    Image.new("RGB", (5000, 5000), (9, 9, 9)).save(tmp_path / "upload.webp", lossless=True)
    with pytest.raises(UserError, match="nearly all of it is empty"):
        answerer.answer(str(tmp_path / "upload.webp"), "a.webp")
    assert time.perf_counter() - start < 20


def test_a_map_that_would_take_too_long_is_not_begun(
    answerer: Answerer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = tiff(tmp_path / "upload.tif", noise(96))
    assert 0 < answerer.seconds_of_window < 1
    monkeypatch.setattr(answerer, "seconds_of_window", 10.0)
    assert answerer.answer(str(upload), "a.tif", "map", window=48)["kind"] == "map"  # four of them
    with pytest.raises(UserError, match="would take 90 seconds or more; the limit of this page is 60"):
        answerer.answer(str(upload), "a.tif", "map", window=32)


# what it says


def test_messages_of_the_page_name_no_command_line_option(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    deflated = {"compress": "deflate", "blockysize": 16}
    files = {
        "The network takes 3 bands; a.tif has 2": tiff(path, noise(96, 2), photometric="minisblack").read_bytes(),
        "a.tif holds no data at all": tiff(path, np.zeros((3, 96, 96), np.float32), nodata=0).read_bytes(),
        "a.tif cannot be read at rows": tiff(path, noise(96), **deflated).read_bytes()[:12_000],
        "by which its pixels lie nowhere on a map": tiff(path, noise(96), transform=PLACE @ _scale(0, 0)).read_bytes(),
        "lie nowhere on a map: inf": tiff(path, noise(96), transform=PLACE @ _scale(1e400, 1)).read_bytes(),
        "lie nowhere on a map: 1e+308": tiff(path, noise(96), transform=_scale(1e308, -1e308)).read_bytes(),
        "complex64": tiff(path, noise(96, 3, "complex64")).read_bytes(),
        "for its overviews: it could read any file": with_overviews(path, "/etc/passwd").read_bytes(),
    }
    for expected, body in files.items():
        status, answer, _ = page.call("POST", "/classify?name=a.tif&kind=map&window=32", body)
        assert status == 422 and expected in answer["error"], (expected, answer)
        assert not re.search("--|command|upload|gdal_edit", answer["error"]), answer


def _scale(across: float, down: float) -> Any:
    return rasterio.Affine(across, 0, 0, 0, down, 0)


def test_undeclared_holes_and_windows_left_out_are_noted(page: Any, tmp_path: Path) -> None:
    values = RNG.uniform(0, 0.4, (3, 96, 96)).astype(np.float32)
    values[:, :48] = -9999
    path = tiff(tmp_path / "a.tif", values)
    answer = page.call("POST", "/classify?name=a.tif&window=48", path.read_bytes())[1]
    assert "50% of the pixels are -9999, far from all others" in answer["note"] and "--nodata" not in answer["note"]
    path = tiff(tmp_path / "a.tif", values, nodata=-9999)
    answer = page.call("POST", "/classify?name=a.tif&window=48", path.read_bytes())[1]
    assert answer["note"] == "2 of 4 windows hold too little data and are left out."


def test_a_map_names_its_place_with_or_without_a_coordinate_system(page: Any, tmp_path: Path) -> None:
    placed = tiff(tmp_path / "a.tif", noise(96), crs=None).read_bytes()
    assert page.call("POST", "/classify?name=a.tif", placed)[1]["kind"] == "map"
    point = rasterio.control.GroundControlPoint
    corners = [point(row, column, column, -row) for row in (0, 96) for column in (0, 96)]
    points = tiff(tmp_path / "b.tif", noise(96), transform=None, gcps=corners).read_bytes()
    answer = page.call("POST", "/classify?name=b.tif", points)[1]
    assert answer["kind"] == "scene" and "ground control points alone" in answer["note"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_a_network_whose_name_is_no_utf_8_is_refused_in_a_line(
    page_networks: tuple[Path, Path], tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"M\xfcller.safetensors")
    odd.write_bytes(page_networks[0].read_bytes())
    limits = ServeLimits()
    with pytest.raises(UserError, match="UTF-8") as refused:
        Worker(ServedNetworks(odd, "none", device="cpu", threads=1), limits).start()
    assert "\n" not in str(refused.value)


# what is left after a kill


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.slow
def test_after_a_kill_no_process_continues_and_the_next_server_cleans_up(
    page_networks: tuple[Path, Path], tmp_path: Path, wait_until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(SRC), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    arguments = [str(page_networks[0]), "--port", "0", "--device", "cpu", "--threads", "1"]
    arguments += ["--limits.seconds", "10000"]
    body = tiff(tmp_path / "a.tif", noise(1600)).read_bytes()  # 40,000 windows, a minute or so
    with (
        subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True, env=environment) as server,
        contextlib.ExitStack() as at_the_end,
    ):
        at_the_end.callback(server.kill)
        assert server.stdout
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:(\d+)/", line) for line in server.stdout)))

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("POST", "/classify?name=a.tif&window=16&overlap=0.5", body)
                connection.getresponse()

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        wait_until(lambda: list(folder.glob(f"{PREFIX}*/requests/*/*.part/done.bin")))
        children = Path(f"/proc/{server.pid}/task").glob("*/children")
        pids = [int(pid) for file in children for pid in file.read_text().split()]
        assert pids
        server.send_signal(signal.SIGKILL)
        server.wait()
        asking.join()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 5)
    (left,) = folder.glob(f"{PREFIX}*")
    (folder / f"{PREFIX}foreign").mkdir()  # without our lock: not ours to remove
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    first = ResultStore(ServeLimits())
    assert not left.exists() and first.root.is_dir()
    second = ResultStore(ServeLimits())  # the first one lives
    assert first.root.is_dir()
    first.close()
    second.close()
    assert [path.name for path in folder.iterdir()] == [f"{PREFIX}foreign"]
