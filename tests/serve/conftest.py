"""A running page with small networks, for the tests that ask it over the network and in a browser."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scenedistill.models.create import build_student
from scenedistill.models.files import NetCard, save_net

PAGE_CLASSES = ("car park", "fields", "forêt", "<b>river</b>", "quarry", "beach")


@pytest.fixture(scope="session")
def page_networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights of a student and of a teacher of `PAGE_CLASSES`, random but the same every time. Read only."""
    folder = tmp_path_factory.mktemp("networks")
    for seed, (role, name) in enumerate({"student": "table1_printed", "teacher": "table1_resnet"}.items()):
        torch.manual_seed(seed)
        net = build_student(name, len(PAGE_CLASSES), image_size=96)
        save_net(net, NetCard(name, PAGE_CLASSES, 3, 96, stored_size=96), folder / f"{role}.safetensors")
    return folder / "student.safetensors", folder / "teacher.safetensors"


class Page:
    """A served page; `call` asks it as a program would."""

    def __init__(self, port: int, workers: Any, store: Path) -> None:
        self.port, self.workers, self.store = port, workers, store
        self.url = f"http://127.0.0.1:{port}/"

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, content (bytes; what JSON holds), headers in lower case. A body that is an iterator is sent in chunks
        and without a length."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            content: Any = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            if found.get("content-type") == "application/json" and "content-disposition" not in found and content:
                content = json.loads(content)
            return response.status, content, found

    def folders(self) -> list[str]:
        """What lies on the page's store: a folder for each request under way and each result kept."""
        return sorted(path.name for path in self.store.iterdir())


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """`until`, for tests: they cannot import this file."""
    return until


@pytest.fixture(scope="session")
def serve_page(page_networks: tuple[Path, Path]) -> Callable[..., contextlib.AbstractContextManager[Page]]:
    """A function of limits that serves a page while it is entered: in this process, on a free port."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn: pip install -e '.[use]'")
    pytest.importorskip("starlette", reason="needs Starlette: pip install -e '.[use]'")
    from scenedistill.serve import server as serve
    from scenedistill.serve.files import ResultStore
    from scenedistill.serve.limits import ServeLimits
    from scenedistill.serve.networks import ServedNetworks
    from scenedistill.serve.worker import Workers

    @contextlib.contextmanager
    def serving(connections: dict[str, Any] | None = None, **given: Any) -> Iterator[Page]:
        limits, (student, teacher) = ServeLimits(**given), page_networks
        served = ServedNetworks(student, teacher, device="cpu", threads=1)
        workers, store = Workers(served, limits), ResultStore(limits)
        workers.start()
        app = serve.build_app(workers, store, limits)
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            server = uvicorn.Server(serve.server_config(app, **(connections or {})))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            until(lambda: server.started)
            try:
                yield Page(listener.getsockname()[1], workers, store.root)
            finally:
                server.should_exit = True
                thread.join(30)
                assert not thread.is_alive()
        assert not store.root.exists()

    return serving


@pytest.fixture(scope="session")
def page(serve_page: Callable[..., contextlib.AbstractContextManager[Page]]) -> Iterator[Page]:
    """A page with narrow limits, shared by a process's tests: 1 MiB, 1 million pixels, one at work, two waiting."""
    with serve_page(megabytes=1, megapixels=1, parallel=1, waiting=2) as served:
        yield served
