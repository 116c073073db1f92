"""Class-activation maps are Grad-CAM's, leave the network as it was, and their agreement is a correlation."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("cv2", reason="needs grad-cam's OpenCV: pip install -e '.[report]'")

import cv2

from scenedistill.core.errors import UserError
from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import build_cache
from scenedistill.data.scenes import scan
from scenedistill.data.views import evaluation_view
from scenedistill.metrics.gradcam import agreement, agreement_with_teacher, class_activation
from scenedistill.models.create import build_student
from scenedistill.models.network import SceneNet
from scenedistill.models.wrap import StageLayout

pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install -e '.[report]'")


@pytest.fixture
def net() -> SceneNet:
    torch.manual_seed(0)
    return build_student("table1_printed", 4, image_size=64).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 48, 48, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def by_hand(net: SceneNet, images: torch.Tensor, classes: list[int]) -> np.ndarray:
    """Zhou et al. (CVPR 2016): behind a mean and a linear head, Grad-CAM is the head's weights over the feature."""
    feature: list[torch.Tensor] = []
    hook = net.stages[-1].register_forward_hook(lambda module, given, output: feature.append(output))
    with torch.no_grad():
        net(evaluation_view(images, size=64))
    hook.remove()
    weights = net.head.weight.detach()[classes]
    maps = torch.einsum("bc,bchw->bhw", weights, feature[0]).clamp(min=0).numpy()
    scaled = []
    for single in maps:
        single = single - single.min()
        scaled.append(cv2.resize(single / max(single.max(), 1e-12), (64, 64)))
    return np.stack(scaled)


def test_the_map_is_the_heads_weights_over_the_last_feature(net: SceneNet, images: torch.Tensor) -> None:
    classes = [2, 0, 3]
    found = class_activation(net, images, size=64, classes=torch.tensor(classes))
    assert found.shape == (3, 64, 64)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), by_hand(net, images, classes), atol=1e-3)
    assert found.amax() == pytest.approx(1, abs=1e-3)
    assert found[1].amax() == 0, "nothing in the second image speaks for its class"


def test_the_predicted_class_is_explained_where_none_is_given(net: SceneNet, images: torch.Tensor) -> None:
    with torch.no_grad():
        named = net(evaluation_view(images, size=64)).logits.argmax(1)
    assert torch.equal(class_activation(net, images, size=64), class_activation(net, images, size=64, classes=named))


def test_the_network_is_left_unchanged(net: SceneNet, images: torch.Tensor) -> None:
    net.train()
    net.stages[0].eval()
    net.head.bias.requires_grad_(False)
    modes = [module.training for module in net.modules()]
    learning = [parameter.requires_grad for parameter in net.parameters()]
    before, whole = {name: value.clone() for name, value in net.state_dict().items()}, pickle.dumps(net)
    with torch.inference_mode():  # as where a model serves
        class_activation(net, images, size=64)
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == learning
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert len(pickle.dumps(net)) == len(whole), "no hooks are left in it"


def test_no_images_give_no_maps(net: SceneNet) -> None:
    assert class_activation(net, torch.zeros(0, 48, 48, 3, dtype=torch.uint8), size=64).shape == (0, 64, 64)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
def test_other_backbones_have_maps(name: str, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    size = 96 if name != "test_vit" else 64
    maps = class_activation(build_student(name, 4, image_size=size), images, size=size)
    assert maps.shape == (3, size, size)
    assert maps.min() >= 0
    assert maps.max() == pytest.approx(1, abs=1e-3)
    assert maps.std() > 0.01


Rearrange = Callable[[torch.Tensor], torch.Tensor]


class Laid(nn.Module):
    """One convolution whose feature is laid out in some way, and read again to be pooled."""

    def __init__(self, lay: Rearrange, read: Rearrange) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.stage, self.lay, self.read = nn.Conv2d(3, 5, 16, 16), nn.Identity(), lay, read

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.read(self.stage(self.lay(self.conv(images)))).flatten(2).mean(2)


def tokens(feature: torch.Tensor) -> torch.Tensor:
    return feature.flatten(2).mT


LAYOUTS: dict[str, tuple[dict[str, Any], Rearrange, Rearrange]] = {
    "channels last": ({"channels_last": True}, lambda f: f.permute(0, 2, 3, 1), lambda f: f.permute(0, 3, 1, 2)),
    "behind two tokens": (
        {"prefix_tokens": 2},
        lambda f: torch.cat((torch.ones(len(f), 2, 5), tokens(f)), 1),
        lambda f: f[:, 2:].mT,
    ),
    "before a token is put in": ({"prefix_tokens": 1}, tokens, lambda f: f.mT),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_feature_is_read_alike(layout: str, images: torch.Tensor) -> None:
    def maps(settings: dict[str, Any], lay: Rearrange, read: Rearrange) -> torch.Tensor:
        stages = [StageLayout("stage", 5, **settings)]
        net = SceneNet(Laid(lay, read), 4, normalisation=((0.5,) * 3, (0.2,) * 3), image_size=64, stages=stages)
        return class_activation(net, images, size=64, classes=torch.tensor([2, 0, 3]))

    expected = maps({}, lambda f: f, lambda f: f)
    assert expected.std() > 0.01
    torch.testing.assert_close(maps(*LAYOUTS[layout]), expected)


def test_without_grad_cam_the_error_names_what_to_install(
    net: SceneNet, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(UserError, match=r"pip install 'scenedistill\[report\]'"):
        class_activation(net, images, size=64)


def test_agreement_is_pearsons_correlation() -> None:
    a, b = torch.rand(4, 6, 7, generator=torch.Generator().manual_seed(0)), torch.rand(4, 6, 7)
    expected = [np.corrcoef(x.flatten(), y.flatten())[0, 1] for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(agreement(a, b).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(agreement(b, a).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(agreement(3 * a + 1, b).numpy(), expected, atol=1e-5)
    assert agreement(a, a).tolist() == pytest.approx([1, 1, 1, 1])
    assert agreement(a, -a).tolist() == pytest.approx([-1, -1, -1, -1])


def test_a_flat_map_has_agreement_zero() -> None:
    flat, other = torch.zeros(2, 4, 4), torch.rand(2, 4, 4)
    assert agreement(flat, other).tolist() == [0, 0]
    assert agreement(flat, flat).tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(2, 4, 5), (4, 4)])
def test_maps_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="of one shape"):
        agreement(torch.rand(shape), torch.rand(2, 4, 4))


def test_a_network_agrees_with_itself_over_a_test_part(net: SceneNet, tiny_scenes: Path, tmp_path: Path) -> None:
    cache = build_cache(scan(tiny_scenes), 64, folder=tmp_path / "cache", progress=False)
    part = ScenePart(cache, np.arange(0, 64, 7))
    torch.manual_seed(9)
    other = build_student("table1_printed", 4, image_size=64)
    found = agreement_with_teacher(net, {"same": net, "other": other}, part, size=64, batch_size=4)
    assert found["same"].shape == found["other"].shape == (10,)
    assert found["other"].mean() < 0.9
    maps = class_activation(net, part.fetch(range(10)).images, size=64, classes=torch.from_numpy(part.labels))
    alive = maps.flatten(1).std(1).numpy() > 0  # a flat map agrees with nothing, not even itself
    assert alive.any()
    np.testing.assert_allclose(found["same"], alive, atol=1e-5)
