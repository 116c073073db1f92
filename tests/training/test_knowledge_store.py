"""Answers packed into rows, and the files they lie in."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scenedistill.core.disk import read_json
from scenedistill.core.errors import UserError
from scenedistill.losses.base import TeacherStatistics
from scenedistill.models.output import SceneOutput, StageAttention
from scenedistill.training.teacher_outputs.store import SPARE_BYTES, KnowledgeStore, Packing, size_text


def answers(count: int, scale: float = 1.0) -> SceneOutput:
    """A batch's output with two stages."""
    draw = torch.Generator().manual_seed(count)

    def some(*shape: int) -> torch.Tensor:
        return scale * torch.randn(count, *shape, generator=draw)

    stages = [StageAttention(some(c), some(1, s, s), some(s, s).square(), some(c)) for c, s in ((3, 4), (5, 2))]
    return SceneOutput(some(7), some(6), tuple(stages))


def test_a_row_has_two_bytes_for_each_number() -> None:
    packing = Packing.of(answers(4))
    numbers = 7 + 6 + (3 + 16 + 16 + 3) + (5 + 4 + 4 + 5)
    assert packing.row_bytes == 2 * numbers
    rows = packing.pack(answers(4))
    assert rows.shape == (4, 2 * numbers) and rows.dtype == torch.uint8


def test_unpacking_gives_what_was_packed_within_the_precision_of_its_type() -> None:
    output = answers(9)
    packing = Packing.of(output)
    found = packing.unpack(packing.pack(output)[[8, 0, 3]])
    expected = output.map(lambda tensor: tensor[[8, 0, 3]])
    assert torch.equal(found.logits, expected.logits.half())
    assert torch.equal(found.embedding, expected.embedding.half())
    for ours, theirs in zip(found.attention, expected.attention, strict=True):
        assert torch.equal(ours.channel, theirs.channel.half()) and torch.equal(ours.spatial, theirs.spatial.half())
        assert torch.equal(ours.descriptor, theirs.descriptor.half())
        assert torch.equal(ours.energy, theirs.energy.bfloat16())


def test_numbers_beyond_float16_stay_finite() -> None:
    output = answers(2, scale=1e5)
    packing = Packing.of(output)
    found = packing.unpack(packing.pack(output))
    assert all(torch.isfinite(leaf).all() for leaf in torch.utils._pytree.tree_leaves(found))
    assert found.logits.abs().max() == 65504
    assert torch.allclose(found.attention[0].energy.float(), output.attention[0].energy, rtol=1e-2)  # near 1e10


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system lets no file of this process grow beyond a number of bytes."""
    resource = pytest.importorskip("resource", reason="this system has no such limits")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_view_is_read_back_and_a_partly_written_one_is_not_there(tmp_path: Path) -> None:
    output = answers(5)
    packing = Packing.of(output)
    store = KnowledgeStore(tmp_path, {"seed": 1}, 5)
    assert store.read(0, packing) is None and store.kept() == set()
    rows = packing.pack(output)
    store.write(3, rows)
    assert store.kept() == {3}
    found = store.read(3, packing)
    assert found is not None and torch.equal(found, rows)

    with files_of_at_most(len(rows) * packing.row_bytes // 2), pytest.raises(OSError):
        store.write(4, rows)
    assert store.kept() == {3} and not list(store.folder.glob("*.part"))


def test_outputs_for_another_number_of_images_are_not_used(tmp_path: Path) -> None:
    packing = Packing.of(answers(5))
    KnowledgeStore(tmp_path, {"seed": 1}, 5).write(0, packing.pack(answers(5)))
    assert KnowledgeStore(tmp_path, {"seed": 1}, 6).read(0, packing) is None


def test_the_space_needed_is_reported_and_compared_with_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing = Packing.of(answers(5))
    store = KnowledgeStore(tmp_path, {"seed": 1}, 5)
    store.write(0, packing.pack(answers(5)))
    assert store.need(4, packing) == (
        f"knowledge of 4 views x 5 images: {size_text(4 * 5 * packing.row_bytes)}, 1 of them kept before "
        f"({store.folder.name})"
    )
    usage = shutil.disk_usage(tmp_path)._replace(free=SPARE_BYTES + 3 * 5 * packing.row_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    store.need(4, packing)  # three more just fit
    with pytest.raises(UserError, match=r"4 more views of 5 images takes .* lower --student.knowledge_views"):
        store.need(5, packing)


def test_a_folder_that_cannot_be_created_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be kept in .*cache_dir"):
        KnowledgeStore(tmp_path / "file", {}, 5).need(1, Packing.of(answers(1)))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e8, "250 MB"), (3.24e12, "3.2 TB")]
)
def test_sizes_are_written_in_readable_units(count: float, text: str) -> None:
    assert size_text(count) == text


def test_damaged_statistics_and_a_damaged_record_are_reported_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = KnowledgeStore(tmp_path, {"seed": 1}, 5)
    draw = torch.Generator().manual_seed(0)
    kept = TeacherStatistics(
        torch.randn(6, generator=draw),
        (torch.randn(3, generator=draw),),
        (torch.rand(3, generator=draw),),
        torch.randn(5, 6, generator=draw),
    )
    store.write_statistics(kept, 0.75)
    path = store.folder / "statistics.safetensors"
    found = store.read_statistics()
    assert found is not None and found[1] == 0.75 and torch.equal(found[0].embedding_mean, kept.embedding_mean)
    whole = path.read_bytes()
    for place in range(8, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        again = store.read_statistics()
        same = again is not None and again[1] == 0.75 and torch.equal(again[0].embedding_mean, kept.embedding_mean)
        assert again is None or same, place
    assert "statistics.safetensors is damaged; the teacher's statistics are computed" in capsys.readouterr().err
    about = store.folder / "about.json"
    about.write_text(about.read_text(encoding="utf-8")[:20], encoding="utf-8")
    store.write_statistics(kept, 0.75)
    assert read_json(about)["images"] == 5


def test_a_damaged_view_is_reported_and_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, packing = KnowledgeStore(tmp_path, {"seed": 1}, 5), Packing.of(answers(5))
    store.write(0, packing.pack(answers(5)))
    (file,) = store.folder.glob("view-*.npy")
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    assert KnowledgeStore(tmp_path, {"seed": 1}, 5).read(0, packing) is None and not file.exists()
    assert "is damaged; the teacher's outputs are computed again" in capsys.readouterr().err


def test_outputs_of_an_earlier_version_are_found_by_a_hash_that_is_computed_once(tmp_path: Path) -> None:
    packing, common = Packing.of(answers(5)), {"teacher": "t", "scale": [0.25, 1.0]}
    earlier = KnowledgeStore(tmp_path, {**common, "images": "of pixels"}, 5)
    earlier.write(0, packing.pack(answers(5)))
    asked: list[str] = []

    def opened(pixels: str, **settings: Any) -> KnowledgeStore:
        def pixel_hash() -> str:
            asked.append(pixels)
            return pixels

        return KnowledgeStore(tmp_path, {**common, "scale": (0.25, 1.0), **settings}, 5, pixel_hash=pixel_hash)

    others = opened("of others", content="of others' checksums")
    assert others.folder != earlier.folder and asked == ["of others"]
    assert opened("of pixels", teacher="u", content="of checksums").folder != earlier.folder
    assert asked == ["of others"], "with other settings the pixels do not matter"
    for _ in range(2):
        found = opened("of pixels", content="of checksums")
        assert found.folder == earlier.folder and found.read(0, packing) is not None
    assert asked == ["of others", "of pixels"]
    assert read_json(earlier.folder / "about.json")["settings"]["images"] == "of pixels"
    own = opened("of pixels", content="of new checksums", teacher="u")
    own.write(0, packing.pack(answers(5)))
    assert opened("of pixels", content="of new checksums", teacher="u").folder == own.folder
