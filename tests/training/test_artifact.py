"""Damaged and malicious artifacts are refused, each with one clear error, before onnxruntime sees them."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import cbor2
import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from blindsum.protocol.errors import BlindsumError
from blindsum.training import SGD, TrainingSession, artifact, build_artifact, decode, manifest, models, protobuf

GOOD = build_artifact(models.mlp([4, 6, 3], seed=1), loss="cross-entropy", optimizer=SGD(momentum=0.9))
TRAIN = decode(GOOD).train
START = len(artifact.MAGIC) + artifact.DIGEST_SIZE


@pytest.fixture(autouse=True)
def _onnxruntime_is_out_of_reach(monkeypatch, request):
    """Refused means refused before onnxruntime: a test that reaches it fails, unless it is about a good artifact."""

    def reached(*_args, **_kwargs):
        pytest.fail("onnxruntime was reached")  # not an Exception, so no adapter catches it

    if not request.node.name.startswith("test_good"):
        monkeypatch.setattr(onnxruntime, "InferenceSession", reached)


def _refusal(data):
    with pytest.raises(BlindsumError) as caught:
        TrainingSession(data)
    return caught.value


def _sealed(body):
    return artifact.MAGIC + hashlib.sha256(body).digest() + body


def _with_header(change):
    """The good artifact with another header, hash and canonical form right."""
    size = int.from_bytes(GOOD[START : START + 4], "big")
    header = cbor2.loads(GOOD[START + 4 : START + 4 + size])
    change(header)
    head = cbor2.dumps(header, canonical=True)
    return _sealed(len(head).to_bytes(4, "big") + head + GOOD[START + 4 + size :])


def _with_graph(change, which="train"):
    """The good artifact with another graph, everything else consistent with it."""
    good = decode(GOOD)
    proto = onnx.load_model_from_string(getattr(good, which))
    change(proto)
    return _with_graph_bytes(proto.SerializeToString(deterministic=True), which, proto)


def _with_graph_bytes(data, which="train", proto=None):
    good = decode(GOOD)
    stated = good.manifest
    if proto is not None and which == "train":
        operators = [node.op_type for node in proto.graph.node]
        stated = msgspec.structs.replace(stated, operators={name: operators.count(name) for name in set(operators)})
    return artifact.encode(dataclasses.replace(good, manifest=stated, **{which: data}))


def test_good_artifact_decodes_to_what_was_encoded():
    decoded = decode(GOOD)
    assert artifact.encode(decoded) == GOOD
    assert _with_graph(lambda proto: None) == GOOD
    assert _with_header(lambda header: None) == GOOD
    TrainingSession(GOOD).step(np.ones((1, 4)), [1])


@pytest.mark.parametrize("size", [0, 1, 8, 39, 40, 43, 44, 200, len(GOOD) // 2, len(GOOD) - 1])
def test_truncated_artifact_is_refused(size):
    assert _refusal(GOOD[:size]).code == "training-artifact-damaged"


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_flipped_bit_is_refused(at, bit):
    data = bytearray(GOOD)
    data[at] ^= 1 << bit
    with pytest.raises(BlindsumError) as caught:
        decode(bytes(data))
    assert caught.value.code == "training-artifact-damaged"


def test_trailing_bytes_are_refused():
    assert _refusal(GOOD + b"\0").code == "training-artifact-damaged"
    assert _refusal(_sealed(GOOD[START:] + b"\0")).detail == "longer than its header states"


def test_missing_bytes_under_a_right_hash_are_refused():
    assert _refusal(_sealed(GOOD[START:-1])).detail == "shorter than its header states"


@pytest.mark.parametrize("what", ["net.bsa", Path("net.bsa"), None, bytearray(GOOD)])
def test_what_is_not_bytes_is_refused(what):
    refused = _refusal(what)
    assert refused.code == "training-request-invalid"
    assert "an artifact is bytes, not" in refused.detail


def test_onnx_file_is_not_taken_for_an_artifact():
    assert _refusal(models.mlp([4, 3], seed=1).SerializeToString()).code == "training-artifact-damaged"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_body_under_a_right_hash_is_refused_cleanly(body):
    with pytest.raises(BlindsumError, match="training-artifact"):
        decode(_sealed(body))


@settings(max_examples=300, deadline=None)
@given(at=st.integers(START, len(GOOD) - 1), value=st.integers(0, 255))
def test_any_changed_byte_under_a_right_hash_gives_an_artifact_or_a_refusal(at, value):
    body = bytearray(GOOD[START:])
    body[at - START] = value
    try:
        decoded = decode(_sealed(bytes(body)))
    except BlindsumError as error:
        assert error.code.startswith("training-")
    else:
        assert artifact.encode(decoded) == _sealed(bytes(body))


def test_header_that_is_not_canonical_is_refused():
    size = int.from_bytes(GOOD[START : START + 4], "big")
    header = cbor2.loads(GOOD[START + 4 : START + 4 + size])
    for head in (
        cbor2.dumps(dict(reversed(header.items()))),
        b"\xbf" + GOOD[START + 5 : START + 4 + size] + b"\xff",
        GOOD[START + 4 : START + 4 + size] + b"\0",
    ):
        body = len(head).to_bytes(4, "big") + head + GOOD[START + 4 + size :]
        assert _refusal(_sealed(body)).code == "training-artifact-malformed"


def test_header_size_is_bounded():
    assert _refusal(_sealed(b"\xff\xff\xff\xff" + GOOD)).code == "training-artifact-too-large"


def test_artifact_size_is_bounded(monkeypatch):
    monkeypatch.setattr(artifact, "ARTIFACT_SIZE_MAX", len(GOOD) - 1)
    assert _refusal(GOOD).code == "training-artifact-too-large"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameter_that_is_not_finite_is_refused(value):
    good = decode(GOOD)
    parameters = good.parameters.copy()
    parameters[3] = value
    assert _refusal(artifact.encode(dataclasses.replace(good, parameters=parameters))).code == (
        "training-artifact-malformed"
    )


HUGE = manifest.ELEMENTS_MAX + 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda h: h["manifest"]["parameters"][0].update(shape=[HUGE, 6]), "training-artifact-malformed"),
        (lambda h: h["manifest"]["parameters"][0].update(shape=[1 << 20, 1 << 20]), "training-artifact-too-large"),
        (lambda h: h["manifest"]["parameters"][0].update(shape=[-4, -6]), "training-artifact-malformed"),
        (lambda h: h["manifest"]["parameters"][0].update(shape=[6, 4]), "training-artifact-malformed"),
        (lambda h: h["manifest"]["parameters"][0].update(dtype="float64"), "training-artifact-malformed"),
        (lambda h: h["manifest"]["parameters"].reverse(), "training-artifact-malformed"),
        (lambda h: h["manifest"]["states"][0].update(shape=[1 << 20, 1 << 20]), "training-artifact-too-large"),
        (lambda h: h["manifest"]["states"][0].update(name="layer1.weight"), "training-artifact-malformed"),
        (lambda h: h["manifest"]["features"][0].update(shape=[1 << 20, 1 << 20]), "training-artifact-too-large"),
        (lambda h: h["manifest"]["features"][0].update(dtype="object"), "training-artifact-malformed"),
        (lambda h: h["manifest"].update(loss="none"), "training-artifact-malformed"),
        (lambda h: h["manifest"].update(opset=17), "training-artifact-malformed"),
        (lambda h: h["manifest"].update(source="x" * 64), "training-artifact-malformed"),
        (lambda h: h["manifest"].update(extra=1), "training-artifact-malformed"),
        (lambda h: h["manifest"].pop("loss"), "training-artifact-malformed"),
        (lambda h: h["manifest"]["hyperparameters"].update(lr=float("nan")), "training-artifact-malformed"),
        (lambda h: h["manifest"]["hyperparameters"].pop("lr"), "training-artifact-malformed"),
        (lambda h: h["manifest"]["operators"].update(Gemm=1), "training-artifact-malformed"),
        (lambda h: h["manifest"].update(metrics=["accuracy"]), "training-artifact-malformed"),
        (lambda h: h["constants"][0].update(shape=[1 << 20, 1 << 20]), "training-artifact-too-large"),
        (lambda h: h["constants"][0].update(dtype="object"), "training-artifact-malformed"),
        (lambda h: h["constants"][0].update(name="layer1.weight"), "training-artifact-malformed"),
        (lambda h: h["constants"][0].update(name=h["constants"][1]["name"]), "training-artifact-malformed"),
        (lambda h: h["constants"][0].update(name="@elsewhere"), "training-artifact-malformed"),
        (lambda h: h["constants"][0].update(name="@features/features"), "training-artifact-malformed"),
        (lambda h: h["manifest"]["features"].append(h["manifest"]["features"][0]), "training-artifact-malformed"),
        (lambda h: h["manifest"].update(features=[]), "training-artifact-malformed"),
        (lambda h: h["manifest"]["parameters"][0].update(name="@features/features"), "training-artifact-malformed"),
        (lambda h: h.update(graphs=[1 << 27, 1, 1, 1, 1]), "training-artifact-too-large"),
        (lambda h: h.update(graphs=[1, 1, 1, 1, 1]), "training-artifact-malformed"),
        (lambda h: h.update(graphs=[0, 0]), "training-artifact-malformed"),
        (lambda h: h.update(graphs=cbor2.CBORTag(28, [1] * 5)), "training-artifact-malformed"),
        (lambda h: h.update(graphs=[[[[[[[[[[1]]]]]]]]]]), "training-artifact-malformed"),
    ],
)
def test_header_that_breaks_the_format_is_refused(change, code):
    assert _refusal(_with_header(change)).code == code


def _node(proto, operator):
    return next(node for node in proto.graph.node if node.op_type == operator)


def _tensor_attribute(**fields):
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], **fields)
    return onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor)


EXTERNAL = onnx.StringStringEntryProto(key="location", value="/etc/passwd")
WEIGHT = numpy_helper.from_array(np.zeros(2, np.float32), "w")
SUBGRAPH = helper.make_graph([], "inner", [], [])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda p: setattr(_node(p, "Relu"), "domain", "com.microsoft"), "training-operator-forbidden"),
        (lambda p: setattr(_node(p, "Relu"), "domain", "ai.onnx"), "training-operator-forbidden"),
        (lambda p: setattr(_node(p, "Relu"), "op_type", "PyOp"), "training-operator-forbidden"),
        (lambda p: setattr(_node(p, "Relu"), "op_type", "Loop"), "training-operator-forbidden"),
        (lambda p: setattr(_node(p, "Relu"), "op_type", "RandomNormalLike"), "training-operator-forbidden"),
        (lambda p: p.opset_import.append(helper.make_opsetid("com.microsoft", 1)), "training-artifact-malformed"),
        (lambda p: setattr(p.opset_import[0], "version", 17), "training-artifact-malformed"),
        (lambda p: setattr(p, "ir_version", 3), "training-artifact-malformed"),
        (
            lambda p: _node(p, "Relu").attribute.append(_tensor_attribute(external_data=[EXTERNAL], raw_data=b"")),
            "training-external-data",
        ),
        (
            lambda p: _node(p, "Relu").attribute.append(_tensor_attribute(data_location=1, raw_data=b"")),
            "training-external-data",
        ),
        (lambda p: _node(p, "Relu").attribute.append(_tensor_attribute(raw_data=b"")), "training-artifact-malformed"),
        (
            lambda p: _node(p, "Relu").attribute.append(_tensor_attribute(float_data=[1.0])),
            "training-artifact-malformed",
        ),
        (
            lambda p: _node(p, "Relu").attribute.append(helper.make_attribute("body", SUBGRAPH)),
            "training-artifact-malformed",
        ),
        (lambda p: p.graph.initializer.append(WEIGHT), "training-artifact-malformed"),
        (lambda p: p.graph.sparse_initializer.add(), "training-artifact-malformed"),
        (lambda p: p.functions.append(onnx.FunctionProto(name="f")), "training-artifact-malformed"),
        (lambda p: p.training_info.add(), "training-artifact-malformed"),
        (lambda p: helper.set_model_props(p, {"a": "b"}), "training-artifact-malformed"),
        (lambda p: setattr(_node(p, "Relu"), "doc_string", "x"), "training-artifact-malformed"),
        (lambda p: p.graph.output.pop(), "training-artifact-malformed"),
        (lambda p: p.graph.input.pop(), "training-artifact-malformed"),
        (lambda p: p.graph.input.append(p.graph.input[0]), "training-artifact-malformed"),
        (lambda p: setattr(p.graph.input[0], "name", "other"), "training-artifact-malformed"),
        (
            lambda p: setattr(p.graph.input[0].type.tensor_type, "elem_type", TensorProto.STRING),
            "training-artifact-malformed",
        ),
        (
            lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 1 << 40),
            "training-artifact-malformed",
        ),
        (lambda p: p.graph.node.pop(0), "training-artifact-malformed"),
        (lambda p: p.graph.node.append(p.graph.node[0]), "training-artifact-malformed"),
        (lambda p: p.graph.node.insert(0, p.graph.node.pop()), "training-artifact-malformed"),
        (lambda p: setattr(_node(p, "Relu"), "name", "n" * 2000), "training-artifact-malformed"),
    ],
)
def test_graph_that_breaks_the_rules_is_refused(change, code):
    for which in ("train", "evaluate", "predict"):
        assert _refusal(_with_graph(change, which)).code == code


def test_constant_that_asks_for_huge_memory_is_refused():
    good = decode(GOOD)
    proto = onnx.load_model_from_string(good.predict)
    proto.graph.node.append(helper.make_node("Expand", ["@one", "@size"], ["@huge"]))
    size = {"@size": np.array([1 << 30, 1 << 30]), "@one": np.ones(1, np.float32)}
    data = artifact.encode(
        dataclasses.replace(good, predict=proto.SerializeToString(), constants={**good.constants, **size})
    )
    refusal = _refusal(data)
    assert (refusal.code, refusal.detail) == (
        "training-artifact-too-large",
        "predict graph: Expand to shape (1073741824, 1073741824)",
    )


def test_number_of_nodes_is_bounded(monkeypatch):
    monkeypatch.setattr(protobuf, "NODES_MAX", 3)
    assert _refusal(GOOD).code == "training-artifact-too-large"


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_graph_reader_returns_a_model_or_one_error(data):
    good = TRAIN
    cut = data.draw(st.integers(0, len(good)))
    graph = bytearray(good[:cut] + data.draw(st.binary(max_size=20)))
    if graph:
        graph[data.draw(st.integers(0, len(graph) - 1))] = data.draw(st.integers(0, 255))
    try:
        protobuf.read_model(bytes(graph))
    except BlindsumError as error:
        assert error.code in ("training-artifact-malformed", "training-external-data")


def test_good_graph_reads_as_the_onnx_package_reads_it():
    good = decode(GOOD)
    for graph in good.graphs().values():
        model, proto = protobuf.read_model(graph), onnx.load_model_from_string(graph)
        assert [(node.operator, node.inputs, node.outputs) for node in model.nodes] == [
            (node.op_type, tuple(node.input), tuple(node.output)) for node in proto.graph.node
        ]
        assert [tensor.name for tensor in model.inputs] == [item.name for item in proto.graph.input]
        features = protobuf.Tensor("@features/features", "float32", ("batch", 4))
        assert features in model.inputs or graph == good.update


@pytest.mark.parametrize("dtype", sorted(protobuf.DTYPES.values()))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 1, 300)])
def test_good_initialisers_read_as_the_onnx_package_reads_them(dtype, shape):
    tensors = {"w": np.arange(np.prod(shape)).reshape(shape).astype(dtype), "bias of \u00e9": np.zeros(3, np.float32)}
    proto = onnx.load_model_from_string(protobuf.with_initialisers(decode(GOOD).predict, tensors))
    read = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype
        assert np.array_equal(read[name], array)
    assert len(proto.graph.node) == 3
