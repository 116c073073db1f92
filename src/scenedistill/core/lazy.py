"""Lazy imports of a package: a module is imported when one of its names is first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def attach(package: str, homes: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package whose names are imported when first used.

    Args:
        package: the package's `__name__`.
        homes: modules below the package, each with the names that the package exports from it. No name may equal a
            module's name, because importing that module would replace the name.
    """
    # as lazy_loader's attach, which would be a further dependency for a few lines
    modules = {name: f"{package}.{module}" for module, names in homes.items() for name in names}
    below = [module for module in homes if "." not in module]
    assert not modules.keys() & set(below), f"{package} offers a name that is one of its modules"

    def get(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(modules[name]), name)
        if name in below:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return get, lambda: sorted({*modules, *below})
