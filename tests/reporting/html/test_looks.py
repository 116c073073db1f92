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
def lookers(made: Any) -> ComparedNetworks:
    networks = choose(Run.open(made.run), ReportConfig()).of_one_seed()
    return ComparedNetworks(networks, made.manifest.parent, torch.device("cpu"))


def test_the_networks_see_the_test_images_as_they_were_tested(lookers: ComparedNetworks) -> None:
    """The networks name on these images what the kept outputs say: so these are the same images, the same view."""
    from scenedistill.data.views import evaluation_view

    assert list(lookers.networks) == ["teacher", "plain", "dkd"]
    part = lookers.part(np.arange(len(lookers.paths)))
    images = part.fetch(range(len(part))).images
    for name, (net, card) in lookers.nets.items():
        with torch.inference_mode():
            logits = net(evaluation_view(images, size=card.image_size)).logits
        assert np.abs(logits.numpy() - lookers.outputs[name].logits).max() < 0.02  # kept in half precision


def test_the_most_different_images_come_first_then_some_drawn(lookers: ComparedNetworks) -> None:
    looks = lookers.side_by_side()
    differing = [lookers.paths[found.position] for found in most_different(lookers.outputs, limit=8)]
    assert [look.path for look in looks if not look.drawn] == differing
    assert sum(look.drawn for look in looks) == DRAWN and len({look.path for look in looks}) == len(looks)
    for look in looks:
        alike = look.maps["dkd"][2]
        assert look.maps["teacher"][2] is None and alike is not None and -1 <= alike <= 1
        assert look.path.split("/")[0] in {"car park", "fields", "forêt", "river"}


def test_agreements_and_maps(lookers: ComparedNetworks) -> None:
    part = lookers.part(lookers.sample(12))
    assert len(part) == 12 and sorted(set(part.labels.tolist())) == [0, 1, 2, 3]
    scores = lookers.agreements(part)
    assert list(scores) == ["plain", "dkd"] and all(values.shape == (12,) for values in scores.values())
    assert lookers.positions() == dict.fromkeys(["teacher", "plain", "dkd"], "1 x 1")
    maps = lookers.embeddings(part)
    assert all(found.places.shape == (12, 2) and 0 <= found.purity <= 1 for found in maps.values())


def test_without_a_teacher_there_are_maps_and_no_agreement(made: Any) -> None:
    focus = choose(Run.open(made.run), ReportConfig())
    groups = {name: group for name, group in focus.groups.items() if name != "teacher"}
    lookers = ComparedNetworks(
        dataclasses.replace(focus, groups=groups).of_one_seed(), made.manifest.parent, torch.device("cpu")
    )
    assert lookers.agreements(lookers.part([0, 1])) == {}
    assert all(score is None for look in lookers.side_by_side() for _, _, score in look.maps.values())


def test_a_given_teacher_of_another_size_looks_at_what_it_was_tested_on(copied: Path, made: Any) -> None:
    weights = copied / "seed0" / "teacher" / "weights.safetensors"
    net, card = load_net(weights)
    save_net(net, dataclasses.replace(card, image_size=48, stored_size=64), weights)
    networks = choose(Run.open(copied), ReportConfig()).of_one_seed()
    lookers = ComparedNetworks(networks, made.manifest.parent, torch.device("cpu"))
    part = lookers.part(lookers.sample(8))
    assert part.fetch(range(1)).images.shape[1:3] == (40, 40)
    assert all(values.shape == (8,) for values in lookers.agreements(part).values())
    assert set(lookers.positions().values()) == {"1 x 1"}
    assert len(lookers.side_by_side()) and list(lookers.embeddings(part)) == ["teacher", "plain", "dkd"]
