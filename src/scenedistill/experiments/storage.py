"""Listing and clearing the cache folder: decoded images and stored teacher outputs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from scenedistill.core.disk import read_json
from scenedistill.core.errors import UserError
from scenedistill.data.cache.build import cache_home
from scenedistill.data.cache.files import KIND, remove_arrays
from scenedistill.training.teacher_outputs.store import ABOUT, VIEW, size_text


@dataclass(frozen=True)
class Stored:
    """One folder of decoded images or of stored teacher outputs."""

    kind: str  # "images" or "knowledge"
    folder: Path
    what: str
    bytes: int

    @property
    def name(self) -> str:
        """Name of the folder, as used on the command line."""
        return self.folder.name


def stored(root: Path | None = None) -> list[Stored]:
    """List everything stored under a cache folder, the largest first; `cache_home()` when not given."""
    root = cache_home() if root is None else root
    found = []
    # a folder given as --data.cache_dir holds decoded images itself; unlabelled ones and teacher outputs are below it
    for manifest in [path for kind in ("", "scenes/*/", "unlabelled/*/") for path in root.glob(f"{kind}manifest.json")]:
        if read_json(manifest).get("kind") != KIND:
            continue
        settings = read_json(manifest).get("settings", {})
        what = f"{settings.get('root', '?')} at {settings.get('size', '?')} pixels"
        found.append(Stored("images", manifest.parent, what, _bytes(manifest.parent)))
    for about in root.glob(f"knowledge/*/{ABOUT}"):
        said = read_json(about)
        views = sum(bool(VIEW.fullmatch(file.name)) for file in about.parent.iterdir())
        what = (
            f"{said.get('teacher', '?')} on {said.get('data', '?')} at {said.get('pixels', '?')} pixels, seed "
            f"{said.get('settings', {}).get('seed', '?')}: {views} views x {said.get('images', 0):,} images"
        )
        found.append(Stored("knowledge", about.parent, what, _bytes(about.parent)))
    return sorted(found, key=lambda entry: (-entry.bytes, entry.name))


def clear(names: Sequence[str], root: Path | None = None) -> list[Stored]:
    """Delete stores by name, or all of a kind by `images` or `knowledge`, or everything by `all`; deleted data is
    created again when needed.

    Raises:
        UserError: a name is unknown; nothing is deleted.
    """
    there = stored(root)
    chosen: list[Stored] = []
    for name in names:
        matching = [entry for entry in there if name in ("all", entry.kind, entry.name)]
        if not matching and name not in ("all", "images", "knowledge"):
            raise UserError(f"Nothing stored is called '{name}'. `scenedistill data stored` lists what there is.")
        chosen += [entry for entry in matching if entry not in chosen]
    for entry in chosen:
        if entry.kind == "knowledge":
            shutil.rmtree(entry.folder)
            continue
        remove_arrays(entry.folder, keep="")
        (entry.folder / "manifest.json").unlink()
        (entry.folder / "build.lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder holds other files
            entry.folder.rmdir()
    return chosen


def stored_table(entries: Sequence[Stored]) -> Table:
    """Create the table of the entries for the terminal."""
    table = Table("name", "kind", "what", "size", box=None)
    for entry in entries:
        table.add_row(*map(Text, (entry.name, entry.kind, entry.what, size_text(entry.bytes))))
    return table


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
