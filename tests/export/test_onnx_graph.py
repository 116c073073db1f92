"""The ONNX graph and the exported program: they prepare images as a run does, and say nothing of this machine."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from scenedistill.data.images.read import read_image, read_scene
from scenedistill.data.views import evaluation_view
from scenedistill.export.quantise import quantise
from scenedistill.inference.model import open_model
from scenedistill.models.create import build_student
from scenedistill.models.files import NetCard

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[use]'")
ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e '.[use]'")

OWN_FOLDERS = re.compile(rb"site-packages|scenedistill/|, line \d|/(?:home|root|work|tmp|Users)/\w")


def prepared(path: Path) -> InferenceSession:
    """The graph with its steps of preparation as further outputs."""
    model = onnx.load(path)
    for name, kind in (("prepare/stored", onnx.TensorProto.UINT8), ("prepare/view", onnx.TensorProto.FLOAT)):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return ort.InferenceSession(model.SerializeToString())


def check_preparation(session: InferenceSession, files: list[Path]) -> None:
    wrong = total = 0
    for file in files:
        image, scene = read_image(file), read_scene(file, 40).copy()
        stored, view = session.run(["prepare/stored", "prepare/view"], {"images": image[None]})
        difference = np.abs(stored[0].transpose(1, 2, 0).astype(int) - scene)
        assert difference.max() <= 1
        if image.shape[0] < 1.5 * image.shape[1]:  # of tall images Pillow does the height first, and rounds otherwise
            wrong, total = wrong + int((difference > 0).sum()), total + difference.size
        kept, seen = session.run(["prepare/stored", "prepare/view"], {"images": scene[None]})
        np.testing.assert_array_equal(kept[0].transpose(1, 2, 0), scene)
        expected = evaluation_view(torch.from_numpy(scene[None]), size=32).numpy()
        np.testing.assert_allclose(seen / 255, expected, atol=1e-5, rtol=0)
        np.testing.assert_allclose(view / 255, expected, atol=1 / 255, rtol=0)
    assert wrong / total < 1e-3


def test_the_graph_prepares_images_as_a_run_does(
    exported_nets: dict[str, Path], tiny_scenes: Path, tmp_path: Path
) -> None:
    files = sorted(tiny_scenes.rglob("*.png"))[::9]  # 48 pixels
    for number, (width, height) in enumerate([(40, 40), (200, 121), (30, 37), (60, 100)]):
        files.append(tmp_path / f"{number}.png")
        Image.open(files[0]).resize((width, height), Image.Resampling.BICUBIC).save(files[-1])
    check_preparation(prepared(exported_nets["onnx"]), files)


@pytest.mark.shared_data
def test_the_graph_prepares_real_images_as_a_run_does(exported_nets: dict[str, Path], aid_folder: Path) -> None:
    files = [next(iter(sorted(folder.glob("*.jpg")))) for folder in sorted(aid_folder.iterdir()) if folder.is_dir()]
    session = prepared(exported_nets["onnx"])
    for file in files[:12]:
        scene = read_scene(file, 40)
        stored, view = session.run(["prepare/stored", "prepare/view"], {"images": read_image(file)[None]})
        # 150 pixels are decoded at 75 for 40: two good downscalings of one image, of which the graph takes one
        assert np.abs(stored[0].transpose(1, 2, 0).astype(int) - scene).mean() < 3
        assert view.shape == (1, 3, 32, 32)


def test_the_file_says_what_it_is_and_nothing_of_this_machine(exported_nets: dict[str, Path]) -> None:
    model = onnx.load(exported_nets["onnx"])
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names) and all(names)
    assert [output.name for output in model.graph.output] == ["probabilities", "embedding", "logits"]
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in sizes] == ["batch", "height", "width", 3]
    norms = [node.op_type for node in model.graph.node].count("BatchNormalization")
    assert norms <= 8, "all are folded but the two of each DA module, which no convolution feeds"
    assert not OWN_FOLDERS.search(exported_nets["onnx"].read_bytes())
    with zipfile.ZipFile(exported_nets["pt2"]) as program:
        for name in program.namelist():
            assert not OWN_FOLDERS.search(program.read(name)), name


def test_the_program_prepares_images_by_itself(exported_nets: dict[str, Path], tiny_scenes: Path) -> None:
    program = torch.export.load(exported_nets["pt2"]).module()
    file = next(iter(sorted(tiny_scenes.rglob("*.png"))))
    model = open_model(exported_nets["safetensors"], device="cpu", precision="fp32")
    for count, size in ((1, (48, 48)), (3, (77, 40)), (1, (1, 1))):
        images = [np.asarray(Image.open(file).resize(size)) for _ in range(count)]
        probabilities, embedding, logits = program(torch.from_numpy(np.stack(images)))
        expected = model.predict(images)
        np.testing.assert_allclose(logits.numpy(), expected.logits, atol=0.02)
        np.testing.assert_allclose(probabilities.numpy(), expected.probabilities, atol=0.01)
        assert embedding.shape == (count, 64)


def test_quantising_leaves_the_graph_unchanged_and_shrinks_the_file(
    exported_nets: dict[str, Path], tiny_scenes: Path, tmp_path: Path
) -> None:
    graph = onnx.load(exported_nets["onnx"])
    before = graph.SerializeToString()
    files = sorted(tiny_scenes.rglob("*.png"))
    images = np.stack([read_scene(file, 40) for file in files])
    quantise(graph, images[::2], tmp_path / "int8.onnx")
    assert graph.SerializeToString() == before

    small = onnx.load(tmp_path / "int8.onnx")
    weights = {tensor.name: tensor for tensor in small.graph.initializer}
    made = {output: node for node in small.graph.node for output in node.output}
    for node in small.graph.node:
        if node.op_type == "Conv":
            integer = made.get(node.input[1])
            stays = ".attention" in node.name or node.name.startswith("normalise/")
            assert (integer is None) is stays, node.name
            if integer is not None:
                values = onnx.numpy_helper.to_array(weights[integer.input[0]])
                scales = onnx.numpy_helper.to_array(weights[integer.input[1]])
                assert values.dtype == np.int8 and np.abs(values.astype(int)).max() <= 64
                assert scales.shape == (values.shape[0],), "one scale a channel"
        elif node.op_type in ("Resize", "Mul", "ReduceMean"):
            assert made.get(node.input[0], node).op_type != "QuantizeLinear"
    exact, rounded = open_model(exported_nets["onnx"]), open_model(tmp_path / "int8.onnx")
    assert rounded.card == exact.card and rounded.about == exact.about
    one, other = (model.predict(images[1::2]).logits for model in (exact, rounded))
    assert np.abs(one - other).mean() < 0.05 * np.ptp(one) and np.abs(one - other).max() < 0.15 * np.ptp(one)
    assert np.abs(one - other).max() > 0
    assert (tmp_path / "int8.onnx").stat().st_size < 0.35 * exported_nets["onnx"].stat().st_size


@pytest.mark.parametrize("bands", [1, 4])
def test_the_graph_takes_one_and_four_bands(bands: int, tmp_path: Path) -> None:
    from scenedistill.export.onnx_graph import build_graph

    torch.manual_seed(0)
    card = NetCard("table1_printed", ("a", "b"), bands, 32, dual_attention=False)
    net = build_student(card.name, 2, bands=bands, image_size=32, dual_attention=False)
    path = tmp_path / "net.onnx"
    path.write_bytes(build_graph(net, card, {}).SerializeToString())
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, bands), dtype=np.uint8)
    with torch.no_grad():
        expected = net.eval()(evaluation_view(torch.from_numpy(images), size=32), attention=False)
    np.testing.assert_allclose(open_model(path).predict(images).logits, expected.logits.numpy(), atol=1e-4)
