"""Table 3 of a run or a grid: size, operations, latency and accuracy of its teacher and students."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from scenedistill.core.errors import UserError
from scenedistill.experiments.results.costs import CostResult, CostRow, cost_rows
from scenedistill.experiments.results.environment import measured_here
from scenedistill.experiments.stages.files import WEIGHTS
from scenedistill.metrics.cost import cost_table
from scenedistill.models.create import build_network
from scenedistill.models.files import NetCard, load_net
from scenedistill.models.network import SceneNet
from scenedistill.runs.run import Run

UNTRAINED = "untrained"


def measure_costs(
    folder: Path,
    *,
    cell: str | None = None,
    beside: Sequence[str] = (),
    batch_sizes: Sequence[int] = (1, 64),
    repeats: int = 100,
    threads: int | None = None,
    command: str = "",
) -> CostResult:
    """Measure every architecture of a run or of one cell of a grid; networks that differ by training and seed cost the
    same.

    Args:
        folder: folder of a run or a grid; training need not be complete.
        cell: data set and ratio of a grid, such as `AID-20`; the first one when not given.
        beside: names of further networks, with random weights, before the others: the first one is the reference to
            which the others are compared.
        batch_sizes: images in a pass, each >= 1.
        repeats: timed passes, >= 1.
        threads: CPU threads; all cores when not given.
        command: command that repeats the measurement, for the record.

    Raises:
        UserError: no such folder, cell or network, or a number below 1.
    """
    if repeats < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise UserError(f"repeats is {repeats} and batch_sizes {list(batch_sizes)}; expected 1 or more, each.")
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}; expected 1 or more.")
    data = Run.open(folder)
    chosen = data.cell(cell)
    groups = chosen.groups()
    trained = {key: load_net(networks[0].folder / WEIGHTS) for key, networks in groups.items()}
    (_, card), *_ = trained.values()
    nets: dict[NetCard | str, SceneNet] = {
        name: build_network(
            name,
            len(card.classes),
            dual_attention=card.dual_attention,
            bands=card.bands,
            image_size=card.image_size,
            weights="none",
        )[0]
        for name in beside
    }
    for net, its in trained.values():
        nets.setdefault(its, net)
    if threads:
        torch.set_num_threads(threads)
    numbered = {str(number): net for number, net in enumerate(nets.values())}
    costs = cost_table(numbered, card.image_size, card.bands, batch_sizes=batch_sizes, repeats=repeats)
    by_net = dict(zip(nets, costs.values(), strict=True))
    rows: list[CostRow] = []
    for name in beside:
        rows += cost_rows(UNTRAINED, name, by_net[name], [])
    for (name, label), networks in groups.items():
        rows += cost_rows(label, name, by_net[trained[name, label][1]], [each.tested["oa"] for each in networks])
    return CostResult(
        experiment="costs",
        command=command or "scenedistill.experiments.measure_costs",
        **measured_here(),
        data=data.title_of(chosen),
        pixels=card.image_size,
        threads=torch.get_num_threads(),
        precision="fp32",
        rows=tuple(rows),
        notes=f"{', '.join(beside)} with random weights, for what it costs." if beside else "",
    )
