"""The page while others hold connections without asking anything, or without taking what they asked for."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from scenedistill.serve import limits as serve_limits
from scenedistill.serve.connections import bounded_protocol
from scenedistill.serve.limits import Refused, ServeLimits, limited

uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn: pip install -e '.[use]'")

HEAD = b"GET /about HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def patient_page(serve_page: Any) -> Iterator[Any]:
    """A page that waits a second for a request."""
    with serve_page(connections={"request_seconds": 1.0}) as page:
        yield page


def connect(port: int, content: bytes = b"") -> socket.socket:
    line = socket.create_connection(("127.0.0.1", port), timeout=30)
    line.sendall(content)
    return line


def is_closed(line: socket.socket) -> bool:
    """Whether the other side has ended the connection; what it said before is thrown away."""
    line.setblocking(False)
    try:
        while line.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def test_hundreds_of_incomplete_requests_do_not_block_others(
    patient_page: Any, wait_until: Callable[..., None]
) -> None:
    with contextlib.ExitStack() as open_lines:
        lines = [open_lines.enter_context(connect(patient_page.port, b"GET /abo")) for _ in range(300)]
        begun = time.monotonic()
        while time.monotonic() < begun + 0.5:
            assert patient_page.call("GET", "/about")[0] == 200
        assert sum(map(is_closed, lines)) >= 300 - 128, "the oldest go first"
        wait_until(lambda: all(map(is_closed, lines)), 20)
    assert patient_page.call("GET", "/about")[0] == 200


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET",
        HEAD,
        HEAD + b"X: " + b"a" * 1000,
        HEAD + b"\r\n",  # answered, and then nothing more
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",  # refused, and its body never comes
        b"nonsense\r\n\r\n",
        HEAD + b"X: " + b"a" * 40_000,
    ],
)
def test_an_idle_or_slow_connection_is_closed_in_time(patient_page: Any, begun: bytes) -> None:
    with connect(patient_page.port, begun) as line:
        start = time.monotonic()
        while not is_closed(line):
            assert time.monotonic() < start + 15
            time.sleep(0.2)
            with contextlib.suppress(OSError):
                line.sendall(b"x")  # each byte a sign of life


def test_a_connection_that_sends_a_request_in_time_stays_open(patient_page: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", patient_page.port, timeout=30)
    connection.connect()
    with contextlib.closing(connection):
        connection.auto_open = 0  # no second connection in its place
        for _ in range(4):  # longer than it may be silent
            time.sleep(0.4)
            connection.request("GET", "/about")
            response = connection.getresponse()
            assert response.status == 200 and response.read()


def test_a_response_that_is_not_read_is_abandoned(wait_until: Callable[..., None]) -> None:
    ended = threading.Event()

    async def much(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):  # far more than the system keeps for a reader
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        ended.set()

    listener = socket.create_server(("127.0.0.1", 0))
    protocol = bounded_protocol(request_seconds=1, response_seconds=0.5)
    server = uvicorn.Server(uvicorn.Config(much, http=protocol, lifespan="off", log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(listener.getsockname())
            line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert ended.wait(20)
            wait_until(lambda: not server.server_state.connections, 20)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def test_an_upload_that_is_too_slow_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dribbling(pause: float, size: int) -> Any:
        for _ in range(20):
            yield bytes(size)
            await asyncio.sleep(pause)

    async def read(pause: float, size: int) -> int:
        return sum([len(chunk) async for chunk in limited(dribbling(pause, size), None, ServeLimits())])

    monkeypatch.setattr(serve_limits, "GRACE", 0.1)  # instead of ten seconds of waiting
    with pytest.raises(Refused, match="slower than 16 KiB a second, or stopped") as refused:
        asyncio.run(read(0.02, 10))
    assert refused.value.status == 408
    assert asyncio.run(read(0.02, 4000)) == 20 * 4000
