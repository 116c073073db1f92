"""Upload to a hub: to a small one of our own, that notes what it is sent."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scenedistill.core.errors import UserError
from scenedistill.export.hub import check_name, push

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install -e '.[use]'")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    asked: list[tuple[str, Any]]
    there: tuple[str, ...] = ()  # files of the repository

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            self.answer([{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in self.there])
            return
        self.answer({"id": "anna/net", "sha": "0" * 40, "siblings": [], "private": True})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/repos/create"):
            self.asked.append(("create", json.loads(body)))
            self.answer({"url": f"http://{self.headers['Host']}/anna/net", "name": "anna/net", "id": "1"})
        elif "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": file["path"], **modes} for file in wanted]})
        elif "/commit/" in self.path:
            self.asked.append(("commit", [json.loads(line) for line in body.splitlines()]))
            address = f"http://{self.headers['Host']}/anna/net/commit/{'0' * 40}"
            self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": address})
        else:
            self.answer({})


@pytest.fixture
def hub() -> Iterator[tuple[str, list[tuple[str, Any]], Any]]:
    asked: list[tuple[str, Any]] = []
    handler = type("OneHub", (Hub,), {"asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked, handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_only_the_files_of_an_export_are_sent(
    hub: tuple[str, list[tuple[str, Any]], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    contents = {"README.md": "# net\n", "model.json": "{}", "model.safetensors": "weights"}
    for name, content in {**contents, "secret.txt": "mine"}.items():
        (tmp_path / name).write_text(content)
    endpoint, asked, handler = hub
    handler.there = (".gitattributes", "model.onnx", "notes.txt")  # somebody else's
    address = push(tmp_path, "anna/net", endpoint=endpoint)
    assert address == f"{endpoint}/anna/net"
    (_, made), (_, lines) = asked
    assert made.get("private") or made.get("visibility") == "private"  # as older and newer clients say it
    assert made["name"] == "net" and made["organization"] == "anna"
    sent = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
    assert {name: base64.b64decode(content).decode() for name, content in sent.items()} == contents
    assert not [line for line in lines if line["key"].startswith("deleted")]
    handler.there = (*handler.there, "export.json", "model.safetensors")  # an earlier export
    push(tmp_path, "anna/net", endpoint=endpoint)
    gone = [line["value"]["path"] for line in asked[-1][1] if line["key"].startswith("deleted")]
    assert gone == ["model.onnx"]


def test_an_unreachable_hub_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with pytest.raises(UserError, match="could not be written to the hub"):
        push(tmp_path, "anna/net", endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["anna", "anna/net/more", "anna /net", ""])
def test_a_wrong_repository_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="expected USER/NAME"):
        check_name(name)
