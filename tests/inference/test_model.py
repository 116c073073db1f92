"""A network opened for use: the same answer as in a run's test, whatever the file and the sizes of the images."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from scenedistill.core.errors import UserError
from scenedistill.data.images.read import read_image, read_scene, squash
from scenedistill.data.views import evaluation_view
from scenedistill.inference.model import OnnxSceneModel, ProgramSceneModel, SceneModel, TorchSceneModel, open_model
from scenedistill.models.create import build_student
from scenedistill.models.files import NetCard, load_net, save_net
from scenedistill.serve.answers import Answerer
from scenedistill.serve.networks import ServedNetworks


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    """Noise with some structure and a colour of its own, uint8."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 100, (shape[0] // 8 + 1, shape[1] // 8 + 1, shape[2])), np.ones((8, 8, 1)))
    colour = rng.integers(0, 120, shape[2])
    return (coarse[: shape[0], : shape[1]] + rng.integers(0, 36, shape) + colour).astype(np.uint8)


@pytest.fixture(scope="module", params=["safetensors", "onnx", "pt2"])
def model(request: pytest.FixtureRequest, exported_nets: dict[str, Path]) -> SceneModel:
    return open_model(exported_nets[request.param], device="cpu", precision="fp32", threads=1, trust=True)


def test_every_file_predicts_what_the_run_tested(
    model: SceneModel, exported_nets: dict[str, Path], tmp_path: Path
) -> None:
    net, card = load_net(exported_nets["safetensors"])
    assert model.card == card and model.source == exported_nets[model.source.suffix[1:]]
    images, stored = [], []
    for number, size in enumerate([(40, 40), (64, 48), (33, 90), (300, 250)]):  # the last is seven times as large
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels(*size, 3, seed=number)).save(path)
        images.append(read_image(path))
        stored.append(read_scene(path, 40))
    with torch.no_grad():
        output = net(evaluation_view(torch.from_numpy(np.stack(stored)), size=32), attention=False)

    together = model.predict(images)
    alone = [model.predict([image]) for image in images]
    for found in (together, type(together)(*(np.concatenate(parts) for parts in zip(*alone, strict=True)))):
        # a graph that squashes by itself may be one grey level off
        np.testing.assert_allclose(found.logits, output.logits.numpy(), atol=0.05, rtol=0)
        np.testing.assert_allclose(found.embedding, output.embedding.numpy(), atol=0.05, rtol=0)
        np.testing.assert_allclose(found.probabilities, output.logits.softmax(1).numpy(), atol=0.01, rtol=0)
        assert {part.dtype for part in found} == {np.dtype(np.float32)}
    exact = model.predict(np.stack(stored))
    np.testing.assert_allclose(exact.logits, output.logits.numpy(), atol=1e-4, rtol=0)
    assert np.ptp(output.logits.numpy(), axis=0).max() > 0.3, "the images must differ for the network"


def test_predict_takes_no_images_and_refuses_wrong_ones(model: SceneModel) -> None:
    none = model.predict([])
    assert none.probabilities.shape == (0, 4) and none.embedding.shape == (0, 64) and none.logits.shape == (0, 4)
    for wrong in ([np.zeros((40, 40, 3))], [np.zeros((40, 40, 4), np.uint8)], np.zeros((40, 40, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
            model.predict(wrong)
    frozen = pixels(40, 40, 3)[None]
    frozen.flags.writeable = False
    assert model.predict(frozen).logits.shape == (1, 4)
    turned = pixels(40, 40, 3)[None, ..., ::-1]  # BGR as RGB: strides below 0
    np.testing.assert_array_equal(model.predict(turned).logits, model.predict(turned.copy()).logits)


def test_open_model_chooses_the_class_by_the_kind_of_file(exported_nets: dict[str, Path]) -> None:
    opened = {
        kind: open_model(path, device="cpu", precision="fp32", trust=True) for kind, path in exported_nets.items()
    }
    assert isinstance(opened["safetensors"], TorchSceneModel) and not opened["safetensors"].net.training
    assert isinstance(opened["onnx"], OnnxSceneModel) and opened["onnx"].session.get_inputs()[0].name == "images"
    assert isinstance(opened["pt2"], ProgramSceneModel)
    assert opened["onnx"].about == opened["pt2"].about == {"oa": 0.5, "data": "forêt"}


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_squash_equals_read_scene(bands: int, tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    image = pixels(90, 61, bands)
    tifffile.imwrite(path, image, photometric="rgb" if bands == 3 else "minisblack", metadata=None)
    np.testing.assert_array_equal(squash(read_image(path, bands), 25), read_scene(path, 25, bands))
    assert squash(image, 90).shape == (90, 90, bands)


def test_a_run_gives_its_distilled_student(tiny_run: Path) -> None:
    student = tiny_run / "seed3" / "table1_printed" / "dkd"
    of_run = open_model(tiny_run, device="cpu")
    assert of_run.source == student / "weights.safetensors"
    assert open_model(student, device="cpu").source == of_run.source
    assert open_model(tiny_run / "seed3" / "teacher", device="cpu").source.parent.name == "teacher"
    about = of_run.about
    assert about["method"] == "dkd" and about["teacher"] == "table1_printed" and about["seed"] == 3
    assert 0 <= about["oa"] <= 1 and about["test_images"] == 32 and len(about["split_hash"]) == 16
    assert about["train_ratio"] == 0.5 and "licence" not in about, "generated scenes are in no catalogue"


def test_files_that_are_no_network_are_refused(tmp_path: Path, tiny_run: Path, exported_nets: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="There is nothing at"):
        open_model(tmp_path / "none")
    with pytest.raises(UserError, match="--threads -1: expected 1 or more"):
        open_model(exported_nets["safetensors"], threads=-1)
    with pytest.raises(UserError, match="holds no trained network"):
        open_model(tmp_path)
    for name in ("photo.jpg", "weights.pth"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match="is no network"):
            open_model(tmp_path / name, trust=True)
    for name in ("broken.onnx", "broken.pt2", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"broken")
        with pytest.raises(UserError, match="cannot be read as"):
            open_model(tmp_path / name, trust=True)
    import onnx

    foreign = onnx.load(exported_nets["onnx"])
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match="does not say which classes it knows"):
        open_model(tmp_path / "foreign.onnx")


def test_several_students_are_listed(tmp_path: Path) -> None:
    for name in ("table1_printed", "table1_resnet"):
        for method in ("plain", "dkd"):
            folder = tmp_path / "seed0" / name / method
            folder.mkdir(parents=True)
            (folder / "stage.json").write_text(f'{{"settings": {{"student": {{"method": "{method}"}}}}}}')
            card = NetCard("table1_printed", ("a", "b"), 3, 96)
            save_net(build_student("table1_printed", 2), card, folder / "weights.safetensors")
    with pytest.raises(UserError, match="2 distilled students") as problem:
        open_model(tmp_path)
    listed = str(problem.value)
    assert str(tmp_path / "seed0/table1_resnet/dkd") in listed and "plain" not in listed
    for weights in tmp_path.rglob("dkd/weights.safetensors"):
        weights.unlink()
    with pytest.raises(UserError, match="no distilled student"):
        open_model(tmp_path)


class Marks:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self.folder),)


def changed_program(sound: Path, target: Path, kind: str, marks: Path) -> None:
    """A sound program with a few lines changed, so that opening it makes the folder `marks`."""
    with zipfile.ZipFile(sound) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if kind == "weights" and name.endswith("data/weights/model_weights_config.json"):
                config = json.loads(content)
                next(iter(config["config"].values()))["use_pickle"] = True
                content = json.dumps(config).encode()
            elif kind == "weights" and name.endswith("data/weights/weight_0"):
                written = io.BytesIO()
                torch.save(Marks(marks), written)
                content = written.getvalue()
            elif kind == "graph" and name.endswith("models/model.json"):
                code = f"__import__('os').makedirs({str(marks)!r})"
                content = re.sub(rb"Symbol\('\w+', positive=True, integer=True\)", code.encode(), content)
            after.writestr(name, content)


@pytest.mark.parametrize("kind", ["weights", "graph"])
def test_no_code_of_an_exported_program_runs_without_trust(
    exported_nets: dict[str, Path], tiny_scenes: Path, commands: Any, tmp_path: Path, kind: str
) -> None:
    marks, program = tmp_path / "marks", tmp_path / "student" / "model.pt2"
    program.parent.mkdir()
    changed_program(exported_nets["pt2"], program, kind, marks)
    for path in (program, program.parent):
        with pytest.raises(UserError, match=r"model\.pt2 is a program: opening it runs whatever code was put into it"):
            open_model(path)
    with pytest.raises(UserError, match="is a program"):
        Answerer(ServedNetworks(program))
    ended = commands("predict", program, next(tiny_scenes.rglob("*.png")), "--out", tmp_path / "out")
    assert ended.code == 1 and "--trust true" in ended.err and len(ended.err.splitlines()) <= 2
    assert not marks.exists(), "nothing of it has run"
    with pytest.raises(UserError, match="cannot be read as an exported program"):
        open_model(program, trust=True)
    assert marks.exists(), "so it would have"


def test_an_onnx_file_reads_no_file_outside_its_folder(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.bin").symlink_to(tmp_path / "secret.bin")
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin"):
        outside = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
        entry = outside.external_data.add()
        entry.key, entry.value = "location", location
        output = helper.make_tensor_value_info("y", 1, [4])
        graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [output], [outside])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        (tmp_path / "in" / "a.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match="cannot be read as an ONNX file"):
            open_model(tmp_path / "in" / "a.onnx")


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp", "resnet18.hf-hub:x", "../resnet18"])
def test_the_name_in_a_weights_file_is_never_used_as_an_address(
    exported_nets: dict[str, Path], tmp_path: Path, name: str
) -> None:
    from safetensors.torch import load_file, save_file

    card = {"name": name, "classes": ["a", "b"], "bands": 3, "image_size": 32}
    save_file(load_file(exported_nets["safetensors"]), tmp_path / "a.safetensors", {"scenedistill": json.dumps(card)})
    with pytest.raises(UserError):
        open_model(tmp_path / "a.safetensors")
