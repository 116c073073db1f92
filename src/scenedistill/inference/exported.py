"""Output folder of an export: replace an earlier export as a whole, and never overwrite other files."""

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

#: Files beside the networks: their card, the record of the export with checksums, and a readme.
CARD, RECORD, README = "model.json", "export.json", "README.md"
PART = ".scenedistill-export"


def claim(folder: Path) -> None:
    """Check that a folder can take an export, and complete an export that was killed while it moved its files there.

    Raises:
        UserError: the folder holds a file with a name that an export writes, and the record of no export lists it; or
            the folder's path is not valid UTF-8.
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
    """Provide an empty subfolder for files that are not checked yet, and remove it at the end."""
    part = folder / PART
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def replace(folder: Path) -> None:
    """Replace an earlier export with the files in `PART`.

    The networks are moved first and the readme last, so a folder with a readme holds one complete export. If the
    process is killed, `claim` completes the replacement.
    """
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
    """Compare a network's file with its checksum in `export.json` beside it; a file without one passes.

    Raises:
        Damaged: the checksum differs, or the record itself is damaged.
    """
    # while an export replaces another one, the new record is still in `PART`
    records = [read_checked(file.parent / place / RECORD) or {} for place in ("", PART)]
    kept = [found["sha256"][:16] for record in records if (found := _found_of(record, file.name)).get("sha256")]
    if kept and all(damages := [file_damage(file, checksum) for checksum in kept]):
        raise Damaged(f"{file.parent}: {damages[0]} in {RECORD}. Export it again or take another copy.")


def _found_of(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the entry of a file in a record, or an empty dict if there is none."""
    files = record.get("files")
    found = files.get(name) if isinstance(files, dict) else None
    return found if isinstance(found, dict) else {}


def _recorded(folder: Path) -> set[str]:
    """Return the files that the record of an export lists; empty if there is no valid record."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        networks = {name for name, found in content["files"].items() if not found["failure"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    return {CARD, RECORD, README} | (networks & set(EXPORTED)) if "about" in content else set()
