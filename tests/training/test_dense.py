"""Dense layers of sequences become one product that takes over what scales values beside it: the same gradient."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from blindsum.training import build_artifact, decode
from blindsum.training.manifest import TARGETS
from tests.training.cases import case, check, model_of

ROOT, HALF = np.float32(np.sqrt(2)), np.float32(0.5)
NORM = "n = LayerNormalization (h, g, c)"
LAYERS = "m = MatMul (n, w) a = Add (b, m) t = Tanh (a)"
END = "k = MatMul (t, v) y = Add (k, h)"
SIZES = {"s": (4,), "g": (4,), "c": (4,), "w": (4, 6), "b": (6,), "v": (6, 4)}


def body(*parts):
    return " ".join(("h = Mul (x, s)", *parts))


def layer(text, **more):
    """A case of all weights of `SIZES` that its text reads, for examples of three positions of four numbers."""
    words = re.findall(r"\w+", text)
    used = {name: shape for name, shape in SIZES.items() if name in words}
    constants = {name: value for name, value in {"half": HALF, "root": ROOT}.items() if name in words}
    return case(text, (3, 4), tolerance=1e-3, constants=constants, **(used | more))


def nodes_of(item, trainable=None):
    """The forward pass of a case while it trains: the nodes before the loss."""
    trainable = trainable or list(item.weights)
    artifact = decode(build_artifact(model_of(item), loss="mse", trainable=trainable, optimizer="gradient"))
    nodes = onnx.load_from_string(artifact.train).graph.node
    return nodes[: next(at for at, node in enumerate(nodes) if TARGETS in node.input)]


FOLDED = {
    "norm, bias on the left, nothing after": layer(body(NORM, LAYERS, END)),
    "norm without a bias": layer(body("n = LayerNormalization (h, g)", LAYERS, END)),
    "no bias": layer(body(NORM, "t = MatMul (n, w)", END)),
    "two layers read the norm": layer(
        body(NORM, LAYERS, "o = MatMul (n, w2) u = Mul (t, o)", END.replace("(t,", "(u,")), w2=(4, 6)
    ),
    "a factor before": layer(body("n = Mul (h, half)", LAYERS, END)),
    "a divisor before": layer(body("n = Div (h, root)", LAYERS, END)),
    "a factor behind": layer(body(NORM, LAYERS, "k = MatMul (t, v) z = Mul (half, k) y = Add (z, h)")),
    "a factor between layers": layer(body("m = MatMul (h, w) t = Mul (m, half)", END)),
    "factors on both sides": layer(
        body("n = Mul (h, half) m = MatMul (n, w) a = Add (m, b) e = Div (a, root) t = Tanh (e)", END)
    ),
    "norm and a factor behind": layer(
        body(NORM, "m = MatMul (n, w) a = Add (m, b) e = Div (a, root) t = Tanh (e)", END)
    ),
}


@pytest.mark.parametrize("item", FOLDED.values(), ids=FOLDED)
def test_layer_takes_over_what_scales(item):
    check(item)
    assert "MatMul" not in {node.op_type for node in nodes_of(item)}
    scaling = {node.output[0] for node in nodes_of(item) if node.op_type in ("Div", "Mul")}
    assert scaling.isdisjoint("aekmnyz")
    for node in nodes_of(item):
        assert node.op_type != "LayerNormalization" or node.input[1] not in item.weights


KEPT = {
    "something else reads the norm": layer(body(NORM, LAYERS, "k = MatMul (t, v) y = Add (k, n)")),
    "more outputs than positions of eight examples": layer(body(NORM, LAYERS, END), w=(4, 30), b=(30,), v=(30, 4)),
    "a product of the norm and something computed": layer(
        body(NORM, "u = Transpose <perm=[0, 2, 1]> (n) t = MatMul (u, n) k = MatMul (h, t) y = Add (k, h)")
    ),
}


@pytest.mark.parametrize("item", KEPT.values(), ids=KEPT)
def test_normalisation_keeps_its_scale(item):
    check(item)
    (norm,) = [node for node in nodes_of(item) if node.op_type == "LayerNormalization"]
    assert norm.input[1:] == ["g", "c"]


def test_frozen_weights_take_nothing_over():
    """They are laid out in advance, and have no gradient of which the scale's could be made."""
    item = layer(body("n = LayerNormalization (h, g, c)", "m = MatMul (n, w) e = Div (m, root) t = Tanh (e)", END))
    nodes = nodes_of(item, ["s", "g", "c", "v"])
    (norm,) = [node for node in nodes if node.op_type == "LayerNormalization"]
    assert norm.input[1:] == ["g", "c"]
    assert "e" in {node.output[0] for node in nodes if node.op_type == "Div"}


def test_factor_behind_many_inputs_stays():
    item = case(
        "h = Mul (x, s) m = MatMul (h, w) t = Mul (m, half) y = Tanh (t)",
        (1, 12),
        constants={"half": HALF},
        s=(12,),
        w=(12, 2),
    )
    check(item)
    assert "t" in {node.output[0] for node in nodes_of(item) if node.op_type == "Mul"}


def test_factor_that_is_trained_stays():
    item = layer(body("n = Mul (h, f)", LAYERS, END), f=(1,))
    check(item)
    assert any(node.op_type == "Mul" and "f" in node.input for node in nodes_of(item))


def kinds(graph):
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


def test_what_predicts_and_what_is_frozen_stay():
    artifact = decode(build_artifact(model_of(layer(body(NORM, LAYERS, END))), loss="mse", trainable=["v"]))
    assert kinds(artifact.predict).count("MatMul") == 2
    assert kinds(artifact.train).count("MatMul") == 1
