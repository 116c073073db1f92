"""Write the predictions of images as tables, and their embeddings."""

from __future__ import annotations

import csv
import json
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
    classes: Sequence[str], names: Sequence[str], journal: Journal, out: Path, embeddings: bool
) -> ImageTables:
    """Write `predictions.csv`, `predictions.jsonl`, and where needed `embeddings.npz` and `skipped.csv`.

    Args:
        classes: names of the K classes.
        names: paths of the images, in the order of the tables.
        journal: the results of all images.
        out: output folder.
        embeddings: whether to write the embeddings.
    """
    results, rows = ImageTables(), list[int]()
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
            if entry.reason is not None:
                results.skipped.append((name, entry.reason))
                continue
            label = max(range(len(classes)), key=entry.probabilities.__getitem__)
            confidence = entry.probabilities[label]
            results.predicted.append((name, label, confidence))
            rows.append(entry.row)
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
    if embeddings:
        paths = np.array([name for name, _, _ in results.predicted], dtype=np.str_)
        vectors = journal.embeddings()
        whole = vectors if rows == list(range(len(vectors))) else vectors[rows]
        np.savez(kept, paths=paths, embeddings=whole)
        results.files.append(kept)
    if results.skipped:
        with bad.open("w", encoding="utf-8", newline="") as bad_file:
            rows_of_bad = ((as_path_cell(path), as_cell(reason)) for path, reason in results.skipped)
            csv.writer(bad_file).writerows([("path", "reason"), *rows_of_bad])
        results.files.append(bad)
    return results
