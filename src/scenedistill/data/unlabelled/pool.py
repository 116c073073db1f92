"""Unlabelled images: decoded, compared with the labelled images, and combined into one part."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from scenedistill.core.disk import short_hash
from scenedistill.core.errors import Damaged, UserError
from scenedistill.data.batches import SceneBatch, ScenePart
from scenedistill.data.cache.build import SceneCache, cache_home, complaint, folder_name
from scenedistill.data.cache.files import CacheSettings, Images, StoredCache, kept_beside, take_rows
from scenedistill.data.cache.write import FileReader, SceneReader, stored_scenes
from scenedistill.data.splits.draw import Split
from scenedistill.data.unlabelled.copies import (
    MEASURE,
    Fingerprints,
    compute_fingerprints,
    copies,
    digest,
    fingerprint_type,
)
from scenedistill.data.unlabelled.sources import ImageFolder, Raster, find_sources
from scenedistill.data.unlabelled.tiles import NO_DATA, TileReader

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class UnlabelledPool:
    """The unlabelled images that may be used for training with one split.

    Attributes:
        part: the images, with labels of -1.
        report: one line for the user about the images and what was left out.
        hash: 16 hex digits over the images in their order.
    """

    part: UnlabelledPart
    report: str
    hash: str

    def __len__(self) -> int:
        return len(self.part)


class UnlabelledPart(ScenePart):
    """Images from several caches as one part. Every label is -1; an image's id is made from its pixels, so that it
    stays the same when images are added, moved or renamed.

    Args:
        files: the caches' arrays, uint8 `[N, size, size, bands]` each.
        source: int64 `[M]`, position in `files` of the array of each image.
        positions: int64 `[M]`, row of each image in its array.
        digests: uint64 `[M, 2]`, hash of the pixels of each image.
    """

    def __init__(
        self, files: Sequence[Path], source: Positions, positions: Positions, digests: npt.NDArray[Any]
    ) -> None:
        self.files, self.source, self.positions = tuple(files), source, positions
        self.labels = np.full(len(positions), -1, dtype=np.int64)
        self.digests = digests
        self.ids = (digests[:, 0] >> np.uint64(1)).astype(np.int64)
        self._arrays: list[Images] | None = None
        self._compared = np.zeros(len(positions), bool)  # images already compared with their digests

    def subset(self, rows: Positions) -> UnlabelledPart:
        """Return a part with these rows only."""
        return UnlabelledPart(self.files, self.source[rows], self.positions[rows], self.digests[rows])

    def images(self, rows: Positions) -> Images:
        """Return the images of some rows, uint8 `[n, size, size, bands]`; the first time, their digests are verified.

        Raises:
            Damaged: an image does not match its digest.
        """
        shape = self._opened[0].shape[1:]
        found = np.empty((len(rows), *shape), np.uint8)
        source = self.source[rows]
        for number in np.unique(source):
            here = source == number
            found[here] = take_rows(self._opened[number], self.positions[rows[here]])
        for place in np.flatnonzero(~self._compared[rows]):
            if not np.array_equal(digest(found[place]), self.digests[rows[place]]):
                raise _damaged(self.files[source[place]])
        self._compared[rows] = True
        return found

    def fetch(self, rows: Sequence[int] | np.ndarray) -> SceneBatch:
        """The batch of these rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        labels, ids = torch.from_numpy(self.labels[chosen]), torch.from_numpy(self.ids[chosen])
        return SceneBatch(torch.from_numpy(self.images(chosen)), labels, ids, torch.from_numpy(chosen))

    @property
    def bands(self) -> int:
        """Number of bands of each image."""
        return int(self._opened[0].shape[3])

    @property
    def image_bytes(self) -> int:
        """Bytes of all images."""
        return int(np.prod(self._opened[0].shape[1:])) * len(self)

    def content_hash(self) -> str:
        """Return 16 hex digits over the digests of the images in their order, without reading pixels."""
        return short_hash(np.ascontiguousarray(self.digests).data)

    def pixel_hash(self) -> str:
        """Return `content_hash`, which never was over pixels."""
        return self.content_hash()

    @property
    def _opened(self) -> list[Images]:
        if self._arrays is None:
            try:
                self._arrays = [np.load(file, mmap_mode="r") for file in self.files]
            except FileNotFoundError as problem:
                raise UserError(
                    f"Another command has put other images into {Path(problem.filename).parent} meanwhile. Give this "
                    "one again."
                ) from problem
        return self._arrays

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the opened arrays, which other processes open themselves."""
        return {**self.__dict__, "_arrays": None}


@dataclass(frozen=True, eq=False)
class UnlabelledImages:
    """All unlabelled images that were found, and which of them are copies of labelled ones.

    Attributes:
        part: the images, without duplicates.
        pairs: int64 `[P, 2]`, row in `part` of each copy and position of its original in the labelled cache.
        bad: (path, reason) of each image or tile that cannot be read.
        found: description of the images for the user.
        left_out: descriptions of what was left out, for the user.
    """

    part: UnlabelledPart
    pairs: Positions
    bad: tuple[tuple[str, str], ...]
    found: str
    left_out: tuple[str, ...]

    def pool(self, split: Split, transductive: bool = False) -> UnlabelledPool:
        """Return the images that may be used for training.

        Copies of training images are left out, as those have labels, and unless the run is `transductive`, so are
        copies of validation and test images.

        Raises:
            UserError: no image is left.
        """
        part = self.part
        held_out, training = np.zeros(len(part), bool), np.zeros(len(part), bool)
        held_out[self.pairs[np.isin(self.pairs[:, 1], np.concatenate([split.val, split.test])), 0]] = True
        training[self.pairs[np.isin(self.pairs[:, 1], split.train), 0]] = True
        keep = np.flatnonzero(~training & (transductive | ~held_out))
        seen = _count(int((held_out & ~training).sum()), "copy of a held-out image", "copies of held-out images")
        known = _count(int(training.sum()), "copy of a training image", "copies of training images")
        without = [said for said in ("" if transductive else seen, known, *self.left_out) if said]
        report = f"{_count(len(keep), 'image', 'images') or 'no images'} without labels, of {self.found}"
        report += f"; left out: {', '.join(without)}" if without else ""
        report += (
            f"; {seen} (validation or test) among them, for the run is transductive" if transductive and seen else ""
        )
        if not len(keep):
            raise UserError(f"Nothing is left to train with: {report}. Give others with --data.unlabelled.")
        chosen = part.subset(keep)
        return UnlabelledPool(chosen, report, chosen.content_hash())


def collect_unlabelled(
    sources: Sequence[Path],
    labelled: SceneCache,
    *,
    tile: int | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    on_bad: Literal["stop", "skip"] = "stop",
    progress: bool = True,
) -> UnlabelledImages:
    """Find unlabelled images, decode those that are new, and compare them with the labelled ones.

    They are decoded to the size and the bands of the labelled images: images as `read_scene` does, tiles as
    `TileReader` does, each source into a cache of its own (see `build_cache`). `copies` finds copies of labelled
    images, even if turned or encoded again; among each other, unlabelled images are copies only if all pixels are
    equal.

    Args:
        sources: folders, images, and rasters; see `find_sources`.
        labelled: the labelled images.
        tile: side of a raster's tiles in pixels of the raster; when not given, every file is an image.
        cache_dir: the caches are in its sub-folder `unlabelled`; `cache_home()` when not given.
        workers: number of threads; default: one for each core this process may use.
        on_bad: "stop" raises when an image or tile cannot be read, "skip" leaves it out.
        progress: show progress bars.

    Raises:
        UserError: no images at a source, unreadable images and `on_bad="stop"`, no readable image at all, rasterio is
            missing, too little disk space.
    """
    home = (cache_home() if cache_dir is None else Path(cache_dir).expanduser().resolve()) / "unlabelled"
    opened: list[_Opened] = []
    for source in find_sources(sources, tile):
        settings, paths, reader = _reading(source, tile, labelled.size, labelled.bands)
        retry = on_bad == "stop" and isinstance(source, ImageFolder)  # a tile without data is not read again
        folder = home / folder_name(settings)
        stored, _ = stored_scenes(settings, paths, reader, folder, retry=retry, workers=workers, progress=progress)
        opened.append(_open(source, paths, stored, progress))
        if opened[-1].bad and on_bad == "stop":
            raise UserError(complaint(opened[-1].bad, len(paths), opened[-1].root))
    found = ", ".join(f"{len(one.rows):,} {one.noun}s from {one.root.name}" for one in opened)
    if not any(len(one.rows) for one in opened):
        raise UserError(f"No readable image without label: {found}. Give others with --data.unlabelled.")

    source_of = np.repeat(np.arange(len(opened)), [len(one.rows) for one in opened])
    rows, fingerprints = (np.concatenate([getattr(one, name) for one in opened]) for name in ("rows", "fingerprints"))
    first = np.sort(np.unique(fingerprints["digest"], axis=0, return_index=True)[1])
    arrays = [one.array for one in opened]
    images = UnlabelledPart(arrays, source_of[first], rows[first], fingerprints["digest"][first])
    pairs = _stored_copies(fingerprints[first], images, labelled, progress)
    left_out = (
        _count(len(fingerprints) - len(first), "copy of another", "copies of others"),
        _count(sum(len(one.bad) for one in opened), "unreadable one", "unreadable ones"),
        _count(sum(one.empty for one in opened), "tile without data", "tiles without data"),
    )
    bad = tuple((f"{one.root}: {path}", reason) for one in opened for path, reason in one.bad)
    return UnlabelledImages(images, pairs, bad, found, tuple(said for said in left_out if said))


@dataclass(frozen=True, eq=False)
class _Opened:
    """The cached scenes of one source."""

    root: Path
    noun: str  # "image" or "tile"
    array: Path
    rows: Positions  # rows of the scenes in the array
    fingerprints: Fingerprints  # of these rows
    bad: tuple[tuple[str, str], ...]
    empty: int  # tiles without data


def _reading(
    source: ImageFolder | Raster, tile: int | None, size: int, bands: int
) -> tuple[CacheSettings, Sequence[str], SceneReader]:
    """Return the cache settings, the scene paths and the reader of a source."""
    if isinstance(source, ImageFolder):
        return CacheSettings(str(source.root), size, bands), source.paths, FileReader(source.root, size, bands)
    assert tile is not None
    reader = TileReader(source.path, tile, size, bands)
    return CacheSettings(f"{source.path} in tiles of {tile}", size, bands), reader.paths, reader


def _open(source: ImageFolder | Raster, paths: Sequence[str], stored: StoredCache, progress: bool) -> _Opened:
    rows = np.array([stored.entries[path][2] for path in paths], dtype=np.int64)
    reasons = [(path, stored.reasons[path]) for path, row in zip(paths, rows, strict=True) if row < 0]
    bad = tuple((path, reason) for path, reason in reasons if reason != NO_DATA)
    rows = rows[rows >= 0]
    fingerprints = _stored_fingerprints(stored, progress)[rows]
    root, noun = (source.root, "image") if isinstance(source, ImageFolder) else (source.path, "tile")
    return _Opened(root, noun, stored.array, rows, fingerprints, bad, len(reasons) - len(bad))


def _stored_fingerprints(stored: StoredCache, progress: bool) -> Fingerprints:
    """Return the fingerprints of all rows of a cache, computed once."""

    def fetch(rows: Positions) -> Images:
        if any(map(stored.is_damaged, rows)):
            raise _damaged(stored.array)
        return take_rows(stored.images, rows)

    make = partial(compute_fingerprints, stored.images, fetch=fetch, progress=progress)
    return kept_beside(stored.array, "marks", make, fingerprint_type(stored.images.shape[3]))


def _stored_copies(
    fingerprints: Fingerprints, images: UnlabelledPart, labelled: SceneCache, progress: bool
) -> Positions:
    """Return the pairs of copies of labelled images (see `copies`), computed once for the same images."""
    rows = labelled.row_indices
    assert rows is not None
    make = partial(compute_fingerprints, labelled.images, fetch=labelled.fetch, progress=progress)
    own = kept_beside(labelled.array, "marks", make, fingerprint_type(labelled.bands), rows.tobytes())
    key = hashlib.sha256(MEASURE.encode())
    for each in (fingerprints, own):
        key.update(each.tobytes())
    found = partial(copies, fingerprints, images.images, own, labelled.fetch)
    return kept_beside(labelled.array, "copies", found, np.int64, key.digest())


def _damaged(array: Path) -> Damaged:
    return Damaged(
        f"{array} is damaged: an image in it is not what was decoded. Delete "
        f"{array.with_name('manifest.json')} and give the same command again: the images are then decoded again."
    )


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}" if number else ""
