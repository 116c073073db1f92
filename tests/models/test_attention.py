"""The DA module: an identity at first, gates computed by hand, and the same whatever the backbone's layout."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from scenedistill.models.attention import AttendedStage, DualAttention, NoAttention, SigmoidAttention
from scenedistill.models.norm import BatchNorm


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def awake(channels: int, seed: int = 0) -> DualAttention:
    """A module whose gates are no longer the identity."""
    torch.manual_seed(seed)
    module = DualAttention(channels)
    for last in (module.expand, module.locate):
        nn.init.normal_(last.weight, std=0.5)
        assert last.bias is not None
        nn.init.normal_(last.bias, std=0.5)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_module_starts_as_the_exact_identity(dtype: torch.dtype) -> None:
    feature = torch.randn(3, 20, 5, 4, dtype=dtype)
    gated, channel, spatial = DualAttention(20).to(dtype)(feature)
    assert torch.equal(gated, feature)
    assert channel.shape == (3, 20) and (channel == 0.5).all()
    assert spatial.shape == (3, 1, 5, 4) and (spatial == 0.5).all()


def test_every_parameter_has_a_gradient_at_the_start() -> None:
    module = DualAttention(20)
    gated, _, _ = module(torch.rand(3, 20, 5, 4))
    gated.square().sum().backward()
    for last in (module.expand, module.locate):
        assert last.weight.grad is not None and last.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("channels", "hidden"), [(64, 8), (128, 8), (256, 16), (2048, 128)])
def test_the_bottleneck_has_a_sixteenth_of_the_channels_but_at_least_eight(channels: int, hidden: int) -> None:
    module = DualAttention(channels)
    assert module.reduce.weight.shape == (hidden, channels) and module.expand.weight.shape == (channels, hidden)
    assert module.locate.weight.shape == (1, 2, 7, 7)


@pytest.mark.parametrize("kind", [DualAttention, SigmoidAttention])
def test_the_gates_equal_values_computed_by_hand(kind: type[DualAttention]) -> None:
    """One image of two channels, 1 x 2 pixels: channel 0 is (1, 3) and channel 1 is (0, 2)."""
    module = kind(2).eval()  # running statistics that have seen nothing normalise nothing
    gate = sigmoid if kind is SigmoidAttention else lambda x: 0.5 + math.tanh(x) / 4
    with torch.no_grad():
        for layer in (module.reduce, module.expand, module.locate):
            layer.weight.zero_()
            assert layer.bias is not None
            layer.bias.zero_()
        module.reduce.weight[0] = torch.tensor([1.0, 0.0])  # hidden 0 looks at channel 0
        module.expand.weight[1, 0] = 0.2  # and weighs channel 1
        module.expand.bias[0] = 0.5
        module.locate.weight[0, 0, 3, 3] = 1.0  # the mean over the channels, at the position itself
        module.locate.weight[0, 1, 3, 4] = -1.0  # the largest channel, one position to the right
    gated, channel, spatial = module(torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]]))
    # channel 0 has mean 2 and maximum 3; the bias counts in both terms
    c0, c1 = gate(2 * 0.5), gate(0.2 * 2 + 0.2 * 3)
    assert channel[0].tolist() == pytest.approx([c0, c1], rel=1e-4)
    weighted = [[2 * c0 * 1, 2 * c0 * 3], [0.0, 2 * c1 * 2]]
    means = [(weighted[0][x] + weighted[1][x]) / 2 for x in (0, 1)]
    m0, m1 = gate(means[0] - max(weighted[0][1], weighted[1][1])), gate(means[1])
    assert spatial[0, 0, 0].tolist() == pytest.approx([m0, m1], rel=1e-4)
    assert gated[0, :, 0].flatten().tolist() == pytest.approx(
        [2 * m0 * weighted[0][0], 2 * m1 * weighted[0][1], 0.0, 2 * m1 * weighted[1][1]], rel=1e-4
    )


def test_no_step_however_large_closes_a_gate() -> None:
    """Sigmoid gates on raw summaries go to 0 or 1 under one large step, and stay there."""
    gates = {}
    for kind in (DualAttention, SigmoidAttention):
        torch.manual_seed(0)
        module, feature = kind(16), 5 * torch.rand(8, 16, 6, 6)
        with torch.no_grad():
            module.locate.weight.fill_(-3.0)
        gates[kind] = module(feature)[2]
        gated, _, _ = module(feature)
        slope = torch.autograd.grad(gated.sum(), module.reduce.weight, allow_unused=True)[0]
        assert slope is not None and slope.isfinite().all()
    assert float(gates[SigmoidAttention].max()) < 1e-6, "the test's step is as large as is needed"
    assert 0.25 <= float(gates[DualAttention].min()) < 0.3 < 0.7 < float(gates[DualAttention].max()) <= 0.75


def test_a_batch_of_one_image_of_one_position_trains() -> None:
    module = DualAttention(4).train()
    gated, _, _ = module(torch.rand(1, 4, 1, 1))
    assert gated.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1, 1), (3, 4), (3, 4, 2, 2)])
def test_batch_norm_takes_maps_and_vectors_and_a_single_value_of_a_channel(shape: tuple[int, ...]) -> None:
    norm, usual = BatchNorm(4).train(), nn.BatchNorm1d(4).train(shape[0] > 1)
    features = torch.randn(shape)
    lines = features.reshape(*shape[:2], -1)
    torch.testing.assert_close(norm(features).reshape(lines.shape), usual(lines), rtol=0, atol=1e-6)
    torch.testing.assert_close(norm.running_mean, usual.running_mean)


def watched(stage: AttendedStage, *args: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    stage.watched = True
    output = stage(*args)
    return output, tuple(stage.collect())


def test_every_layout_is_gated_alike() -> None:
    feature = torch.randn(2, 6, 4, 4)
    module = awake(6)
    expected, seen = watched(AttendedStage(nn.Identity(), module), feature)
    assert not torch.allclose(expected, feature)
    torch.testing.assert_close(seen[2], expected.square().mean(1))  # energy, of the gated feature
    torch.testing.assert_close(seen[3], expected.mean((2, 3)))  # descriptor

    last, seen_last = watched(AttendedStage(nn.Identity(), module, channels_last=True), feature.permute(0, 2, 3, 1))
    torch.testing.assert_close(last.permute(0, 3, 1, 2), expected)
    torch.testing.assert_close(seen_last, seen)

    for prefix in (0, 1, 5):
        extra = torch.randn(2, prefix, 6)
        tokens = torch.cat((extra, feature.flatten(2).transpose(1, 2)), 1)
        gated, seen_tokens = watched(AttendedStage(nn.Identity(), module, prefix_tokens=prefix), tokens)
        assert torch.equal(gated[:, :prefix], extra)  # prefix tokens pass untouched
        torch.testing.assert_close(torch.unflatten(gated[:, prefix:].transpose(1, 2), 2, (4, 4)), expected)
        torch.testing.assert_close(seen_tokens, seen)

    # a backbone that has prefix tokens but puts them in later
    late, seen_late = watched(AttendedStage(nn.Identity(), module, prefix_tokens=1), feature.flatten(2).transpose(1, 2))
    torch.testing.assert_close(torch.unflatten(late.transpose(1, 2), 2, (4, 4)), expected)
    torch.testing.assert_close(seen_late, seen)


def test_a_stage_without_attention_only_reports() -> None:
    feature = torch.randn(2, 6, 4, 3)
    output, (channel, spatial, energy, descriptor) = watched(AttendedStage(nn.Identity(), NoAttention()), feature)
    assert output is feature
    assert channel.shape == (2, 6) and spatial.shape == (2, 1, 4, 3)
    assert (channel == 0.5).all() and (spatial == 0.5).all()
    torch.testing.assert_close(energy, feature.square().mean(1))
    torch.testing.assert_close(descriptor, feature.mean((2, 3)))


def test_energy_is_float32_where_squares_leave_half_precision() -> None:
    with torch.autocast("cpu", dtype=torch.float16):
        _, (_, _, energy, _) = watched(
            AttendedStage(nn.Identity(), NoAttention()), torch.full((1, 2, 2, 2), 1e3).half()
        )
    assert energy.dtype == torch.float32 and torch.allclose(energy, torch.tensor(1e6), rtol=2**-8)


def energy_of(feature: Tensor) -> Tensor:
    return watched(AttendedStage(nn.Identity(), NoAttention()), feature)[1][2]


def test_the_gradient_of_the_energy_is_exact_in_double_and_close_in_half_precision() -> None:
    feature = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(energy_of, (feature,))
    weights = torch.rand(2, 3, 4)
    (exact,) = torch.autograd.grad((weights * energy_of(feature)).sum(), feature)
    for kind in (torch.bfloat16, torch.float16):
        half = feature.detach().to(kind).requires_grad_()
        torch.autograd.backward((weights * energy_of(half)).sum())
        assert half.grad is not None and half.grad.dtype == kind
        assert (half.grad - exact).norm() < 0.01 * exact.norm()


def test_attention_is_collected_only_while_watched_and_only_once() -> None:
    stage = AttendedStage(nn.Identity(), awake(6))
    stage(torch.randn(2, 6, 4, 4))
    with pytest.raises(AssertionError, match="watched"):
        stage.collect()
    watched(stage, torch.randn(2, 6, 4, 4))
    with pytest.raises(AssertionError, match="watched"):
        stage.collect()


def test_a_stage_forwards_attributes_to_its_module_and_can_be_copied() -> None:
    stage = AttendedStage(nn.Conv2d(6, 6, 3, padding=1, stride=1), awake(6))
    assert stage.out_channels == 6 and stage.stage.kernel_size == (3, 3)
    with pytest.raises(AttributeError, match="no_such"):
        _ = stage.no_such
    feature = torch.randn(2, 6, 4, 4)
    for other in (copy.deepcopy(stage), pickle.loads(pickle.dumps(stage))):
        assert torch.equal(other(feature), stage(feature))
