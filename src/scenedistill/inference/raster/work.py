"""Classify the windows of a raster; reading, prediction and writing run concurrently."""

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
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scenedistill.core.errors import UserError
from scenedistill.core.machine import usable_cores
from scenedistill.core.processes import end_with_parent
from scenedistill.data.raster.read import raster_library
from scenedistill.inference.raster.batches import Batch, Cells, Job, Rasters, read_batch

if TYPE_CHECKING:
    from scenedistill.inference.model import SceneModel
    from scenedistill.inference.raster.cluster import RasterCluster

#: Size of the block cache of GDAL in bytes; its default, 5 % of the memory of the machine, may be too large.
GDAL_CACHE = 256 << 20
COMMIT_SECONDS = 1.0  # at most this much work is lost if the process is killed

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass
class Times:
    """Seconds spent waiting for pixels, in the network, and waiting for probabilities to be written."""

    reading: float = 0.0
    network: float = 0.0
    writing: float = 0.0

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the duration of a `with` block to one of the times."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, part, getattr(self, part) + time.perf_counter() - started)


def classify_all(
    model: SceneModel, job: Job, processes: int, console: Console, cluster: RasterCluster | None = None
) -> Times:
    """Classify all windows that are not done yet, in this process, in several, or on a cluster.

    Raises:
        UserError: the raster cannot be read, or a process ended unexpectedly.
        OSError: the probabilities cannot be written.
    """
    progress = job.open_progress()
    remaining = progress.remaining
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("windows", total=job.windows, completed=job.windows - len(remaining))
        try:
            if cluster is not None and len(remaining):
                return cluster.classify(job, remaining, progress, lambda count: bar.advance(task, count))
            if processes == 1 or len(remaining) <= job.batch_size:
                return classify_windows(model, job, remaining, progress, lambda count: bar.advance(task, count))
            return _in_processes(model, job, remaining, processes, lambda: bar.update(task, completed=progress.done))
        finally:
            progress.close()


def classify_windows(
    model: SceneModel, job: Job, windows: np.ndarray, progress: Answers, on_progress: Callable[[int], None]
) -> Times:
    """Classify some windows; while the network runs on a batch, threads read the next batches and save the last ones.

    Args:
        model: the network.
        job: description of the work.
        windows: indices of the windows, ascending, int64 `[n]`.
        progress: where the probabilities are saved; only `keep` is called.
        on_progress: called after each batch with its number of windows.

    Returns:
        The seconds spent on each part.
    """
    times, rasterio = Times(), raster_library()
    batches = (windows[start : start + job.batch_size] for start in range(0, len(windows), job.batch_size))
    with (
        rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE),
        Rasters(job.info) as rasters,
        _ProgressWriter(progress, times) as writer,
        ThreadPoolExecutor(job.readers) as pool,
    ):
        ready = _ahead(pool, lambda batch: read_batch(job, rasters.own(), batch), batches, job.readers + 1)
        while True:
            with times.of("reading"):
                batch = next(ready, None)
            if batch is None:
                break
            probabilities = np.zeros((len(batch.windows), job.classes), np.float32)
            if len(batch.used):
                with times.of("network"):
                    probabilities[batch.used] = model.predict(batch.images).probabilities
            writer.add(batch, probabilities)
            on_progress(len(batch.windows))
    return times


class Answers(Protocol):
    """Interface of what saves the probabilities of windows."""

    def keep(self, windows: np.ndarray, probabilities: np.ndarray, cells: Cells) -> None:
        """Save the probabilities of some windows, as `RasterProgress.keep`."""


class _ProgressWriter:
    """Writer that saves probabilities every `COMMIT_SECONDS` in a thread; at most one write runs at a time."""

    def __init__(self, progress: Answers, times: Times) -> None:
        self.progress, self.times = progress, times
        self._pool = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None
        self._waiting: list[tuple[np.ndarray, np.ndarray, Cells]] = []
        self._last = time.monotonic()

    def add(self, batch: Batch, probabilities: np.ndarray) -> None:
        """Queue the probabilities of a batch, and save the queue if the last save is long enough ago."""
        self._waiting.append((batch.windows, probabilities, batch.cells))
        if time.monotonic() - self._last >= COMMIT_SECONDS:
            self._commit()

    def __enter__(self) -> _ProgressWriter:
        return self

    def __exit__(self, *_: object) -> None:  # also after an error, so that no results are lost
        try:
            self._commit()
            self._commit()
        finally:
            self._pool.shutdown()

    def _commit(self) -> None:
        """Wait for the write that is running, and start to write the queue."""
        with self.times.of("writing"):
            if self._under_way is not None:
                self._under_way.result()
        waiting, self._waiting, self._under_way, self._last = self._waiting, [], None, time.monotonic()
        if waiting:
            windows, probabilities = (np.concatenate([part[i] for part in waiting]) for i in range(2))
            cells = [piece for part in waiting for piece in part[2]]
            self._under_way = self._pool.submit(self.progress.keep, windows, probabilities, cells)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Item], Made], items: Iterable[Item], depth: int) -> Iterator[Made]:
    """Yield `work(item)` for each item, in order, with up to `depth` items in progress or waiting."""
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


def _in_processes(
    model: SceneModel, job: Job, windows: np.ndarray, processes: int, on_progress: Callable[[], None]
) -> Times:
    """Distribute the batches over processes, each of which opens the network itself."""
    batches = [windows[start : start + job.batch_size] for start in range(0, len(windows), job.batch_size)]
    processes = min(processes, len(batches))
    arguments = open_arguments(model, processes)
    context, workers, receivers = multiprocessing.get_context("spawn"), [], []
    try:
        for number in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            share = np.concatenate(batches[number::processes])
            workers.append(
                context.Process(target=_work, args=(sender, job, model.source, arguments, share), daemon=True)
            )
            workers[-1].start()
            sender.close()
            receivers.append(receiver)
        while any(worker.is_alive() for worker in workers) and not any(worker.exitcode for worker in workers):
            time.sleep(0.2)
            on_progress()
        results = [_received(receiver) for receiver in receivers]
    finally:
        for worker in workers:
            worker.terminate()  # no effect if it has ended
            worker.join()
    for problem in results:
        if isinstance(problem, Exception):
            raise problem
    if any(worker.exitcode for worker in workers) or None in results:
        raise UserError(
            "One of the processes ended unexpectedly; perhaps memory is short.\n"
            "The same command goes on where they were; --processes takes fewer."
        )
    return Times(*(sum(getattr(times, name) for times in results) / processes for name in vars(Times())))


def _received(line: Connection) -> Any:
    """Return the times or the exception that a process sent; None if it ended without sending anything."""
    try:
        return line.recv() if line.poll() else None
    except (EOFError, OSError):
        return None


def open_arguments(model: SceneModel, processes: int) -> dict[str, Any]:
    """Return the arguments of `open_model` for each of several processes: as in this one, with its share of the cores.

    Args:
        model: the network of this process.
        processes: number of processes.
    """
    import torch

    place, session = getattr(model, "device", None), getattr(model, "session", None)
    threads = torch.get_num_threads()  # set by `--threads`, also for an exported program
    device = "cpu" if place is None else place.type
    if session is not None:
        device = "auto" if "CUDAExecutionProvider" in session.get_providers() else "cpu"
        threads = session.get_session_options().intra_op_num_threads or usable_cores()
    share = max(1, usable_cores() // processes)
    return {
        "device": device,
        "precision": getattr(model, "precision", "auto"),
        "threads": min(threads, share),
        "trust": True,  # already opened in this process
    }


def _work(line: Connection, job: Job, source: Path, arguments: dict[str, Any], windows: np.ndarray) -> None:
    """Run in a process: classify its windows and send the times; Ctrl-C is left to the parent, which ends this one."""
    from scenedistill.inference.model import open_model

    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    progress = job.open_progress()
    try:
        line.send(classify_windows(open_model(source, **arguments), job, windows, progress, lambda count: None))
    except (UserError, OSError) as problem:
        line.send(problem)
        raise SystemExit(1) from None
    finally:
        progress.close()
