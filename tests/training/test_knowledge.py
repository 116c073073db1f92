"""Kept knowledge against the teacher itself."""

from __future__ import annotations

import pytest
import torch

from scenedistill.data.module import ScenePart
from scenedistill.data.views import ViewConfig, evaluation_view, training_view
from scenedistill.models.network import SceneNet
from scenedistill.models.student import build_student
from scenedistill.training import knowledge as rooms
from scenedistill.training.knowledge import Knowledge

CPU = torch.device("cpu")
VIEWS = ViewConfig()


@pytest.fixture(scope="module")
def teacher(all_images: ScenePart) -> SceneNet:
    torch.manual_seed(7)
    net = build_student("table1_printed", 4, image_size=32)
    with torch.no_grad():
        for batch in all_images.batches(32):
            net(batch.images.permute(0, 3, 1, 2) / 255)
    return net.eval().requires_grad_(False)


def knowing(teacher: SceneNet, part: ScenePart, views: int, precision: str = "fp32") -> Knowledge:
    return Knowledge(teacher, part, views=views, config=VIEWS, image_size=32, seed=5, precision=precision)


def test_epochs_cycle_through_the_views(teacher: SceneNet, all_images: ScenePart) -> None:
    assert [knowing(teacher, all_images, 3).view_number(epoch) for epoch in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [knowing(teacher, all_images, 0).view_number(epoch) for epoch in range(4)] == [0, 1, 2, 3]


def test_kept_knowledge_is_what_the_teacher_says_of_those_views(
    teacher: SceneNet, all_images: ScenePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "BATCH", 24)  # the last of three batches is smaller
    kept = knowing(teacher, all_images, 2)
    batch = all_images.__getitems__([63, 0, 17, 40])
    for epoch in (0, 1, 3, 2):
        kept.open(epoch, CPU)
        view = training_view(batch.images, batch.ids, seed=5, epoch=epoch % 2, size=32, config=VIEWS)
        found, expected = kept.of(batch, view), teacher(view)
        assert torch.allclose(found.logits.float(), expected.logits, rtol=1e-3, atol=1e-3)
        assert torch.allclose(found.embedding.float(), expected.embedding, rtol=1e-3, atol=1e-3)
        assert found.logits.dtype == torch.float16
        for ours, theirs in zip(found.attention, expected.attention, strict=True):
            for name in ("channel", "spatial", "descriptor"):
                assert torch.allclose(getattr(ours, name).float(), getattr(theirs, name), rtol=1e-3, atol=1e-3), name
            assert torch.allclose(ours.energy.float(), theirs.energy, rtol=1e-2, atol=1e-4)  # bfloat16: 8 bits
    assert len(kept._kept) == 2, "each view was asked for once"


def test_another_view_says_something_else(teacher: SceneNet, all_images: ScenePart) -> None:
    kept = knowing(teacher, all_images, 2)
    batch = all_images.__getitems__([3])
    said = []
    for epoch in range(2):
        kept.open(epoch, CPU)
        said.append(kept.of(batch, torch.empty(0)).logits)
    assert not torch.allclose(said[0], said[1])


def test_energies_beyond_float16_stay_finite(teacher: SceneNet, all_images: ScenePart) -> None:
    output = teacher(torch.rand(2, 3, 32, 32))
    large = output._replace(attention=tuple(s._replace(energy=s.energy + 1e6) for s in output.attention))
    for stage in rooms._compact(large).attention:
        assert torch.isfinite(stage.energy).all()
        assert torch.allclose(stage.energy.float(), torch.tensor(1e6), rtol=1e-2)


def test_asked_anew_the_answer_is_the_teachers_own(teacher: SceneNet, all_images: ScenePart) -> None:
    asked = knowing(teacher, all_images, 0)
    asked.open(4, CPU)
    view = torch.rand(3, 3, 32, 32)
    found = asked.of(all_images.__getitems__([1, 2, 3]), view)
    assert torch.equal(found.logits, teacher(view).logits)
    assert not found.logits.requires_grad
    assert not asked._kept


def test_statistics_are_those_of_all_evaluation_views(
    teacher: SceneNet, all_images: ScenePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "BATCH", 24)
    found = knowing(teacher, all_images, 0).statistics(CPU)
    whole = all_images.__getitems__(list(range(64)))
    expected = teacher(evaluation_view(whole.images, size=32))
    assert torch.allclose(found.embedding_mean, expected.embedding.mean(0), atol=1e-5)
    for mean, std, stage in zip(found.descriptor_mean, found.descriptor_std, expected.attention, strict=True):
        assert torch.allclose(mean, stage.descriptor.mean(0), atol=1e-5)
        assert torch.allclose(std, stage.descriptor.std(0), atol=1e-5)


def test_statistics_of_one_image_divide_by_nothing(teacher: SceneNet, all_images: ScenePart) -> None:
    one = ScenePart(all_images.cache, all_images.positions[:1])
    for std in knowing(teacher, one, 0).statistics(CPU).descriptor_std:
        assert torch.equal(std, torch.ones_like(std))
