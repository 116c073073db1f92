"""The students of Table 1, in both readings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from scenedistill.core.errors import UserError
from scenedistill.models.create import build_student
from scenedistill.models.table1 import STUDENTS, TABLE1_PRINTED, TABLE1_RESNET, Table1Backbone

READINGS = {
    # widths of the two convolutions of each stage, parameters without the DA modules and with 45 classes
    "table1_printed": (((64, 64), (128, 64), (256, 64), (512, 64)), 1.1e6),
    "table1_resnet": (((64, 64), (128, 128), (256, 256), (512, 512)), 5.0e6),
}


def test_both_readings_of_the_table_are_students() -> None:
    assert set(STUDENTS) == set(READINGS)


@pytest.mark.parametrize("name", list(READINGS))
def test_widths_sizes_and_parameters_equal_the_table(name: str) -> None:
    widths, parameters = READINGS[name]
    net = build_student(name, 45, image_size=224)
    sizes: dict[str, tuple[int, ...]] = {}
    for number in range(2, 6):
        module = net.backbone.get_submodule(f"conv{number}_x")
        module.register_forward_hook(
            lambda _, __, output, key=f"conv{number}_x": sizes.update({key: tuple(output.shape[1:])})
        )
        first, second = (module.get_submodule(f"stage.{part}") for part in ("conv1", "conv2"))
        assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
        assert (first.out_channels, second.out_channels) == widths[number - 2]
        assert first.kernel_size == second.kernel_size == (3, 3)
    with torch.no_grad():
        output = net.eval()(torch.rand(1, 3, 224, 224))
    assert sizes == {f"conv{n}_x": (widths[n - 2][1], s, s) for n, s in ((2, 56), (3, 28), (4, 14), (5, 7))}
    assert output.logits.shape == (1, 45) and output.embedding.shape == (1, widths[3][1])
    assert [stage.energy.shape[1] for stage in output.attention] == [56, 28, 14, 7]
    assert net.dims == (45, widths[3][1], tuple(second for _, second in widths))
    counted = sum(parameter.numel() for parameter in net.parameters())
    assert round(counted / 1e6, 1) == pytest.approx(parameters / 1e6)


def test_the_resnet_reading_equals_a_resnet_of_one_basic_block_per_stage() -> None:
    """The second reading computes what torchvision's own parts compute from the same weights."""
    torch.manual_seed(0)
    ours = Table1Backbone(TABLE1_RESNET)
    theirs = ResNet(BasicBlock, [1, 1, 1, 1])
    theirs.fc = nn.Identity()
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        for n in range(4):
            name = name.replace(f"layer{n + 1}.0.", f"conv{n + 2}_x.")
        name = name.replace("downsample", "shortcut")
        if name.startswith(("conv1.", "bn1.")):
            name = name.replace("conv1.", "stem.0.").replace("bn1.", "stem.1.")
        renamed[name] = tensor
    ours.load_state_dict(renamed)
    images = torch.randn(4, 3, 64, 64)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(images), theirs.train(mode)(images))


def test_the_printed_reading_differs_in_its_second_widths_only() -> None:
    assert [first for first, _ in TABLE1_PRINTED] == [first for first, _ in TABLE1_RESNET]
    assert all(second == 64 for _, second in TABLE1_PRINTED)


@pytest.mark.parametrize("name", list(READINGS))
@pytest.mark.parametrize("bands", [1, 3, 4, 13])
def test_the_network_takes_any_number_of_bands(name: str, bands: int) -> None:
    net = build_student(name, 2, bands=bands, image_size=32)
    output = net(torch.rand(2, bands, 32, 32))
    assert output.logits.shape == (2, 2)
    output.logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_images_need_not_be_square_or_of_the_size_it_was_built_for() -> None:
    net = build_student("table1_printed", 5, image_size=32).eval()
    output = net(torch.rand(2, 3, 96, 64))
    assert [tuple(stage.energy.shape) for stage in output.attention] == [
        (2, 24, 16),
        (2, 12, 8),
        (2, 6, 4),
        (2, 3, 2),
    ]


def test_attention_at_the_start_changes_nothing() -> None:
    def built(dual_attention: bool) -> Tensor:
        torch.manual_seed(0)
        net = build_student("table1_resnet", 5, image_size=64, dual_attention=dual_attention)
        nn.init.constant_(net.head.weight, 0.1)
        nn.init.zeros_(net.head.bias)
        state = {n.replace("stage.", ""): t for n, t in net.backbone.state_dict().items() if "attention" not in n}
        reference.setdefault("state", state)
        net.backbone.load_state_dict(
            {n: reference["state"].get(n.replace("stage.", ""), t) for n, t in net.backbone.state_dict().items()}
        )
        logits: Tensor = net.eval()(images).logits
        return logits

    reference: dict[str, dict[str, Tensor]] = {}
    images = torch.rand(3, 3, 64, 64)
    assert torch.equal(built(True), built(False))


@pytest.mark.parametrize(("wrong", "meant"), [("table1_resnett", "table1_resnet"), ("resnet_18", "resnet18")])
def test_an_unknown_name_gets_a_suggestion(wrong: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"'{wrong}'.*Did you mean.*{meant}"):
        build_student(wrong, 5)
    with pytest.raises(UserError, match=r"list_models"):
        build_student("xyzzy#", 5)
