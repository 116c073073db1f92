"""Measured loops in separate processes, so that the memory and settings of one do not affect another."""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from scenedistill.core.memory import keep_memory
from scenedistill.core.processes import forking_context
from scenedistill.experiments.bench.loops import Bench, Loop

SECONDS, END = "seconds", "end"
#: Function that a process runs: it sends one answer when it is ready and one for each message, until `END`.
Serve = Callable[[Connection, Bench], None]


class LoopProcess:
    """A loop in another process.

    Args:
        bench: settings and data of the measurement.
        serve: function that the process runs; importable by name.

    Raises:
        ImportError: a package that the loop needs is missing.
        RuntimeError: any other error in the process, here or in a turn.
    """

    def __init__(self, bench: Bench, serve: Serve) -> None:
        context = forking_context("scenedistill.experiments.bench.ours")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_begin, args=(serve, other_end, bench))
        self._process.start()
        other_end.close()
        self.description = str(self._answer())

    def seconds(self) -> float:
        """See `Loop.seconds`."""
        self._pipe.send(SECONDS)
        return float(self._answer())  # type: ignore[arg-type]

    def close(self) -> None:
        """See `Loop.close`; works for a failed loop too."""
        with contextlib.suppress(OSError):  # it has ended already
            self._pipe.send(END)
        self._pipe.close()
        self._process.join()

    def _answer(self) -> object:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"its process has ended with {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            self._process.join()
            raise answer
        return answer


class LoopServer:
    """Process function of a loop with torch's default settings, memory allocator included.

    Args:
        make: the loop's class or function, importable by name.
    """

    def __init__(self, make: Callable[[Bench], Loop]) -> None:
        self.make = make

    def __call__(self, pipe: Connection, bench: Bench) -> None:
        """Make the loop, then run one turn for each request."""
        loop = self.make(bench)
        pipe.send(getattr(loop, "description", ""))
        while pipe.recv() == SECONDS:
            pipe.send(loop.seconds())
        loop.close()


class TunedLoopServer(LoopServer):
    """Process function of a loop with the memory settings of our runs: for parts of ours, and for tuned others."""

    def __call__(self, pipe: Connection, bench: Bench) -> None:
        """See `LoopServer`."""
        keep_memory()
        torch.backends.cudnn.benchmark = True
        super().__call__(pipe, bench)


def use_default_processes() -> None:
    """Let this process start others, such as the workers of a data loader, as a program of its own would.

    By default, they would start as this process did: each would import everything again, in every epoch.
    """
    multiprocessing.set_start_method(None, force=True)


def _begin(serve: Serve, pipe: Connection, bench: Bench) -> None:
    """Run `serve` in the new process, and send an exception if it fails."""
    try:
        use_default_processes()
        if bench.threads:
            torch.set_num_threads(bench.threads)
        serve(pipe, bench)
    except ImportError as problem:
        pipe.send(problem)
    except Exception as problem:  # as one line: not every exception can be pickled
        traceback.print_exc()
        pipe.send(RuntimeError(f"{type(problem).__name__}: {str(problem).strip().partition(chr(10))[0]}"))
