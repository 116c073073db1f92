"""The picture of where networks look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attention_sheet import look, main
from scenedistill.core.errors import UserError
from scenedistill.models.create import build_student
from scenedistill.models.files import NetCard, save_net

CLASSES = ("car park", "fields", "forêt", "river")


def test_the_map_is_high_where_the_image_is_not_empty() -> None:
    torch.manual_seed(0)
    net = build_student("table1_printed", 2, image_size=64).eval()
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:, 32:] = np.random.default_rng(0).integers(0, 255, (64, 32, 3))
    heat, named = look(net, image)
    assert heat.shape == (64, 64) and named in (0, 1)
    assert heat.min() >= 0 and heat.max() <= 1 + 1e-6
    assert heat[:, 40:].mean() > 1.5 * heat[:, :24].mean()


def test_a_sheet_has_a_column_for_each_class_and_a_row_for_each_network(tiny_scenes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_net(build_student("table1_printed", 4), NetCard("table1_printed", CLASSES, 3, 48), weights)
    widths = []
    for number, networks in enumerate(([f"plain={weights}"], [f"plain={weights}", f"distilled={weights}"])):
        sheet = tmp_path / f"{number}.png"
        main([str(tiny_scenes), str(sheet), *networks])
        with Image.open(sheet) as picture:
            widths.append(picture.size)
    assert widths[0][0] == widths[1][0] > 400
    assert widths[1][1] == pytest.approx(1.5 * widths[0][1], abs=2)
    with pytest.raises(UserError, match=r"not NAME=weights\.safetensors"):
        main([str(tiny_scenes), str(tmp_path / "x.png"), str(weights)])
