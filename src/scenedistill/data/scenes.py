"""Scan class folders or a CSV manifest into a `SceneIndex`: which images there are, and of which class."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scenedistill.core.errors import UserError
from scenedistill.core.terminal import counted
from scenedistill.data.manifests import read_manifest
from scenedistill.data.names import image_id, nfc, positions_in
from scenedistill.data.walk import IMAGE_SUFFIXES, is_folder, is_litter

PARTS = ("train", "val", "test")
#: Names that the folders and lists of a part may have.
PART_WORDS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip
_NAMED = 5  # how many names an error lists before it only counts


@dataclass(frozen=True, eq=False)
class SceneIndex:
    """The images of a data set and their classes; nothing is decoded.

    Attributes:
        root: absolute folder that `paths` are relative to.
        paths: N relative POSIX paths, sorted within their class, classes in the order of `classes`.
        labels: int64 `[N]`, positions in `classes`.
        classes: class names as the folders are spelt, sorted by their NFC form, so that the numbering is the same
            on file systems that decompose accents (macOS) and on those that do not.
        notes: what the scan did that a user may want to know, one sentence each (folders descended, files ignored).
        parts: int8 `[N]`, positions in `PARTS`, where the folders are a split already; None where they are not.
    """

    root: Path
    paths: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    parts: npt.NDArray[np.int8] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def ids(self) -> npt.NDArray[np.int64]:
        """`image_id` of every path, int64 `[N]`."""
        return np.array([image_id(path) for path in self.paths], dtype=np.int64)

    def counts(self) -> dict[str, int]:
        """Number of images of each class, in the order of `classes`."""
        totals = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(total) for name, total in zip(self.classes, totals, strict=True)}

    def subset(self, keep: npt.NDArray[Any]) -> SceneIndex:
        """Return the scenes at `keep`: a bool mask `[N]`, or int positions `[M]` in the order wanted.

        `classes` is unchanged, so labels mean the same in every subset.
        """
        positions = np.arange(len(self))[keep]
        return replace(
            self,
            paths=tuple(self.paths[position] for position in positions),
            labels=self.labels[positions],
            notes=(),
            parts=None if self.parts is None else self.parts[positions],
        )


def scan(source: Path) -> SceneIndex:
    """Index a folder with one sub-folder per class, or a CSV manifest with the columns `path,label`.

    In a folder: images are the files with an `IMAGE_SUFFIXES` ending in any case, directly in the class folders; hidden
    files and system litter are skipped silently, other files counted in `notes`. A folder that holds nothing but
    one folder of class folders (the usual result of unpacking an archive) is descended into, and `notes` says so. A
    folder of `train`, `val` and `test` (or two of them, `train` being one) with class folders in each is one data set
    that is split already: `parts` says how; without a `test` its `val` is the test part. Further folders of folders
    beside them are ignored, and `notes` says so.
    In a manifest: paths are relative to the CSV file and stay below its folder; further columns are ignored.

    Raises:
        UserError: the source is missing or neither of the two, images lie loose, a class folder is empty, there are
            fewer than two classes, or two class names differ only by Unicode normalisation; for a manifest also a
            missing column or file, an empty field, a path that leaves the folder, or an image that is listed twice.
    """
    source = Path(source).expanduser()
    if not source.exists():
        raise UserError(f"{source} does not exist.{did_you_mean(source)}")
    if source.is_dir():
        return _scan_folder(source.resolve())
    if source.suffix.lower() == ".csv":
        return _scan_manifest(source.resolve())
    raise UserError(
        f"{source} is a file; expected a folder with one sub-folder per class, or a CSV manifest with the columns "
        "path,label. Unpack an archive first."
    )


@dataclass
class _Listing:
    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # files that are not images, by suffix


def _scan_folder(given: Path) -> SceneIndex:
    root, top, listings = given, _list(given), {}
    while True:
        listings = {name: _list(root / name) for name in top.folders}
        if top.images or len(listings) != 1:
            break
        ((name, only),) = listings.items()
        if only.images or not only.folders:
            break
        root, top = root / name, only

    _check_encoding(root, [*listings, *(f"{name}/{one}" for name, found in listings.items() for one in found.images)])
    if parts := _parts(listings, top):
        return _scan_parts(root, given, parts, sorted(listings.keys() - parts.values(), key=_order))
    if not top.folders:
        loose = (
            f"its {counted(len(top.images), 'image')} {'lies' if len(top.images) == 1 else 'lie'} loose"
            if top.images
            else "it holds no folders and no images"
        )
        raise UserError(
            f"{root} has no class folders: {loose}. Expected one sub-folder per class with the images in it."
        )
    _check_empty(root, listings)
    classes = _check_classes(listings, root)

    paths: list[str] = []
    labels: list[int] = []
    others = Counter(top.others)
    for label, name in enumerate(classes):
        images = sorted(listings[name].images, key=_order)
        paths += [f"{name}/{image}" for image in images]
        labels += [label] * len(images)
        others += listings[name].others

    notes = []
    if root != given:
        notes.append(f"The class folders were found in {root.relative_to(given).as_posix()}.")
    if others:
        kinds = ", ".join(f"{suffix or 'no ending'}: {n:,}" for suffix, n in others.most_common(_NAMED))
        notes.append(f"Ignored {counted(others.total(), 'file')} of other kinds ({kinds}).")
    if top.images:
        notes.append(f"Ignored {counted(len(top.images), 'image')} beside the class folders.")
    if deeper := [name for name in classes if listings[name].folders]:
        notes.append(f"Ignored the folders inside {_names(deeper)}: only images directly in a class folder count.")
    return SceneIndex(root, tuple(paths), np.array(labels, dtype=np.int64), classes, tuple(notes))


def _parts(listings: Mapping[str, _Listing], top: _Listing) -> dict[str, str]:
    """Return the folder of each part if the folders are the parts of a split and hold class folders, else {}."""
    words = [name for name in listings if name.lower() in PART_WORDS]
    parts = {PART_WORDS[name.lower()]: name for name in words}
    deep = all(listing.folders and not listing.images for listing in listings.values())
    return parts if deep and not top.images and len(parts) == len(words) and {"train"} < parts.keys() else {}


def _scan_parts(root: Path, given: Path, parts: Mapping[str, str], others: Sequence[str]) -> SceneIndex:
    """Index the class folders of several parts as one data set; `others` are the names of further folders."""
    found = {part: _scan_folder(root / parts[part]) for part in PARTS if part in parts}
    spelt: dict[str, str] = {}
    for index in found.values():
        for name in index.classes:
            spelt.setdefault(nfc(name), name)
    classes = tuple(sorted(spelt.values(), key=_order))
    only_val = "test" not in found
    entries = []
    for part, index in found.items():
        numbers = positions_in(index.classes, classes)
        here = index.root.relative_to(root).as_posix()
        place = PARTS.index("test" if only_val and part == "val" else part)
        entries += [
            (numbers[label], f"{here}/{path}", place) for path, label in zip(index.paths, index.labels, strict=True)
        ]
    entries.sort(key=lambda entry: (entry[0], _order(entry[1])))
    labels, paths, places = zip(*entries, strict=True)
    counts = ", ".join(f"{len(index):,} in {parts[part]}" for part, index in found.items())
    notes = [
        f"The folders are a split: {counts}"
        + (f"; {parts['val']} is the test part. " if only_val else ". ")
        + "A split file (--data.split_file) would take its place."
    ]
    if root != given:
        notes.insert(0, f"They were found in {root.relative_to(given).as_posix()}.")
    if others:
        notes.append(f"Ignored {_names(others)} beside them.")
    for part, index in found.items():
        notes += [f"{parts[part]}: {note}" for note in index.notes]
    return SceneIndex(
        root, paths, np.array(labels, dtype=np.int64), classes, tuple(notes), np.array(places, dtype=np.int8)
    )


def _list(folder: Path) -> _Listing:
    """List the direct content of a folder, without hidden files and system litter."""
    listing = _Listing()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_litter(entry.name):
                    continue
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  (a Path for each file is slow)
                if is_folder(entry):
                    listing.folders.append(entry.name)
                elif suffix in IMAGE_SUFFIXES:
                    listing.images.append(entry.name)
                else:
                    listing.others[suffix] += 1
    except OSError as error:
        raise UserError(f"Cannot list {folder}: {error.strerror or error}.") from error
    return listing


def _check_empty(root: Path, listings: dict[str, _Listing]) -> None:
    empty = sorted((name for name, listing in listings.items() if not listing.images), key=_order)
    if not empty:
        return
    if all(
        listing.folders and {*map(str.lower, listing.folders)} <= PART_WORDS.keys() for listing in listings.values()
    ):
        raise UserError(
            f"{root} has the folders of the parts inside the class folders, such as "
            f"{root / empty[0] / listings[empty[0]].folders[0]}. Expected them the other way round "
            f"({root / 'train' / empty[0]}), or all images of a class in its folder and a split file."
        )
    if len(empty) == len(listings) and all(listings[name].folders for name in empty):
        raise UserError(
            f"{root} has no images in {_names(empty)}, only further folders: the class folders lie one level deeper. "
            f"Give one of them, such as {root / empty[0]}."
        )
    raise UserError(
        f"{counted(len(empty), 'class folder')} in {root} without any image ({', '.join(sorted(IMAGE_SUFFIXES))}): "
        f"{_names(empty)}. Fill or remove {'it' if len(empty) == 1 else 'them'}."
    )


def _check_encoding(root: Path, names: Iterable[str]) -> None:
    """Refuse names that are not UTF-8, as zip archives from other systems may have: a split file cannot hold them."""
    odd = [name for name in names if not name.isascii() and not _is_utf8(name)]
    if odd:
        shown = [os.fsencode(name).decode(errors="backslashreplace") for name in odd]
        raise UserError(
            f"{counted(len(odd), 'name')} in {root} {'is' if len(odd) == 1 else 'are'} not UTF-8: {_names(shown)}. "
            f"Rename them, all at once with: convmv -r --notest -f latin1 -t utf8 {root}"
        )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_classes(names: Iterable[str], where: Path) -> tuple[str, ...]:
    """Return the class names in order; refuse fewer than two, and names that differ only by Unicode normalisation."""
    classes = tuple(sorted(names, key=_order))
    by_form: dict[str, list[str]] = {}
    for name in classes:
        by_form.setdefault(nfc(name), []).append(name)
    for twins in by_form.values():
        if len(twins) > 1:
            raise UserError(
                f"{where} has {len(twins)} classes that look alike and differ only by Unicode normalisation: "
                f"{', '.join(ascii(name) for name in twins)}. Merge them or rename one."
            )
    if len(classes) < 2:
        raise UserError(f"{where} has only one class ({classes[0]}); a classifier needs at least two.")
    return classes


def _scan_manifest(manifest: Path) -> SceneIndex:
    label_of = read_manifest(manifest)
    classes = _check_classes(set(label_of.values()), manifest)
    number = {name: position for position, name in enumerate(classes)}
    paths = sorted(label_of, key=lambda path: (number[label_of[path]], _order(path)))
    labels = np.array([number[label_of[path]] for path in paths], dtype=np.int64)
    return SceneIndex(manifest.parent, tuple(paths), labels, classes)


def did_you_mean(missing: Path) -> str:
    """Suggest a sibling with a name similar to a missing path, or say how far the path exists."""
    parent = missing.absolute().parent
    if not parent.is_dir():
        while not parent.exists():
            parent = parent.parent
        return f" The path exists only as far as {parent}."
    spelt = {entry.name.lower(): entry.name for entry in parent.iterdir()}
    near = difflib.get_close_matches(missing.name.lower(), spelt, n=1)
    return f" Did you mean {missing.parent / spelt[near[0]]}?" if near else ""


def _order(name: str) -> tuple[str, str]:
    return nfc(name), name


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
