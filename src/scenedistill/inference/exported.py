"""The folder of an export: only what an earlier export has left there is replaced, and by a whole new one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scenedistill.core.disk import file_damage, read_checked, shown_path
from scenedistill.core.errors import Damaged, UserError
from scenedistill.runs.find import EXPORTED

#: Beside the networks: their card as JSON, what was found of them, and the page for people.
CARD, RECORD, README = "model.json", "export.json", "README.md"
PART = ".scenedistill-export"


def claim(folder: Path) -> None:
    """See that a folder can take an export; one that was killed while it put its files in place is brought to its end.

    Raises:
        UserError: it holds a file of a name that an export writes, and no export's record names it; or its name is not
            UTF-8.
    """
    if shown_path(folder) != str(folder):
        raise UserError(f"{shown_path(folder)}: safetensors takes only names in UTF-8. Give another folder with --out.")
    if _recorded(folder / PART):
        replace(folder)
    own = _recorded(folder)
    foreign = [name for name in (*EXPORTED, CARD, RECORD, README) if name not in own and (folder / name).exists()]
    if foreign:
        raise UserError(
            f"{folder} holds {', '.join(foreign)}, which no export has written there. Give another folder with --out, "
            "or move that away."
        )


@contextmanager
def part_of(folder: Path) -> Iterator[Path]:
    """An empty folder within it for files that are not checked yet; removed at the end."""
    part = folder / PART
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def replace(folder: Path) -> None:
    """Put what lies ready in `PART` in place of an earlier export: networks first, the page last. So a folder with a
    page holds one whole export; `claim` finishes what a kill has left."""
    part = folder / PART
    new, old = _recorded(part), _recorded(folder)
    (folder / README).unlink(missing_ok=True)
    for name in EXPORTED:
        if name in new and (part / name).is_file():
            (part / name).replace(folder / name)
        elif name in old - new:
            (folder / name).unlink(missing_ok=True)
    for name in (CARD, RECORD, README):
        if (part / name).is_file():
            (part / name).replace(folder / name)


def check_exported(file: Path) -> None:
    """Compare a network's file with the checksum in the `export.json` beside it; one without any is taken as it is.

    Raises:
        Damaged: it does not fit, or the record itself is damaged.
    """
    # while an export replaces another one, the new record still lies in `PART`
    records = [read_checked(file.parent / place / RECORD) or {} for place in ("", PART)]
    kept = [found["sha256"][:16] for record in records if (found := _found_of(record, file.name)).get("sha256")]
    if kept and all(damages := [file_damage(file, checksum) for checksum in kept]):
        raise Damaged(f"{file.parent}: {damages[0]} in {RECORD}. Export it anew or take another copy.")


def _found_of(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What a record says of one file; nothing where it does not."""
    files = record.get("files")
    found = files.get(name) if isinstance(files, dict) else None
    return found if isinstance(found, dict) else {}


def _recorded(folder: Path) -> set[str]:
    """The files that a folder's record names as an export's; none where there is no record, or not one of ours."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        networks = {name for name, found in content["files"].items() if not found["failure"]}
        assert "about" in content
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError):
        return set()
    return {CARD, RECORD, README} | (networks & set(EXPORTED))
