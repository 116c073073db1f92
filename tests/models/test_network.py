"""Any timm backbone as a scene network."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from scenedistill.core.errors import UserError
from scenedistill.core.precision import autocast
from scenedistill.models.backbones import band_statistics, timm_backbone
from scenedistill.models.create import build_student, build_teacher
from scenedistill.models.freeze import freeze
from scenedistill.models.network import SceneNet

NONE = (0.0,) * 3, (1.0,) * 3  # normalises nothing
PYRAMID = [16, 8, 4, 2]  # maps of a 64-pixel image at strides 4, 8, 16, 32
BACKBONES = {
    # sides of the stage maps
    "resnet18": PYRAMID,
    "mobilenetv3_small_100": PYRAMID,  # batch norms that hold their activation
    "efficientnet_b0": PYRAMID,
    "densenet121": PYRAMID,
    "convnext_atto": PYRAMID,
    "nf_regnet_b0": PYRAMID,  # in-place activations, no batch norm
    "swin_tiny_patch4_window7_224": PYRAMID,  # [B, H, W, C]
    "vit_tiny_patch16_224": [4, 4, 4, 4],  # tokens behind a class token
    "cait_xxs24_224": [4, 4, 4, 4],  # a class token only after the stages
    "mixer_s32_224": [2, 2, 2, 2],  # tokens alone
    "levit_128s": [4, 2],  # two of the four strides
}


@pytest.mark.parametrize("name", list(BACKBONES))
def test_backbones_of_every_family_train_and_report_their_stages(name: str) -> None:
    torch.manual_seed(0)
    net = build_student(name, 5, image_size=64)
    images = torch.rand(2, 3, 64, 64)
    net.train()
    output = net(images)
    assert output.logits.shape == (2, 5) and output.embedding.shape == (2, net.dims.embedding)
    assert [stage.energy.shape[1] for stage in output.attention] == BACKBONES[name]
    assert tuple(stage.descriptor.shape[1] for stage in output.attention) == net.dims.stages
    for stage in output.attention:
        assert stage.energy.shape == stage.spatial.squeeze(1).shape and stage.channel.shape == stage.descriptor.shape
    (
        output.logits.sum() + sum(s.energy.mean() + s.spatial.mean() + s.channel.mean() for s in output.attention)
    ).backward()
    gradients = {key: parameter.grad for key, parameter in net.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    gates = {key: gradient for key, gradient in gradients.items() if key.endswith((".expand.weight", ".locate.weight"))}
    assert all(gradient is not None and gradient.any() for gradient in gates.values())

    net.eval()
    with torch.no_grad():
        expected = net(images).logits
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(other(images).logits, expected)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_attention_put_into_a_backbone_changes_nothing_at_first(name: str) -> None:
    torch.manual_seed(0)
    plain = timm_backbone(name, image_size=64).eval()
    images = torch.rand(2, 3, 64, 64)
    expected = plain(images)
    for dual_attention in (True, False):
        net = SceneNet(copy.deepcopy(plain), 5, normalisation=NONE, dual_attention=dual_attention, image_size=64).eval()
        assert torch.equal(net(images).embedding, expected)


def test_the_reported_attention_is_that_of_the_stage() -> None:
    net = build_student("resnet18", 5, image_size=64).eval()
    features = {}
    for stage, name in zip(net.stages, ("layer1", "layer2", "layer3", "layer4"), strict=True):
        assert net.backbone.get_submodule(name) is stage
        stage.register_forward_hook(lambda _, __, feature, name=name: features.update({name: feature}))
    output = net(torch.rand(2, 3, 64, 64))
    for seen, feature in zip(output.attention, features.values(), strict=True):
        torch.testing.assert_close(seen.energy, feature.square().mean(1))
        torch.testing.assert_close(seen.descriptor, feature.mean((2, 3)))
    torch.testing.assert_close(output.embedding, features["layer4"].mean((2, 3)))
    torch.testing.assert_close(output.logits, net.head(output.embedding))


def test_the_features_are_what_comes_out_of_the_gates() -> None:
    net = build_student("resnet18", 5, image_size=64).eval()
    given: list[torch.Tensor] = []
    for stage in net.stages:
        torch.nn.init.normal_(stage.attention.get_parameter("expand.weight"))
        stage.register_forward_hook(lambda _, __, feature: given.append(feature))
    output = net(torch.rand(2, 3, 64, 64), attention=False, features=True)
    assert output.attention == () and len(output.features) == 4
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(output.features, given, strict=True))
    assert net(torch.rand(2, 3, 64, 64)).features == ()


def test_the_outputs_are_the_same_without_reported_attention() -> None:
    net = build_student("resnet18", 5, image_size=64).eval()
    images = torch.rand(2, 3, 64, 64)
    silent = net(images, attention=False)
    assert silent.attention == ()
    assert torch.equal(silent.logits, net(images).logits)


@pytest.mark.parametrize("name", ["table1_printed", "resnet10t", "mobilenetv3_small_100", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("frozen", [False, True])
def test_logits_and_embedding_are_in_float32_whatever_the_autocast(name: str, frozen: bool) -> None:
    torch.manual_seed(0)
    net = build_student(name, 30, image_size=64).eval()
    net.head.bias.data += 8  # where 16 bits tell few numbers apart
    images, cpu = torch.rand(64, 3, 64, 64), torch.device("cpu")
    ask = freeze(net, precision="bf16", device=cpu, image_size=64) if frozen else net
    with torch.no_grad(), autocast(cpu, "bf16"):
        output = ask(images)
    assert output.logits.dtype == output.embedding.dtype == torch.float32
    assert torch.equal(output.logits, net.head(output.embedding)), "the head computes in float32"
    assert (output.logits != output.logits.bfloat16()).float().mean() > 0.9
    if name in ("table1_printed", "resnet10t"):  # others have a layer after their pooling
        assert (output.embedding != output.embedding.bfloat16()).float().mean() > 0.1, "so does the pooling"
    best, second = output.logits.topk(2).values.unbind(1)
    assert (best > second).all()
    rounded = output.logits.bfloat16().topk(2).values
    assert (rounded[:, 0] == rounded[:, 1]).any(), "there were ties, had the head been in 16 bits"


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_images_are_normalised_with_the_backbones_own_statistics(bands: int) -> None:
    net = build_student("vit_tiny_patch16_224", 5, bands=bands, image_size=32, dual_attention=False).eval()
    images = torch.rand(2, bands, 32, 32)
    torch.testing.assert_close(net(images).embedding, net.backbone((images - 0.5) / 0.5))  # this ViT's mean and std
    assert not {"mean", "std"} & set(net.state_dict())  # they come with the backbone, not with the weights


def test_statistics_of_bands_that_a_backbone_does_not_state() -> None:
    resnet = timm.create_model("resnet18", pretrained=False, num_classes=0)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert band_statistics(resnet, 3) == (mean, std)
    means, deviations = band_statistics(resnet, 1)
    assert means == pytest.approx((sum(mean) / 3,)) and deviations == pytest.approx((sum(std) / 3,))
    means, deviations = band_statistics(resnet, 5)
    assert means == pytest.approx((*mean, sum(mean) / 3, sum(mean) / 3))
    assert deviations == pytest.approx((*std, sum(std) / 3, sum(std) / 3))
    assert band_statistics(nn.Identity(), 3) == (mean, std)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hrnet_w18_small", "no single module for its stage"),
        ("inception_v3", "does not take images of 64 x 64 pixels"),
        ("resnet18.no_such_tag", "timm cannot build 'resnet18.no_such_tag'"),
    ],
)
def test_an_unsuitable_backbone_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        build_student(name, 5, image_size=64)


def test_a_backbone_without_stages_is_refused() -> None:
    class Short(nn.Sequential):
        feature_info = ({"module": "0", "num_chs": 3, "reduction": 4},)

    with pytest.raises(UserError, match="describes 1 stage,"):
        SceneNet(Short(nn.Identity()), 5, normalisation=NONE)

    class Unpooled(nn.Sequential):
        feature_info = tuple({"module": str(i), "num_chs": 3, "reduction": 4 * 2**i} for i in range(2))

    with pytest.raises(UserError, match="not a pooled embedding"):
        SceneNet(Unpooled(nn.Identity(), nn.Identity()), 5, normalisation=NONE)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_unavailable_hub_weights_are_explained(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=rf"'{name}' could not be downloaded from timm's hub.*local .safetensors"):
        build_teacher(name, 5, weights="timm")
