"""Limits on requests to the page: size, duration, number and origin."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from scenedistill.core.errors import UserError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Headers of every response: the page loads only its own files, is not cached, and cannot be framed by other sites.
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


#: Minimum average speed of an upload in bytes per second, and seconds before it applies: otherwise a few slow uploads
#: could occupy all places.
SLOWEST, GRACE = 16_384, 10.0


@dataclass(frozen=True)
class ServeLimits:
    """Limits on the resources that requests may use.

    Attributes:
        megabytes: largest upload in MiB, more than 0.
        megapixels: largest image or raster in millions of pixels, more than 0; read from the header of the file before
            anything is decoded.
        seconds: longest duration of an upload, and of the work on it, more than 0 each; time in the queue does not
            count.
        memory: largest memory in GiB that the work on a file may use besides the networks, more than 0; enforced on
            Linux, for networks on the CPU.
        cells: largest number of cells of a map, 1 or more; it limits the size of a map on disk.
        parallel: number of requests processed at once, 1 or more; each has its own process with the networks.
        waiting: number of further requests that may wait, 0 or more; others are refused.
        kept: number of results kept for download, 1 or more; the oldest is deleted first.
        kept_megabytes: largest total size of these results in MiB, more than 0; the newest one is always kept.
        minutes: longest time that a result is kept, more than 0.
    """

    megabytes: float = 64
    megapixels: float = 50
    seconds: float = 60
    memory: float = 4
    cells: int = 100_000
    parallel: int = 1
    waiting: int = 8
    kept: int = 20
    kept_megabytes: float = 1024
    minutes: float = 30

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = {"waiting": 0, "parallel": 1, "kept": 1, "cells": 1}.get(field.name)
            if not (0 < value < math.inf if least is None else value >= least):
                expected = "a finite number above 0" if least is None else f"{least} or more"
                raise UserError(f"limits.{field.name}: found {value}, expected {expected}.")

    @property
    def bytes(self) -> int:
        """Largest upload in bytes."""
        return int(self.megabytes * 2**20)

    @property
    def pixels(self) -> int:
        """Largest number of pixels, width x height."""
        return int(self.megapixels * 1e6)


class Refused(Exception):
    """Refusal of a request: an HTTP status, and the message that the page shows."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


class RequestLimit:
    """Counter that admits at most `parallel + waiting` requests at a time."""

    def __init__(self, limits: ServeLimits) -> None:
        # a semaphore lets all wait; uvicorn's limit_concurrency also counts connections that upload nothing
        self.limits, self.inside = limits, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Admit a request, and release its place at the end.

        Raises:
            Refused: 503, all places are occupied.
        """
        if self.inside >= self.limits.parallel + self.limits.waiting:
            waiting = self.limits.waiting
            raise Refused(503, f"Busy: {self.limits.parallel} at work and {waiting} waiting. Try again in a moment.")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


async def limited(chunks: AsyncIterator[bytes], length: str | None, limits: ServeLimits) -> AsyncIterator[bytes]:
    """Pass on the chunks of an upload while it is within the limits.

    Args:
        chunks: chunks of the upload.
        length: Content-Length header; used only to refuse an upload that is too large.
        limits: limits on bytes and seconds.

    Yields:
        The chunks.

    Raises:
        Refused: 413, too many bytes; 408, too slow.
    """
    # RequestBodyLimitMiddleware of new Starlette releases counts bytes only, not seconds, and its answer is no JSON
    refusal = Refused(413, f"The file is larger than {limits.megabytes:g} MiB, the limit of this page.")
    if length and length.isascii() and length.isdigit() and int(length) > limits.bytes:
        raise refusal
    count, loop = 0, asyncio.get_running_loop()
    start = loop.time()
    iterator = aiter(chunks)
    while True:
        most = min(limits.seconds, GRACE + count / SLOWEST)
        try:
            async with asyncio.timeout_at(start + most):
                chunk = await anext(iterator)
        except StopAsyncIteration:
            return
        except TimeoutError:
            slow = f"was slower than {SLOWEST / 1024:g} KiB a second, or stopped"
            late = f"took longer than {limits.seconds:g} seconds, the limit"
            raise Refused(408, f"The upload {late if most == limits.seconds else slow}.") from None
        count += len(chunk)
        if count > limits.bytes:
            raise refusal
        yield chunk


async def drain(chunks: AsyncIterator[bytes], limits: ServeLimits) -> None:
    """Receive the rest of a refused upload, within limits: a browser reads the response only after it has sent all."""
    left = 2 * limits.bytes
    try:
        async with asyncio.timeout(min(limits.seconds, 10)):
            async for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    return
    except (TimeoutError, RuntimeError):  # too slow, or already read to its end
        return


class Guard:
    """ASGI middleware that refuses foreign hosts and origins, and adds security headers to every response.

    Another site can make its name resolve to this machine (DNS rebinding), so the Host header must be an address or a
    known name. Another site can also send a form to this server, so a POST from a browser must come from the page.

    Args:
        app: the application to protect.
        host: address on which the server listens. If it is a loopback address, the Host header must be a loopback
            address; otherwise it may be any address, as DNS rebinding needs a name.
        names: further names that the Host header may have.
    """

    def __init__(self, app: ASGIApp, host: str, names: tuple[str, ...] = ()) -> None:
        # TrustedHostMiddleware of Starlette is less strict: it uses the first of several Host headers, supports names
        # but no ranges of addresses (and IPv6 only in new releases), and does not check the Origin
        self.app = app
        self.names = {"localhost", host.lower(), *(name.lower() for name in names)} - {""}
        self.loopback_only = host == "localhost" or _is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request to the application, or respond with status 403."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        headers: dict[bytes, bytes] = dict(scope["headers"])
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._ours(hosts[0]):
            line = "This page answers only to its own address. Use the one that `scenedistill serve` printed."
        elif scope["method"] not in ("GET", "HEAD") and not _same_origin(headers):
            line = "This request does not come from the page itself."
        else:
            await self.app(scope, receive, send_with_headers)
            return
        await send_with_headers(
            {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"application/json")]}
        )
        await send_with_headers({"type": "http.response.body", "body": json.dumps({"error": line}).encode()})

    def _ours(self, host: str) -> bool:
        """Return whether a Host header is allowed."""
        name = _host_name(host)
        if name in self.names:
            return True
        return _is_loopback(name) if self.loopback_only else _is_address(name)


def _same_origin(headers: dict[bytes, bytes]) -> bool:
    """Return whether a POST comes from the page, or from a client that is not a browser."""
    if headers.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none"):
        return False
    origin = headers.get(b"origin")
    if origin is None:
        return True
    parts = _split(origin.decode("latin-1"))
    if parts is None or parts.scheme not in ("http", "https"):
        return False
    return bool(parts.netloc.encode("latin-1") == headers[b"host"])


def _host_name(host: str) -> str:
    """Return the host without port: `[::1]:8000` -> `::1`; an empty string if it is invalid."""
    parts = _split(f"//{host}")
    clean = parts is not None and parts.netloc == host and not (set(host) & set("@/?#\\"))
    return (parts.hostname or "") if parts and clean else ""


def _split(url: str) -> Any:
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
