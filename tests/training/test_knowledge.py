"""Kept knowledge against the teacher itself."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scenedistill.core.disk import content_checksum, read_json, write_json
from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import build_cache
from scenedistill.data.scenes import scan
from scenedistill.data.training_part import TrainingPart
from scenedistill.data.views import ViewConfig, evaluation_view, training_view
from scenedistill.models.create import build_student
from scenedistill.models.files import NetCard, save_net
from scenedistill.models.network import SceneNet
from scenedistill.training.teacher_outputs import knowledge as rooms
from scenedistill.training.teacher_outputs.knowledge import Knowledge
from scenedistill.training.teacher_outputs.teachers import Teachers

CPU = torch.device("cpu")
WORKER = Path(__file__).with_name("knowledge_worker.py")
VIEWS = ViewConfig()


@pytest.fixture(scope="module")
def teacher(all_images: ScenePart) -> SceneNet:
    torch.manual_seed(7)
    net = build_student("table1_printed", 4, image_size=32)
    with torch.no_grad():
        for batch in all_images.batches(32):
            net(batch.images.permute(0, 3, 1, 2) / 255)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def many_images(all_images: ScenePart) -> ScenePart:
    """More than the teacher is asked about at a time, and the last batch is smaller."""
    assert 250 % rooms.BATCH and rooms.BATCH < 250
    return ScenePart(all_images.cache, np.resize(np.arange(64), 250))


def knowing(
    teacher: SceneNet, part: ScenePart | TrainingPart, views: int, root: Path | None = None, **changes: Any
) -> Knowledge:
    others = changes.pop("others", [])
    run = {name: changes.pop(name) for name in ("precision", "image_size", "symmetries") if name in changes}
    teachers = Teachers([teacher, *others], **{"precision": "fp32", "image_size": 32, **run})
    return Knowledge(teachers, part, views=views, **{"config": VIEWS, "seed": 5, "root": root, **changes})


def test_epochs_cycle_through_the_views(teacher: SceneNet, all_images: ScenePart) -> None:
    assert [knowing(teacher, all_images, 3).view_number(epoch) for epoch in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [knowing(teacher, all_images, 0).view_number(epoch) for epoch in range(4)] == [0, 1, 2, 3]


def test_stored_knowledge_equals_the_teachers_outputs_for_those_views(
    teacher: SceneNet, many_images: ScenePart, tmp_path: Path
) -> None:
    kept = knowing(teacher, many_images, 2, tmp_path)
    batch = many_images.fetch([63, 0, 117, 240])
    for epoch in (0, 1, 3, 2):
        kept.open(epoch, CPU)
        view = training_view(batch.images, batch.ids, seed=5, epoch=epoch % 2, size=32, config=VIEWS)
        found, expected = kept.of(batch, epoch), teacher(view)
        assert torch.allclose(found.logits.float(), expected.logits, rtol=1e-3, atol=1e-3)
        assert torch.allclose(found.embedding.float(), expected.embedding, rtol=1e-3, atol=1e-3)
        assert found.logits.dtype == torch.float16
        for ours, theirs in zip(found.attention, expected.attention, strict=True):
            for name in ("channel", "spatial", "descriptor"):
                assert torch.allclose(getattr(ours, name).float(), getattr(theirs, name), rtol=1e-3, atol=1e-3), name
            assert torch.allclose(ours.energy.float(), theirs.energy, rtol=1e-2, atol=1e-4)  # bfloat16: 8 bits
    assert kept.store is not None and kept.store.kept() == {0, 1}


def test_feature_maps_are_the_teachers_own_and_never_stored(
    teacher: SceneNet, all_images: ScenePart, tmp_path: Path
) -> None:
    asked, batch = knowing(teacher, all_images, 0), all_images.fetch([63, 0, 17])
    view = training_view(batch.images, batch.ids, seed=5, epoch=1, size=32, config=VIEWS)
    found, expected = asked.of(batch, 1, features=True), teacher(view, features=True)
    assert asked.of(batch, 1).features == () and len(found.features) == 4
    for ours, theirs in zip(found.features, expected.features, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="not among the kept outputs for 2 views"):
        knowing(teacher, all_images, 2, tmp_path).of(batch, 0, features=True)


def files(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(root)): (p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}


def said(kept: Knowledge, part: ScenePart, epoch: int) -> np.ndarray:
    kept.open(epoch, CPU)
    return kept.of(part.fetch([5, 1]), epoch).logits.numpy()


def test_a_later_run_reads_the_stored_outputs_and_does_not_run_the_teacher(
    teacher: SceneNet, all_images: ScenePart, tmp_path: Path
) -> None:
    first = knowing(teacher, all_images, 2, tmp_path)
    answers, statistics = [said(first, all_images, epoch) for epoch in range(2)], first.statistics(CPU)
    before = files(tmp_path)
    again = knowing(teacher, all_images, 3, tmp_path)  # another K cycles otherwise through the same views
    assert [np.array_equal(said(again, all_images, epoch), answers[epoch]) for epoch in range(2)] == [True, True]
    for ours, theirs in zip(again.statistics(CPU)[0], statistics[0], strict=True):
        pairs = zip(cast(Iterable[Tensor], ours), cast(Iterable[Tensor], theirs), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert again.statistics(CPU)[1] == statistics[1]
    assert not again.teachers.used, "the teacher was asked"
    assert files(tmp_path) == before
    said(again, all_images, 2)
    assert len(files(tmp_path)) == len(before) + 1


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "no array"])
def test_damaged_knowledge_is_computed_again(
    teacher: SceneNet, all_images: ScenePart, tmp_path: Path, damage: str
) -> None:
    answers = said(knowing(teacher, all_images, 1, tmp_path), all_images, 0)
    (file,) = tmp_path.glob("*/view-00000-*.npy")
    content = bytearray(file.read_bytes())
    if damage == "flipped bit":
        content[len(content) // 2] ^= 1
    file.write_bytes(b"nonsense" if damage == "no array" else content[:-1] if damage == "cut" else content)
    again = knowing(teacher, all_images, 1, tmp_path)
    assert np.array_equal(said(again, all_images, 0), answers)
    assert again.teachers.used
    (mended,) = tmp_path.glob("*/view-00000-*.npy")
    assert mended.name == file.name and len(mended.read_bytes()) == len(content)


def test_damaged_statistics_are_made_again(teacher: SceneNet, all_images: ScenePart, tmp_path: Path) -> None:
    _, oa = knowing(teacher, all_images, 1, tmp_path).statistics(CPU)
    (file,) = tmp_path.glob("*/statistics.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    assert knowing(teacher, all_images, 1, tmp_path).statistics(CPU)[1] == oa


def relayered(teacher: SceneNet) -> SceneNet:
    """The same weights in other layers, as of timm's `efficientnet_lite0` and `tf_efficientnet_lite0`."""
    other = copy.deepcopy(teacher)
    first = next(module for module in other.modules() if isinstance(module, nn.Conv2d))
    first.padding_mode = "circular"
    return other


def renormalised(teacher: SceneNet) -> SceneNet:
    """The same weights, for images normalised otherwise."""
    other = copy.deepcopy(teacher)
    other.mean += 0.1  # not among its saved tensors
    return other


def test_every_setting_that_changes_the_outputs_has_its_own_folder(
    teacher: SceneNet, all_images: ScenePart, tmp_path: Path
) -> None:
    other = build_student("table1_printed", 4, image_size=32)
    fewer = ScenePart(all_images.cache, all_images.positions[:-1])
    turned = ScenePart(all_images.cache, all_images.positions[::-1].copy())
    stores = [
        knowing(teacher, all_images, 2, tmp_path),
        knowing(other, all_images, 2, tmp_path),
        knowing(relayered(teacher), all_images, 2, tmp_path),
        knowing(renormalised(teacher), all_images, 2, tmp_path),
        knowing(teacher, fewer, 2, tmp_path),
        knowing(teacher, turned, 2, tmp_path),
        knowing(teacher, all_images, 2, tmp_path, seed=6),
        knowing(teacher, all_images, 2, tmp_path, image_size=24),
        knowing(teacher, all_images, 2, tmp_path, precision="bf16"),
        knowing(teacher, all_images, 2, tmp_path, config=ViewConfig(turns=False)),
    ]
    assert len({kept.store.folder for kept in stores if kept.store}) == len(stores)
    same = knowing(teacher, all_images, 9, tmp_path, about={"data": "renamed"})
    assert same.store and stores[0].store and same.store.folder == stores[0].store.folder


def test_outputs_differ_between_views(teacher: SceneNet, all_images: ScenePart, tmp_path: Path) -> None:
    kept = knowing(teacher, all_images, 2, tmp_path)
    batch = all_images.fetch([3])
    said = []
    for epoch in range(2):
        kept.open(epoch, CPU)
        said.append(kept.of(batch, epoch).logits)
    assert not torch.allclose(said[0], said[1])


def test_without_stored_views_the_output_is_the_teachers_own(teacher: SceneNet, all_images: ScenePart) -> None:
    asked = knowing(teacher, all_images, 0)
    asked.open(4, CPU)
    view = torch.rand(3, 3, 32, 32)
    found = asked.of(all_images.fetch([1, 2, 3]), 4, view)
    assert torch.allclose(found.logits, teacher(view).logits, atol=1e-5)
    assert not found.logits.requires_grad
    assert asked.store is None and asked.need(100) == ""


def test_statistics_are_those_of_all_evaluation_views(teacher: SceneNet, many_images: ScenePart) -> None:
    knowledge = knowing(teacher, many_images, 0)
    assert knowledge.teacher_statistics is None
    found, oa = knowledge.statistics(CPU)
    assert knowledge.teacher_statistics is found
    whole = many_images.fetch(list(range(250)))
    expected = teacher(evaluation_view(whole.images, size=32))
    assert oa == float((expected.logits.argmax(1) == whole.labels).double().mean())
    assert torch.allclose(found.embedding_mean, expected.embedding.mean(0), atol=1e-5)
    for mean, std, stage in zip(found.descriptor_mean, found.descriptor_std, expected.attention, strict=True):
        assert torch.allclose(mean, stage.descriptor.mean(0), atol=1e-5)
        assert torch.allclose(std, stage.descriptor.std(0), atol=1e-5)


def test_statistics_of_one_image_have_deviation_one(teacher: SceneNet, all_images: ScenePart) -> None:
    one = ScenePart(all_images.cache, all_images.positions[:1])
    for std in knowing(teacher, one, 0).statistics(CPU)[0].descriptor_std:
        assert torch.equal(std, torch.ones_like(std))


@pytest.mark.slow
def test_two_processes_divide_the_images_and_get_the_outputs_of_one(
    teacher: SceneNet, tiny_scenes: Path, commands: Any, tmp_path: Path
) -> None:
    card = NetCard("table1_printed", ("a", "b", "c", "d"), 3, 32)
    save_net(teacher, card, tmp_path / "teacher.safetensors")
    for world in (1, 2):
        with contextlib.ExitStack() as running:
            workers = [
                running.enter_context(commands.start(rank, world, tiny_scenes, tmp_path, script=WORKER))
                for rank in range(world)
            ]
            assert not any(worker.wait().code for worker in workers), "".join(worker.err() for worker in workers)
    alone, *shared = (torch.load(tmp_path / f"rows{name}.pt") for name in ("1-0", "2-0", "2-1"))
    packing = knowing(teacher, ScenePart(build_cache(scan(tiny_scenes), 32, folder=tmp_path / "cache0"),
                                         np.arange(63)), 2, tmp_path).packing  # fmt: skip
    for rows in shared:
        assert torch.equal(rows, shared[0])
        assert torch.allclose(packing.unpack(rows).logits, packing.unpack(alone).logits, rtol=1e-2, atol=1e-3)
    assert len(list((tmp_path / "store2").glob("*/view-*.npy"))) == 2


def test_stored_outputs_of_mixed_and_unlabelled_views_equal_the_teachers(
    teacher: SceneNet, all_images: ScenePart, tmp_path: Path
) -> None:
    labelled, others = (ScenePart(all_images.cache, np.arange(first, 64, 4)) for first in (0, 1))
    part = TrainingPart(labelled, others, share=0.5, mixup=0.6, seed=5)
    kept, asked = (knowing(teacher, part, views, tmp_path, image_size=24) for views in (2, 0))
    for epoch in (1, 2):
        kept.open(epoch, CPU)
        batch = part.at(epoch % 2).fetch(range(32))
        assert batch.partner is not None and batch.amount is not None and (batch.amount < 1).any()
        views = [
            training_view(one.images, one.ids, seed=5, epoch=epoch % 2, size=24, config=VIEWS)
            for one in (batch, batch.partner)
        ]
        expected = teacher(torch.lerp(views[1], views[0], batch.amount[:, None, None, None]))
        found = kept.of(batch, epoch)
        assert torch.allclose(found.logits.float(), expected.logits, rtol=1e-3, atol=1e-3)
        assert torch.allclose(asked.of(batch, epoch % 2).logits, expected.logits, rtol=1e-3, atol=1e-3)
        assert found.attention[0].energy.shape[-1] == 6, "of the finer view"


def test_how_the_teacher_runs_is_part_of_the_stored_settings(
    teacher: SceneNet, all_images: ScenePart, tmp_path: Path
) -> None:
    stores = [
        knowing(teacher, all_images, 2, tmp_path),
        knowing(teacher, all_images, 2, tmp_path, image_size=40),
        knowing(teacher, all_images, 2, tmp_path, symmetries=True),
        knowing(teacher, all_images, 2, tmp_path, others=[teacher]),
        knowing(teacher, TrainingPart(all_images, mixup=0.5), 2, tmp_path),
        knowing(teacher, TrainingPart(all_images, all_images, share=0.5), 2, tmp_path),
        knowing(teacher, TrainingPart(all_images, all_images, share=0.2), 2, tmp_path),
    ]
    assert len({kept.store.folder for kept in stores if kept.store}) == len(stores)
    plain = knowing(teacher, TrainingPart(all_images), 2, tmp_path)
    assert plain.store and stores[0].store and plain.store.folder == stores[0].store.folder


@pytest.mark.parametrize("images", [True, False], ids=["by their pixels", "by their checksums"])
def test_outputs_that_an_earlier_version_stored_are_read(
    images: bool, teacher: SceneNet, all_images: ScenePart, tmp_path: Path
) -> None:
    kept = knowing(teacher, all_images, 2, tmp_path)
    answers = said(kept, all_images, 1)
    assert kept.store is not None
    about = read_json(kept.store.folder / "about.json")
    settings = {name: value for name, value in about["settings"].items() if name != "layers"}
    if images:  # as the earliest versions named them
        del settings["content"]
        settings["images"] = all_images.pixel_hash()
    earlier = kept.store.folder.rename(tmp_path / content_checksum(settings))
    write_json(earlier / "about.json", {**about, "settings": settings}, checksum=True)
    again = knowing(teacher, all_images, 2, tmp_path)
    assert again.store is not None and again.store.folder == earlier
    assert np.array_equal(said(again, all_images, 1), answers) and not again.teachers.used
    part = ScenePart(all_images.cache, all_images.positions[1:])
    other = knowing(teacher, part, 2, tmp_path)
    assert other.store is not None and other.store.folder != earlier
