"""Which files of a folder an earlier call of the same command has written, so that no others are taken away."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from scenedistill.core.disk import whole_file


def replaced(folder: Path, command: str, written: Iterable[Path], *, keep: Iterable[str] = ()) -> Path:
    """Remove what an earlier call has left beside the files of this one, and note these.

    Args:
        folder: that both wrote into.
        command: whose files they are; the note is `COMMAND.files.json`.
        written: files of this call.
        keep: names of files of an earlier call that stay, and stay noted.

    Returns:
        The note.
    """
    note = folder / f"{command}.files.json"
    names, staying = {file.name for file in written}, set[str]()
    for name in _noted(note) - names:
        file = folder / name
        if name in keep and file.is_file():
            staying.add(name)
        elif file.is_file() or file.is_symlink():
            file.unlink()
    with whole_file(note) as content:  # under a name that the next call takes too: a kill leaves nothing for good
        content.write(json.dumps({"files": sorted(names | staying)}, indent=1).encode())
    return note


def _noted(note: Path) -> set[str]:
    """Plain names of files, which lie beside the note."""
    try:
        names = json.loads(note.read_text(encoding="utf-8"))["files"]
        return {name for name in names if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
