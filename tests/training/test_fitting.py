"""A training that is killed at any moment, by kill -9 of a real process, ends with the very same weights."""

from __future__ import annotations

import csv
import errno
import json
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from scenedistill.config import MachineConfig, StudentConfig, StudentFitConfig
from scenedistill.core.errors import UserError
from scenedistill.data.cache.build import SceneCache
from scenedistill.data.splits.draw import assemble
from scenedistill.data.views import ViewConfig
from scenedistill.models.create import build_student
from scenedistill.models.files import weights_hash
from scenedistill.runs.curves import read_curves
from scenedistill.training.base import Diverged
from scenedistill.training.checkpoint_io import AtomicCheckpoints
from scenedistill.training.fitting import count_devices, original_exception
from scenedistill.training.student import StudentTraining

PLAIN, DKD = "table1_printed/plain", "table1_printed/dkd"
NETWORKS = ("teacher", PLAIN, DKD)
CHECKPOINT = "checkpoints/last.ckpt"

#: (moment, how the process ends there): every command goes on where the one before was killed
MOMENTS = {
    "in the first checkpoint": ("open", f"teacher/{CHECKPOINT}.part", 1, "cut"),
    "between a checkpoint and its swap": ("rename", f"teacher/{CHECKPOINT}", 2, "kill"),
    "in the teacher's last weights": ("open", "teacher/weights.safetensors.part", 1, "kill"),
    "before the teacher counts as done": ("rename", "teacher/stage.json", 1, "kill"),
    "in the teacher's test": ("rename", "teacher/evaluation/stage.json", 2, "kill"),
    "in the plain student's second epoch": ("rename", f"{PLAIN}/{CHECKPOINT}", 1, "later"),
    "in the distilled student's second checkpoint": ("open", f"{DKD}/{CHECKPOINT}.part", 2, "cut"),
    "at the end of its last epoch": ("open", f"{DKD}/{CHECKPOINT}.part", 2, "kill"),  # the second of this try
    "before the summary": ("rename", "summary.json", 1, "kill"),
}


#: What a training says of itself, however often it was killed.
TOLD = ("seconds", "epochs", "images_per_second", "waits", "last_epoch")


def hashes(out: Path) -> dict[str, str]:
    """The weights' hash of each network of a finished run."""
    found = {}
    for network in NETWORKS:
        record = json.loads((out / "seed3" / network / "stage.json").read_text(encoding="utf-8"))
        assert record["finished"], network
        found[network] = record["record"]["weights_hash"]
    return found


def figures(out: Path) -> list[tuple[object, ...]]:
    """What a run found of each network."""
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return [(row["variant"], row["oa"], row["kappa"], row["macro_f1"]) for row in summary["rows"]]


@pytest.mark.slow
def test_a_run_killed_at_every_moment_ends_with_the_same_weights(
    tiny_scenes: Path, tiny_run: Path, tiny_options: tuple[str, ...], commands: Any, tmp_path: Path
) -> None:
    command = ("run", tiny_scenes, "--out", tmp_path / "killed", *tiny_options)
    for moment, (event, path, count, how) in MOMENTS.items():
        ended = commands(*command, stop={"event": event, "path": path, "count": count, "how": how})
        expected = -signal.SIGXFSZ if how == "cut" else -signal.SIGKILL
        assert ended.code == expected, f"{moment}:\n{ended.out}{ended.err}"
        assert not (tmp_path / "killed" / "summary.json").exists()
    ended = commands(*command)
    assert ended.code == 0, ended.out + ended.err
    assert hashes(tmp_path / "killed") == hashes(tiny_run)
    assert "epoch" not in ended.out, "all was done but the summary"
    assert not list((tmp_path / "killed").rglob("*.previous-*"))

    # what has been computed before the last kill of a stage is not computed again
    assert (tmp_path / "killed" / "seed3" / DKD / "logs" / "attempt_1" / "metrics.csv").exists()
    assert figures(tmp_path / "killed") == figures(tiny_run)


@pytest.mark.slow
def test_a_killed_student_resumes_with_the_same_stored_knowledge(
    tiny_scenes: Path, tiny_run: Path, tiny_options: tuple[str, ...], commands: Any, tmp_path: Path
) -> None:
    options = ("--student.knowledge_views", "2", *tiny_options)
    for name in ("whole", "killed"):
        shutil.copytree(tiny_run, tmp_path / name)
    whole = commands("distill", tiny_scenes, "--out", tmp_path / "whole", *options)
    assert whole.code == 0, whole.out + whole.err
    assert "teacher: done before" in whole.out
    command = ("distill", tiny_scenes, "--out", tmp_path / "killed", *options)
    stop = {"event": "open", "path": f"{DKD}/{CHECKPOINT}.part", "count": 2, "how": "cut"}
    assert commands(*command, stop=stop).code == -signal.SIGXFSZ
    assert commands(*command).code == 0
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert hashes(tmp_path / "whole")[DKD] != hashes(tiny_run)[DKD]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_ends_with_one_line_and_the_same_command_resumes(
    tiny_scenes: Path, tiny_run: Path, tiny_options: tuple[str, ...], commands: Any, tmp_path: Path
) -> None:
    command = ("run", tiny_scenes, "--out", tmp_path / "out", *tiny_options)
    ended = commands(*command, stop={"event": "open", "path": f"teacher/{CHECKPOINT}.part", "count": 2, "how": "full"})
    assert ended.code == 1, ended.err
    assert ended.err.count("\n") == 1 and "the disk is full" in ended.err
    kept = torch.load(tmp_path / "out" / "seed3" / "teacher" / CHECKPOINT, weights_only=False)
    assert kept["epoch"] == 0, "the old checkpoint is whole"
    assert commands(*command).code == 0
    assert hashes(tmp_path / "out") == hashes(tiny_run)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    writer = AtomicCheckpoints()
    writer.save_checkpoint({"tensor": torch.arange(100_000)}, path)
    path.with_name("last.ckpt.part").symlink_to("/dev/full")
    with pytest.raises(OSError) as raised:
        writer.save_checkpoint({"tensor": torch.zeros(100_000)}, path)
    assert raised.value.errno == errno.ENOSPC
    assert torch.equal(torch.load(path)["tensor"], torch.arange(100_000))
    assert list(path.parent.iterdir()) == [path], "and nothing half"


def test_a_full_disk_is_reported_when_the_writer_hides_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = AtomicCheckpoints()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 40, used=1 << 40, free=0))
    with pytest.raises(OSError) as raised:
        writer.save_checkpoint({"tensor": _Unwritable()}, tmp_path / "last.ckpt")
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="unexpected pos"):
        writer.save_checkpoint({"tensor": _Unwritable()}, tmp_path / "last.ckpt")


def test_ctrl_c_while_a_checkpoint_is_written_is_a_ctrl_c_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpoints()
    writer.save_checkpoint({"tensor": torch.arange(10)}, path)
    with pytest.raises(KeyboardInterrupt):
        writer.save_checkpoint({"tensor": _Interrupted()}, path)
    assert torch.equal(torch.load(path)["tensor"], torch.arange(10))
    assert list(path.parent.iterdir()) == [path]


class _Interrupted:
    def __reduce__(self) -> Any:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:  # as torch's writer does, closing its file
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 286 vs 0")


class _Unwritable:
    def __reduce__(self) -> Any:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")


def test_a_training_logs_its_epochs_and_is_not_repeated(train: Any, mild: ViewConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = StudentConfig(fit=StudentFitConfig(epochs=2, batch_size=100, warmup_epochs=0))
    module = StudentTraining(
        build_student("table1_printed", 4, image_size=32), config, {"ce": 1.0}, mild, image_size=32, seed=0
    )
    record = train(module)
    lines = record["said"].splitlines()
    assert lines[0] == "  tiny: all 64 training images make one batch"
    assert [line.split("  ")[2] for line in lines[1:]] == ["epoch 1/2", "epoch 2/2"]
    speed = float(lines[-1].partition(" images/s")[0].split()[-1])
    assert record["images_per_second"] == pytest.approx(speed, rel=2), "64 images in a batch, not 100"
    assert record["epochs"] == 2 and record["seconds"] >= 0 and record["precision"] == "fp32"
    assert set(record["last_epoch"]) == {"ce", "train_oa"}
    rows = (tmp_path / "stage" / "logs" / "attempt_0" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    told = [row for row in csv.DictReader(rows) if row["ce"]]
    assert [row["epoch"] for row in told] == ["0", "1"] and all(row["train_oa"] for row in told)
    assert list((tmp_path / "stage" / "tensorboard").glob("events.*"))

    # a second call finds everything done
    before = weights_hash(module.net)
    again = train(module)
    assert weights_hash(module.net) == before
    assert {name: again[name] for name in TOLD} == {name: record[name] for name in TOLD}
    assert "epoch" not in again["said"]


def test_a_training_that_starts_again_is_logged_after_the_earlier_attempts(
    train: Any, mild: ViewConfig, tmp_path: Path
) -> None:
    """A stage whose weights were damaged is trained again; its checkpoint is deleted, and its logs are not."""
    for attempt in range(2):
        log = tmp_path / "stage" / "logs" / f"attempt_{attempt}" / "metrics.csv"
        log.parent.mkdir(parents=True)
        log.write_text("ce,epoch,step,train_oa\n99.0,0,0,0.0\n", encoding="utf-8")
    config = StudentConfig(fit=StudentFitConfig(epochs=1, batch_size=64, warmup_epochs=0))
    net = build_student("table1_printed", 4, image_size=32)
    record = train(StudentTraining(net, config, {"ce": 1.0}, mild, image_size=32, seed=0))
    found = read_curves(tmp_path / "stage")
    assert found.parts["ce"].tolist() == pytest.approx([record["last_epoch"]["ce"]], abs=1e-4)


@pytest.mark.slow
def test_an_error_in_one_of_several_processes_is_reported_like_in_one(
    tiny_scenes: Path, tiny_run: Path, tiny_options: tuple[str, ...], commands: Any, tmp_path: Path
) -> None:
    teacher = str(tiny_run / "seed3" / "teacher" / "weights.safetensors")
    options = [*tiny_options, "--teacher.checkpoint", teacher, "--machine.devices", "2", "--data.val_fraction", "0.25"]
    command = ("distill", tiny_scenes, "--out", tmp_path / "out", *options)
    ended = commands(*command, "--student.fit.lr", "1e30", "--student.fit.clip_norm", "0")
    assert ended.code == 1 and "Traceback" not in ended.err, ended.err
    assert re.search("not a? ?finite number", ended.err) and "Lower the learning rate" in ended.err
    assert ended.err.count("\n") == 1


def test_the_text_of_another_process_becomes_its_exception_again() -> None:
    def told(last: str) -> Exception:
        text = f"\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call):\n  ...\n{last}\n"
        return original_exception(ProcessRaisedException(text, 1, 1))

    lost = told("scenedistill.training.base.Diverged: Part kd of the loss\nis not finite.")
    assert type(lost) is Diverged and str(lost) == "Part kd of the loss\nis not finite."
    refused = told("scenedistill.core.errors.UserError: no room")
    assert type(refused) is UserError and str(refused) == "no room"
    full = told("OSError: [Errno 28] No space left on device: 'last.ckpt'")
    assert isinstance(full, OSError) and full.errno == errno.ENOSPC
    assert isinstance(told("KeyError: 'x'"), ProcessRaisedException)


def test_too_few_validation_images_for_the_devices_are_refused(
    train: Any, tiny_cache: SceneCache, mild: ViewConfig
) -> None:
    parts = np.zeros(64, np.int8)
    parts[5] = 1  # one image validates
    schedule = StudentFitConfig(epochs=1, batch_size=16)
    net = build_student("table1_printed", 4, image_size=32)
    module = StudentTraining(net, StudentConfig(fit=schedule), {"ce": 1.0}, mild, image_size=32, seed=0)
    with pytest.raises(UserError, match=r"1 validation images cannot be shared out to 2 devices"):
        train(
            module,
            split=assemble(tiny_cache.index, parts, None, None),
            machine=MachineConfig(accelerator="cpu", devices=2, precision="fp32"),
        )


@pytest.mark.parametrize(
    "machine",
    [
        MachineConfig(accelerator="gpuu"),
        MachineConfig(accelerator="cpu", devices=0),
        MachineConfig(accelerator="cpu", strategy="dpp"),
    ],
    ids=lambda machine: f"{machine.accelerator} {machine.devices} {machine.strategy}",
)
def test_missing_devices_are_refused(machine: MachineConfig) -> None:
    with pytest.raises(UserError, match=f"--machine: accelerator {machine.accelerator}, devices {machine.devices}"):
        count_devices(machine)


def test_devices_are_counted_over_all_machines() -> None:
    assert count_devices(MachineConfig(accelerator="cpu")) == 1
    assert count_devices(MachineConfig(accelerator="cpu", devices=2)) == 2
    assert count_devices(MachineConfig(accelerator="cpu", devices=2, num_nodes=3, strategy="ddp")) == 6
