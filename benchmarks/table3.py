"""Table 3: what the teacher and the students cost, from their weights files.

    python benchmarks/table3.py results/table3_aid.json teacher=RUN/seed0/teacher/weights.safetensors \
        dkd=RUN/seed0/table1_resnet/dkd/weights.safetensors [--oa dkd=0.90,0.91,0.90]

The first network is the one the others are compared with. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from scenedistill.errors import UserError
from scenedistill.evaluation.cost import NetworkCost, cost_table
from scenedistill.experiments.costs import CostResult, CostRow, cost_rows, costs_table
from scenedistill.experiments.records import write_record
from scenedistill.experiments.results import hardware, versions
from scenedistill.models.files import NetCard, load_net
from scenedistill.models.network import SceneNet

SEED = re.compile(r"seed\d+")


def measure(
    weights: Mapping[str, Path], *, batch_sizes: Sequence[int], repeats: int
) -> tuple[dict[str, tuple[NetCard, NetworkCost]], int]:
    """The cost of each network, of those with the same architecture once, and their common size in pixels.

    Raises:
        UserError: no such network, or they take images of different sizes or bands.
    """
    nets: dict[NetCard, SceneNet] = {}
    cards: dict[str, NetCard] = {}
    for label, path in weights.items():
        net, cards[label] = load_net(path)
        nets.setdefault(cards[label], net)
    shapes = {(card.image_size, card.bands) for card in nets}
    if len(shapes) > 1:
        found = ", ".join(f"{size} pixels with {bands} bands" for size, bands in sorted(shapes))
        raise UserError(f"The networks take images of {found}. Give networks of one size, or a file for each size.")
    ((size, bands),) = shapes
    numbered = {str(number): net for number, net in enumerate(nets.values())}
    costs = cost_table(numbered, size, bands, batch_sizes=batch_sizes, repeats=repeats)
    by_card = dict(zip(nets, costs.values(), strict=True))
    return {label: (card, by_card[card]) for label, card in cards.items()}, size


def tested_oa(weights: Path) -> list[float]:
    """The OA that the run found for these weights, where its test lies beside them."""
    try:
        record = json.loads((weights.parent / "evaluation" / "stage.json").read_text(encoding="utf-8"))["record"]
        return [float(record["oa"])]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def named(texts: Sequence[str], what: str) -> dict[str, str]:
    """NAME=... texts by name."""
    pairs = [text.partition("=") for text in texts]
    for text, (name, equals, value) in zip(texts, pairs, strict=True):
        if not (name and equals and value):
            raise UserError(f"'{text}' is not NAME={what}.")
    return {name: value for name, _, value in pairs}


def fraction(text: str) -> float:
    """An OA that was given."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(f"'{text}' is no OA; expected a fraction in 0..1, such as 0.915.")
    return value


def in_run(path: Path) -> str:
    """A weights file's place in its run, without what is this machine's own."""
    parts = path.resolve().parts
    start = next((number for number, part in enumerate(parts) if SEED.fullmatch(part)), len(parts) - 1)
    return "/".join(parts[start:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="JSON file to write")
    parser.add_argument("networks", nargs="+", metavar="NAME=WEIGHTS", help="teacher first")
    parser.add_argument(
        "--oa", nargs="+", default=[], metavar="NAME=OA[,OA...]", help="of each seed, 0..1; else the run's own"
    )
    parser.add_argument("--data", default="AID", help="name of the data set")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, help="of the CPU; all cores when not given")
    parser.add_argument("--notes", default="")
    given = parser.parse_args(arguments)
    try:
        weights = {name: Path(path) for name, path in named(given.networks, "weights.safetensors").items()}
        oas = {name: [fraction(value) for value in text.split(",")] for name, text in named(given.oa, "OA").items()}
        unknown = sorted(set(oas) - set(weights))
        if unknown:
            raise UserError(f"--oa names {unknown[0]}, which is not among the networks: {', '.join(weights)}.")
        if given.threads:
            torch.set_num_threads(given.threads)
        if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
            print(f"other work is going on here (load {os.getloadavg()[0]:.1f}): the times will be too long")
        measured, pixels = measure(weights, batch_sizes=given.batch_sizes, repeats=given.repeats)
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 1
    rows: list[CostRow] = []
    for name, (card, cost) in measured.items():
        rows += cost_rows(name, card.name, cost, oas.get(name) or tested_oa(weights[name]))
    said = [f"{name}={in_run(path)}" for name, path in weights.items()]
    more = ["--oa", *given.oa] if given.oa else []
    result = CostResult(
        experiment=given.results.stem,
        command=shlex.join(["python", "benchmarks/table3.py", f"results/{given.results.name}", *said, *more]),
        date=datetime.date.today().isoformat(),
        hardware=hardware(),
        versions=versions(),
        data=given.data,
        pixels=pixels,
        threads=torch.get_num_threads(),
        precision="fp32",
        rows=tuple(rows),
        notes=given.notes,
    )
    print(costs_table(result), write_record(result, given.results), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
