"""Time and memory of maps on a Ray cluster of this machine, and whether they equal those of one process.

    python benchmarks/cluster.py MODEL results/cluster.json --out runs/cluster

makes a raster of generated scenes and maps it with `scenedistill predict`: in one process, on clusters of 1, 2 and 3
workers, and on the last with one worker killed on the way. Workers have one thread each. Seconds are those of the whole
command, memory is the peak of its process and of all workers. The exit code is 1 if two maps differ.

For plans of larger maps it also times the parts, with one thread each: the network alone, and everything else with
windows of two sizes; the bytes of the maps are in the notes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyogrio.raw
import rasterio
import ray
from rasterio.windows import Window

from records.command import this_command
from records.figures import Figure, Figures
from scenedistill.data.synthetic.demo import picture
from scenedistill.data.synthetic.scenes import SCENES
from scenedistill.experiments.results.environment import measured_here
from scenedistill.experiments.results.measurements import write_record
from scenedistill.inference.model import Predicted, SceneModel, open_model
from scenedistill.inference.raster.config import RasterConfig
from scenedistill.inference.raster.pipeline import map_raster
from scenedistill.inference.raster.progress import DONE

WORKER = b"ray::_Worker"


def build(path: Path, side: int, tile: int, seed: int) -> None:
    """Write a raster of `side` pixels of generated scenes that stand side by side."""
    generator = np.random.default_rng(seed)
    scenes = np.stack([np.asarray(picture(name, number, size=tile)) for number, name in enumerate(sorted(SCENES))])
    layout = {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(1, 0, 600_000, 0, -1, 5_300_000)}
    size = {"width": side, "height": side, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **layout, **place, **size) as file:
        for top in range(0, side, tile):
            row = np.concatenate(scenes[generator.integers(len(scenes), size=-(-side // tile))], axis=1)
            file.write(row[: side - top, :side].transpose(2, 0, 1), window=Window(0, top, side, min(tile, side - top)))


class Processes:
    """Peak memory in MiB of a command and of all workers, polled; and a worker to kill."""

    def __init__(self, command: int, answers: Path, kill: bool) -> None:
        self.peaks: dict[int, float] = {}
        self.killed: list[int] = []
        self._command, self._answers, self._kill = command, answers, kill

    def watch(self, ended: threading.Event) -> None:
        """Poll until `ended` is set; kill a worker once a third of the windows are answered."""
        while not ended.wait(0.1):
            workers = workers_running()
            for process in (self._command, *workers):
                with contextlib.suppress(OSError):
                    lines = Path(f"/proc/{process}/status").read_text().splitlines()
                    if peak := next((line for line in lines if line.startswith("VmHWM:")), ""):
                        self.peaks[process] = int(peak.split()[1]) / 2**10
            with contextlib.suppress(OSError):
                if self._kill and workers and not self.killed and np.fromfile(self._answers, np.uint8).mean() > 1 / 3:
                    self.killed.append(workers[0])
                    os.kill(workers[0], signal.SIGKILL)


def workers_running() -> list[int]:
    """Return the worker processes that have started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(WORKER):
                found.append(int(path.parent.name))
    return sorted(found)


def measure(words: list[str], out: Path, stem: str, kill: bool) -> tuple[float, int]:
    """Run a command and return its seconds and the peak memory of its processes together in MiB."""
    started = time.perf_counter()
    with subprocess.Popen([*words, "--out", str(out)], stdout=subprocess.DEVNULL) as command:
        processes, ended = Processes(command.pid, out / f"{stem}_scenes.part" / DONE, kill), threading.Event()
        watching = threading.Thread(target=processes.watch, args=(ended,))
        watching.start()
        command.wait()
        seconds = time.perf_counter() - started
        ended.set()
        watching.join()
    if command.returncode or (kill and not processes.killed):
        raise SystemExit(f"the command failed, or ended before a worker could be killed: {' '.join(words)}")
    return seconds, round(sum(processes.peaks.values()))


class Immediate(SceneModel):
    """Answers at once, to time everything but the network."""

    def __init__(self, like: SceneModel) -> None:
        super().__init__(like.card, {}, Path("immediate"))

    def _run(self, images: np.ndarray) -> Predicted:
        answers = np.zeros((len(images), len(self.card.classes)), np.float32)
        answers[:, 0] = 1
        return Predicted(answers, answers, answers)

    def _embedding_width(self) -> int:
        return len(self.card.classes)


def parts(model: SceneModel, raster: Path, out: Path, window: int) -> list[Figure]:
    """Time the network alone, and maps without it from windows of the given side and of ten times that."""
    size, count = model.stored_size, 2_000
    images = np.random.default_rng(0).integers(0, 256, (32, size, size, model.card.bands), dtype=np.uint8)
    model.predict(images)
    started = time.perf_counter()
    for _ in range(0, count, len(images)):
        model.predict(images)
    found = [Figure("the network alone, one thread", count, time.perf_counter() - started, 0)]
    for side in (window, 10 * window):
        started = time.perf_counter()
        result = map_raster(Immediate(model), raster, out / f"immediate{side}", RasterConfig(window=side, readers=1))
        seconds = time.perf_counter() - started
        found.append(Figure(f"windows of {side} pixels without the network, one reader", result.windows, seconds, 0))
    return found


def same_maps(one: Path, other: Path, stem: str) -> bool:
    """Return whether two folders hold the same maps of a raster."""
    found = []
    for folder in (one, other):
        with rasterio.open(folder / f"{stem}_scenes.tif") as file:
            classes = file.read()
        _, _, shapes, fields = pyogrio.raw.read(folder / f"{stem}_scenes.gpkg", layer="scenes")
        found.append((classes.tobytes(), [bytes(shape) for shape in shapes], [field.tolist() for field in fields]))
    return found[0] == found[1]


def main() -> int:
    """Build, map, compare and write; return 1 if two maps differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a run, or a file of a network")
    parser.add_argument("results", type=Path, help="JSON file to write")
    parser.add_argument("--out", type=Path, default=Path("runs/cluster"), help="for the raster and its maps")
    parser.add_argument("--side", type=int, default=20_000, help="of the raster, pixels")
    parser.add_argument("--window", type=int, default=160, help="pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seed", type=int, default=0, help="that draws the scenes")
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    raster, windows, rows = given.out / "country.tif", (given.side // given.window) ** 2, []
    build(raster, given.side, given.window, given.seed)
    words = [
        sys.executable,
        "-m",
        "scenedistill.cli",
        "predict",
        given.model,
        str(raster),
        "--window",
        str(given.window),
    ]
    words += ["--device", "cpu", "--precision", "fp32"]

    def add(name: str, folder: str, *more: str, kill: bool = False) -> None:
        seconds, memory = measure([*words, *more], given.out / folder, raster.stem, kill)
        rows.append(Figure(name, windows, seconds, memory))
        print(f"{name}: {seconds:.1f} s, {windows / seconds:,.0f} windows/s, {memory:,} MiB", flush=True)

    add("one process", "alone")
    add("one process, one thread", "thread", "--threads", "1")
    for count in given.workers:
        context = ray.init(num_cpus=count, num_gpus=0, include_dashboard=False, log_to_driver=False)
        cluster = ["--ray", "true", "--cluster.address", context.address_info["address"]]
        name = f"{count} worker{'s' if count > 1 else ''}"
        add(name, str(count), *cluster)
        if count == max(given.workers):
            add(f"{name}, one killed", "killed", *cluster, kill=True)
        ray.shutdown()
    model = open_model(given.model, device="cpu", precision="fp32", threads=1)
    rows += parts(model, raster, given.out, given.window)
    maps = given.out / "thread"
    bytes_of = {end: (maps / f"{raster.stem}_scenes.{end}").stat().st_size / windows for end in ("gpkg", "tif")}
    folders = [str(count) for count in given.workers] + ["killed"]
    equal = all(same_maps(given.out / "thread", given.out / folder, raster.stem) for folder in folders)
    print(f"maps of the clusters {'equal' if equal else 'DIFFER FROM'} those of one process with one thread")
    figures = Figures(
        experiment=given.results.stem,
        command=this_command(),
        **measured_here(ray=ray.__version__, rasterio=rasterio.__version__),
        data=f"a raster of {given.side:,} x {given.side:,} generated pixels, windows of {given.window}",
        rows=tuple(rows),
        notes=(
            f"Images are windows. The raster has {raster.stat().st_size / given.side**2:.2f} bytes a pixel (DEFLATE). "
            f"The maps are {'equal' if equal else 'NOT equal'}. A cell takes {bytes_of['gpkg']:.0f} bytes of the "
            f"GeoPackage, {bytes_of['tif']:.1f} of the GeoTIFF, and {4 * len(model.card.classes) + 2} until then."
        ),
    )
    write_record(figures, given.results)
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
