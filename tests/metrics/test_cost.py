"""The cost of small models against numbers worked out by hand, and the model left as it was."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from scenedistill.metrics.cost import cost_table, model_cost
from scenedistill.models.create import build_student
from scenedistill.models.wrap import evaluating


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def test_parameters_bytes_and_operations_equal_values_computed_by_hand() -> None:
    cost = model_cost(small(), size=10, repeats=3, warm_up=1)
    assert cost.parameters == 8 * 3 * 9 + 8 + 8 + 8 * 5 + 5
    assert cost.bytes == 4 * (cost.parameters + 8 + 8) + 8  # running mean and variance; int64 number of batches
    assert cost.operations == 10 * 10 * 8 * 3 * 9 + 8 * 5
    assert (cost.batch_size, cost.repeats, cost.device, cost.threads) == (1, 3, "cpu", torch.get_num_threads())


def test_operations_are_of_one_image_whatever_the_batch_and_dtype() -> None:
    half = small().to(torch.bfloat16)
    cost = model_cost(half, size=10, bands=3, batch_size=4, repeats=2, warm_up=0)
    assert cost.operations == 10 * 10 * 8 * 3 * 9 + 8 * 5
    assert cost.bytes == model_cost(small(), size=10, repeats=1, warm_up=0).bytes  # counted as float32


def test_operations_of_a_compiled_model_are_seen() -> None:
    compiled = torch.compile(small(), backend="eager")
    assert isinstance(compiled, nn.Module)
    assert model_cost(compiled, size=10, repeats=1, warm_up=1).operations == 10 * 10 * 8 * 3 * 9 + 8 * 5


def test_attention_counts_its_two_products() -> None:
    class Attention(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = images.flatten(2).transpose(1, 2)[:, None]  # [B, 1, 16, 3]
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    assert model_cost(Attention(), size=4, repeats=1, warm_up=0).operations == 2 * 16 * 16 * 3


def test_the_time_is_that_of_one_image_without_the_warm_up() -> None:
    class Slow(nn.Module):
        """The first two passes take long, as they do while a device wakes up; later ones 4 ms."""

        def __init__(self) -> None:
            super().__init__()
            self.passes = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert torch.is_inference_mode_enabled() or self.passes == 0  # the first pass counts operations
            self.passes += 1
            time.sleep(0.2 if self.passes <= 2 else 0.004)
            return images

    cost = model_cost(Slow(), size=2, batch_size=2, repeats=8, warm_up=1)
    assert 2 <= cost.milliseconds_low <= cost.milliseconds <= cost.milliseconds_high < 50


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model = small().train()
    model[1].eval()  # a frozen batch norm inside a model in training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    model_cost(model, size=8, repeats=2, warm_up=1)
    assert torch.equal(torch.rand(4), expected)
    assert [module.training for module in model] == [True, False, True, True, True, True, True]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_training_mode_is_restored_after_an_error() -> None:
    model = small().train()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"batch_size": 0}, {"warm_up": -1}])
def test_senseless_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected >= 1"):
        model_cost(small(), size=8, **wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_the_time_includes_the_work() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4096, 4096, device="cuda"))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.weight
            for _ in range(20):
                out = out @ self.weight
            return out

    cost = model_cost(Products(), size=2, repeats=5, warm_up=2)
    assert cost.device == "cuda"
    assert cost.operations == 20 * 4096**3
    assert cost.milliseconds > 1  # a launch alone takes microseconds


def test_networks_are_compared_as_they_are_used() -> None:
    torch.manual_seed(0)
    networks = {name: build_student(name, 4, image_size=32) for name in ("table1_printed", "table1_resnet")}
    networks["table1_resnet"].train()
    before = {name: value.clone() for name, value in networks["table1_resnet"].state_dict().items()}
    found = cost_table(networks, 32, batch_sizes=(1, 3), devices=("cpu",), repeats=4, warm_up=1)
    for name, net in networks.items():
        cost, alone = found[name], model_cost(net, 32, repeats=1, warm_up=0)
        assert (cost.parameters, cost.bytes, cost.operations) == (alone.parameters, alone.bytes, alone.operations)
        assert [(entry.device, entry.batch_size, entry.passes) for entry in cost.latencies] == [
            ("cpu", 1, 4),
            ("cpu", 3, 4),
        ]
        for entry in cost.latencies:
            assert 0 < entry.p50 <= entry.p90 <= entry.p99
            assert entry.mean > 0
    assert networks["table1_resnet"].training
    assert all(torch.equal(value, before[name]) for name, value in networks["table1_resnet"].state_dict().items())


def test_percentiles_are_over_the_passes_and_for_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    # of the pass whose operations are counted, of the warm-up, then 0.2 s to 20.2 s
    seconds, clock = iter([5.0, 9.0, *(0.2 * number for number in range(1, 102))]), [0.0]
    net = build_student("table1_printed", 4, image_size=32)
    net.register_forward_hook(lambda *_: clock.append(clock[-1] + next(seconds)))
    with monkeypatch.context() as patched:
        patched.setattr(time, "perf_counter", lambda: clock[-1])
        found = cost_table({"a": net}, 32, batch_sizes=(2,), devices=("cpu",), repeats=101, warm_up=1)
    (entry,) = found["a"].latencies
    assert (entry.mean, entry.p50, entry.p90, entry.p99) == pytest.approx((5100, 5100, 9100, 10000))


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected >= 1"):
        cost_table({}, 32, repeats=0)
    with pytest.raises(ValueError, match="expected >= 1"):
        cost_table({}, 32, batch_sizes=())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_both_devices_are_measured_where_there_is_a_gpu() -> None:
    net = build_student("table1_printed", 4, image_size=32)
    latencies = cost_table({"a": net}, 32, repeats=2, warm_up=1)["a"].latencies
    assert [(entry.device, entry.batch_size) for entry in latencies] == [
        ("cpu", 1),
        ("cpu", 64),
        ("cuda", 1),
        ("cuda", 64),
    ]
    assert next(net.parameters()).device.type == "cpu"
