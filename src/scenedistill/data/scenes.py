"""Scan class folders or a CSV manifest into a `SceneIndex`: which images there are, and of which class."""

from __future__ import annotations

import csv
import difflib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from scenedistill.data.walk import IMAGE_SUFFIXES, is_litter
from scenedistill.errors import UserError

_NAMED = 5  # how many culprits an error names before it only counts


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
    """

    root: Path
    paths: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self) -> dict[str, int]:
        """Number of images of each class, in the order of `classes`."""
        totals = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(total) for name, total in zip(self.classes, totals, strict=True)}

    def subset(self, keep: npt.NDArray[Any]) -> SceneIndex:
        """The scenes at `keep`: a bool mask `[N]`, or int positions `[M]` in the order wanted. `classes` stay as they
        are, so labels mean the same in every subset."""
        positions = np.arange(len(self))[keep]
        return replace(
            self, paths=tuple(self.paths[position] for position in positions), labels=self.labels[positions], notes=()
        )


def scan(source: Path) -> SceneIndex:
    """Index a folder with one sub-folder per class, or a CSV manifest with the columns `path,label`.

    In a folder: images are the files with an `IMAGE_SUFFIXES` ending in any case, directly in the class folders; hidden
    files and system litter are skipped silently, other files counted in `notes`. A folder that holds nothing but
    one folder of class folders (the usual result of unpacking an archive) is descended into, and `notes` says so.
    In a manifest: paths are relative to the CSV file; further columns are ignored.

    Raises:
        UserError: the source is missing or neither of the two, images lie loose, a class folder is empty, there are
            fewer than two classes, or two class names differ only by Unicode normalisation; for a manifest also a
            missing column or file, an empty field, or an image that is listed twice.
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
    if not top.folders:
        loose = f"its {len(top.images):,} images lie loose" if top.images else "it holds no folders and no images"
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
        notes.append(f"Ignored {_plural(others.total(), 'file')} of other kinds ({kinds}).")
    if top.images:
        notes.append(f"Ignored {_plural(len(top.images), 'image')} beside the class folders.")
    if deeper := [name for name in classes if listings[name].folders]:
        notes.append(f"Ignored the folders inside {_names(deeper)}: only images directly in a class folder count.")
    return SceneIndex(root, tuple(paths), np.array(labels, dtype=np.int64), classes, tuple(notes))


def _list(folder: Path) -> _Listing:
    """What lies directly in a folder, without hidden files and system litter."""
    listing = _Listing()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_litter(entry.name):
                    continue
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  (a Path for each file is slow)
                if entry.is_dir():
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
    if len(empty) == len(listings) and all(listings[name].folders for name in empty):
        raise UserError(
            f"{root} has no images in {_names(empty)}, only further folders: the class folders lie one level deeper. "
            f"Give one of them, such as {root / empty[0]}."
        )
    raise UserError(
        f"{_plural(len(empty), 'class folder')} in {root} without any image ({', '.join(sorted(IMAGE_SUFFIXES))}): "
        f"{_names(empty)}. Fill or remove {'it' if len(empty) == 1 else 'them'}."
    )


def _check_encoding(root: Path, names: Iterable[str]) -> None:
    """Refuse names that are not UTF-8, as zip archives from elsewhere leave them: no split file could hold them."""
    odd = [name for name in names if not name.isascii() and not _is_utf8(name)]
    if odd:
        shown = [os.fsencode(name).decode(errors="backslashreplace") for name in odd]
        raise UserError(
            f"{_plural(len(odd), 'name')} in {root} {'is' if len(odd) == 1 else 'are'} not UTF-8: {_names(shown)}. "
            f"Rename them, all at once with: convmv -r --notest -f latin1 -t utf8 {root}"
        )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_classes(names: Iterable[str], where: Path) -> tuple[str, ...]:
    """The class names in order; refuses fewer than two, and two that a reader cannot tell apart."""
    classes = tuple(sorted(names, key=_order))
    by_form: dict[str, list[str]] = {}
    for name in classes:
        by_form.setdefault(unicodedata.normalize("NFC", name), []).append(name)
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
    root = manifest.parent
    label_of: dict[str, str] = {}
    for line, path, label in _read_rows(manifest):
        here = f"{manifest}, line {line}"
        if not path or not label:
            raise UserError(f"{here}: the {'label' if path else 'path'} is empty.")
        if Path(path).is_absolute():
            raise UserError(f"{here}: {path} is an absolute path; it must be relative to the folder of the CSV.")
        path = PurePosixPath(path).as_posix()  # so that ./a.jpg and a.jpg are the same
        if path in label_of:
            raise UserError(f"{here}: {path} is listed a second time.")
        label_of[path] = label
    if not label_of:
        raise UserError(f"{manifest} lists no image.")
    missing = [path for path in label_of if not (root / path).is_file()]
    if missing:
        raise UserError(
            f"{manifest} names {_plural(len(missing), 'missing file')}: {_names(missing)}. "
            f"Paths must be relative to {root}, the folder of the CSV."
        )
    classes = _check_classes(set(label_of.values()), manifest)
    number = {name: position for position, name in enumerate(classes)}
    paths = sorted(label_of, key=lambda path: (number[label_of[path]], _order(path)))
    labels = np.array([number[label_of[path]] for path in paths], dtype=np.int64)
    return SceneIndex(root, tuple(paths), labels, classes)


def _read_rows(manifest: Path) -> list[tuple[int, str, str]]:
    """(line number, path, label) of each row, stripped."""
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            if not {"path", "label"} <= set(columns):
                found = ", ".join(columns) or "(none)"
                raise UserError(f"{manifest} has the columns {found}; expected path,label in its first line.")
            reader.fieldnames = columns
            return [(reader.line_num, (row["path"] or "").strip(), (row["label"] or "").strip()) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{manifest} cannot be read as a UTF-8 CSV file: {error}.") from error


def did_you_mean(missing: Path) -> str:
    """A near sibling of a path that is not there, or how far the path does exist."""
    parent = missing.absolute().parent
    if not parent.is_dir():
        while not parent.exists():
            parent = parent.parent
        return f" The path exists only as far as {parent}."
    spelt = {entry.name.lower(): entry.name for entry in parent.iterdir()}
    near = difflib.get_close_matches(missing.name.lower(), spelt, n=1)
    return f" Did you mean {missing.parent / spelt[near[0]]}?" if near else ""


def _order(name: str) -> tuple[str, str]:
    return unicodedata.normalize("NFC", name), name


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
