"""Stages as folders: done once, gone on with, moved aside and taken back."""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from scenedistill.core.errors import UserError
from scenedistill.training.runs import Stage, fingerprint

WORKER = Path(__file__).with_name("stage_worker.py")
SETTINGS = {"seed": 0, "fit": {"epochs": 3, "lr": 0.1}, "classes": ["forêt", "river"]}


def test_a_fingerprint_depends_on_values_and_not_on_the_order_of_names() -> None:
    turned = {"classes": ["forêt", "river"], "fit": {"lr": 0.1, "epochs": 3}, "seed": 0}
    assert fingerprint(turned) == fingerprint(SETTINGS)
    assert len(fingerprint(SETTINGS)) == 16
    assert fingerprint({**SETTINGS, "seed": 1}) != fingerprint(SETTINGS)
    assert fingerprint({**SETTINGS, "classes": ["river", "forêt"]}) != fingerprint(SETTINGS)


def test_a_stage_is_done_when_it_is_finished(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "run" / "teacher", SETTINGS)
    assert not stage.done
    assert stage.begin() is None
    assert stage.begun and not stage.done
    stage.finish({"seconds": 1.5})
    again = Stage(tmp_path / "run" / "teacher", SETTINGS)
    assert again.done
    assert again.record == {"seconds": 1.5}
    stored = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))
    assert stored["settings"] == SETTINGS


def test_an_interrupted_stage_keeps_its_files(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "teacher", SETTINGS)
    stage.begin()
    (stage.folder / "last.ckpt").write_text("half way")
    again = Stage(tmp_path / "teacher", SETTINGS)
    assert not again.done
    assert again.begin() is None
    assert (again.folder / "last.ckpt").read_text() == "half way"


def test_other_settings_move_the_folder_aside_and_the_same_ones_take_it_back(tmp_path: Path) -> None:
    first, second, third = (Stage(tmp_path / "teacher", {"seed": seed}) for seed in range(3))
    for number, stage in enumerate((first, second, third)):
        moved = stage.begin()
        assert moved == (tmp_path / f"teacher.previous-{number}" if number else None)
        assert not stage.done
        stage.finish({"seed": number})

    assert not first.done
    assert first.begin() == tmp_path / "teacher.previous-3"  # the third's
    assert first.done and first.record == {"seed": 0}
    assert third.begin() == tmp_path / "teacher.previous-1"  # the first's, where there was room
    assert third.done and third.record == {"seed": 2}
    assert len(list(tmp_path.iterdir())) == 3, "nothing is lost"


def test_a_half_trained_stage_is_taken_back_too(tmp_path: Path) -> None:
    right, mistyped = Stage(tmp_path / "teacher", {"name": "resnet101"}), Stage(tmp_path / "teacher", {"name": "oops"})
    right.begin()
    (right.folder / "last.ckpt").write_text("hours of work")
    mistyped.begin()
    right.begin()
    assert not right.done
    assert (right.folder / "last.ckpt").read_text() == "hours of work"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"finished": true}', '{"fingerprint": "x", "finished": true}'])
def test_a_folder_with_another_or_a_broken_record_is_moved_aside(tmp_path: Path, content: str) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "stage.json").write_text(content)
    stage = Stage(tmp_path / "teacher", SETTINGS)
    assert not stage.done
    moved = stage.begin()
    assert moved is not None
    assert (moved / "stage.json").read_text() == content


def test_waiting_for_another_process_ends_with_its_record_or_a_timeout(tmp_path: Path) -> None:
    stage, theirs = Stage(tmp_path / "teacher", SETTINGS), Stage(tmp_path / "teacher", SETTINGS)
    with pytest.raises(TimeoutError, match="teacher was not begun by the first process within 0 s"):
        stage.wait(0, begun=True)
    theirs.begin()
    stage.wait(0, begun=True)
    with pytest.raises(TimeoutError, match="teacher was not finished"):
        stage.wait(0)
    timer = threading.Timer(0.1, theirs.finish, [{"oa": 1.0}])
    timer.start()
    stage.wait(10)
    timer.join()
    assert stage.record == {"oa": 1.0}


def test_a_stage_is_locked_by_one_process_at_a_time(tmp_path: Path) -> None:
    first, second = Stage(tmp_path / "run" / "teacher", SETTINGS), Stage(tmp_path / "run" / "teacher", {"seed": 1})
    with first.locked(), Stage(tmp_path / "run" / "student", SETTINGS).locked():  # other stages are free
        with pytest.raises(UserError) as refused, second.locked():
            pass
        assert str(refused.value) == (
            f"{first.folder} is being worked on by another process (process {os.getpid()} on {platform.node()}). "
            "Give the same command again when it has ended, or another run folder with --out."
        )
        first.begin()
        first.folder.rename(tmp_path / "run" / "aside")  # the lock does not move with the folder
        with pytest.raises(UserError, match="another process"), second.locked():
            pass
    with second.locked():
        pass
    assert not list(tmp_path.rglob("*.holder"))


def test_a_killed_process_releases_its_lock(commands: Any, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "teacher", SETTINGS)
    with commands.start(stage.folder, script=WORKER) as other:  # which is killed at the end
        other.wait_for("held\n")
        with pytest.raises(UserError, match=rf"\(process {other.pid} on "), stage.locked():
            pass
    assert other.wait().code == -signal.SIGKILL
    with stage.locked():
        assert (tmp_path / ".teacher.holder").read_text().startswith(f"process {os.getpid()} ")


def test_a_file_system_without_locks_does_not_stop_the_work(tmp_path: Path) -> None:
    (tmp_path / ".teacher.lock").mkdir()  # nothing that could be locked
    with Stage(tmp_path / "teacher", SETTINGS).locked():
        pass
    with pytest.raises(RuntimeError, match="a mistake"), Stage(tmp_path / "teacher", SETTINGS).locked():
        raise RuntimeError("a mistake")


def test_a_try_that_ended_before_its_first_step_is_not_kept(tmp_path: Path) -> None:
    first, second = (Stage(tmp_path / "teacher", {"weights": name}) for name in ("nosuch", "none"))
    first.begin()
    assert second.begin() is None and second.begun
    (second.folder / "checkpoints").mkdir()
    (second.folder / "checkpoints" / "last.ckpt").write_bytes(b"trained")
    assert first.begin() == tmp_path / "teacher.previous-1"
