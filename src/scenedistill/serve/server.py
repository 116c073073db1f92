"""Local web page of `scenedistill serve`, which classifies an uploaded image or small GeoTIFF."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

from rich.console import Console

from scenedistill.core.errors import UserError
from scenedistill.core.terminal import plain_console
from scenedistill.serve.connections import HEAD_BYTES, MOST_IDLE, bounded_protocol
from scenedistill.serve.endpoints import Endpoints
from scenedistill.serve.files import ResultStore
from scenedistill.serve.limits import Guard, Refused, ServeLimits
from scenedistill.serve.networks import ServedNetworks
from scenedistill.serve.worker import Workers

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

#: Files of the page by URL. They are read at the start, so that no request ever refers to a path.
PAGE = {"": "index.html", "app.js": "app.js", "map.js": "map.js", "style.css": "style.css", "icon.svg": "icon.svg"}
MEDIA_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def serve(
    served: ServedNetworks,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    names: tuple[str, ...] = (),
    limits: ServeLimits | None = None,
    console: Console | None = None,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        served: the networks of the page.
        host: address to listen on; other machines can connect unless it is a loopback address.
        port: port to listen on, 0..65535; 0 chooses a free one.
        names: host names of this machine that browsers may use, besides `localhost` and addresses.
        limits: limits on requests; the defaults if None.
        console: console on which the address is printed.

    Raises:
        UserError: a network cannot be opened, the address is taken, or a package is missing.
    """
    try:
        import uvicorn
    except ImportError as problem:
        raise UserError("The page needs `pip install 'scenedistill[use]'`.") from problem
    console, limits = console or plain_console(), limits or ServeLimits()
    with _listen(host, port) as listener:
        workers = Workers(served, limits)
        with console.status("Opening the networks"):
            networks = workers.start()
        store = ResultStore(limits)
        try:
            say = partial(console.print, markup=False, highlight=False)
            address, bound = listener.getsockname()[:2]
            say(", ".join(f"{role} {about['name']} ({about['file']})" for role, about in networks.items()))
            say(f"Open http://{f'[{address}]' if ':' in address else address}:{bound}/ in a browser. Ctrl-C ends it.")
            app = build_app(workers, store, limits, host=host, names=names)
            if not app.loopback_only:
                say(f"Listening on {host}: every machine that reaches this one can use the page.")
            with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after the shutdown
                uvicorn.Server(server_config(app)).run(sockets=[listener])
        finally:
            workers.stop()
            store.close()


def build_app(
    workers: Workers, store: ResultStore, limits: ServeLimits, *, host: str = "127.0.0.1", names: tuple[str, ...] = ()
) -> Guard:
    """Build the page as an ASGI application: a Starlette application behind a `Guard`.

    Args:
        workers: started workers; stopped when the application ends.
        store: storage of files; closed when the application ends.
        limits: limits on requests.
        host: address on which the server listens, see `Guard`.
        names: see `Guard`.

    Raises:
        UserError: Starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route
    except ImportError as problem:
        raise UserError("The page needs `pip install 'scenedistill[use]'`.") from problem
    endpoints = Endpoints(workers, store, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:  # in the lifespan, as uvicorn exits right after SIGTERM
            await asyncio.to_thread(workers.stop)
            store.close()

    async def refused(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, Refused)
        headers = {"retry-after": "2"} if problem.status == 503 else {}
        if problem.status in (408, 413, 503):
            headers["connection"] = "close"  # ends an upload that continues
        return JSONResponse({"error": problem.line}, problem.status, headers)

    async def unknown(request: Request, problem: Exception) -> Response:
        status = getattr(problem, "status_code", 500)
        line = {404: "There is no such page.", 405: "This method is not allowed."}.get(status, "Something went wrong.")
        return JSONResponse({"error": line}, status)

    def page(address: str, name: str) -> Route:
        content = resources.files("scenedistill.serve").joinpath("page", name).read_bytes()
        media_type = MEDIA_TYPES[name.rpartition(".")[2]]
        return Route(f"/{address}", lambda request: Response(content, media_type=media_type))

    app = Starlette(
        routes=[
            *(page(address, name) for address, name in PAGE.items()),
            Route("/about", endpoints.about),
            Route("/classify", endpoints.classify, methods=["POST"]),
            Route("/results/{token}/{name}", endpoints.result),
        ],
        exception_handlers={Refused: refused, 404: unknown, 405: unknown, 500: unknown},
        lifespan=lifespan,
    )
    return Guard(app, host, names)


def server_config(app: Guard, **limits: Any) -> uvicorn.Config:
    """Return the configuration of uvicorn for the page.

    Args:
        app: application from `build_app`.
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
        limit_concurrency=2 * MOST_IDLE,
        timeout_graceful_shutdown=2,
    )


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        UserError: the address or port is not available.
    """
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
