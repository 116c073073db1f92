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
from scenedistill.experiments.stages.given_teacher import read_classes


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
    config = with_absolute_paths(config)
    machine = replace(config.base.machine, precision=precision, threads=config.cluster.cpus)
    return replace(config, base=replace(config.base, machine=machine)), engine


def with_absolute_paths(config: GridConfig) -> GridConfig:
    """Return the grid with absolute paths, for workers with another working folder."""
    base, data, teacher = config.base, config.base.data, config.base.teacher
    methods = {
        label: replace(
            method,
            weights=method.weights and _weights(method.weights),
            also=method.also and [_absolute(path) for path in method.also],
        )
        for label, method in config.methods.items()
    }
    return replace(
        config,
        datasets={label: _absolute(folder) for label, folder in config.datasets.items()},
        weights={student: _weights(source) for student, source in config.weights.items()},
        methods=methods,
        base=replace(
            base,
            data=replace(
                data,
                cache_dir=data.cache_dir and Path(_absolute(data.cache_dir)),
                split_file=data.split_file and Path(_absolute(data.split_file)),
                unlabelled=[Path(_absolute(path)) for path in data.unlabelled],
            ),
            teacher=replace(
                teacher,
                weights=_weights(teacher.weights),
                classes=read_classes(teacher.classes),
                checkpoint=teacher.checkpoint and Path(_absolute(teacher.checkpoint)),
            ),
            student=replace(
                base.student,
                weights=_weights(base.student.weights),
                also=[_absolute(path) for path in base.student.also],
            ),
        ),
    )


def _absolute(path: Path | str) -> str:
    return str(Path(path).expanduser().resolve())


def _weights(source: str) -> str:
    """Make the path of a file of weights absolute; others, such as `timm`, are not files."""
    return _absolute(source) if Path(source).is_file() else source


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
        self._task = self._ray.remote(_remote).options(**self._cluster.resources, max_retries=config.retries)
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
