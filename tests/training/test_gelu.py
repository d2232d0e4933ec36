"""GELU in the ways that exporters write it: found, written with its factors at both ends, and the same gradient."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from blindsum.training import build_artifact, decode
from tests.training.cases import case, check, model_of

CONSTANTS = {
    "root": np.float32(np.sqrt(2)),
    "inverse": np.float32(np.sqrt(0.5)),
    "half": np.float32(0.5),
    "two": np.float32(2.0),
    "one": np.float32(1.0),
    "near": np.float32(1.4),
}
ERF = "h = Mul (x, s) d = Div (h, root) e = Erf (d) a = Add (e, one)"
SPELLINGS = {
    "half of the product": f"{ERF} m = Mul (h, a) y = Mul (m, half)",
    "the product by two": f"{ERF} m = Mul (h, a) y = Div (m, two)",
    "half of the whole": f"{ERF} m = Mul (half, a) y = Mul (h, m)",
    "half of x": f"{ERF} m = Mul (h, half) y = Mul (m, a)",
    "x times the inverse root": "h = Mul (x, s) d = Mul (inverse, h) e = Erf (d) a = Add (one, e) m = Mul (a, h) y = Mul (half, m)",
    "half of x that something else reads": f"{ERF} m = Mul (h, half) z = Mul (a, m) y = Add (z, m)",
    "x over root two that something else reads": f"{ERF} m = Mul (h, a) z = Mul (m, half) y = Add (z, d)",
}
OTHERS = {
    "another root": "h = Mul (x, s) d = Div (h, near) e = Erf (d) a = Add (e, one) m = Mul (h, a) y = Mul (m, half)",
    "a root that is trained": "h = Mul (x, s) d = Div (h, r) e = Erf (d) a = Add (e, one) m = Mul (h, a) y = Mul (m, half)",
    "root over x": "h = Exp (g) g = Mul (x, s) d = Div (root, h) e = Erf (d) a = Add (e, one) m = Mul (h, a) y = Mul (m, half)",
    "two more": "h = Mul (x, s) d = Div (h, root) e = Erf (d) a = Add (e, two) m = Mul (h, a) y = Mul (m, half)",
    "another value": f"{ERF} m = Mul (x, a) y = Mul (m, half)",
    "the error function is read elsewhere": f"{ERF} m = Mul (h, a) n = Mul (m, half) y = Add (n, e)",
    "no half": f"{ERF} m = Mul (h, a) y = Mul (m, two)",
    "x twice": f"{ERF} m = Mul (h, a) y = Mul (h, m)",
}


def item_of(body):
    lines = body if "h = Exp" not in body else body.replace("h = Exp (g) g = Mul (x, s)", "g = Mul (x, s) h = Exp (g)")
    used = {name: value for name, value in CONSTANTS.items() if f"{name}," in lines or f"{name})" in lines}
    weights = {"r": np.array([1.3], np.float32)} if ", r)" in lines else {}
    return case(lines, (3, 4), constants=used, tolerance=1e-3, differences=False, s=(4,), **weights)


def is_written(item, **options):
    """Whether x comes first times sqrt(1/2), and nothing is divided or halved."""
    artifact = decode(build_artifact(model_of(item), loss="mse", **options))
    nodes = onnx.load_from_string(artifact.train).graph.node
    (error,) = [node for node in nodes if node.op_type == "Erf"]
    return error.output[0].startswith("@")


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_spelling_is_found(body):
    item = item_of(body)
    check(item)
    assert is_written(item, trainable=["s"])


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_what_looks_like_it_stays(body):
    item = item_of(body)
    check(item)
    assert not is_written(item, trainable=list(item.weights))


def test_operator_is_written_out_where_it_is_trained():
    item = case("h = Mul (x, s) g = Gelu (h) y = Mul (g, t)", (3, 4), opset=20, differences=False, s=(4,), t=(4,))
    check(item)
    assert is_written(item, trainable=["s", "t"])
    artifact = decode(build_artifact(model_of(item), loss="mse", trainable=["t"]))
    assert "Gelu" in artifact.manifest.operators


def test_approximation_stays():
    item = case(
        'h = Mul (x, s) g = Gelu <approximate="tanh"> (h) y = Mul (g, t)',
        (3, 4),
        opset=20,
        differences=False,
        s=(4,),
        t=(4,),
    )
    check(item)
    assert "Gelu" in decode(build_artifact(model_of(item), loss="mse")).manifest.operators
