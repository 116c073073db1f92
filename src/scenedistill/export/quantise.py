"""Quantise an ONNX graph to 8-bit integers, with ranges measured on training images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scenedistill.export.onnx_graph import NORMALISE, PREPARE

if TYPE_CHECKING:
    import onnx

#: Operators to quantise, outside attention modules, which cost little time and are most sensitive to rounding.
KINDS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool")
ATTENTION = ".attention"
#: Images of one pass while the ranges are measured.
PASS = 16


def quantise(model: onnx.ModelProto, images: np.ndarray, path: Path) -> None:
    """Write the graph with convolutions, residual sums, pooling and head in 8 bits, as QDQ pairs.

    Activations are uint8; weights are int8 with one symmetric scale for each channel, the combination that x86
    instructions support. Weights use 7 bits only (`reduce_range`), because processors without VNNI add two products
    in 16 bits, which can overflow with 8-bit weights. Image preparation, normalisation and attention stay in float32.

    Args:
        model: graph of `build_graph`; it is not changed.
        images: training images, uint8 `[N, S, S, bands]`, on which the range of each tensor is measured.
        path: file to write.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    copy = onnx.ModelProto()  # the quantiser changes its input
    copy.CopyFrom(model)
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would recommend a preprocessing step that is already done
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
            nodes_to_exclude=[node.name for node in model.graph.node if _is_float32(node.name)],
            extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True},
        )
    finally:
        logger.setLevel(level)


def _is_float32(name: str) -> bool:
    """Return whether a node stays in float32."""
    return name.startswith((PREPARE, NORMALISE)) or ATTENTION in name


def _reader(images: np.ndarray) -> object:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Reader of batches of calibration images."""

        def __init__(self) -> None:
            starts = range(0, len(images), PASS)
            self.batches: Iterator[dict[str, np.ndarray]] = iter(
                {"images": np.ascontiguousarray(images[start : start + PASS])} for start in starts
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    return Reader()
