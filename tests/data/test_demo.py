from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenedistill.core.errors import UserError
from scenedistill.data.synthetic import demo
from scenedistill.data.synthetic.demo import generate, picture
from scenedistill.data.synthetic.scenes import SCENES


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.jpg")}


def pixels(name: str, number: int, **how: int) -> np.ndarray:
    return np.asarray(picture(name, number, **how), dtype=np.float64)


def test_index_and_files_are_as_documented(tmp_path: Path) -> None:
    index = generate(tmp_path / "scenes", per_class=2, size=48, progress=False)
    assert index.classes == tuple(SCENES) and len(index.classes) >= 10
    assert index.counts() == dict.fromkeys(SCENES, 2)
    assert {"parking lot", "storage tanks"} <= set(index.classes)  # names with a space are part of the exercise
    assert len({Path(path).name for path in index.paths}) == len(index)  # split lists may leave the folder out
    for path in index.paths:
        with Image.open(index.root / path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".scenes.lock") == ["scenes"]


def test_first_pictures_stay_whatever_the_count_and_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    generate(few, per_class=2, size=32, progress=False)  # too few to start a process
    generate(many, per_class=10, size=32, progress=False)  # two processes, given more than one core
    first, all_of_them = contents(few), contents(many)
    assert len(first) == 2 * len(SCENES) and len(all_of_them) == 10 * len(SCENES)
    assert first == {path: all_of_them[path] for path in first}


def test_pictures_depend_on_seed_class_and_number() -> None:
    same = picture("river", 3, size=32, seed=1).tobytes()
    assert same == picture("river", 3, size=32, seed=1).tobytes()
    others = [picture("river", 3, size=32, seed=2), picture("river", 4, size=32, seed=1)]
    others.append(picture("beach", 3, size=32, seed=1))
    assert all(np.abs(np.asarray(other, dtype=float) - np.frombuffer(same, np.uint8).reshape(32, 32, 3)).mean() > 5
               for other in others)  # fmt: skip


@pytest.mark.parametrize("name", SCENES)
def test_every_class_shows_something_and_varies(name: str) -> None:
    pictures = np.stack([pixels(name, number, size=48) for number in range(8)])
    assert np.all(pictures.std(axis=(1, 2, 3)) > 6)  # none is blank
    assert np.all((pictures <= 0).mean(axis=(1, 2, 3)) < 0.2) and np.all((pictures >= 255).mean(axis=(1, 2, 3)) < 0.2)
    apart = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(apart) > 8 and np.mean(apart) > 20


def test_colour_alone_does_not_tell_the_classes_apart() -> None:
    """A linear classifier on the mean and deviation of each channel: above chance, far from good."""

    def features(numbers: range) -> np.ndarray:
        shown = np.stack([pixels(name, n, size=32) for name in SCENES for n in numbers])
        return np.concatenate([shown.mean(axis=(1, 2)), shown.std(axis=(1, 2))], axis=1)

    seen, unseen = features(range(16)), features(range(16, 28))
    centre, spread = seen.mean(axis=0), seen.std(axis=0)
    seen, unseen = ((np.c_[(x - centre) / spread, np.ones(len(x))]) for x in (seen, unseen))
    labels = np.arange(len(SCENES))
    weights = np.linalg.lstsq(seen, np.eye(len(SCENES))[labels.repeat(16)], rcond=None)[0]
    accuracy = ((unseen @ weights).argmax(axis=1) == labels.repeat(12)).mean()
    assert accuracy < 0.45


def test_leftovers_of_another_recipe_are_removed(tmp_path: Path) -> None:
    leftover, other = tmp_path / ".scenes.0123456789ab.partial", tmp_path / ".scenes2.0123456789ab.partial"
    (leftover / "beach").mkdir(parents=True)
    other.mkdir()
    generate(tmp_path / "scenes", per_class=1, size=32, progress=False)
    assert not leftover.exists() and other.exists()


def test_same_recipe_is_reused_another_is_drawn_again(tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    index = generate(root, per_class=1, size=32, progress=False)
    before = {path: (root / path).stat().st_mtime_ns for path in index.paths}
    generate(root, per_class=1, size=32, progress=False)
    assert {path: (root / path).stat().st_mtime_ns for path in index.paths} == before
    old = contents(root)
    generate(root, per_class=1, size=32, seed=5, progress=False)
    assert contents(root).keys() == old.keys() and not set(contents(root).values()) & set(old.values())


def test_a_picture_that_was_lost_is_drawn_again(tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    index = generate(root, per_class=1, size=32, progress=False)
    old = contents(root)
    (root / index.paths[4]).unlink()
    generate(root, per_class=1, size=32, progress=False)
    assert contents(root) == old


def test_a_failed_call_leaves_no_folder_and_the_next_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "scenes"
    drawn: list[str] = []
    real = demo.picture

    def failing(name: str, number: int, **how: int) -> Image.Image:
        if len(drawn) == 7:
            raise KeyboardInterrupt
        drawn.append(name)
        return real(name, number, **how)

    monkeypatch.setattr(demo, "picture", failing)
    with pytest.raises(KeyboardInterrupt):
        generate(root, per_class=1, size=32, progress=False)
    assert not root.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    assert len(kept) == 7
    monkeypatch.setattr(demo, "picture", real)
    generate(root, per_class=1, size=32, progress=False)
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}.items()
    generate(tmp_path / "fresh", per_class=1, size=32, progress=False)
    assert contents(root) == contents(tmp_path / "fresh")


def test_a_killed_call_leaves_no_folder_and_the_next_resumes(tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    env = {**os.environ, "PYTHONPATH": str(Path(demo.__file__).parents[3])}  # works without an installation too
    worker = Path(__file__).with_name("demo_worker.py")
    started = subprocess.Popen([sys.executable, str(worker), str(root)], stdout=subprocess.DEVNULL, env=env)
    waited = time.monotonic() + 60
    while len(list(tmp_path.rglob("*.jpg"))) < 5 and started.poll() is None and time.monotonic() < waited:
        time.sleep(0.01)
    started.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    started.wait()
    assert not root.exists() and any(tmp_path.rglob("*.jpg"))
    # At once, while workers of the killed call may still be drawing: nothing of theirs may get into another recipe.
    generate(root, per_class=1, size=32, progress=False)
    generate(tmp_path / "fresh", per_class=1, size=32, progress=False)
    assert contents(root) == contents(tmp_path / "fresh")


def test_what_was_not_generated_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine" / "beach").mkdir(parents=True)
    photo = tmp_path / "mine" / "beach" / "holiday.jpg"
    photo.write_bytes(b"mine")
    with pytest.raises(UserError, match="mine"):
        generate(tmp_path / "mine", per_class=1, size=32, progress=False)
    generate(tmp_path / "scenes", per_class=1, size=32, progress=False)
    added = tmp_path / "scenes" / "beach" / "holiday.jpg"
    added.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holiday\.jpg was not generated"):
        generate(tmp_path / "scenes", per_class=2, size=32, progress=False)
    assert photo.read_bytes() == added.read_bytes() == b"mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file"):
        generate(tmp_path / "file", per_class=1, size=32, progress=False)


@pytest.mark.parametrize("wrong", [{"per_class": 0}, {"size": 8}, {"seed": -1}])
def test_impossible_recipes_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        generate(tmp_path / "scenes", progress=False, **wrong)
    assert not any(tmp_path.iterdir())
