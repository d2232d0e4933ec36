"""Write what skl2onnx exports in the standard domain: linear models with their weights in attributes, scalers,
normalisers, and probabilities that are made of a pair (1 - p, p).

Logistic scores that are divided by their sum are the softmax of log sigmoid(z) = -softplus(-z); of two opposite scores
it is the softmax of (0, z). In that form a loss takes the logits. Labels and lists of dictionaries are cut away before.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .graph import attribute

ML = "ai.onnx.ml"
COEFFICIENTS, INTERCEPTS = ".coefficients", ".intercepts"
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


def scores(graph: onnx.GraphProto, output: str) -> str:
    """The tensor of numbers behind an output; '' for a label."""
    for node in graph.node:
        if node.op_type == "ZipMap" and output in node.output:
            return str(node.input[0])
    for item in graph.output:
        if item.name == output and item.type.HasField("tensor_type"):
            return output if item.type.tensor_type.elem_type in (*_FLOATS, TensorProto.UNDEFINED) else ""
    return ""


def weights(node: onnx.NodeProto) -> tuple[str, NDArray[np.float32], NDArray[np.float32]] | None:
    """What training calls the weights of a linear model (append `COEFFICIENTS` or `INTERCEPTS`), and their values.

    Coefficients are (outputs, features). Two opposite classes have one row, that of the second.
    """
    if node.domain != ML or node.op_type not in ("LinearClassifier", "LinearRegressor"):
        return None
    coefficients, intercepts = _rows(node)
    if is_stored_twice(node):
        coefficients, intercepts = coefficients[1:], intercepts[1:]
    return node.name or node.output[-1], coefficients, intercepts


def is_stored_twice(node: onnx.NodeProto) -> bool:
    """True for logistic regression whose two rows are opposite."""
    coefficients, intercepts = _rows(node)
    opposite = len(coefficients) == 2 and np.array_equal(coefficients[0], -coefficients[1])
    return opposite and _post(node) == "LOGISTIC" and bool(intercepts[0] == -intercepts[1])


def lower(graph: onnx.GraphProto) -> None:
    """Rewrite the nodes in place; what cannot be written so stays as it is."""
    nodes = list(graph.node)
    norms = {node.input[0]: node for node in nodes if node.domain == ML and node.op_type == "Normalizer"}
    arrays = {item.name: item for item in graph.initializer}
    made = {name: node for node in nodes for name in node.output}
    absorbed: list[str] = []  # outputs of normalisers that a classifier has done
    lowered: list[onnx.NodeProto] = []
    for node in nodes:
        if node.output[0] in absorbed:
            continue
        replacement: list[onnx.NodeProto] = []
        if linear := weights(node):
            stem, coefficients, intercepts = linear
            norm = norms.get(node.output[-1])
            norm = norm if norm is not None and _bytes(norm, "norm", b"MAX") == b"L1" else None
            replacement = list(_linear(node, stem, len(coefficients), norm))
            if replacement:
                graph.initializer.append(numpy_helper.from_array(coefficients, stem + COEFFICIENTS))
                graph.initializer.append(numpy_helper.from_array(intercepts, stem + INTERCEPTS))
                absorbed += norm.output if norm is not None else []
        elif node.domain == ML and node.op_type == "Scaler":
            replacement = list(_scaler(node))
        elif node.domain == ML and node.op_type == "Normalizer":
            power = {b"L1": 1, b"L2": 2}.get(_bytes(node, "norm", b"MAX"))
            if power:
                replacement = [
                    _cast(node.input[0], node.output[0] + ".float"),
                    helper.make_node(
                        "LpNormalization", [node.output[0] + ".float"], [node.output[0]], node.name, axis=1, p=power
                    ),
                ]
        elif node.op_type == "Reciprocal" and (logit := _logistic(node, made, arrays)):
            replacement = [helper.make_node("Sigmoid", [logit], [node.output[0]], node.name)]
        elif node.op_type == "Concat" and (logit := _pair(node, made, arrays)):
            replacement = list(_two_classes(logit, node.output[0], node.name))
        lowered += replacement or [node]
    del graph.node[:]
    graph.node.extend(lowered)


def _linear(node: onnx.NodeProto, stem: str, rows: int, norm: onnx.NodeProto | None) -> Iterator[onnx.NodeProto]:
    """Nothing where the link function is one that no exporter writes."""
    post, result = _post(node), (norm if norm is not None else node).output[-1]
    labels = max(len(_list(node, "classlabels_ints")), len(_list(node, "classlabels_strings")))
    pair = rows == 1 and labels == 2
    if post not in ("NONE", "SOFTMAX", "LOGISTIC") or (pair and post != "LOGISTIC"):
        return
    if post == "NONE" and norm is not None:
        return
    logits = result if post == "NONE" else f"{stem}.logits"
    yield _cast(node.input[0], f"{stem}.float")
    inputs = [f"{stem}.float", stem + COEFFICIENTS, stem + INTERCEPTS]
    yield helper.make_node("Gemm", inputs, [logits], stem, transB=1)
    if pair:
        yield from _two_classes(logits, result, f"{stem}.softmax")
    elif post == "SOFTMAX":
        yield helper.make_node("Softmax", [logits], [result], f"{stem}.softmax", axis=1)
    elif post == "LOGISTIC" and norm is None:
        yield helper.make_node("Sigmoid", [logits], [result], f"{stem}.sigmoid")
    elif post == "LOGISTIC":
        steps = [logits, f"{stem}.opposite", f"{stem}.softplus", f"{stem}.log", result]
        for operator, source, target in zip(("Neg", "Softplus", "Neg"), steps, steps[1:], strict=False):
            yield helper.make_node(operator, [source], [target], target)
        yield helper.make_node("Softmax", [steps[3]], [result], f"{stem}.softmax", axis=1)


def _two_classes(logit: str, result: str, name: str) -> Iterator[onnx.NodeProto]:
    """softmax (0, z) = (1 - sigmoid(z), sigmoid(z)) for a column z."""
    yield _constant(f"{result}.signs", np.array([[0.0, 1.0]], np.float32))
    yield helper.make_node("MatMul", [logit, f"{result}.signs"], [f"{result}.pair"], f"{name}.pair")
    yield helper.make_node("Softmax", [f"{result}.pair"], [result], name, axis=1)


def _logistic(node: onnx.NodeProto, made: dict[str, onnx.NodeProto], arrays: dict[str, onnx.TensorProto]) -> str:
    """z where the node makes 1 / (1 + exp(-1 z)), which overflows where sigmoid(z) does not; else ''."""
    total = made.get(node.input[0])
    power = made.get(total.input[0]) if total is not None and total.op_type == "Add" else None
    opposite = made.get(power.input[0]) if power is not None and power.op_type == "Exp" else None
    if total is None or opposite is None or opposite.op_type != "Mul":
        return ""
    one, minus = arrays.get(total.input[1]), arrays.get(opposite.input[1])
    if one is None or minus is None:
        return ""
    right = np.all(numpy_helper.to_array(one) == 1) and np.all(numpy_helper.to_array(minus) == -1)
    return str(opposite.input[0]) if right else ""


def _pair(node: onnx.NodeProto, made: dict[str, onnx.NodeProto], arrays: dict[str, onnx.TensorProto]) -> str:
    """The column z where the node concatenates (1 - sigmoid(z), sigmoid(z)), else ''."""
    if len(node.input) != 2 or attribute(node, "axis") not in (1, -1):
        return ""
    rest, chance = made.get(node.input[0]), made.get(node.input[1])
    if rest is None or chance is None or rest.op_type != "Sub" or chance.op_type != "Sigmoid":
        return ""
    one, logits = arrays.get(rest.input[0]), made.get(chance.input[0])
    if rest.input[1] != chance.output[0] or one is None or not np.all(numpy_helper.to_array(one) == 1):
        return ""
    if logits is None or logits.op_type != "Add" or logits.input[1] not in arrays:
        return ""
    shape = arrays[logits.input[1]].dims
    product = made.get(logits.input[0])
    columns = arrays.get(product.input[1]) if product is not None and product.op_type == "MatMul" else None
    return str(chance.input[0]) if columns is not None and columns.dims[-1] == 1 == shape[-1] else ""


def _scaler(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    stem = node.output[0]
    yield _cast(node.input[0], f"{stem}.float")
    yield _constant(f"{stem}.offset", np.array(_list(node, "offset"), np.float32))
    yield _constant(f"{stem}.scale", np.array(_list(node, "scale"), np.float32))
    yield helper.make_node("Sub", [f"{stem}.float", f"{stem}.offset"], [f"{stem}.centred"], f"{node.name}.centre")
    yield helper.make_node("Mul", [f"{stem}.centred", f"{stem}.scale"], [stem], node.name)


def _cast(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], target, to=TensorProto.FLOAT)


def _constant(name: str, array: NDArray[np.float32]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], name, value=numpy_helper.from_array(array))


def _rows(node: onnx.NodeProto) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    targets = attribute(node, "targets", 1)
    assert isinstance(targets, int)
    labels = max(len(_list(node, "classlabels_ints")), len(_list(node, "classlabels_strings")))
    given = np.array(_list(node, "intercepts"), np.float32)
    rows = len(given) or (targets if node.op_type == "LinearRegressor" else labels)
    coefficients = np.array(_list(node, "coefficients"), np.float32).reshape(rows, -1)
    return coefficients, given if given.size else np.zeros(rows, np.float32)


def _post(node: onnx.NodeProto) -> str:
    return _bytes(node, "post_transform", b"NONE").decode()


def _bytes(node: onnx.NodeProto, name: str, default: bytes) -> bytes:
    value = attribute(node, name, default)
    assert isinstance(value, bytes)
    return value


def _list(node: onnx.NodeProto, name: str) -> list[float]:
    value = attribute(node, name, [])
    return list(value)  # type: ignore[call-overload, no-any-return]
