"""`scenedistill serve`: a local page to drop an image or a small GeoTIFF on."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from scenedistill.core.errors import UserError
from scenedistill.core.terminal import plain_console
from scenedistill.serve.connections import HEAD_BYTES, MOST_RESTING, bounded_protocol
from scenedistill.serve.files import DOWNLOADS, Shelf, receive, shown_name
from scenedistill.serve.limits import Guard, Refused, RequestLimit, ServeLimits, drain, limited
from scenedistill.serve.worker import Answer, Workers

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

#: The page's files, all that is served beside results: read once, so that no request ever names a path.
PAGE = {"": "index.html", "app.js": "app.js", "map.js": "map.js", "style.css": "style.css", "icon.svg": "icon.svg"}
MEDIA_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}

#: Refused uploads that may run out at once; of others the sender may not read why.
MOST_DRAINING = 16

KINDS, OVERLAPS = ("auto", "scene", "map"), ("0", "0.5", "0.75")


def serve(
    model_path: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    teacher: Path | str | None = None,
    limits: ServeLimits | None = None,
    device: str = "auto",
    threads: int | None = None,
    trust: bool = False,
    names: tuple[str, ...] = (),
    console: Console | None = None,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        model_path: as `open_model` takes it.
        host: address to listen on; anything but a loopback address lets other machines in.
        port: 0 takes a free one.
        teacher: a network to show beside; `none` for none; that of the run, if it is there, when not given.
        limits: of a request.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads of each process.
        trust: open a .pt2, see `open_model`.
        names: names of this machine that a browser may call it by, beside `localhost` and addresses.
        console: where the address is printed.

    Raises:
        UserError: a network cannot be opened, the address is taken, or a package is missing.
    """
    try:
        import uvicorn
    except ImportError as problem:
        raise UserError("The page needs `pip install 'scenedistill[use]'`.") from problem
    console, limits = console or plain_console(), limits or ServeLimits()
    with _listen(host, port) as listener:
        workers = Workers(
            worker_setup(model_path, teacher, limits, device=device, threads=threads, trust=trust), limits
        )
        with console.status("Opening the networks"):
            networks = workers.start()
        shelf = Shelf(limits)
        try:
            say = partial(console.print, markup=False, highlight=False)
            address, bound = listener.getsockname()[:2]
            say(", ".join(f"{role} {about['name']} ({about['file']})" for role, about in networks.items()))
            say(f"Open http://{f'[{address}]' if ':' in address else address}:{bound}/ in a browser. Ctrl-C ends it.")
            if not Guard(_nobody, host).loopback_only:
                say(f"Listening on {host}: every machine that reaches this one can use the page.")
            app = build_app(workers, shelf, limits, host=host, names=names)
            config = server_config(app)
            with contextlib.suppress(KeyboardInterrupt):  # how uvicorn ends after Ctrl-C, when all is put away
                uvicorn.Server(config).run(sockets=[listener])
        finally:
            workers.stop()
            shelf.close()


def build_app(
    workers: Workers, shelf: Shelf, limits: ServeLimits, *, host: str = "127.0.0.1", names: tuple[str, ...] = ()
) -> Guard:
    """The page as an ASGI application: a Starlette application behind its `Guard`.

    Args:
        workers: started; ended with the application.
        shelf: for its files; emptied with the application.
        limits: of a request.
        host: where it will listen, see `Guard`.
        names: see `Guard`.
    """
    try:
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route
    except ImportError as problem:
        raise UserError("The page needs `pip install 'scenedistill[use]'`.") from problem
    desk = Endpoints(workers, shelf, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:  # here, for uvicorn ends the process at once after SIGTERM
            await asyncio.to_thread(workers.stop)
            shelf.close()

    async def refused(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, Refused)
        headers = {"retry-after": "2"} if problem.status == 503 else {}
        if problem.status in (408, 413, 503):
            headers["connection"] = "close"  # who goes on sending is cut off
        return JSONResponse({"error": problem.line}, problem.status, headers)

    async def unknown(request: Request, problem: Exception) -> Response:
        status = getattr(problem, "status_code", 500)
        line = {404: "There is no such page.", 405: "This cannot be asked so."}.get(status, "Something went wrong.")
        return JSONResponse({"error": line}, status)

    def page(address: str, name: str) -> Route:
        content = resources.files("scenedistill.serve").joinpath("page", name).read_bytes()
        media_type = MEDIA_TYPES[name.rpartition(".")[2]]
        return Route(f"/{address}", lambda request: Response(content, media_type=media_type))

    app = Starlette(
        routes=[
            *(page(address, name) for address, name in PAGE.items()),
            Route("/about", desk.about),
            Route("/classify", desk.classify, methods=["POST"]),
            Route("/results/{token}/{name}", desk.result),
        ],
        exception_handlers={Refused: refused, 404: unknown, 405: unknown, 500: unknown},
        lifespan=lifespan,
    )
    return Guard(app, host, names)


def server_config(app: Guard, **limits: Any) -> uvicorn.Config:
    """How uvicorn serves the page.

    Args:
        app: the page.
        limits: arguments of `bounded_protocol`.
    """
    import uvicorn

    return uvicorn.Config(
        app,
        http=bounded_protocol(**limits),
        h11_max_incomplete_event_size=HEAD_BYTES,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=2 * MOST_RESTING,
        timeout_graceful_shutdown=2,
    )


def worker_setup(
    model_path: Path | str,
    teacher: Path | str | None,
    limits: ServeLimits,
    *,
    device: str = "auto",
    threads: int | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """What `Workers` gives each of its processes to start with; see `serve`."""
    return {
        "model": str(model_path),
        "teacher": "auto" if teacher is None else str(teacher),
        "device": device,
        "threads": threads,
        "trust": trust,
        **asdict(limits),
    }


class Endpoints:
    """Where requests are answered: a place in the queue, the upload, the work, the results."""

    def __init__(self, workers: Workers, shelf: Shelf, limits: ServeLimits) -> None:
        self.workers, self.shelf, self.limits, self.limit = workers, shelf, limits, RequestLimit(limits)
        self.draining = 0

    async def about(self, request: Request) -> Response:
        """`GET /about`: the networks and the limits."""
        from starlette.responses import JSONResponse

        networks = self.workers.about
        limits = {"bytes": self.limits.bytes, "megapixels": self.limits.megapixels, "seconds": self.limits.seconds}
        return JSONResponse({"networks": networks, "limits": limits})

    async def classify(self, request: Request) -> Response:
        """`POST /classify?name=&kind=&window=&overlap=` with the file itself as the body."""
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse, Response

        try:
            return JSONResponse(await self._classify(request))
        except Refused:
            if self.draining < MOST_DRAINING:
                self.draining += 1
                try:
                    with contextlib.suppress(ClientDisconnect):
                        await drain(request.stream(), self.limits)
                finally:
                    self.draining -= 1
            raise
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it

    async def result(self, request: Request) -> Response:
        """`GET /results/TOKEN/NAME`: a file to keep."""
        from starlette.responses import FileResponse

        name = request.path_params["name"]
        path = self.shelf.find(request.path_params["token"], name)
        return FileResponse(path, media_type=DOWNLOADS[name], filename=f"scenedistill-{name}")

    async def _classify(self, request: Request) -> Answer:
        start = time.perf_counter()
        name, kind = shown_name(request.query_params.get("name", "")), request.query_params.get("kind", "auto")
        window, overlap = request.query_params.get("window") or None, request.query_params.get("overlap") or "0"
        if kind not in KINDS:
            raise Refused(400, f"kind: found {kind[:20]}, expected one of {', '.join(KINDS)}.")
        if window is not None and not (re.fullmatch("[0-9]{1,6}", window) and int(window) >= 8):
            raise Refused(400, "The side of a window must be a whole number of pixels, 8 or more.")
        if overlap not in OVERLAPS:
            raise Refused(400, f"overlap: found {overlap[:20]}, expected one of {', '.join(OVERLAPS)}.")
        with self.limit.one(), self.shelf.folder() as folder:
            chunks = limited(request.stream(), request.headers.get("content-length"), self.limits)
            upload = await receive(chunks, folder, name)
            map_settings = {"window": int(window) if window else None, "overlap": float(overlap)}
            task = {"upload": str(upload), "name": name, "kind": kind, **map_settings}
            answer = await _while_there(request, self.workers.ask(task))
            files = self.shelf.keep(folder, answer.pop("files"))
            return {**answer, "downloads": files, "total_seconds": time.perf_counter() - start}


async def _while_there(request: Request, work: Any) -> Answer:
    """The outcome of the work; ended when whoever asked has gone."""
    from starlette.requests import ClientDisconnect

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        answer: Answer = working.result()
        return answer
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _nobody(*_: Any) -> None:
    """An application for a `Guard` that is only asked a question."""


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as problem:
        listener.close()
        reason = getattr(problem, "strerror", None) or str(problem)
        raise UserError(f"Cannot listen on {host}, port {port}: {reason}. Choose another with --port.") from problem
    listener.listen(128)
    return listener
