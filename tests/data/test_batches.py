"""Batches are the same whichever way they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from scenedistill.data.batches import AHEAD, SceneBatch, SceneBatches, ScenePart
from scenedistill.data.cache.build import build_cache
from scenedistill.data.scenes import scan
from scenedistill.data.training_part import TrainingPart

CPU = torch.device("cpu")
ORDER = [[3, 0, 40], [63, 1, 2], [5, 9], [8, 7, 6], [10, 11, 12], [13, 14, 15]]


@pytest.fixture(scope="module")
def part(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> ScenePart:
    cache = build_cache(scan(tiny_scenes), 16, folder=tmp_path_factory.mktemp("cache") / "16", progress=False)
    return ScenePart(cache, np.arange(64)[::-1].copy())


def equal(ours: SceneBatch, theirs: SceneBatch) -> bool:
    return all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in ("images", "labels", "ids", "rows"))


def ways(part: ScenePart) -> dict[str, Iterator[SceneBatch]]:
    batches = SceneBatches(part, ORDER, CPU)
    return {
        "from the cache": iter(batches),
        "from the device": batches._from_device(part),
        "ahead": batches._ahead(part),
    }


@pytest.mark.parametrize("way", ["from the cache", "from the device", "ahead"])
def test_every_way_gives_the_same_batches(part: ScenePart, way: str) -> None:
    found = list(ways(part)[way])
    assert len(found) == len(ORDER)
    assert all(equal(batch, part.fetch(rows)) for batch, rows in zip(found, ORDER, strict=True))
    assert not equal(found[0], part.fetch(ORDER[1]))


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_a_part_is_copied_to_a_device_in_pieces(part: ScenePart, mixup: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenedistill.data.batches._PIECE", 24)
    view, asked = TrainingPart(part, mixup=mixup).at(0), []

    class Watched:
        image_bytes = view.image_bytes

        def fetch(self, rows: Sequence[int]) -> SceneBatch:
            asked.append(len(rows))
            return view.fetch(rows)

        def __len__(self) -> int:
            return len(view)

    found, expected = SceneBatches(Watched(), ORDER, CPU)._copied(Watched()), view.fetch(range(64))
    assert asked == [24, 24, 16] and equal(found, expected)
    if mixup:
        assert found.partner is not None and expected.partner is not None and equal(found.partner, expected.partner)
        assert found.amount is not None and expected.amount is not None and torch.equal(found.amount, expected.amount)


def test_a_part_without_additions_stays_on_the_device_for_all_views(part: ScenePart) -> None:
    plain, mixed = TrainingPart(part), TrainingPart(part, mixup=0.5)
    assert plain.at(0) is plain.at(7) and mixed.at(0) is not mixed.at(7)


def test_a_consumer_that_stops_early_leaves_no_thread(part: ScenePart) -> None:
    before = threading.active_count()
    source = SceneBatches(part, ORDER, CPU)._ahead(part)
    assert isinstance(source, Generator)
    next(source)
    assert threading.active_count() == before + 1, f"the thread waits: {AHEAD} of {len(ORDER)} batches are ready"
    source.close()
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_an_error_while_prefetching_is_raised_at_its_batch(part: ScenePart) -> None:
    source = SceneBatches(part, [[0], [99]], CPU)._ahead(part)
    assert next(source).rows.tolist() == [0]
    with pytest.raises(IndexError):
        next(source)


def test_waiting_is_counted(part: ScenePart) -> None:
    class Slow:
        def __iter__(self) -> Iterator[list[int]]:
            for rows in ORDER:
                time.sleep(0.01)
                yield rows

        def __len__(self) -> int:
            return len(ORDER)

    batches = SceneBatches(part, Slow(), CPU)
    for _ in batches:
        time.sleep(0.02)  # the step's own time does not count
    assert 0.01 * len(ORDER) <= batches.waited < 0.02 * len(ORDER)
    assert len(batches) == len(ORDER)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("share", [0.25, 0.0])
def test_a_gpu_gets_the_same_batches(part: ScenePart, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenedistill.data.batches.RESIDENT_SHARE", share)
    found = list(SceneBatches(part, ORDER, torch.device("cuda")))
    assert all(batch.images.device.type == "cuda" for batch in found)
    assert all(equal(batch.to(CPU), part.fetch(rows)) for batch, rows in zip(found, ORDER, strict=True))
