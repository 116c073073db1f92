"""Images of a finished run: training images for calibration, test images for checks."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scenedistill.core.errors import Damaged, UserError
from scenedistill.data.cache.build import build_cache
from scenedistill.data.cache.files import CacheSettings, Images, open_stored, read_manifest, row_checksum
from scenedistill.data.names import nfc, positions_in
from scenedistill.data.scenes import SceneIndex, scan
from scenedistill.data.splits.draw import Split
from scenedistill.data.splits.files import read_split
from scenedistill.models.files import NetCard
from scenedistill.runs.network import Network

#: Number of test images drawn where the whole test split is too large.
SAMPLE = 1000


class RunImages(NamedTuple):
    """Images of S pixels, as `read_scene` decodes them.

    Attributes:
        training: C training images, uint8 `[C, S, S, bands]`.
        test: N test images, uint8 `[N, S, S, bands]`.
        labels: labels of the test images in the network's class order, int64 `[N]`.
        files: paths of the test images; the files may no longer exist.
        of: number of images in the whole test split.
    """

    training: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    files: tuple[Path, ...]
    of: int


@dataclass(frozen=True, eq=False)
class _Decoded:
    """`images[rows[i]]` is the image at `index.paths[i]`."""

    index: SceneIndex
    images: Images
    rows: np.ndarray
    checksums: np.ndarray | None = None

    def taken(self, positions: np.ndarray) -> Images:
        """Return the images at these positions of the index.

        Raises:
            Damaged: an image differs from its checksum.
        """
        found: Images = self.images[self.rows[positions]]
        if self.checksums is not None:
            for position, image in zip(positions, found, strict=True):
                if row_checksum(image) != self.checksums[self.rows[position]]:
                    raise Damaged(
                        f"The decoded image of {self.index.root / self.index.paths[position]} is damaged. Give the "
                        "folder that the images come from with --data, or the run's command again: it puts it right."
                    )
        return found


def run_images(
    network: Network, card: NetCard, data: Path | None, *, calibration: int, test: int | None, most: int = 0
) -> RunImages:
    """Draw images of the split that a network was trained and tested on, with a fixed random seed.

    Args:
        network: network whose images are wanted.
        card: card of the network.
        data: the folder or manifest it was trained on; the run's decoded images are used when not given.
        calibration: number of training images wanted.
        test: number of test images wanted; 0 takes all; None takes all where they are `most` or fewer, else `SAMPLE`.
        most: see `test`.

    Raises:
        UserError: the images cannot be found, or their split is not the one of the run.
    """
    if network.split_file is None:
        raise UserError(
            f"{network.folder} lies in no run: there is no split.csv above it to say which images are for test. "
            "Give a run's folder, or the folder of one training in it."
        )
    size = card.stored_size or card.image_size
    found = _from_folder(data, size, card.bands) if data else _from_cache(network, card, size)
    if found is None:
        raise UserError(
            f"The images of {network.folder} are no longer among the decoded ones. Give the folder they come from with "
            "--data."
        )
    split = read_split(network.split_file, found.index)
    wanted = network.settings.get("data", {}).get("split")
    if wanted not in (None, split.hash):
        raise UserError(
            f"{network.split_file} is the split {split.hash}, and {network.folder.name} was trained on {wanted}. "
            "Export from the run as it was written, or give its images with --data."
        )
    if test is None:
        test = 0 if len(split.test) <= most else SAMPLE
    return _drawn(found, split, card, calibration, test)


def _drawn(found: _Decoded, split: Split, card: NetCard, calibration: int, test: int) -> RunImages:
    random = np.random.default_rng(0)
    taught = np.sort(random.permutation(split.train)[: max(calibration, 1)])
    asked = np.sort(random.permutation(split.test)[: test or None])
    index = found.index
    labels = _numbers(index.classes, card)[index.labels]
    return RunImages(
        found.taken(taught),
        found.taken(asked),
        labels[asked],
        tuple(index.root / index.paths[position] for position in asked),
        len(split.test),
    )


def _from_folder(data: Path, size: int, bands: int) -> _Decoded:
    cache = build_cache(scan(data), size, bands=bands, on_bad="skip")
    return _Decoded(cache.index, cache.images, np.arange(len(cache.index)), cache.checksums)


def _from_cache(network: Network, card: NetCard, size: int) -> _Decoded | None:
    """Open the decoded images of the run if they still exist; the original image files are not needed."""
    assert network.split_file is not None
    folder = Path(network.record.get("images", {}).get("cache", ""))
    root = (read_manifest(folder) or {}).get("settings", {}).get("root", "") if folder.is_absolute() else ""
    own = network.record.get("images", {}).get("root")
    if own and root and Path(own).resolve() != Path(root).resolve():
        return None  # the folder holds the images of another one now
    stored = open_stored(folder, CacheSettings(root, size, card.bands)) if root else None
    if stored is None:
        return None
    with network.split_file.open(encoding="utf-8", newline="") as file:
        lines = [(row["path"], row["label"]) for row in csv.DictReader(file)]
    spelt = {nfc(path): path for path in stored.entries}
    paths = tuple(spelt.get(nfc(path), "") for path, _ in lines)
    rows = np.array([stored.entries[path][2] if path else -1 for path in paths])
    if (rows < 0).any():
        return None
    index = SceneIndex(Path(root), paths, _numbers([label for _, label in lines], card), card.classes)
    return _Decoded(index, stored.images, rows, stored.checksums)


def _numbers(names: Sequence[str], card: NetCard) -> np.ndarray:
    """Return the position of each class name in the network's class order, int64."""
    numbers = np.array(positions_in(names, card.classes), dtype=np.int64)
    if (numbers < 0).any():
        unknown = next(name for name, number in zip(names, numbers, strict=True) if number < 0)
        raise UserError(f"The network does not know {unknown!r}; it knows {', '.join(card.classes[:40])}.")
    return numbers
