"""Confusion matrices of a cell, with the images of each entry, in the form that the page's script reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scenedistill.reporting.html.images import Thumbnails
from scenedistill.runs.network import Network
from scenedistill.runs.run import Cell

LISTED = 12  # images listed for an off-diagonal entry, at most; a quarter of that on the diagonal


@dataclass
class Matrices:
    """Confusion matrices of one cell, with the images of their entries.

    Attributes:
        content: data for the page's script.
        paths: paths of the listed images, relative to the data folder.
        wanted: indices into `paths`, each once, the most informative images first.
    """

    content: dict[str, Any]
    paths: list[str] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Characters in the page, without thumbnails."""
        return len(json.dumps(self.content)) + sum(len(path) + 12 for path in self.paths)

    def attach(self, root: Path | None, thumbnails: Thumbnails) -> None:
        """Add each image's path and the number of its thumbnail, -1 if there is none."""
        numbers = dict.fromkeys(range(len(self.paths)), -1)
        for image in self.wanted if root else ():
            found = thumbnails.add(root / self.paths[image]) if root else None
            numbers[image] = -1 if found is None else found
        self.content["images"] = [[path, numbers[i]] for i, path in enumerate(self.paths)]


def matrices(cell: Cell, focus_networks: Sequence[Network], listed: int = LISTED) -> Matrices | None:
    """Return the matrices of all networks of a cell; None if no counts were kept.

    Args:
        cell: the cell.
        focus_networks: networks whose images come first.
        listed: images listed for an off-diagonal entry, at most; a quarter of that on the diagonal; 0 lists none.
    """
    numbers: dict[str, int] = {}  # image path -> number
    ranked: list[tuple[tuple[int, ...], int]] = []
    groups = []
    for (name, label), networks in cell.groups().items():
        seeds = []
        for network in networks:
            if network.confusion is None:
                continue
            behind: dict[str, list[list[int]]] = {}
            for row, column, place, path, sure in _behind(network, listed):
                image = numbers.setdefault(path, len(numbers))
                behind.setdefault(f"{row},{column}", []).append([image, sure])
                near = focus_networks.index(network) if network in focus_networks else len(focus_networks)
                ranked.append(((min(near, 1), row == column, place, near), image))
            counts = [[int(r), int(c), int(network.confusion[r, c])] for r, c in np.argwhere(network.confusion)]
            seeds.append({"seed": network.seed, "counts": counts, "behind": behind})
        if seeds:
            groups.append({"name": f"{name}, {label}", "label": label, "student": networks[0].student, "seeds": seeds})
    if not groups:
        return None
    wanted = list(dict.fromkeys(image for _, image in sorted(ranked, key=lambda entry: entry[0])))
    return Matrices({"classes": list(cell.classes), "networks": groups}, list(numbers), wanted)


def _behind(network: Network, listed: int) -> Iterator[tuple[int, int, int, str, int]]:
    """Yield row, column, place in the entry's list, path and confidence in percent of each listed image.

    Wrong predictions come first, from the most to the least confident; then correct ones, from the least to the most.
    """
    outputs, paths = network.outputs, network.test_paths
    if outputs is None or not paths:
        return
    named = outputs.predicted
    sure = outputs.probabilities.max(1)
    order = np.where(named == outputs.labels, sure, -sure).argsort(kind="stable")
    places: dict[tuple[int, int], int] = {}
    for i in order:
        row, column = int(outputs.labels[i]), int(named[i])
        place = places.setdefault((row, column), 0)
        places[row, column] += 1
        if place < (min(listed, max(1, listed // 4)) if row == column else listed):
            yield row, column, place, paths[i], round(100 * float(sure[i]))
