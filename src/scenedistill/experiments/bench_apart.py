"""A measured loop in a process of its own, so that nothing this program sets for itself reaches it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from scenedistill.experiments.bench_loops import Bench, Loop

SECONDS, END = "seconds", "end"


class Apart:
    """A loop as its users have it: torch's own settings, memory allocator included.

    Args:
        bench: what is measured.
        make: the loop's class or function, importable by name.

    Raises:
        ImportError: a package is missing that the loop needs; other errors of its constructor likewise.
    """

    def __init__(self, bench: Bench, make: Callable[[Bench], Loop]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, bench, make))
        self._process.start()
        theirs.close()
        self.description = str(self._answer())

    def seconds(self) -> float:
        """See `Loop.seconds`."""
        self._pipe.send(SECONDS)
        return float(self._answer())  # type: ignore[arg-type]

    def close(self) -> None:
        """See `Loop.close`."""
        self._pipe.send(END)
        self._process.join()

    def _answer(self) -> object:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the process of a measured loop has ended with {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            self._process.join()
            raise answer
        return answer


def _serve(pipe: Connection, bench: Bench, make: Callable[[Bench], Loop]) -> None:
    """In the new process: make the loop, then a turn for each asking."""
    try:
        if bench.threads:
            torch.set_num_threads(bench.threads)
        loop = make(bench)
        pipe.send(getattr(loop, "description", ""))
        while pipe.recv() == SECONDS:
            pipe.send(loop.seconds())
        loop.close()
    except Exception as problem:
        pipe.send(problem)
