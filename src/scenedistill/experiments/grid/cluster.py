"""Running the cells of a grid as tasks of a Ray cluster, restarted elsewhere when a worker dies."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scenedistill.config import MachineConfig
from scenedistill.core.disk import disk_full
from scenedistill.core.errors import UserError
from scenedistill.core.precision import compute_device, resolve_precision
from scenedistill.core.terminal import plain_console
from scenedistill.experiments.grid.config import ClusterConfig, GridConfig
from scenedistill.experiments.grid.local import Ended, Order, attempt, one_line, open_log


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
        cluster: address of the cluster, and the resources of a cell.
    """

    def __init__(self, cluster: ClusterConfig) -> None:
        self._ray = _ray()
        self._own = not self._ray.is_initialized()
        if self._own:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends no usage statistics
            local = {} if cluster.address else {"include_dashboard": False}
            try:
                self._ray.init(address=cluster.address, log_to_driver=False, configure_logging=False, **local)
            except ConnectionError as problem:
                raise UserError(
                    f"There is no Ray cluster at {cluster.address}. Start one with `ray start --head`, or leave "
                    "cluster.address out to use this machine."
                ) from problem
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = cluster.gpus if cluster.gpus is not None else float(any(has.get("GPU", 0) >= 1 for has in machines))
        self.slots = sum(room(has, cluster.cpus, gpus) for has in machines)
        if not self.slots:
            self.close()
            found = ", ".join(f"{has.get('CPU', 0):g} and {has.get('GPU', 0):g}" for has in machines)
            raise UserError(
                f"A cell takes {cluster.cpus} CPUs and {gpus:g} GPUs of one machine, and the cluster's machines have "
                f"{found}. Lower cluster.cpus or cluster.gpus."
            )
        self.threads: int | None = cluster.cpus
        self._options = {"num_cpus": cluster.cpus, "num_gpus": gpus, "max_retries": cluster.retries}
        self._retries = cluster.retries
        self._task = self._ray.remote(_remote).options(**self._options)
        self._running: dict[Any, Order] = {}

    def precision(self, machine: MachineConfig) -> Any:
        """Return the precision in which the workers compute."""
        asked = self._ray.remote(_precision).options(**self._options)
        return self._ray.get(asked.remote(machine))

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
                ended = Ended(f"its worker died and {self._retries} new tries did not help: {one_line(problem)}")
            found.append((self._running.pop(reference), ended))
        return found

    def close(self) -> None:
        """Cancel the running tasks, and shut down the cluster if it was started here."""
        for reference in getattr(self, "_running", {}):
            self._ray.cancel(reference, force=True)
        if self._own:
            self._ray.shutdown()


def room(has: Mapping[str, float], cpus: int, gpus: float) -> int:
    """Return how many cells fit on a machine of a cluster; a cell does not span two machines."""
    cells = int(has.get("CPU", 0) / cpus)
    return min(cells, int(has.get("GPU", 0) / gpus)) if gpus else cells


def _remote(order: Order) -> Ended:
    """Run an order on a worker."""
    try:
        with open_log(order) as log:
            return attempt(order, plain_console(file=log, width=160))
    except OSError as problem:
        return Ended(one_line(problem), full=disk_full(problem))


def _precision(machine: MachineConfig) -> str:
    return resolve_precision(machine.precision, compute_device(machine.accelerator))


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as problem:
        raise UserError("--ray true needs Ray: pip install 'scenedistill[ray]'.") from problem
