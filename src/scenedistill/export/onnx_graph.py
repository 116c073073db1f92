"""Export of a student as one ONNX graph for uint8 images of any size."""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn import functional as F

from scenedistill.models.files import NetCard
from scenedistill.models.network import SceneNet
from scenedistill.runs.provenance import as_metadata

if TYPE_CHECKING:
    import onnx

#: First opset whose Resize has antialiasing.
OPSET = 18
#: Name prefixes of the nodes that prepare images.
PREPARE, NORMALISE = "prepare/", "normalise/"
#: Name of the network's input; it cannot clash with names in the network.
VIEW = f"{PREPARE}view"


def build_graph(net: SceneNet, card: NetCard, about: Mapping[str, Any]) -> onnx.ModelProto:
    """Return the network as an ONNX graph that includes the preparation of images.

    The input is `images`, uint8 `[batch, height, width, bands]` with free batch, height and width. The outputs are
    `probabilities [batch, K]`, `embedding [batch, D]` and `logits [batch, K]`, all float32.

    The resize to `stored_size` is bicubic on uint8 with Pillow's coefficients. Its pixels equal those of `read_scene`,
    except for one grey level in a few of ten thousand pixels (up to one in four for tall images). Differences are
    larger, as between two good downscaling methods, for images of six or more times the stored size and for JPEGs that
    `read_scene` decodes at a fraction of their size.

    Args:
        net: network in any mode; it is not changed. The graph does not output its attention.
        card: card of the network.
        about: provenance for the file's metadata.
    """
    from onnx import helper, shape_inference

    model = _network(net, card)
    _name_nodes(model.graph)
    _add_preparation(model.graph, card)
    _add_softmax(model.graph)
    model.doc_string = f"{card.name}: {len(card.classes)} scene classes; takes uint8 images of any size"
    helper.set_model_props(model, as_metadata(card, about))
    return shape_inference.infer_shapes(model)


def write_metadata(path: Path, card: NetCard, about: Mapping[str, Any]) -> None:
    """Replace the metadata of an ONNX file."""
    import onnx
    from onnx import helper

    model = onnx.load(path)
    helper.set_model_props(model, as_metadata(card, about))
    path.write_bytes(model.SerializeToString())


class _LogitsAndEmbedding(nn.Module):
    """Network from grey levels 0..255 to logits and embedding, without attention outputs.

    The normalisation is a 1x1 convolution, which runtimes compute faster than a subtraction and a division.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, net: SceneNet) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("scale", torch.diag(1 / (255 * net.std.flatten()))[:, :, None, None])
        self.register_buffer("shift", -(net.mean / net.std).flatten())
        for stage in net.stages:
            stage.watched = False

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.net.backbone(F.conv2d(levels, self.scale, self.shift))
        return self.net.head(embedding), embedding


def _network(net: SceneNet, card: NetCard) -> onnx.ModelProto:
    """Export the network for views `[batch, bands, S, S]` in 0..255, with logits, embedding and folded batch norms."""
    plain = cast(SceneNet, reparameterize_model(copy.deepcopy(net).cpu().float().eval()))
    view = torch.zeros(2, card.bands, card.image_size, card.image_size)
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the exporter prints its steps
        warnings.simplefilter("ignore")
        program = torch.export.export(_LogitsAndEmbedding(plain), (view,), dynamic_shapes={"levels": {0: batch}})
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[VIEW],
            output_names=["logits", "embedding"],
            dynamic_shapes={"levels": {0: batch}},
            verbose=False,
        )
    return exported.model_proto  # type: ignore[no-any-return]


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Name each node after its module, such as `backbone.conv2_x.attention/conv2d_3`, and drop the exporter's metadata,
    which contains source lines and folders of this machine."""
    for node in graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        module = scopes[-2].removeprefix("net.") if len(scopes) > 1 else ""
        node.name = f"{module or NORMALISE[:-1]}/{node.name.removeprefix('node_')}"
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]


def _add_preparation(graph: onnx.GraphProto, card: NetCard) -> None:
    """Prepend the preparation of images by `read_scene` and `evaluation_view`."""
    from onnx import TensorProto, helper, numpy_helper

    stored = card.stored_size or card.image_size

    planes, squashed, levels = (f"{PREPARE}{name}" for name in ("planes", "stored", "levels"))

    def node(kind: str, inputs: list[str], output: str, **settings: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [output], name=output, **settings)

    def resize(source: str, output: str, side: int, **settings: Any) -> list[onnx.NodeProto]:
        # all four sizes, because tools of ONNX Runtime fail on two sizes with `axes`
        square, batch, sizes = (f"{output}_{name}" for name in ("square", "batch", "sizes"))
        graph.initializer.append(numpy_helper.from_array(np.array([side, side], np.int64), square))
        return [
            node("Shape", [source], batch, end=2),
            node("Concat", [batch, square], sizes, axis=0),
            node("Resize", [source, "", "", sizes], output, antialias=1, exclude_outside=1, **settings),
        ]

    same = stored == card.image_size
    nodes = [
        node("Transpose", ["images"], planes, perm=[0, 3, 1, 2]),
        # -1/2 and no pixels beyond the edge as in Pillow's bicubic; PyTorch's bilinear also ignores pixels beyond it
        *resize(planes, squashed, stored, mode="cubic", cubic_coeff_a=-0.5),
        node("Cast", [squashed], VIEW if same else levels, to=TensorProto.FLOAT),
        *([] if same else resize(levels, VIEW, card.image_size, mode="linear")),
        *graph.node,
    ]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    shape: list[str | int | None] = ["batch", "height", "width", card.bands]
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, shape))


def _add_softmax(graph: onnx.GraphProto) -> None:
    """Append the softmax, and set the shapes of the outputs."""
    from onnx import TensorProto, helper

    widths = {output.name: output.type.tensor_type.shape.dim[1].dim_value for output in graph.output}
    graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1))
    del graph.output[:]
    for name, like in (("probabilities", "logits"), ("embedding", "embedding"), ("logits", "logits")):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", widths[like]]))
