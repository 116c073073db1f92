"""The frozen teacher gives what the plain one gives, in plain tensors, and leaves the plain one alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# only here does torch tell how many graphs it has compiled, and lets its compiler be taken away
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch.utils._pytree import tree_leaves

from scenedistill.core.precision import Precision, autocast, resolve_precision
from scenedistill.models.create import build_network, move_stride
from scenedistill.models.files import weights_hash
from scenedistill.models.freeze import MAX_FOLDING_CHANGE, MAX_HALF_TO_AUTOCAST_ERROR, FrozenTeacher, freeze
from scenedistill.models.network import SceneNet
from scenedistill.models.output import SceneOutput

CPU = torch.device("cpu")
SIZE = 64
BACKBONES = {
    # what the report says of merged branches, of folded batch norms
    "resnet10t": ("ResNet has none", "14 of 14 folded"),
    "table1_resnet": ("Table1Backbone has none", "12 of 12 folded"),
    "densenet121": ("DenseNet has none", "59 of 121 folded; 62 stay"),  # batch norm before the convolution
    "mobilenetv2_035": ("EfficientNet has none", "52 of 52 folded"),  # batch norms that hold their activation
    "tinynet_e": ("EfficientNet has none", "31 of 31 folded"),
    "tf_efficientnet_lite0": ("EfficientNet has none", "49 of 49 folded"),  # convolutions that pad by themselves
    "repvgg_a0": ("271 modules fewer", "there are none"),
    "levit_128s": ("100 modules fewer", "there are none"),  # batch norms behind linear layers on tokens
    "fastvit_t8": ("271 modules fewer", "10 of 10 folded"),
    "convnext_atto": ("ConvNeXt has none", "there are none"),
    "vit_tiny_patch16_224": ("VisionTransformer has none", "there are none"),
    "swin_tiny_patch4_window7_224": ("SwinTransformer has none", "there are none"),  # [B, H, W, C]
}


def lived_in(net: SceneNet) -> SceneNet:
    """With batch-norm statistics, gates and scales as a training might leave them."""
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(8, net.mean.numel(), SIZE, SIZE) * torch.rand(1, net.mean.numel(), 1, 1))
        for parameter in net.parameters():
            if parameter.ndim <= 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.ndim <= 1 else 0.05)
    return net.eval()


def teacher(name: str, *, v1_blocks: bool = False, **settings: Any) -> SceneNet:
    torch.manual_seed(0)
    net, _ = build_network(name, 10, image_size=SIZE, **settings)
    if v1_blocks:
        move_stride(net)
    return lived_in(net)


def error(output: SceneOutput, expected: SceneOutput) -> float:
    """Largest norm of a difference over the norm of what is expected, over the tensors of an output."""
    pairs = list(zip(tree_leaves(output), tree_leaves(expected), strict=True))
    assert all(ours.shape == theirs.shape for ours, theirs in pairs)
    return max(float((ours.float() - theirs).norm() / theirs.norm()) for ours, theirs in pairs)


def without_attention(output: SceneOutput) -> SceneOutput:
    return output._replace(attention=())


@pytest.mark.parametrize("name", list(BACKBONES))
def test_a_frozen_teacher_gives_the_plain_teachers_outputs(name: str) -> None:
    net = teacher(name)
    images = torch.rand(16, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = net(images)
        with autocast(CPU, "bf16"):
            usual = net(images)
    merged, folded = BACKBONES[name]

    exact = freeze(net, precision="fp32", device=CPU, image_size=SIZE)
    assert exact.dims == net.dims and len(exact.report) == 3
    assert merged in exact.report[0] and folded in exact.report[1] and "as they are" in exact.report[2]
    assert error(exact(images), expected) < MAX_FOLDING_CHANGE

    half = freeze(net, precision="bf16", device=CPU, image_size=SIZE)
    assert half.report[:2] == exact.report[:2] and "bf16: weights of" in half.report[2]
    output = half(images)
    # freeze checks MAX_HALF_TO_AUTOCAST_ERROR on other images
    allowed = 1.25 * MAX_HALF_TO_AUTOCAST_ERROR * error(without_attention(usual), without_attention(expected))
    assert 0 < error(without_attention(output), without_attention(expected)) < allowed < 0.15
    assert error(output, expected) < 2 * error(usual, expected)
    assert (output.logits.argmax(1) == expected.logits.argmax(1)).float().mean() >= 0.8


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {"dual_attention": False}),
        ("vit_tiny_patch16_224", {"dual_attention": False}),
        ("resnet26", {"v1_blocks": True}),
    ],
)
def test_teachers_of_other_architectures_and_settings_can_be_frozen(name: str, settings: dict[str, bool]) -> None:
    net = teacher(name, **settings)
    images = torch.rand(4, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = net(images)
    assert error(freeze(net, precision="fp32", device=CPU, image_size=SIZE)(images), expected) < MAX_FOLDING_CHANGE
    assert error(freeze(net, precision="bf16", device=CPU, image_size=SIZE)(images), expected) < 0.05


@pytest.mark.parametrize("name", ["resnet10t", "repvgg_a0"])
def test_the_teacher_and_the_random_state_are_unchanged(name: str) -> None:
    net = teacher(name).train()
    modules, before, state = list(net.modules()), weights_hash(net), torch.get_rng_state()
    freeze(net, precision="bf16", device=CPU, image_size=SIZE)(torch.zeros(2, 3, SIZE, SIZE))
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_hash(net) == before and list(net.modules()) == modules
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert {tensor.dtype for tensor in net.parameters()} == {torch.float32}


def test_outputs_can_be_saved_for_the_backward_pass() -> None:
    frozen = freeze(teacher("resnet10t"), precision="bf16", device=CPU, image_size=SIZE)
    student = torch.tensor(2.0, requires_grad=True)
    output = frozen(torch.rand(2, 3, SIZE, SIZE))
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in tree_leaves(output))
    total = sum((student * tensor).float().sum() for tensor in tree_leaves(output))
    assert isinstance(total, Tensor)
    torch.autograd.backward(total)
    assert student.grad is not None and student.grad.isfinite()


def test_a_students_autocast_does_not_change_the_outputs() -> None:
    frozen = freeze(teacher("resnet10t"), precision="fp32", device=CPU, image_size=SIZE)
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = frozen(images)
    assert torch.equal(inside.logits, frozen(images).logits)


def test_a_teacher_can_be_frozen_inside_a_students_autocast() -> None:
    net = teacher("resnet10t")
    usual = freeze(net, precision="bf16", device=CPU, image_size=SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = freeze(net, precision="bf16", device=CPU, image_size=SIZE)
    assert "14 of 14 folded" in usual.report[1] and inside.report == usual.report


class Toy(nn.Module):
    """A backbone of two stages, of which the second is up to a test."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = self.Stage()
        self.feature_info = [
            {"module": "first", "num_chs": 8, "reduction": 4},
            {"module": "second", "num_chs": 8, "reduction": 8},
        ]

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
            self.bn = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            normed: Tensor = self.bn(self.conv(x))
            return normed

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.second(self.first(images)).mean((2, 3))
        return pooled


def toy(stage: type[nn.Module]) -> SceneNet:
    torch.manual_seed(0)
    backbone = type("Toy", (Toy,), {"Stage": stage})()
    return lived_in(SceneNet(backbone, 5, normalisation=((0.5,) * 3, (0.2,) * 3)))


def frozen_alike(
    net: SceneNet, precision: Precision = "fp32", tolerance: float = MAX_FOLDING_CHANGE
) -> tuple[str, ...]:
    """The report of a frozen network, once it has given what the plain one gives."""
    images = torch.rand(8, 3, SIZE, SIZE)
    frozen = freeze(net, precision=precision, device=CPU, image_size=SIZE)
    with torch.no_grad():
        assert error(frozen(images), net(images)) < tolerance
    return frozen.report


def test_a_norm_stays_where_something_else_reads_its_convolution() -> None:
    class Residual(Toy.Stage):
        def forward(self, x: Tensor) -> Tensor:
            made = self.conv(x)
            return self.bn(made) + made  # type: ignore[no-any-return]

    class Between(Toy.Stage):
        def forward(self, x: Tensor) -> Tensor:
            made = self.conv(x)
            nn.functional.relu_(made)  # the tensor is the same, its values are not
            return self.bn(made)  # type: ignore[no-any-return]

    class Twice(Toy.Stage):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) + self.conv(x)  # type: ignore[no-any-return]

    assert "2 of 2 folded" in frozen_alike(toy(Toy.Stage))[1]
    for stage in (Residual, Between, Twice):
        assert "1 of 2 folded; 1 stay" in frozen_alike(toy(stage))[1]


def test_linear_layers_take_batch_norms_too() -> None:
    class Gated(Toy.Stage):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Sigmoid())
            self.rows = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(8))  # over [B, 8, 4]: not the layer's outputs

        def forward(self, x: Tensor) -> Tensor:
            pooled = self.rows(nn.functional.adaptive_avg_pool2d(x, 2).flatten(2)).mean(2)
            return self.bn(self.conv(x)) * self.gate(pooled)[:, :, None, None]  # type: ignore[no-any-return]

    assert "3 of 4 folded; 1 stay" in frozen_alike(toy(Gated))[1]


def test_a_step_that_would_change_the_outputs_is_left_out() -> None:
    class ReadsWeight(Toy.Stage):
        def forward(self, x: Tensor) -> Tensor:
            normed: Tensor = super().forward(x) * self.conv.weight.norm()
            return normed

    class ReadsNorm(Toy.Stage):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.bn.weight[0]

    class BadFuse(Toy.Stage):
        def fuse(self) -> nn.Module:
            return nn.Conv2d(8, 8, 3, stride=2, padding=1)

    class NoFuse(Toy.Stage):
        def fuse(self) -> nn.Module:
            raise ValueError("cannot")

    assert "fold batch norms: left out: outputs would change by" in frozen_alike(toy(ReadsWeight))[1]
    assert "left out: AttributeError: 'Identity' object has no attribute 'weight'" in frozen_alike(toy(ReadsNorm))[1]
    report = frozen_alike(toy(BadFuse))
    assert "merge branches: left out: outputs would change by" in report[0] and "2 of 2 folded" in report[1]
    assert frozen_alike(toy(NoFuse))[0] == "merge branches: left out: ValueError: cannot"


def test_a_stage_that_merges_as_a_whole_keeps_its_attention() -> None:
    class Fused(Toy.Stage):
        def fuse(self) -> nn.Module:
            return torch.nn.utils.fuse_conv_bn_eval(self.conv, self.bn)

    report = frozen_alike(toy(Fused))
    assert "merge branches: 2 modules fewer" in report[0] and "1 of 1 folded" in report[1]


def test_a_backbone_that_needs_float32_is_frozen_without_the_failing_steps() -> None:
    class Insists(Toy.Stage):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    class InsistsMore(Toy.Stage):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.conv.weight.flatten()
            return super().forward(x) + torch.dot(weight, torch.ones(weight.shape))

    report = frozen_alike(toy(Insists), "bf16", 0.05)[2]
    assert "convolutions and linear layers, the rest by autocast (more would fail: RuntimeError" in report
    # folding changes the weight that this one reads, so it is left out too
    assert "bf16: by autocast alone (more would fail: RuntimeError" in frozen_alike(toy(InsistsMore), "bf16", 0.05)[2]


def test_half_precision_that_would_overflow_is_left_out() -> None:
    net = toy(Toy.Stage)
    assert "fp16: weights of the backbone" in frozen_alike(net, "fp16", 0.01)[2]
    with torch.no_grad():
        net.backbone.get_parameter("second.stage.bn.weight").mul_(1e6)
    assert "fp16: left out, fp32 instead: activations reach" in frozen_alike(net, "fp16")[2]


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.mark.slow
@needs_compiler
def test_only_usual_batches_are_compiled() -> None:
    net = toy(Toy.Stage)
    plain = freeze(net, precision="bf16", device=CPU, image_size=SIZE)
    frozen = freeze(net, precision="bf16", device=CPU, image_size=SIZE, compiled=True)
    assert frozen.report[:3] == plain.report and "compile" in frozen.report[3]
    torch.compiler.reset()
    counters.clear()
    full, last = torch.rand(8, 3, SIZE, SIZE), torch.rand(5, 3, SIZE, SIZE)
    graphs = []
    for _ in range(3):  # epochs
        for batch in (full, full, full, last):
            output, expected = frozen.to(CPU)(batch), plain(batch)
            assert error(output, expected) < 0.02
            assert not any(tensor.requires_grad or tensor.is_inference() for tensor in tree_leaves(output))
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[:2] == [0, 0] and graphs[2] > 0 and set(graphs[2:]) == {graphs[2]}
    assert len(frozen.report) == 4
    # weights laid out at compile time, each convolution one kernel with what follows: else a sixth slower
    if resolve_precision("auto", CPU) == "bf16":
        assert "aten::convolution" in kernels(plain, full) and "aten::convolution" not in kernels(frozen, full)


def kernels(net: FrozenTeacher, images: Tensor) -> set[str]:
    """Names of what a call runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        net(images)
    return {event.key for event in profile.key_averages()}


@pytest.mark.slow
def test_a_failing_compiler_leaves_the_teacher_uncompiled(tmp_path: Path) -> None:
    frozen = freeze(toy(Toy.Stage), precision="bf16", device=CPU, image_size=SIZE, compiled=True)
    images = torch.rand(3, 3, SIZE, SIZE)
    expected = frozen(images)
    torch.compiler.reset()
    no_compiler = inductor.patch({"cpp.cxx": (str(tmp_path / "no_compiler"),), "force_disable_caches": True})
    with no_compiler, dynamo.patch(suppress_errors=True):  # as the training of a compiled student sets it
        for _ in range(4):
            assert torch.equal(frozen(images).logits, expected.logits)
    assert "compile: given up: " in frozen.report[4] and len(frozen.report) == 5
