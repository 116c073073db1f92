"""Several teachers, and one in eight symmetries, against loops."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from scenedistill.models.create import build_student
from scenedistill.models.network import SceneNet
from scenedistill.training.teacher_outputs.teachers import Teachers


@pytest.fixture(scope="module")
def nets() -> list[SceneNet]:
    found = []
    for seed, name in ((1, "table1_printed"), (2, "table1_resnet")):
        torch.manual_seed(seed)
        net = build_student(name, 4, image_size=32)
        with torch.no_grad():
            for stage in net.stages:  # gates that look somewhere
                torch.nn.init.normal_(stage.attention.get_parameter("locate.weight"), std=0.5)
            net(torch.rand(32, 3, 32, 32))
        found.append(net.eval().requires_grad_(False))
    return found


def ask(nets: list[SceneNet], symmetries: bool = False) -> Teachers:
    return Teachers(nets, precision="fp32", image_size=32, symmetries=symmetries)


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_one_teacher_gives_its_own_outputs(nets: list[SceneNet]) -> None:
    view = torch.rand(3, 3, 32, 32)
    assert close(ask(nets[:1])(view).logits, nets[0](view).logits)


def test_several_teachers_average_their_probabilities_and_the_first_gives_the_rest(nets: list[SceneNet]) -> None:
    view = torch.rand(3, 3, 32, 32)
    found, each = ask(nets)(view), [net(view) for net in nets]
    assert close(found.logits.softmax(1), (each[0].logits.softmax(1) + each[1].logits.softmax(1)) / 2)
    assert close(found.embedding, each[0].embedding)
    assert close(found.attention[0].spatial, each[0].attention[0].spatial)


def test_the_eight_symmetries_are_averaged_and_maps_turned_back(nets: list[SceneNet]) -> None:
    view = torch.rand(2, 3, 32, 32)
    found = ask(nets[:1], symmetries=True)(view, features=True)
    probabilities, embeddings, spatial, energy, features = [], [], [], [], []
    for flipped in (False, True):
        for quarter in range(4):
            turned = torch.rot90(view.flip(3) if flipped else view, quarter, (2, 3))
            output = nets[0](turned, features=True)

            def back(maps: Tensor, quarter: int = quarter, flipped: bool = flipped) -> Tensor:
                maps = torch.rot90(maps, 4 - quarter, (-2, -1))
                return maps.flip(-1) if flipped else maps

            probabilities.append(output.logits.softmax(1))
            embeddings.append(output.embedding)
            spatial.append(back(output.attention[1].spatial))
            energy.append(back(output.attention[1].energy))
            features.append(back(output.features[1]))
    assert close(found.logits.softmax(1), torch.stack(probabilities).mean(0))
    assert close(found.embedding, torch.stack(embeddings).mean(0))
    assert close(found.attention[1].spatial, torch.stack(spatial).mean(0))
    assert close(found.attention[1].energy, torch.stack(energy).mean(0))
    assert close(found.features[1], torch.stack(features).mean(0))
    again = ask(nets[:1], symmetries=True)(torch.rot90(view, 1, (2, 3)))
    assert close(again.logits, found.logits), "the same however the view is turned"


def test_another_process_rebuilds_the_teacher_and_a_changed_teacher_is_noticed(nets: list[SceneNet]) -> None:
    teachers, view = ask([nets[1]]), torch.rand(1, 3, 32, 32)
    said = teachers(view).logits
    again = pickle.loads(pickle.dumps(teachers))
    assert teachers.used and not again.used
    assert close(again(view).logits, said)
    again.check_untouched()
    with torch.no_grad():
        again.nets[0].head.bias += 1
    with pytest.raises(RuntimeError, match="changed while it taught"):
        again.check_untouched()
