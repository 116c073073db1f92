"""Export a student as files, and keep only those that pass a check on test images."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors.torch import save

from scenedistill.core.disk import file_sha256, write_json
from scenedistill.core.errors import UserError
from scenedistill.core.precision import resolve_precision
from scenedistill.core.terminal import counted, plain_console
from scenedistill.experiments.results.environment import hardware, versions
from scenedistill.export.check import FileCheck, check_file, logits_of, time_models
from scenedistill.export.config import ExportConfig, Format
from scenedistill.export.model_card import HEADINGS, figures, model_card, timed
from scenedistill.export.onnx_graph import build_graph, write_metadata
from scenedistill.export.program import write_program
from scenedistill.export.quantise import quantise
from scenedistill.inference.exported import CARD, README, RECORD, claim, part_of, replace
from scenedistill.inference.model import OnnxSceneModel, ProgramSceneModel, SceneModel, TorchSceneModel
from scenedistill.models.files import NetCard, load_net, with_checksum
from scenedistill.models.network import SceneNet
from scenedistill.runs.find import find_network
from scenedistill.runs.images import RunImages, run_images
from scenedistill.runs.network import WEIGHTS, Network
from scenedistill.runs.provenance import as_metadata, normalisation, training_provenance, with_stored_size

CPU = torch.device("cpu")
NAMES: dict[Format, str] = {
    "safetensors": "model.safetensors",
    "onnx": "model.onnx",
    "int8": "model.int8.onnx",
    "pt2": "model.pt2",
}
#: Limits in seconds and in bytes of images for the checks, if the number of images is not given.
MOST_SECONDS, MOST_BYTES = 60.0, 2**30


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        folder: folder of the files.
        files: check results of each file.
        others: size (`bytes`) and times (`milliseconds`) of the network in PyTorch and of its teacher, by name.
    """

    folder: Path
    files: tuple[FileCheck, ...]
    others: Mapping[str, Mapping[str, Any]]


def export(
    source: Path | str,
    out: Path | str | None = None,
    config: ExportConfig | None = None,
    *,
    data: Path | str | None = None,
    console: Console | None = None,
) -> Exported:
    """Write a student as files that can be used without its run, and check each file on test images.

    Args:
        source: folder of a run with one distilled student, or of one training.
        out: folder for the files; `export` in the training's folder when not given. The files of an earlier export
            there are replaced once a new file has passed its check.
        config: settings of the export.
        data: folder with the images of the run, if they are not in the decoded cache.
        console: console to print to.

    Raises:
        UserError: the student or the test images are not found, the folder contains other files with these names, or a
            file fails its check; that file is deleted, and the others are kept.
    """
    config, console = config or ExportConfig(), console or plain_console()
    _check_settings(config)
    source = Path(source)
    training = Network.at(source.parent) if source.name == WEIGHTS else find_network(source)
    folder = Path(out) if out else training.folder / "export"
    claim(folder)
    net, card = load_net(training.weights)
    card = with_stored_size(card, training)
    about = {**training_provenance(training), "normalisation": normalisation(net)}
    images = run_images(
        training,
        card,
        Path(data) if data else None,
        calibration=config.calibration,
        test=config.images,
        most=_most_images(net, card, len(config.formats)) if config.images is None else 0,
    )
    console.print(
        f"{card.name}, {counted(len(card.classes), 'class')}, {card.image_size} pixels: {training.folder}\n"
        f"Checked on {len(images.test):,} of {counted(images.of, 'test image')}" + _sample_note(config, images),
        markup=False,
    )
    with part_of(folder) as part:
        _write(config, net, card, about, images, part)
        files, models = _check(config, net, card, about, images, part)
        others = _time(config, training, net, card, images, files, models)
        exported = Exported(folder, tuple(files), others)
        if not all(file.failure for file in files):
            _describe(exported, card, about, part, threads=config.threads or torch.get_num_threads())
            replace(folder)
    console.print(table(exported))
    failed = [file for file in files if file.failure]
    if failed:
        raise UserError(
            f"{'; '.join(f'{file.name} failed its check and was not kept: {file.failure}' for file in failed)}."
            + (f" The other files are in {folder}." if len(failed) < len(files) else "")
        )
    return exported


def _check_settings(config: ExportConfig) -> None:
    unknown = [name for name in config.formats if name not in get_args(Format)]
    if unknown or not config.formats:
        raise UserError(f"--formats is {config.formats}; expected one or more of {', '.join(get_args(Format))}.")
    for name, least in (("images", 0), ("repeats", 0), ("calibration", 1), ("threads", 0)):
        if (getattr(config, name) or 0) < least:
            raise UserError(f"--{name} is {getattr(config, name)}; expected {least} or more.")


def _most_images(net: SceneNet, card: NetCard, files: int) -> int:
    """Return on how many test images the network and `files` files can be checked within the limits."""
    own = copy.deepcopy(net)  # the exported network keeps its memory layout
    model = TorchSceneModel(own, card, {}, Path(), device=CPU, precision="fp32")
    side = model.stored_size
    blank = np.zeros((16, side, side, card.bands), np.uint8)
    model.predict(blank[:1])
    start = time.perf_counter()
    model.predict(blank)
    each = (time.perf_counter() - start) / len(blank)
    return int(min(MOST_SECONDS / (each * (1 + files)), MOST_BYTES / blank[0].nbytes))


def _sample_note(config: ExportConfig, images: RunImages) -> str:
    """Return a note that only a sample of the test images is used; "" if all are, or the number was given."""
    if config.images is not None or len(images.test) == images.of:
        return ""
    limits = f"{MOST_SECONDS:g} seconds or {MOST_BYTES / 2**30:g} GiB"
    return f": all would take more than {limits}. --images 0 takes them"


def _write(
    config: ExportConfig, net: SceneNet, card: NetCard, about: Mapping[str, Any], images: RunImages, folder: Path
) -> None:
    """Write the files of `config.formats` into a folder."""
    if "safetensors" in config.formats:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
        (folder / NAMES["safetensors"]).write_bytes(save(tensors, with_checksum(as_metadata(card, about), tensors)))
    if {"onnx", "int8"} & set(config.formats):
        with _short_errors("ONNX", card):
            graph = build_graph(net, card, about)
        if "onnx" in config.formats:
            (folder / NAMES["onnx"]).write_bytes(graph.SerializeToString())
        if "int8" in config.formats:
            with _short_errors("8-bit ONNX", card):
                quantise(graph, images.training, folder / NAMES["int8"])
    if "pt2" in config.formats:
        with _short_errors("a program", card):
            write_program(net, card, about, folder / NAMES["pt2"])


@contextlib.contextmanager
def _short_errors(what: str, card: NetCard) -> Iterator[None]:
    """Turn an exporter's error, which can fill pages, into a `UserError` of one line."""
    try:
        yield
    except ImportError as problem:
        raise UserError(
            f"Export as {what} needs {problem.name}. `pip install 'scenedistill[use]'` brings it; --formats can leave "
            "this one out."
        ) from problem
    except Exception as problem:  # the exporters may raise anything
        reason = (str(problem).splitlines() or [type(problem).__name__])[0][:200]
        raise UserError(
            f"{card.name} cannot be exported as {what}: {reason}. Leave it out with --formats."
        ) from problem


def _check(
    config: ExportConfig, net: SceneNet, card: NetCard, about: Mapping[str, Any], images: RunImages, folder: Path
) -> tuple[list[FileCheck], dict[str, SceneModel]]:
    """Open every file as a user would, and compare it with the network.

    Exact files carry the accuracy of the run in their metadata; the 8-bit file gets the accuracy measured here.
    """
    exact = TorchSceneModel(net, card, {}, folder, device=CPU, precision="fp32")
    expected = logits_of(exact, images.test)
    files, models = [], dict[str, SceneModel]()
    for name in (NAMES[kind] for kind in NAMES if kind in config.formats):
        models[name] = model = _opened(folder / name, config.threads)
        max_loss = config.max_loss if name == NAMES["int8"] else None
        files.append(check_file(model, images.test, images.labels, expected, files=images.files, max_loss=max_loss))
    for file in files:
        if file.name == NAMES["int8"]:
            its = {**about, "oa": file.oa, "test_images": file.images}
            if "oa" in about:
                its["oa_of_the_run"] = about["oa"]
            write_metadata(folder / file.name, card, its)
            file.bytes = (folder / file.name).stat().st_size
    return files, models


def _opened(path: Path, threads: int | None) -> SceneModel:
    if path.suffix == ".onnx":
        return OnnxSceneModel(path, device="cpu", threads=threads or torch.get_num_threads())
    if path.suffix == ".pt2":
        return ProgramSceneModel(path)
    net, card = load_net(path)
    return TorchSceneModel(net, card, {}, path, device=CPU, precision="fp32")


def _time(
    config: ExportConfig,
    training: Network,
    net: SceneNet,
    card: NetCard,
    images: RunImages,
    files: list[FileCheck],
    models: dict[str, SceneModel],
) -> dict[str, dict[str, Any]]:
    """Set the times of the files, and return sizes and times of the networks timed for comparison."""
    if not config.repeats:
        return {}
    beside: dict[str, SceneModel] = {
        "PyTorch fp32": TorchSceneModel(net, card, {}, training.weights, device=CPU, precision="fp32")
    }
    if resolve_precision("auto", CPU) == "bf16":
        beside["PyTorch bf16"] = TorchSceneModel(net, card, {}, training.weights, device=CPU, precision="bf16")
    if (teacher := training.teacher) and teacher.weights.is_file():
        large, its = load_net(teacher.weights)
        its = with_stored_size(its, teacher)
        name = f"teacher {its.name}, fp32"
        beside[name] = TorchSceneModel(large, its, {}, teacher.weights, device=CPU, precision="fp32")
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    try:
        # the safetensors file is the network in PyTorch, which is in `beside`
        timed = {name: model for name, model in models.items() if name != NAMES["safetensors"]} | beside
        times = time_models(timed, images.test[:64], config.repeats)
    finally:
        torch.set_num_threads(before)
    for file in files:
        file.milliseconds = times.get(file.name, {})
    return {name: {"bytes": model.source.stat().st_size, "milliseconds": times[name]} for name, model in beside.items()}


def _describe(exported: Exported, card: NetCard, about: Mapping[str, Any], part: Path, *, threads: int) -> None:
    """Write card, model card and record beside the files; the record last, because `claim` relies on it."""
    record = {
        "about": about,
        "files": {file.name: asdict(file) | {"sha256": file_sha256(part / file.name)} for file in exported.files},
        "others": exported.others,
        "threads": threads,
        "hardware": hardware(),
        "versions": versions(),
    }
    write_json(part / CARD, {**asdict(card), **about})
    passed = tuple(file for file in exported.files if not file.failure)
    (part / README).write_text(model_card(passed, exported.others, card, about), encoding="utf-8")
    write_json(part / RECORD, record, checksum=True)


def table(exported: Exported) -> Table:
    """Return the check results as a table for the terminal."""
    found = Table()
    found.add_column("file", no_wrap=True)
    for heading in HEADINGS:
        found.add_column(heading, justify="right")
    for file in exported.files:
        name = f"{file.name} (failed)" if file.failure else file.name
        found.add_row(name, *figures(file))
    for name, other in exported.others.items():
        found.add_row(escape(name), *timed(other))
    return found
