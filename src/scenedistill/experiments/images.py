"""Images of an experiment: decoding, duplicates, and unlabelled images."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from scenedistill.config import DataConfig
from scenedistill.core.terminal import counted
from scenedistill.data.cache.build import SceneCache, build_cache
from scenedistill.data.duplicates import Duplicates, duplicates_in_cache
from scenedistill.data.known.catalogue import check, recognise
from scenedistill.data.scenes import SceneIndex
from scenedistill.data.splits.draw import Split
from scenedistill.data.unlabelled.pool import UnlabelledImages, UnlabelledPool, collect_unlabelled


@dataclass
class ExperimentImages:
    """Decoded labelled images, and the unlabelled images of the settings.

    Attributes:
        cache: the decoded images.
        name: name of the data set.
        settings: settings of the data.
        console: console for the messages.
        lead: whether this is the first process of the run.
    """

    cache: SceneCache
    name: str
    settings: DataConfig
    console: Console
    lead: bool
    _pools: dict[str, UnlabelledPool] = field(default_factory=dict, repr=False)  # by the split's hash

    @property
    def record(self) -> dict[str, str]:
        """Name and location of the images, for the record of a stage."""
        return {
            "name": self.name,
            "root": str(self.cache.index.root.resolve()),
            "cache": str(self.cache.folder.resolve()),
        }

    @cached_property
    def duplicates(self) -> Duplicates:
        """Images that occur more than once."""
        return duplicates_in_cache(self.cache)

    @cached_property
    def _without_labels(self) -> UnlabelledImages:
        settings = self.settings
        found = collect_unlabelled(
            settings.unlabelled,
            self.cache,
            tile=settings.unlabelled_tile,
            cache_dir=settings.cache_dir,
            workers=settings.workers,
            on_bad=settings.on_bad,
            progress=self.lead,
        )
        for path, reason in found.bad:
            self.console.print(f"  left out {path}: {reason}", markup=False)
        return found

    def unlabelled(self, split: Split) -> UnlabelledPool | None:
        """Return the unlabelled images that may be used to train with a split; None where the settings name none."""
        if not self.settings.unlabelled:
            return None
        if split.hash not in self._pools:
            pool = self._pools[split.hash] = self._without_labels.pool(split, self.settings.transductive)
            self.console.print(f"  {pool.report}", markup=False)
        return self._pools[split.hash]

    def unlabelled_settings(self, split: Split) -> dict[str, Any]:
        """Return the settings of the unlabelled images that determine a training; empty where there are none."""
        pool, settings = self.unlabelled(split), self.settings
        if pool is None:
            return {}
        found = {"images": pool.hash, "share": settings.unlabelled_share, "transductive": settings.transductive}
        return {"unlabelled": found}

    @property
    def notes(self) -> str:
        """Note on the unlabelled images used, for the results; empty where there are none."""
        if not self._pools:
            return ""
        numbers = sorted({len(pool) for pool in self._pools.values()})
        several = f"{numbers[0]:,} to {numbers[-1]:,}" if len(numbers) > 1 else f"{numbers[0]:,}"
        share = f"{100 * self.settings.unlabelled_share:g} % of each batch"
        told = f"Distilled with {several} images without labels, {share}."
        if self.settings.transductive:
            told += " Transductive: test images may be among them, without their labels."
        return told


def decode(index: SceneIndex, data: Path, settings: DataConfig, console: Console, lead: bool) -> ExperimentImages:
    """Decode the images and print what they are.

    Args:
        index: index of the images.
        data: folder or manifest of the images; an unknown data set is named after it.
        settings: settings of the data.
        console: console for the messages.
        lead: whether to show the progress.

    Raises:
        UserError: an image cannot be read, and the settings do not allow to skip it.
    """
    for note in index.notes:
        console.print(note, markup=False)
    known = recognise(index)
    console.print(str(check(index)) if known else f"{index.root.name}: {counted(len(index), 'image')}", markup=False)
    cache = build_cache(
        index,
        settings.stored_size,
        bands=settings.bands,
        folder=settings.cache_dir,
        workers=settings.workers,
        on_bad=settings.on_bad,
        progress=lead,
    )
    console.print(f"Decoded: {cache.report}")
    for path, reason in cache.bad:
        console.print(f"  left out {path}: {reason}", markup=False)
    info = recognise(cache.index)
    return ExperimentImages(cache, info.name if info else data.resolve().name, settings, console, lead)
