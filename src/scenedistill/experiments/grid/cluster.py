"""Running the cells of a grid as tasks of a Ray cluster, restarted elsewhere when a worker dies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from scenedistill.config import MachineConfig
from scenedistill.core.cluster import ClusterConfig, RayCluster
from scenedistill.core.disk import disk_full
from scenedistill.core.terminal import plain_console
from scenedistill.experiments.grid.config import GridConfig
from scenedistill.experiments.grid.local import Ended, Order, attempt, open_log, reason


def on_cluster(config: GridConfig) -> tuple[GridConfig, RayEngine]:
    """Return the grid with absolute paths and the precision of its cluster's devices, and its engine on the cluster.

    The precision is part of the settings that determine the result of a cell.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or it has no room for one cell.
    """
    engine = RayEngine(config.cluster)
    try:
        precision = engine.precision(config.base.machine)
    except BaseException:
        engine.close()
        raise
    base = config.base
    data, teacher = base.data, base.teacher
    weights = Path(teacher.weights)
    base = replace(
        base,
        machine=replace(base.machine, precision=precision, threads=config.cluster.cpus),
        data=replace(data, cache_dir=_absolute(data.cache_dir), split_file=_absolute(data.split_file)),
        teacher=replace(
            teacher,
            checkpoint=_absolute(teacher.checkpoint),
            weights=str(weights.resolve()) if weights.is_file() else teacher.weights,
        ),
    )
    datasets = {label: str(Path(folder).resolve()) for label, folder in config.datasets.items()}
    return replace(config, datasets=datasets, base=base), engine


def _absolute(path: Path | None) -> Path | None:
    """Make a path absolute, for a worker with another working folder."""
    return path and Path(path).resolve()


class RayEngine:
    """Run cells as Ray tasks, each with its share of a GPU and its CPU cores.

    The grid's folder, the images and the cache must be at the same path for every worker. A task whose worker dies is
    restarted and continues from its last epoch.

    Args:
        config: address of the cluster, and the resources of a cell.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._cluster = RayCluster(config, "cell")
        self._ray, self.slots, self._retries = self._cluster.ray, self._cluster.slots, config.retries
        self.threads: int | None = config.cpus
        self._options = {**self._cluster.resources, "max_retries": config.retries}
        self._task = self._ray.remote(_remote).options(**self._options)
        self._running: dict[Any, Order] = {}

    def precision(self, machine: MachineConfig) -> Any:
        """Return the precision in which the workers compute."""
        return self._cluster.precision(machine.precision, machine.accelerator)

    def start(self, order: Order) -> None:
        """Submit an order to the cluster."""
        self._running[self._task.remote(replace(order, out=order.out.resolve()))] = order

    def wait(self, seconds: float) -> list[tuple[Order, Ended]]:
        """Return the orders that have ended, after at most so many seconds."""
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds) if self._running else ([], [])
        found = []
        for reference in done:
            try:
                ended = self._ray.get(reference)
            except self._ray.exceptions.RayError as problem:
                ended = Ended(f"its worker died and {self._retries} new tries did not help: {reason(problem)}")
            found.append((self._running.pop(reference), ended))
        return found

    def close(self) -> None:
        """Cancel the running tasks, and shut down the cluster if it was started here."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._cluster.close()


def _remote(order: Order) -> Ended:
    """Run an order on a worker."""
    try:
        with open_log(order) as log:
            return attempt(order, plain_console(file=log, width=160))
    except OSError as problem:
        return Ended(reason(problem), full=disk_full(problem))
