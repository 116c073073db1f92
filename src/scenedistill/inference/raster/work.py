"""The windows of a raster through a network, with reading, network and writing at the same time."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scenedistill.core.errors import UserError
from scenedistill.core.machine import usable_cores
from scenedistill.core.processes import end_with_parent
from scenedistill.data.raster.read import raster_library
from scenedistill.inference.raster.batches import Batch, Cells, Job, Rasters, read_batch
from scenedistill.inference.raster.progress import RasterProgress

if TYPE_CHECKING:
    from scenedistill.inference.model import SceneModel

#: GDAL's memory for blocks it may need again, in bytes; its own choice, a twentieth of the machine's, may be too much.
GDAL_CACHE = 256 << 20
COMMIT_SECONDS = 1.0  # at most so much work is lost by a kill

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass
class Times:
    """Seconds that the work waited for pixels, spent in the network, and waited for what was found to be written."""

    reading: float = 0.0
    network: float = 0.0
    writing: float = 0.0

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Count the seconds inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + time.perf_counter() - started)


def answer_all(model: SceneModel, job: Job, processes: int, console: Console) -> Times:
    """Answer every window that is not done yet, in this process or in several.

    Raises:
        UserError: the raster cannot be read, or a process ended.
        OSError: what was found cannot be written.
    """
    progress = job.open_progress()
    remaining = progress.remaining
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("windows", total=job.windows, completed=job.windows - len(remaining))
        try:
            if processes == 1 or len(remaining) <= job.batch_size:
                return answer_windows(model, job, remaining, progress, lambda count: bar.advance(task, count))
            return _in_processes(model, job, remaining, processes, lambda: bar.update(task, completed=progress.done))
        finally:
            progress.close()


def answer_windows(
    model: SceneModel, job: Job, windows: np.ndarray, progress: RasterProgress, tell: Callable[[int], None]
) -> Times:
    """Answer some windows: while the network looks at a batch, threads read the next ones and keep the last ones.

    Args:
        model: the network.
        job: where and how.
        windows: their numbers in ascending order.
        progress: where the answers go.
        tell: called with the number of windows after each batch.
    """
    times, rasterio = Times(), raster_library()
    batches = (windows[start : start + job.batch_size] for start in range(0, len(windows), job.batch_size))
    with (
        rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE),
        Rasters(job.source) as rasters,
        _Keeper(progress, times) as keeper,
        ThreadPoolExecutor(job.readers) as pool,
    ):
        ready = _ahead(pool, lambda batch: read_batch(job, rasters.own(), batch), batches, job.readers + 1)
        while True:
            with times.of("reading"):
                batch = next(ready, None)
            if batch is None:
                break
            answers = np.zeros((len(batch.windows), job.classes), np.float32)
            if len(batch.used):
                with times.of("network"):
                    answers[batch.used] = model.predict(batch.images).probabilities
            keeper.add(batch, answers)
            tell(len(batch.windows))
    return times


class _Keeper:
    """Writes answers in a thread of its own, every second; one write is under way at most."""

    def __init__(self, progress: RasterProgress, times: Times) -> None:
        self.progress, self.times = progress, times
        self._pool = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None
        self._waiting: list[tuple[np.ndarray, np.ndarray, Cells]] = []
        self._last = time.monotonic()

    def add(self, batch: Batch, answers: np.ndarray) -> None:
        """Keep the answers for a batch soon."""
        self._waiting.append((batch.windows, answers, batch.cells))
        if time.monotonic() - self._last >= COMMIT_SECONDS:
            self._commit()

    def __enter__(self) -> _Keeper:
        return self

    def __exit__(self, *_: object) -> None:  # also after an error: what was found is not lost
        try:
            self._commit()
            self._commit()
        finally:
            self._pool.shutdown()

    def _commit(self) -> None:
        with self.times.of("writing"):
            if self._under_way is not None:
                self._under_way.result()
        waiting, self._waiting, self._under_way, self._last = self._waiting, [], None, time.monotonic()
        if waiting:
            windows, answers = (np.concatenate([part[i] for part in waiting]) for i in range(2))
            cells = [piece for part in waiting for piece in part[2]]
            self._under_way = self._pool.submit(self.progress.keep, windows, answers, cells)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Item], Made], items: Iterable[Item], depth: int) -> Iterator[Made]:
    """What `work` makes of each item, in order, with `depth` of them being made or waiting."""
    left = iter(items)
    waiting = deque(pool.submit(work, item) for item in islice(left, depth))
    try:
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(left, 1))
            yield made
    finally:
        for future in waiting:
            future.cancel()


def _in_processes(model: SceneModel, job: Job, windows: np.ndarray, processes: int, tell: Callable[[], None]) -> Times:
    """Share out the batches; each process opens the network's file for itself."""
    batches = [windows[start : start + job.batch_size] for start in range(0, len(windows), job.batch_size)]
    processes = min(processes, len(batches))
    how = _how(model, processes)
    context, workers, lines = multiprocessing.get_context("spawn"), [], []
    try:
        for number in range(processes):
            line, there = context.Pipe(duplex=False)
            share = np.concatenate(batches[number::processes])
            workers.append(context.Process(target=_work, args=(there, job, model.source, how, share), daemon=True))
            workers[-1].start()
            there.close()
            lines.append(line)
        while any(worker.is_alive() for worker in workers) and not any(worker.exitcode for worker in workers):
            time.sleep(0.2)
            tell()
        said = [_heard(line) for line in lines]
    finally:
        for worker in workers:
            worker.terminate()  # does nothing to one that has ended
            worker.join()
    for problem in said:
        if isinstance(problem, Exception):
            raise problem
    if any(worker.exitcode for worker in workers) or None in said:
        raise UserError(
            "One of the processes ended unexpectedly; perhaps memory is short.\n"
            "The same command goes on where they were; --processes takes fewer."
        )
    return Times(*(sum(getattr(times, name) for times in said) / processes for name in vars(Times())))


def _heard(line: Connection) -> Any:
    """What a process said: its times or its trouble; None where it ended without a word."""
    try:
        return line.recv() if line.poll() else None
    except (EOFError, OSError):
        return None


def _how(model: SceneModel, processes: int) -> dict[str, Any]:
    """How each of several processes opens the network: as this one did, with its share of the cores at most."""
    import torch

    place, session = getattr(model, "device", None), getattr(model, "session", None)
    threads = torch.get_num_threads()  # those of `--threads`, also for an exported program
    device = "cpu" if place is None else place.type
    if session is not None:
        device = "auto" if "CUDAExecutionProvider" in session.get_providers() else "cpu"
        threads = session.get_session_options().intra_op_num_threads or usable_cores()
    share = max(1, usable_cores() // processes)
    return {
        "device": device,
        "precision": getattr(model, "precision", "auto"),
        "threads": min(threads, share),
        "trust": True,  # it is open here
    }


def _work(line: Connection, job: Job, source: Path, how: dict[str, Any], windows: np.ndarray) -> None:
    """In another process; Ctrl-C is the first one's business, which then ends this one."""
    from scenedistill.inference.model import open_model

    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    progress = job.open_progress()
    try:
        line.send(answer_windows(open_model(source, **how), job, windows, progress, lambda count: None))
    except (UserError, OSError) as problem:
        line.send(problem)
        raise SystemExit(1) from None
    finally:
        progress.close()
