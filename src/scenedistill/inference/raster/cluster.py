"""Classify the windows of a raster, or many rasters, on a Ray cluster."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scenedistill.core.cluster import ClusterConfig, RayCluster, Workers
from scenedistill.core.errors import UserError
from scenedistill.core.terminal import plain_console
from scenedistill.inference.inputs import exists
from scenedistill.inference.raster.batches import Cells, Job
from scenedistill.inference.raster.config import RasterConfig, RasterResult
from scenedistill.inference.raster.maps import as_user_errors
from scenedistill.inference.raster.progress import RasterProgress
from scenedistill.inference.raster.work import Times, classify_windows, open_arguments

if TYPE_CHECKING:
    from scenedistill.inference.model import SceneModel

#: Blocks of windows for each worker, so that all end at about the same time.
BLOCKS_PER_WORKER = 8
#: Batches of a block at most, so that little is lost with a worker.
MOST_BATCHES = 64

#: Indices of windows, their probabilities, and their cells.
Part = tuple[np.ndarray, np.ndarray, Cells]


class RasterCluster:
    """Workers of a Ray cluster, each with a network in its memory.

    The file of the network and the rasters must be at the same path for every worker. Results of one raster are sent
    to this process, which saves them; of many rasters, each worker writes the maps of its own, so that the output
    folder must be shared, too.

    Args:
        model: network from `open_model`, which the workers open in the same precision.
        cluster: the cluster.
        config: resources of a worker.
    """

    def __init__(self, model: SceneModel, cluster: RayCluster, config: ClusterConfig) -> None:
        arguments = {**open_arguments(model, 1), "threads": config.cpus}
        arguments["device"] = "auto" if cluster.resources["num_gpus"] else "cpu"
        self.workers = cluster.slots
        self._workers = Workers(cluster, _Worker, (model.source.resolve(), arguments), config.retries)

    def classify(
        self, job: Job, windows: np.ndarray, progress: RasterProgress, on_progress: Callable[[int], None]
    ) -> Times:
        """Classify some windows of a raster.

        Args:
            job: description of the work.
            windows: indices of the windows, ascending, int64 `[n]`.
            progress: where the probabilities are saved as they come.
            on_progress: called after each block with its number of windows.

        Returns:
            Mean seconds of a worker spent on each part.

        Raises:
            UserError: a worker died, and new tries did not help.
        """
        job = replace(job, info=replace(job.info, path=_absolute(job.info.path)))
        batches = max(1, min(MOST_BATCHES, len(windows) // (self.workers * BLOCKS_PER_WORKER * job.batch_size)))
        size, times = batches * job.batch_size, Times()
        blocks = [windows[start : start + size] for start in range(0, len(windows), size)]
        for number, (parts, spent) in self._workers.run("classify", [(job, block) for block in blocks]):
            for part in parts:
                progress.keep(*part)
            times.reading += spent.reading / self.workers
            times.network += spent.network / self.workers
            on_progress(len(blocks[number]))
        return times

    def map_each(
        self, rasters: Sequence[str], folders: Sequence[Path], config: RasterConfig
    ) -> Iterator[tuple[int, RasterResult | UserError, str]]:
        """Map rasters, each on one worker.

        Args:
            rasters: paths or names of the rasters.
            folders: output folder of each.
            config: settings of all.

        Yields:
            The position of a raster, its result or why it cannot be mapped, and the messages; as they come.

        Raises:
            UserError: a worker died, and new tries did not help.
        """
        pairs = zip(rasters, folders, strict=True)
        calls = [(_absolute(raster), folder.resolve(), config) for raster, folder in pairs]
        for number, (result, said) in self._workers.run("map", calls):
            yield number, result, said

    def close(self) -> None:
        """End the workers."""
        self._workers.close()


def _absolute(raster: str) -> str:
    """Return the absolute path of a file, since workers have other working folders; leave another name for GDAL."""
    return str(Path(raster).resolve()) if exists(raster) else raster


class _Parts:
    """Probabilities of windows, in memory."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def keep(self, windows: np.ndarray, probabilities: np.ndarray, cells: Cells) -> None:
        self.parts.append((windows, probabilities, cells))


class _Worker:
    """Worker process of the cluster.

    Args:
        source: file of the network.
        arguments: arguments of `open_model`.
    """

    def __init__(self, source: Path, arguments: dict[str, Any]) -> None:
        self.source, self.arguments = source, arguments

    def start(self) -> None:
        """Open the network."""
        from scenedistill.inference.model import open_model

        self.model = open_model(self.source, **self.arguments)

    def classify(self, job: Job, windows: np.ndarray) -> tuple[list[Part], Times]:
        """Classify a block of windows."""
        found = _Parts()
        with as_user_errors(job.info.path):
            times = classify_windows(self.model, job, windows, found, lambda count: None)
        return found.parts, times

    def map(self, raster: str, folder: Path, config: RasterConfig) -> tuple[RasterResult | UserError, str]:
        """Map a raster."""
        from scenedistill.inference.raster.pipeline import map_raster

        said = io.StringIO()
        try:
            return map_raster(self.model, raster, folder, config, console=plain_console(file=said)), said.getvalue()
        except UserError as problem:
            return problem, said.getvalue()
