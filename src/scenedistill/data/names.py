"""Names of classes and files: equal whatever Unicode form a file system gives them, and safe in tables and pages."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

#: What a spreadsheet takes for the start of a formula (OWASP, "CSV injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def nfc(text: str) -> str:
    """Composed Unicode: macOS gives file names decomposed, Linux as they were written."""
    return unicodedata.normalize("NFC", text)


def positions_in(names: Iterable[str], known: Sequence[str]) -> list[int]:
    """Position of each name among the known ones, equal by `nfc`; -1 for a name that is not there."""
    number = {nfc(name): position for position, name in enumerate(known)}
    return [number.get(nfc(name), -1) for name in names]


def same_names(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists hold the same names in the same order, equal by `nfc`."""
    return [*map(nfc, some)] == [*map(nfc, others)]


def as_cell(text: str) -> str:
    """Text for a cell of a CSV table that people open: one that a spreadsheet would compute gets an apostrophe before
    it, which tells every spreadsheet that it is text."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def as_path_cell(path: str) -> str:
    """A path for such a cell: `./` before it keeps it a path to the same file."""
    return f"./{path}" if path.startswith(_FORMULA) else path


def as_markdown(text: object) -> str:
    """Text that Markdown shows as it is: no HTML, links, emphasis or columns, and on one line."""
    # an underscore within a word is no emphasis
    escaped = re.sub(r"[\\`*\[\]|#~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(str(text).split()))
    return html.escape(escaped, quote=False)
