"""YAML files: settings as they are given and as they are kept."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import yaml

from scenedistill.core.disk import short_hash, write_text
from scenedistill.core.errors import Damaged, UserError

#: Values in a file, each alias counted as often as it stands for something: a few lines of them can stand for billions.
MOST_VALUES = 100_000
MOST_LETTERS = 1_000_000
_CHECKSUM = re.compile(r"\A# checksum ([0-9a-f]{16})[^\n]*\n")


def write_yaml(path: Path, text: str) -> None:
    """Write YAML, whole or not at all, and its checksum in a comment, which `read_yaml` compares where asked to."""
    note = "by which a report sees that nobody has changed this file"
    write_text(path, f"# checksum {short_hash(text)}, {note}\n{text}")


def read_yaml(path: Path, *, unchanged: bool = False) -> dict[str, Any]:
    """What a YAML file holds by name.

    Args:
        path: of the file.
        unchanged: compare the checksum that `write_yaml` has put there; a file without one is taken as it is.

    Raises:
        UserError: it cannot be read, is not YAML with plain values, or far larger than settings are.
        Damaged: it was changed since it was written.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        _check_text(text, path)
        values = yaml.safe_load(text)
    except UnicodeDecodeError as problem:
        raise UserError(f"{path} is not UTF-8 text.") from problem
    except OSError as problem:
        raise UserError(f"{path} cannot be read: {problem.strerror}.") from problem
    except RecursionError as problem:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply.") from problem
    except (yaml.YAMLError, ValueError, TypeError) as problem:  # the latter two: dates and keys that there are not
        raise UserError(f"{path} is not valid YAML: {' '.join(str(problem).split())[:300]}") from problem
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings; expected `name: value` lines.")
    if unchanged and (found := _CHECKSUM.search(text)) and found[1] != short_hash(text[found.end() :]):
        raise Damaged(f"{path} is damaged or was changed since the run wrote it.")
    return values


def check_size(path: Path) -> None:
    """Refuse a file that is far larger than settings are, in bytes or in what its aliases stand for; whatever else is
    wrong with it is left to who reads it.

    Raises:
        UserError: it is.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        try:
            _check_text(path.read_bytes().decode("utf-8-sig"), path)
        except RecursionError as problem:
            raise UserError(f"{path} is not valid YAML: it is nested too deeply.") from problem


def _check_text(text: str, path: Path) -> None:
    if len(text) > MOST_LETTERS:
        raise UserError(f"{path} has {len(text):,} characters; settings have {MOST_LETTERS:,} at most.")
    if _count(yaml.compose(text, Loader=yaml.SafeLoader)) > MOST_VALUES:
        raise UserError(f"{path} stands for more than {MOST_VALUES:,} values. Write it with fewer aliases (*name).")


def _count(top: yaml.Node | None) -> int:
    """Values below a node, an alias counted as what it stands for."""
    counts: dict[int, int] = {}

    def of(node: yaml.Node) -> int:
        if id(node) not in counts:
            counts[id(node)] = MOST_VALUES + 1  # of a node within itself
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [part for pair in inner for part in pair] if isinstance(node, yaml.MappingNode) else inner
            counts[id(node)] = min(MOST_VALUES + 1, 1 + sum(map(of, parts)))
        return counts[id(node)]

    return of(top) if top else 0
