"""The command-line program: its commands, and how errors are reported."""

from __future__ import annotations

import contextlib
import errno
import io
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from jsonargparse import Namespace
from rich.console import Console

from scenedistill import __version__
from scenedistill.commands import (
    bench,
    compare,
    cost,
    data,
    evaluate,
    explain,
    export,
    grid,
    predict,
    quickstart,
    report,
    serve,
    split,
)
from scenedistill.commands.parsing import CommandParser, files_first, numbers_joined, repeatable
from scenedistill.commands.training import train, training_parser
from scenedistill.core.disk import disk_full
from scenedistill.core.errors import UserError
from scenedistill.core.terminal import plain_console

Command = Callable[[Namespace, Console, str], int | None]  # the exit code, when it may be another than 0
NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
FULL = "the disk is full, or a file is at its limit. Make room and give the same command: it goes on from where it was."
PATIENCE = 3.0  # seconds after a Ctrl-C in which a further one is ignored


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 an error of the user's, 2 wrong usage, 130 interrupted.

    `data check` gives 1 for a known data set that is not complete, and for images that cannot be read.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding cannot show is shown escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    console = plain_console()
    try:
        with once_interrupted(leaving=arguments is None):
            words = files_first(numbers_joined(given)) or ["--help"]
            settings = build_parser(words[0] in (*TRAININGS, "bench")).parse_args(words)
            name = settings.subcommand
            return COMMANDS[name][1](settings[name], console, repeatable(given)) or 0
    except UserError as problem:
        return _complain(str(problem))
    except KeyboardInterrupt:
        return _complain("stopped. The same command goes on from where it was.", 130)
    except Exception as problem:
        if disk_full(problem):
            return _complain(FULL)
        if isinstance(problem, OSError) and problem.filename and problem.errno in NOT_WRITABLE:
            reason = "it is a file" if problem.errno == errno.EEXIST else problem.strerror
            denied = problem.errno in (errno.EACCES, errno.EPERM)  # the same for reading
            how = "read or written" if denied else "written"
            return _complain(f"{problem.filename} cannot be {how}: {reason}. Choose another folder.")
        if isinstance(problem, UnicodeEncodeError) and any("\ud800" <= letter <= "\udfff" for letter in problem.object):
            name = ascii(problem.object)[:200]
            return _complain(f"a name that is not UTF-8 cannot be used: {name}. Rename the file or folder.")
        raise


@contextlib.contextmanager
def once_interrupted(*, leaving: bool) -> Iterator[None]:
    """Ignore further Ctrl-C for `PATIENCE` seconds after the first one.

    A key pressed twice, or a signal sent by both the terminal and a parent process, must not interrupt the clean-up
    that the first one started.

    Args:
        leaving: the program ends after this block: after a Ctrl-C, all later ones are ignored, too.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield
        return
    first = 0.0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not first or time.monotonic() - first > PATIENCE:
            first = time.monotonic()
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN if first and leaving else before)


def build_parser(settings: bool = True) -> CommandParser:
    """Return the parser of all commands.

    Args:
        settings: include the settings of a training and of `bench`, which take seconds to load.
    """
    parser = CommandParser(
        prog="scenedistill",
        description="Turns a large remote-sensing scene classifier into a small one that is nearly as good.",
        version=__version__,
    )
    commands = parser.add_subcommands(metavar="COMMAND")
    for name, (build, _) in COMMANDS.items():
        command = build()
        if settings and name in TRAININGS:
            from scenedistill.config import RunConfig

            command.add_class_arguments(RunConfig)
        if settings and name == "bench":
            from scenedistill.config import BenchConfig

            command.add_class_arguments(BenchConfig)
        commands.add_subcommand(name, command, help=command.description)
        if name == "data":
            upper = command
    data.add_actions(upper)
    return parser


def _complain(message: str, code: int = 1) -> int:
    console = plain_console(stderr=True)
    console.print("scenedistill:", style="bold red", end=" ")
    # a name that is not UTF-8 can still be shown
    console.print(message.encode(errors="backslashreplace").decode())
    return code


COMMANDS: dict[str, tuple[Callable[[], CommandParser], Command]] = {
    "quickstart": (quickstart.parser, quickstart.command),
    "run": (
        lambda: training_parser("teacher, plain student, distilled student, their tests and a summary"),
        train("teacher", "plain", "distilled"),
    ),
    "teacher": (lambda: training_parser("train and test the teacher alone"), train("teacher")),
    "distill": (
        lambda: training_parser("distil a student from the run's teacher or from --teacher.checkpoint"),
        train("teacher", "distilled"),
    ),
    "evaluate": (evaluate.parser, evaluate.command),
    "grid": (grid.parser, grid.command),
    "report": (report.parser, report.command),
    "compare": (compare.parser, compare.command),
    "cost": (cost.parser, cost.command),
    "explain": (explain.parser, explain.command),
    "export": (export.parser, export.command),
    "predict": (predict.parser, predict.command),
    "serve": (serve.parser, serve.command),
    "split": (split.parser, split.command),
    "data": (data.parser, data.command),
    "bench": (bench.parser, bench.command),
}
TRAININGS = ("run", "teacher", "distill")

if __name__ == "__main__":
    sys.exit(main())
