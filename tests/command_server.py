"""Runs commands in real processes that start at once: the program is imported here and each command is a fork.

Reads a JSON object a line from its standard input: `arguments`, `cwd`, `environment`, `output` (a path; `.out` and
`.err` are added) and perhaps `stop`. Answers with the process's id, and its exit code when it has ended.

`stop` ends the command at an exact moment: at its `count`-th `open` or `rename` (the `event`) of a file whose path ends
in `path`. `how` is `kill` (-9, before it happens), `later` (-9, a few hundredths of a second after), `interrupt` (as
Ctrl-C does), `cut` (the system ends the process in the middle of writing the file) or `full` (the file lies on a full
disk).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import scenedistill.experiments.evaluate
import scenedistill.experiments.quickstart
import scenedistill.experiments.run  # noqa: F401  (imported for its time)
from scenedistill.cli import main

BYTES = 300_000  # of a file that is cut
PATIENCE = 300  # seconds


def run(request: dict[str, Any]) -> int:
    """In the new process: the command, from its standard input to its exit code."""
    for stream, name in ((0, os.devnull), (1, f"{request['output']}.out"), (2, f"{request['output']}.err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream)
    signal.alarm(PATIENCE)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    if request.get("stop"):
        stop_at(**request["stop"])
    try:
        code = main(request["arguments"])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
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
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            code = 70
            with contextlib.suppress(BaseException):
                code = run(json.loads(line))
            os._exit(code)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
