"""The paper's teacher, and teachers started from real weights."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.models.create import build_network, build_teacher, build_with_head, move_stride
from scenedistill.models.files import NetCard, save_net
from scenedistill.models.network import SceneNet


def test_resnet101_with_dual_attention_has_its_stages_and_finite_gradients() -> None:
    net = build_teacher(classes=30, image_size=64)
    assert net.dims == (30, 2048, (256, 512, 1024, 2048))
    assert [len(cast(nn.Sequential, stage.stage)) for stage in net.stages] == [3, 4, 23, 3]
    output = net(torch.rand(2, 3, 64, 64))
    assert [stage.energy.shape[1] for stage in output.attention] == [16, 8, 4, 2]
    output.logits.sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in net.parameters())


def test_a_student_architecture_can_be_the_teacher() -> None:
    net = build_teacher("table1_printed", 7, image_size=32)
    assert net.dims.embedding == 64 and net.dims.classes == 7


def test_an_unknown_teacher_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"'resnet1O1'.*Did you mean.*resnet101"):
        build_teacher("resnet1O1", 5)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Weights of torchvision's ResNet-18, at random."""
    torch.manual_seed(0)
    tensors = torchvision.models.resnet18().state_dict()
    save_file(tensors, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def feature(net: SceneNet, images: Tensor) -> Tensor:
    embedding: Tensor = net.eval()(images).embedding
    return embedding


def test_a_grey_image_means_the_same_to_weights_adapted_to_one_band(small: Path) -> None:
    rgb = build_teacher("resnet18", 5, image_size=64, weights=str(small))
    grey, account = build_network("resnet18", 5, bands=1, image_size=64, weights=str(small))
    assert account is not None and account.share == 1 and not account.mismatched
    for net in (rgb, grey):
        net.mean, net.std = torch.zeros(()), torch.ones(())
    images = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(feature(grey, images), feature(rgb, images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_v1_blocks_are_built_on_demand_or_when_the_file_says_so(small: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = torchvision.models.resnet50().state_dict()
    told, untold = tmp_path / "told.safetensors", tmp_path / "untold.safetensors"
    save_file(tensors, told, metadata={"note": "v1 blocks: stride in the first 1x1"})
    save_file(tensors, untold)
    for weights, asked, moved in ((told, False, True), (untold, True, True), (untold, False, False)):
        net, account = build_network("resnet50", 5, image_size=64, weights=str(weights))
        if asked:
            move_stride(net)
        assert account is not None and account.stride_in_first_convolution == (weights == told)
        for name in ("layer2", "layer3", "layer4"):
            convolutions = (net.backbone.get_submodule(f"{name}.stage.0.{part}") for part in ("conv1", "conv2"))
            strides = [cast(nn.Conv2d, convolution).stride for convolution in convolutions]
            assert strides == ([(2, 2), (1, 1)] if moved else [(1, 1), (2, 2)])


def test_a_file_of_ours_with_attention_starts_a_network_but_is_no_teacher_as_it_is(tmp_path: Path) -> None:
    name, file = "mobilenetv2_035", tmp_path / "weights.safetensors"  # whose stages are named by numbers, as its blocks
    ours, _ = build_network(name, 5, image_size=32)
    save_net(ours, NetCard(name, tuple("abcde"), bands=3, image_size=32), file)
    net, account = build_network(name, 7, image_size=32, weights=str(file))
    assert account is not None and account.share == 1
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(feature(net, images), feature(ours, images))
    with pytest.raises(UserError, match=r"it holds blocks\.[\d.]+attention.*--teacher\.checkpoint"):
        build_with_head(name, str(file), image_size=32)


def test_a_network_without_its_running_statistics_is_no_teacher_as_it_is(tmp_path: Path) -> None:
    torch.save(dict(timm.create_model("test_resnet", num_classes=5).named_parameters()), tmp_path / "parameters.pth")
    with pytest.raises(UserError, match=r"not the whole of 'test_resnet'.*lacks conv1\.1\.running_mean"):
        build_with_head("test_resnet", str(tmp_path / "parameters.pth"), image_size=32)


@pytest.mark.shared_data
def test_densenet169_takes_its_file_completely(weights_folder: Path) -> None:
    file = weights_folder / "densenet169_imagenet_backbone.safetensors"
    net, account = build_network("densenet169", 30, image_size=64, weights=str(file))
    assert account is not None
    assert account.share == 1 and not account.fresh and not account.unused and not account.mismatched
    with torch.no_grad():
        expected = torchvision.models.densenet169()
        expected.load_state_dict({k: v.float() for k, v in load_file(file).items()}, strict=False)
        expected.classifier = nn.Identity()
        images = torch.rand(2, 3, 96, 96)
        torch.testing.assert_close(
            feature(net, images), expected.eval()((images - net.mean) / net.std), rtol=1e-3, atol=1e-4
        )


@pytest.mark.shared_data
def test_resnet101_started_from_a_resnet50_computes_its_features(weights_folder: Path) -> None:
    """The seventeen blocks that the file lacks in layer3 start as the identity, and the strides sit as in the file."""
    file = weights_folder / "resnet50_imagenet_stages1to3.safetensors"
    net, account = build_network("resnet101", 30, image_size=64, weights=str(file))
    with safe_open(file, "pt") as opened:
        assert account is not None and len(account.taken) == len(list(opened.keys()))
    assert account.stride_in_first_convolution and not account.unused and not account.mismatched
    assert {name.split(".")[0] for name in account.fresh} == {"layer3", "layer4"}
    assert {int(name.split(".")[1]) for name in account.fresh if name.startswith("layer3")} == set(range(6, 23))

    reference = torchvision.models.resnet50()
    reference.load_state_dict({k: v.float() for k, v in load_file(file).items()}, strict=False)
    for layer in (reference.layer2, reference.layer3):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1.001e-5
    reference.eval()
    net.eval()
    found: list[Tensor] = []
    net.backbone.get_submodule("layer3").register_forward_hook(lambda _, __, output: found.append(output))
    with torch.no_grad():
        images = torch.rand(2, 3, 96, 96)
        net(images)
        x = (images - net.mean) / net.std
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        x = reference.layer3(reference.layer2(reference.layer1(x)))
    assert x.std() > 0.01
    torch.testing.assert_close(found[0], x, rtol=1e-3, atol=1e-3 * float(x.std()))
