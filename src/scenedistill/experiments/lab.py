"""What all stages of an experiment share: the images, the device, the run's folder."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import _get_rank
from rich.console import Console

from scenedistill.config import RunConfig
from scenedistill.core.disk import clear_parts, read_json, write_json
from scenedistill.core.errors import UserError
from scenedistill.core.memory import keep_memory
from scenedistill.core.precision import compute_device, flush_denormals, resolve_precision
from scenedistill.core.terminal import counted
from scenedistill.core.yaml_files import write_yaml
from scenedistill.data.batches import ScenePart, content_hash
from scenedistill.data.cache.build import SceneCache, build_cache, cache_home
from scenedistill.data.duplicates import Duplicates, duplicates_in_cache
from scenedistill.data.known.catalogue import check, recognise
from scenedistill.data.names import nfc
from scenedistill.data.scenes import SceneIndex, scan
from scenedistill.data.splits.draw import Split, make_split
from scenedistill.data.splits.files import read_split, write_split
from scenedistill.data.unlabelled.pool import UnlabelledImages, UnlabelledPool, collect_unlabelled
from scenedistill.experiments.settings import plain, settings_text
from scenedistill.experiments.stage_files import BEST_WEIGHTS, WEIGHTS, log_hashes, stage_damage
from scenedistill.models.files import NetCard, save_net, weights_hash
from scenedistill.models.network import SceneNet
from scenedistill.training.best import Best
from scenedistill.training.runs import Stage
from scenedistill.training.teacher_outputs.knowledge import Knowledge

#: Raised when the same settings come to mean another training: other views, another loss, another order of the images.
#: What was trained under an older number is then trained again.
METHOD_VERSION = 3


def split_of(config: RunConfig, index: SceneIndex, seed: int) -> Split:
    """The split of a seed, drawn or read.

    Raises:
        UserError: it cannot be had, or has no validation images and the best epoch is asked for.
    """
    settings = config.data
    file = settings.split_file or (None if index.parts is None else index.root)
    split = read_split(file, index) if file else make_split(index, settings.train_ratio, seed, settings.val_fraction)
    if config.best_epoch and not len(split.val):
        more = "a split file with a part val" if file else "--data.val_fraction, such as 0.1"
        raise UserError(f"--best_epoch true needs validation images. Give {more}.")
    return split


class Lab:
    """Opens the images and knows where everything of a run lies.

    Args:
        data: folder with one sub-folder for each class, or a CSV manifest.
        out: the run's folder.
        config: every setting.
        console: to print to; silent in all processes of a run but the first.
        index: the images of `data`, where they are known already.
    """

    def __init__(
        self, data: Path, out: Path, config: RunConfig, console: Console, index: SceneIndex | None = None
    ) -> None:
        self.out, self.config = out, config
        self.lead = not _get_rank()
        self.console = console if self.lead else Console(quiet=True)
        self.device = compute_device(config.machine.accelerator)
        self.precision = resolve_precision(config.machine.precision, self.device)
        keep_memory()
        flush_denormals()
        if config.machine.threads:
            torch.set_num_threads(config.machine.threads)
        if config.data.stored_size < config.image_size:
            raise UserError(
                f"Images are stored at {config.data.stored_size} pixels and wanted at {config.image_size}. "
                f"Give --data.stored_size {config.image_size} or more."
            )
        index = scan(data) if index is None else index
        if index.parts is not None and config.data.split_file is None:
            self.config = replace(config, data=replace(config.data, split_file=index.root))
        self._make_folder()
        self.cache = self._decode(index)
        facts = recognise(self.cache.index)
        self.data_name = facts.name if facts else data.resolve().name
        self._without_labels: UnlabelledImages | None = None
        self._pools: dict[str, UnlabelledPool] = {}  # by the split's hash
        self.training_images = 0  # of the last split
        self.knowledge: tuple[object, Knowledge] | None = None  # of the last teacher, under what it depends on
        self._told: dict[int, Split] = {}  # by seed: the splits that the first stage to be held writes

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the scene classes."""
        return self.cache.index.classes

    @property
    def knowledge_home(self) -> Path:
        """Folder of all knowledge that is kept."""
        return (self.config.data.cache_dir or cache_home()) / "knowledge"

    def _make_folder(self) -> None:
        """The folder alone: what lies in it may be another run's, until a stage of it is held."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            if self.lead and not os.access(self.out, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as problem:
            reason = "it is a file" if self.out.is_file() else problem.strerror
            raise UserError(f"{self.out} cannot be the run's folder: {reason}. Give another with --out.") from problem

    def _decode(self, index: SceneIndex) -> SceneCache:
        for note in index.notes:
            self.console.print(note, markup=False)
        known = recognise(index)
        self.console.print(
            str(check(index)) if known else f"{index.root.name}: {counted(len(index), 'image')}", markup=False
        )
        settings = self.config.data
        cache = build_cache(
            index,
            settings.stored_size,
            bands=settings.bands,
            folder=settings.cache_dir,
            workers=settings.workers,
            on_bad=settings.on_bad,
            progress=self.lead,
        )
        self.console.print(f"Decoded: {cache.report}")
        for path, reason in cache.bad:
            self.console.print(f"  left out {path}: {reason}", markup=False)
        return cache

    @cached_property
    def duplicates(self) -> Duplicates:
        """The images that there are more than once."""
        return duplicates_in_cache(self.cache)

    def split(self, seed: int) -> Split:
        """The seed's split, drawn or read."""
        split = split_of(self.config, self.cache.index, seed)
        self.training_images = len(split.train)
        sizes = (
            f"{len(split.train):,} training, {len(split.val):,} validation, {counted(len(split.test), 'test image')}"
        )
        self.console.print(f"Seed {seed}: {sizes}, split {split.hash}", style="bold")
        if told := self.duplicates.text(split) if self.lead else "":
            self.console.print(told, markup=False)
        return split

    def keep(self, seed: int, split: Split) -> None:
        """Have the settings and a seed's split written into the run's folder as soon as a stage is held there, and the
        images compared with those that were seen before."""
        if self.lead:
            self._told[seed] = split

    def _write_told(self) -> None:
        for seed, split in self._told.items():
            folder = self.out / f"seed{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            for place in (self.out, folder):
                clear_parts(place, 3600)  # grids have several writers
            write_yaml(self.out / "settings.yaml", settings_text(self.config))
            write_split(split, self.cache.index, folder / "split.csv")
            self.check_images(seed, split)
        self._told.clear()

    def unlabelled(self, split: Split) -> UnlabelledPool | None:
        """The images without labels that a split may be trained with; None where the settings name none."""
        settings = self.config.data
        if not settings.unlabelled:
            return None
        if self._without_labels is None:
            self._without_labels = collect_unlabelled(
                settings.unlabelled,
                size=settings.stored_size,
                bands=settings.bands,
                tile=settings.unlabelled_tile,
                labelled=self.cache,
                cache_dir=settings.cache_dir,
                workers=settings.workers,
                on_bad=settings.on_bad,
                progress=self.lead,
            )
            for path, reason in self._without_labels.bad:
                self.console.print(f"  left out {path}: {reason}", markup=False)
        if split.hash not in self._pools:
            pool = self._pools[split.hash] = self._without_labels.pool(split, settings.transductive)
            self.console.print(f"  {pool.report}", markup=False)
        return self._pools[split.hash]

    def unlabelled_settings(self, split: Split) -> dict[str, Any]:
        """What the outcome of a training with these images depends on; empty where there are none."""
        pool, settings = self.unlabelled(split), self.config.data
        if pool is None:
            return {}
        found = {"images": pool.hash, "share": settings.unlabelled_share, "transductive": settings.transductive}
        return {"unlabelled": found}

    @property
    def notes(self) -> str:
        """What a reader of the results must know of the images."""
        if not self._pools:
            return ""
        numbers = sorted({len(pool) for pool in self._pools.values()})
        several = f"{numbers[0]:,} to {numbers[-1]:,}" if len(numbers) > 1 else f"{numbers[0]:,}"
        share = f"{100 * self.config.data.unlabelled_share:g} % of each batch"
        told = f"Distilled with {several} images without labels, {share}."
        if self.config.data.transductive:
            told += " Transductive: test images may be among them, without their labels."
        return told

    def check_images(self, seed: int, split: Split) -> None:
        """Say so when what is done of a seed was made from images of the same names and other content."""
        if not self.lead:
            return
        path = self.out / f"seed{seed}" / "images.json"
        rows = np.concatenate([split.train, split.val, split.test])
        settings = self.config.data
        name = f"{split.hash}, {settings.stored_size} pixels, {settings.bands} bands"
        known, found = read_json(path), content_hash(ScenePart(self.cache, rows))
        if known.get(name, found) != found:
            self.console.print(
                f"  these are not the images that {path.parent} was begun with (changed files, or another decoder); "
                "what is done stays as it was: to have all of it anew, give another run folder with --out",
                markup=False,
            )
        if name not in known:
            write_json(path, {**known, name: found}, checksum=True)

    def stage(self, folder: Path, seed: int, split: Split, settings: Mapping[str, Any]) -> Stage:
        """A stage whose fingerprint covers all that its outcome depends on."""
        shared = {
            "method": METHOD_VERSION,
            "seed": seed,
            "image_size": self.config.image_size,
            "views": plain(self.config.views),
            "precision": self.precision,
            "data": {
                "classes": [nfc(name) for name in self.classes],
                "stored_size": self.config.data.stored_size,
                "bands": self.config.data.bands,
                "split": split.hash,
            },
        }
        sizes = {part: len(positions) for part, positions in split.parts().items()}
        images = {
            "name": self.data_name,
            "root": str(self.cache.index.root.resolve()),
            "cache": str(self.cache.folder.resolve()),
        }
        notes = {"split": {"train_ratio": split.train_ratio, **sizes}, "images": images}
        return Stage(folder, {**shared, **settings}, notes)

    @contextmanager
    def hold(self, stage: Stage) -> Iterator[None]:
        """Keep other runs out of a stage; of the processes of one run, the first does it for all.

        Raises:
            UserError: another process holds it, or somebody has removed its folder meanwhile.
        """
        with stage.held() if self.lead else nullcontext():
            self._write_told()
            try:
                yield
            except FileNotFoundError as problem:
                if stage.folder.exists():
                    raise
                raise UserError(
                    f"{stage.folder} was removed or moved while it was worked on. Give the same command again: what is "
                    "no longer there is done anew."
                ) from problem

    def hold_seed(self, seed: int) -> AbstractContextManager[None]:
        """Keep other runs out of all stages of a seed."""
        return Stage(self.out / f"seed{seed}", {}).held() if self.lead else nullcontext()

    def done(self, stage: Stage) -> bool:
        """Whether the stage can be skipped; if not, its folder is made ready.

        A stage with a damaged or missing file is not done.
        """
        name, damaged = stage.folder.relative_to(self.out), stage.damaged
        if not self.lead:
            stage.wait(begun=True)  # the first process may move folders
            return stage.done and not stage_damage(stage)
        if moved := stage.begin():
            reason = "its stage.json is damaged" if damaged else "other settings than before"
            self.console.print(f"  {name}: {reason}; the old one is now {moved.name}", markup=False)
        if stage.done and (problem := stage_damage(stage)):
            self.console.print(f"  {name}: {problem}; it is done again", markup=False)
            shutil.rmtree(stage.folder / "evaluation", ignore_errors=True)
            stage.reopen()
        if stage.done:
            self.console.print(f"  {name}: done before with the same settings", markup=False)
        return stage.done

    def finish(
        self,
        stage: Stage,
        net: SceneNet,
        card: NetCard,
        record: Mapping[str, Any],
        best: Best | None = None,
        logs: Path | None = None,
    ) -> Stage:
        """Keep the network, and its best epoch where that is asked for, and mark the stage as done; every process
        returns when it is."""
        if not self.lead:
            stage.wait()
            return stage
        save_net(net, card, stage.folder / WEIGHTS)
        finished = {**record, "name": card.name, "weights_hash": weights_hash(net), "logs": log_hashes(stage, logs)}
        if best:
            net.load_state_dict(best.tensors)
            save_net(net, card, stage.folder / BEST_WEIGHTS)
            finished["best"] = {"epoch": best.epoch, "val_oa": best.val_oa}
        stage.finish(finished, [WEIGHTS, BEST_WEIGHTS] if best else [WEIGHTS])
        (stage.folder / "checkpoints" / "last.ckpt").unlink(missing_ok=True)  # the optimiser's state has served
        return stage

    def card(self, name: str, dual_attention: bool, *, stride_in_first_convolution: bool = False) -> NetCard:
        """The card of a network trained here."""
        data, size = self.config.data, self.config.image_size
        return NetCard(
            name, self.classes, data.bands, size, dual_attention, stride_in_first_convolution, data.stored_size
        )
