"""The catalogue of well-known scene data sets, with a check of a folder against it."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from scenedistill.core.errors import UserError
from scenedistill.core.terminal import counted
from scenedistill.data.known.catalogue_entries import ENTRIES
from scenedistill.data.known.dataset_info import DatasetInfo, Source

if TYPE_CHECKING:
    from scenedistill.data.scenes import SceneIndex

__all__ = ["CATALOG", "CheckReport", "DatasetInfo", "Source", "check", "lookup", "normalise", "overview", "recognise"]

CATALOG: dict[str, DatasetInfo] = {info.key: info for info in ENTRIES}


@dataclass(frozen=True)
class CheckReport:
    """Comparison of a folder with a catalogue entry; `str()` describes it in a few lines.

    `odd_counts` holds (class as the folder spells it, images found, images expected); `nearest` holds, for an unknown
    data set, the entry that shares most of its class names (at least half) and how many it shares.
    """

    info: DatasetInfo | None
    images: int
    missing_classes: tuple[str, ...] = ()
    unknown_classes: tuple[str, ...] = ()
    odd_counts: tuple[tuple[str, int, int], ...] = ()
    nearest: tuple[str, int] | None = None

    @property
    def complete(self) -> bool:
        """Whether the classes are exactly those of the entry, each with the expected number of images."""
        return self.info is not None and not (self.missing_classes or self.unknown_classes or self.odd_counts)

    def __str__(self) -> str:
        if self.info is None:
            count, near = counted(self.images, "image"), ""
            if self.nearest:
                near = f"; nearest is {self.nearest[0]} with {counted(self.nearest[1], 'class')} in common"
            return f"this is no data set of the catalogue ({count}{near}); fine if it is your own"
        info = self.info
        if self.complete:
            return f"this is {info.name}, complete: {info.total:,} images, {len(info.counts)} classes"
        present = len(info.counts) - len(self.missing_classes)
        lines = [
            f"this is {info.name}, but not as published: {self.images:,} of {info.total:,} images, "
            f"{present} of {len(info.counts)} classes"
        ]
        if self.missing_classes:
            lines.append(f"  missing classes: {_shorten(self.missing_classes)}")
        if self.unknown_classes:
            lines.append(f"  classes it does not have: {_shorten(self.unknown_classes)}")
        if self.odd_counts:
            odd = [f"{name} {found} (expected {expected})" for name, found, expected in self.odd_counts]
            lines.append(f"  images of a class: {_shorten(odd)}")
        return "\n".join(lines)


def check(index: SceneIndex, info: DatasetInfo | None = None) -> CheckReport:
    """Compare an index with `info`, or with the set `recognise` finds; class names count as equal when they differ
    only in case, spaces, underscores or hyphens."""
    info = info or recognise(index)
    if info is None:
        return CheckReport(None, len(index), nearest=_nearest(index))
    expected = {normalise(name): (name, count) for name, count in info.counts.items()}
    found: Counter[str] = Counter()
    spelling: dict[str, str] = {}
    for name, count in index.counts().items():
        key = _class_key(name, info)
        found[key] += count
        spelling.setdefault(key, name)
    return CheckReport(
        info,
        images=len(index),
        missing_classes=tuple(sorted(name for key, (name, _) in expected.items() if not found[key])),
        unknown_classes=tuple(sorted(spelling[key] for key in found if key not in expected)),
        odd_counts=tuple(
            (spelling[key], found[key], count)
            for key, (_, count) in sorted(expected.items())
            if found[key] and found[key] != count
        ),
    )


def recognise(index: SceneIndex) -> DatasetInfo | None:
    """The catalogue entry whose class names fit best, if at least 60 % of all class names on both sides are shared."""
    best = max(CATALOG.values(), key=lambda info: _similarity(index, info))
    return best if _similarity(index, best) >= 0.6 else None


def lookup(name: str) -> DatasetInfo:
    """Return the entry of that name, ignoring case and punctuation.

    Raises:
        UserError: no such entry; the nearest name is proposed.
    """
    names = {normalise(n): info for info in CATALOG.values() for n in (info.key, info.name, *info.other_names)}
    wanted = normalise(name)
    if wanted in names:
        return names[wanted]
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f" Did you mean {names[close[0]].key!r}?" if close else ""
    raise UserError(f"{name!r} is not in the catalogue.{hint} Known: {', '.join(CATALOG)}.")


def overview() -> Table:
    """The known data sets as a table for the terminal."""
    table = Table("name", "data set", "classes", "images", "pixels", "usual ratios", "download", "licence")
    for info in CATALOG.values():
        ratios = ", ".join(f"{ratio:.0%}" for ratio in info.train_ratios)
        how = "yes" if info.sources else "by hand"
        table.add_row(
            info.key,
            info.name,
            str(len(info.counts)),
            f"{info.total:,}",
            str(info.pixels),
            ratios,
            how,
            info.licence,
        )
    return table


def normalise(name: str) -> str:
    """Return a class or set name without case, spaces, underscores, hyphens or CamelCase: 'Bare_Land' -> 'bareland'."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def _class_key(name: str, info: DatasetInfo) -> str:
    key = normalise(name)
    return next((normalise(target) for alias, target in info.class_aliases.items() if normalise(alias) == key), key)


def _shared(index: SceneIndex, info: DatasetInfo) -> tuple[int, int]:
    ours = {_class_key(name, info) for name in index.classes}
    theirs = {normalise(name) for name in info.counts}
    return len(ours & theirs), len(ours | theirs)


def _similarity(index: SceneIndex, info: DatasetInfo) -> float:
    shared, either = _shared(index, info)
    return shared / either


def _nearest(index: SceneIndex) -> tuple[str, int] | None:
    shared, name = max((_shared(index, info)[0], info.name) for info in CATALOG.values())
    return (name, shared) if 2 * shared >= len(index.classes) else None


def _shorten(items: tuple[str, ...] | list[str], limit: int = 8) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
