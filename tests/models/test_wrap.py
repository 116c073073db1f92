"""Networks of any origin as students and teachers: what they compute, their stages, head and normalisation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from scenedistill.core.errors import UserError
from scenedistill.models.create import build_network, build_student, build_teacher
from scenedistill.models.files import NetCard, load_net, save_net
from scenedistill.models.freeze import freeze
from scenedistill.models.network import SceneNet

LAYERS = ["layer1", "layer2", "layer3", "layer4"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def plain_cnn() -> nn.Module:
    body = [nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def small_vit() -> nn.Module:
    vit = torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=24, num_classes=5
    )
    nn.init.normal_(vit.heads.head.weight)  # torchvision's start at zero
    return cast(nn.Module, vit)


def small_swin() -> nn.Module:
    swin: nn.Module = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=5
    )
    return swin


BUILDERS: dict[str, tuple[Callable[[], nn.Module], list[str] | None, list[int]]] = {
    # stages by name, and the sides of their maps for 64 pixels
    "torchvision's ResNet": (lambda: torchvision.models.resnet18(num_classes=5), LAYERS, [16, 8, 4, 2]),
    "a head behind a dropout": (
        lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
        ["features.1", "features.3", "features.12"],
        [16, 8, 2],
    ),
    "tokens behind a class token": (
        small_vit,
        ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"],
        [4, 4],
    ),
    "channels last": (small_swin, ["features.1", "features.3"], [16, 8]),
    "a sequence of your own": (plain_cnn, ["1", "3"], [32, 16]),
    "timm's, which describes its stages": (lambda: timm.create_model("resnet10t", num_classes=5), None, [16, 8, 4, 2]),
    "nothing but logits": (plain_cnn, [], []),
}


@pytest.mark.parametrize("kind", list(BUILDERS))
def test_a_wrapped_network_computes_what_it_did_and_shows_its_stages(kind: str) -> None:
    build, stages, sides = BUILDERS[kind]
    torch.manual_seed(0)
    original = build().eval()
    module, seen = copy.deepcopy(original), {}
    names = stages if stages is not None else LAYERS
    for name in names:
        original.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    net = SceneNet.wrap(module, stages, image_size=64)
    images = torch.randn(3, 3, 64, 64)  # normalised
    with torch.no_grad():
        expected, output = original(images), net(images, features=True)
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.head(output.embedding), output.logits)
    assert not net.training and net.dims.classes == 5 and len(output.attention) == len(sides)
    for attention, feature, name, side in zip(output.attention, output.features, names, sides, strict=True):
        theirs = seen[name]
        if theirs.ndim == 3:  # tokens: the class token is no position
            theirs = theirs[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        elif kind == "channels last":
            theirs = theirs.permute(0, 3, 1, 2)
        torch.testing.assert_close(feature, theirs)
        assert theirs.shape[2:] == (side, side)
        torch.testing.assert_close(attention.energy, theirs.square().mean(1))
        torch.testing.assert_close(attention.descriptor, theirs.mean((2, 3)))
    assert net.dims.stages == tuple(feature.shape[1] for feature in output.features)


@pytest.mark.parametrize("dual_attention", [False, True])
def test_images_are_normalised_once_inside_or_outside(dual_attention: bool) -> None:
    torch.manual_seed(0)
    original = torchvision.models.resnet18(num_classes=5).eval()
    images = torch.rand(2, 3, 64, 64)
    normal = torchvision.transforms.Normalize(MEAN, STD)(images)
    inside, outside = (
        SceneNet.wrap(copy.deepcopy(original), LAYERS, dual_attention=dual_attention, normalisation=normalisation)
        for normalisation in ((MEAN, STD), None)
    )
    for found in (inside(images), outside(normal)):
        torch.testing.assert_close(found.logits, original(normal), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"normalises images itself and expects values in 0\.\.1; these go from -"):
        SceneNet.wrap(copy.deepcopy(original), LAYERS, normalisation=(MEAN, STD))(normal)


@pytest.mark.parametrize("build", [build_student, build_teacher])
def test_networks_by_name_do_not_normalise_where_told(build: Callable[..., SceneNet], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build("table1_printed", 5, image_size=32, normalise=False).eval()
    normal = torch.randn(2, 3, 32, 32)
    expected = net.head(net.backbone(normal))
    torch.testing.assert_close(net(normal).logits, expected)
    save_net(net, NetCard("table1_printed", tuple("abcde"), 3, 32), tmp_path / "net.safetensors")
    again, _ = load_net(tmp_path / "net.safetensors")
    torch.testing.assert_close(again(normal).logits, expected, msg="the file says so too")


@pytest.mark.parametrize(
    ("images", "fits"),
    [
        (torch.rand(2, 3, 32, 32), True),
        (1.1 * torch.rand(2, 3, 32, 32) - 0.05, True),  # as bicubic interpolation overshoots
        (torchvision.transforms.Normalize(MEAN, STD)(torch.rand(2, 3, 32, 32)), False),
        (255 * torch.rand(2, 3, 32, 32), False),
    ],
    ids=["0..1", "overshoot", "normalised", "bytes"],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_network_that_normalises_refuses_what_is_not_in_0_to_1(images: Tensor, fits: bool, frozen: bool) -> None:
    net = build_student("table1_printed", 5, image_size=32).eval()
    ask: Any = freeze(net, precision="fp32", device=torch.device("cpu"), image_size=32) if frozen else net
    if fits:
        assert ask(images).logits.isfinite().all()
    else:
        with pytest.raises(UserError, match="Leave normalising out of your transforms"):
            ask(images)


def test_a_head_may_be_named_or_given() -> None:
    torch.manual_seed(0)
    named = SceneNet.wrap(torchvision.models.resnet18(num_classes=5), LAYERS, head="fc")
    assert named.dims == (5, 512, (64, 128, 256, 512))
    headless = torchvision.models.resnet18()
    headless.fc = nn.Identity()
    head = nn.Linear(512, 7)
    given = SceneNet.wrap(headless, LAYERS, head=head)
    assert given.head is head and given.dims.classes == 7
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(given.eval()(images).logits, head(headless(images)))


class Registers(nn.Module):
    """Three tokens of its own before those of the image."""

    num_prefix_tokens = 3

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block, self.fc = nn.Conv2d(3, 6, 16, 16), nn.LayerNorm(6), nn.Linear(6, 5)
        self.own = nn.Parameter(torch.randn(1, 3, 6))

    def tokens(self, images: Tensor) -> Tensor:
        found: Tensor = self.block(
            torch.cat([self.own.expand(len(images), -1, -1), self.patches(images).flatten(2).mT], 1)
        )
        return found

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.tokens(images).mean(1))
        return logits


def test_a_transformer_states_its_prefix_tokens_as_those_of_timm_do() -> None:
    torch.manual_seed(0)
    module, images = Registers().eval(), torch.randn(2, 3, 64, 64)
    expected = module.tokens(images)[:, 3:].square().mean(2).reshape(2, 4, 4)
    torch.testing.assert_close(SceneNet.wrap(module, ["block"], image_size=64)(images).attention[0].energy, expected)
    other = Registers()
    other.num_prefix_tokens = 2
    with pytest.raises(UserError, match=r"'block' of Registers gives \[2, 19, 6\]; expected .* num_prefix_tokens"):
        SceneNet.wrap(other, ["block"], image_size=64)


class Softmax(nn.Module):
    """A classifier that ends in something else than its linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        shares: Tensor = self.fc(self.body(images)).softmax(1)
        return shares


class Twice(nn.Module):
    """Calls one of its modules twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(self.conv(images)).mean((2, 3)))
        return logits


class Dictionary(nn.Module):
    """As networks of other libraries answer."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": images.mean((2, 3))}


def resnet() -> nn.Module:
    network: nn.Module = torchvision.models.resnet18(num_classes=5)
    return network


@pytest.mark.parametrize(
    ("build", "stages", "settings", "reason"),
    [
        (resnet, None, {}, r"Name the submodules of ResNet .*'layer1'.*stages=\[\] for none"),
        (resnet, ["layer1", "layer9"], {}, r"has no submodule 'layer9'.*at its top are conv1, "),
        (resnet, ["layer2", "layer1"], {}, "not in order; name them from the finest"),
        (resnet, ["layer1", "layer1.0"], {}, r"name 'layer1\.0' twice, or inside of 'layer1'"),
        (resnet, ["layer1", "fc"], {}, r"'fc' of ResNet gives \[2, 5\]; expected a feature map"),
        (resnet, LAYERS, {"head": "classifier"}, "no linear layer 'classifier' for a head; it has fc"),
        (resnet, LAYERS, {"head": nn.Linear(512, 5)}, "takes 512 values and ResNet gives 5"),
        (resnet, LAYERS, {"normalisation": (MEAN, STD[:2])}, "has 3 means and 2 stds"),
        (resnet, LAYERS, {"bands": 4}, "does not take images of 96 x 96 pixels"),
        (
            Softmax,
            [],
            {},
            r"No linear layer gives the output of Softmax.*there are fc\).*head=nn\.Linear\(3, classes\)",
        ),
        (Softmax, [], {"head": "fc"}, "'fc' is not the last thing that Softmax does"),
        (Twice, ["conv"], {}, "calls its submodule 'conv' 2 times"),
        (Dictionary, [], {}, r"gives a dict; expected one tensor \[B, classes\]"),
        (small_vit, [], {}, "does not take images of 96 x 96 pixels"),
    ],
)
def test_an_unsuitable_network_is_refused_and_left_unchanged(
    build: Callable[[], nn.Module], stages: list[str] | None, settings: dict[str, Any], reason: str
) -> None:
    module = build()
    before = [*module.state_dict()]
    with pytest.raises(UserError, match=reason) as refused:
        SceneNet.wrap(module, stages, **settings)
    assert "\n" not in str(refused.value)
    assert [*module.state_dict()] == before


def test_a_wrapped_student_trains_and_keeps_its_parameter_names() -> None:
    torch.manual_seed(0)
    module = torchvision.models.resnet18(num_classes=5)
    names, fresh = [*module.state_dict()], copy.deepcopy(module.state_dict())
    net = SceneNet.wrap(module, LAYERS)
    assert net.training
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    images = torch.randn(4, 3, 64, 64)
    torch.autograd.backward(nn.functional.cross_entropy(net(images).logits, torch.tensor([0, 1, 2, 3])))
    optimizer.step()
    back = net.unwrapped()
    assert [*back.state_dict()] == names
    assert all(not torch.equal(back.get_parameter(name), fresh[name]) for name in ("conv1.weight", "fc.weight"))
    torch.testing.assert_close(back.eval()(images), net.eval()(images).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="has dual attention"):
        SceneNet.wrap(resnet(), LAYERS, dual_attention=True).unwrapped()


def test_wrapping_leaves_modes_weights_and_running_statistics_alone() -> None:
    module = resnet()
    module.get_submodule("layer1").eval()  # as where a part is frozen
    before = copy.deepcopy(module.state_dict())
    net = SceneNet.wrap(module, LAYERS)
    assert net.training and module.get_submodule("layer2").training
    assert not module.get_submodule("layer1.stage.0.bn1").training
    for name, tensor in net.unwrapped().state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_network_of_nothing_but_a_head_is_wrapped() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    images = torch.randn(2, 3, 8, 8)
    expected = module(images)
    torch.testing.assert_close(SceneNet.wrap(module, [], image_size=8)(images).logits, expected)


def test_new_modules_have_the_type_of_the_wrapped_network() -> None:
    module = plain_cnn().double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = module(images)
    net = SceneNet.wrap(module, ["1", "3"], dual_attention=True, image_size=32)
    torch.testing.assert_close(net(images).logits, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dual_attention", [False, True])
def test_a_wrapped_network_stays_on_its_device(dual_attention: bool) -> None:
    module = torchvision.models.resnet18()
    module.fc = nn.Identity()
    net = SceneNet.wrap(module.cuda(), LAYERS, head=nn.Linear(512, 7), dual_attention=dual_attention)
    assert {tensor.device.type for tensor in (*net.parameters(), *net.buffers())} == {"cuda"}
    assert net(torch.rand(2, 3, 64, 64, device="cuda")).logits.shape == (2, 7)


def test_a_wrapped_teacher_is_frozen_like_any_other() -> None:
    torch.manual_seed(0)
    net = SceneNet.wrap(resnet(), LAYERS, normalisation=(MEAN, STD)).eval()
    frozen = freeze(net, precision="fp32", device=torch.device("cpu"), image_size=64)
    assert any("20 of 20 folded" in line for line in frozen.report), frozen.report
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(frozen(images).logits, net(images).logits, rtol=1e-3, atol=1e-4)


def test_students_and_teachers_by_name_have_the_same_structure() -> None:
    for build in (build_student, build_teacher):
        net = build("table1_printed", 5, image_size=32, bands=4, dual_attention=False)
        expected, _ = build_network("table1_printed", 5, image_size=32, bands=4, dual_attention=False)
        assert net.dims == expected.dims and [*net.state_dict()] == [*expected.state_dict()]


@pytest.mark.parametrize("name", ["hrnet_w18_small", "coat_tiny"])
def test_a_module_that_cannot_be_wrapped_is_left_unchanged(name: str) -> None:
    module = timm.create_model(name, num_classes=4)
    before = {name: type(part) for name, part in module.named_modules()}
    with pytest.raises(UserError, match="Choose another backbone"):
        SceneNet.wrap(module, image_size=224)
    assert {name: type(part) for name, part in module.named_modules()} == before
