"""Runs commands in real processes that start at once: the program is imported here and each command is a fork.

Reads a JSON object a line from its standard input. One with `arguments`, `cwd`, `environment`, `output` (a path; `.out`
and `.err` are added) and perhaps `script`, `whole` and `stop` starts a command, or the script of that path, and is
answered with the process's id. One with `wait`, such an id, is answered with the exit code when that process has ended.
With `whole` the interpreter is taken down at the end, which takes a second, as in a process of its own.

`stop` ends the command at an exact moment: at its `count`-th `open` or `rename` (the `event`) of a file whose path ends
in `path`. `how` is `kill` (-9, before it happens), `later` (-9, a few hundredths of a second after), `interrupt` (as
Ctrl-C does), `cut` (the system ends the process in the middle of writing the file) or `full` (the file lies on a full
disk).
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

import torch.utils.tensorboard  # noqa: F401  (all of these are imported for their time)

import scenedistill.cli
import scenedistill.experiments.evaluate
import scenedistill.experiments.grid.local
import scenedistill.experiments.quickstart
import scenedistill.experiments.run

BYTES = 300_000  # of a file that is cut
PATIENCE = 300  # seconds


def run(request: dict[str, Any]) -> int:
    """In the new process: the command, from its standard input to its exit code."""
    for stream, name in ((0, os.devnull), (1, f"{request['output']}.out"), (2, f"{request['output']}.err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests were started in the background
    signal.alarm(PATIENCE)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # perhaps another one in this environment
    if request.get("stop"):
        stop_at(**request["stop"])
    try:
        if script := request.get("script"):
            sys.path.insert(0, str(Path(script).parent))
            sys.argv = [script, *request["arguments"]]
            runpy.run_path(script, run_name="__main__")
            code = 0
        else:
            # as `python -m scenedistill.cli` has them: processes that the command starts import its main module
            sys.modules["__main__"], sys.argv = scenedistill.cli, ["scenedistill", *request["arguments"]]
            code = scenedistill.cli.main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    return code


def stop_at(event: str, path: str, count: int, how: str) -> None:
    """Watch for the moment, and end the process there."""
    left = count

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if name != {"open": "open", "rename": "os.rename"}[event]:
            return
        target = arguments[0] if event == "open" else arguments[1]
        if isinstance(target, int) or not os.fsdecode(target).endswith(path):
            return
        left -= 1
        if left:
            return
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        elif how == "later":
            threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif how == "cut":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, BYTES))
        elif how == "full":
            Path(os.fsdecode(target)).symlink_to("/dev/full")

    sys.addaudithook(watch)


if __name__ == "__main__":
    scenedistill.cli.build_parser()  # loads what reads the types and texts of all settings
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
            continue
        process = os.fork()
        if process == 0:
            code = run(request)
            if request.get("whole"):
                sys.exit(code)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(process, flush=True)
    os._exit(0)
