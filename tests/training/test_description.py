"""What authors are told about a model and an artifact."""

from __future__ import annotations

import json

import numpy as np
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.training import Adapters, build_artifact, describe, models
from blindsum.training.autodiff import registry


def test_model_shows_its_weights_and_what_reads_them(make_model):
    text = "(float[N,4] x) => (float[N,2] y) { m = MatMul (x, w) c = Clip (m, low, high) y = Add (c, b) }"
    constants = {
        "w": np.ones((4, 2), np.float32),
        "low": np.array(-1, np.float32),
        "high": np.array(1, np.float32),
        "b": np.zeros(2, np.float32),
    }
    model = make_model(text, constants)
    model.graph.node[0].name = "dense"
    told = describe(model.SerializeToString())
    assert json.loads(json.dumps(told)) == told
    assert told["inputs"] == [{"name": "x", "dtype": "float", "shape": ["N", 4]}]
    assert told["operators"] == {"Add": 1, "Clip": 1, "MatMul": 1}
    weights = {item["name"]: item for item in told["weights"]}
    assert weights["w"] == {
        "name": "w", "shape": [4, 2], "dtype": "float32", "trainable": True, "read_by": ["node 'dense' (MatMul)"]
    }  # fmt: skip
    assert weights["b"]["trainable"] and not weights["low"]["trainable"]
    assert told["memory"] == {"weights": 4 * (8 + 2 + 2), "step_per_example": 4 * (2 + 2 + 2)}
    assert told["obstacle"] is None


def test_obstacles_are_told_and_not_raised(make_model, monkeypatch):
    sequence = make_model("(float[N,T,3] x) => (float[N,T,3] y) { y = Mul (x, w) }", {"w": np.ones(3, np.float32)})
    data = sequence.SerializeToString()
    assert 'dimensions={"T": ...}' in describe(data)["obstacle"]
    assert describe(data, dimensions={"T": 5})["obstacle"] is None
    two = make_model(
        "(float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Mul (x, w) z = Abs (y) }", {"w": np.ones(3, np.float32)}
    )
    told = describe(two.SerializeToString())
    assert told["obstacle"] == "choose the output to train: output= one of y, z"
    assert [item["name"] for item in told["weights"]] == ["w"]
    assert describe(two.SerializeToString(), output="z")["obstacle"] is None
    monkeypatch.delitem(registry._RULES, "Abs")
    assert "has no gradient rule" in describe(two.SerializeToString(), output="z")["obstacle"]


def test_artifact_shows_what_it_trains():
    artifact = build_artifact(
        models.mlp([4, 6, 3], seed=1), loss="cross-entropy", optimizer="adam", trainable=Adapters(rank=2)
    )
    told = describe(artifact)
    assert json.loads(json.dumps(told)) == told
    assert (told["kind"], told["loss"], told["optimizer"]) == ("training artifact", "cross-entropy", "adam")
    assert told["adapters"] == ["layer1.weight", "layer2.weight"]
    assert [item["shape"] for item in told["weights"]] == [[4, 2], [2, 6], [6, 2], [2, 3]]
    assert told["memory"]["trained"] == 4 * (8 + 12 + 12 + 6)
    assert told["memory"]["optimiser"] >= 2 * told["memory"]["trained"]


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(BlindsumError, match="training-request-invalid"):
        describe(tmp_path / "absent.onnx")
