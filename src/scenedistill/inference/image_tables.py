"""Write the predictions of images as tables, and their embeddings."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scenedistill.data.names import as_cell, as_path_cell
from scenedistill.inference.journal import Journal

ROUND = 6  # decimals of a probability
#: A call that writes no embeddings keeps an earlier file: it contains its own paths, and may have taken hours.
EMBEDDINGS = "embeddings.npz"


@dataclass
class ImageTables:
    """Images in the tables, and the files written.

    Attributes:
        predicted: path, class index and confidence of each image with a prediction.
        skipped: path and reason of each image that cannot be read.
        files: the files.
    """

    predicted: list[tuple[str, int, float]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def write_tables(
    classes: Sequence[str], names: Sequence[str], journal: Journal, out: Path, width: int | None
) -> ImageTables:
    """Write `predictions.csv`, `predictions.jsonl`, and where needed `embeddings.npz` and `skipped.csv`.

    Args:
        classes: names of the K classes.
        names: paths of the images, in the order of the tables.
        journal: the results of all images.
        out: output folder.
        width: length D of an embedding; None to write no embeddings.
    """
    results = ImageTables()
    table, lines = out / "predictions.csv", out / "predictions.jsonl"
    parts = [file.with_name(f"{file.name}.part") for file in (table, lines)]
    with (
        parts[0].open("w", encoding="utf-8", newline="") as csv_file,
        parts[1].open("w", encoding="utf-8") as json_file,
    ):
        writer = csv.writer(csv_file)
        cells = [as_cell(name) for name in classes]
        writer.writerow(["path", "class", "confidence", *(f"p_{name}" for name in classes)])
        for name in names:
            entry = journal.get(name)
            assert entry is not None
            if entry.reason is not None:
                results.skipped.append((name, entry.reason))
                continue
            label = max(range(len(classes)), key=entry.probabilities.__getitem__)
            confidence = entry.probabilities[label]
            results.predicted.append((name, label, confidence))
            writer.writerow(
                [
                    as_path_cell(name),
                    cells[label],
                    *(f"{value:.{ROUND}f}" for value in (confidence, *entry.probabilities)),
                ]
            )
            chances = dict(zip(classes, entry.probabilities, strict=True))
            found = {"path": name, "class": classes[label], "confidence": confidence, "probabilities": chances}
            json_file.write(json.dumps(found, ensure_ascii=False) + "\n")
    for part, file in zip(parts, (table, lines), strict=True):
        part.replace(file)
    results.files += [table, lines]
    kept, bad = out / EMBEDDINGS, out / "skipped.csv"
    if width is not None:
        _write_embeddings(kept, [name for name, _, _ in results.predicted], journal, width)
        results.files.append(kept)
    if results.skipped:
        with bad.open("w", encoding="utf-8", newline="") as bad_file:
            rows_of_bad = ((as_path_cell(path), as_cell(reason)) for path, reason in results.skipped)
            csv.writer(bad_file).writerows([("path", "reason"), *rows_of_bad])
        results.files.append(bad)
    return results


def _write_embeddings(path: Path, names: Sequence[str], journal: Journal, width: int) -> None:
    """Write the arrays `paths` and `embeddings`."""
    # as np.savez does, which would need all embeddings in memory
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(names), width)}
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("paths.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.array(names, dtype=np.str_), allow_pickle=False)
        with archive.open("embeddings.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for name in names:
                file.write(journal.embedding(name))
