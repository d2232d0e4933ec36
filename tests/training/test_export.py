"""Trained parameters go back into the author's model, and nothing else in it changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import skl2onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression

from blindsum.protocol.errors import BlindsumError
from blindsum.training import SGD, Adapters, TrainingSession, build_artifact, export_model, models

X, Y = load_iris(return_X_y=True)
X = X.astype(np.float32)


def _trained(model, x, t, **arguments):
    """The artifact and the session after a few steps."""
    artifact = build_artifact(model, optimizer=SGD(lr=0.1), **arguments)
    session = TrainingSession(artifact)
    for _ in range(3):
        session.step(x, t)
    return artifact, session


def _run(model, feeds):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feeds)


def test_exported_model_predicts_what_the_session_predicts():
    model = models.mlp([4, 6, 3], seed=1)
    artifact, session = _trained(model, X, Y, loss="cross-entropy")
    exported = export_model(model, artifact, session.parameters)
    np.testing.assert_array_equal(_run(exported, {"features": X})[0], session.predict(X))


def test_everything_but_the_trained_weights_stays():
    model = models.mlp([4, 6, 3], seed=1)
    model.graph.doc_string, model.producer_version = "a net of mine", "7"
    model.graph.initializer[0].CopyFrom(  # stored in another field of the message
        helper.make_tensor(
            "layer1.weight", TensorProto.FLOAT, [4, 6], numpy_helper.to_array(model.graph.initializer[0]).ravel()
        )
    )
    model.metadata_props.add(key="licence", value="mine")
    artifact, session = _trained(model, X, Y, loss="cross-entropy", trainable="layer2.*")
    proto = onnx.load_model_from_string(export_model(model, artifact, session.parameters))
    moved = {
        item.name for item, old in zip(proto.graph.initializer, model.graph.initializer, strict=True) if item != old
    }
    assert moved == {"layer2.weight", "layer2.bias"}
    for item, old in zip(proto.graph.initializer, model.graph.initializer, strict=True):
        item.CopyFrom(old)
    assert proto == model


def test_untrained_parameters_give_the_same_bytes():
    model = models.mlp([4, 6, 3], seed=1)
    artifact = build_artifact(model, loss="cross-entropy")
    exported = export_model(model, artifact, TrainingSession(artifact).parameters)
    assert exported == model.SerializeToString(deterministic=True)


def test_weights_of_constant_nodes_and_of_older_operator_sets_go_back(make_model):
    weight = numpy_helper.from_array(np.float32([[0.5, -1.0], [1.0, 2.0], [0.0, 1.0], [1.0, 0.0]]), "value")
    constant = helper.make_node("Constant", [], ["w"], value=weight)
    model = make_model(
        "(float[N,4] x) => (float[N,2] y) { m = MatMul (x, w) y = Add (m, b) }", {"b": np.zeros(2, np.float32)}, 13
    )
    model.graph.node.insert(0, constant)
    artifact, session = _trained(model, X, Y % 2, loss="cross-entropy", trainable=["w", "b"])
    exported = export_model(model, artifact, session.parameters)
    np.testing.assert_array_equal(_run(exported, {"x": X})[0], session.predict(X))
    proto = onnx.load_model_from_string(exported)
    assert [node.op_type for node in proto.graph.node] == ["Constant", "MatMul", "Add"]
    assert proto.opset_import[0].version == 13


@pytest.mark.parametrize("trainable", [Adapters(rank=2, alpha=6), [Adapters(rank=2), "layer1.bias"]])
def test_adapters_are_merged(trainable):
    model = models.mlp([4, 6, 3], seed=1)
    artifact, session = _trained(model, X, Y, loss="cross-entropy", trainable=trainable)
    exported = export_model(model, artifact, session.parameters)
    np.testing.assert_allclose(_run(exported, {"features": X})[0], session.predict(X), rtol=1e-5, atol=1e-6)
    assert len(onnx.load_model_from_string(exported).graph.initializer) == len(model.graph.initializer)


@pytest.mark.parametrize(
    ("estimator", "targets", "loss"),
    [
        (LogisticRegression(max_iter=500), Y, "cross-entropy"),
        (LogisticRegression(max_iter=500), Y > 0, "cross-entropy"),
        (LinearRegression(), X[:, :2] @ [1.0, 2.0], "mse"),
    ],
    ids=["three classes", "two classes", "regression"],
)
@pytest.mark.parametrize("zipmap", [False, True])
def test_coefficients_go_back_into_sklearns_attributes(estimator, targets, loss, zipmap):
    estimator.fit(X, targets)
    options = {id(estimator): {"zipmap": zipmap}} if loss == "cross-entropy" else None
    model = skl2onnx.to_onnx(estimator, X[:1], options=options)
    artifact, session = _trained(
        model, X, targets.astype(np.int64 if loss == "cross-entropy" else np.float32), loss=loss
    )
    exported = export_model(model, artifact, session.parameters)
    before, after = (_run(one, {"X": X})[-1] for one in (model, exported))
    if isinstance(after, list):
        before, after = ([[row[key] for key in sorted(row)] for row in rows] for rows in (before, after))
    assert not np.allclose(before, after)
    np.testing.assert_allclose(
        np.array(after).reshape(session.predict(X).shape), session.predict(X), rtol=1e-5, atol=1e-6
    )


def test_another_model_or_vector_is_refused():
    model = models.mlp([4, 6, 3], seed=1)
    artifact = build_artifact(model, loss="cross-entropy")
    vector = TrainingSession(artifact).parameters
    with pytest.raises(BlindsumError, match="the artifact is of a model with SHA-256"):
        export_model(models.mlp([4, 6, 3], seed=2), artifact, vector)
    for wrong in (vector[1:], np.full_like(vector, np.nan)):
        with pytest.raises(BlindsumError, match="training-parameters-invalid"):
            export_model(model, artifact, wrong)
