"""Properties of one data set, and its sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DatasetInfo:
    """Properties of one data set.

    Attributes:
        key: short name for the command line, lower case.
        name: name as the field writes it.
        counts: images of each class, with the class names as the original folders are spelt.
        pixels: side of the original square images in pixels.
        resolution: ground resolution in metres a pixel, as text because it is often a range; "" where unstated.
        licence: as stated by the publishers, in their own words if there are any.
        train_ratios: training fractions the literature usually reports; empty where no ratio is usual.
        reference, doi: the paper to cite.
        home: web page for getting the data set by hand.
        sources: archives that can be downloaded without an account; empty where there are none.
        other_names: further names by which it is known.
        class_aliases: other spellings of a class -> the name in `counts`.
    """

    key: str
    name: str
    counts: Mapping[str, int]
    pixels: int
    resolution: str
    licence: str
    train_ratios: tuple[float, ...]
    reference: str
    doi: str
    home: str
    sources: tuple[Source, ...] = ()
    other_names: tuple[str, ...] = ()
    class_aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(self.counts))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True)
class Source:
    """A stable public address of a data set's archive; a checksum is None where nobody has published one."""

    url: str
    folder: str  # where the class folders lie inside the archive, POSIX
    md5: str | None = None
    sha256: str | None = None
