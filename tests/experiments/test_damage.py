"""Damage to what a run has left: noticed, named, and made again; never another result."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from scenedistill import RunConfig, load_net, run
from scenedistill.config import (
    DataConfig,
    FitConfig,
    MachineConfig,
    StudentConfig,
    StudentFitConfig,
    TeacherConfig,
    TeacherFitConfig,
)
from scenedistill.core.disk import archive_damage, read_json
from scenedistill.core.errors import Damaged, UserError
from scenedistill.core.yaml_files import read_yaml
from scenedistill.data.cache.files import read_manifest
from scenedistill.experiments.run_folder import RunFolder
from scenedistill.metrics.outputs import load_outputs
from scenedistill.models.files import weights_hash
from scenedistill.runs.curves import read_curves
from scenedistill.runs.find import find_network
from scenedistill.runs.provenance import training_provenance
from scenedistill.runs.run import Run
from scenedistill.training.runs import Stage

STUDENT = "table1_printed"
STAGES = ("teacher", f"{STUDENT}/plain", f"{STUDENT}/dkd")
WEIGHTS = "weights.safetensors"
FIGURES = ("variant", "student", "teacher", "seed", "oa", "aa", "kappa", "macro_f1", "parameters")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    fit = FitConfig(epochs=1, batch_size=16, lr=0.02, warmup_epochs=0)
    return RunConfig(
        image_size=32,
        data=DataConfig(train_ratio=0.5, stored_size=32, cache_dir=tmp_path_factory.mktemp("damage") / "cache"),
        teacher=TeacherConfig(name=STUDENT, weights="none", min_oa=0.0, fit=TeacherFitConfig(**vars(fit))),
        student=StudentConfig(name=STUDENT, knowledge_views=1, fit=StudentFitConfig(**vars(fit))),
        machine=MachineConfig(accelerator="cpu", precision="fp32"),
    )


def do(scenes: Path, out: Path, config: RunConfig, **more: Any) -> tuple[list[dict[str, Any]], str]:
    """Figures of a run and what it printed."""
    said = io.StringIO()
    result = run(scenes, out, config, console=Console(file=said, width=300), **more)
    return [{name: getattr(row, name) for name in FIGURES} for row in result.rows], said.getvalue()


def hashes(out: Path) -> dict[str, str]:
    return {stage: weights_hash(load_net(out / "seed0" / stage / WEIGHTS)[0]) for stage in STAGES}


@pytest.fixture(scope="module")
def finished(tiny_scenes: Path, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Read only."""
    out = tmp_path_factory.mktemp("damage-runs") / "tiny"
    do(tiny_scenes, out, config)
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


def flip(path: Path, place: float = 0.5, bit: int = 4) -> None:
    """Change one bit at a share of a file's length."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


def one_line(problem: UserError) -> bool:
    return len(str(problem)) > 0 and str(problem).count("\n") <= 1


def reported(out: Path) -> dict[str, Any]:
    """What a report would be made of."""
    data = Run.open(out)
    found: dict[str, Any] = {"ratio": [cell.ratio for cell in data.cells]}
    for cell in data.cells:
        for network in cell.networks:
            key = network.folder.relative_to(out).as_posix()
            outputs, confusion = network.outputs, network.confusion
            found[f"{key} figures"] = {name: network.tested[name] for name in ("oa", "aa", "kappa", "per_class")}
            found[f"{key} outputs"] = None if outputs is None else outputs.logits.tolist()
            found[f"{key} confusion"] = None if confusion is None else confusion.tolist()
            found[f"{key} paths"] = network.test_paths or None
            try:
                curves = read_curves(network.folder)
                found[f"{key} curves"] = {name: values.tolist() for name, values in curves.parts.items()}
            except UserError:
                found[f"{key} curves"] = None
    return found


def files(out: Path) -> list[Path]:
    kept = [path for path in sorted(out.rglob("*")) if path.is_file() and not path.name.endswith((".lock", ".holder"))]
    return [path.relative_to(out) for path in kept]


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_gives_the_same_result_or_one_line(
    finished: Path, tiny_scenes: Path, config: RunConfig, tmp_path: Path
) -> None:
    figures, _ = do(tiny_scenes, Path(shutil.copytree(finished, tmp_path / "whole")), config)
    report, weights = reported(finished), hashes(finished)
    rng, retrained = np.random.default_rng(15), set[str]()
    places = files(finished)
    assert len(places) > 25 and {"stage.json", WEIGHTS, "outputs.npz", "split.csv"} <= {path.name for path in places}
    for number, place in enumerate(places):
        out = Path(shutil.copytree(finished, tmp_path / str(number)))
        flip(out / place, rng.random(), int(rng.integers(8)))
        try:
            for name, value in reported(out).items():
                assert value is None or value == report[name], (place, name)
        except UserError as problem:
            assert one_line(problem), place
        again, said = do(tiny_scenes, out, config)
        assert again == figures and hashes(out) == weights, place
        if "  epoch " in said:
            assert "is damaged" in said, place
            retrained.add(place.name)
        shutil.rmtree(out)
    assert retrained <= {"stage.json", WEIGHTS}


@pytest.mark.parametrize("way", ["flipped", "cut", "gone"])
def test_a_damaged_teacher_is_named_and_trained_again_before_it_teaches(
    way: str, finished: Path, tiny_scenes: Path, config: RunConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    do(tiny_scenes, out, config, parts=("teacher",))
    file = out / "seed0" / "teacher" / WEIGHTS
    if way == "flipped":
        content = bytearray(file.read_bytes())
        for place in np.random.default_rng(0).integers(len(content) // 2, len(content), 400):
            content[place] ^= 1
        file.write_bytes(content)
        with pytest.raises(Damaged, match="does not fit its checksum"):
            load_net(file)
    elif way == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    _, said = do(tiny_scenes, out, config)
    assert f"teacher: {WEIGHTS} is {'missing' if way == 'gone' else 'damaged'}" in said and "done again" in said
    assert hashes(out) == hashes(finished)


def test_a_student_whose_teacher_has_other_weights_is_trained_again(
    copy: Path, tiny_scenes: Path, config: RunConfig
) -> None:
    path = copy / "seed0" / STUDENT / "dkd" / "stage.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["record"]["teacher_hash"] = "0" * 16
    del record["checksum"]
    path.write_text(json.dumps(record), encoding="utf-8")
    whole = hashes(copy)
    _, said = do(tiny_scenes, copy, config)
    assert "dkd: its teacher has other weights than the one there is" in said and said.count("  epoch ") == 1
    assert hashes(copy) == whole


def test_damaged_outputs_are_tested_again_and_nothing_is_trained(
    copy: Path, finished: Path, tiny_scenes: Path, config: RunConfig
) -> None:
    outputs = Path("seed0") / STUDENT / "dkd" / "evaluation" / "outputs.npz"
    (copy / outputs).write_bytes((copy / outputs).read_bytes()[:-200])
    with pytest.raises(Damaged, match=r"outputs\.npz is damaged"):
        load_outputs(copy / outputs)
    _, said = do(tiny_scenes, copy, config)
    assert "dkd/evaluation: outputs.npz is damaged" in said and "  epoch " not in said
    np.testing.assert_array_equal(load_outputs(copy / outputs).logits, load_outputs(finished / outputs).logits)


def test_a_folder_from_before_there_were_checksums_is_done_and_its_network_still_compared(
    copy: Path, tiny_scenes: Path, config: RunConfig
) -> None:
    for path in copy.rglob("stage.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        del content["checksum"], content["files"]
        content["record"].pop("logs", None)
        content["record"].pop("split", None)
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    _, said = do(tiny_scenes, copy, config)
    assert said.count("done before with the same settings") == 3 and "  epoch " not in said
    flip(copy / "seed0" / "teacher" / WEIGHTS, 0.9)
    _, said = do(tiny_scenes, copy, config)
    assert f"{WEIGHTS} is damaged" in said and said.count("  epoch ") == 1


def test_a_cut_stage_json_is_called_damaged_and_not_other_settings(
    copy: Path, tiny_scenes: Path, config: RunConfig
) -> None:
    path = copy / "seed0" / STUDENT / "plain" / "stage.json"
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    _, said = do(tiny_scenes, copy, config)
    assert "plain: its stage.json is damaged; the old one is now plain.previous-1" in said
    assert "other settings" not in said


def test_nothing_of_another_run_is_written_while_the_seed_is_held(
    copy: Path, tiny_scenes: Path, config: RunConfig
) -> None:
    places = ("settings.yaml", "seed0/split.csv", "seed0/images.json", "summary.json")
    before = {place: (copy / place).read_bytes() for place in places}
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, train_ratio=0.25))
    with Stage(copy / "seed0", {}).locked(), pytest.raises(UserError, match="is being worked on by another process"):
        do(tiny_scenes, copy, other)
    with Stage(copy / "seed0" / "teacher", {}).locked(), pytest.raises(UserError, match="being worked on by another"):
        do(tiny_scenes, copy, other)
    assert {place: (copy / place).read_bytes() for place in places} == before
    assert Run.open(copy).cells[0].ratio == 0.5


def test_a_report_shows_the_run_and_not_changed_settings_beside_it(copy: Path) -> None:
    settings = read_yaml(copy / "settings.yaml")
    assert settings["data"]["train_ratio"] == 0.5
    text = (copy / "settings.yaml").read_text(encoding="utf-8").replace("train_ratio: 0.5", "train_ratio: 0.7")
    (copy / "settings.yaml").write_text(text, encoding="utf-8")
    (copy / "seed0" / "split.csv").write_text("path,label,split\nriver/00.png,river,test\n", encoding="utf-8")
    (cell,) = Run.open(copy).cells
    assert cell.ratio == 0.5 and cell.settings == {}
    assert all(network.test_paths == () for network in cell.networks)
    assert training_provenance(find_network(copy))["train_ratio"] == 0.5


def test_half_written_files_of_a_kill_are_removed(copy: Path, tiny_scenes: Path, config: RunConfig) -> None:
    folder = copy / "seed0" / STUDENT / "plain"
    shutil.rmtree(folder / "evaluation")
    (folder / "evaluation").mkdir()  # killed before its stage.json was there
    left = [folder / "stage.json.0123.part", folder / "weights.safetensors.part"]
    for part in left:
        part.write_bytes(b"half")
    do(tiny_scenes, copy, config)
    assert not list(copy.rglob("*.part")) and not list(copy.rglob("*.previous-*"))


def test_a_stage_folder_deleted_during_the_work_is_reported_in_one_line(
    copy: Path,
) -> None:
    folder, stage = RunFolder(copy, Console(quiet=True), lead=True), Stage(copy / "seed0" / "new", {})
    with pytest.raises(UserError, match="new was removed or moved while it was worked on"), folder.hold(stage):
        stage.begin()
        shutil.rmtree(stage.folder)
        stage.finish({})


@pytest.fixture(scope="module")
def interrupted(
    tiny_scenes: Path, tiny_options: tuple[str, ...], commands: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a teacher's training that was ended in its third checkpoint. Read only."""
    out = tmp_path_factory.mktemp("interrupted") / "out"
    stop = {"event": "open", "path": "teacher/checkpoints/last.ckpt.part", "count": 3, "how": "interrupt"}
    assert commands("teacher", tiny_scenes, "--out", out, *tiny_options, stop=stop).code != 0
    return out


@pytest.mark.parametrize("way", ["flipped", "cut", "empty", "garbage"])
def test_a_damaged_checkpoint_is_named_and_the_training_starts_again(
    way: str, interrupted: Path, tiny_scenes: Path, tiny_run: Path, tiny_options: tuple[str, ...], commands: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    shutil.copytree(interrupted, tmp_path / "out")
    command = ("teacher", tiny_scenes, "--out", tmp_path / "out", *tiny_options)
    checkpoint = tmp_path / "out" / "seed3" / "teacher" / "checkpoints" / "last.ckpt"
    content = checkpoint.read_bytes()
    if way == "flipped":
        flip(checkpoint)
    else:
        checkpoint.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"\x00garbage" * 99}[way])
    ended = commands(*command)
    assert ended.code == 0 and "last.ckpt is damaged" in ended.out and "starts again" in ended.out, ended.err
    found, wanted = (read_json(out / "seed3/teacher/stage.json")["record"] for out in (tmp_path / "out", tiny_run))
    assert found["weights_hash"] == wanted["weights_hash"]


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Seeded damage of a file: flipped bits, cuts, gaps, repeats, other bytes."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        start, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        end = min(end, start + 64)
        noise = rng.bytes(int(rng.integers(1, 32)))
        yield [
            content[:start]
            + bytes(byte ^ (1 << int(rng.integers(8))) for byte in content[start : start + 1])
            + content[start + 1 :],
            content[:start],
            content[:start] + content[end:],
            content[:end] + content[start:],
            content[:start] + noise + content[start:],
            content[:start] + noise + content[start + len(noise) :],
        ][number % 6]


def test_damaged_run_folders_give_the_same_result_or_one_line(
    finished: Path, config: RunConfig, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    student, cache = out / "seed0" / STUDENT / "dkd", tmp_path / "cache"
    assert config.data.cache_dir
    shutil.copytree(config.data.cache_dir, cache, ignore=shutil.ignore_patterns("knowledge"))
    checkpoint = tmp_path / "last.ckpt"
    torch.save({"state": torch.arange(500.0), "epoch": 3}, checkpoint)

    def of_checkpoint() -> Any:
        if problem := archive_damage(checkpoint):
            raise Damaged(problem)
        return torch.load(checkpoint)["state"].tolist()

    def of_stage() -> Any:
        about = training_provenance(find_network(student))
        return {name: about.get(name) for name in ("oa", "seed", "method", "weights_hash", "split_hash")}

    def of_manifest() -> Any:
        if (found := read_manifest(cache)) is None:
            raise Damaged("made anew")
        return found

    readers: list[tuple[Path, Callable[[], Any]]] = [
        (student / "stage.json", of_stage),
        (student / "stage.json", lambda: reported(out).get(f"seed0/{STUDENT}/dkd figures")),
        (student / "evaluation" / "stage.json", lambda: reported(out).get(f"seed0/{STUDENT}/dkd figures")),
        (
            student / "evaluation" / "outputs.npz",
            lambda: load_outputs(student / "evaluation/outputs.npz").logits.tolist(),
        ),
        (student / WEIGHTS, lambda: weights_hash(load_net(student / WEIGHTS)[0])),
        (out / "settings.yaml", lambda: read_yaml(out / "settings.yaml", unchanged=True).get("data")),
        (out / "seed0" / "split.csv", lambda: reported(out).get(f"seed0/{STUDENT}/dkd paths")),
        (cache / "manifest.json", of_manifest),
        (checkpoint, of_checkpoint),
    ]
    for number, (path, read) in enumerate(readers):
        whole, wanted, refused = path.read_bytes(), read(), 0
        for content in mutations(whole, 60, number):
            path.write_bytes(content)
            try:
                found = read()
            except UserError as problem:
                assert one_line(problem), path
                refused += 1
            else:
                lost = found is None or (isinstance(found, dict) and not any(found.values()))
                assert lost or found == wanted, path
                refused += lost
        assert refused > 20, path
        path.write_bytes(whole)
        assert read() == wanted
