"""Record which files a command writes into a folder, so that its next call removes no others."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from scenedistill.core.disk import whole_file


def replaced(folder: Path, command: str, written: Iterable[Path], *, keep: Iterable[str] = ()) -> Path:
    """Remove the files of an earlier call that this call did not write, and record the files of this call.

    Args:
        folder: folder that both calls wrote into.
        command: name of the command; the record is `COMMAND.files.json`.
        written: files of this call.
        keep: names of earlier files that stay in the folder and in the record.

    Returns:
        Path of the record.
    """
    note = folder / f"{command}.files.json"
    names, staying = {file.name for file in written}, set[str]()
    for name in _noted(note) - names:
        file = folder / name
        if name in keep and file.is_file():
            staying.add(name)
        elif file.is_file() or file.is_symlink():
            file.unlink()
    with whole_file(note) as content:  # a fixed partial name: what a kill leaves, the next call overwrites
        content.write(json.dumps({"files": sorted(names | staying)}, indent=1).encode())
    return note


def _noted(note: Path) -> set[str]:
    """Return the recorded names of files directly in the folder; none if the record is missing or damaged."""
    try:
        names = json.loads(note.read_text(encoding="utf-8"))["files"]
        return {name for name in names if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
