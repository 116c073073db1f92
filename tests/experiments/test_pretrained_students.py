"""Students that start from pretrained weights: in a run, in a grid, in its records."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from scenedistill.cli import build_parser
from scenedistill.commands.parsing import build_config
from scenedistill.config import (
    FINE_TUNING,
    FROM_NOTHING,
    DataConfig,
    FitConfig,
    MachineConfig,
    RunConfig,
    StudentConfig,
    StudentFitConfig,
    TeacherConfig,
    TeacherFitConfig,
)
from scenedistill.core.errors import UserError
from scenedistill.experiments.grid.config import GridConfig, MethodConfig, check_grid, student_of
from scenedistill.experiments.grid.run import grid
from scenedistill.experiments.run import run
from scenedistill.experiments.stages.students import student_settings
from scenedistill.experiments.stages.teacher import teacher_settings
from scenedistill.models.create import build_network
from scenedistill.models.files import NetCard, load_net, save_net
from scenedistill.runs.network import Network
from scenedistill.runs.provenance import training_provenance
from scenedistill.training.runs import fingerprint

NAME = "table1_printed"


MANY = 4000  # images: as many as the usual number of epochs suits


def test_a_start_from_scratch_keeps_its_earlier_fingerprint() -> None:
    given = StudentConfig(fit=StudentFitConfig(epochs=60))
    assert fingerprint({"student": student_settings(given, MANY)}) == "6013f5f1c8a7d3d3"
    teacher = TeacherConfig(fit=TeacherFitConfig(epochs=25))
    assert fingerprint(teacher_settings(teacher, MANY)) == "e0d399715a777371"
    assert fingerprint({"student": student_settings(StudentConfig(), MANY)}) == "6013f5f1c8a7d3d3"
    assert fingerprint({"student": student_settings(StudentConfig(weights="lite"), MANY)}) != "6013f5f1c8a7d3d3"
    revised = [StudentConfig(method="decoupled"), StudentConfig(losses={"decoupled": 1.0})]
    assert all(student_settings(one, MANY)["revisions"] == {"decoupled": 2} for one in revised)


def test_what_was_chosen_by_the_images_has_the_fingerprint_of_what_was_given() -> None:
    chosen = StudentConfig().schedule(300)
    given = StudentConfig(fit=StudentFitConfig(epochs=chosen.epochs, batch_size=chosen.batch_size))
    assert student_settings(StudentConfig(), 300) == student_settings(given, 300)
    assert student_settings(StudentConfig(), 300) != student_settings(StudentConfig(), MANY)
    assert student_settings(StudentConfig().closed(300), 300) == student_settings(StudentConfig(), 300)
    assert teacher_settings(TeacherConfig().closed(300), 300) == teacher_settings(TeacherConfig(), 300)


def test_a_setting_added_later_changes_the_fingerprint_once_given() -> None:
    told = student_settings(StudentConfig(), MANY)
    assert not {"weights", "partial", "mixup"} & set(told) and not {"ema_decay", "steps"} & set(told["fit"])
    fit = StudentFitConfig(ema_decay=0.9, steps=700)
    given = student_settings(StudentConfig(mixup=0.5, fit=fit), MANY)
    assert (given["mixup"], given["fit"]["ema_decay"], given["fit"]["steps"]) == (0.5, 0.9, 700)
    teacher = teacher_settings(TeacherConfig(classes=["a", "b"], mean=[0.5]), MANY)["teacher"]
    assert (teacher["classes"], teacher["mean"], "std" in teacher) == (["a", "b"], [0.5], False)


def test_what_is_not_given_is_chosen_by_the_start_and_what_is_given_counts() -> None:
    assert StudentConfig().schedule(MANY) == FROM_NOTHING == FitConfig()
    assert StudentConfig(weights="lite").schedule(MANY) == FINE_TUNING
    given = StudentFitConfig(lr=0.1, epochs=60, batch_size=32)
    assert StudentConfig(weights="timm", fit=given).schedule() == dataclasses.replace(
        FINE_TUNING, lr=0.1, epochs=60, batch_size=32
    )
    words = ["run", "scenes", "--student.weights", "lite", "--student.fit.lr", "0.1"]
    config = build_config(RunConfig, build_parser().parse_args(words).run)
    assert config.student.schedule(MANY) == dataclasses.replace(FINE_TUNING, lr=0.1)
    assert build_config(RunConfig, build_parser().parse_args(words[:2]).run).student.schedule(MANY) == FROM_NOTHING


def test_settings_written_before_still_load_as_they_were(tmp_path: Path) -> None:
    before = {name: value for name, value in vars(FitConfig(epochs=30)).items() if name != "steps"}
    old = {"student": {"name": "table1_resnet", "fit": before}}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old), encoding="utf-8")
    config = build_config(
        RunConfig, build_parser().parse_args(["run", "x", "--config", str(tmp_path / "old.yaml")]).run
    )
    assert config.student.schedule() == FitConfig(epochs=30)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Weights of a small network, of other classes than the images."""
    torch.manual_seed(7)
    net, _ = build_network(NAME, 9, image_size=32)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    save_net(net, NetCard(NAME, tuple("abcdefghi"), 3, 32), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


def settings(tmp_path: Path, **student: Any) -> RunConfig:
    fit = TeacherFitConfig(**vars(FitConfig(epochs=1, batch_size=16, lr=0.02, warmup_epochs=0)))
    return RunConfig(
        image_size=32,
        data=DataConfig(train_ratio=0.5, stored_size=40, cache_dir=tmp_path / "cache"),
        teacher=TeacherConfig(name=NAME, weights="none", min_oa=0.0, fit=fit),
        student=StudentConfig(
            name=NAME, knowledge_views=0, fit=StudentFitConfig(epochs=1, batch_size=16, lr=1e-9), **student
        ),
        machine=MachineConfig(accelerator="cpu", precision="fp32"),
    )


def test_plain_and_distilled_start_from_the_file_and_say_so(start: Path, tiny_scenes: Path, tmp_path: Path) -> None:
    """At a rate of nearly nothing the networks stay where they have started."""
    out, said = tmp_path / "out", io.StringIO()
    config = settings(tmp_path, weights=str(start))
    result = run(tiny_scenes, out, config, console=Console(file=said, width=400))
    text = said.getvalue()
    assert text.count(f"{NAME} starts from start.safetensors: ") == 2
    line = (
        "fine-tuned by adamw, 1 epoch in batches of 16, learning rate 1e-09 (3e-09 of fresh parts), weight decay "
        "0.05, 1 epoch of warm"
    )
    assert text.count(line) == 2
    assert text.count("; losses: ce 1\n") == 1 and text.count("; losses: ce 1, da 1, ss 1\n") == 1
    used = yaml.safe_load((out / "settings.yaml").read_text(encoding="utf-8"))["student"]
    assert used["weights"] == str(start) and used["losses"] == {}
    assert used["fit"] == vars(dataclasses.replace(FINE_TUNING, epochs=1, batch_size=16, lr=1e-9))

    theirs = dict(load_net(start)[0].backbone.named_parameters())
    folder = out / "seed0" / NAME
    heads = []
    for method in ("plain", "dkd"):
        net, _ = load_net(folder / method / "weights.safetensors")
        for name, parameter in net.backbone.named_parameters():
            if ".attention." not in name:
                torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=1e-7)
        heads.append(net.head.weight)
        stage = json.loads((folder / method / "stage.json").read_text(encoding="utf-8"))
        assert stage["settings"]["student"]["weights"] == "start.safetensors"
        assert stage["settings"]["student"]["losses"] == ({"da": 1} if method == "dkd" else {})
        assert stage["record"]["weights_taken"].startswith("start.safetensors: ")
        assert len(stage["record"]["weights_file_hash"]) == 16
        assert training_provenance(Network.at(folder / method))["started_from"] == "start.safetensors"
    torch.testing.assert_close(*heads, rtol=0, atol=1e-7)
    assert {row.variant: row.more["weights"] for row in result.rows} == {
        "teacher": "none",
        "plain": "start.safetensors",
        "dkd": "start.safetensors",
    }
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert "started from |" in summary and "| start.safetensors |" in summary
    assert "started_from" not in training_provenance(Network.at(out / "seed0" / "teacher"))

    # done stays done, and another file of the same name is noticed
    again = io.StringIO()
    run(tiny_scenes, out, config, console=Console(file=again, width=400))
    assert "  epoch " not in again.getvalue()
    shutil.copy(out / "seed0" / "teacher" / "weights.safetensors", start)
    with pytest.raises(UserError, match=r"plain was started from another file than .*start\.safetensors"):
        run(tiny_scenes, out, config, console=Console(quiet=True))


def test_v1_blocks_of_a_students_weights_are_kept_in_its_file(tiny_scenes: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from timm import create_model

    torch.manual_seed(0)
    tensors = create_model("resnet26", num_classes=0).state_dict()
    save_file(tensors, tmp_path / "v1.safetensors", metadata={"note": "stride in the first 1x1"})
    config = settings(tmp_path, weights=str(tmp_path / "v1.safetensors"))
    config.student.name = "resnet26"
    run(tiny_scenes, tmp_path / "out", config, parts=("plain",), console=Console(quiet=True))
    net, card = load_net(tmp_path / "out" / "seed0" / "resnet26" / "plain" / "weights.safetensors")
    assert card.stride_in_first_convolution
    assert net.backbone.get_submodule("layer2.stage.0.conv1").stride == (2, 2)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("table1_resnet", "lite", "'table1_resnet' has no weights called lite"),
        ("table1_resnet", "timm", "no weights of 'table1_resnet' at timm"),
        ("resnet18", "gone.pth", "No weights at gone.pth"),
    ],
)
def test_impossible_weights_are_refused_before_anything_is_done(
    name: str, weights: str, message: str, tiny_scenes: Path, tmp_path: Path
) -> None:
    config = settings(tmp_path, weights=weights)
    config.student.name = name
    with pytest.raises(UserError, match=message):
        run(tiny_scenes, tmp_path / "out", config, console=Console(quiet=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_grid_gives_each_student_and_method_its_start(start: Path, tiny_scenes: Path, tmp_path: Path) -> None:
    base = settings(tmp_path)
    config = GridConfig(
        datasets={"scenes": str(tiny_scenes)},
        ratios=[0.5],
        seeds=[0],
        students=[NAME, "table1_resnet"],
        weights={NAME: str(start)},
        methods={"plain": MethodConfig(), "fresh": MethodConfig(method="plain", weights="none")},
        base=base,
    )
    assert [student_of(config, name, label).weights for name in config.students for label in config.methods] == [
        str(start),
        "none",
        "none",
        "none",
    ]
    assert student_of(config, NAME, "plain").schedule(MANY).optimizer == "adamw"
    assert student_of(config, NAME, "fresh").schedule(MANY).optimizer == "sgd"
    outcome = grid(config, tmp_path / "grid", console=Console(quiet=True))
    assert not outcome.failures
    rows = {(row.student, row.variant): row.more["weights"] for row in outcome.results["scenes-50"].rows}
    assert (
        rows[NAME, "plain"] == "start.safetensors" and rows[NAME, "fresh"] == rows["table1_resnet", "plain"] == "none"
    )

    with pytest.raises(UserError, match=r"weights: no student is called .table1_prnted.\. Did you mean table1_printed"):
        check_grid(dataclasses.replace(config, weights={"table1_prnted": "lite"}))
    with pytest.raises(UserError, match=r"methods\.plain: 'table1_printed' has no weights called lite"):
        check_grid(dataclasses.replace(config, weights={NAME: "lite"}))
