"""Fixtures for all tests: real data where it is at hand, and a tiny generated data set everywhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Under xdist each worker is one core's worth: threads of several processes on one core wait for each other in a loop,
# those of the processes that tests start included. A compiler of one thread needs no processes of its own either.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import torch

# Alone, two are plenty for tiny tests.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))


BEGAN = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow-until", type=float, metavar="MINUTES", help="skip the slow tests that would begin later")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start every test, its fixtures included, from the same random state, whichever tests ran before it; skip a slow
    one for which no time is left."""
    minutes = item.config.getoption("--slow-until")
    if minutes is not None and item.get_closest_marker("slow") and time.monotonic() - BEGAN > 60 * minutes:
        pytest.skip(f"slow, and {minutes:g} minutes are over: SLOW_UNTIL=120 gives make test more of them")
    torch.manual_seed(0)


NO_GPU = "no CUDA device"  # why tests of a GPU are skipped without one


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Mark the tests that are skipped without a GPU as `cuda`, for `-m cuda`; put the files with slow tests last.

    So every fast test runs before the time for slow ones is over. Of those files, the ones with most slow tests come
    first: one that began last would keep a process busy after all others. The order is otherwise random.
    """
    for item in items:
        if any(mark.kwargs.get("reason") == NO_GPU for mark in item.iter_markers("skipif")):
            item.add_marker("cuda")
    yield
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (slow[item.path] > 0, -slow[item.path]))


SOURCE = Path(__file__).resolve().parents[1] / "src"


def folder_from(variable: str) -> Path:
    """The folder an environment variable names; the test is skipped, with the reason, where there is none."""
    given = os.environ.get(variable, "")
    if not given:
        pytest.skip(f"{variable} is not set: it names the folder this test reads")
    if not Path(given).is_dir():
        pytest.skip(f"{variable} is {given}, which is not a folder")
    return Path(given).resolve()


@pytest.fixture(scope="session")
def aid_folder() -> Path:
    """The real AID images, one sub-folder for each of the 30 classes. Read only."""
    return folder_from("SCENEDISTILL_TEST_AID")


@pytest.fixture(scope="session")
def weights_folder() -> Path:
    """Pretrained ImageNet weights as safetensors files. Read only."""
    return folder_from("SCENEDISTILL_TEST_WEIGHTS")


TINY_CLASSES = ("car park", "fields", "forêt", "river")
TINY_PER_CLASS = 16
TINY_SIZE = 48  # pixels


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 4 classes x 16 PNG images of 48 x 48 pixels, the same on every machine. Read only: tests share it.

    The classes differ by texture and not by direction, so flips and quarter turns keep them apart; colours overlap a
    little. A small CNN learns them in a few epochs.
    """
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for name in TINY_CLASSES:
        (root / name).mkdir()
        for number in range(TINY_PER_CLASS):
            Image.fromarray(draw_scene(name, rng)).save(root / name / f"{number:02d}.png")
    return root


def draw_scene(name: str, rng: np.random.Generator, size: int = TINY_SIZE) -> np.ndarray:
    """One scene, uint8 [size, size, 3]."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)  # distance along a random direction
    if name == "car park":  # bright cars in rows on asphalt
        base, ink = (100, 100, 105), (215, 210, 200)
        share = ((x + 3 * phase) % 8 < 4) & ((y + 3 * phase) % 6 < 3)
    elif name == "fields":  # broad stripes
        base, ink = (150, 130, 70), (110, 150, 60)
        share = (np.sin(2 * np.pi * along / 12 + phase) + 1) / 2
    elif name == "forêt":  # crowns: smooth blobs of noise
        base, ink = (30, 60, 30), (70, 125, 55)
        share = np.kron(rng.random((size // 4, size // 4)), np.ones((4, 4)))
    else:  # one winding band of water through meadows
        base, ink = (105, 150, 75), (45, 80, 125)
        across = -x * np.sin(angle) + y * np.cos(angle)
        share = np.abs(across - across.mean() - 4 * np.sin(along / 8 + phase)) < 6
    image = np.array(base) + (np.array(ink) - np.array(base)) * np.asarray(share, dtype=np.float64)[..., None]
    image = image * rng.uniform(0.85, 1.15) + rng.normal(0, 8, image.shape)
    pixels: np.ndarray = np.clip(image, 0, 255).astype(np.uint8)
    return pixels


#: A whole run that takes a second: three epochs at 32 pixels, to the same bits every time.
TINY_RUN = (
    *("--image_size", "32", "--data.stored_size", "32", "--data.train_ratio", "0.5", "--seeds", "[3]"),
    *("--teacher.name", "table1_printed", "--teacher.weights", "none", "--teacher.min_oa", "0"),
    *("--teacher.fit.epochs", "3", "--teacher.fit.batch_size", "16"),
    *("--student.name", "table1_printed", "--student.fit.epochs", "3", "--student.fit.batch_size", "16"),
    *("--student.fit.lr", "0.02", "--machine.accelerator", "cpu", "--machine.precision", "fp32"),
    *("--machine.threads", "1", "--student.losses", "{da: 1, ss: 1}"),  # few steps: mild losses
)


@dataclass
class Ended:
    """A command that has ended: its exit code (minus the signal that ended it) and what it said."""

    code: int
    out: str
    err: str


class Running:
    """A command that may still run, in the process `pid`."""

    def __init__(self, server: subprocess.Popen[str], request: dict[str, Any]) -> None:
        self.server, self.output = server, request["output"]
        for name in ("out", "err"):
            Path(f"{self.output}.{name}").touch()
        self.ended: Ended | None = None
        self.pid = self._ask(request)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it, unless `wait` has seen its end."""
        if self.ended is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def _ask(self, request: dict[str, Any]) -> int:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def out(self) -> str:
        """What it has printed so far."""
        return Path(f"{self.output}.out").read_text(encoding="utf-8", errors="replace")

    def err(self) -> str:
        """What it has told as errors so far."""
        return Path(f"{self.output}.err").read_text(encoding="utf-8", errors="replace")

    def wait_for(self, pattern: str, seconds: float = 240) -> re.Match[str]:
        """Until it has printed what the pattern describes."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.out())):
            assert time.monotonic() < end, self.out() + self.err()
            time.sleep(0.02)
        return found

    def wait(self) -> Ended:
        """Until it has ended."""
        if self.ended is None:
            code = self._ask({"wait": self.pid})
            self.ended = Ended(code, self.out(), self.err())
        return self.ended


class Commands:
    """Runs `scenedistill` with arguments, or a script, each in its own process, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        # the workers of a test run would otherwise wait for each other's threads
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("command_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(self, *arguments: object, **more: Any) -> Ended:
        return self.start(*arguments, **more).wait()

    def start(
        self,
        *arguments: object,
        script: Path | None = None,
        cwd: Path | None = None,
        environment: dict[str, str] | None = None,
        **more: Any,
    ) -> Running:
        """Start a command, or a script; `stop` and `whole` are as command_server.py has them."""
        self.count += 1
        request = {
            "script": script and str(script),
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or self.folder),
            "environment": {"SCENEDISTILL_CACHE": str(self.folder / "cache"), **(environment or {})},
            "output": str(self.folder / f"{self.count}"),
            **more,
        }
        return Running(self.server, request)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """The command line, without the seconds that importing it takes."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    running = Commands(tmp_path_factory.mktemp("commands"))
    yield running
    assert running.server.stdin
    running.server.stdin.close()
    running.server.wait(timeout=60)


@pytest.fixture(scope="session")
def tiny_options() -> tuple[str, ...]:
    """Options of the smallest run that has everything."""
    return TINY_RUN


@pytest.fixture(scope="session")
def tiny_run(tiny_scenes: Path, commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished `scenedistill run` with `TINY_RUN`. Read only: tests share it."""
    out = tmp_path_factory.mktemp("finished") / "tiny"
    ended = commands("run", tiny_scenes, "--out", out, *TINY_RUN)
    assert ended.code == 0, ended.out + ended.err
    return out


@pytest.fixture(scope="session")
def exported_nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small network, its attention and batch norms at work, in the three exact formats: ending -> file. Read only.

    Images are stored at 40 pixels and seen at 32.
    """
    pytest.importorskip("onnxscript", reason="needs onnxscript: pip install -e '.[use]'")
    from scenedistill.export.onnx_graph import build_graph
    from scenedistill.export.program import write_program
    from scenedistill.models.create import build_student
    from scenedistill.models.files import NetCard, save_net

    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(5)
    card = NetCard("table1_printed", ("car park", "fields", "forêt", "river"), 3, 32, stored_size=40)
    net = build_student(card.name, len(card.classes), image_size=card.image_size)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.rpartition(".")[0].endswith(("attention.expand", "attention.locate")):
                tensor.normal_(0, 0.3)
        for _ in range(20):  # the batch norms' statistics
            net.train()(torch.rand(16, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3))
    files = {ending: folder / f"model.{ending}" for ending in ("safetensors", "onnx", "pt2")}
    about = {"oa": 0.5, "data": "forêt"}
    save_net(net, card, files["safetensors"])
    files["onnx"].write_bytes(build_graph(net, card, about).SerializeToString())
    write_program(net, card, about, files["pt2"])
    return files
