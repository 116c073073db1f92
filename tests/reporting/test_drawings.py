"""Every drawing shows what it was given, and is written as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from scenedistill.metrics.calibration import calibration
from scenedistill.metrics.differences import ClassGain, ConfusedPair
from scenedistill.reporting.drawings import (
    activation_figure,
    class_gains_figure,
    confused_pairs_figure,
    confusion_difference_figure,
    embedding_figure,
    learning_figure,
    parts_figure,
    reliability_figure,
    save_drawing,
)
from scenedistill.runs.curves import Curves

CLASSES = ("car park", "forêt", "$river$")  # not to be read as mathematics
RANDOM = np.random.default_rng(0)


def texts(figure: Figure) -> list[str]:
    """Every text of a figure, as it is drawn."""
    figure.canvas.draw()
    found = [cast(Text, text).get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return [text for text in found if text]


def drawn(figure: Figure, folder: Path) -> np.ndarray:
    """The figure as pixels; there must be something on them."""
    with Image.open(save_drawing(figure, folder / "deep" / "figure.png", dpi=60)) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 3
    return pixels


def training(**pulls: float) -> Curves:
    falling = 3 / np.arange(1.0, 6.0)
    return Curves(
        np.arange(1, 6),
        {"ce": falling, "ss": 2 * falling},
        {"ce": 1.0, "ss": 0.5},
        {name: np.array([np.nan, value, np.nan, np.nan, value]) for name, value in pulls.items()},
        {"train_oa": np.linspace(0.2, 0.8, 5), "val_oa": np.linspace(0.2, 0.6, 5)},
    )


def test_a_difference_of_two_matrices_labels_only_entries_that_changed(tmp_path: Path) -> None:
    difference = np.array([[30.0, -30, 0], [0.2, -0.2, 0], [np.nan] * 3])
    figure = confusion_difference_figure(difference, CLASSES, "plain", "DKD")
    said = texts(figure)
    assert {"+30", "−30", "forêt", "$river$", "predicted class"} <= set(said)
    assert not {"+0", "−0"} & set(said), "what did not move is left empty"
    picture = figure.axes[0].images[0]
    shown = picture.get_array()
    assert shown is not None
    better, also = picture.to_rgba(shown)[0, :2, :3]
    np.testing.assert_allclose(better, also), "more right and fewer wrong ones are both better"
    assert better[2] > better[1], "violet"
    drawn(figure, tmp_path)


def test_class_gains_are_bars_of_their_size_and_sign(tmp_path: Path) -> None:
    gains = [ClassGain("forêt", 20, 0.5, 0.75), ClassGain("$river$", 10, 0.9, 0.8)]
    figure = class_gains_figure(gains, "plain", "DKD")
    assert {"+25.0", "−10.0", "forêt  50 → 75 %", "$river$  90 → 80 %"} <= set(texts(figure))
    first, second = figure.axes[0].patches
    assert isinstance(first, Rectangle) and isinstance(second, Rectangle)
    assert (first.get_width(), second.get_width()) == pytest.approx((25, -10))
    assert first.get_facecolor() != second.get_facecolor()
    drawn(figure, tmp_path)


def test_confused_pairs_show_their_examples_and_leave_missing_ones_blank(tmp_path: Path) -> None:
    images = {i: RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8) for i in (3, 5)}
    pairs = [ConfusedPair(0, 1, 7, 0.25, (3, 4)), ConfusedPair(1, 2, 1, 0.05, (5,))]
    figure = confused_pairs_figure(pairs, CLASSES, images)
    assert "car park\ntaken for\nforêt\n7 images, 25 %" in texts(figure)
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(shown) == 2, "the missing example is left blank"
    np.testing.assert_array_equal(shown[0], images[3])
    drawn(figure, tmp_path)


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_activation_maps_are_drawn_over_the_images(bands: int, tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (2, 16, 12, bands), dtype=np.uint8)
    maps = {"teacher": RANDOM.random((2, 8, 8)), "DKD": RANDOM.random((2, 8, 8))}
    notes = {"teacher": ["forêt", "car park"], "DKD": ["forêt\n0.91", "forêt\n0.12"]}
    figure = activation_figure(images, maps, ["forêt", "car park"], notes)
    assert {"teacher", "DKD", "forêt\n0.91", "forêt\n0.12"} <= set(texts(figure))
    over = figure.axes[-1].images[1]
    assert tuple(over.get_extent()) == (-0.5, 11.5, 15.5, -0.5)
    np.testing.assert_array_equal(over.get_array(), maps["DKD"][1])
    drawn(figure, tmp_path)


def test_embedding_maps_show_every_image_and_only_classes_present(tmp_path: Path) -> None:
    labels = np.array([0, 0, 1, 1, 1])  # the third class has no images
    maps = {"teacher": RANDOM.random((5, 2)), "DKD": RANDOM.random((5, 2))}
    figure = embedding_figure(maps, labels, CLASSES, {"DKD": "60 % pure"})
    said = texts(figure)
    assert {"teacher", "DKD", "1 car park", "2 forêt", "60 % pure"} <= set(said)
    assert "3 $river$" not in said
    assert sum(len(np.asarray(points.get_offsets())) for points in figure.axes[1].collections) == 5
    drawn(figure, tmp_path)


def test_learning_curves_show_every_network_in_percent(tmp_path: Path) -> None:
    figure = learning_figure({"plain": training(), "DKD": training()})
    assert {"plain, training views", "DKD, validation"} <= set(texts(figure))
    np.testing.assert_allclose(np.asarray(figure.axes[0].lines[0].get_ydata())[[0, -1]], [20, 80])
    drawn(figure, tmp_path)


def test_the_loss_figure_shows_weighted_terms_and_their_gradient_shares(tmp_path: Path) -> None:
    figure = parts_figure(training(ce=1.0, ss=99.0), "DKD")
    said = texts(figure)
    assert {"ce", "0.5 × ss", "ce, 1 %", "0.5 × ss, 99 %", "DKD: parts of the loss"} <= set(said)
    assert any("'ss' drowns the others" in text for text in said)
    left, right = figure.axes
    np.testing.assert_allclose(np.asarray(left.lines[1].get_ydata())[0], 0.5 * 6)
    np.testing.assert_array_equal(right.lines[1].get_xydata(), [[2, 99], [5, 99]])
    drawn(figure, tmp_path)
    assert len(parts_figure(training(), "plain").axes) == 1, "nothing was measured"


def test_the_reliability_diagram_shows_accuracy_and_gap_of_each_bin(tmp_path: Path) -> None:
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    found = calibration(shares, np.array([0, 1, 1, 1]), bins=2)
    figure = reliability_figure({"teacher": found, "DKD": found})
    assert f"DKD\nECE {100 * found.ece:.1f} %, OA 75.0 %" in texts(figure)
    heights = [cast(Rectangle, bar).get_height() for bar in figure.axes[0].patches]
    assert heights[1] == pytest.approx(0.75)
    assert heights[3] == pytest.approx(0.8 - 0.75)
    drawn(figure, tmp_path)


def test_the_same_figure_gives_the_same_svg(tmp_path: Path) -> None:
    first, second = (
        save_drawing(learning_figure({"plain": training()}), tmp_path / f"{name}.svg").read_bytes() for name in "ab"
    )
    assert first == second
    assert first.startswith(b"<?xml")
    assert save_drawing(learning_figure({"plain": training()}), tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
