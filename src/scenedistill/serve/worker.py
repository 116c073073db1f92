"""Worker processes that decode and classify uploads, so that a hang or crash does not affect the server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scenedistill.core.errors import UserError
from scenedistill.core.memory import memory_pages, release_memory
from scenedistill.core.processes import end_with_parent
from scenedistill.serve.limits import Refused, ServeLimits
from scenedistill.serve.networks import ServedNetworks

Answer = dict[str, Any]

#: Seconds within which a new process must open its networks.
START_SECONDS = 300.0
#: Seconds within which a process must release the memory of its last task.
CLEANUP_SECONDS = 10.0
#: Bytes of memory by which a process may grow over its tasks; beyond that it is replaced.
KEPT_BYTES = 1 << 30

PAGE = 4096 if sys.platform == "win32" else os.sysconf("SC_PAGE_SIZE")

#: Settings of GDAL in these processes: no sidecar files, no drivers that open other files, no network.
GDAL_SETTINGS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_SKIP": "HTTP WMS WCS WMTS GTI STACIT STACTA PLMOSAIC EEDA EEDAI DAAS OGCAPI",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "{none}",
    "PROJ_NETWORK": "OFF",
}


# not pebble, whose pool also ends a task that takes too long: its results are pickles, with which a compromised process
# could run code in the server; it kills a process without its children, and replaces one after a number of tasks, not
# when it keeps too much memory. concurrent.futures cannot end a single task.
class Worker:
    """Process with the networks that runs one task at a time.

    It sends its results as JSON, so that even a compromised process (by a bug in a decoder) cannot run code in the
    server.

    Args:
        served: the networks.
        limits: limits on a task; it takes `limits.seconds` at most.
    """

    def __init__(self, served: ServedNetworks, limits: ServeLimits) -> None:
        self.served, self.limits = served, limits
        self.process: multiprocessing.process.BaseProcess | None = None
        self.about: Answer = {}
        self.closed = self.cleaning_up = False

    def start(self) -> Answer:
        """Start the process, unless it is ready, and wait until its networks are open.

        Returns:
            The description of the networks, see `Answerer.about`.

        Raises:
            UserError: a network cannot be opened, or takes longer than `START_SECONDS` seconds.
        """
        if self._is_ready():
            return self.about
        self.stop()
        if self.closed:
            raise UserError("The page is being closed.")
        context, self.cleaning_up = multiprocessing.get_context("spawn"), False
        self.line, remote = context.Pipe()
        self.process = context.Process(target=_work, args=(remote, self.served, self.limits), daemon=True)
        self.process.start()
        remote.close()
        try:
            if not self.line.poll(START_SECONDS):
                self.stop()
                raise UserError(f"The process that opens the network was not ready after {START_SECONDS:g} seconds.")
            reply = json.loads(self.line.recv_bytes())
        except (EOFError, OSError, ValueError):
            self.stop()
            raise UserError("The process that opens the network ended unexpectedly; perhaps memory is short.") from None
        if "refused" in reply:
            self.stop()
            raise UserError(reply["refused"])
        self.about = reply["answer"]
        return self.about

    def run(self, task: dict[str, Any]) -> Answer:
        """Run a task, given as the arguments of `Answerer.answer`, and return its result.

        Raises:
            Refused: 422, not possible with this file; 500, the process failed; 504, it took too long and was ended.
        """
        try:
            self.start()
            self.line.send_bytes(json.dumps(task).encode())
            self.cleaning_up = True
            if not self.line.poll(self.limits.seconds):
                self.stop()
                raise Refused(504, f"Stopped after {self.limits.seconds:g} seconds, the limit for one file.")
            reply = json.loads(self.line.recv_bytes())
        except UserError as problem:
            raise Refused(500, str(problem)) from problem
        except (EOFError, OSError, ValueError):
            self.stop()
            line = "The work on this file ended unexpectedly: it may be damaged, or need more memory than there is."
            raise Refused(500, line) from None
        if "refused" in reply:
            raise Refused(422, reply["refused"])
        if "failed" in reply:
            raise Refused(500, reply["failed"])
        answer: Answer = reply["answer"]
        return answer

    def _is_ready(self) -> bool:
        """Return whether the process waits for a task and has released the memory of the last one."""
        if self.process is None or not self.process.is_alive():
            return False
        try:
            if self.cleaning_up and not self.line.poll(CLEANUP_SECONDS):
                return False
            kept = json.loads(self.line.recv_bytes())["kept"] if self.cleaning_up else 0
        except (EOFError, OSError, ValueError, LookupError, TypeError):
            return False
        self.cleaning_up = False
        return bool(kept <= KEPT_BYTES)

    def stop(self) -> None:
        """Kill the process and its child processes."""
        if self.process is None or self.process.pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg") and os.getpgid(self.process.pid) == self.process.pid:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()


class Workers:
    """Pool of `limits.parallel` processes with a queue of tasks."""

    def __init__(self, served: ServedNetworks, limits: ServeLimits) -> None:
        self.all = [Worker(served, limits) for _ in range(limits.parallel)]
        self.free: asyncio.Queue[Worker] = asyncio.Queue()
        for worker in self.all:
            self.free.put_nowait(worker)
        self.returning = set[asyncio.Task[None]]()

    def start(self) -> Answer:
        """Start all processes and return the description of the networks. Raises as `Worker.start`."""
        try:
            self.about: Answer = {}
            for worker in self.all:
                self.about = worker.start()
            return self.about
        except BaseException:
            self.stop()
            raise

    async def run(self, task: dict[str, Any]) -> Answer:
        """Run a task in the next free process; if cancelled, the process is killed. Raises as `Worker.run`."""
        worker = await self.free.get()
        running = asyncio.create_task(asyncio.to_thread(worker.run, task))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.to_thread(worker.stop)
            raise
        finally:
            back = asyncio.create_task(self._take_back(worker, running))
            self.returning.add(back)
            back.add_done_callback(self.returning.discard)

    def stop(self) -> None:
        """Kill all processes."""
        for worker in self.all:
            worker.closed = True
            worker.stop()

    async def _take_back(self, worker: Worker, running: asyncio.Task[Answer]) -> None:
        """Wait for the end of a task, restart its process if necessary, and mark it as free."""
        try:
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # marks it as retrieved; the caller has received it, or was cancelled
            with contextlib.suppress(Exception):  # raised again by the next task if it persists
                await asyncio.to_thread(worker.start)
        finally:
            self.free.put_nowait(worker)


def _work(line: Connection, served: ServedNetworks, limits: ServeLimits) -> None:
    """Run in a process: open the networks, then run tasks until the connection is closed."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches only the server, which kills this process with its children
    end_with_parent()
    os.environ.update(GDAL_SETTINGS)
    from PIL import Image

    from scenedistill.serve.answers import Answerer

    with contextlib.suppress(EOFError, OSError):
        try:
            answerer = Answerer(served, limits)
        except UserError as problem:
            line.send_bytes(json.dumps({"refused": str(problem)}).encode())
            return
        Image.MAX_IMAGE_PIXELS = limits.pixels  # limit of the decoder, in addition to `check_size`
        if answerer.on_cpu:
            limit_memory(int(limits.memory * 2**30))
        line.send_bytes(json.dumps({"answer": answerer.about()}).encode())
        gc.freeze()  # exclude the networks from garbage collection
        first = sum(memory_pages()[1:2])
        while True:
            task = json.loads(line.recv_bytes())
            line.send_bytes(json.dumps(_run_task(answerer, task)).encode())
            release_memory()
            kept = (sum(memory_pages()[1:2]) - first) * PAGE
            line.send_bytes(json.dumps({"kept": kept}).encode())


def limit_memory(more: int) -> None:
    """Limit the memory of this process to its current size plus `more` bytes; only on Linux.

    A small file can make a decoder allocate far too much.
    """
    if sys.platform != "linux":
        return
    import resource

    pages = memory_pages()
    # writable memory; if the system does not count it, all address space
    kind, now = (resource.RLIMIT_DATA, pages[5]) if pages[5] else (resource.RLIMIT_AS, pages[0])
    most, (_, hard) = now * PAGE + more, resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(kind, (most, most))


def _run_task(answerer: Any, task: dict[str, Any]) -> Answer:
    """Run a task and return its result, or the message of its error."""
    upload = Path(task["upload"])
    try:
        return {"answer": answerer.answer(**task)}
    except UserError as problem:
        line = problem.found.replace(f"{upload.parent}{os.sep}", "").replace(upload.name, task["name"])
        return {"refused": line}  # without the path on the server and without advice for the command line
    except MemoryError:
        return {"failed": "This file needs more memory than there is."}
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return {"failed": "This file could not be worked through. The window of `scenedistill serve` says why."}
