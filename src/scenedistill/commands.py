"""How the command line speaks: one clear line for a wrong key, and the command that repeats a run."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser


class CommandParser(ArgumentParser):
    """An ArgumentParser that says "did you mean" for a wrong option or key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one or two lines and leave with exit code 2."""
        text = " ".join(message.split())
        wrong = re.findall(r"--([\w.]+)|[Kk]ey ['\"]([\w.]+)['\"]|Unrecognized arguments: ([\w.]+)", text)
        hints = []
        for word in dict.fromkeys("".join(groups) for groups in wrong):
            near = difflib.get_close_matches(word, self.keys(), 3, 0.6) or [
                key for key in self.keys() if key.rpartition(".")[2] == word.rpartition(".")[2]
            ]
            if near and word not in near:
                hints.append(f"Did you mean {' or '.join(near[:3])}?")
        raise SystemExit(_usage_error(self, " ".join([text, *hints])))

    def keys(self) -> list[str]:
        """Every option of this parser and of its sub-commands, in dotted form."""
        found = []
        for action in self._actions:
            found += [option[2:] for option in action.option_strings if option.startswith("--")]
            children: Any = getattr(action, "_name_parser_map", None)
            for name, child in (children or {}).items():
                found += [name, *child.keys()]
        return list(dict.fromkeys(found))


def _usage_error(parser: ArgumentParser, text: str) -> int:
    import sys

    print(f"scenedistill: {text}", file=sys.stderr)
    print(f"`{parser.prog} --help` lists what there is.", file=sys.stderr)
    return 2


def repeatable(arguments: Sequence[str]) -> str:
    """The command line as it may stand in a record: a path outside the working folder is cut to its name."""
    return shlex.join(["scenedistill", *(_short(argument) for argument in arguments)])


def _short(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(value)
    if value and (path.is_absolute() or ".." in path.parts):
        value = path.resolve().name
    return f"{option}{equals}{value}"
