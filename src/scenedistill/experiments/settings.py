"""Settings as plain values for a fingerprint, and as YAML for --config."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from scenedistill.config import RunConfig


def plain(config: Any) -> dict[str, Any]:
    """Convert a dataclass to JSON values, without the settings that were added later (`config.LATER`) and have their
    default. A path is reduced to the file name, so that moving a file does not change a fingerprint."""
    values: dict[str, Any] = _values(_without_later(config, asdict(config)), lambda path: Path(path).name)
    return values


def _without_later(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    told = {}
    for item in fields(config):
        value = getattr(config, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if is_dataclass(value):
            told[item.name] = _without_later(value, values[item.name])
        elif not (item.metadata.get("later") and value == default):
            told[item.name] = values[item.name]
    return told


def settings_text(config: RunConfig) -> str:
    """Return the settings as YAML for --config; open settings are replaced by the chosen values, except those that
    depend on the number of images."""
    given = config.student  # its losses stay as given: those of its method would be added to another one given later
    fit = replace(given.closed(1).fit, epochs=given.fit.epochs, batch_size=given.fit.batch_size)
    config = replace(config, student=replace(given, fit=fit))
    return yaml.safe_dump(_values(asdict(config), str), sort_keys=False, allow_unicode=True)


def _values(value: Any, path: Any) -> Any:
    if isinstance(value, dict):
        return {key: _values(entry, path) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_values(entry, path) for entry in value]
    return path(value) if isinstance(value, Path) or (isinstance(value, str) and "/" in value) else value
