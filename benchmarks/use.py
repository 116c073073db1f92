"""Size, speed and accuracy of exported students, and how near `scenedistill predict` comes to the network's own speed.

    python benchmarks/use.py path/to/AID results/use.json runs/aid20/seed0/table1_printed/dkd \\
        runs/aid20/seed0/table1_resnet/dkd --out runs/use

exports each student, tests fp32 and 8 bits on the whole test split, times them in turns with a ResNet-101 teacher of
random weights, and runs `predict` on test files. All on the CPU. The figures become the sections `latency`
and `predict` of the JSON file, with the targets beside them; its other sections stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from rich.console import Console

from records.use import keep_section
from scenedistill.core.machine import usable_cores
from scenedistill.core.precision import resolve_precision
from scenedistill.data.images.read import read_scene
from scenedistill.experiments.results.environment import measured_here
from scenedistill.export.config import ExportConfig
from scenedistill.export.run import CPU, NAMES, export
from scenedistill.inference.images import ImagesConfig, predict_images
from scenedistill.inference.model import OnnxSceneModel, SceneModel, TorchSceneModel
from scenedistill.metrics.cost import stored_bytes
from scenedistill.models.create import build_teacher
from scenedistill.models.files import NetCard, load_net
from scenedistill.runs.find import find_network
from scenedistill.runs.images import RunImages, run_images

BATCHES = (1, 64)
TEACHER = "resnet101"
INT8_LOSS, INT8_SPEED, INT8_BEFORE_TEACHER, OF_RUNTIME = 0.005, 2.0, 20.0, 0.95
BEFORE_TEACHER = {"table1_printed": 10.0, "table1_resnet": 8.0}  # times as fast in fp32, one image at a time


class Student(NamedTuple):
    """One student in all its forms, with the images it is tested on."""

    card: NetCard
    forms: dict[str, SceneModel]
    bytes: dict[str, int]
    oa: dict[str, float]
    images: RunImages


def open_student(source: Path, data: Path, out: Path, threads: int) -> Student:
    """Export, check on the whole test split, and open each form."""
    training = find_network(source)
    settings = ExportConfig(formats=["safetensors", "onnx", "int8"], images=0, max_loss=1.0, repeats=0)
    exported = export(training.folder, out, settings, data=data, console=Console(stderr=True))
    net, card = load_net(out / NAMES["safetensors"])
    images = run_images(training, card, data, calibration=1, test=0)
    forms: dict[str, SceneModel] = {}
    for precision in ["fp32", *(["bf16"] if resolve_precision("auto", CPU) == "bf16" else [])]:
        net, card = load_net(out / NAMES["safetensors"])
        forms[f"PyTorch {precision}"] = TorchSceneModel(net, card, {}, out, device=CPU, precision=precision)
    forms["ONNX fp32"] = OnnxSceneModel(out / NAMES["onnx"], device="cpu", threads=threads)
    forms["ONNX int8"] = OnnxSceneModel(out / NAMES["int8"], device="cpu", threads=threads)
    found = {file.name: file for file in exported.files}
    files = dict.fromkeys(forms, NAMES["safetensors"]) | {"ONNX fp32": NAMES["onnx"], "ONNX int8": NAMES["int8"]}
    oa = {form: found[file].oa for form, file in files.items() if form != "PyTorch bf16"}
    return Student(card, forms, {form: found[file].bytes for form, file in files.items()}, oa, images)


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], turns: int, seconds: float, warm_up: int = 2
) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each call: the median over the turns, the fastest and the slowest turn.

    Args:
        calls: functions to time, in the order of every turn.
        turns: number of turns; each takes the median of every call's passes, so that other load affects all alike.
        seconds: least time of a call's passes in one turn, of which there are three or more.
        warm_up: passes discarded at the start of a call's turn.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            for _ in range(warm_up):
                call()
            passes: list[float] = []
            while len(passes) < 3 or sum(passes) < seconds:
                started = time.perf_counter()
                call()
                passes.append(time.perf_counter() - started)
            found[name].append(1000 * statistics.median(passes))
    return {name: _spread(values) for name, values in found.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


def measure_latency(students: Mapping[str, Student], turns: int, seconds: float) -> dict[str, Any]:
    """Time each network and form, one row each, and check the targets."""
    first = next(iter(students.values()))
    card = replace(first.card, name=TEACHER)
    torch.manual_seed(0)
    teacher = build_teacher(TEACHER, len(card.classes), bands=card.bands, image_size=card.image_size)
    models: dict[tuple[str, str], SceneModel] = {
        (TEACHER, "PyTorch fp32"): TorchSceneModel(teacher, card, {}, Path(), device=CPU, precision="fp32")
    }
    models |= {(name, form): model for name, one in students.items() for form, model in one.forms.items()}
    given = {batch: np.resize(first.images.test[:64], (batch, *first.images.test.shape[1:])) for batch in BATCHES}
    times = {
        batch: time_in_turns(
            {"/".join(key): partial(model.predict, given[batch]) for key, model in models.items()},
            turns,
            seconds,
        )
        for batch in BATCHES
    }
    rows = []
    for name, form in models:
        one = students.get(name)
        each = {
            str(batch): {kind: round(value / batch, 4) for kind, value in times[batch][f"{name}/{form}"].items()}
            for batch in BATCHES
        }
        size = one.bytes[form] if one else stored_bytes(teacher)
        oa = one.oa.get(form) if one else None
        rows.append({"network": name, "form": form, "bytes": size, "oa": oa, "milliseconds": each})
    return {"rows": rows, "targets": latency_targets(rows)}


def latency_targets(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each target with the value found; `met` is None where there is no target for this student."""
    table = {(row["network"], row["form"]): row for row in rows}
    found: list[dict[str, Any]] = []

    def speed(network: str, what: str, slow: tuple[str, str], form: str, target: float | None) -> None:
        one, other = (table[key]["milliseconds"]["1"]["median"] for key in ((network, form), slow))
        ratio = round(other / one, 3)
        met = None if target is None else ratio >= target
        found.append({"network": network, "what": what, "target": target, "found": ratio, "met": met})

    for name in dict.fromkeys(row["network"] for row in rows if row["network"] != TEACHER):
        loss = table[name, "ONNX fp32"]["oa"] - table[name, "ONNX int8"]["oa"]
        told = {"what": "OA lost by int8, at most", "target": INT8_LOSS, "found": round(loss, 6)}
        found.append({"network": name, **told, "met": loss <= INT8_LOSS})
        own, large = (name, "ONNX fp32"), (TEACHER, "PyTorch fp32")
        speed(name, "int8 times as fast as ONNX fp32", own, "ONNX int8", INT8_SPEED)
        speed(name, "int8 times as fast as PyTorch fp32", (name, "PyTorch fp32"), "ONNX int8", INT8_SPEED)
        speed(name, "times as fast as the teacher, fp32", large, "PyTorch fp32", BEFORE_TEACHER.get(name))
        speed(name, "int8 times as fast as the teacher", large, "ONNX int8", INT8_BEFORE_TEACHER)
    return found


def measure_predict(students: Mapping[str, Student], out: Path, count: int, turns: int) -> dict[str, Any]:
    """Measure in turns the images per second of `predict` on files, of the runtime on decoded images, and of reading.

    Where reading and network share the cores, the speed of one after the other is the upper limit.
    """
    rows = []
    for name, one in students.items():
        place = np.linspace(0, len(one.images.files) - 1, min(count, len(one.images.files))).astype(int)
        files, decoded = [one.images.files[number] for number in place], one.images.test[place]
        for form in ("ONNX fp32", "ONNX int8"):
            model = one.forms[form]
            assert isinstance(model, OnnxSceneModel)
            measures = {
                "runtime": partial(_runtime_speed, model, decoded),
                "reading": partial(_reading_speed, files, one.card),
                "predict": partial(_predict_speed, model, files, out / "predicted"),
            }
            speeds: dict[str, list[float]] = {what: [] for what in measures}
            for turn in range(turns + 1):  # the first warms up: it also reads the files from the disk
                for what, measure in measures.items():
                    found = measure()
                    if turn:
                        speeds[what].append(found)
            middle = {what: statistics.median(found) for what, found in speeds.items()}
            share = round(middle["predict"] / middle["runtime"], 4)
            both = 1 / (1 / middle["runtime"] + 1 / middle["reading"])
            row = {"network": name, "form": form, "images": len(files)}
            row |= {f"{what}_images_per_second": _spread(found) for what, found in speeds.items()}
            row |= {"of_runtime": share, "target": OF_RUNTIME, "met": share >= OF_RUNTIME}
            rows.append({**row, "of_reading_then_runtime": round(middle["predict"] / both, 4)})
    return {"rows": rows}


def _runtime_speed(model: OnnxSceneModel, images: np.ndarray, batch: int = 64) -> float:
    started = time.perf_counter()
    for start in range(0, len(images), batch):
        model.session.run(None, {"images": images[start : start + batch]})
    return len(images) / (time.perf_counter() - started)


def _reading_speed(files: Sequence[Path], card: NetCard) -> float:
    started = time.perf_counter()
    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in pool.map(partial(read_scene, size=card.stored_size or card.image_size, bands=card.bands), files):
            pass
    return len(files) / (time.perf_counter() - started)


def _predict_speed(model: SceneModel, files: Sequence[Path], out: Path) -> float:
    result = predict_images(model, files, out, ImagesConfig(sheet="none", restart=True))
    if result.images != len(files):
        raise SystemExit(f"{len(files) - result.images} of the files cannot be read: {result.skipped[:1]}")
    return result.images / result.seconds


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="class folders, those of the runs")
    parser.add_argument("results", type=Path, help="JSON file that gets the sections `latency` and `predict`")
    parser.add_argument("students", type=Path, nargs="+", help="folder of a run or of one training in it")
    parser.add_argument("--out", type=Path, default=Path("runs/use"), help="for the exports")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="that each network is timed in a turn")
    parser.add_argument("--files", type=int, default=2000, help="that predict works through")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(words)


def main() -> None:
    """Export, test, time and write."""
    given = parse()
    torch.set_num_threads(given.threads)
    students: dict[str, Student] = {}
    for source in given.students:
        name = load_net(find_network(source).weights)[1].name
        if name in students:
            raise SystemExit(f"{name} was given twice")
        students[name] = open_student(source, given.data, given.out / name, given.threads)
    cards = [one.card for one in students.values()]
    if len({(card.stored_size, card.image_size, card.bands, card.classes) for card in cards}) > 1:
        raise SystemExit("the students see images of different sizes or classes; give those of one run")
    words = " ".join("STUDENT" for _ in students)
    shared = {
        "command": f"python benchmarks/use.py {given.data.resolve().name} results/{given.results.name} {words}",
        **measured_here(onnxruntime=onnxruntime.__version__),
        "threads": given.threads,
        "stored_size": cards[0].stored_size,
        "image_size": cards[0].image_size,
        "turns": given.turns,
    }
    test = len(next(iter(students.values())).images.test)
    latency = {**shared, "test_images": test, **measure_latency(students, given.turns, given.seconds)}
    predicted = {**shared, "batch_size": 64, **measure_predict(students, given.out, given.files, given.turns)}
    keep_section(given.results, "latency", latency)
    keep_section(given.results, "predict", predicted)
    print(json.dumps({"latency": latency, "predict": predicted}, indent=1))


if __name__ == "__main__":
    main()
