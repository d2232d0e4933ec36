"""Gradients by onnx-ad, an independent ONNX-to-ONNX differentiator (MIT; a development dependency)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ad
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

Array = NDArray[Any]


def gradients(
    model: onnx.ModelProto, inputs: Mapping[str, Array], names: Sequence[str]
) -> tuple[Array, dict[str, Array]]:
    """The only output of `model`, and the gradient of its mean square for the initialisers `names`.

    onnx-ad wants all sizes fixed, so this holds for batches of the size of `inputs`.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    stored = {item.name: item for item in proto.graph.initializer}
    weights = {name: numpy_helper.to_array(stored[name]) for name in names}
    for name, array in weights.items():
        proto.graph.initializer.remove(stored[name])
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    [output] = proto.graph.output
    for item in (*proto.graph.input, output):
        if item.name not in weights:
            size = item.type.tensor_type.shape.dim[0]
            size.Clear()
            size.dim_value = len(next(iter(inputs.values())))
    del proto.graph.value_info[:]
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    adjoint = onnx_ad.reverse(proto, inputs=list(names), outputs=[output.name], layout="onnx")

    feeds = {**inputs, **weights}
    [prediction] = _run(proto, feeds, [output.name])
    [seed] = [item.name for item in adjoint.graph.input if item.name not in feeds]
    feeds[seed] = (2.0 / prediction.size * prediction)[..., np.newaxis]
    wanted = [item.name for item in adjoint.graph.output if item.name != output.name]
    assert len(wanted) == len(names)
    return prediction, dict(zip(names, _run(adjoint, feeds, wanted), strict=True))


def _run(proto: onnx.ModelProto, feeds: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(wanted), dict(feeds))
