"""The worked example of docs/rasters.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scenedistill.data.synthetic.scenes import SCENES
from scenedistill.models.create import build_student
from scenedistill.models.files import NetCard, save_net

pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
pytest.importorskip("pyogrio", reason="needs pyogrio: pip install -e '.[use]'")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "rasters.md"


def test_the_example_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    classes = tuple(sorted(SCENES))
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    net = build_student("table1_printed", len(classes), image_size=64)
    save_net(net, NetCard("table1_printed", classes, 3, 64), tmp_path / "runs" / "quickstart" / "weights.safetensors")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    known: dict[str, Any] = {}
    for block in blocks:
        exec(block, known)
    assert known["classes"].shape == (8, 10) and np.isfinite(known["confidence"]).all()
    assert "of the cells are right" in capsys.readouterr().out
    for line in re.findall(r"`(town_\S+)` \|", PAGE.read_text(encoding="utf-8")):
        assert (tmp_path / "maps" / line).exists(), line
