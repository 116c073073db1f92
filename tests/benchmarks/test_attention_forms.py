"""The forms of the DA module that were tried: each an identity at first, each on images that no test sees."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from attention_forms import FORMS, fold_of, main, student_with
from scenedistill.data.scenes import scan
from scenedistill.data.splits.draw import make_split
from scenedistill.experiments.results.record import read_result


@pytest.mark.parametrize("form", [form for form in FORMS if form != "none"])
def test_every_form_starts_as_the_identity(form: str) -> None:
    images = torch.rand(4, 3, 32, 32)
    plain, gated = student_with("none", 3, 32).eval(), student_with(form, 3, 32).eval()
    assert torch.equal(gated.backbone(images), plain.backbone(images))


def test_folds_are_disjoint_and_hold_training_images_alone(tiny_scenes: Path) -> None:
    index = scan(tiny_scenes)
    split = make_split(index, 0.5, seed=0)
    folds = [fold_of(split, index.labels, number) for number in range(5)]
    assert all((fold[split.test] == -1).all() for fold in folds)
    assert np.array_equal(np.sort(np.concatenate([np.flatnonzero(fold == 1) for fold in folds])), split.train)
    assert all(not (fold[split.train] == -1).any() for fold in folds)


@pytest.mark.slow
def test_the_benchmark_writes_a_row_for_each_form(
    tiny_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCENEDISTILL_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "forms.json"
    command = ["forms", str(tiny_scenes), str(out), "--forms", "none", "bounded", "--folds", "1", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--pixels", "32"])
    main()
    assert [(row.variant, row.seed) for row in read_result(out).rows] == [("bounded", 0), ("none", 0)]
