"""Parsing of the command line, its error messages, and the command that repeats a run."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_args, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from scenedistill.core.errors import UserError
from scenedistill.core.yaml_files import check_size

Config = TypeVar("Config")

#: Type name in jsonargparse's messages -> plain words.
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list such as [0, 1]",
    "dict": "names with values such as {da: 0.5}",
}


class CommandParser(ArgumentParser):
    """An ArgumentParser without abbreviations that suggests the nearest name for a wrong option, key or word."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse as the base class does; a config file that is not UTF-8 text is reported like any other error."""
        try:
            return super().parse_args(*args, **kwargs)
        except UnicodeDecodeError:
            self.error("The file given with --config is not UTF-8 text.")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print two lines and exit with code 2."""
        text = _in_plain_words(message)
        print(f"scenedistill: {' '.join([text, *self._hints(text)])}", file=sys.stderr)
        print(f"`{self.prog.replace(' [options]', '')} --help` lists what there is.", file=sys.stderr)
        raise SystemExit(2)

    def keys(self) -> list[str]:
        """Return every option of this parser and of its sub-commands, in dotted form."""
        found = []
        for action in self._actions:
            found += [option[2:] for option in action.option_strings if option.startswith("--")]
            children: Any = getattr(action, "_name_parser_map", None)
            for child in (children or {}).values():
                found += child.keys()
        return list(dict.fromkeys(found))

    def _hints(self, text: str) -> list[str]:
        near: list[str] = []
        if chosen := re.search(r"found '([^']*)', expected one of (.*)", text):
            near = difflib.get_close_matches(chosen[1], re.findall(r"'([^']*)'", chosen[2]), 1)
        for word in re.findall(r"There is no option ([\w.]*\w)", text):
            last = word.rpartition(".")[2]
            near = difflib.get_close_matches(word, self.keys(), 1, 0.75)
            near = near or [key for key in self.keys() if key.rpartition(".")[2] == last][:3]
            near = near or difflib.get_close_matches(word, self.keys(), 1, 0.6)
        return [f"Did you mean {' or '.join(near)}?"] if near else []


def _in_plain_words(message: str) -> str:
    """Rewrite an error message of jsonargparse in plain words."""
    # jsonargparse gives its parser an error as text only. The bound in pyproject.toml is the first release with these
    # texts, tests/test_cli.py notices a new wording, and a text that fits no rule is shown as it is.
    text = " ".join(message.split())
    rules: list[tuple[str, Any]] = [
        (r"^unrecognized arguments: --([\w.]+)(?:\s.*)?$", r"There is no option \1."),
        (r"^unrecognized arguments: (.*)$", r"It is not clear what is meant by: \1"),
        (r"^Subcommand '\w+' does not accept option '([\w.]+)'", r"There is no option \1."),
        (r"^argument \w+: invalid choice: ('[^']*') \(choose from (.*)\)$", r"found \1, expected one of \2."),
        (r"^the following arguments are required: (.*)$", lambda m: f"{_last_parts(m[1])} must be given."),
        (r"^Problems parsing config: (.*)$", r"The file given with --config is not valid YAML: \1"),
        (r"^Unexpected config:.*$", "The file given with --config holds no settings: expected `name: value` lines."),
        (r"^Parser key \"config\": (.*)$", r"--config: \1"),
        (r"Does not validate .* Subtypes: \[(.*)\] Errors: .* Given value: (.*)$", r"Expected a \1. Got value: \2"),
        (r"^Parser key \"([\w.]+)\": Expected an? (.*)\. Got value: (.*)$", r"\1: found '\3', expected \2."),
        (r"^Parser key \"([\w.]+)\":", r"\1:"),
        (r", <class 'NoneType'>|<class 'NoneType'>, ", ""),
        (r"typing\.Literal\[([^]]*)\]", r"one of \1"),
        (r"<class '(\w+)'>", lambda m: _KINDS.get(m[1], m[1])),
    ]
    for pattern, plain in rules:
        text = re.sub(pattern, plain, text)
    return text


def _last_parts(names: str) -> str:
    """`run.folder, run.out` -> `folder, out`."""
    return ", ".join(name.rpartition(".")[2] for name in names.split(", "))


def build_config(kind: type[Config], settings: Namespace, where: str = "") -> Config:
    """Build a dataclass of settings, and those nested in it, from the parsed values.

    Args:
        kind: the dataclass.
        settings: the parsed values by name.
        where: dotted name of the group, for messages.

    Raises:
        UserError: a YAML file leaves a setting empty, or has a single value where a group of settings belongs.
    """
    hints, values = get_type_hints(kind), {}
    for field in fields(cast(Any, kind)):
        name, value, hint = f"{where}{field.name}", settings[field.name], hints[field.name]
        if is_dataclass(hint):
            if not isinstance(value, Namespace):
                raise UserError(f"{name}: found {value!r}, expected settings by name, such as {fields(hint)[0].name}.")
            value = build_config(cast(type, hint), value, f"{name}.")
        elif value is None and type(None) not in get_args(hint):
            raise UserError(f"{name} is empty: give it a value or leave the line out.")
        values[field.name] = value
    return kind(**values)


def files_first(arguments: Sequence[str]) -> list[str]:
    """Move `--config FILE` before the other options, so that these replace the file's values in any order.

    Raises:
        UserError: a file is far larger than settings are, or nested too deeply.
    """
    files, others, rest = list[str](), list[str](), list(arguments)
    while rest:
        word = rest.pop(0)
        chosen = files if word == "--config" or word.startswith("--config=") else others
        chosen.append(word)
        if word == "--config" and rest:
            chosen.append(rest.pop(0))
        if chosen is files and (path := Path(chosen[-1].removeprefix("--config="))).is_file():
            check_size(path)
    return [*others[:1], *files, *others[1:]]


def numbers_joined(arguments: Sequence[str]) -> list[str]:
    """Join negative values to their options by `=`, since argparse takes `-900,4900` for an option."""
    words = list[str]()
    for word in arguments:
        option = words and re.fullmatch(r"--[\w.]+", words[-1])
        if option and re.match(r"-(?:[\d.]|inf)", word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def result_file(text: str | None) -> Path | None:
    """Return the path of `--results`, checked before the work starts.

    Raises:
        UserError: the name does not end in .json, or the file cannot be written there.
    """
    if text is None:
        return None
    path = Path(text)
    if path.suffix != ".json":
        raise UserError(f"--results {text} must end in .json, such as results/{path.stem or 'name'}.json.")
    if path.is_dir():
        raise UserError(f"--results {text} is a folder; expected a file such as {path / 'name.json'}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"--results {text} cannot be written: {problem.strerror}. Choose another place.") from problem
    return path


def repeatable(arguments: Sequence[str]) -> str:
    """Return the command line for a record, with paths outside the working folder cut to their names."""
    return shlex.join(["scenedistill", *map(_short, arguments)])


def _short(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    if value.startswith(("/", "~")) or ".." in Path(value).parts or Path(value).is_absolute():
        value = _name(value)
    else:  # a path may stand inside a value, such as `{checkpoint: /somewhere/net.safetensors}`
        value = re.sub(r"(?<![\w./])(?:~|\.\.)?/[^\s,'\"}\]]+", lambda found: _name(found[0]), value)
    return option + equals + value


def _name(path: str) -> str:
    return Path(path).expanduser().resolve().name
