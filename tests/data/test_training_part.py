"""What a view adds to the labelled images, against slow loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import build_cache
from scenedistill.data.scenes import scan
from scenedistill.data.training_part import TrainingPart, mixed_view
from scenedistill.data.views import ViewConfig, training_view

VIEWS = ViewConfig()


@pytest.fixture(scope="module")
def images(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> ScenePart:
    cache = build_cache(scan(tiny_scenes), 16, folder=tmp_path_factory.mktemp("cache") / "16", progress=False)
    return ScenePart(cache, np.arange(64))


@pytest.fixture(scope="module")
def labelled(images: ScenePart) -> ScenePart:
    return ScenePart(images.cache, np.arange(0, 64, 4))  # 16 images


@pytest.fixture(scope="module")
def unlabelled(images: ScenePart) -> ScenePart:
    others = ScenePart(images.cache, np.arange(1, 64, 4)[:11])
    others.labels = np.full(11, -1)
    return others


def images_of(ids: np.ndarray) -> list[int]:
    """What tells the images apart, however often one comes in a view."""
    found: list[int] = (ids & (2**40 - 1)).tolist()
    return found


def test_without_unlabelled_images_the_part_is_the_labelled_ones(labelled: ScenePart) -> None:
    part = TrainingPart(labelled)
    assert len(part) == 16 and not part.some_without_label
    batch, expected = part.at(3).fetch([5, 0, 15]), labelled.fetch([5, 0, 15])
    assert torch.equal(batch.images, expected.images) and torch.equal(batch.labels, expected.labels)
    assert batch.partner is None and batch.amount is None


def test_a_view_has_its_share_of_unlabelled_images_behind_the_labelled_ones(
    labelled: ScenePart, unlabelled: ScenePart
) -> None:
    part = TrainingPart(labelled, unlabelled, share=0.2, seed=4)
    assert len(part) == 20 == len(part.at(0))  # four of twenty
    batch = part.at(2).fetch(range(20))
    assert torch.equal(batch.rows, torch.arange(20))
    assert torch.equal(batch.labels[:16], torch.from_numpy(labelled.labels)) and (batch.labels[16:] == -1).all()
    assert torch.equal(batch.ids[:16], torch.from_numpy(labelled.ids))
    of = {int(name): row for row, name in enumerate(unlabelled.ids)}
    for row in (19, 16, 18, 17):
        one = part.at(2).fetch([3, row])  # any order and company
        expected = unlabelled.fetch([of[int(one.ids[1])]]).images[0]
        assert torch.equal(one.images[1], expected) and torch.equal(batch.images[row], expected)


def test_the_unlabelled_images_come_in_turn(labelled: ScenePart, unlabelled: ScenePart) -> None:
    part = TrainingPart(labelled, unlabelled, share=0.2, seed=4)
    seen = [name for number in range(11) for name in images_of(part.at(number).ids[16:])]
    assert len(seen) == 44 and all(seen.count(name) == 4 for name in images_of(unlabelled.ids))
    assert len(set(seen[:8])) == 8, "none comes a second time before all have come once"
    again, other = (TrainingPart(labelled, unlabelled, share=0.2, seed=seed) for seed in (4, 5))
    assert np.array_equal(again.at(7).ids, part.at(7).ids)  # whatever was asked before
    assert any(not np.array_equal(other.at(n).ids, part.at(n).ids) for n in range(3))


def test_few_unlabelled_images_come_several_times_in_a_view(labelled: ScenePart, unlabelled: ScenePart) -> None:
    part = TrainingPart(labelled, unlabelled, share=0.75)
    assert len(part) == 64
    counts = [images_of(part.at(0).ids[16:]).count(name) for name in images_of(unlabelled.ids)]
    assert sum(counts) == 48 and set(counts) == {4, 5}


def test_an_image_that_comes_several_times_in_a_view_is_seen_in_another_way_each_time(
    labelled: ScenePart, unlabelled: ScenePart
) -> None:
    ids = TrainingPart(labelled, unlabelled, share=0.75).at(1).ids.tolist()
    assert len(ids) == len(set(ids)) == 64
    assert set(unlabelled.ids) < set(ids), "one of them as an image that comes once"


def test_mixing_is_a_function_of_the_seed_the_view_and_the_image(labelled: ScenePart, unlabelled: ScenePart) -> None:
    part = TrainingPart(labelled, unlabelled, share=0.5, mixup=0.5, seed=9)
    view = part.at(1)
    whole = view.fetch(range(32))
    assert whole.partner is not None and whole.amount is not None
    mixed = whole.amount < 1
    assert 8 <= int(mixed.sum()) <= 24
    assert ((whole.amount >= 0.5) & (whole.amount <= 1)).all()
    assert (whole.labels[mixed] == -1).all(), "a mixture has no label"
    own = torch.from_numpy(view.labels)[~mixed]
    assert torch.equal(whole.labels[~mixed], own) and (own >= 0).any()
    few = view.fetch([30, 2])
    assert few.partner is not None and few.amount is not None
    assert torch.equal(few.partner.images, whole.partner.images[[30, 2]])
    assert torch.equal(few.amount, whole.amount[[30, 2]])
    other = part.at(2).fetch(range(32))
    assert other.amount is not None and not torch.equal(other.amount, whole.amount)


def test_a_mixed_view_is_the_weighted_sum_of_two_views(labelled: ScenePart) -> None:
    batch = TrainingPart(labelled, mixup=0.7, seed=2).at(5).fetch([1, 4, 7, 9])
    assert batch.partner is not None and batch.amount is not None
    found = mixed_view(batch, seed=2, epoch=5, size=12, config=VIEWS)
    for i in range(4):
        views = [
            training_view(one.images[[i]], one.ids[[i]], seed=2, epoch=5, size=12, config=VIEWS)[0]
            for one in (batch, batch.partner)
        ]
        amount = float(batch.amount[i])
        torch.testing.assert_close(found[i], amount * views[0] + (1 - amount) * views[1])
    plain = mixed_view(replace(batch, partner=None, amount=None), seed=2, epoch=5, size=12, config=VIEWS)
    assert not torch.equal(plain, found)


def test_every_tensor_of_a_batch_moves(labelled: ScenePart) -> None:
    moved = TrainingPart(labelled, mixup=0.7).at(0).fetch([1, 4]).to(torch.device("meta"))
    assert moved.partner is not None and moved.amount is not None
    assert moved.partner.images.device.type == moved.amount.device.type == "meta"


def test_the_content_is_that_of_all_images(labelled: ScenePart, unlabelled: ScenePart) -> None:
    hashes = [
        TrainingPart(labelled).content_hash,
        TrainingPart(labelled, unlabelled).content_hash,
        TrainingPart(unlabelled, labelled).content_hash,
    ]
    assert len(set(hashes)) == 3
