"""Which images make up a step: every one once an epoch, P x K on demand, and the same for any number of processes."""

from __future__ import annotations

import shutil
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scenedistill.core.disk import read_json, write_json
from scenedistill.core.errors import UserError
from scenedistill.data.batches import SceneBatch, ScenePart
from scenedistill.data.cache.build import SceneCache, build_cache
from scenedistill.data.images.read import read_scene
from scenedistill.data.module import EpochBatches, SceneDataModule
from scenedistill.data.names import image_id
from scenedistill.data.scenes import scan
from scenedistill.data.splits.draw import Split, make_split

LABELS = np.array([0] * 13 + [1] * 9 + [3] * 22 + [4] * 3)  # no class 2; counts that K does not divide


@pytest.fixture(scope="module")
def cache(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> SceneCache:
    return build_cache(scan(tiny_scenes), 24, folder=tmp_path_factory.mktemp("cache"), progress=False)


@pytest.fixture(scope="module")
def split(cache: SceneCache) -> Split:
    return make_split(cache.index, 0.5, seed=0, val_fraction=0.25)


# --- a part ---


def test_a_batch_is_what_the_paths_say(cache: SceneCache, split: Split) -> None:
    part = ScenePart(cache, split.train)
    assert len(part) == len(split.train)
    rows = [5, 0, 17]
    batch = part.fetch(rows)
    assert len(batch) == 3
    for image, label, name, row, asked in zip(batch.images, batch.labels, batch.ids, batch.rows, rows, strict=True):
        position = split.train[asked]
        path = cache.index.paths[position]
        assert row == asked and name == image_id(path)
        assert cache.index.classes[label] == Path(path).parts[0]
        np.testing.assert_array_equal(image.numpy(), read_scene(cache.index.root / path, 24, 3))
    assert (batch.images.dtype, batch.labels.dtype, batch.ids.dtype) == (torch.uint8, torch.int64, torch.int64)
    batch.images.zero_()  # the batch is its own: the cache stays
    assert cache.images[split.train[5]].any()


def test_batches_of_a_part_are_in_order_and_complete(cache: SceneCache, split: Split) -> None:
    part = ScenePart(cache, split.test)
    sizes = [len(batch) for batch in part.batches(10)]
    assert sum(sizes) == len(part) and set(sizes[:-1]) == {10} and 0 < sizes[-1] <= 10
    assert torch.equal(torch.cat([batch.rows for batch in part.batches(10)]), torch.arange(len(part)))
    assert torch.equal(part.fetch([7, 3]).images[1], part.fetch([3]).images[0])


def test_an_id_names_an_image_by_its_path_alone(cache: SceneCache, split: Split) -> None:
    assert image_id("Flughafen/été 1.png") == 2974072579897539028
    assert image_id(unicodedata.normalize("NFD", "Flughafen/été 1.png")) == 2974072579897539028, "copied from a Mac"
    ids = {path: image_id(path) for path in cache.index.paths}
    assert len(set(ids.values())) == len(ids) and all(0 <= name < 2**63 for name in ids.values())
    whole, part = ScenePart(cache, np.arange(len(cache.index))), ScenePart(cache, split.val)
    np.testing.assert_array_equal(part.ids, whole.ids[split.val])


def test_the_content_of_a_part_is_known_without_its_pixels(tiny_scenes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny_scenes, tmp_path / "scenes"))

    def content(folder: str) -> str:
        cache = build_cache(scan(data), 24, folder=tmp_path / folder, progress=False)
        return ScenePart(cache, np.arange(3, 40)).content_hash()

    before = content("cache")
    np.load(next((tmp_path / "cache").glob("images-*.npy")), mmap_mode="r+")[:] = 0
    assert content("cache") == before
    assert content("another") == before
    path = tmp_path / "another" / "manifest.json"  # as versions without checksums wrote it
    write_json(path, {name: value for name, value in read_json(path).items() if name != "crc32"}, checksum=True)
    assert content("another") == before
    Image.new("RGB", (48, 48)).save(data / scan(data).paths[7])
    assert content("another") != before


def test_a_batch_is_moved_to_a_device_completely(cache: SceneCache, split: Split) -> None:
    batch = ScenePart(cache, split.train).fetch([0, 1])
    moved = batch.to(torch.device("meta"))
    assert {moved.images.device.type, moved.labels.device.type, moved.ids.device.type} == {"meta"}
    assert {batch.images.device.type, batch.rows.device.type} == {"cpu"}


# --- the order of an epoch ---


def test_an_epoch_covers_every_image_once() -> None:
    order = EpochBatches(LABELS, 8, seed=0).order(0)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(LABELS)))
    batches = list(EpochBatches(LABELS, 8, seed=0))
    assert len(batches) == len(EpochBatches(LABELS, 8, seed=0)) == 47 // 8
    np.testing.assert_array_equal(np.concatenate(batches), order[:40])


def test_the_rest_left_out_is_another_one_every_epoch() -> None:
    epochs = EpochBatches(LABELS, 8, seed=0)
    seen: Counter[int] = Counter()
    for epoch in range(40):
        epochs.set_epoch(epoch)
        seen.update(row for batch in epochs for row in batch)
    assert len(seen) == len(LABELS) and min(seen.values()) > 25


@pytest.mark.parametrize("images_per_class", [0, 4])
def test_the_order_is_a_pure_function_of_seed_and_epoch(images_per_class: int) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        rows: list[int] = EpochBatches(LABELS, 8, seed, images_per_class=images_per_class).order(epoch).tolist()
        return rows

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1, -1, 2**63) for epoch in (0, 1, 2)}) == 12


@pytest.mark.parametrize(("batch_size", "images_per_class"), [(8, 2), (12, 4), (6, 3)])
def test_batches_of_classes_by_images(batch_size: int, images_per_class: int) -> None:
    epochs = EpochBatches(LABELS, batch_size, seed=0, images_per_class=images_per_class)
    for epoch in range(3):
        epochs.set_epoch(epoch)
        rows = np.concatenate(list(epochs))
        assert len(rows) == len(epochs) * batch_size
        large = rows[np.bincount(LABELS)[LABELS[rows]] >= images_per_class]
        assert len(set(large.tolist())) == len(large), "none twice but in a class that has too few"
        groups = LABELS[rows].reshape(-1, images_per_class)
        assert (groups == groups[:, :1]).all()
        counts = np.unique(LABELS, return_counts=True)[1]
        usable = sum(max(count // images_per_class, 1) * images_per_class for count in counts)
        assert len(epochs) == usable // batch_size
    seen = {row for epoch in range(30) for row in epochs.order(epoch).tolist()}
    assert seen == set(range(len(LABELS)))


def test_a_class_of_few_images_is_in_every_epoch() -> None:
    labels = np.array([0] * 20 + [1] * 3)
    epochs = EpochBatches(labels, 24, seed=0, images_per_class=4)
    (batch,) = epochs
    assert sorted(labels[batch]) == [0] * 20 + [1] * 4 and set(batch) == set(range(23))
    with pytest.raises(UserError, match=r"lower --teacher\.images_per_class"):
        EpochBatches(labels[17:20], 24, seed=0, images_per_class=4)


@pytest.mark.parametrize("images_per_class", [0, 2])
@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_all_processes_are_the_batches_of_one(world: int, images_per_class: int) -> None:
    one = EpochBatches(LABELS, 8, seed=3, images_per_class=images_per_class)
    several = [
        EpochBatches(LABELS, 8, seed=3, images_per_class=images_per_class, rank=rank, world=world)
        for rank in range(world)
    ]
    for epoch in range(2):
        for epochs in (one, *several):
            epochs.set_epoch(epoch)
        together = [[row for share in shares for row in share] for shares in zip(*several, strict=True)]
        assert together == list(one)
        assert all(len(shares) == 8 // world for epochs in several for shares in epochs)


def test_a_small_data_set_makes_one_smaller_batch() -> None:
    assert [len(batch) for batch in EpochBatches(LABELS[:5], 64, seed=0)] == [5]
    assert [len(batch) for batch in EpochBatches(LABELS[:5], 64, seed=0, rank=1, world=2)] == [2]
    assert [len(batch) for batch in EpochBatches(LABELS[:5], 64, seed=0, images_per_class=2)] == [4]


def test_what_cannot_be_batched_is_refused() -> None:
    with pytest.raises(UserError, match="batch of 9 images cannot be shared evenly by 2 devices"):
        EpochBatches(LABELS, 9, seed=0, world=2)
    with pytest.raises(UserError, match="batch of 8 images cannot be made of 30 images a class"):
        EpochBatches(LABELS, 8, seed=0, images_per_class=30)
    with pytest.raises(UserError, match=r"Too few training images \(47\) for 1 device and 30 images of a class"):
        EpochBatches(LABELS, 30, seed=0, images_per_class=30)
    with pytest.raises(UserError, match=r"Too few training images \(1\) for 2 devices and 1 image of a class"):
        EpochBatches(LABELS[:1], 8, seed=0, world=2)


# --- under Lightning's Trainer ---


class Watching(L.LightningModule):
    """Writes down which rows it is given, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: dict[int, list[list[int]]] = {}
        self.validated: dict[int, list[int]] = {}

    def transfer_batch_to_device(self, batch: SceneBatch, device: torch.device, dataloader_idx: int) -> SceneBatch:
        return batch.to(device)

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        self.trained.setdefault(self.current_epoch, []).append(batch.rows.tolist())
        return self.weight * 0

    def validation_step(self, batch: SceneBatch, batch_idx: int) -> None:
        self.validated.setdefault(self.current_epoch, []).extend(batch.rows.tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(cache: SceneCache, split: Split, **settings: Any) -> Watching:
    module = Watching()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, SceneDataModule(cache, split, batch_size=8, seed=3, **settings))
    return module


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_goes_through_the_orders_of_its_epochs(cache: SceneCache, split: Split) -> None:
    module = trained(cache, split, images_per_class=2)
    expected = EpochBatches(ScenePart(cache, split.train).labels, 8, 3, images_per_class=2)
    for epoch in range(3):
        expected.set_epoch(epoch)
        assert module.trained[epoch] == list(expected)
        assert sorted(module.validated[epoch]) == list(range(len(split.val)))
    assert module.trained[0] != module.trained[1] != module.trained[2]


@pytest.mark.filterwarnings("ignore")
def test_a_split_without_validation_is_not_validated(cache: SceneCache) -> None:
    module = trained(cache, make_split(cache.index, 0.5, seed=0))
    assert len(module.trained) == 3 and not module.validated
