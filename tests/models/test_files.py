"""A network's file holds all that is needed to build it again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scenedistill.core.errors import UserError
from scenedistill.models.attention import SigmoidAttention
from scenedistill.models.create import build_network, build_student, move_stride
from scenedistill.models.files import NetCard, load_net, save_net, weights_hash
from scenedistill.models.network import SceneNet

CLASSES = ("Flughafen", "forêt", "港口 2")


def stirred(net: SceneNet) -> SceneNet:
    """With running statistics and gates that are not those of a fresh network."""
    for attention in (module for module in net.modules() if hasattr(module, "locate")):
        nn.init.normal_(attention.get_parameter("locate.weight"), std=0.3)
        nn.init.normal_(attention.get_parameter("expand.weight"), std=0.3)
    net.train()(torch.rand(4, len(net.mean), 64, 64))
    return net.eval()


@pytest.mark.parametrize(
    "card",
    [
        NetCard("table1_resnet", CLASSES, bands=3, image_size=64),
        NetCard("table1_printed", CLASSES, bands=4, image_size=64, dual_attention=False),
        NetCard("vit_tiny_patch16_224", CLASSES, bands=1, image_size=64),
        NetCard("resnet26", CLASSES, bands=3, image_size=64, stride_in_first_convolution=True),
    ],
    ids=lambda card: card.name,
)
def test_what_is_read_is_what_was_written(card: NetCard, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, _ = build_network(
        card.name,
        3,
        bands=card.bands,
        image_size=card.image_size,
        dual_attention=card.dual_attention,
    )
    if card.stride_in_first_convolution:
        move_stride(net)
    stirred(net).to(memory_format=torch.channels_last)
    path = tmp_path / "weights.safetensors"
    save_net(net, card, path)
    again, read = load_net(path)
    assert read == card and not again.training
    assert weights_hash(again) == weights_hash(net)
    images = torch.rand(2, card.bands, 64, 64)
    torch.testing.assert_close(again(images).logits, net(images).logits)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_hash_depends_on_every_tensor(tmp_path: Path) -> None:
    net = build_student("table1_printed", 3, image_size=32)
    seen = {weights_hash(net)}
    assert weights_hash(net.to(memory_format=torch.channels_last)) in seen  # order in memory is no part of it
    with torch.no_grad():
        for name in ("head.bias", "backbone.stem.1.running_var", "backbone.stem.1.num_batches_tracked"):
            net.state_dict()[name].view(-1)[0] += 1
            seen.add(weights_hash(net))
    assert len(seen) == 4 and all(len(digest) == 16 for digest in seen)
    assert weights_hash(nn.Linear(2, 3)) != weights_hash(nn.Linear(3, 2))


def test_files_that_are_no_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(UserError, match="No network at"):
        load_net(path)
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="does not say which network"):
        load_net(path)
    save_net(build_student("table1_printed", 3, image_size=32), NetCard("table1_printed", CLASSES, 3, 32), path)
    whole = path.read_bytes()
    save_net(build_student("table1_printed", 3, image_size=32), NetCard("resnet1O1", CLASSES, 3, 32), path)
    with pytest.raises(UserError, match=rf"{path.name} was written by another version .*'resnet1O1' is neither"):
        load_net(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="cannot be read as a safetensors file"):
        load_net(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read as a safetensors file"):
        load_net(path)


def test_a_network_from_before_the_gates_were_bounded_still_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build_student("table1_printed", 3, image_size=64)
    for stage, width in zip(net.stages, net.dims.stages, strict=True):
        stage.attention = SigmoidAttention(width)
    stirred(net)
    save_net(net, NetCard("table1_printed", CLASSES, bands=3, image_size=64), tmp_path / "old.safetensors")
    again, _ = load_net(tmp_path / "old.safetensors")
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(again(images).logits, net(images).logits)
    assert isinstance(again.stages[0].attention, SigmoidAttention)


def test_every_kind_of_flipped_bit_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    net = build_student("table1_printed", 3, image_size=32)
    save_net(net, NetCard("table1_printed", CLASSES, 3, 32), path)
    whole, wanted = path.read_bytes(), weights_hash(net)
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, header, 150), *rng.integers(header, len(whole), 20)]
    refused = 0
    for place in map(int, places):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << int(rng.integers(8)))]) + whole[place + 1 :])
        try:
            again, card = load_net(path)
        except UserError as problem:
            assert "\n" not in str(problem)
            refused += 1
        else:
            assert weights_hash(again) == wanted and card == NetCard("table1_printed", CLASSES, 3, 32)
    assert refused > 150


def test_a_file_from_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    net, card = build_student("table1_printed", 3, image_size=32), NetCard("table1_printed", CLASSES, 3, 32)
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    save_file(tensors, tmp_path / "old.safetensors", {"scenedistill": json.dumps(dataclasses.asdict(card))})
    assert weights_hash(load_net(tmp_path / "old.safetensors")[0]) == weights_hash(net)


def test_weights_of_another_kind_name_the_option_that_takes_them(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "net.pth")
    save_file({"a": torch.zeros(3)}, tmp_path / "timm.safetensors")
    for name in ("net.pth", "timm.safetensors"):
        with pytest.raises(UserError, match=r"--teacher\.weights"):
            load_net(tmp_path / name)
