"""The processes that decode and classify what was uploaded, so that one that hangs or dies takes nothing along."""

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

Answer = dict[str, Any]

#: Seconds in which a new process must have opened its networks.
OPENING = 300.0
#: Seconds in which a process must have put away what the last task left.
TIDYING = 10.0
#: Bytes that a process may keep beyond what it had at first; one that keeps more is replaced.
KEPT_BYTES = 1 << 30

PAGE = 4096 if sys.platform == "win32" else os.sysconf("SC_PAGE_SIZE")

#: For GDAL in these processes: no neighbours of a file are looked at, no drivers that name other files, no network.
GDAL_SETTINGS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_SKIP": "HTTP WMS WCS WMTS GTI STACIT STACTA PLMOSAIC EEDA EEDAI DAAS OGCAPI",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "{none}",
    "PROJ_NETWORK": "OFF",
}


class Worker:
    """A process with the networks in it, that answers one task at a time.

    What it says comes as JSON, which cannot run code here even if a broken decoder were made to misbehave there.

    Args:
        setup: arguments of `serve_answers.Answerer`.
        seconds: longest time for a task.
    """

    def __init__(self, setup: dict[str, Any], seconds: float) -> None:
        self.setup, self.seconds = setup, seconds
        self.process: multiprocessing.process.BaseProcess | None = None
        self.about: Answer = {}
        self.closed = self.tidying = False

    def start(self) -> Answer:
        """Start the process, unless one is ready, and wait until its networks are open; what it says of them.

        Raises:
            UserError: a network cannot be opened, or not within `OPENING` seconds.
        """
        if self._is_ready():
            return self.about
        self.stop()
        if self.closed:
            raise UserError("The page is being closed.")
        context, self.tidying = multiprocessing.get_context("spawn"), False
        self.line, there = context.Pipe()
        self.process = context.Process(target=_work, args=(there, self.setup), daemon=True)
        self.process.start()
        there.close()
        try:
            if not self.line.poll(OPENING):
                self.stop()
                raise UserError(f"The process that opens the network was not ready after {OPENING:g} seconds.")
            said = json.loads(self.line.recv_bytes())
        except (EOFError, OSError, ValueError):
            self.stop()
            raise UserError("The process that opens the network ended unexpectedly; perhaps memory is short.") from None
        if "refused" in said:
            self.stop()
            raise UserError(said["refused"])
        self.about = said["answer"]
        return self.about

    def ask(self, task: dict[str, Any]) -> Answer:
        """Have a task done.

        Raises:
            Refused: 422, not possible with this file; 500, the process failed; 504, it took too long and was ended.
        """
        try:
            self.start()
            self.line.send_bytes(json.dumps(task).encode())
            self.tidying = True
            if not self.line.poll(self.seconds):
                self.stop()
                raise Refused(504, f"Stopped after {self.seconds:g} seconds, the limit for one file.")
            said = json.loads(self.line.recv_bytes())
        except UserError as problem:
            raise Refused(500, str(problem)) from problem
        except (EOFError, OSError, ValueError):
            self.stop()
            line = "The work on this file ended unexpectedly: it may be damaged, or need more memory than there is."
            raise Refused(500, line) from None
        if "refused" in said:
            raise Refused(422, said["refused"])
        if "failed" in said:
            raise Refused(500, said["failed"])
        answer: Answer = said["answer"]
        return answer

    def _is_ready(self) -> bool:
        """Whether the process waits for a task, and has let go of the memory that the last one took."""
        if self.process is None or not self.process.is_alive():
            return False
        try:
            if self.tidying and not self.line.poll(TIDYING):
                return False
            kept = json.loads(self.line.recv_bytes())["kept"] if self.tidying else 0
        except (EOFError, OSError, ValueError, LookupError, TypeError):
            return False
        self.tidying = False
        return bool(kept <= KEPT_BYTES)

    def stop(self) -> None:
        """End the process at once, and whatever it started."""
        if self.process is None or self.process.pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg") and os.getpgid(self.process.pid) == self.process.pid:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()


class Workers:
    """`limits.parallel` processes and the queue before them."""

    def __init__(self, setup: dict[str, Any], limits: ServeLimits) -> None:
        self.all = [Worker(setup, limits.seconds) for _ in range(limits.parallel)]
        self.free: asyncio.Queue[Worker] = asyncio.Queue()
        for worker in self.all:
            self.free.put_nowait(worker)
        self.returning = set[asyncio.Task[None]]()

    def start(self) -> Answer:
        """Start all; what the networks say of themselves. Raises as `Worker.start`."""
        try:
            self.about: Answer = {}
            for worker in self.all:
                self.about = worker.start()
            return self.about
        except BaseException:
            self.stop()
            raise

    async def ask(self, task: dict[str, Any]) -> Answer:
        """Have a task done by the next free process; if this is cancelled, so is the work. Raises as `Worker.ask`."""
        worker = await self.free.get()
        asked = asyncio.create_task(asyncio.to_thread(worker.ask, task))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            await asyncio.to_thread(worker.stop)
            raise
        finally:
            back = asyncio.create_task(self._take_back(worker, asked))
            self.returning.add(back)
            back.add_done_callback(self.returning.discard)

    def stop(self) -> None:
        """End all."""
        for worker in self.all:
            worker.closed = True
            worker.stop()

    async def _take_back(self, worker: Worker, asked: asyncio.Task[Answer]) -> None:
        try:
            await asyncio.wait([asked])
            if not asked.cancelled():
                asked.exception()  # whoever asked has it, or is gone
            with contextlib.suppress(Exception):  # said to the next one who asks, if it is so still
                await asyncio.to_thread(worker.start)
        finally:
            self.free.put_nowait(worker)


def _work(line: Connection, setup: dict[str, Any]) -> None:
    """In the new process: open the networks, then answer task after task until nobody asks any more."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C goes to the server, which ends this one; and its children end with it
    end_with_parent()
    os.environ.update(GDAL_SETTINGS)
    from PIL import Image

    from scenedistill.serve.answers import Answerer

    with contextlib.suppress(EOFError, OSError):
        try:
            answerer = Answerer(**setup)
        except UserError as problem:
            line.send_bytes(json.dumps({"refused": str(problem)}).encode())
            return
        Image.MAX_IMAGE_PIXELS = answerer.limits.pixels  # the decoder's own guard, behind that of `check_size`
        if answerer.on_cpu:
            limit_memory(int(answerer.limits.memory * 2**30))
        line.send_bytes(json.dumps({"answer": answerer.about()}).encode())
        gc.freeze()  # what is here now stays; collecting looks at what a task has left alone
        first = sum(memory_pages()[1:2])
        while True:
            task = json.loads(line.recv_bytes())
            line.send_bytes(json.dumps(_said(answerer, task)).encode())
            release_memory()
            kept = (sum(memory_pages()[1:2]) - first) * PAGE
            line.send_bytes(json.dumps({"kept": kept}).encode())


def limit_memory(more: int) -> None:
    """Have the system refuse this process so many bytes beyond what it has now: a decoder may believe a small file that
    it is a huge one. Only Linux says what a process has; elsewhere nothing is done."""
    if sys.platform != "linux":
        return
    import resource

    pages = memory_pages()
    # what it may write to; where the system does not count that, all of its addresses
    kind, now = (resource.RLIMIT_DATA, pages[5]) if pages[5] else (resource.RLIMIT_AS, pages[0])
    most, (_, hard) = now * PAGE + more, resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(kind, (most, most))


def _said(answerer: Any, task: dict[str, Any]) -> Answer:
    upload = Path(task["upload"])
    try:
        return {"answer": answerer.answer(**task)}
    except UserError as problem:
        line = problem.found.replace(f"{upload.parent}{os.sep}", "").replace(upload.name, task["name"])
        return {"refused": line}  # where it lies here is nobody's business, and nobody sits at a command line
    except MemoryError:
        return {"failed": "This file needs more memory than there is."}
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return {"failed": "This file could not be worked through. The window of `scenedistill serve` says why."}
