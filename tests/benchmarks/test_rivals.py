"""The rival loops of the speed benchmark train the same student, by the same loss, and leave the teacher as it is."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scenedistill.models.create import build_student, build_teacher

pytest.importorskip("timm.task", reason="needs timm with distillation tasks: pip install -e '.[bench]'")
pytest.importorskip("torchdistill", reason="needs torchdistill: pip install -e '.[bench]'")

# torchvision means to give its decoders away; until then they are what its users have
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

LIBRARIES = ("timm", "torchdistill", "textbook")


@pytest.fixture(scope="module")
def rivals() -> ModuleType:
    """The package, which is no part of the installed one."""
    return importlib.import_module("rivals")


@pytest.fixture
def settings(rivals: ModuleType, tiny_scenes: Path) -> Any:
    """64 images of 4 classes in batches of 24: an epoch ends within three steps."""
    torch.manual_seed(0)
    teacher = build_teacher("resnet10t", 4, image_size=32)
    return rivals.LoopSettings(
        data=tiny_scenes,
        pixels=32,
        batch_size=24,
        teacher=rivals.LogitsOnly(teacher),
        student=rivals.LogitsOnly(build_student("table1_printed", 4, image_size=32)),
        device=torch.device("cpu"),
        workers=1,
    )


def switches(rivals: ModuleType, tuned: bool) -> Any:
    """Tuned without a trial: compiling takes minutes."""
    return rivals.Switches(tuned=True, bf16=True, channels_last=True, workers=1) if tuned else rivals.Switches()


def loop_of(rivals: ModuleType, library: str) -> Any:
    return next(loop for loop in rivals.LOOPS if loop.name == library)


def weights(module: torch.nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in module.state_dict().values()]


@pytest.mark.parametrize("tuned", [False, True], ids=["default", "tuned"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_loop_trains_the_student_and_not_the_teacher(
    rivals: ModuleType, settings: Any, library: str, tuned: bool
) -> None:
    others = set(multiprocessing.active_children())  # such as the page's worker, which the tests of a process share
    rival = loop_of(rivals, library)(settings, switches(rivals, tuned))
    given, student, teacher = weights(settings.student), weights(rival.student), weights(rival.teacher)
    steps = rival.steps()
    counts = list(islice(steps, 4))  # over the end of an epoch
    assert len(set(multiprocessing.active_children()) - others) == 1
    rival.close()
    assert set(multiprocessing.active_children()) <= others
    assert next(steps, None) is None
    assert counts == ([24, 24, 16, 24] if (library, tuned) == ("torchdistill", False) else [24] * 4)
    assert all(not torch.equal(old, new) for old, new in zip(student, weights(rival.student), strict=True))
    assert all(torch.equal(old, new) for old, new in zip(teacher, weights(rival.teacher), strict=True))
    assert all(torch.equal(old, new) for old, new in zip(given, weights(settings.student), strict=True))
    assert not rival.teacher.training
    assert (rival.name, rival.settings) == (library, "tuned" if tuned else "default")
    assert "1 workers" in rival.description

    trained = weights(rival.student)
    assert next(rival.steps()) == 24  # goes on with the same student
    rival.close()
    assert any(not torch.equal(old, new) for old, new in zip(trained, weights(rival.student), strict=True))


@pytest.mark.parametrize("tuned", [False, True], ids=["default", "tuned"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_loss_is_cross_entropy_and_hintons_divergence(
    rivals: ModuleType, settings: Any, library: str, tuned: bool
) -> None:
    rival = loop_of(rivals, library)(settings, switches(rivals, tuned))
    torch.manual_seed(1)
    images, labels = torch.rand(5, 3, 32, 32), torch.tensor([0, 3, 1, 1, 2])
    rival.student.eval()
    with torch.no_grad():
        for head in (rival.student.net.head, rival.teacher.net.head):  # logits far from zero
            head.weight.mul_(20)
        student, teacher = rival.student(images).double(), rival.teacher(images).double()
    soft, log_soft = torch.softmax(teacher / 4, 1), torch.log_softmax(student / 4, 1)
    divergence = (soft * (soft.log() - log_soft)).sum(1).mean()
    expected = F.cross_entropy(student, labels) + 16 * divergence
    assert divergence > 0.01
    torch.testing.assert_close(rival.loss(images, labels).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("tuned", [False, True], ids=["default", "tuned"])
def test_views_are_crops_of_the_wanted_size_in_0_to_1(
    rivals: ModuleType, settings: Any, library: str, tuned: bool
) -> None:
    rival = loop_of(rivals, library)(settings, replace(switches(rivals, tuned), workers=0))
    images, labels = next(iter(rival.batches()))
    assert images.shape == (24, 3, 32, 32)
    top = 255 if images.dtype == torch.uint8 else 1  # made float, and divided, on the device
    assert 0 <= images.min() < images.max() <= top
    assert images.max() > top / 2
    assert set(labels.tolist()) <= set(range(4))


def test_every_rival_has_a_default_and_a_tuned_loop(rivals: ModuleType, settings: Any) -> None:
    assert set(rivals.RIVALS) == {f"{library}-{kind}" for library in LIBRARIES for kind in ("default", "tuned")}
    for library in LIBRARIES:
        rival = rivals.RIVALS[f"{library}-default"](settings)
        assert (rival.name, rival.settings) == (library, "default")


def test_the_trial_takes_the_fastest_number_of_workers_and_compiles_where_it_pays(
    rivals: ModuleType, settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    speeds = {(0, ""): 1.0, (1, ""): 2.0, (1, "default"): 3.0}
    tried = []

    def pace(rival: Any, device: torch.device) -> float:
        key = (rival.switches.workers, rival.switches.compile)
        tried.append(key)
        if not speeds[key]:
            raise RuntimeError("no compiler")
        return speeds[key]

    monkeypatch.setattr(sys.modules["rivals.search"], "pace", pace)  # the real trial compiles for minutes
    found = rivals.RIVALS["textbook-tuned"](settings, notes=tmp_path)
    assert tried == 2 * [(0, ""), (1, "")] + 2 * [(1, ""), (1, "default")]
    assert (found.switches.workers, found.switches.compile, found.switches.freeze) == (1, "default", True)
    again = rivals.RIVALS["textbook-tuned"](settings, notes=tmp_path)
    assert again.switches == found.switches and len(tried) == 8  # what was found is used again
    for slower in (1.5, 0.0):
        speeds[1, "default"] = slower
        assert rivals.RIVALS["textbook-tuned"](settings).switches.compile == ""


def test_too_few_images_for_a_batch_end_the_loop(rivals: ModuleType, settings: Any) -> None:
    rival = loop_of(rivals, "textbook")(replace(settings, batch_size=65))
    with pytest.raises(ValueError, match="fewer images than one batch of 65"):
        next(rival.steps())


def test_large_jpeg_files_are_decoded_at_a_fraction(rivals: ModuleType, settings: Any, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "field").mkdir()
    Image.radial_gradient("L").resize((600, 600)).convert("RGB").save(tmp_path / "field" / "0.jpg")
    folder = sys.modules["rivals.textbook"].fast_folder(replace(settings, data=tmp_path))
    assert folder.loader(folder.samples[0][0]).size == (75, 75)  # 32 / 0.433 = 74 would do
    assert folder[0][0].shape == (3, 32, 32)
    whole = sys.modules["rivals.textbook"].fast_folder(replace(settings, data=tmp_path, pixels=224))
    assert whole.loader(whole.samples[0][0]).shape == (3, 600, 600)
