"""Testing a finished network on a folder of images."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console

from scenedistill.core.disk import write_json
from scenedistill.core.errors import UserError
from scenedistill.core.precision import compute_device, resolve_precision
from scenedistill.core.terminal import counted
from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import build_cache
from scenedistill.data.names import positions_in
from scenedistill.data.scenes import SceneIndex, scan
from scenedistill.data.splits.files import read_split
from scenedistill.metrics.accuracy import SceneMetrics, scene_metrics
from scenedistill.metrics.cost import model_cost
from scenedistill.metrics.plots import write_confusion
from scenedistill.metrics.predict import predict
from scenedistill.models.files import NetCard, load_net
from scenedistill.runs.find import EXPORTED, networks_below
from scenedistill.runs.network import WEIGHTS


def evaluate(
    weights: Path,
    data: Path,
    out: Path,
    *,
    split: Path | None = None,
    part: str = "test",
    precision: str = "auto",
    console: Console,
) -> SceneMetrics:
    """Test a network and write `metrics.json` and its confusion matrix.

    Args:
        weights: `weights.safetensors` of a finished training, or its folder.
        data: folder with the network's classes as sub-folders (it may lack some), or a CSV manifest.
        out: folder for the figures.
        split: split file; when not given, all images are tested, or those in the folder of the part if there is one.
        part: part of the split.
        precision: `bf16`, `fp16`, `fp32` or `auto`; the precision of the run reproduces its figures.
        console: console for the messages.

    Raises:
        UserError: no such network, a run's folder (the message lists its students), or a class the network does not
            know.
    """
    net, card = load_net(_file_of(weights, data) if weights.is_dir() else weights)
    index = scan(data)
    labels = _labels(index, card)
    cache = build_cache(index, card.stored_size or card.image_size, bands=card.bands)
    if split is None and index.parts is not None:
        split = index.root
        console.print(f"The part {part} of the folder counts.")
    positions = read_split(split, index).parts()[part] if split else np.arange(len(index))
    device = compute_device("auto")
    found = predict(
        net,
        ScenePart(cache, positions),
        image_size=card.image_size,
        device=device,
        precision=resolve_precision(precision, device),
    )
    metrics = scene_metrics(found, labels[positions], card.classes)
    out.mkdir(parents=True, exist_ok=True)
    write_confusion(metrics, out, part)
    figures = {"oa": metrics.oa, "aa": metrics.aa, "kappa": metrics.kappa, "macro_f1": metrics.macro_f1}
    cost = asdict(model_cost(net.cpu(), card.image_size, card.bands))
    write_json(
        out / "metrics.json", {**figures, "per_class": metrics.per_class, "images": len(positions), "cost": cost}
    )
    text = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
    console.print(
        f"{card.name} on {counted(len(positions), 'image')}: {text}. Figures and confusion matrix are in {out}"
    )
    return metrics


def _file_of(folder: Path, data: Path) -> Path:
    """Find the network's file in the folder of a training or of an export."""
    files = [folder / name for name in (WEIGHTS, EXPORTED[0])]
    if found := next((file for file in files if file.is_file()), None):
        return found
    students = [network for network in networks_below(folder) if network.method]
    if not students:
        raise UserError(f"{folder} holds no trained student. Give the weights.safetensors of a finished training.")
    commands = [shlex.join(["scenedistill", "evaluate", str(one.folder), str(data)]) for one in students]
    more = f"\n  and {len(students) - 10} more" if len(students) > 10 else ""
    raise UserError(
        f"{folder} is a run's folder and evaluate tests one network. Its students, with the commands:"
        + "".join(f"\n  {line}" for line in commands[:10])
        + more
    )


def _labels(index: SceneIndex, card: NetCard) -> np.ndarray:
    """Convert the labels of the folder to the network's class order."""
    numbers = np.array(positions_in(index.classes, card.classes), dtype=np.int64)
    if unknown := [name for name, number in zip(index.classes, numbers, strict=True) if number < 0]:
        raise UserError(
            f"The network does not know {', '.join(unknown[:5])}; it knows {', '.join(card.classes[:40])}. "
            "Give images of its classes, in folders of the same names."
        )
    return numbers[index.labels]
