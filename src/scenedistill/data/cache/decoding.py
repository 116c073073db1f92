"""Decode many scenes in order, with a pool of threads and a progress bar."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from scenedistill.core.machine import usable_cores
from scenedistill.core.terminal import plain_console
from scenedistill.data.images.read import UnreadableImage

_MOST = 8  # images of a task
Scene = npt.NDArray[np.uint8] | str  # [size, size, bands], or the reason why the image cannot be read


def decode_all(
    paths: Sequence[str],
    read: Callable[[str], npt.NDArray[np.uint8]],
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Generator[Scene, None, None]:
    """Yield the result of `read` for each path, in the given order; few images are in memory at any time.

    Threads are used because Pillow decodes and resizes outside the GIL: as fast as processes, and safe to call from a
    script without a main guard. Where `read` raises UnreadableImage, its reason is yielded instead. `workers` defaults
    to the cores this process may use.
    """

    def decode(path: str) -> Scene:
        try:
            return read(path)
        except UnreadableImage as error:
            return error.reason

    workers = workers or usable_cores()
    # some images for each task, so that small ones do not wait for the queue; few enough to keep all threads busy
    each = min(max(len(paths) // (32 * workers), 1), _MOST)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    bar = Progress(*columns, console=plain_console(stderr=True), disable=not (progress and paths))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[list[Scene]]] = deque()
    upcoming = (paths[start : start + each] for start in range(0, len(paths), each))
    try:
        with _quiet(), bar:
            task = bar.add_task("decoding images", total=len(paths))
            while True:
                while len(waiting) * each < 32 * workers and (some := next(upcoming, None)):
                    waiting.append(pool.submit(lambda some: [*map(decode, some)], some))
                if not waiting:
                    return
                scenes = waiting.popleft().result()
                bar.advance(task, len(scenes))
                yield from scenes
    finally:
        pool.shutdown(cancel_futures=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} images/s")


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Silence decoder warnings about unusual files; the reason of an unreadable image is reported separately."""
    logger = logging.getLogger("tifffile")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
