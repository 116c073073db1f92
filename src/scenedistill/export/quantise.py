"""An ONNX graph in 8-bit integers, its ranges measured on training images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scenedistill.export.onnx_graph import NORMALISE, PREPARE

if TYPE_CHECKING:
    import onnx

#: What is computed in integers. Attention is not: its sums and gates are small work, and lose the most by rounding.
KINDS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool")
ATTENTION = ".attention"
#: Images of one pass while the ranges are measured.
PASS = 16


def quantise(model: onnx.ModelProto, images: np.ndarray, path: Path) -> None:
    """Write the graph with convolutions, residual sums, pooling and head in 8 bits, as QDQ pairs that every runtime
    reads.

    Activations are uint8, weights int8 with one symmetric scale a channel: the pair for which x86 has instructions.
    Weights keep to 7 bits (`reduce_range`): processors without VNNI add two products in 16 bits, which 8 bits could
    overflow. Preparing images, normalisation and attention stay in float32.

    Args:
        model: of `build_graph`; left as it is.
        images: training images, uint8 `[N, S, S, bands]`, from which each tensor's least and greatest value are taken.
        path: to write to.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    copy = onnx.ModelProto()  # the quantiser changes what it is given
    copy.CopyFrom(model)
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would advise a step that has been done
    try:
        quantize_static(
            copy,
            str(path),
            _reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=list(KINDS),
            nodes_to_exclude=[node.name for node in model.graph.node if _stays(node.name)],
            extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True},
        )
    finally:
        logger.setLevel(level)


def _stays(name: str) -> bool:
    """Whether a node stays in float32."""
    return name.startswith((PREPARE, NORMALISE)) or ATTENTION in name


def _reader(images: np.ndarray) -> object:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out batches until there are no more."""

        def __init__(self) -> None:
            starts = range(0, len(images), PASS)
            self.batches: Iterator[dict[str, np.ndarray]] = iter(
                {"images": np.ascontiguousarray(images[start : start + PASS])} for start in starts
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    return Reader()
