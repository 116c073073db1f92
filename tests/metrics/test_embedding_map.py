"""The map of embeddings is t-SNE's, the same every time; neighbours are counted rightly."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scenedistill.core.errors import UserError
from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import build_cache
from scenedistill.data.scenes import scan
from scenedistill.data.views import evaluation_view
from scenedistill.metrics.embedding_map import embedding_map, embeddings_of, even_sample, neighbour_purity
from scenedistill.models.create import build_student


def clusters(each: int = 20, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Three heaps far apart."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), each)
    centres = 10 * generator.normal(size=(3, width))
    return (centres[labels] + generator.normal(size=(3 * each, width))).astype(np.float32), labels


def test_clusters_stay_separate_and_the_map_is_reproducible() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install -e '.[report]'")
    embeddings, labels = clusters()
    found = embedding_map(embeddings)
    assert found.shape == (60, 2)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(embedding_map(embeddings), found)
    assert np.abs(found).max() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found.max(0) + found.min(0), 0, atol=1e-5)
    assert neighbour_purity(found, labels, neighbours=1) > 0.9
    apart = np.linalg.norm(found[:, None] - found[None], axis=2)
    alike = labels[:, None] == labels
    assert apart[~alike].min() > apart[alike & ~np.eye(60, dtype=bool)].max() / 2


def test_few_images_and_narrow_embeddings_have_a_map() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install -e '.[report]'")
    for shape in ((5, 3), (9, 1)):
        assert np.isfinite(embedding_map(np.random.default_rng(0).normal(size=shape))).all()
    assert np.isfinite(embedding_map(np.repeat(np.eye(4), 5, axis=0))).all(), "many alike"


def test_too_few_equal_or_infinite_embeddings_are_refused() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install -e '.[report]'")
    with pytest.raises(UserError, match="5 images or more, and there are 4"):
        embedding_map(np.zeros((4, 3)))
    with pytest.raises(UserError, match="All images have the same embedding"):
        embedding_map(np.ones((9, 3)))
    with pytest.raises(ValueError, match="all finite"):
        embedding_map(np.full((9, 3), np.nan))


def test_without_scikit_learn_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(UserError, match=r"pip install 'scenedistill\[report\]'"):
        embedding_map(np.zeros((9, 3)))


def test_purity_counts_neighbours_by_their_direction() -> None:
    embeddings = np.array([[1, 0], [100, 1], [0, 1], [-1, 50], [1, 0.1]], dtype=np.float32)
    labels = np.array([0, 0, 1, 1, 1])
    # the nearest of 0 is 1, of 1 is 0, of 2 is 3, of 3 is 2, of 4 is 1
    assert neighbour_purity(embeddings, labels, neighbours=1) == pytest.approx(4 / 5)
    assert neighbour_purity(embeddings, np.zeros(5, dtype=int)) == 1
    with pytest.raises(ValueError, match="2 or more"):
        neighbour_purity(embeddings[:1], labels[:1])


def test_purity_over_more_images_than_one_block() -> None:
    embeddings, labels = clusters(each=400, width=8)
    assert neighbour_purity(embeddings, labels) == pytest.approx(1, abs=1e-6)


def test_a_sample_takes_of_each_class_its_share() -> None:
    labels = np.repeat(np.arange(4), [10, 20, 30, 40])
    labels = labels[np.random.default_rng(0).permutation(100)]
    chosen = even_sample(labels, 20)
    assert np.bincount(labels[chosen]).tolist() == pytest.approx([2, 4, 6, 8], abs=1)
    assert (np.diff(chosen) > 0).all()
    assert even_sample(labels, 100).tolist() == list(range(100))


def test_embeddings_are_those_of_the_evaluation_view(tiny_scenes: Path, tmp_path: Path) -> None:
    part = ScenePart(build_cache(scan(tiny_scenes), 48, folder=tmp_path / "c", progress=False), np.arange(0, 64, 9))
    torch.manual_seed(0)
    net = build_student("table1_printed", 4, image_size=32).eval()
    cpu = torch.device("cpu")
    found = embeddings_of(net, part, image_size=32, device=cpu, precision="fp32", batch_size=3)
    with torch.no_grad():
        expected = net(evaluation_view(part.fetch(range(8)).images, size=32)).embedding
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
