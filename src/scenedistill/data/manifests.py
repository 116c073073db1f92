"""Read a CSV manifest: the images of a data set and the class of each."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from scenedistill.core.errors import UserError
from scenedistill.data.csv_tables import read_table

_NAMED = 5  # how many paths an error names before it only counts


def read_manifest(manifest: Path) -> dict[str, str]:
    """Read the label of each path from a CSV table with the columns `path,label`; further columns are ignored.

    A path is relative to the table's folder and below it. It is used as written; if there is no such file, without
    blanks at its ends and with back-slashes replaced by slashes.

    Raises:
        UserError: a missing column or file, an empty field, a path that leaves the folder, or one that is listed twice.
    """
    root, label_of = manifest.parent, dict[str, str]()
    columns, rows = read_table(manifest)
    if not {"path", "label"} <= set(columns):
        found = ", ".join(columns) or "(none)"
        raise UserError(f"{manifest} has the columns {found}; expected path,label in its first line.")
    for line, row in rows:
        here = f"{manifest}, line {line}"
        path, label = row["path"], row["label"].strip()
        if not path.strip() or not label:
            raise UserError(f"{here}: the {'label' if path.strip() else 'path'} is empty.")
        path = _relative(path, root, here)
        if path in label_of:
            raise UserError(f"{here}: {path} is listed a second time.")
        label_of[path] = label
    if not label_of:
        raise UserError(f"{manifest} lists no image.")
    if missing := [path for path in label_of if not _is_file(f"{root}/{path}")]:
        more = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
        raise UserError(
            f"{manifest} names {len(missing):,} missing file{'s' if len(missing) > 1 else ''}: "
            f"{', '.join(missing[:_NAMED])}{more}. Paths must be relative to {root}, the folder of the CSV."
        )
    return label_of


def _relative(text: str, root: Path, here: str) -> str:
    path = text if _is_file(f"{root}/{text}") else text.strip()
    if "\\" in path and not _is_file(f"{root}/{path}"):
        path = path.replace("\\", "/")
    if os.path.isabs(path) or PureWindowsPath(path).drive:  # noqa: PTH117  (a Path for each of many files is slow)
        raise UserError(f"{here}: {path} is an absolute path; it must be relative to the folder of the CSV.")
    whole = PurePosixPath(path)
    if ".." in whole.parts:
        raise UserError(
            f"{here}: {path} leaves the folder of the CSV. Put the CSV into a folder above the images, and write their "
            "paths from there."
        )
    return whole.as_posix()  # so that ./a.jpg and a.jpg are the same


def _is_file(path: str) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  (False also for what cannot be a name)
