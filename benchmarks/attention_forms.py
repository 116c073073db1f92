"""Compare forms of the DA module for a student by short trainings, on validation images alone.

    python benchmarks/attention_forms.py path/to/AID results/attention_forms.json [--forms none bounded ...]

trains `table1_resnet` from scratch on the labels, with each form of the module behind its stages, on four of five folds
of the training images of seed 0 (20 %), and tests it on the fifth. The test images of seed 0 are not used. A row's seed
is the number of its fold.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from records.command import this_command
from scenedistill.config import MachineConfig, StudentConfig, StudentFitConfig
from scenedistill.core.memory import keep_memory
from scenedistill.core.precision import compute_device, flush_denormals, resolve_precision
from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import build_cache
from scenedistill.data.module import SceneDataModule
from scenedistill.data.scenes import scan
from scenedistill.data.splits.draw import Split, assemble, make_split
from scenedistill.data.views import ViewConfig
from scenedistill.experiments.results.environment import measured_here
from scenedistill.experiments.results.record import Result, Row, write_result
from scenedistill.metrics.accuracy import scene_metrics
from scenedistill.metrics.predict import predict
from scenedistill.models.attention import DualAttention, SigmoidAttention
from scenedistill.models.create import build_student
from scenedistill.models.network import SceneNet
from scenedistill.training.fitting import fit
from scenedistill.training.student import StudentTraining

FOLDS, STORED, BATCH = 5, 72, 64
STUDENT = "table1_resnet"


class SigmoidOnNormalised(DualAttention):
    """Sigmoid gates in 0..1 on normalised summaries."""

    def _gate(self, score: Tensor) -> Tensor:
        return torch.sigmoid(score)


class BoundedOnRaw(SigmoidAttention):
    """Bounded gates on raw summaries."""

    def _gate(self, score: Tensor) -> Tensor:
        return 0.5 + torch.tanh(score) / 4


class WithinImage(DualAttention):
    """Bounded gates; each map is standardised over its own positions, the channels by layer norm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.pooled_norm = nn.LayerNorm(channels)  # type: ignore[assignment]

    def _norm_summary(self, summary: Tensor) -> Tensor:
        centred = summary.float() - summary.float().mean((2, 3), keepdim=True)
        return centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()


class ChannelsAlone(DualAttention):
    """Bounded channel gates; the spatial gate is the same at every position."""

    def _norm_summary(self, summary: Tensor) -> Tensor:
        return 0 * super()._norm_summary(summary)


FORMS: dict[str, type[DualAttention] | None] = {
    "none": None,
    "sigmoid": SigmoidAttention,
    "bounded": DualAttention,
    "sigmoid_normalised": SigmoidOnNormalised,
    "bounded_raw": BoundedOnRaw,
    "within_image": WithinImage,
    "channels_alone": ChannelsAlone,
}


def student_with(form: str, classes: int, pixels: int) -> SceneNet:
    """Build the student from a fixed initialisation, with a form of the module behind each stage."""
    torch.manual_seed(0)
    kind = FORMS[form]
    net = build_student(STUDENT, classes, image_size=pixels, dual_attention=kind is not None)
    if kind is not None:
        for stage, width in zip(net.stages, net.dims.stages, strict=True):
            stage.attention = kind(width)
    return net


def fold_of(split: Split, labels: np.ndarray, number: int) -> np.ndarray:
    """Return the part of every image of the data set, stratified: 0 training, 1 validation, -1 unused."""
    part = np.full(len(labels), -1, np.int8)
    draw = np.random.default_rng(0)
    for label in np.unique(labels):
        members = draw.permutation(split.train[labels[split.train] == label])
        part[members] = np.arange(len(members)) % FOLDS == number
    return part


def main() -> None:
    """Train every form on every fold asked for, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=64)
    given = parser.parse_args()
    keep_memory()
    flush_denormals()
    console, device = Console(), compute_device("auto")
    precision = resolve_precision("auto", device)
    cache = build_cache(scan(given.data), STORED)
    whole = make_split(cache.index, 0.2, seed=0)
    student = StudentConfig(method="plain", fit=StudentFitConfig(epochs=given.epochs, batch_size=BATCH))
    rows, started = [], time.monotonic()
    for number in range(given.folds):
        fold = fold_of(whole, cache.index.labels, number)
        part = ScenePart(cache, np.flatnonzero(fold == 1))
        training = assemble(cache.index, np.where(fold == 0, fold, -1), 0.2, 0)
        for form in given.forms:
            net = student_with(form, len(cache.index.classes), given.pixels)
            module = StudentTraining(net, student, {"ce": 1.0}, ViewConfig(), image_size=given.pixels, seed=0)
            data = SceneDataModule(cache, training, batch_size=BATCH, seed=0)
            with tempfile.TemporaryDirectory() as folder:
                fit(module, data, Path(folder), MachineConfig(), title=form, console=Console(quiet=True))
            found = predict(net, part, image_size=given.pixels, device=device, precision=precision)
            metrics = scene_metrics(found, part.labels, cache.index.classes)
            parameters = sum(parameter.numel() for parameter in net.parameters())
            console.print(f"fold {number}  {form}: {metrics.oa:.2%}", markup=False)
            figures = (metrics.oa, metrics.aa, metrics.kappa, metrics.macro_f1, parameters)
            rows.append(Row(form, STUDENT, None, number, *figures))
    result = Result(
        experiment=given.results.stem,
        command=this_command(),
        **measured_here(),
        data=given.data.resolve().name,
        pixels=given.pixels,
        train_ratio=0.2,
        split_hash={"0": whole.hash},
        epochs={"student": given.epochs},
        wall_seconds=time.monotonic() - started,
        rows=tuple(rows),
        notes="OA on a fifth of seed 0's training images; the seed of a row is the number of its fold.",
    )
    print(write_result(result, given.results))


if __name__ == "__main__":
    main()
