"""What the page's script is given of the confusion matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from scenedistill.reporting.html.images import Thumbnails
from scenedistill.reporting.html.matrices import LISTED, matrices
from scenedistill.runs.run import Run


def test_counts_and_images_are_those_of_the_outputs(made: Any) -> None:
    (cell,) = Run.open(made.run).cells
    found = matrices(cell, [])
    assert found is not None and found.content["classes"] == list(cell.classes)
    assert [n["name"] for n in found.content["networks"]] == [
        f"table1_printed, {x}" for x in ("teacher", "plain", "dkd")
    ]
    for group, networks in zip(found.content["networks"], cell.groups().values(), strict=True):
        for one, network in zip(group["seeds"], networks, strict=True):
            counts = np.zeros_like(network.confusion)
            for row, column, count in one["counts"]:
                counts[row, column] = count
            assert one["seed"] == network.seed and (counts == network.confusion).all()
            assert network.outputs is not None
            label = dict(zip(network.test_paths, network.outputs.labels, strict=True))
            named = dict(zip(network.test_paths, network.outputs.predicted, strict=True))
            for place, images in one["behind"].items():
                row, column = map(int, place.split(","))
                most = LISTED // 4 if row == column else LISTED
                assert len(images) == min(most, counts[row, column])
                assert all(label[found.paths[i]] == row and named[found.paths[i]] == column for i, _ in images)
                sure = [percent for _, percent in images]
                assert sure == sorted(sure, reverse=row != column), "the surest mistakes, the least sure right ones"


def test_examined_networks_and_wrong_images_come_first(made: Any) -> None:
    (cell,) = Run.open(made.run).cells
    focus_networks = [n for n in cell.networks if n.label == "dkd"]
    found = matrices(cell, focus_networks)
    assert found is not None and sorted(found.wanted) == list(range(len(found.paths)))
    wrong = set()
    for n in focus_networks:
        assert n.outputs is not None
        told = zip(n.test_paths, n.outputs.labels, n.outputs.predicted, strict=True)
        wrong |= {path for path, label, named in told if label != named}
    first = [found.paths[i] for i in found.wanted[:5]]
    assert set(first) <= wrong
    copies = Thumbnails(10**6)
    found.attach(made.manifest.parent, copies)
    assert [path for path, _ in found.content["images"]] == found.paths
    assert sorted(number for _, number in found.content["images"]) == list(range(len(found.paths)))
    found.attach(None, copies)
    assert {number for _, number in found.content["images"]} == {-1}
