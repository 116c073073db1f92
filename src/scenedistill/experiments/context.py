"""State shared by the stages of an experiment (settings, images, device, folder) and of one seed (split)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import _get_rank
from rich.console import Console

from scenedistill.config import RunConfig
from scenedistill.core.errors import UserError
from scenedistill.core.memory import keep_memory
from scenedistill.core.precision import Precision, compute_device, flush_denormals, resolve_precision
from scenedistill.core.terminal import counted
from scenedistill.data.cache.build import cache_home
from scenedistill.data.names import nfc
from scenedistill.data.scenes import SceneIndex, scan
from scenedistill.data.splits.draw import Split, make_split
from scenedistill.data.splits.files import read_split
from scenedistill.experiments.images import ExperimentImages, decode
from scenedistill.experiments.run_folder import RunFolder
from scenedistill.experiments.settings import plain, settings_text
from scenedistill.models.files import NetCard
from scenedistill.training.runs import Stage
from scenedistill.training.teacher_outputs.knowledge import Knowledge

#: Increased when the same settings lead to another training: other views, another loss, another order of the images.
#: Stages of an older number are then trained again.
METHOD_VERSION = 3


def split_of(
    config: RunConfig, index: SceneIndex, seed: int, val_fold: int = 0, scanned: SceneIndex | None = None
) -> Split:
    """Draw or read the split of a seed, with one of the disjoint validation parts that can be drawn; a file may name
    images of `scanned` that `index` lacks.

    Raises:
        UserError: it cannot be drawn or read, or has no validation images and the best epoch is wanted.
    """
    settings = config.data
    file = settings.split_file or (None if index.parts is None else index.root)
    if file and val_fold:
        raise UserError(f"{file} has one validation part, so that further folds cannot be drawn. Take one fold.")
    if file:
        split = read_split(file, index, scanned)
    else:
        split = make_split(
            index, settings.train_ratio, seed, settings.val_fraction, val_fold, test_ratio=settings.test_ratio
        )
    if config.best_epoch and not len(split.val):
        more = "a split file with a part val" if file else "--data.val_fraction, such as 0.1"
        raise UserError(f"--best_epoch true needs validation images. Give {more}.")
    return split


@dataclass
class Experiment:
    """An experiment with decoded images and an existing folder, made by `Experiment.open`.

    Attributes:
        config: every setting.
        images: decoded images and unlabelled images.
        folder: folder of the run.
        console: console for the messages; silent in all processes of a run but the first.
        lead: whether this is the first process of the run.
        device: device of the computation.
        precision: `bf16`, `fp16` or `fp32`.
        scanned: all images, with those that were left out because they cannot be read.
    """

    config: RunConfig
    images: ExperimentImages
    folder: RunFolder
    console: Console
    lead: bool
    device: torch.device
    precision: Precision
    scanned: SceneIndex

    @classmethod
    def open(
        cls,
        data: Path,
        out: Path,
        config: RunConfig,
        console: Console,
        *,
        index: SceneIndex | None = None,
        opening: Console | None = None,
    ) -> Experiment:
        """Make the folder, decode the images and set the process's threads.

        Args:
            data: folder with one sub-folder for each class, or a CSV manifest.
            out: the run's folder.
            config: every setting.
            console: console for the messages.
            index: the images of `data`, where they are known already.
            opening: console for the messages while the images are opened; `console` when not given.

        Raises:
            UserError: images or folder cannot be used, the folder lies inside that of the images, or images are stored
                smaller than the networks' input.
        """
        lead = not _get_rank()
        console, opening = (one if lead else Console(quiet=True) for one in (console, opening or console))
        device = compute_device(config.machine.accelerator)
        precision = resolve_precision(config.machine.precision, device)
        keep_memory()
        flush_denormals()
        if config.machine.threads:
            torch.set_num_threads(config.machine.threads)
        if config.data.stored_size < config.image_size:
            raise UserError(
                f"Images are stored at {config.data.stored_size} pixels and wanted at {config.image_size}. "
                f"Give --data.stored_size {config.image_size} or more."
            )
        if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
            raise UserError(f"{out} lies inside the folder of the images, {data}. Give another one with --out.")
        index = scan(data) if index is None else index
        if index.parts is not None and config.data.split_file is None:
            config = replace(config, data=replace(config.data, split_file=index.root))
        folder = RunFolder(out, console, lead)
        folder.make()
        images = decode(index, data, config.data, opening, lead)
        images.console = console
        return cls(config, images, folder, console, lead, device, precision, index)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the scene classes."""
        return self.images.cache.index.classes

    @property
    def knowledge_home(self) -> Path:
        """Folder of all stored teacher outputs."""
        return (self.config.data.cache_dir or cache_home()) / "knowledge"

    def card(self, name: str, dual_attention: bool, *, stride_in_first_convolution: bool = False) -> NetCard:
        """Return the card of a network trained in this experiment."""
        data, size = self.config.data, self.config.image_size
        return NetCard(
            name, self.classes, data.bands, size, dual_attention, stride_in_first_convolution, data.stored_size
        )

    def of_seed(self, seed: int, val_fold: int = 0) -> SeedContext:
        """Create the context of one seed: draw or read its split, and print its sizes.

        Args:
            seed: the seed.
            val_fold: number of the validation part, >= 0, where the split is drawn (`make_split`).
        """
        split = split_of(self.config, self.images.cache.index, seed, val_fold, self.scanned)
        sizes = (
            f"{len(split.train):,} training, {len(split.val):,} validation, {counted(len(split.test), 'test image')}"
        )
        self.console.print(f"Seed {seed}: {sizes}, split {split.hash}", style="bold")
        if told := self.images.duplicates.text(split) if self.lead else "":
            self.console.print(told, markup=False)
        return SeedContext(self, seed, split)


@dataclass
class SeedContext:
    """State shared by all stages of one seed.

    Attributes:
        experiment: settings, images, device and folder.
        seed: seed of the split, the initial weights and the views.
        split: split of the images.
        knowledge: the teacher outputs opened last, with the key of what they depend on.
    """

    experiment: Experiment
    seed: int
    split: Split
    knowledge: tuple[object, Knowledge] | None = None

    @property
    def config(self) -> RunConfig:
        """Every setting."""
        return self.experiment.config

    @property
    def folder(self) -> Path:
        """Folder of the seed's stages in a run."""
        return self.experiment.folder.path / f"seed{self.seed}"

    def say(self, text: str) -> None:
        """Print an indented line below that of the seed."""
        self.experiment.console.print(f"  {text}", markup=False)

    def keep(self) -> None:
        """Schedule for when a stage is first locked: write the settings and the split into the run's folder, and
        compare the images with those used before."""
        experiment = self.experiment

        def write() -> None:
            experiment.folder.write_seed(self.seed, settings_text(self.config), self.split, experiment.images.cache)

        experiment.folder.before_first_stage.append(write)

    def hold(self) -> AbstractContextManager[None]:
        """Lock all stages of the seed against other runs."""
        return self.experiment.folder.hold_seed(self.seed)

    def stage(self, folder: Path, settings: Mapping[str, Any]) -> Stage:
        """Return a stage whose fingerprint covers all that its result depends on."""
        experiment, config, split = self.experiment, self.config, self.split
        shared = {
            "method": METHOD_VERSION,
            "seed": self.seed,
            "image_size": config.image_size,
            "views": plain(config.views),
            "precision": experiment.precision,
            "data": {
                "classes": [nfc(name) for name in experiment.classes],
                "stored_size": config.data.stored_size,
                "bands": config.data.bands,
                "split": split.hash,
            },
        }
        sizes = {part: len(positions) for part, positions in split.parts().items()}
        notes = {"split": {"train_ratio": split.train_ratio, **sizes}, "images": experiment.images.record}
        return Stage(folder, {**shared, **settings}, notes)
