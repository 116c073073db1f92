"""Split files in three layouts: our CSV, torchgeo's lists, RSP's lists."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from scenedistill.core.disk import write_text
from scenedistill.core.errors import UserError
from scenedistill.data.csv_tables import AS_UTF8, read_table
from scenedistill.data.scenes import PART_WORDS, PARTS, SceneIndex
from scenedistill.data.splits.draw import Split, assemble
from scenedistill.data.splits.references import ImageFinder

_RSP_LINE = re.compile(r"(?P<image>\S.*\.\w+(?:\s+\S.*)?)\s+(?P<label>\d{1,9})")


def write_split(
    split: Split,
    index: SceneIndex,
    path: Path,
    layout: Literal["csv", "torchgeo", "rsp"] = "csv",
    *,
    name: str | None = None,
    run: int = 0,
) -> list[Path]:
    """Write a split and return the files written.

    Layouts:
        csv: one file `path` (or `path/split.csv` if `path` is a folder) with columns path,label,split.
        torchgeo: `path/{name}-train.txt`, `-val.txt` and `-test.txt`, one base name a line; no `-val.txt` if there is
            no validation part. `name` defaults to the data folder's name in lower case.
        rsp: `path/train_labels_{ratio}_{run}.txt` and `valid_labels_...`, lines "file class index" as in "An Empirical
            Study of Remote Sensing Pretraining" (Wang et al., IEEE TGRS 2022); ratio 0.2 is written 28, 0.25 is 25-75.
            Its "valid" is the test part.

    Raises:
        UserError: the layout cannot hold this split (base names that occur twice, spaces, a validation part).
    """
    path = Path(path)
    if layout == "csv":
        target = path / "split.csv" if path.is_dir() else path
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = sorted((index.paths[i], index.classes[index.labels[i]], part) for part, i in _members(split))
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([("path", "label", "split"), *rows])
        write_text(target, text.getvalue())
        return [target]
    base = [p.rpartition("/")[2] for p in index.paths]
    if broken := next((name for name in (*base, *index.classes) if not name.isprintable()), None):
        raise UserError(f"The {layout} layout has no place for the name {broken!r}. Use csv.")
    twice = next((name for name, count in Counter(base).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"Several images are called {twice!r}, which the {layout} layout cannot tell apart. Use csv.")
    if layout == "torchgeo":
        stem = name or index.root.name.lower()
        lists = {f"{stem}-{part}.txt": [base[i] for i in where] for part, where in split.parts().items() if len(where)}
    elif layout == "rsp":
        if len(split.val):
            raise UserError("The rsp layout has no place for a validation part. Use csv or torchgeo, or no validation.")
        spaced = next((text for text in (*base, *index.classes) if text.split() != [text]), None)
        if spaced is not None:
            raise UserError(f"{spaced!r} has a space, at which readers of the rsp layout would cut it. Use csv.")
        token = _ratio_token(split)
        lists = {
            f"{word}_labels_{token}_{run}.txt": [
                f"{base[i]} {index.classes[index.labels[i]]} {index.labels[i]}" for i in where
            ]
            for word, where in (("train", split.train), ("valid", split.test))
        }
    else:
        raise UserError(f"Unknown split layout {layout!r}; expected csv, torchgeo or rsp.")
    path.mkdir(parents=True, exist_ok=True)
    for file_name, lines in lists.items():
        write_text(path / file_name, "".join(f"{line}\n" for line in lines))
    return [path / file_name for file_name in lists]


def read_split(path: Path, index: SceneIndex, whole: SceneIndex | None = None) -> Split:
    """Read a split for `index` from our CSV, or from torchgeo's or RSP's lists.

    The layout is recognised by content: a CSV by its header path,label,split; RSP lists by lines that end in a label
    index; otherwise one image a line. The part of a list is taken from the word train, val(id) or test in its file
    name. `path` is the CSV, one of the lists (the others are found beside it) or their folder. In RSP's layout "valid"
    is the test part, unless there is a test list too. Label indices may differ from those of `index`, as the class
    comes from the folder, but each must stand for one class. The root of an index whose folders are parts
    (`SceneIndex.parts`) is such a split itself.

    Args:
        path: the CSV, one of the lists, or their folder.
        index: images of the split.
        whole: images that may be named; those that `index` lacks are left out. `index` when not given.

    Raises:
        UserError: with file and line: unknown or ambiguous image, label that disagrees with the folder, image listed
            twice or in two parts, empty or unreadable file, class without a training image, no test image.
    Warns:
        UserWarning: images of the index that are in no part, or classes without a test image.
    """
    if index.parts is not None and Path(path).resolve() == index.root:
        _check_coverage(Path(path), index, index.parts)
        return assemble(index, index.parts, None, None)
    whole = whole or index
    part = np.full(len(whole), -1, dtype=np.int8)
    where: dict[int, str] = {}
    for position, name, place in _entries(Path(path), whole):
        if position in where:
            raise UserError(
                f"{place}: image {whole.paths[position]!r} is already listed at {where[position]}; "
                "each image belongs to one part, once. Remove one of the lines."
            )
        where[position] = place
        part[position] = PARTS.index(name)
    row = {name: number for number, name in enumerate(whole.paths)}
    part = part[[row[name] for name in index.paths]]
    _check_coverage(Path(path), index, part)
    return assemble(index, part, None, None)


def _entries(path: Path, index: SceneIndex) -> Iterator[tuple[int, str, str]]:
    """Yield (position in the index, part, "file:line") of each line of a split, whatever its layout."""
    find = ImageFinder(index)
    lists = _lists(path)
    rows = {part: _read_lines(file) for part, file in lists.items()}
    if "csv" in rows:
        yield from _csv_entries(lists["csv"], find)
        return
    is_rsp = {part: _RSP_LINE.fullmatch(lines[0][1].strip()) is not None for part, lines in rows.items()}
    if len(set(is_rsp.values())) > 1:
        raise UserError(f"{path}: lists of different layouts ({', '.join(f.name for f in lists.values())}).")
    if is_rsp["train"] and "test" not in rows and "val" in rows:
        lists["test"], rows["test"] = lists.pop("val"), rows.pop("val")  # "valid" is the test part of RSP
    if "test" not in rows:
        raise UserError(
            f"{lists['train']}: found no list of test images beside it; expected the same name with 'test' for 'train'."
        )
    first_use: dict[int, tuple[int, str]] = {}  # label index -> (class, where), and the reverse
    index_of: dict[int, tuple[int, str]] = {}
    for part in PARTS:
        for number, line in rows.get(part, ()):
            place = f"{lists[part]}:{number}"
            if not is_rsp["train"]:
                yield find(line, place), part, place
                continue
            match = _RSP_LINE.fullmatch(line.strip())
            if match is None:
                raise UserError(f"{place}: {line!r}; expected 'image class index' or 'image index' as on line 1.")
            position, given = find.with_class(match["image"], place)
            if given is not None:
                find.check_label(position, given, place)
            label, own = int(match["label"]), int(index.labels[position])
            known, where = first_use.setdefault(label, (own, place))
            other, there = index_of.setdefault(own, (label, place))
            if known != own or other != label:
                before = (index.classes[known], label, where) if known != own else (index.classes[own], other, there)
                raise UserError(
                    f"{place}: image {index.paths[position]!r} of class {index.classes[own]!r} has label {label}, but "
                    f"{before[0]!r} had label {before[1]} at {before[2]}. Each label must stand for one class."
                )
            yield position, part, place


def _csv_entries(path: Path, find: ImageFinder) -> Iterator[tuple[int, str, str]]:
    for line, row in read_table(path)[1]:
        place = f"{path}:{line}"
        image, label, part = (row.get(column, "") for column in ("path", "label", "split"))
        if part.strip().lower() not in PART_WORDS:
            raise UserError(f"{place}: split is {part!r}; expected train, val or test.")
        position = find(image, place)
        find.check_label(position, label, place)
        yield position, PART_WORDS[part.strip().lower()], place


def _lists(path: Path) -> dict[str, Path]:
    """The files of a split: {"csv": file}, or one list for each part with at least "train"."""
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.is_file() and f.suffix.lower() in (".txt", ".csv"))
        tables = [f for f in files if f.stat().st_size and _is_csv(_read_lines(f))]
        groups = _group(f for f in files if f not in tables)
        found = [{"csv": f} for f in tables] + [group for group in groups.values() if "train" in group]
        if len(found) == 1:
            return found[0]
        if not found:
            raise UserError(
                f"{path} holds no split; expected a CSV with path,label,split or lists like NAME-train.txt."
            )
        names = ", ".join((group.get("csv") or group["train"]).name for group in found)
        raise UserError(f"{path} holds {len(found)} splits: {names}. Give the path of one of these files.")
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected a split file or a folder of lists.")
    if _is_csv(_read_lines(path)):
        return {"csv": path}
    beside = (f for f in sorted(path.parent.iterdir()) if f.is_file() and f.suffix == path.suffix)
    for group in _group(beside).values():
        if path in group.values():
            if "train" not in group:
                raise UserError(f"{path}: found no list of training images beside it; expected 'train' in its name.")
            return group
    raise UserError(
        f"{path}: neither a CSV with the header path,label,split nor a list with train, val or test in its file name."
    )


def _group(files: Iterator[Path]) -> dict[str, dict[str, Path]]:
    """Lists whose names differ only in the word for the part: {"aid-*": {"train": ..., "test": ...}}."""
    groups: dict[str, dict[str, Path]] = defaultdict(dict)
    for file in files:
        words = re.split(r"([^a-z]+)", file.stem.lower())
        # the last such word: the data set's name may contain another
        at = next((i for i in reversed(range(len(words))) if words[i] in PART_WORDS), None)
        if at is not None:
            part = PART_WORDS[words[at]]
            groups["".join((*words[:at], "*", *words[at + 1 :], file.suffix))][part] = file
    return groups


def _is_csv(lines: list[tuple[int, str]]) -> bool:
    return {"path", "label", "split"} <= {name.strip(' "').lower() for name in re.split("[,;\t]", lines[0][1])}


def _read_lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}). {AS_UTF8}") from error
    # blanks stay: a name may begin or end with one
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: the file is empty; expected one image a line.")
    return lines


def _check_coverage(path: Path, index: SceneIndex, part: np.ndarray) -> None:
    labels = np.asarray(index.labels)
    has = {name: np.bincount(labels[part == i], minlength=len(index.classes)) for i, name in enumerate(PARTS)}
    untrained = [name for name, count in zip(index.classes, has["train"], strict=True) if not count]
    if untrained:
        raise UserError(f"{path}: no training image of class {', '.join(map(repr, untrained))}; each class needs one.")
    if not has["test"].any():
        raise UserError(f"{path}: no test image at all; the test part is needed for evaluation.")
    untested = [name for name, count in zip(index.classes, has["test"], strict=True) if not count]
    if untested:
        warnings.warn(f"{path}: no test image of class {', '.join(map(repr, untested))}", stacklevel=3)
    unused = np.flatnonzero(part < 0)
    if len(unused):
        first = index.paths[unused[0]]
        warnings.warn(f"{path}: {len(unused)} of {len(index)} images are in no part, first {first!r}", stacklevel=3)


def _members(split: Split) -> list[tuple[str, int]]:
    return [(part, int(i)) for part, positions in split.parts().items() for i in positions]


def _ratio_token(split: Split) -> str:
    ratio = split.train_ratio or len(split.train) / (len(split.train) + len(split.test))
    percent = round(ratio * 100)
    tenths, rest = divmod(percent, 10)
    return f"{tenths}{10 - tenths}" if not rest and 0 < tenths < 10 else f"{percent}-{100 - percent}"
