"""Splits drawn from a seed: stratified, stable, the same on every machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenedistill.core.errors import UserError
from scenedistill.data.scenes import SceneIndex, scan
from scenedistill.data.splits.draw import Split, make_split

SOURCE = Path(__file__).resolve().parents[2] / "src"


def index_of(counts: dict[str, int], root: Path = Path("/data/Toy"), suffix: str = ".jpg") -> SceneIndex:
    classes = tuple(sorted(counts))
    paths = tuple(f"{name}/{name.lower()}_{i}{suffix}" for name in classes for i in range(1, counts[name] + 1))
    return SceneIndex(root, paths, np.repeat(np.arange(len(classes)), [counts[c] for c in classes]), classes)


TOY = index_of({"Airport": 10, "Beach": 15, "RiverLake": 20})


def same(a: Split, b: Split) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.parts().values(), b.parts().values(), strict=True))


def test_counts_of_each_class_are_rounded_half_up() -> None:
    split = make_split(index_of({"A": 10, "B": 15, "C": 7}), 0.35, seed=0)
    labels = index_of({"A": 10, "B": 15, "C": 7}).labels
    assert np.bincount(labels[split.train]).tolist() == [4, 5, 2]  # 3.5, 5.25, 2.45
    assert np.bincount(labels[split.test]).tolist() == [6, 10, 5]
    assert split.val.size == 0 and split.train.dtype == np.int64 and (split.train_ratio, split.seed) == (0.35, 0)


def test_a_test_ratio_leaves_the_images_between_training_and_test_out() -> None:
    split = make_split(TOY, 0.2, seed=0, test_ratio=0.5)
    assert np.array_equal(split.train, make_split(TOY, 0.2, seed=0).train)
    assert np.array_equal(split.test, make_split(TOY, 0.5, seed=0).test)  # to compare with more training images
    assert len(split.train) + len(split.test) == 9 + 22 < len(TOY)
    assert make_split(TOY, 0.9, seed=0, test_ratio=0.1).hash == make_split(TOY, 0.9, seed=0).hash


@pytest.mark.parametrize("ratio", [0.0, -0.1, 0.81, float("nan")])
def test_a_test_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=f"The test ratio is {ratio}; .* train ratio of 0.2"):
        make_split(TOY, 0.2, seed=0, test_ratio=ratio)


def test_the_split_follows_the_documented_scheme() -> None:
    """Written out from the docstring: rank by SHA-256 of seed, class and path."""

    def digest(path: str) -> str:
        return hashlib.sha256(f"7\0Airport\0{path}".encode()).hexdigest()

    ranked = sorted((p for p in TOY.paths if p.startswith("Airport/")), key=digest)
    split = make_split(TOY, 0.5, seed=7, val_fraction=0.4)
    assert {TOY.paths[i] for i in split.train} >= set(ranked[:3])
    assert {TOY.paths[i] for i in split.val} >= set(ranked[3:5])
    assert {TOY.paths[i] for i in split.test} >= set(ranked[5:])


def test_the_hash_of_a_known_split_never_changes() -> None:
    """Published results carry this hash, so the scheme must never change."""
    assert make_split(TOY, 0.2, seed=0).hash == "8f0fdc6385850c3d"
    assert make_split(TOY, 0.2, seed=1, val_fraction=0.25).hash == "bb4e62db66e7b79b"


def test_the_hash_is_what_its_docstring_says() -> None:
    split = make_split(TOY, 0.2, seed=0)
    lines = sorted(
        f"{TOY.paths[i]}\0{TOY.paths[i].split('/')[0]}\0{p}" for p, where in split.parts().items() for i in where
    )
    assert split.hash == hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def test_another_process_with_another_hash_seed_draws_the_same_split(tiny_scenes: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scenedistill.cli", "split", str(tiny_scenes), "split.csv"]
    command += ["--train_ratio", "0.5", "--seed", "3"]
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"split {make_split(scan(tiny_scenes), 0.5, 3).hash};" in done.stdout


def test_order_of_files_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(len(TOY))
    shuffled = SceneIndex(TOY.root, tuple(TOY.paths[i] for i in order), TOY.labels[order], TOY.classes)
    a, b = make_split(TOY, 0.3, 5, 0.2), make_split(shuffled, 0.3, 5, 0.2)
    assert a.hash == b.hash
    assert {TOY.paths[i] for i in a.val} == {shuffled.paths[i] for i in b.val}


def test_decomposed_names_of_macos_give_the_same_split() -> None:
    composed = index_of({"Forêt": 9, "Étang": 9})
    decomposed = SceneIndex(
        composed.root,
        tuple(unicodedata.normalize("NFD", p) for p in composed.paths),
        composed.labels,
        tuple(unicodedata.normalize("NFD", c) for c in composed.classes),
    )
    a, b = make_split(composed, 0.5, 0), make_split(decomposed, 0.5, 0)
    assert composed.paths != decomposed.paths
    assert a.hash == b.hash and same(a, b)


def test_seeds_differ_and_ratios_nest() -> None:
    assert make_split(TOY, 0.2, 0).hash != make_split(TOY, 0.2, 1).hash
    assert set(make_split(TOY, 0.2, 0).train) < set(make_split(TOY, 0.5, 0).train)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=4),
    ratio=st.floats(0.01, 0.99),
    val=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 2**40),
)
def test_every_class_in_every_part(counts: list[int], ratio: float, val: float, seed: int) -> None:
    index = index_of({f"c{i}": n for i, n in enumerate(counts)})
    try:
        split = make_split(index, ratio, seed, val)
    except UserError as error:
        assert val and "training image at train ratio" in str(error)
        return
    together = np.concatenate(list(split.parts().values()))
    assert sorted(together) == list(range(len(index)))
    for part in ("train", "test", *(["val"] if val else [])):
        assert set(index.labels[split.parts()[part]]) == set(range(len(counts)))
    assert all((np.diff(where) > 0).all() for where in split.parts().values())


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 20, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        make_split(TOY, ratio, 0)


def test_invalid_fractions_and_too_small_classes_are_refused() -> None:
    with pytest.raises(UserError, match="validation fraction is 1"):
        make_split(TOY, 0.5, 0, val_fraction=1)
    with pytest.raises(UserError, match=r"'Tiny'.*1 image"):
        make_split(index_of({"Big": 9, "Tiny": 1}), 0.5, 0)
    with pytest.raises(UserError, match=r"'Gone'.*0 image"):
        make_split(SceneIndex(Path("/d"), ("A/1.jpg", "A/2.jpg"), np.zeros(2, np.int64), ("A", "Gone")), 0.5, 0)
    with pytest.raises(UserError, match="'Airport' has 1 training image"):
        make_split(TOY, 0.1, 0, val_fraction=0.5)
