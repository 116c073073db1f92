"""Read the page headers of a TIFF, to check the memory that decoding needs before anything is decoded."""

from __future__ import annotations

import lzma
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# not with tifffile, which reads the pixels later: it follows up to 2**32 pages, notices only some chains of pages that
# lead back, and leaves out the rest of a damaged chain without an error

TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF

#: Largest number of pages in a file and of tags in a page; a file with more is refused.
MOST_PAGES, MOST_TAGS = 4096, 4096
#: Decoded bytes per pixel that the largest image may have: four bands of 16 bits.
BYTES_OF_PIXEL = 8
#: A tile that cannot inflate to more bytes than this is not checked.
INFLATED_BYTES = 128 << 20

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _OFFSETS, _SAMPLES, _ROWS, _COUNTS = 256, 257, 258, 259, 273, 277, 278, 279
_PLANAR, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS, _SUBFILE = 284, 322, 323, 324, 325, 254
_WANTED = {
    *(_WIDTH, _LENGTH, _BITS, _COMPRESSION, _OFFSETS, _SAMPLES, _ROWS, _COUNTS),
    *(_PLANAR, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS, _SUBFILE),
}
_KINDS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # BYTE, SHORT, LONG, LONG8


@dataclass(frozen=True)
class PageHeader:
    """Size and storage of a TIFF page.

    Attributes:
        width, height: size in pixels.
        samples: number of samples per pixel.
        bits: bits per sample.
        compression: value of the compression tag; 1 for none.
        area: pixels of all tiles or strips, which are decoded as a whole even where they extend beyond the page.
        piece: bytes of one decoded tile or strip.
        counts, offsets: bytes of each stored tile or strip, and its position in the file.
        overview: whether the page is a smaller copy or a mask of another page.
    """

    width: int
    height: int
    samples: int
    bits: int
    compression: int
    area: int
    piece: int
    counts: tuple[int, ...]
    offsets: tuple[int, ...]
    overview: bool

    @property
    def bytes(self) -> int:
        """Size of the decoded page in bytes."""
        return self.area * self.samples * max(1, -(-self.bits // 8))


def read_page_headers(path: Path) -> list[PageHeader]:
    """Read the header of every page of a TIFF.

    Raises:
        ValueError: not a TIFF, a cyclic or endless chain of pages, or headers outside the file.
    """
    with path.open("rb") as file:
        return _read(file, path.stat().st_size)


def _read(file: BinaryIO, size: int) -> list[PageHeader]:
    head = file.read(16)
    if not head.startswith(TIFF_HEADS):
        raise ValueError("not a TIFF")
    order = "<" if head[:1] == b"I" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    count_kind, offset_kind, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
    word = struct.calcsize(f"{order}{offset_kind}")
    start = 8 if big else 4
    if len(head) < start + word:
        raise ValueError("the file is truncated")
    (offset,) = struct.unpack_from(f"{order}{offset_kind}", head, start)
    pages: list[PageHeader] = []
    seen: set[int] = set()
    left = size  # bytes of tag values that all pages together may have: malicious files share one long list
    while offset:
        if offset in seen:
            raise ValueError("the file is damaged: its pages lead back to each other")
        if len(pages) == MOST_PAGES:
            raise ValueError(f"more than {MOST_PAGES:,} pages")
        seen.add(offset)
        if offset >= size:
            raise ValueError("the file is truncated")
        file.seek(offset)
        data = file.read(struct.calcsize(f"{order}{count_kind}"))
        if len(data) < struct.calcsize(f"{order}{count_kind}"):
            raise ValueError("the file is truncated")
        (count,) = struct.unpack(f"{order}{count_kind}", data)
        if count > MOST_TAGS:
            raise ValueError("the file is damaged: a page with too many tags")
        table = file.read(count * entry + word)
        if len(table) < count * entry + word:
            raise ValueError("the file is truncated")
        tags = {}
        for place in range(0, count * entry, entry):
            code, kind = struct.unpack_from(f"{order}HH", table, place)
            if code in _WANTED and kind in _KINDS:
                (length,) = struct.unpack_from(f"{order}{offset_kind}", table, place + 4)
                inside = table[place + 4 + word : place + entry]
                tags[code] = _values(file, size, order, offset_kind, _KINDS[kind], length, inside)
                needed = length * struct.calcsize(_KINDS[kind])
                left -= needed if needed > len(inside) else 0
                if left < 0:
                    raise ValueError("the file is damaged: its pages share one list of tiles")
        pages.append(_page(tags))
        (offset,) = struct.unpack_from(f"{order}{offset_kind}", table, count * entry)
    if not pages:
        raise ValueError("the file is damaged: it has no pages")
    return pages


def _values(
    file: BinaryIO, size: int, order: str, offset_kind: str, kind: str, length: int, inside: bytes
) -> tuple[int, ...]:
    """Read the values of a tag, from its entry or from the position that the entry points to."""
    needed = length * struct.calcsize(kind)
    if needed <= len(inside):
        return struct.unpack_from(f"{order}{length}{kind}", inside)
    (offset,) = struct.unpack(f"{order}{offset_kind}", inside)
    if offset + needed > size:
        raise ValueError("the file is truncated")
    file.seek(offset)
    return struct.unpack(f"{order}{length}{kind}", file.read(needed))


def _page(tags: dict[int, tuple[int, ...]]) -> PageHeader:
    def first(code: int, default: int) -> int:
        return next(iter(tags.get(code, ())), default)

    width, height = first(_WIDTH, 0), first(_LENGTH, 0)
    if not width or not height:
        raise ValueError("the file is damaged: a page without a size")
    tile_width = first(_TILE_WIDTH, 0)
    if tile_width:
        across, down = tile_width, max(1, first(_TILE_LENGTH, 1))
    else:
        across, down = width, min(height, max(1, first(_ROWS, height)))
    # rows of strips end with the image; a tile is decoded as a whole
    area = -(-width // across) * across * (-(-height // down) * down if tile_width else height)
    samples, bits = max(1, first(_SAMPLES, 1)), max(tags.get(_BITS, (1,)), default=1)
    together = 1 if first(_PLANAR, 1) == 2 else samples
    return PageHeader(
        width,
        height,
        samples,
        bits,
        first(_COMPRESSION, 1),
        area,
        across * down * together * max(1, -(-bits // 8)),
        tags.get(_TILE_COUNTS if tile_width else _COUNTS, ()),
        tags.get(_TILE_OFFSETS if tile_width else _OFFSETS, ()),
        bool(first(_SUBFILE, 0) & 5),
    )


def check_decoded_size(pages: list[PageHeader], most: int | None) -> None:
    """Refuse a TIFF that would take far more memory than the largest image allowed.

    Args:
        pages: result of `read_page_headers`.
        most: largest number of pixels; no limit when None.

    Raises:
        ValueError: too many pixels in the image or in its tiles, or too many bytes in all bands together.
    """
    first = pages[0]
    if most is None:
        return
    if first.width * first.height > most:
        raise ValueError(f"{first.width} x {first.height} pixels, more than the limit of {most:,}")
    kind = first.width, first.height, first.overview
    bands = [page for page in pages if (page.width, page.height, page.overview) == kind]
    if max(page.area for page in bands) > most:
        raise ValueError(f"tiles of {max(page.area for page in bands):,} pixels, more than the limit of {most:,}")
    needed = sum(page.bytes for page in (bands if first.samples == 1 else bands[:1]))
    if needed > BYTES_OF_PIXEL * most:
        limit = BYTES_OF_PIXEL * most / 2**30
        raise ValueError(f"{needed / 2**30:,.1f} GiB when decoded, more than the limit of {limit:,.1f}")


def check_inflated(path: Path, page: PageHeader) -> None:
    """Refuse deflate or LZMA tiles that inflate to more than their size, as tifffile inflates all of their content.

    Only tiles that could inflate to very much are checked, but all tiles if the page lists one of them twice.

    Raises:
        ValueError: a tile is too large, or damaged.
    """
    ratio, opener = {8: (1032, zlib.decompressobj), 32946: (1032, zlib.decompressobj)}.get(
        page.compression, (7200, lzma.LZMADecompressor)
    )
    if page.compression not in (8, 32946, 34925):
        return
    pieces = set(zip(page.offsets, page.counts, strict=False))
    twice = len(pieces) < len(page.offsets)
    with path.open("rb") as file:
        for offset, count in pieces:
            if count and (twice or count * ratio > max(8 * page.piece, INFLATED_BYTES)):
                file.seek(offset)
                try:
                    inflated = opener().decompress(file.read(count), page.piece + 1)
                except (zlib.error, lzma.LZMAError, EOFError) as problem:
                    raise ValueError("the file is damaged") from problem
                if len(inflated) > page.piece:
                    raise ValueError("the file is damaged: a tile holds more than its size")
