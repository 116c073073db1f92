"""Connection to a Ray cluster, and workers on it that keep something expensive in memory."""

from __future__ import annotations

import importlib
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scenedistill.core.errors import UserError
from scenedistill.core.text import one_line

#: Number of calls that a worker holds at a time: one is under way and one waits, so that no worker idles in between.
CALLS_AHEAD = 2
START = -1  # stands for the start of a worker, where a call has its position


@dataclass
class ClusterConfig:
    """How work is spread over a Ray cluster.

    Attributes:
        address: address of the cluster, such as `auto`; a cluster is started on this machine when not given.
        gpus: GPUs of one worker, a whole number above 1; a share such as 0.5 puts two workers on a GPU. When not given,
            one if the cluster has GPUs.
        cpus: CPU cores of one worker, >= 1.
        retries: how often work is started again after its worker has died.
    """

    address: str | None = None
    gpus: float | None = None
    cpus: int = 1
    retries: int = 3


def check_cluster(config: ClusterConfig, advice: str) -> None:
    """Check the settings of a cluster.

    Args:
        config: the settings.
        advice: what tells more about them, such as a command.

    Raises:
        UserError: a setting is out of range.
    """
    for name, fits in (
        ("gpus", config.gpus is None or 0 <= config.gpus <= 1 or (config.gpus > 1 and config.gpus % 1 == 0)),
        ("cpus", config.cpus >= 1),
        ("retries", config.retries >= 0),
    ):
        if not fits:
            raise UserError(f"cluster.{name} is {getattr(config, name)}; see `{advice}`.")


class RayCluster:
    """A Ray cluster that this process uses, and has started unless there is one already.

    Args:
        config: address of the cluster, and the resources of a worker.
        work: what takes the resources, for messages, such as `cell`.

    Attributes:
        ray: the module `ray`.
        slots: number of workers that fit on the machines of the cluster.
        resources: the resources of a worker, as options of a task or an actor.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or it has no room for one worker.
    """

    def __init__(self, config: ClusterConfig, work: str) -> None:
        self.ray = _import_ray()
        self._own = not self.ray.is_initialized()
        if self._own:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends no usage statistics
            local = {} if config.address else {"include_dashboard": False}
            try:
                self.ray.init(address=config.address, log_to_driver=False, configure_logging=False, **local)
            except ConnectionError as problem:
                raise UserError(
                    f"There is no Ray cluster at {config.address}. Start one with `ray start --head`, or leave "
                    "cluster.address out to use this machine."
                ) from problem
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        gpus = config.gpus if config.gpus is not None else float(any(has.get("GPU", 0) >= 1 for has in machines))
        self.slots = sum(room(has, config.cpus, gpus) for has in machines)
        self.resources: dict[str, float] = {"num_cpus": config.cpus, "num_gpus": gpus}
        if not self.slots:
            self.close()
            found = ", ".join(f"{has.get('CPU', 0):g} and {has.get('GPU', 0):g}" for has in machines)
            raise UserError(
                f"A {work} takes {config.cpus} CPUs and {gpus:g} GPUs of one machine, and the cluster's machines have "
                f"{found}. Lower cluster.cpus or cluster.gpus."
            )

    def precision(self, wanted: str, device: str) -> Any:
        """Return the precision in which the workers compute, for the setting and the device of `resolve_precision`."""
        asked = self.ray.remote(_precision).options(**self.resources)
        return self.ray.get(asked.remote(wanted, device))

    def close(self) -> None:
        """Shut down the cluster if it was started here."""
        if self._own:
            self.ray.shutdown()


class Workers:
    """Actors on a cluster that share calls; the calls of a worker that dies are given to others.

    A new worker replaces one that dies. Only workers that have started get calls, so that nothing waits for a machine
    that has gone for good.

    Args:
        cluster: the cluster.
        kind: class of the workers, with a method `start` that is called first.
        arguments: arguments of its constructor.
        retries: how often a call, or the start of a worker, is tried again after its worker has died.
    """

    def __init__(self, cluster: RayCluster, kind: type, arguments: Sequence[Any], retries: int) -> None:
        self._ray, self._slots, self._retries = cluster.ray, cluster.slots, retries
        # Ray's own restarts would keep the calls of a worker waiting for a place where there may be none any more
        self._remote = cluster.ray.remote(kind).options(**cluster.resources, max_restarts=0)
        self._arguments = arguments
        self._started: list[Any] = []

    def run(self, method: str, calls: Sequence[Sequence[Any]]) -> Iterator[tuple[int, Any]]:
        """Call a method of the workers once with each of some arguments, and yield results as they come.

        Args:
            method: name of the method.
            calls: the arguments of each call.

        Yields:
            The position of a call in `calls`, and its result.

        Raises:
            UserError: a worker died, and new tries did not help.
            Exception: what the method raises.
        """
        waiting, tries = deque(range(len(calls))), Counter[int]()
        running: dict[Any, tuple[Any, int]] = {}  # by reference: the worker and the call, START for its start
        free = self._started * CALLS_AHEAD

        def begin() -> None:
            worker = self._remote.remote(*self._arguments)
            running[worker.start.remote()] = (worker, START)

        try:
            for _ in range(min(self._slots, len(calls)) - len(self._started)):
                begin()
            while waiting or any(call != START for _, call in running.values()):
                while waiting and free:
                    worker, call = free.pop(0), waiting.popleft()
                    running[getattr(worker, method).remote(*calls[call])] = (worker, call)
                ended = self._ray.wait(list(running), num_returns=1)[0][0]
                worker, call = running.pop(ended)
                try:
                    result = self._ray.get(ended)
                except self._ray.exceptions.RayTaskError as problem:
                    raise problem.cause from None
                except self._ray.exceptions.RayError as problem:
                    tries[call] += 1
                    self._check_tries(tries[call], call, problem)
                    if call != START:
                        waiting.appendleft(call)
                    # once, although several of its calls end; handles of Ray do not compare
                    if call == START or any(other is worker for other in self._started):
                        begin()
                    free, self._started = _without(worker, free), _without(worker, self._started)
                    continue
                if call == START:
                    self._started.append(worker)
                    free += [worker] * CALLS_AHEAD
                else:
                    free.append(worker)
                    yield call, result
        finally:
            for worker, _ in running.values():
                self._ray.kill(worker)
                self._started = _without(worker, self._started)

    def close(self) -> None:
        """End the workers."""
        for worker in self._started:
            self._ray.kill(worker)
        self._started = []

    def _check_tries(self, tries: int, call: int, problem: Exception) -> None:
        """Raise a UserError if a call, or all workers together for their starts, had too many tries."""
        if tries > self._retries * (self._slots if call == START else 1):
            raise UserError(
                f"A worker died, and {self._retries} new tries did not help; perhaps its memory is short: "
                f"{one_line(problem)}",
                advice="The same command goes on from where it was.",
            ) from problem


def _without(worker: Any, workers: list[Any]) -> list[Any]:
    return [other for other in workers if other is not worker]


def room(has: Mapping[str, float], cpus: int, gpus: float) -> int:
    """Return how many workers fit on a machine of a cluster; a worker does not span two machines."""
    workers = int(has.get("CPU", 0) / cpus)
    return min(workers, int(has.get("GPU", 0) / gpus)) if gpus else workers


def _precision(wanted: str, device: str) -> str:
    from scenedistill.core.precision import compute_device, resolve_precision  # torch, seconds to import

    return resolve_precision(wanted, compute_device(device))


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as problem:
        raise UserError("--ray true needs Ray: pip install 'scenedistill[ray]'.") from problem
