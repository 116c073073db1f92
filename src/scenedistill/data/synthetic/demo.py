"""Generated scenes from above, so that the quickstart and the tests need no download."""

from __future__ import annotations

import glob
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scenedistill.core.errors import UserError
from scenedistill.core.locks import held
from scenedistill.core.machine import usable_cores
from scenedistill.core.processes import end_with_parent
from scenedistill.core.terminal import plain_console
from scenedistill.data.scenes import SceneIndex, scan
from scenedistill.data.synthetic.canvas import Canvas
from scenedistill.data.synthetic.scenes import SCENES

VERSION = 1  # raise it whenever a change alters the pictures, so that old folders are drawn again
RECIPE_FILE = ".demo.json"


def generate(root: Path, *, per_class: int = 100, size: int = 96, seed: int = 0, progress: bool = True) -> SceneIndex:
    """Write `per_class` JPEG pictures of `size` x `size` pixels for each class into class folders below `root`.

    A picture depends on (seed, class, number, size) and on nothing else: asking for more pictures leaves the first
    ones as they are, whatever the number of processes. A folder that already holds this recipe is returned as it is;
    one with another recipe is replaced, provided that it holds nothing but generated pictures. The folder appears
    only when all pictures are drawn; the next call resumes an interrupted one. One process draws for each core
    (`OMP_NUM_THREADS` does not matter); two calls for the same folder take turns.

    Raises UserError for a count below 1, a size below 16, a negative seed, or a folder that holds anything else.
    """
    if per_class < 1 or size < 16 or seed < 0:
        raise UserError(
            f"Generated scenes need per_class >= 1, size >= 16 and seed >= 0;"
            f" found per_class={per_class}, size={size}, seed={seed}."
        )
    root = Path(root).expanduser().resolve()
    recipe = Recipe(per_class, size, seed)
    # Named after the recipe: workers that outlive a killed call for a moment cannot write into another recipe's folder.
    unfinished = root.with_name(f".{root.name}.{recipe.digest()}.partial")
    root.parent.mkdir(parents=True, exist_ok=True)
    with held(root.with_name(f".{root.name}.lock"), "drawing these scenes", tell=progress):
        if _read(root) != recipe or recipe.missing(root):
            _check_replaceable(root)
            for stale in root.parent.glob(f".{glob.escape(root.name)}.????????????.partial"):
                if stale != unfinished:
                    shutil.rmtree(stale, ignore_errors=True)
            _draw_all(unfinished, recipe, progress)
            if root.exists():
                shutil.rmtree(root)
            unfinished.rename(root)
    return scan(root)


@dataclass(frozen=True)
class Recipe:
    """Parameters that determine the content of a folder of generated scenes; stored in it as `.demo.json`."""

    per_class: int
    size: int
    seed: int
    version: int = VERSION
    classes: tuple[str, ...] = tuple(SCENES)

    def digest(self) -> str:
        """Return a hash of the recipe, 12 hex digits."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]

    def missing(self, folder: Path) -> list[tuple[Path, str, int]]:
        """Return file, class and number of each picture that the folder does not hold."""
        # The class is in the file's name too, because some split lists name files without their folder.
        wanted = [
            (folder / name / f"{name.replace(' ', '_')}_{number:05d}.jpg", name, number)
            for number in range(self.per_class)
            for name in self.classes
        ]
        return [picture for picture in wanted if not picture[0].exists()]


def picture(name: str, number: int, *, size: int = 96, seed: int = 0) -> Image.Image:
    """Draw picture `number` of a class: RGB, `size` x `size`."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    canvas = Canvas(rng, size)
    SCENES[name](canvas)
    return photograph(canvas.image, rng)


def photograph(ground: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Simulate a photograph of a ground of twice its size: lens, haze, clouds, exposure, colour balance, sensor noise.

    Exposure and contrast are set from the picture, as by a camera, so that brightness says little about the class.
    """
    photo = ground.reduce(2).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.1, 0.7))))
    light = np.asarray(photo, dtype=np.float32)
    grey = light.mean(axis=2, keepdims=True)
    contrast = max(float(grey.std()), 4.0)
    gain = rng.uniform(0.9, 1.1) * (rng.uniform(28, 46) / contrast) ** 0.5
    chroma = (light - grey) * rng.uniform(0.6, 1.15) * min(gain, 1.15)
    light = ((grey - grey.mean()) * gain + 0.5 * grey.mean() + rng.uniform(40, 75) + chroma) * rng.normal(1, 0.03, 3)
    if rng.random() < 0.08:  # thin cloud
        small = Image.fromarray(rng.normal(0.2, 0.35, (4, 4)).astype(np.float32))
        veil = np.clip(np.asarray(small.resize(photo.size, Image.Resampling.BICUBIC)), 0, 0.7)[..., None]
        light = light * (1 - veil) + 225 * veil
    haze = rng.uniform(0, 0.2)
    light = light * (1 - haze) + np.array([150, 158, 168]) * haze
    height, width = light.shape[:2]
    light = light + rng.normal(0, rng.uniform(0.5, 3.5), (height, width, 1)) + rng.normal(0, 1, light.shape)
    return Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))


def _draw_all(folder: Path, recipe: Recipe, progress: bool) -> None:
    """Draw every picture that the folder does not hold yet; one that exists is complete."""
    for name in recipe.classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / RECIPE_FILE).write_text(json.dumps(asdict(recipe)), encoding="utf-8")
    for leftover in folder.glob("*/*.part"):
        leftover.unlink()
    missing, total = recipe.missing(folder), recipe.per_class * len(recipe.classes)
    draw = partial(_draw, size=recipe.size, seed=recipe.seed)
    columns = (TextColumn("drawing scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=plain_console(stderr=True), disable=not progress)
    with bar, _workers(len(missing)) as pool:
        job = bar.add_task("", total=total, completed=total - len(missing))
        for _ in map(draw, missing) if pool is None else pool.map(draw, missing, chunksize=8):
            bar.advance(job)


def _draw(wanted: tuple[Path, str, int], size: int, seed: int) -> None:
    path, name, number = wanted
    part = path.with_suffix(f".{os.getpid()}.part")
    picture(name, number, size=size, seed=seed).save(part, format="JPEG", quality=90)
    part.replace(path)


@contextmanager
def _workers(tasks: int) -> Iterator[ProcessPoolExecutor | None]:
    """A pool with one process for each core, or None where starting it costs more than it saves."""
    count = min(usable_cores(), tasks // 48, 16)
    if count < 2:
        yield None
        return
    # Forked workers need no `if __name__ == "__main__"` in a user's script; they touch numpy and Pillow alone.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end this process with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _read(folder: Path) -> Recipe | None:
    """Read the recipe of a folder of generated scenes; None for any other folder."""
    try:
        found = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
        return Recipe(**{**found, "classes": tuple(found["classes"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _check_replaceable(root: Path) -> None:
    """Refuse to replace anything but an empty folder or one that holds generated scenes only."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    recipe, others = _read(root), [root]
    if recipe is not None:
        ours = {root / RECIPE_FILE, *(root / name for name in recipe.classes)}
        for name in recipe.classes:
            ours.update((root / name).glob(f"{name.replace(' ', '_')}_?????.jpg"))
        others = [path for path in root.rglob("*") if path not in ours]
    if others:
        raise UserError(
            f"{others[0]} was not generated, so {root} is not replaced by generated scenes."
            " Choose an empty or a new folder for them."
        )
