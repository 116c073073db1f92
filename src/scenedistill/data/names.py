"""Names of classes and files: compared whatever their Unicode form, and escaped for tables and pages."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

#: First characters that a spreadsheet takes for a formula (OWASP, "CSV injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def nfc(text: str) -> str:
    """Normalise text to composed Unicode (NFC): macOS gives file names decomposed, Linux as they were written."""
    return unicodedata.normalize("NFC", text)


def image_id(path: str) -> int:
    """Return a 63-bit hash of an image's relative path, independent of the folder's other files and of Unicode form."""
    return int.from_bytes(hashlib.sha256(nfc(path).encode()).digest()[:8], "big") >> 1


def positions_in(names: Iterable[str], known: Sequence[str]) -> list[int]:
    """Return the position of each name in `known`, compared by `nfc`; -1 for a name that is not there."""
    number = {nfc(name): position for position, name in enumerate(known)}
    return [number.get(nfc(name), -1) for name in names]


def same_names(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists hold the same names in the same order, equal by `nfc`."""
    return [*map(nfc, some)] == [*map(nfc, others)]


def as_cell(text: str) -> str:
    """Escape text for a cell of a CSV table: an apostrophe before a formula makes spreadsheets show it as text."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def as_path_cell(path: str) -> str:
    """Escape a path for a cell of a CSV table: with `./` before it, it still leads to the same file."""
    return f"./{path}" if path.startswith(_FORMULA) else path


def as_markdown(text: object) -> str:
    """Escape text so that Markdown shows it literally and on one line: no HTML, links, emphasis or columns."""
    # an underscore within a word is no emphasis
    escaped = re.sub(r"[\\`*\[\]|#~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(str(text).split()))
    return html.escape(escaped, quote=False)
