"""Blocks that make up a section of the page; the template renders each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from scenedistill.reporting.html.tables import Table


@dataclass(frozen=True)
class Text:
    """A paragraph; `tone` is "" or "warn"."""

    text: str
    tone: str = ""
    kind: str = "text"


@dataclass(frozen=True)
class Tiles:
    """A few figures in large print: (label, figure, explanation)."""

    tiles: Sequence[tuple[str, str, str]]
    kind: str = "tiles"


@dataclass(frozen=True)
class Properties:
    """Names with values."""

    properties: Sequence[tuple[str, str]]
    kind: str = "properties"


@dataclass(frozen=True)
class Code:
    """Text in a monospaced font; only its title is shown at first."""

    title: str
    text: str
    folded: bool = True
    kind: str = "code"


@dataclass(frozen=True)
class Charts:
    """Drawings side by side with one legend.

    Attributes:
        charts: (title, SVG).
        legend: (series, CSS classes, hue or None); a click highlights the series.
        caption: text below the charts.
    """

    charts: Sequence[tuple[str, Markup]]
    legend: Sequence[tuple[str, str, int | None]] = ()
    caption: str = ""
    kind: str = "charts"


@dataclass(frozen=True)
class Tile:
    """A picture: a data URI, or the number of a thumbnail that the script inserts.

    Attributes:
        alt: alternative text.
        caption: text below the picture.
        uri: data URI.
        thumbnail: number of the thumbnail.
        tone: "", "right" or "wrong".
    """

    alt: str
    caption: str
    uri: str = ""
    thumbnail: int | None = None
    tone: str = ""


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures, each with a heading and a note."""

    rows: Sequence[tuple[str, str, Sequence[Tile]]]
    caption: str = ""
    kind: str = "gallery"


@dataclass(frozen=True)
class MatrixView:
    """Placeholder in which the script draws the confusion matrices."""

    kind: str = "matrices"


Block = Text | Tiles | Properties | Code | Charts | Gallery | MatrixView | Table


@dataclass
class Section:
    """A headed part of the page.

    Attributes:
        key: anchor in the page.
        title: the heading.
        blocks: content, in order.
        help: how to read it, in a sentence or two.
    """

    key: str
    title: str
    help: str = ""
    blocks: list[Block] = field(default_factory=list)
