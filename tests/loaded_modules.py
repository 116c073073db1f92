"""A fresh process that does something and exits with the names of those unwanted modules that this has loaded, or 0.

    python loaded_modules.py UNWANTED import MODULE[:NAME] ...
    python loaded_modules.py UNWANTED script PATH ARGUMENT ...
    python loaded_modules.py UNWANTED commands '[["data", "list"], ["--help"]]'

UNWANTED are names of modules, separated by commas.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import runpy
import sys


def main() -> None:
    unwanted, action, *given = sys.argv[1:]
    if action == "import":
        for entry in given:
            module, _, name = entry.partition(":")
            loaded = importlib.import_module(module)
            if name:
                getattr(loaded, name)
    elif action == "script":
        sys.argv[:] = given
        runpy.run_path(given[0], run_name="__main__")
    else:
        from scenedistill.cli import main as run_command

        for words in json.loads(given[0]):
            with contextlib.suppress(SystemExit):
                run_command(words)
    sys.exit(", ".join(sorted(sys.modules.keys() & set(unwanted.split(",")))) or 0)


if __name__ == "__main__":
    main()
