"""Request handlers of the page."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import TYPE_CHECKING, Any

from scenedistill.serve.files import DOWNLOADS, ResultStore, receive, shown_name
from scenedistill.serve.limits import Refused, RequestLimit, ServeLimits, drain, limited
from scenedistill.serve.worker import Answer, Workers

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

#: Maximum number of refused uploads that are received to their end at once; other clients may not read the reason.
MOST_DRAINING = 16

KINDS, OVERLAPS = ("auto", "scene", "map"), ("0", "0.5", "0.75")


class Endpoints:
    """Handlers of the requests: description of the networks, classification of an upload, and download of results."""

    def __init__(self, workers: Workers, store: ResultStore, limits: ServeLimits) -> None:
        self.workers, self.store, self.limits, self.limit = workers, store, limits, RequestLimit(limits)
        self.draining = 0

    async def about(self, request: Request) -> Response:
        """Handle `GET /about`: return the networks and the limits."""
        from starlette.responses import JSONResponse

        networks = self.workers.about
        limits = {"bytes": self.limits.bytes, "megapixels": self.limits.megapixels, "seconds": self.limits.seconds}
        return JSONResponse({"networks": networks, "limits": limits})

    async def classify(self, request: Request) -> Response:
        """Handle `POST /classify?name=&kind=&window=&overlap=` with the file as the body."""
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
            return Response(status_code=499)  # the client has disconnected

    async def result(self, request: Request) -> Response:
        """Handle `GET /results/TOKEN/NAME`: return a file of a result."""
        from starlette.responses import FileResponse

        name = request.path_params["name"]
        path = self.store.find(request.path_params["token"], name)
        return FileResponse(path, media_type=DOWNLOADS[name], filename=f"scenedistill-{name}")

    async def _classify(self, request: Request) -> Answer:
        """Check the parameters, receive the upload, classify it and keep the results."""
        start = time.perf_counter()
        name, kind = shown_name(request.query_params.get("name", "")), request.query_params.get("kind", "auto")
        window, overlap = request.query_params.get("window") or None, request.query_params.get("overlap") or "0"
        if kind not in KINDS:
            raise Refused(400, f"kind: found {kind[:20]}, expected one of {', '.join(KINDS)}.")
        if window is not None and not (re.fullmatch("[0-9]{1,6}", window) and int(window) >= 8):
            raise Refused(400, "The side of a window must be a whole number of pixels, 8 or more.")
        if overlap not in OVERLAPS:
            raise Refused(400, f"overlap: found {overlap[:20]}, expected one of {', '.join(OVERLAPS)}.")
        with self.limit.one(), self.store.folder() as folder:
            chunks = limited(request.stream(), request.headers.get("content-length"), self.limits)
            upload = await receive(chunks, folder, name)
            map_settings = {"window": int(window) if window else None, "overlap": float(overlap)}
            task = {"upload": str(upload), "name": name, "kind": kind, **map_settings}
            answer = await _unless_disconnected(request, self.workers.run(task))
            files = self.store.keep(folder, answer.pop("files"))
            return {**answer, "downloads": files, "total_seconds": time.perf_counter() - start}


async def _unless_disconnected(request: Request, work: Any) -> Answer:
    """Return the result of awaitable `work`; cancel it if the client disconnects."""
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
