"""Speed, memory and agreement on a mosaic of real images as large as an orthophoto.

    python benchmarks/mosaic.py path/to/AID runs/aid20 results/use.json --out runs/mosaic

makes a GeoTIFF of 20,000 x 20,000 pixels of images that stand side by side, maps it in a process of its own as
`scenedistill predict` does, and compares the classes read back from the maps with the network's predictions for the
single images. The figures become the section `mosaic` of the JSON file; its other sections stay. The exit code is 1 if
a class read back differs from that of its single image. `--side`, `--tile` and others make it small.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio.raw
import rasterio
from rasterio import Affine
from rasterio.windows import Window

from records.use import keep_section
from scenedistill.data.images.read import read_image, read_scene
from scenedistill.data.scenes import scan
from scenedistill.experiments.results.environment import measured_here
from scenedistill.inference.model import SceneModel, open_model
from scenedistill.inference.raster.pipeline import RasterConfig, map_raster
from scenedistill.inference.raster.work import GDAL_CACHE

METRES = 0.5  # side of a pixel, as in a usual orthophoto
TARGET = 0.85  # least share of the time that the network should take


def build(data: Path, path: Path, side: int, tile: int, seed: int, compress: str) -> list[list[Path]]:
    """Write the mosaic from images drawn at random; those of the last row and column are cut at the edge.

    Returns:
        The images by row and column.
    """
    index, count = scan(data), -(-side // tile)
    order = np.random.default_rng(seed).permutation(len(index.paths))
    drawn = (index.root / index.paths[place] for place in itertools.cycle(order))
    layout = {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "BIGTIFF": "IF_SAFER"}
    if compress != "none":
        layout["compress"] = compress
    shape = {"width": side, "height": side, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    place = {"crs": "EPSG:32650", "transform": Affine(METRES, 0, 500_000, 0, -METRES, 4_000_000)}
    rows = []
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE), rasterio.open(path, "w", **layout, **shape, **place) as file:
        for row in range(count):
            rows.append([next(drawn) for _ in range(count)])
            band = np.zeros((tile, count * tile, 3), np.uint8)
            for column, image in enumerate(rows[-1]):
                pixels = read_image(image)
                if pixels.shape[:2] != (tile, tile):
                    raise SystemExit(f"{image} is {pixels.shape[1]} x {pixels.shape[0]}; --tile must be its size")
                band[:, column * tile : (column + 1) * tile] = pixels
            height = min(tile, side - row * tile)
            file.write(band[:height, :side].transpose(2, 0, 1), window=Window(0, row * tile, side, height))
    return rows


def measure(raster: Path, out: Path, model: str, opened: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Map the raster in a process of its own and return its result, with its peak memory in MiB."""
    given = json.dumps({"raster": str(raster), "out": str(out), "model": model, "opened": opened, "settings": settings})
    ended = subprocess.run([sys.executable, __file__, "--map", given], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def map_it(given: dict[str, Any]) -> None:
    """Map the raster and print the result, in the process that `measure` starts."""
    model = open_model(given["model"], **given["opened"])
    workers, ended = Workers(), threading.Event()
    watching = threading.Thread(target=workers.watch, args=(ended,))
    watching.start()
    try:
        result = map_raster(model, given["raster"], Path(given["out"]), RasterConfig(**given["settings"]))
    finally:
        ended.set()
        watching.join()
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found = {
        **asdict(result),
        "peak_memory_mib": round(own_peak() + sum(workers.peaks.values())),
        "peak_memory_mib_of_workers": round(sum(workers.peaks.values())),
        "processor_seconds": sum(each.ru_utime + each.ru_stime for each in used),
    }
    print(json.dumps(found, default=str))


class Workers:
    """Peak memory of each child process in MiB; `peaks` maps process id to peak."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}

    def watch(self, ended: threading.Event) -> None:
        """Poll the child processes until `ended` is set; a peak just before a process ends may be missed."""
        while not ended.wait(0.2):
            for children in Path("/proc/self/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    for process in children.read_text().split():
                        if found := peak_of(process):  # only grows; the last value is of the program that runs there
                            self.peaks[process] = found


def own_peak() -> float:
    """Return the peak memory of this process in MiB."""
    if sys.platform.startswith("linux"):
        return peak_of("self")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(used) / (2**20 if sys.platform == "darwin" else 2**10)


def peak_of(process: str) -> float:
    """Return the peak memory of a process so far in MiB; 0 if it has ended.

    `ru_maxrss` will not do: it is inherited, so that it is never below the peak of the parent process.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    return 0.0


def agreement(
    model: SceneModel, images: list[list[Path]], found: dict[str, Any], side: int, tile: int
) -> dict[str, Any]:
    """Compare what is read back at the centre of each whole image with the prediction for the single image."""
    whole = side // tile
    alone, files, seconds = [], [], 0.0
    size = model.card.stored_size or model.card.image_size
    for row in images[:whole]:
        alone.append(model.predict([read_image(path) for path in row[:whole]]).probabilities)
        scenes = np.stack([read_scene(path, size) for path in row[:whole]])
        started = time.perf_counter()
        files.append(model.predict(scenes).probabilities)
        seconds += time.perf_counter() - started
    expected, of_files = np.stack(alone), np.stack(files)
    with rasterio.open(found["classes"]) as raster:
        middles = (np.arange(whole) + 0.5) * tile * METRES
        places = [raster.index(500_000 + x, 4_000_000 - y) for y in middles for x in middles]
        band = raster.read(1)
        cells = np.array([band[place] for place in places]).reshape(whole, whole)
    meta, _, shapes, values = pyogrio.raw.read(found["polygons"], layer="scenes")
    table = dict(zip(meta["fields"], values, strict=True))
    corners = np.array([np.frombuffer(shape, "<f8", count=8, offset=13).reshape(4, 2) for shape in shapes])
    low, high = corners.min(1), corners.max(1)
    polygons, apart = np.full((whole, whole), -1), 0.0
    for i, y in enumerate(middles):
        for j, x in enumerate(middles):
            point = np.array([500_000 + x, 4_000_000 - y])
            (at,) = np.flatnonzero(((low < point) & (point < high)).all(1))
            polygons[i, j] = model.card.classes.index(table["class"][at])
            said = np.array([table[name][at] for name in meta["fields"] if name.startswith("p_")])
            apart = max(apart, float(np.abs(said - expected[i, j]).max()))
    agree = {
        "agree_geotiff": float((cells == expected.argmax(2)).mean()),
        "agree_polygons": float((polygons == expected.argmax(2)).mean()),
        "agree_files": float((cells == of_files.argmax(2)).mean()),  # as `predict` reads the image files
    }
    return {
        "images": whole * whole,
        **agree,
        "equal": min(agree.values()) == 1,
        "largest_difference": apart,  # of a probability
        "network_alone_ms": 1000 * seconds / whole**2,  # for one image decoded before, in batches of a row
    }


def options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="class folders")
    parser.add_argument("model", help="a run, or a file of a network")
    parser.add_argument("results", type=Path, help="JSON file that gets the section `mosaic`")
    parser.add_argument("--out", type=Path, default=Path("runs/mosaic"), help="for the mosaic and its maps")
    parser.add_argument("--side", type=int, default=20_000, help="of the mosaic, pixels")
    parser.add_argument("--tile", type=int, help="of an image, and of a window, pixels; of the first when not given")
    parser.add_argument("--compress", default="deflate", help="of the GeoTIFF, lossless, or none")
    parser.add_argument("--seed", type=int, default=0, help="that draws the images")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--readers", type=int)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int)
    return parser


def command(given: argparse.Namespace) -> str:
    """Return the command with every option that is not at its default, and paths cut to their last part."""
    words = ["python benchmarks/mosaic.py", given.data.resolve().name, "MODEL", f"results/{given.results.name}"]
    for name, value in vars(given).items():
        if name not in ("data", "model", "results") and value != options().get_default(name):
            words.append(f"--{name} {value.name if isinstance(value, Path) else value}")
    return " ".join(words)


def main() -> int:
    """Build, map, compare and write; return 1 if a class read back differs from that of the single image."""
    if sys.argv[1:2] == ["--map"]:
        map_it(json.loads(sys.argv[2]))
        return 0
    given = options().parse_args()
    said = command(given)
    if given.tile is None:
        index = scan(given.data)
        given.tile = read_image(index.root / index.paths[0]).shape[0]
    given.out.mkdir(parents=True, exist_ok=True)
    raster, maps = given.out / "mosaic.tif", given.out / "maps"
    images = build(given.data, raster, given.side, given.tile, given.seed, given.compress)
    shutil.rmtree(maps, ignore_errors=True)  # results of an earlier run would shorten the work
    opened = {"device": given.device, "precision": given.precision, "threads": given.threads}
    settings = {
        "window": given.tile,
        "batch_size": given.batch_size,
        "readers": given.readers,
        "processes": given.processes,
        "regions": True,
    }
    found = measure(raster, maps, given.model, opened, settings)
    model = open_model(given.model, **opened)
    compared = agreement(model, images, found, given.side, given.tile)
    section = {
        "command": said,
        **measured_here(rasterio=rasterio.__version__, gdal=rasterio.__gdal_version__),
        "network": model.card.name,
        "stored_size": model.card.stored_size,
        "image_size": model.card.image_size,
        "precision": str(getattr(model, "precision", "of the file")),
        "side": given.side,
        "window": given.tile,
        "windows": found["windows"],
        "compress": given.compress,
        "file_mib": round(raster.stat().st_size / 2**20, 1),
        "batch_size": given.batch_size,
        "processes": given.processes,
        "megapixels": found["megapixels"],
        "seconds": round(found["seconds"], 2),
        "megapixels_per_second": round(found["megapixels"] / found["seconds"], 2),
        "processor_seconds": round(found["processor_seconds"], 2),
        "reading": round(found["reading"], 4),
        "network_share": round(found["network"], 4),
        "writing": round(found["writing"], 4),
        "network_share_target": TARGET,
        "network_share_reached": found["network"] >= TARGET,
        "peak_memory_mib": found["peak_memory_mib"],
        "peak_memory_mib_of_workers": found["peak_memory_mib_of_workers"],
        **compared,
        "of_network_alone": round(compared["network_alone_ms"] / 1000 * found["windows"] / found["seconds"], 4),
    }
    keep_section(given.results, "mosaic", section)
    print(json.dumps(section, indent=1))
    return 0 if compared["equal"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
