"""Stratified splits of a scene data set, drawn from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from scenedistill.core.disk import short_hash
from scenedistill.core.errors import UserError
from scenedistill.core.terminal import counted
from scenedistill.data.names import nfc
from scenedistill.data.scenes import PARTS, SceneIndex


@dataclass(frozen=True, eq=False)
class Split:
    """Which images of a SceneIndex are for training, validation and test.

    Attributes:
        train, val, test: sorted int64 positions in the index, disjoint; `val` may be empty.
        train_ratio: fraction given to `make_split` (training with validation); None for a split read from a file.
        seed: seed given to `make_split`; None for a split read from a file.
        hash: 16 hex digits over (relative path, class name, part) of every image in a part, independent of their
            order; two splits with the same hash are the same split.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    train_ratio: float | None
    seed: int | None
    hash: str

    def parts(self) -> dict[str, np.ndarray]:
        return dict(zip(PARTS, (self.train, self.val, self.test), strict=True))


def make_split(
    index: SceneIndex,
    train_ratio: float,
    seed: int,
    val_fraction: float = 0.0,
    val_fold: int = 0,
    test_ratio: float | None = None,
) -> Split:
    """Draw a stratified split: of each class, `train_ratio` of its images for training and the rest for test.

    The scheme needs no random-number generator, so it is the same on every platform, file system and library version:
    the images of a class are ranked by SHA-256 of "seed, class name, relative path" (UTF-8, NFC, joined by NUL); the
    first n are for training, n = images * ratio rounded half up, but at least 1 and leaving at least 1 for test. With
    the same seed a smaller ratio therefore trains on a subset of a larger one's images. Validation takes the last
    `val_fraction` of the training images of each class, rounded half up, at least 1 and leaving at least 1; fold 1
    takes the images before those, and so on, so that no two folds have an image in common. With `test_ratio`, only
    those are for test that are with a train ratio of 1 - `test_ratio`, and the images between are in no part.

    Args:
        train_ratio: in (0, 1), as the field writes it: 0.2 is "20 % training, 80 % test".
        val_fraction: in [0, 1), fraction of the training part.
        val_fold: number of the validation part, >= 0; training, with validation, and test do not depend on it.
        test_ratio: in (0, 1), share of each class for test; all images that are not for training when not given.

    Raises:
        UserError: a ratio out of range, or a class with too few images (named).

    Examples:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from scenedistill.data.scenes import SceneIndex
        >>> from scenedistill.data.splits.draw import make_split
        >>> paths = tuple(f"{name}/{number}.png" for name in ("forest", "river") for number in range(5))
        >>> index = SceneIndex(Path("tiles"), paths, np.repeat([0, 1], 5), ("forest", "river"))
        >>> split = make_split(index, train_ratio=0.4, seed=0)
        >>> split.train, split.test
        (array([1, 4, 6, 7]), array([0, 2, 3, 5, 8, 9]))
        >>> make_split(index, train_ratio=0.2, seed=0).train
        array([4, 6])
    """
    if not 0 < train_ratio < 1:
        raise UserError(f"The train ratio is {train_ratio}; expected a fraction between 0 and 1, such as 0.2 for 20 %.")
    if not 0 <= val_fraction < 1:
        raise UserError(f"The validation fraction is {val_fraction}; expected 0 or more and below 1.")
    if test_ratio is not None and not 0 < test_ratio < 1 - train_ratio + 1e-9:  # 1 - 0.9 is a little below 0.1
        raise UserError(
            f"The test ratio is {test_ratio}; expected a fraction above 0, and at most 1 together with the train ratio "
            f"of {train_ratio}."
        )
    part = np.full(len(index), -1, dtype=np.int8)
    for label, name in enumerate(index.classes):
        members = np.flatnonzero(np.asarray(index.labels) == label)
        if len(members) < 2:
            raise UserError(
                f"Class {name!r} in {index.root} has {counted(len(members), 'image')}; a split needs at least one for "
                "training and one for test. Add images or remove the class."
            )
        ranked = sorted(members.tolist(), key=lambda i: _rank(seed, name, index.paths[i]))
        n_train = min(max(_share(len(members), train_ratio), 1), len(members) - 1)
        begin, end = _fold(n_train, val_fraction, val_fold) if val_fraction else (0, 0)
        if val_fraction and begin == end:
            there = f"Class {name!r} has {counted(n_train, 'training image')} at train ratio {train_ratio}; "
            if val_fold:
                raise UserError(
                    f"{there}validation fold {val_fold} needs more. Raise the train ratio or take fewer folds."
                )
            raise UserError(
                f"{there}taking validation images out needs at least 2. Raise the train ratio or set the validation "
                "fraction to 0."
            )
        part[ranked[:n_train]] = 0
        part[ranked[n_train - end : n_train - begin]] = 1
        n_test = len(members) - n_train
        if test_ratio is not None:
            n_test = min(max(len(members) - _share(len(members), round(1 - test_ratio, 9)), 1), n_test)
        part[ranked[len(members) - n_test :]] = 2
    return assemble(index, part, train_ratio, seed)


def assemble(index: SceneIndex, part: np.ndarray, train_ratio: float | None, seed: int | None) -> Split:
    """Make the split with image i of the index in part `PARTS[part[i]]`, or in none if that is -1; int `[N]`."""
    train, val, test = (np.flatnonzero(part == i).astype(np.int64) for i in range(len(PARTS)))
    members = ((index.paths[i], index.classes[index.labels[i]], PARTS[part[i]]) for i in np.flatnonzero(part >= 0))
    return Split(train, val, test, train_ratio, seed, split_hash(members))


def split_hash(members: Iterable[tuple[str, str, str]]) -> str:
    """Return 16 hex digits over (relative path, class name, part) of all images of a split, in any order.

    Examples:
        >>> from scenedistill.data.splits.draw import split_hash
        >>> members = [("forest/1.png", "forest", "train"), ("river/1.png", "river", "test")]
        >>> split_hash(members) == split_hash(reversed(members))
        True
    """
    lines = sorted("\0".join((nfc(path), nfc(name), part)) for path, name, part in members)
    return short_hash("\n".join(lines))


def _rank(seed: int, name: str, path: str) -> str:
    return hashlib.sha256("\0".join((str(seed), nfc(name), nfc(path))).encode()).hexdigest()


def _fold(count: int, fraction: float, fold: int) -> tuple[int, int]:
    """Return where a validation fold of a class begins and ends, counted back from its last training image; equal where
    no image is left for it."""
    begin, end = 0, min(max(_share(count, fraction), 1), count - 1)
    for number in range(2, fold + 2):
        begin, end = end, min(max(_share(count, fraction, number), end + 1), count)
    return begin, end


def _share(count: int, ratio: float, times: int = 1) -> int:
    # decimal, because 0.35 * 10 in binary is not the 3.5 a reader of the protocol expects to be rounded up
    return int((Decimal(str(float(ratio))) * times * count).quantize(Decimal(1), ROUND_HALF_UP))
