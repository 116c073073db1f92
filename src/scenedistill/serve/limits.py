"""What the page lets through: how large, how long, how many, and from where."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from scenedistill.core.errors import UserError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: On every answer: nothing but the page's own files is loaded, nothing is kept, nobody may frame it.
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


#: Slowest upload in bytes a second, on average after the first seconds: a few that hardly send hold all places else.
SLOWEST, GRACE = 16_384, 10.0


@dataclass(frozen=True)
class ServeLimits:
    """What a request may cost.

    Attributes:
        megabytes: largest upload, in MiB, more than 0.
        megapixels: largest image or raster, in millions of pixels, more than 0; looked up in the file's head, before
            anything is decoded.
        seconds: longest time for an upload, and again for the work on it, more than 0; waiting is not counted.
        memory: largest memory that the work on a file may take beside the networks, in GiB, more than 0; held by the
            system on Linux, for networks on the CPU.
        cells: largest number of cells of a map, 1 or more; it bounds what a map takes on the disk.
        parallel: requests worked on at once, 1 or more; each has a process of its own with the networks in it.
        waiting: further requests that may wait, 0 or more; the next one is told to come again.
        kept: results kept for download, 1 or more; the oldest goes first.
        kept_megabytes: disk that they may take together, in MiB, more than 0; the newest one is kept all the same.
        minutes: longest time a result is kept, more than 0.
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
            if value <= 0 if least is None else value < least:
                expected = "more than 0" if least is None else f"{least} or more"
                raise UserError(f"limits.{field.name}: found {value}, expected {expected}.")

    @property
    def bytes(self) -> int:
        """Largest upload in bytes."""
        return int(self.megabytes * 2**20)

    @property
    def pixels(self) -> int:
        """Largest width x height."""
        return int(self.megapixels * 1e6)


class Refused(Exception):
    """A request that is not answered: the HTTP status, and the line that the page shows."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


class RequestLimit:
    """Counts the requests that are in, and lets no more than `parallel + waiting` in."""

    def __init__(self, limits: ServeLimits) -> None:
        self.limits, self.inside = limits, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """A place, given back at the end.

        Raises:
            Refused: 503, all places are taken.
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
    """The chunks of an upload, as long as they are within its limits.

    Args:
        chunks: what comes in.
        length: what the sender says of its length (Content-Length); believed only where it is too much.
        limits: of bytes and of seconds.

    Raises:
        Refused: 413, too many bytes; 408, too slow.
    """
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
    """Let the rest of a refused upload run out, for a while: a browser that cannot finish sending never reads why."""
    left = 2 * limits.bytes
    try:
        async with asyncio.timeout(min(limits.seconds, 10)):
            async for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    return
    except (TimeoutError, RuntimeError):  # too slow; or read to its end already
        return


class Guard:
    """ASGI middleware: only asked by its own name and from its own page, and with security headers on every answer.

    A foreign site may point its name at this machine (DNS rebinding), so the Host header must be an address or a known
    name; it may also send a form here, so a POST from a browser must come from the page itself.

    Args:
        app: what is guarded.
        host: where the server listens. On a loopback address only loopback addresses are taken as Host, else any
            address: a rebinding needs a name.
        names: further names that the Host header may hold.
    """

    def __init__(self, app: ASGIApp, host: str, names: tuple[str, ...] = ()) -> None:
        # by hand because Starlette's TrustedHostMiddleware is less strict: it takes one of several Host headers, knows
        # names but no classes of addresses and no IPv6, and nothing of Starlette's refuses a foreign Origin
        self.app = app
        self.names = {"localhost", host.lower(), *(name.lower() for name in names)}
        self.loopback_only = host == "localhost" or _is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 403."""
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
        name = _host_name(host)
        if name in self.names:
            return True
        return _is_loopback(name) if self.loopback_only else _is_address(name)


def _same_origin(headers: dict[bytes, bytes]) -> bool:
    """Whether a POST comes from our page, or from no browser at all."""
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
    """`[::1]:8000` -> `::1`; an empty string for what is no host."""
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
