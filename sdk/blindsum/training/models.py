"""Small ONNX models to begin with, made without any training framework (author side; needs the `onnx` package)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from blindsum.protocol.errors import BlindsumError

from .operators import OPSET_MIN
from .verify import IR_VERSION


def mlp(sizes: Sequence[int], *, seed: int) -> onnx.ModelProto:
    """A perceptron of dense layers with ReLU between them; `sizes` runs from the features to the logits.

    float32 input "features" (batch, sizes[0]), output "logits" (batch, sizes[-1]). Weights "layer1.weight" (in, out),
    normal with variance 2 / in (He et al., arXiv 1502.01852), and "layer1.bias", zero; the same seed gives the same
    model.
    """
    generator = np.random.default_rng(seed)
    layers = [
        (
            generator.normal(0.0, np.sqrt(2.0 / fan_in), (fan_in, fan_out)).astype(np.float32),
            np.zeros(fan_out, np.float32),
        )
        for fan_in, fan_out in pairwise(sizes)
    ]
    return _dense(layers, sizes)


def logistic(features: int, outputs: int = 1) -> onnx.ModelProto:
    """Logistic regression (one output: train with "binary-cross-entropy") or softmax regression, from zero weights.

    Named as `mlp([features, outputs])` names it. The loss is convex, so no seed is needed.
    """
    return _dense([(np.zeros((features, outputs), np.float32), np.zeros(outputs, np.float32))], (features, outputs))


def _dense(layers: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]], sizes: Sequence[int]) -> onnx.ModelProto:
    if not layers or min(sizes) < 1:
        raise BlindsumError("training-request-invalid", f"layer sizes {list(sizes)}")
    nodes, weights, value = [], [], "features"
    for number, (weight, bias) in enumerate(layers, start=1):
        names = f"layer{number}.weight", f"layer{number}.bias"
        weights += [numpy_helper.from_array(array, name) for array, name in zip((weight, bias), names, strict=True)]
        last = number == len(layers)
        dense = "logits" if last else f"layer{number}"
        nodes.append(helper.make_node("Gemm", [value, *names], [dense]))
        if not last:
            value = f"{dense}.relu"
            nodes.append(helper.make_node("Relu", [dense], [value]))
    given = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", sizes[0]])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", sizes[-1]])
    graph = helper.make_graph(nodes, "model", [given], [result], weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET_MIN)], ir_version=IR_VERSION, producer_name="blindsum"
    )
