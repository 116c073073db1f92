"""Explanations: which networks are compared, what they say, where they look, and the sheet."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from scenedistill.commands import explain as explain_command
from scenedistill.core.errors import UserError
from scenedistill.data.images.read import read_scene
from scenedistill.inference.model import open_model
from scenedistill.metrics.gradcam import agreement, class_activation
from scenedistill.models.files import load_net
from scenedistill.reporting.explain import Explained, as_text, explain, likeliest, networks_of
from scenedistill.reporting.explain_sheet import ON_A_PAGE, draw_explained
from scenedistill.runs.network import PLAIN, TEACHER

pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install -e '.[report]'")


@pytest.fixture(scope="module")
def explained(tiny_run: Path, tiny_scenes: Path) -> list[Explained]:
    return explain(networks_of(tiny_run), sorted(tiny_scenes.glob("*/0[01].png")), batch_size=3)


def test_a_run_gives_its_teacher_plain_and_distilled_student(tiny_run: Path, tmp_path: Path) -> None:
    found = networks_of(tiny_run)
    assert list(found) == [TEACHER, PLAIN, "dkd"]
    student = tiny_run / "seed3" / "table1_printed"
    assert found == networks_of(student / "dkd")
    assert [path.parent.name for path in found.values()] == [TEACHER, PLAIN, "dkd"]
    assert list(networks_of(student / "plain")) == [TEACHER, PLAIN]
    assert list(networks_of(tiny_run / "seed3" / "teacher")) == [TEACHER]
    shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "seed3" / "teacher")
    shutil.rmtree(tmp_path / "run" / "seed3" / "table1_printed" / "plain")
    assert list(networks_of(tmp_path / "run")) == ["dkd"]
    with pytest.raises(UserError, match="nothing at"):
        networks_of(tmp_path / "none")


def test_probabilities_and_maps_are_those_of_the_networks(
    explained: list[Explained], tiny_run: Path, tiny_scenes: Path
) -> None:
    assert len(explained) == 8
    networks = networks_of(tiny_run)
    for one in explained:
        assert one.path.parent.name == one.classes[one.truth or 0]
        assert one.asked == one.named(TEACHER)
    for name, path in networks.items():
        model = open_model(path, device="cpu", precision="fp32")
        pixels = np.stack([read_scene(one.path, 32) for one in explained])
        expected = model.predict(pixels).probabilities
        found = np.stack([one.explanations[name].probabilities for one in explained])
        assert found == pytest.approx(expected, abs=1e-5)
        net, _ = load_net(path)
        asked = torch.tensor([one.asked for one in explained])
        maps = class_activation(net, torch.from_numpy(pixels), size=32, classes=asked)
        assert np.stack([one.explanations[name].heat for one in explained]) == pytest.approx(maps.numpy(), abs=1e-4)
    for one in explained:
        heats = {name: torch.from_numpy(explanation.heat)[None] for name, explanation in one.explanations.items()}
        assert one.explanations[TEACHER].agreement is None
        for name in (PLAIN, "dkd"):
            assert one.explanations[name].agreement == pytest.approx(
                float(agreement(heats[name], heats[TEACHER])), abs=1e-6
            )


def test_a_class_can_be_asked_for_and_mistakes_are_named(tiny_run: Path, tiny_scenes: Path, tmp_path: Path) -> None:
    image = next(tiny_scenes.glob("river/*.png"))
    (one,) = explain(networks_of(tiny_run), [image], asked="fields")
    assert one.classes[one.asked] == "fields"
    with pytest.raises(UserError, match=r"no class sea\. There are: car park, fields"):
        explain(networks_of(tiny_run), [image], asked="sea")
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(UserError, match=r"bad\.png: not a JPEG"):
        explain(networks_of(tiny_run), [tmp_path / "bad.png"])
    loose = tmp_path / "loose.png"
    loose.write_bytes(image.read_bytes())
    (alone,) = explain({"dkd": networks_of(tiny_run)["dkd"]}, [loose])
    assert alone.truth is None and alone.asked == alone.named("dkd") and alone.explanations["dkd"].agreement is None
    assert "agreement with" not in as_text([alone])


def test_the_text_has_a_table_for_each_image(explained: list[Explained]) -> None:
    text = as_text(explained[:2])
    for one in explained[:2]:
        assert f"{one.path}  (in the folder {one.classes[one.truth or 0]})" in text
    block = text.split("\n\n")[0].splitlines()
    assert block[1].split() == [TEACHER, PLAIN, "dkd"]
    first = explained[0]
    best = likeliest(first)[0]
    assert block[2].strip().startswith(first.classes[best])
    assert f"{100 * first.explanations['dkd'].probabilities[best]:.1f} %" in block[2]
    score = first.explanations["dkd"].agreement
    assert any(
        line.strip().startswith("agreement with the teacher") and line.endswith(f"{score:.2f}") for line in block
    )
    assert len({len(line) for line in block[2:7]}) == 1  # the columns are straight


def test_the_sheet_has_pages_and_shows_the_images(explained: list[Explained], tmp_path: Path) -> None:
    (tmp_path / "explain_09.png").write_text("of nobody knows whom")
    pages = draw_explained(explained, tmp_path)
    assert [page.name for page in pages] == ["explain_01.png", "explain_02.png"] and len(explained) > ON_A_PAGE
    assert sorted(tmp_path.glob("*.png")) == [*pages, tmp_path / "explain_09.png"]
    sizes = []
    for page in pages:
        with Image.open(page) as picture:
            sizes.append(picture.size)
            assert np.asarray(picture.convert("RGB")).std() > 30
    assert sizes[0][0] == sizes[1][0] and sizes[0][1] > 1.4 * sizes[1][1]
    (one,) = draw_explained(explained[:1], tmp_path)
    assert sorted(tmp_path.glob("*.png")) == [one, tmp_path / "explain_09.png"], "the second page was of that call"


def test_the_command_writes_text_and_sheet_and_refuses_too_many_images(
    tiny_run: Path, tiny_scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    console = Console(record=True, width=200)
    image = next(tiny_scenes.glob("fields/*.png"))
    settings = explain_command.parser().parse_args([str(tiny_run), str(image), "--out", str(out)])
    explain_command.command(settings, console, "")
    assert sorted(path.name for path in out.iterdir()) == ["explain.files.json", "explain_01.png", "explained.txt"]
    assert (out / "explained.txt").read_text(encoding="utf-8").rstrip() in console.export_text()
    settings = explain_command.parser().parse_args([str(tiny_run), str(tiny_scenes)])
    with pytest.raises(UserError, match="Found 64 images; explain takes 60 at most"):
        explain_command.command(settings, console, "")
