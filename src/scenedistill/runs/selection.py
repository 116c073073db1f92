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
    label = network.label.partition("@")[0]

    def among(name: str, value: object) -> bool:
        return not grid.get(name) or value in grid[name]

    if network.student and not (among("methods", label) and among("students", network.student)):
        return None
    if not grid or network.tuning:
        return network if not grid or grid.get("tuning") else None
    blocks = [f"{data}-{100 * ratio:g}" for data in grid.get("datasets") or () for ratio in grid.get("ratios") or ()]
    if not among("seeds", network.seed) or (blocks and block not in blocks):
        return None
    mark: str | None = ""
    tuned = "teacher" in network.settings or _at(grid, "tuning", "learning_rates")
    if network.student and grid.get("tuning") and tuned:
        mark = _chosen_mark(_at(tuning, "chosen", block, network.student, label))
    return replace(network, label=label) if mark is not None and network.label == label + mark else None


def candidate_mark(factor: float | None, learning_rate: float | None) -> str:
    """Return what follows the method's label in the name of the folder of a training with tuned settings.

    Args:
        factor: factor on the weight of all losses that use the teacher; None where it is not named.
        learning_rate: peak learning rate; None where it is the method's own.

    Examples:
        >>> from scenedistill.runs.selection import candidate_mark
        >>> candidate_mark(0.1, None), candidate_mark(None, 0.05), candidate_mark(10, 0.05)
        ('@0.1', '@lr0.05', '@10_lr0.05')
    """
    parts = [f"{factor:g}"] if factor is not None else []
    parts += [f"lr{learning_rate:g}"] if learning_rate is not None else []
    return f"@{'_'.join(parts)}" if parts else ""


def _chosen_mark(choice: Any) -> str | None:
    """Return the mark of the settings that a method's entry of tuning.json names as chosen; None where there are
    none."""
    factor, rate = (_at(choice, name) for name in ("factor", "learning_rate"))
    if not isinstance(factor, int | float) and not isinstance(rate, int | float):
        return None
    return candidate_mark(None if factor == 1 else factor, rate)


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
