"""Tensors of a file into a backbone, with an honest account, and every bad file with its message."""

from __future__ import annotations

import os
import pickle
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.resnet import ResNet
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.models.create import build_student
from scenedistill.models.weights.take import load_weights

Tensors = dict[str, Tensor]


def backbone(**settings: Any) -> nn.Module:
    return timm.create_model("resnet18", pretrained=False, num_classes=0, **settings)


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    torch.manual_seed(1)
    return {name: torch.rand_like(t) if t.is_floating_point() else t + 3 for name, t in backbone().state_dict().items()}


def same(module: nn.Module, tensors: Tensors) -> bool:
    return all(torch.equal(tensor, tensors[name]) for name, tensor in module.state_dict().items())


def write(path: Path, content: Any) -> str:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_complete_file_is_loaded_completely(tensors: Tensors, tmp_path: Path, suffix: str) -> None:
    net = backbone()
    account = load_weights(net, write(tmp_path / f"whole{suffix}", tensors))
    assert same(net, tensors)
    assert set(account.taken) == set(tensors) and account.share == 1
    assert account.fresh == account.unused == account.mismatched == ()
    assert str(account) == f"whole{suffix}: {len(tensors)} tensors taken, 100% of the backbone's parameters"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": t},
        lambda t: {"model_state_dict": {f"module.{k}": v for k, v in t.items()}},
        lambda t: {f"model.{k}": v for k, v in t.items()},
        lambda t: {"state_dict": {f"module.model.backbone.{k}": v for k, v in t.items()}},
        lambda t: {f"module.encoder_q.{k}": v for k, v in t.items()},
        lambda t: {f"encoder.{k}": v for k, v in t.items()},
        lambda t: {f"anything.at.all.{k}": v for k, v in t.items()},
    ],
)
def test_wrapper_prefixes_are_removed(
    tensors: Tensors, tmp_path: Path, wrap: Callable[[Tensors], dict[str, Any]]
) -> None:
    net = backbone()
    account = load_weights(net, write(tmp_path / "wrapped.pth", wrap(tensors)))
    assert same(net, tensors) and account.share == 1


def test_tensors_outside_the_prefix_are_listed_as_unused(tensors: Tensors, tmp_path: Path) -> None:
    # a contrastive pair of encoders: one is wanted, and the other must not be mixed in
    both = {f"encoder_q.{k}": v for k, v in tensors.items()} | {"encoder_k.conv1.weight": tensors["conv1.weight"] + 1}
    net = backbone()
    account = load_weights(net, write(tmp_path / "pair.pth", both | {"queue": torch.zeros(3)}))
    assert same(net, tensors)
    assert set(account.unused) == {"encoder_k.conv1.weight", "queue"}


def test_the_account_names_what_is_fresh_unused_and_of_another_shape(tensors: Tensors, tmp_path: Path) -> None:
    given = {k: v for k, v in tensors.items() if not k.startswith("layer4")}
    given |= {"fc.weight": torch.zeros(10, 512), "layer3.0.conv1.weight": torch.zeros(256, 128, 1, 1)}
    net = backbone()
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError, match=r"part\.pth: tensors of another shape: layer3\.0\.conv1\.weight"):
        load_weights(net, write(tmp_path / "part.pth", given))
    assert same(net, start)
    account = load_weights(net, write(tmp_path / "part.pth", given), partial=True)
    assert account.unused == ("fc.weight",)
    assert account.mismatched == ("layer3.0.conv1.weight [256, 128, 1, 1] for [256, 128, 3, 3]",)
    assert all(name.startswith("layer4") or name == "layer3.0.conv1.weight" for name in account.fresh)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, tensors[name] if name in account.taken else start[name]), name
    parameters = dict(net.named_parameters())
    taken = sum(parameters[name].numel() for name in account.taken if name in parameters)
    assert account.share == pytest.approx(taken / sum(p.numel() for p in parameters.values()))
    text = str(account)
    assert f"{len(account.taken)} tensors taken, {account.share:.0%} of the backbone's parameters" in text
    assert "fresh: layer3.0, layer4.0, layer4.1" in text
    assert "1 not used: fc.weight" in text and "1 other shape: layer3.0" in text


def test_half_precision_is_taken_in_the_backbones_own(tensors: Tensors, tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    net = backbone()
    load_weights(net, write(tmp_path / "half.safetensors", half))
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert torch.equal(net.get_parameter("conv1.weight"), half["conv1.weight"].float())


@pytest.mark.parametrize("bands", [1, 2, 4, 6])
def test_the_first_convolution_is_adapted_to_the_bands(tensors: Tensors, tmp_path: Path, bands: int) -> None:
    net = backbone(in_chans=bands)
    account = load_weights(net, write(tmp_path / "rgb.safetensors", tensors))
    assert account.share == 1 and not account.mismatched
    stored, adapted = tensors["conv1.weight"], net.get_parameter("conv1.weight")
    if bands == 1:
        torch.testing.assert_close(adapted[:, 0], stored.sum(1))
    else:
        for band in range(bands):
            torch.testing.assert_close(adapted[:, band], stored[:, band % 3] * 3 / bands)


def test_a_file_of_which_hardly_a_tensor_fits_is_refused(tensors: Tensors, tmp_path: Path) -> None:
    path = write(tmp_path / "other.safetensors", build_student("table1_printed", 5).state_dict())
    net = backbone()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(
        UserError, match=r"other.safetensors: \d+ of its \d+ tensors fit ResNet .*the same architecture"
    ):
        load_weights(net, path)
    assert same(net, before)
    # a single tensor that happens to fit is an accident
    with pytest.raises(UserError, match="1 of its 1 tensors"):
        load_weights(net, write(tmp_path / "stem.safetensors", {"conv1.weight": tensors["conv1.weight"]}))


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("plain_pickle", [True, False])
def test_code_in_a_file_is_refused_without_running_it(tmp_path: Path, plain_pickle: bool) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "trap.pth"
    content = {"conv1.weight": torch.zeros(1), "trap": Trap(str(sprung))}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"trap.pth.*(its|would run its?) code|trap.pth.*code"):
        load_weights(backbone(), str(path))
    assert not sprung.exists()
    with path.open("rb") as file:  # the trap is a real one
        torch.load(file, weights_only=False) if not plain_pickle else pickle.load(file)
    assert sprung.exists()


def test_unreadable_files_are_named(tensors: Tensors, tmp_path: Path) -> None:
    def message(path: Path | str) -> str:
        with pytest.raises(UserError) as caught:
            load_weights(backbone(), str(path))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "No weights at" in message(tmp_path / "absent.pth")
    assert "No weights at" in message(tmp_path)
    for suffix in (".safetensors", ".pth"):
        whole = Path(write(tmp_path / f"whole{suffix}", tensors)).read_bytes()
        for name, content in {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "noise": random.Random(0).randbytes(3000),
        }.items():
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(content)
            assert str(path) in message(path)
    assert "no named tensors" in message(write(tmp_path / "list.pth", [torch.zeros(2)]))
    assert "no named tensors" in message(write(tmp_path / "numbers.pth", {"lr": 0.1}))


#: File of -> loaded into; each has many tensors of the same names, or even of the same shapes.
WRONG = {
    "a bottleneck ResNet": ("resnet50", "resnet18", "tensors of another shape: layer1.0.conv1.weight"),
    "a shallower ResNet": ("resnet101", "resnet50", "it also holds layer3.6, layer3.7"),
    "a wider ResNet": ("wide_resnet50_2", "resnet50", "tensors of another shape: layer1.0.conv1.weight"),
    "a ResNet for a DenseNet": ("resnet18", "densenet121", "Give weights of the same architecture"),
    "a DenseNet for a ResNet": ("densenet121", "resnet18", "Give weights of the same architecture"),
    "a smaller DenseNet": ("densenet121", "densenet169", "tensors of another shape: features.transition3.norm.weight"),
    "a larger DenseNet": ("densenet169", "densenet121", "tensors of another shape: features.transition3.norm.weight"),
    "a wider ViT": ("vit_small_patch16_224", "vit_tiny_patch16_224", "tensors of another shape: cls_token"),
    "a narrower ViT": ("vit_tiny_patch16_224", "vit_small_patch16_224", "tensors of another shape: cls_token"),
    "a deeper Swin": ("swin_small_patch4_window7_224", "swin_tiny_patch4_window7_224", "it also holds layers.2"),
    "a deeper EfficientNet-Lite": ("tf_efficientnet_lite1", "tf_efficientnet_lite0", "it also holds blocks.1"),
    "a wider EfficientNet-Lite": (
        "tf_efficientnet_lite2",
        "tf_efficientnet_lite0",
        "tensors of another shape: blocks.",
    ),
    "another EfficientNet": ("efficientnet_b0", "tf_efficientnet_lite0", "tensors of another shape|it also holds"),
    "a deeper ConvNeXt": ("convnext_femto", "convnext_atto", "tensors of another shape: stem"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_of_another_network_is_refused_and_changes_nothing(case: str, tmp_path: Path) -> None:
    given, wanted, words = WRONG[case]
    path = write(tmp_path / "other.pth", timm.create_model(given, num_classes=7).state_dict())
    net = timm.create_model(wanted, num_classes=0)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError, match=words) as refused:
        load_weights(net, path, model=wanted)
    assert "\n" not in str(refused.value) and "other.pth" in str(refused.value)
    assert same(net, before)


def test_a_deeper_network_may_start_from_a_shallower_one(tmp_path: Path) -> None:
    """The blocks that are missing are the identity: what the network computes is what the file's did."""
    torch.manual_seed(0)
    small = cast(ResNet, timm.create_model("resnet50", num_classes=3))
    path = write(tmp_path / "small.pth", small.state_dict())
    net = timm.create_model("resnet101", num_classes=0)
    account = load_weights(net, path, model="resnet101")
    assert not account.mismatched and {name.split(".")[0] for name in account.fresh} == {"layer3"}
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        found = net.eval()(images)
        torch.testing.assert_close(found, small.eval().forward_head(small.forward_features(images), pre_logits=True))


@pytest.mark.parametrize("bands", [4, 7])
def test_a_first_convolution_of_other_bands_starts_fresh(tensors: Tensors, tmp_path: Path, bands: int) -> None:
    given = tensors | {"conv1.weight": torch.rand(64, 5, 7, 7)}
    net = backbone(in_chans=bands)
    account = load_weights(net, write(tmp_path / "five.pth", given), model="resnet18")
    assert account.fresh == ("conv1.weight",)
    assert account.mismatched == (f"conv1.weight [64, 5, 7, 7] for [64, {bands}, 7, 7]",)
    # another shape of the kernel is another network
    given["conv1.weight"] = torch.rand(64, bands, 3, 3)
    with pytest.raises(UserError, match=r"another shape: conv1\.weight"):
        load_weights(net, write(tmp_path / "five.pth", given), model="resnet18")


@pytest.mark.parametrize(
    ("name", "there", "here"),
    [("vit_tiny_patch16_224", 224, 96), ("vit_tiny_patch16_224", 96, 128), ("swin_tiny_patch4_window7_224", 224, 128)],
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_position_tables_of_another_image_size_are_carried_over_as_timm_does(
    name: str, there: int, here: int, prefix: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    given = timm.create_model(name, img_size=there, num_classes=3).state_dict()
    path = write(tmp_path / "sized.pth", {f"{prefix}{key}": tensor for key, tensor in given.items()})
    net = timm.create_model(name, img_size=here, num_classes=0)
    account = load_weights(net, path, model=name)
    assert account.share == 1 and not account.mismatched and not account.fresh
    convert = sys.modules[timm.model_entrypoint(name).__module__].checkpoint_filter_fn
    expected = convert(dict(given), net)
    assert any(expected[key].shape != given[key].shape for key in given), "there is something to carry over"
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_names_of_an_original_release_are_converted_by_timm(tmp_path: Path) -> None:
    """Microsoft's Swin keeps `downsample` at the end of a stage, and buffers that timm makes itself."""
    torch.manual_seed(0)
    name = "swin_tiny_patch4_window7_224"
    theirs = timm.create_model(name, num_classes=3).state_dict()
    original = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key): tensor
        for key, tensor in theirs.items()
    }
    original["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    original["layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(49, 49)
    net = timm.create_model(name, num_classes=0)
    account = load_weights(net, write(tmp_path / "swin.pth", {"model": original}), model=name)
    assert account.share == 1 and not account.fresh
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in net.state_dict().items())
