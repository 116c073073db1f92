"""Networks that were trained elsewhere, with their heads, as teachers."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
import torchvision
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from scenedistill.cli import build_parser
from scenedistill.commands.parsing import build_config
from scenedistill.config import (
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
from scenedistill.data.scenes import scan
from scenedistill.experiments.run import run
from scenedistill.experiments.stages.given_teacher import class_rows, read_classes
from scenedistill.models.create import build_with_head
from scenedistill.models.files import load_net
from scenedistill.models.network import SceneNet

CLASSES = ("car park", "fields", "forêt", "river")  # of the tiny scenes
NAME = "resnet10t"

MODELS = (
    "resnet18",
    "densenet121",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
    "regnetx_002",
    "deit3_small_patch16_224",
    "vgg11_bn",
    "resnetv2_50",
)


def lived_in(net: nn.Module) -> nn.Module:
    """With batch norms that do something, and a head whose logits differ."""
    torch.manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    for parameter in net.parameters():
        if parameter.ndim == 2 and parameter.shape[0] == 4:
            nn.init.normal_(parameter, std=0.3)
    return net.eval()


def answers(net: SceneNet, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = net.eval()(images).logits
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_timm_gives_its_own_logits(name: str, tmp_path: Path) -> None:
    size: dict[str, Any] = {"img_size": 64} if name.startswith(("vit", "swin", "deit")) else {}
    theirs = lived_in(timm.create_model(name, num_classes=4, **size))
    torch.save({"state_dict": theirs.state_dict(), "arch": name}, tmp_path / "model_best.pth.tar")
    net, account = build_with_head(name, str(tmp_path / "model_best.pth.tar"), image_size=64)
    assert account.share == 1 and not account.unused and not account.fresh
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs((images - net.mean) / net.std)
    assert expected.std() > 1e-3
    torch.testing.assert_close(answers(net, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_a_network_of_torchvision_gives_its_own_logits(name: str, tmp_path: Path) -> None:
    theirs = lived_in(torchvision.models.get_model(name, num_classes=4))
    torch.save({f"module.{key}": tensor for key, tensor in theirs.state_dict().items()}, tmp_path / "tuned.pth")
    net, _ = build_with_head(name, str(tmp_path / "tuned.pth"), image_size=64)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(answers(net, images), theirs((images - net.mean) / net.std), rtol=1e-4, atol=1e-5)


def test_a_transformer_of_another_image_size_is_taken_with_its_head(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    save_file(timm.create_model(name, num_classes=4).state_dict(), tmp_path / "vit.safetensors")
    net, account = build_with_head(name, str(tmp_path / "vit.safetensors"), image_size=64)
    assert account.share == 1 and net.dims.classes == 4


BROKEN: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "no head": (lambda t: [t.pop("fc.weight"), t.pop("fc.bias")], "holds no head to be taken as it is.*found none"),
    "a head of layers": (
        lambda t: [
            t.pop("fc.weight"),
            t.update({"fc.0.weight": torch.zeros(9, 511), "fc.2.weight": torch.zeros(4, 9)}),
        ],
        "holds no head",
    ),
    "two heads": (
        lambda t: [t.update({"a.weight": t.pop("fc.weight"), "b.weight": torch.zeros(3, 512)})],
        r"found 2 of them \(a\.weight, b\.weight\)|found 2 of them \(b\.weight, a\.weight\)",
    ),
    "a part": (lambda t: t.pop("layer4.0.conv1.weight"), r"not the whole of 'resnet10t'.*lacks layer4\.0\.conv1"),
    "more": (lambda t: t.update({"layer4.attention.weight": torch.zeros(1)}), r"holds layer4\.attention\.weight too"),
    "another shape": (
        lambda t: t.update({"layer4.0.conv1.weight": torch.zeros(512, 256, 1, 1)}),
        r"another shape: layer4\.0\.conv1",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_a_whole_network_with_one_head_is_refused(case: str, tmp_path: Path) -> None:
    tensors = dict(timm.create_model(NAME, num_classes=4).state_dict())
    BROKEN[case][0](tensors)
    torch.save(tensors, tmp_path / "broken.pth")
    with pytest.raises(UserError, match=BROKEN[case][1]):
        build_with_head(NAME, str(tmp_path / "broken.pth"))


def test_classes_are_found_by_their_names() -> None:
    assert class_rows(["a", "b"], None, 2, "f") == [0, 1]
    assert class_rows(["a", "b", "c"], ["c", "x", "a", "b"], 4, "f") == [2, 3, 0]
    assert class_rows(["Bare Land", "farm_land"], ["FarmLand", "bareland"], 2, "f") == [1, 0]
    assert class_rows(["River", "river"], ["river", "River"], 2, "f") == [1, 0], "the exact name before a like one"
    with pytest.raises(UserError, match="f tells 3 classes apart and the images have 2"):
        class_rows(["a", "b"], None, 3, "f")
    with pytest.raises(UserError, match="has 2 names and the head of f 3 logits"):
        class_rows(["a", "b"], ["a", "b"], 3, "f")
    with pytest.raises(UserError, match="does not name b, c, which the images have; it names a, d, e"):
        class_rows(["a", "b", "c"], ["a", "d", "e"], 3, "f")
    with pytest.raises(UserError, match="does not name RIVER"):
        class_rows(["RIVER"], ["river", "River"], 2, "f")


def test_classes_come_from_a_list_a_file_or_commas(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\ufeffcar park\n forêt \n\nriver\n", encoding="utf-8")
    assert read_classes(str(tmp_path / "classes.txt")) == ["car park", "forêt", "river"]
    assert read_classes("a, b,c") == read_classes(["a", "b", "c"]) == ["a", "b", "c"]
    assert read_classes(None) is None
    many = [f"class number {number}" for number in range(60)]  # longer than a path can be
    assert read_classes(", ".join(many)) == many
    (tmp_path / "latin.txt").write_bytes("forêt\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8 text"):
        read_classes(str(tmp_path / "latin.txt"))
    with pytest.raises(UserError, match=r"no file classes\.csv"):
        read_classes("classes.csv")
    with pytest.raises(UserError, match="names a twice"):
        read_classes(["a", "b", "a"])
    for given, expected in (("[a, b]", ["a", "b"]), ("names.txt", "names.txt"), ("a,b", "a,b")):
        words = ["run", "x", "--teacher.classes", given]
        assert build_config(RunConfig, build_parser().parse_args(words).run).teacher.classes == expected


Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def trained(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """A network that knows the tiny scenes, trained in a plain loop of its own, its classes in reverse order."""
    from scenedistill.data.batches import ScenePart
    from scenedistill.data.cache.build import build_cache
    from scenedistill.data.views import evaluation_view

    index = scan(tiny_scenes)
    assert index.classes == CLASSES
    cache = build_cache(index, 40, folder=tmp_path_factory.mktemp("cache"), progress=False)
    batch = ScenePart(cache, torch.arange(len(index)).numpy()).fetch(range(len(index)))
    images = evaluation_view(batch.images, size=32)
    torch.manual_seed(0)
    net = timm.create_model(NAME, num_classes=4)
    config = cast(dict[str, Any], net.pretrained_cfg)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(30):
        loss = nn.functional.cross_entropy(net((images - mean) / std), 3 - batch.labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        found = net.eval()((images - mean) / std).argmax(1)
    assert (found == 3 - batch.labels).float().mean() > 0.95
    return dict(net.state_dict())


@pytest.fixture
def make(trained: dict[str, Tensor], tmp_path: Path) -> Make:
    """Settings of a tiny run with that network as its teacher."""
    file = tmp_path / "best.ckpt"
    content = {"state_dict": {f"model.{key}": tensor for key, tensor in trained.items()}, "epoch": 3}
    torch.save({**content, "hyper_parameters": argparse.Namespace(lr=0.1)}, file)

    def made(**teacher: Any) -> RunConfig:
        return RunConfig(
            image_size=32,
            data=DataConfig(train_ratio=0.5, stored_size=40, cache_dir=tmp_path / "cache"),
            teacher=TeacherConfig(**{"name": NAME, "weights": str(file), "as_is": True, **teacher}),
            student=StudentConfig(
                name="table1_printed",
                knowledge_views=2,
                fit=StudentFitConfig(epochs=1, batch_size=16, lr=0.02, warmup_epochs=0),
            ),
            machine=MachineConfig(accelerator="cpu", precision="fp32"),
        )

    return made


REVERSED = list(reversed(CLASSES))


def test_a_given_teacher_is_used_unchanged_with_logits_in_the_order_of_the_folders(
    make: Make, trained: dict[str, Tensor], tiny_scenes: Path, tmp_path: Path
) -> None:
    said, out = io.StringIO(), tmp_path / "out"
    result = run(tiny_scenes, out, make(classes=REVERSED), console=Console(file=said, width=300))
    text = said.getvalue()
    assert "teacher: 4 of the 4 classes of its head, named by --teacher.classes" in text
    assert "teacher  epoch" not in text and "fit to teach" in text
    (teacher,) = (row for row in result.rows if row.variant == "teacher")
    assert teacher.oa > 0.9 and teacher.more["train_seconds"] == 0 and teacher.more["weights"] == "best.ckpt"
    net, card = load_net(out / "seed0" / "teacher" / "weights.safetensors")
    assert card.name == NAME and card.classes == CLASSES and not card.dual_attention
    assert torch.equal(net.head.weight, trained["fc.weight"].flip(0))
    record = json.loads((out / "seed0" / "teacher" / "stage.json").read_text(encoding="utf-8"))["record"]
    assert record["taken_from"] == "best.ckpt" and len(record["weights_file_hash"]) == 16
    assert {row.variant for row in result.rows} == {"teacher", "plain", "dkd"}

    again = io.StringIO()
    run(tiny_scenes, out, make(classes=REVERSED), console=Console(file=again, width=300))
    assert "epoch 1/1" not in again.getvalue()
    file = Path(make().teacher.weights)
    content = torch.load(file, weights_only=False)
    content["state_dict"]["model.fc.bias"] += 1
    torch.save(content, file)
    with pytest.raises(UserError, match=r"started from another file than .*best\.ckpt"):
        run(tiny_scenes, out, make(classes=REVERSED), console=Console(quiet=True))


def test_a_head_that_knows_more_classes_answers_for_those_of_the_images(
    make: Make, tiny_scenes: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    for name in ("fields", "river"):
        shutil.copytree(tiny_scenes / name, few / name)
    said = io.StringIO()
    result = run(
        few, tmp_path / "out", make(classes=REVERSED), parts=("teacher",), console=Console(file=said, width=300)
    )
    assert "2 of the 4 classes of its head" in said.getvalue() and result.rows[0].oa > 0.9


def test_a_given_teacher_sees_images_normalised_as_in_its_training(
    make: Make, tiny_scenes: Path, tmp_path: Path
) -> None:
    """As torchgeo's, which only divides by 255; its file keeps that, and its answers are other ones."""
    hashes = []
    for number, changes in enumerate(({}, {"mean": [0.0], "std": [1.0, 1.0, 1.0]})):
        out = tmp_path / str(number)
        run(
            tiny_scenes,
            out,
            make(classes=REVERSED, min_oa=0.0, **changes),
            parts=("teacher",),
            console=Console(quiet=True),
        )
        folder = out / "seed0" / "teacher"
        net, _ = load_net(folder / "weights.safetensors")
        hashes.append(json.loads((folder / "stage.json").read_text(encoding="utf-8"))["record"]["weights_hash"])
    assert net.mean.flatten().tolist() == [0, 0, 0] and net.std.flatten().tolist() == [1, 1, 1]
    assert hashes[0] != hashes[1], "kept answers of the one are not taken for the other's"
    images, direct = torch.rand(2, 3, 32, 32), timm.create_model(NAME, num_classes=4)
    tensors = torch.load(make().teacher.weights, weights_only=False)["state_dict"]
    direct.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    with torch.no_grad():
        torch.testing.assert_close(answers(net, images), direct.eval()(images).flip(1), rtol=1e-4, atol=1e-5)


def test_a_teacher_with_classes_in_another_order_is_refused(make: Make, tiny_scenes: Path, tmp_path: Path) -> None:
    """Their number fits, so that only its answers tell."""
    with pytest.raises(
        UserError, match=r"right on .* of 32 training images .*order of its logits \(--teacher\.classes"
    ):
        run(tiny_scenes, tmp_path / "out", make(), console=Console(quiet=True))


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "no file": ({"weights": "timm"}, "--teacher.weights is timm. Give the file"),
    "a checkpoint too": ({"checkpoint": Path("x.safetensors")}, "leave --teacher.checkpoint out"),
    "a mean alone": ({"mean": [0.5]}, "belong together"),
    "a mean of bytes": ({"mean": [120.0], "std": [60.0]}, "expected 3 numbers each .* divide by 255"),
    "four bands of three": ({"mean": [0.5] * 4, "std": [0.2] * 4}, "expected 3 numbers each"),
    "a deviation of nothing": ({"mean": [0.5], "std": [0.0]}, "expected 3 numbers each"),
    "a mean for nothing": ({"as_is": False, "mean": [0.5], "std": [0.2]}, "add --teacher.as_is true"),
    "classes for nothing": ({"as_is": False, "classes": ["a"]}, "add --teacher.as_is true"),
    "a file that is not there": ({"weights": "gone.pth"}, "No weights at gone.pth"),
    "other classes": ({"classes": ["a", "b", "c", "d"]}, "does not name car park, fields"),
    "another network": ({"name": "resnet18"}, "tensors of another shape|Give weights of the same architecture"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_of_a_given_teacher_are_refused_in_one_line(
    case: str, make: Make, tiny_scenes: Path, tmp_path: Path
) -> None:
    changes, words = WRONG[case]
    with pytest.raises(UserError, match=words) as refused:
        run(tiny_scenes, tmp_path / "out", make(**changes), console=Console(quiet=True))
    assert "\n" not in str(refused.value)


def test_part_of_another_network_is_a_start_on_request(make: Make, tiny_scenes: Path, tmp_path: Path) -> None:
    config = make(
        as_is=False,
        name="resnet18",
        min_oa=0.0,
        fit=TeacherFitConfig(**vars(FitConfig(epochs=1, batch_size=16, lr=1e-3))),
    )
    with pytest.raises(UserError, match="set partial to true"):
        run(tiny_scenes, tmp_path / "out", config, parts=("teacher",), console=Console(quiet=True))
    config.teacher = dataclasses.replace(config.teacher, partial=True)
    run(tiny_scenes, tmp_path / "out", config, parts=("teacher",), console=Console(quiet=True))
    record = json.loads((tmp_path / "out" / "seed0" / "teacher" / "stage.json").read_text(encoding="utf-8"))
    assert record["settings"]["teacher"]["partial"] is True and "other shape" in record["record"]["weights_taken"]
