"""The commands: parse, call, print."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace
from rich.console import Console

from scenedistill import __version__
from scenedistill.commands import CommandParser, files_first, filled, repeatable, result_file
from scenedistill.errors import UserError

Precision = Literal["auto", "bf16", "fp16", "fp32"]
Command = Callable[[Namespace, Console, str], int | None]  # the exit code, when it may be another than 0
NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 a mendable error, 2 wrong usage, 130 interrupted.

    `data check` gives 1 for a known data set that is not complete.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # in a pipe or a file there is no width to keep to
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
    try:
        words = files_first(given) or ["--help"]
        settings = build_parser(words[0] not in QUICK).parse_args(words)
        name = settings.subcommand
        return COMMANDS[name][1](settings[name], console, repeatable(given)) or 0
    except UserError as problem:
        return _complain(str(problem))
    except KeyboardInterrupt:
        return _complain("stopped. The same command goes on from the last finished epoch.", 130)
    except OSError as problem:
        if problem.errno == errno.ENOSPC:
            return _complain("the disk is full. Make room and give the same command: it goes on from the last epoch.")
        if problem.filename and problem.errno in NOT_WRITABLE:
            reason = "it is a file" if problem.errno == errno.EEXIST else problem.strerror
            return _complain(f"{problem.filename} cannot be written: {reason}. Choose another folder.")
        raise


def build_parser(settings: bool = True) -> CommandParser:
    """The parser of all commands; without the settings of a training, which take seconds to load, where nobody asks."""
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
            data = command
    _add_data_actions(data)  # a level of sub-commands can only be added when the one above is complete
    return parser


def _training_parser(description: str) -> CommandParser:
    parser = CommandParser(description=description)
    parser.add_argument("folder", type=str, help="one sub-folder for each class, or a CSV manifest path,label")
    parser.add_argument("--config", action="config", help="YAML file of settings; options replace its values")
    parser.add_argument(
        "--out", type=str | None, default=None, help="the run's folder (default: runs/NAME of the data)"
    )
    parser.add_argument(
        "--results", type=str | None, default=None, help="also write the result to this results/NAME.json"
    )
    parser.add_argument(
        "--clear_knowledge", type=bool, default=False, help="delete the teachers' kept knowledge when all is done"
    )
    return parser


def _train(*parts: str) -> Command:
    def command(settings: Namespace, console: Console, text: str) -> None:
        from scenedistill.config import RunConfig
        from scenedistill.experiments.results import named, write_result
        from scenedistill.experiments.run import run

        data, results = Path(settings.folder), result_file(settings.results)
        out = Path(settings.out or Path("runs") / data.resolve().name)
        config, clear = filled(RunConfig, settings), settings.clear_knowledge
        result = run(data, out, config, parts=parts, command=text, clear_knowledge=clear, console=console)
        console.print(f"Everything lies in {out}: summary.md, summary.json, and the networks as weights.safetensors")
        if results:
            console.print(f"Result written to {write_result(named(result, results.stem), results)}")

    return command


def _evaluate_parser() -> CommandParser:
    parser = CommandParser(description="test a trained network on a folder of images")
    parser.add_argument("weights", type=str, help="weights.safetensors of a finished training")
    parser.add_argument("data", type=str, help="folder with the network's classes as sub-folders, or a CSV manifest")
    parser.add_argument("--split", type=str | None, default=None, help="split file; all images when not given")
    parser.add_argument("--part", type=Literal["train", "val", "test"], default="test", help="part of the split")
    parser.add_argument("--precision", type=Precision, default="auto", help="that of the run finds its figures again")
    parser.add_argument("--out", type=str, default="evaluation", help="folder for the figures and the confusion matrix")
    return parser


def _evaluate(settings: Namespace, console: Console, text: str) -> None:
    from scenedistill.experiments.evaluate import evaluate

    split = Path(settings.split) if settings.split else None
    evaluate(
        Path(settings.weights),
        Path(settings.data),
        Path(settings.out),
        split=split,
        part=settings.part,
        precision=settings.precision,
        console=console,
    )


def _split_parser() -> CommandParser:
    parser = CommandParser(description="draw a seeded, stratified split and write it to a file")
    parser.add_argument("data", type=str, help="folder with one sub-folder for each class")
    parser.add_argument("out", type=str, help="CSV file, or folder for the lists of the other layouts")
    parser.add_argument("--train_ratio", type=float, default=0.2, help="share of each class that trains, in (0, 1)")
    parser.add_argument(
        "--val_fraction", type=float, default=0.0, help="share of the training part kept for validation"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed is another split")
    parser.add_argument("--layout", type=Literal["csv", "torchgeo", "rsp"], default="csv", help="how it is written")
    return parser


def _split(settings: Namespace, console: Console, text: str) -> None:
    from scenedistill.data.scenes import scan
    from scenedistill.data.split_files import write_split
    from scenedistill.data.splits import make_split

    index = scan(Path(settings.data))
    split = make_split(index, settings.train_ratio, settings.seed, settings.val_fraction)
    written = write_split(split, index, Path(settings.out), settings.layout)
    sizes = ", ".join(f"{len(rows)} {part}" for part, rows in split.parts().items())
    console.print(f"{sizes}; split {split.hash}; written to {', '.join(map(str, written))}")


def _data_parser() -> CommandParser:
    return CommandParser(description="list the known data sets, check a folder against them, download one")


def _add_data_actions(parser: CommandParser) -> None:
    commands = parser.add_subcommands(metavar="ACTION", dest="action")
    commands.add_subcommand("list", CommandParser(description="the data sets that are known"))
    check = CommandParser(description="which data set a folder is, and whether it is complete")
    check.add_argument("folder", type=str, help="folder with one sub-folder for each class")
    check.add_argument("--name", type=str | None, default=None, help="the data set it should be")
    commands.add_subcommand("check", check)
    download = CommandParser(description="download a data set that has a stable public source")
    download.add_argument("name", type=str, help="name from `scenedistill data list`")
    download.add_argument("--folder", type=str, default="data", help="where to put it")
    commands.add_subcommand("download", download)
    stored = CommandParser(description="what is kept: decoded images and teachers' knowledge, and clearing it")
    stored.add_argument(
        "--clear", type=list[str], default=[], help="delete these: names, or all `images`, `knowledge` or `all`"
    )
    stored.add_argument("--folder", type=str | None, default=None, help="another folder than the usual cache")
    commands.add_subcommand("stored", stored)


def _stored(options: Namespace, console: Console) -> None:
    from scenedistill.data.cache import cache_home
    from scenedistill.experiments.storage import clear, stored, stored_table

    folder = Path(options.folder) if options.folder else cache_home()
    for entry in clear(options.clear, folder):
        console.print(f"deleted {entry.name}: {entry.kind}, {entry.what}", markup=False)
    entries = stored(folder)
    console.print(stored_table(entries) if entries else "nothing is kept", f"in {folder}", sep="\n")


def _data(settings: Namespace, console: Console, text: str) -> int:
    from scenedistill.data.catalog import check, lookup, overview
    from scenedistill.data.download import download
    from scenedistill.data.scenes import scan

    options = settings[settings.action]
    if settings.action == "list":
        console.print(overview())
    elif settings.action == "check":
        report = check(scan(Path(options.folder)), lookup(options.name) if options.name else None)
        console.print(str(report), markup=False)
        return int(report.facts is not None and not report.complete)
    elif settings.action == "stored":
        _stored(options, console)
    else:
        console.print(f"It lies in {download(lookup(options.name), Path(options.folder))}")
    return 0


def _quickstart_parser() -> CommandParser:
    parser = CommandParser(description="teacher, plain and distilled student on generated scenes, in minutes")
    parser.add_argument("--folder", type=str, default="runs/quickstart", help="where everything goes")
    parser.add_argument("--teacher", type=str | None, default=None, help="another teacher, such as resnet101")
    parser.add_argument("--seeds", type=list[int], default=[0], help="one full run for each")
    parser.add_argument(
        "--results", type=str | None, default=None, help="also write the result to this results/NAME.json"
    )
    return parser


def _quickstart(settings: Namespace, console: Console, text: str) -> None:
    from scenedistill.experiments.quickstart import quickstart
    from scenedistill.experiments.results import named, write_result

    results = result_file(settings.results)
    result = quickstart(
        Path(settings.folder), teacher=settings.teacher, seeds=settings.seeds, command=text, console=console
    )
    if results:
        console.print(f"Result written to {write_result(named(result, results.stem), results)}")


def _bench_parser() -> CommandParser:
    parser = CommandParser(description="how fast a distillation is here, beside its parts and beside a naive loop")
    parser.add_argument("--data", type=str | None, default=None, help="class folders; generated scenes when not given")
    parser.add_argument("--results", type=str | None, default=None, help="write the figures to this results/NAME.json")
    parser.add_argument("--picture", type=str | None, default=None, help="draw them to this PNG")
    return parser


def _bench(settings: Namespace, console: Console, text: str) -> None:
    from scenedistill.config import BenchConfig
    from scenedistill.experiments.bench import bench
    from scenedistill.experiments.records import write_record
    from scenedistill.experiments.speed import draw_speed, speed_table

    results = result_file(settings.results)
    data = Path(settings.data) if settings.data else None
    result = bench(data, filled(BenchConfig, settings), command=text, console=console)
    console.print(speed_table(result), markup=False)
    if results:
        console.print(f"Result written to {write_record(result, results)}")
    if settings.picture:
        console.print(f"Picture drawn to {draw_speed(result, Path(settings.picture))}")


def _complain(message: str, code: int = 1) -> int:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]scenedistill:[/bold red] {_escaped(message)}")
    return code


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


COMMANDS: dict[str, tuple[Callable[[], CommandParser], Command]] = {
    "quickstart": (_quickstart_parser, _quickstart),
    "run": (
        lambda: _training_parser("teacher, plain student, distilled student, their tests and a summary"),
        _train("teacher", "plain", "distilled"),
    ),
    "teacher": (lambda: _training_parser("train and test the teacher alone"), _train("teacher")),
    "distill": (
        lambda: _training_parser("distil a student from the run's teacher or from --teacher.checkpoint"),
        _train("teacher", "distilled"),
    ),
    "evaluate": (_evaluate_parser, _evaluate),
    "split": (_split_parser, _split),
    "data": (_data_parser, _data),
    "bench": (_bench_parser, _bench),
}
TRAININGS = ("run", "teacher", "distill")
QUICK = ("--help", "-h", "--version", "split", "data")  # first words with which no training is asked for

if __name__ == "__main__":
    sys.exit(main())
