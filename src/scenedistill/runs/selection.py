"""Selecting the networks of a grid, and those of a cell that can be compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from scenedistill.runs.network import Network

SHARED = ("method", "image_size", "views", "precision", "data")  # settings that all networks of a seed have in common


def of_grid(network: Network, block: str, grid: Mapping[str, Any], tuning: Mapping[str, Any]) -> Network | None:
    """Label a network with its method; None where it is another grid's, or has another weight than tuning chose.

    Args:
        network: network in the folder.
        block: folder of its data set and ratio.
        grid: the grid's settings; empty for a run, to which every network belongs.
        tuning: the grid's tuning.json.
    """
    label, _, factor = network.label.partition("@")

    def among(name: str, value: object) -> bool:
        return not grid.get(name) or value in grid[name]

    if network.student and not (among("methods", label) and among("students", network.student)):
        return None
    if not grid or network.tuning:
        return network if not grid or grid.get("tuning") else None
    blocks = [f"{data}-{100 * ratio:g}" for data in grid.get("datasets") or () for ratio in grid.get("ratios") or ()]
    if not among("seeds", network.seed) or (blocks and block not in blocks):
        return None
    wanted: str | None = ""
    if network.student and grid.get("tuning") and "teacher" in network.settings:
        chosen = _at(tuning, "chosen", block, network.student, label, "factor")
        wanted = None if not isinstance(chosen, int | float) else "" if chosen == 1 else f"{chosen:g}"
    return replace(network, label=label) if factor == wanted else None


def of_one_setting(networks: Sequence[Network]) -> tuple[list[Network], list[Network]]:
    """Divide the networks of a cell into those that can be compared, and the others.

    For each seed the teacher's settings are the reference, or the most frequent settings where there is no teacher. A
    student of another teacher than the present one is among the others.
    """
    kept: list[Network] = []
    others: list[Network] = []
    for seed in dict.fromkeys(network.seed for network in networks):
        own = [network for network in networks if network.seed == seed]
        teacher = next((network for network in own if network.student is None), None)
        wanted = _shared(teacher) if teacher else Counter(map(_shared, own)).most_common(1)[0][0]
        for network in own:
            taught_by = network.settings.get("teacher") if network.student else None
            strange = bool(teacher and taught_by and taught_by != teacher.stage.get("fingerprint"))
            (others if strange or _shared(network) != wanted else kept).append(network)
    return kept, others


def _shared(network: Network) -> str:
    return json.dumps({name: network.settings.get(name) for name in SHARED}, sort_keys=True, default=str)


def _at(content: Any, *names: str) -> Any:
    """Return the value below these nested keys; None where one is missing."""
    for name in names:
        content = content.get(name) if isinstance(content, dict) else None
    return content
