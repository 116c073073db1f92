"""The confusion matrix on disk: the counts read back, and a picture whose cells lie where they should."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenedistill.metrics.accuracy import SceneMetrics, scene_metrics
from scenedistill.metrics.plots import confusion_figure, readable_names, write_confusion

NAMES = ("car park", "forêt", "река", "$a$ $b$", "أرض", "河流", 'comma, "quoted"', "line\nbreak", "x" * 60, "_")


def example(names: tuple[str, ...], seed: int = 0, absent: int | None = None) -> SceneMetrics:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(names), 40 * len(names))
    labels = labels if absent is None else labels[labels != absent]
    wrong = rng.random(len(labels)) < 0.3
    return scene_metrics(np.where(wrong, rng.integers(0, len(names), len(labels)), labels), labels, names)


def test_the_table_holds_the_counts_under_the_whole_names(tmp_path: Path) -> None:
    metrics = example(NAMES)
    table, picture = write_confusion(metrics, tmp_path / "new folder", "student")
    assert (table.name, picture.name) == ("student_confusion.csv", "student_confusion.png")
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0][1:]) == NAMES
    assert tuple(row[0] for row in rows[1:]) == NAMES
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == metrics.confusion.tolist()


def test_no_name_in_the_table_is_a_formula(tmp_path: Path) -> None:
    table, _ = write_confusion(example(("=1+1", "@a", "-b")), tmp_path, "student")
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == ["'=1+1", "'@a", "'-b"] == [row[0] for row in rows[1:]]


@pytest.mark.parametrize("count", [1, 10, 45])
def test_the_picture_grows_with_the_classes_and_opens(tmp_path: Path, count: int) -> None:
    names = tuple(f"class name {number}" for number in range(count))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of letters and layouts it cannot show
        _, picture = write_confusion(example(names), tmp_path, "s")
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 40 * count  # pixels for each cell


def test_cells_are_percent_of_the_true_class() -> None:
    metrics = scene_metrics([0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1], ("a", "b", "absent"))
    axes = confusion_figure(metrics).axes[0]
    shown = {text.get_position(): text.get_text() for text in axes.texts}  # (column, row)
    assert shown == {(0, 0): "75", (1, 0): "25", (0, 1): "50", (1, 1): "50"}
    cells = axes.images[0].get_array()
    assert cells is not None and np.ma.getmaskarray(cells)[2].all()  # no image: left grey
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "absent"]


def test_any_name_can_be_drawn(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, picture = write_confusion(example(NAMES, absent=3), tmp_path, "s")
    assert picture.stat().st_size > 10_000


def test_names_are_shortened_tidied_or_numbered() -> None:
    labels, families = readable_names((*NAMES, "\U000f0000"))
    assert labels[:5] == ["car park", "forêt", "река", "$a$ $b$", "أرض"]
    assert labels[5] in ("河流", "class 6")  # whether a font for it is installed differs
    assert labels[7] == "line break"
    assert labels[8] == "x" * 27 + "…"
    assert labels[10] == "class 11"  # private use: no font has it
    assert families[0] == "DejaVu Sans"
