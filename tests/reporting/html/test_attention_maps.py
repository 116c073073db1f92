"""Grad-CAM side by side and the map of embeddings, on the networks of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scenedistill.metrics.differences import most_different
from scenedistill.models.files import load_net, save_net
from scenedistill.reporting.html.attention_maps import DRAWN, ComparedNetworks
from scenedistill.reporting.html.config import ReportConfig
from scenedistill.reporting.html.focus import choose
from scenedistill.runs.run import Run

pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install -e '.[report]'")
pytest.importorskip("sklearn", reason="needs scikit-learn: pip install -e '.[report]'")


@pytest.fixture(scope="module")
def compared(made: Any) -> ComparedNetworks:
    networks = choose(Run.open(made.run), ReportConfig()).of_one_seed()
    return ComparedNetworks(networks, made.manifest.parent, torch.device("cpu"))


def test_the_images_reproduce_the_outputs_of_the_test(compared: ComparedNetworks) -> None:
    """The networks name on these images what the kept outputs say: so these are the same images, the same view."""
    from scenedistill.data.views import evaluation_view

    assert list(compared.networks) == ["teacher", "plain", "dkd"]
    part = compared.part(np.arange(len(compared.paths)))
    images = part.fetch(range(len(part))).images
    for name, (net, card) in compared.nets.items():
        with torch.inference_mode():
            logits = net(evaluation_view(images, size=card.image_size)).logits
        assert np.abs(logits.numpy() - compared.outputs[name].logits).max() < 0.02  # kept in half precision


def test_the_most_different_images_come_first_then_some_drawn(compared: ComparedNetworks) -> None:
    images = compared.side_by_side()
    differing = [compared.paths[found.position] for found in most_different(compared.outputs, limit=8)]
    assert [image.path for image in images if not image.drawn] == differing
    assert sum(image.drawn for image in images) == DRAWN and len({image.path for image in images}) == len(images)
    for image in images:
        alike = image.maps["dkd"][2]
        assert image.maps["teacher"][2] is None and alike is not None and -1 <= alike <= 1
        assert image.path.split("/")[0] in {"car park", "fields", "forêt", "river"}


def test_agreements_and_maps_have_one_entry_for_each_image_and_network(compared: ComparedNetworks) -> None:
    part = compared.part(compared.sample(12))
    assert len(part) == 12 and sorted(set(part.labels.tolist())) == [0, 1, 2, 3]
    scores = compared.agreements(part)
    assert list(scores) == ["plain", "dkd"] and all(values.shape == (12,) for values in scores.values())
    assert compared.positions() == dict.fromkeys(["teacher", "plain", "dkd"], "1 x 1")
    maps = compared.embeddings(part)
    assert all(found.places.shape == (12, 2) and 0 <= found.purity <= 1 for found in maps.values())


def test_without_a_teacher_there_are_maps_but_no_agreement(made: Any) -> None:
    focus = choose(Run.open(made.run), ReportConfig())
    groups = {name: group for name, group in focus.groups.items() if name != "teacher"}
    compared = ComparedNetworks(
        dataclasses.replace(focus, groups=groups).of_one_seed(), made.manifest.parent, torch.device("cpu")
    )
    assert compared.agreements(compared.part([0, 1])) == {}
    assert all(score is None for image in compared.side_by_side() for _, _, score in image.maps.values())


def test_a_given_teacher_of_another_size_sees_the_size_of_its_test(copied: Path, made: Any) -> None:
    weights = copied / "seed0" / "teacher" / "weights.safetensors"
    net, card = load_net(weights)
    save_net(net, dataclasses.replace(card, image_size=48, stored_size=64), weights)
    networks = choose(Run.open(copied), ReportConfig()).of_one_seed()
    compared = ComparedNetworks(networks, made.manifest.parent, torch.device("cpu"))
    part = compared.part(compared.sample(8))
    assert part.fetch(range(1)).images.shape[1:3] == (40, 40)
    assert all(values.shape == (8,) for values in compared.agreements(part).values())
    assert set(compared.positions().values()) == {"1 x 1"}
    assert len(compared.side_by_side()) and list(compared.embeddings(part)) == ["teacher", "plain", "dkd"]
