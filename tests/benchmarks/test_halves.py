"""Recipes are compared on training images alone."""

from __future__ import annotations

from pathlib import Path

from halves import halve
from scenedistill.data.scenes import scan
from scenedistill.data.splits.draw import make_split
from scenedistill.data.splits.files import read_split, write_split


def test_each_half_is_learned_from_once_and_no_test_image_is_in_either(tiny_scenes: Path, tmp_path: Path) -> None:
    index = scan(tiny_scenes)
    split = make_split(index, 0.5, 0)
    write_split(split, index, tmp_path / "all.csv")
    outs = tmp_path / "0.csv", tmp_path / "1.csv"
    halve(tmp_path / "all.csv", outs)
    first, second = (read_split(out, index) for out in outs)
    assert first.train.tolist() == second.test.tolist() and first.test.tolist() == second.train.tolist()
    assert sorted([*first.train, *first.test]) == split.train.tolist()
    for part in (first.train, first.test):
        assert len(set(index.labels[part])) == len(index.classes), "every class is in both"
