"""The check of an exported file: it passes what is the same, and sees what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenedistill.data.images.read import read_scene
from scenedistill.export.check import TOLERATED_LOSS, check_file, logits_of, time_models
from scenedistill.inference.model import Predicted, SceneModel, open_model


@pytest.fixture(scope="module")
def images(tiny_scenes: Path) -> np.ndarray:
    return np.stack([read_scene(file, 40) for file in sorted(tiny_scenes.rglob("*.png"))])


class Altered(SceneModel):
    """A network whose logits are changed on their way out."""

    def __init__(self, inner: SceneModel, shift: np.ndarray | np.float32) -> None:
        super().__init__(inner.card, inner.about, inner.source)
        self.inner, self.shift = inner, shift

    def _run(self, images: np.ndarray) -> Predicted:
        found = self.inner.predict(images)
        return found._replace(logits=found.logits + self.shift)

    def _embedding_width(self) -> int:
        return 64


def test_the_same_network_passes_the_check(
    exported_nets: dict[str, Path], images: np.ndarray, tiny_scenes: Path
) -> None:
    model = open_model(exported_nets["onnx"], device="cpu")
    expected = logits_of(open_model(exported_nets["safetensors"], device="cpu", precision="fp32"), images)
    labels = expected.argmax(1)
    labels[:16] = (labels[:16] + 1) % 4
    files = [*sorted(tiny_scenes.rglob("*.png"))[:5], tiny_scenes / "gone.png"]
    found = check_file(model, images, labels, expected, files=files)
    assert found.failure == "" and found.equal == 1.0 and found.loss == 0 and found.oa == 0.75 and found.images == 64
    assert found.allowed is not None and found.difference < found.allowed
    assert found.bytes == exported_nets["onnx"].stat().st_size and found.name == "model.onnx"
    assert found.from_files["images"] == 5 and found.from_files["difference"] < 0.05
    assert found.other_sizes["images"] == 32 and found.other_sizes["equal"] == 1.0


def test_another_network_fails_the_check(exported_nets: dict[str, Path], images: np.ndarray) -> None:
    model = open_model(exported_nets["safetensors"], device="cpu", precision="fp32")
    expected = logits_of(model, images)
    labels = expected.argmax(1)
    shifted = check_file(Altered(model, np.float32(0.1)), images, labels, expected)
    assert shifted.equal == 1.0 and "differ by up to 0.1" in shifted.failure
    broken = check_file(Altered(model, np.full(4, np.nan, np.float32)), images, labels, expected)
    assert "not finite" in broken.failure


def test_an_8_bit_network_passes_with_a_small_loss_only(exported_nets: dict[str, Path], images: np.ndarray) -> None:
    model = open_model(exported_nets["safetensors"], device="cpu", precision="fp32")
    expected = logits_of(model, images)
    right = expected.argmax(1)
    other = (right[0] + 1) % 4
    swayed = Altered(model, np.eye(4, dtype=np.float32)[other] * 100)  # always one class, and the wrong one for some
    lost = int((right != other).sum())
    assert lost > TOLERATED_LOSS
    assert "worse than fp32" in check_file(swayed, images, right, expected, max_loss=0.0).failure
    allowed = lost / len(images)
    assert check_file(swayed, images, right, expected, max_loss=allowed).failure == ""
    assert check_file(swayed, images, right, expected, max_loss=allowed - 1 / len(images)).loss == lost
    assert check_file(swayed, images, right, expected, max_loss=allowed - 1 / len(images)).failure
    two = right.copy()
    two[:] = other
    two[np.flatnonzero(right != other)[:TOLERATED_LOSS]] = right[np.flatnonzero(right != other)[:TOLERATED_LOSS]]
    few = check_file(swayed, images, two, expected * 0 + np.eye(4, dtype=np.float32)[two], max_loss=0.0)
    assert few.loss == TOLERATED_LOSS and few.failure == "", "of few images two are forgiven"


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_file_that_prepares_images_wrongly_fails(
    exported_nets: dict[str, Path], images: np.ndarray, tiny_scenes: Path, ending: str
) -> None:
    inner = open_model(exported_nets[ending], device="cpu", trust=True)

    class Misprepared(Altered):
        """Right at the stored size, and cuts out a corner of larger images."""

        prepares = True

        def predict_unresized(self, images: np.ndarray) -> Predicted:
            return (
                self.inner.predict_unresized(images[:, :8, :8])
                if images.shape[1] != 40
                else self.inner.predict_unresized(images)
            )

    expected = logits_of(inner, images)
    right = expected.argmax(1)
    files = sorted(tiny_scenes.rglob("*.png"))
    assert check_file(inner, images, right, expected, files=files).failure == ""
    wrong = Misprepared(inner, np.float32(0))
    assert "original files it names only" in check_file(wrong, images, right, expected, files=files).failure
    assert "other sizes it names only" in check_file(wrong, images, right, expected).failure  # where they are gone


def test_time_models_times_every_batch_size(exported_nets: dict[str, Path], images: np.ndarray) -> None:
    calls = list[int]()

    class Counted(Altered):
        def _run(self, images: np.ndarray) -> Predicted:
            calls.append(len(images))
            return super()._run(images)

    model = open_model(exported_nets["onnx"], device="cpu", threads=1)
    found = time_models({"one": Counted(model, np.float32(0))}, images[:3], repeats=6, batches=(1, 8))
    assert found["one"]["1"] > 0 and found["one"]["8"] > 0
    assert calls.count(1) == 9 and calls.count(8) == 6 and set(calls) == {1, 8}


def test_an_image_of_any_size_goes_through_the_graph(exported_nets: dict[str, Path], tmp_path: Path) -> None:
    model = open_model(exported_nets["onnx"], device="cpu")
    rng = np.random.default_rng(0)
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.png")
        small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        small.resize((400, 300), Image.Resampling.BICUBIC).save(files[-1])
    images = np.stack([read_scene(file, 40) for file in files])
    expected = logits_of(model, images)
    found = check_file(model, images, expected.argmax(1), expected, files=files)
    assert found.from_files["images"] == 3 and found.from_files["equal"] == 1.0
    assert 0 < found.from_files["difference"] < 0.3, "ten times as large: another downscaling, and a good one"
