"""The script for a GPU: parts run on the CPU at a tiny size, and all commands with an interpreter that only notes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scenedistill.cli import build_parser
from scenedistill.experiments.bench.run import LOOPS
from scenedistill.experiments.bench.speed import SpeedResult, SpeedRow
from scenedistill.experiments.results.measurements import read_record
from scenedistill.experiments.results.record import read_result

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.sh"
PARTS = ["tests", "run", "step_profile", "bench", "bench_compiled", "race"]

pytestmark = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("timeout")), reason="needs bash and the timeout of GNU coreutils"
)


def run_script(*words: str | Path, python: str | Path = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run the script as on a machine without a GPU, whether this one has one or not."""
    environment = {**os.environ, "PYTHON": str(python), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", SCRIPT, *words], env=environment, capture_output=True, text=True, check=False)


def ends(output: str) -> dict[str, tuple[int, str]]:
    """Exit status and note of each part, as the summary at the end has them."""
    lines = output[output.index("part                 seconds  exit") :].splitlines()[1:-1]
    words = [line.split(maxsplit=3) for line in lines if ": left out" not in line]
    return {name: (int(status), " ".join(note)) for name, _, status, *note in words}


@pytest.mark.slow
def test_the_parts_run_on_the_cpu(tmp_path: Path) -> None:
    # step_profile and race have tests of their own, at the same size
    ended = run_script(tmp_path, "tests", "run", "bench", "bench_compiled")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "torch finds no GPU here" in ended.stdout
    found = ends(ended.stdout)
    assert list(found) == ["tests", "run", "bench"]
    assert {status for status, _ in found.values()} == {0}
    assert "skipped" in found["tests"][1] and "passed" not in found["tests"][1]
    assert "no CUDA device" in (tmp_path / "tests.log").read_text(encoding="utf-8")
    assert "bench_compiled: left out" in ended.stdout

    assert {row.variant for row in read_result(tmp_path / "run.json").rows} == {"teacher", "plain", "dkd"}
    speeds = read_record(tmp_path / "bench.json", SpeedResult, SpeedRow)
    assert {(row.loop, row.device) for row in speeds.rows} == {(name, "cpu") for name in LOOPS}


@pytest.fixture
def noting(tmp_path: Path) -> Path:
    """An interpreter that writes its arguments to `calls`, finds a GPU, and fails for two of the parts."""
    path = tmp_path / "python"
    path.write_text(
        f'#!/bin/sh\nprintf "%s\\037" "$@" >>{tmp_path}/calls\necho >>{tmp_path}/calls\n'
        'case "$*" in *step_profile.py*) exit 3 ;; *bench_compiled.json*) exit 124 ;; esac\n',
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def calls(python: Path) -> list[list[str]]:
    lines = python.with_name("calls").read_text(encoding="utf-8").splitlines()
    return [line.split("\x1f")[:-1] for line in lines]


def test_a_failed_part_does_not_stop_the_others(noting: Path, tmp_path: Path) -> None:
    ended = run_script(tmp_path / "out", python=noting)
    assert ended.returncode == 1
    found = ends(ended.stdout)
    assert list(found) == PARTS
    assert {part: status for part, (status, _) in found.items() if status} == {"step_profile": 3, "bench_compiled": 124}
    assert found["bench_compiled"][1] == "out of time"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{part}.log" for part in PARTS}


def test_the_commands_for_a_gpu_are_valid(noting: Path, tmp_path: Path) -> None:
    rivals = ["timm-tuned", "torchdistill-tuned", "textbook-tuned"]
    run_script(tmp_path / "out", *PARTS, *rivals, python=noting)
    given = calls(noting)
    ours = [words[2:] for words in given if words[:2] == ["-m", "scenedistill.cli"]]
    settings = [build_parser().parse_args(words) for words in ours]
    assert [words[0] for words in ours] == ["run", "bench", "bench"]
    assert [(one.bench.pixels, one.bench.teacher, one.bench.compile) for one in settings[1:]] == [
        ([224], "resnet101", False),
        ([224], "resnet101", True),
    ]
    others = [words for words in given if words[0] == "benchmarks/speed.py"]
    assert [words[words.index("--rivals") + 1] for words in others] == rivals
    (race,) = [words for words in given if words[0] == "benchmarks/time_to_accuracy.py"]
    assert "scenedistill, online" in race[race.index("--loops") :]


def test_an_unknown_part_is_named(noting: Path, tmp_path: Path) -> None:
    ended = run_script(tmp_path / "out", "benhc", python=noting)
    assert ended.returncode == 1 and "there is no part benhc" in ended.stdout
