"""Find images that a data set holds more than once, by their decoded pixels and not by their files."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenedistill.data.cache.build import SceneCache
from scenedistill.data.cache.decoding import decode_all
from scenedistill.data.cache.write import FileReader
from scenedistill.data.raster.holes import Constant
from scenedistill.data.scenes import SceneIndex
from scenedistill.data.splits.draw import Split

_SIDE = 256  # pixels at which image files are compared
_NAMED = 3  # how many groups are named before they are only counted


@dataclass(frozen=True)
class Duplicates:
    """Images that are equal, pixel for pixel, once they are decoded.

    Attributes:
        index: the images.
        groups: positions of images that are all equal, int64, two or more in each.
    """

    index: SceneIndex
    groups: tuple[np.ndarray, ...]

    @property
    def count(self) -> int:
        """Number of images beyond the first of each group."""
        return sum(len(group) - 1 for group in self.groups)

    @property
    def across_classes(self) -> tuple[np.ndarray, ...]:
        """Groups whose images are not all of one class."""
        return tuple(group for group in self.groups if len(set(self.index.labels[group])) > 1)

    def across(self, split: Split) -> tuple[np.ndarray, ...]:
        """Return the groups that have a test image as well as a training or validation image."""
        tested = set(split.test.tolist())
        seen = {*split.train.tolist(), *split.val.tolist()}
        return tuple(g for g in self.groups if tested & set(g.tolist()) and seen & set(g.tolist()))

    def text(self, split: Split | None = None) -> str:
        """Describe the duplicates for the user; empty if there are none."""
        if not self.groups:
            return ""
        lines = [f"{self.count:,} of {len(self.index):,} images are copies of others, pixel for pixel."]
        if groups := self.across_classes:
            images = sum(map(len, groups))
            lines.append(f"  {images:,} of these images lie under more than one class: {self._named(groups)}")
        if split and (groups := self.across(split)):
            tested = sum(int(np.isin(group, split.test).sum()) for group in groups)
            lines.append(
                f"  {tested:,} of {len(split.test):,} test images are also trained or validated on, which flatters the "
                f"figures: {self._named(groups)}"
            )
        if len(lines) == 1:
            lines[0] += f" The first: {self._named(self.groups[:1])}"
        return "\n".join(lines)

    def _named(self, groups: Sequence[np.ndarray]) -> str:
        shown = "; ".join(" = ".join(self.index.paths[one] for one in group[:3]) for group in groups[:_NAMED])
        return shown + (f"; and {len(groups) - _NAMED:,} more" if len(groups) > _NAMED else "")


def duplicates_in_cache(cache: SceneCache) -> Duplicates:
    """Find the duplicates among decoded images; images with equal checksums are compared byte by byte."""
    found = []
    for group in _equal(cache.sums.tolist()):
        rows = cache.fetch(group)
        found += [group[same] for same in _equal(row.tobytes() for row in rows)]
    return Duplicates(cache.index, tuple(found))


def duplicates_in_folder(
    index: SceneIndex, constants: dict[Path, Constant] | None = None
) -> tuple[Duplicates, tuple[tuple[str, str], ...]]:
    """Find the duplicates among image files, and return (path, reason) of each file that cannot be read.

    Args:
        index: the images; each is decoded once to `_SIDE` x `_SIDE` pixels and not kept.
        constants: dict that `read_image` adds its findings to.
    """
    digests, bad = [], []
    reader = FileReader(index.root, _SIDE, 3, constants={} if constants is None else constants)
    scenes = decode_all(index.paths, reader.read, progress=sys.stderr.isatty())
    for number, scene in enumerate(scenes):
        if isinstance(scene, str):
            bad.append((index.paths[number], scene))
            digests.append(str(number))
        else:
            digests.append(hashlib.sha256(np.ascontiguousarray(scene).data).hexdigest())
    return Duplicates(index, tuple(_equal(digests))), tuple(bad)


def _equal(values: Iterable[object]) -> list[np.ndarray]:
    """Return the positions of each value that occurs more than once."""
    groups: dict[object, list[int]] = {}
    for position, value in enumerate(values):
        groups.setdefault(value, []).append(position)
    return [np.array(group, dtype=np.int64) for group in groups.values() if len(group) > 1]
