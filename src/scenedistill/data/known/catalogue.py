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
from scenedistill.data.known.dataset_info import DatasetFacts, Source

if TYPE_CHECKING:
    from scenedistill.data.scenes import SceneIndex

__all__ = ["CATALOG", "CheckReport", "DatasetFacts", "Source", "check", "lookup", "normalise", "overview", "recognise"]

CATALOG: dict[str, DatasetFacts] = {facts.key: facts for facts in ENTRIES}


@dataclass(frozen=True)
class CheckReport:
    """Comparison of a folder with a catalogue entry; `str()` describes it in a few lines.

    `odd_counts` holds (class as the folder spells it, images found, images expected); `nearest` holds, for an unknown
    data set, the entry that shares most of its class names (at least half) and how many it shares.
    """

    facts: DatasetFacts | None
    images: int
    missing_classes: tuple[str, ...] = ()
    unknown_classes: tuple[str, ...] = ()
    odd_counts: tuple[tuple[str, int, int], ...] = ()
    nearest: tuple[str, int] | None = None

    @property
    def complete(self) -> bool:
        """Whether the classes are exactly those of the entry, each with the expected number of images."""
        return self.facts is not None and not (self.missing_classes or self.unknown_classes or self.odd_counts)

    def __str__(self) -> str:
        if self.facts is None:
            count, near = counted(self.images, "image"), ""
            if self.nearest:
                near = f"; nearest is {self.nearest[0]} with {counted(self.nearest[1], 'class')} in common"
            return f"this is no data set of the catalogue ({count}{near}); fine if it is your own"
        facts = self.facts
        if self.complete:
            return f"this is {facts.name}, complete: {facts.total:,} images, {len(facts.counts)} classes"
        present = len(facts.counts) - len(self.missing_classes)
        lines = [
            f"this is {facts.name}, but not as published: {self.images:,} of {facts.total:,} images, "
            f"{present} of {len(facts.counts)} classes"
        ]
        if self.missing_classes:
            lines.append(f"  missing classes: {_shorten(self.missing_classes)}")
        if self.unknown_classes:
            lines.append(f"  classes it does not have: {_shorten(self.unknown_classes)}")
        if self.odd_counts:
            odd = [f"{name} {found} (expected {expected})" for name, found, expected in self.odd_counts]
            lines.append(f"  images of a class: {_shorten(odd)}")
        return "\n".join(lines)


def check(index: SceneIndex, facts: DatasetFacts | None = None) -> CheckReport:
    """Compare an index with `facts`, or with the set `recognise` finds; class names count as equal when they differ
    only in case, spaces, underscores or hyphens."""
    facts = facts or recognise(index)
    if facts is None:
        return CheckReport(None, len(index), nearest=_nearest(index))
    expected = {normalise(name): (name, count) for name, count in facts.counts.items()}
    found: Counter[str] = Counter()
    spelling: dict[str, str] = {}
    for name, count in index.counts().items():
        key = _class_key(name, facts)
        found[key] += count
        spelling.setdefault(key, name)
    return CheckReport(
        facts,
        images=len(index),
        missing_classes=tuple(sorted(name for key, (name, _) in expected.items() if not found[key])),
        unknown_classes=tuple(sorted(spelling[key] for key in found if key not in expected)),
        odd_counts=tuple(
            (spelling[key], found[key], count)
            for key, (_, count) in sorted(expected.items())
            if found[key] and found[key] != count
        ),
    )


def recognise(index: SceneIndex) -> DatasetFacts | None:
    """The catalogue entry whose class names fit best, if at least 60 % of all class names on both sides are shared."""
    ranked = sorted(CATALOG.values(), key=lambda facts: _similarity(index, facts), reverse=True)
    best = ranked[0]
    return best if _similarity(index, best) >= 0.6 else None


def lookup(name: str) -> DatasetFacts:
    """Return the entry of that name, ignoring case and punctuation.

    Raises:
        UserError: no such entry; the nearest name is proposed.
    """
    names = {normalise(n): facts for facts in CATALOG.values() for n in (facts.key, facts.name, *facts.other_names)}
    wanted = normalise(name)
    if wanted in names:
        return names[wanted]
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f" Did you mean {names[close[0]].key!r}?" if close else ""
    raise UserError(f"{name!r} is not in the catalogue.{hint} Known: {', '.join(CATALOG)}.")


def overview() -> Table:
    """The known data sets as a table for the terminal."""
    table = Table("name", "data set", "classes", "images", "pixels", "usual ratios", "download", "licence")
    for facts in CATALOG.values():
        ratios = ", ".join(f"{ratio:.0%}" for ratio in facts.train_ratios)
        how = "yes" if facts.sources else "by hand"
        table.add_row(
            facts.key,
            facts.name,
            str(len(facts.counts)),
            f"{facts.total:,}",
            str(facts.pixels),
            ratios,
            how,
            facts.licence,
        )
    return table


def normalise(name: str) -> str:
    """Return a class or set name without case, spaces, underscores, hyphens or CamelCase: 'Bare_Land' -> 'bareland'."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def _class_key(name: str, facts: DatasetFacts) -> str:
    key = normalise(name)
    return next((normalise(target) for alias, target in facts.class_aliases.items() if normalise(alias) == key), key)


def _shared(index: SceneIndex, facts: DatasetFacts) -> tuple[int, int]:
    ours = {_class_key(name, facts) for name in index.classes}
    theirs = {normalise(name) for name in facts.counts}
    return len(ours & theirs), len(ours | theirs)


def _similarity(index: SceneIndex, facts: DatasetFacts) -> float:
    shared, either = _shared(index, facts)
    return shared / either


def _nearest(index: SceneIndex) -> tuple[str, int] | None:
    shared, name = max((_shared(index, facts)[0], facts.name) for facts in CATALOG.values())
    return (name, shared) if 2 * shared >= len(index.classes) else None


def _shorten(items: tuple[str, ...] | list[str], limit: int = 8) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
