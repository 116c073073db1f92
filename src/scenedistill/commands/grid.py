"""`scenedistill grid`."""

from __future__ import annotations

import difflib
import json
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import Namespace
from rich.console import Console

from scenedistill.commands.parsing import CommandParser, build_config, result_file
from scenedistill.core.errors import UserError
from scenedistill.core.yaml_files import read_yaml


class GridParser(CommandParser):
    """Parser that takes the grid's file as the first argument.

    Options, also of settings within the file such as `--base.image_size 64`, replace the file's values.
    """

    def parse_args(self, args: Any = None, namespace: Any = None, **more: Any) -> Namespace:  # type: ignore[override]
        """Parse as the base class does, after checking the names in the file."""
        from scenedistill.experiments.grid.config import GridConfig

        if "--name" not in self._option_string_actions:  # here, because it takes seconds to import
            self.add_class_arguments(GridConfig)
            namespace = None
        words = list(sys.argv[1:] if args is None else args)
        if words and not words[0].startswith("-"):
            try:
                words[:1] = ["--config", json.dumps(read_grid(Path(words[0]), GridConfig))]
            except UserError as problem:
                self.error(str(problem))
        return super().parse_args(words, namespace, **more)


def read_grid(path: Path, kind: type[Any]) -> dict[str, Any]:
    """Read the values of a grid's file and check every name.

    Raises:
        UserError: no such file, not YAML, or an unknown setting.
    """
    checked: dict[str, Any] = _checked(read_yaml(path), kind, "", path)
    return checked


def _checked(value: Any, hint: Any, where: str, path: Path) -> Any:
    """Check the names in a value and return it, with empty settings filled; values are checked later."""
    options = [hint, *get_args(hint)]
    entry = next((each for each in options if is_dataclass(each)), None)
    if get_origin(hint) is dict and entry is not None and isinstance(value, dict):
        first = fields(entry)[0]
        empty = {first.name: first.default}  # jsonargparse takes no empty settings
        return {name: _checked(each or empty, entry, f"{where}.{name}", path) for name, each in value.items()}
    if entry is None or get_origin(hint) is dict or not isinstance(value, dict):
        return value
    hints, known = get_type_hints(entry), [item.name for item in fields(entry)]
    for name in value:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."
            inside = f"{where} has" if where else "There is"
            raise UserError(f"{path}: {inside} no setting '{name}'. {hint}")
    return {
        name: _checked(each, hints[name], f"{where}.{name}" if where else name, path) for name, each in value.items()
    }


def parser() -> CommandParser:
    """Return the command's parser, without the settings of `GridConfig`."""
    parser = GridParser(
        description="many trainings (data x ratio x student x method x seed), compared; `scenedistill grid FILE.yaml`"
    )
    parser.add_argument("--config", action="config", help="YAML file of the grid, or give it as the first word")
    parser.add_argument("--out", type=str | None, default=None, help="the grid's folder (default: runs/NAME)")
    parser.add_argument("--dry_run", type=bool, default=False, help="list the cells and how long they will take")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time on this machine, which share its cores")
    parser.add_argument("--ray", type=bool, default=False, help="do the cells on a Ray cluster (see --cluster)")
    parser.add_argument("--only", type=str, nargs="+", default=[], help="labels of the methods to do now")
    parser.add_argument(
        "--results", type=str | None, default=None, help="also write the result to this results/NAME.json"
    )
    return parser


def command(settings: Namespace, console: Console, text: str) -> int:
    """Run the command; return 1 if a cell has failed, else 0."""
    from scenedistill.experiments.grid.config import grid_words

    try:
        return _do(settings, console, text)
    except UserError as problem:
        raise UserError(grid_words(str(problem))) from problem


def _do(settings: Namespace, console: Console, text: str) -> int:
    from scenedistill.experiments.grid.local import Engine
    from scenedistill.experiments.grid.run import dry_run, grid
    from scenedistill.experiments.results.record import named, write_result

    config = grid_config(settings)
    out, results = Path(settings.out or Path("runs") / config.name), result_file(settings.results)
    if settings.dry_run:
        dry_run(config, out, only=settings.only, jobs=settings.jobs, console=console)
        return 0
    engine: Engine | None = None
    if settings.ray:
        from scenedistill.experiments.grid.cluster import on_cluster
        from scenedistill.experiments.grid.config import check_grid

        check_grid(config)
        config, engine = on_cluster(config)
    outcome = grid(config, out, only=settings.only, jobs=settings.jobs, engine=engine, command=text, console=console)
    console.print(f"Each cell's networks, figures and logs are in {out}")
    if results:
        for block, result in outcome.results.items():
            path = results if len(outcome.results) == 1 else results.with_stem(f"{results.stem}_{block}")
            console.print(f"Result written to {write_result(named(result, path.stem), path)}")
    if outcome.failures:
        console.print(
            f"{len(outcome.failures)} cells failed, as failures.json says. The same command tries them again."
        )
    return int(bool(outcome.failures))


def grid_config(settings: Namespace) -> Any:
    """Return the GridConfig of the parsed settings.

    Raises:
        UserError: a value is missing or of the wrong kind.
    """
    from scenedistill.experiments.grid.config import GridConfig, MethodConfig
    from scenedistill.experiments.grid.tuning.config import TuningConfig

    values = settings.clone()
    methods, tuning = values.pop("methods"), values.pop("tuning")
    values["methods"], values["tuning"] = {}, None
    config = build_config(GridConfig, values)
    config.methods = {
        label: build_config(MethodConfig, each, f"methods.{label}.") if isinstance(each, Namespace) else each
        for label, each in (methods or {}).items()
    }
    config.tuning = build_config(TuningConfig, tuning, "tuning.") if isinstance(tuning, Namespace) else tuning
    return config
