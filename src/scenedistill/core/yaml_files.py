"""Read and write YAML files of settings."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import yaml

from scenedistill.core.disk import short_hash, write_text
from scenedistill.core.errors import Damaged, UserError

#: Most values in a file, an alias counted as what it expands to: a few lines of aliases can expand to billions.
MOST_VALUES = 100_000
MOST_LETTERS = 1_000_000
_CHECKSUM = re.compile(r"\A# checksum ([0-9a-f]{16})[^\n]*\n")


def write_yaml(path: Path, text: str) -> None:
    """Write YAML atomically, with its checksum in a comment that `read_yaml` can verify."""
    note = "with which a report verifies that this file is unchanged"
    write_text(path, f"# checksum {short_hash(text)}, {note}\n{text}")


def read_yaml(path: Path, *, unchanged: bool = False) -> dict[str, Any]:
    """Return the values of a YAML file by name.

    Args:
        path: path of the file.
        unchanged: verify the checksum that `write_yaml` has written; a file without one is accepted.

    Raises:
        UserError: the file cannot be read, is not YAML with plain values, or is far larger than settings are.
        Damaged: the file was changed since it was written.
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
    except (yaml.YAMLError, ValueError, TypeError) as problem:  # ValueError, TypeError: invalid dates and keys
        raise UserError(f"{path} is not valid YAML: {' '.join(str(problem).split())[:300]}") from problem
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings; expected `name: value` lines.")
    if unchanged and (found := _CHECKSUM.search(text)) and found[1] != short_hash(text[found.end() :]):
        raise Damaged(f"{path} is damaged or was changed since the run wrote it.")
    return values


def check_size(path: Path) -> None:
    """Refuse a file that is far larger than settings are, in characters or in expanded aliases.

    All other errors are left to the reader of the file.

    Raises:
        UserError: the file is too large or nested too deeply.
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
    """Count the values below a node, an alias as what it expands to."""
    counts: dict[int, int] = {}

    def of(node: yaml.Node) -> int:
        if id(node) not in counts:
            counts[id(node)] = MOST_VALUES + 1  # for a node that contains itself
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [part for pair in inner for part in pair] if isinstance(node, yaml.MappingNode) else inner
            counts[id(node)] = min(MOST_VALUES + 1, 1 + sum(map(of, parts)))
        return counts[id(node)]

    return of(top) if top else 0
