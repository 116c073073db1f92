"""What is kept is listed, and cleared without touching anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scenedistill.core.errors import UserError
from scenedistill.data.cache.build import build_cache
from scenedistill.data.scenes import scan
from scenedistill.data.unlabelled.pool import collect_unlabelled
from scenedistill.experiments.storage import clear, stored
from scenedistill.training.teacher_outputs.store import KnowledgeStore


@pytest.fixture
def root(tiny_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCENEDISTILL_CACHE", str(tmp_path))
    build_cache(scan(tiny_scenes), 16, progress=False)
    about = {"teacher": "resnet101", "data": "AID", "pixels": 96}
    store = KnowledgeStore(tmp_path / "knowledge", {"seed": 3}, 2000, about)
    for number in range(2):
        store.write(number, torch.full((2000, 50), number, dtype=torch.uint8))
    (tmp_path / "mine.txt").write_text("not yours")
    (tmp_path / "knowledge" / "other").mkdir()
    return tmp_path


def test_everything_kept_is_listed_the_largest_first(root: Path, tiny_scenes: Path) -> None:
    knowledge, images = stored()
    assert knowledge.kind == "knowledge" and 200_000 < knowledge.bytes < 202_000
    assert knowledge.what == "resnet101 on AID at 96 pixels, seed 3: 2 views x 2,000 images"
    assert images.kind == "images" and images.bytes > 64 * 16 * 16 * 3
    assert images.what == f"{tiny_scenes.resolve()} at 16 pixels"
    assert stored(root / "nowhere") == []


@pytest.mark.parametrize(("asked", "left"), [("knowledge", ["images"]), ("images", ["knowledge"]), ("all", [])])
def test_a_kind_is_cleared_and_nothing_else(root: Path, asked: str, left: list[str]) -> None:
    assert {entry.kind for entry in clear([asked])} == {"knowledge", "images"} - set(left)
    assert [entry.kind for entry in stored()] == left
    assert (root / "mine.txt").exists() and (root / "knowledge" / "other").exists()
    assert clear([asked]) == []


def test_images_without_labels_are_listed_and_cleared_with_the_others(root: Path, tiny_scenes: Path) -> None:
    collect_unlabelled([tiny_scenes / "river"], build_cache(scan(tiny_scenes), 16, progress=False), progress=False)
    without = next(entry for entry in stored() if entry.folder.parent.name == "unlabelled")
    assert without.kind == "images" and without.what == f"{tiny_scenes / 'river'} at 16 pixels"
    assert clear([without.name]) == [without] and not without.folder.exists()


def test_one_is_cleared_by_its_name_and_a_wrong_name_clears_nothing(root: Path) -> None:
    knowledge, images = stored()
    with pytest.raises(UserError, match="Nothing stored is called 'nme'"):
        clear([images.name, "nme"])
    assert stored() == [knowledge, images]
    assert clear([images.name, images.name]) == [images]
    assert stored() == [knowledge]
