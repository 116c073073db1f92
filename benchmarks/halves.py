"""Halve a split's training images, to compare recipes by training on one half and testing on the other.

    scenedistill split path/to/AID seed0.csv --train_ratio 0.2 --seed 0
    python benchmarks/halves.py seed0.csv half0.csv half1.csv

Neither file holds a test image of the split, so no recipe is chosen on test images.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path


def halve(split: Path, outs: tuple[Path, Path], seed: int = 0) -> None:
    """Write the two split files: each has one shuffled half of every class's training images as train, one as test."""
    with split.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    draw = random.Random(seed)
    parts: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for label in sorted({row["label"] for row in rows}):
        own = [row for row in rows if row["label"] == label]
        draw.shuffle(own)
        for number, row in enumerate(own):
            parts[number % 2].append(row)
    for number, out in enumerate(outs):
        with out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["path", "label", "split"])
            writer.writeheader()
            writer.writerows({**row, "split": "train"} for row in parts[number])
            writer.writerows({**row, "split": "test"} for row in parts[1 - number])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path, help="split file that `scenedistill split` has written")
    parser.add_argument("outs", type=Path, nargs=2, help="the two files to write")
    arguments = parser.parse_args()
    halve(arguments.split, tuple(arguments.outs))


if __name__ == "__main__":
    main()
