"""The body of a loop is checked as strictly as the graph around it, before onnxruntime sees it."""

from __future__ import annotations

import dataclasses
from collections import Counter

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from blindsum.protocol.errors import BlindsumError
from blindsum.training import TrainingSession, artifact, build_artifact, decode, protobuf
from tests.training.conftest import make_model

RNG = np.random.default_rng(1)
GOOD = build_artifact(
    make_model(
        "(float[N,4,3] x) => (float[N,1,2] y) { t = Transpose <perm=[1, 0, 2]> (x) s, h = RNN <hidden_size=2> (t, w, r)"
        " y = Transpose <perm=[1, 0, 2]> (h) }",
        {name: RNG.normal(size=size).astype(np.float32) for name, size in {"w": (1, 2, 3), "r": (1, 2, 2)}.items()},
    ),
    loss="mse",
)
TRAIN = decode(GOOD).train
MALFORMED = "training-artifact-malformed"
FORBIDDEN = "training-operator-forbidden"


def _changed(change):
    """The good artifact with another train graph, everything else consistent with it."""
    good = decode(GOOD)
    proto = onnx.load_model_from_string(good.train)
    (loop,) = (node for node in proto.graph.node if node.op_type == "Scan")
    body = next(item.g for item in loop.attribute if item.name == "body")
    change(proto.graph, loop, body)
    counted = Counter(node.op_type for node in (*proto.graph.node, *body.node))
    stated = msgspec.structs.replace(good.manifest, operators=dict(counted))
    train = proto.SerializeToString(deterministic=True)
    return artifact.encode(dataclasses.replace(good, manifest=stated, train=train))


def _attribute(loop, name):
    return next(item for item in loop.attribute if item.name == name)


def _add(graph, operator, inputs, outputs, **attributes):
    graph.node.append(helper.make_node(operator, inputs, outputs, **attributes))


def _nested(graph, loop, body):
    inner = onnx.NodeProto()
    inner.CopyFrom(loop)
    inner.output[:] = [f"{name}.inner" for name in inner.output]
    body.node.append(inner)


def _external(graph, loop, body):
    value = TensorProto(data_type=TensorProto.FLOAT, dims=[1], data_location=1, raw_data=b"")
    value.external_data.add(key="location", value="/etc/passwd")
    _add(body, "ConstantOfShape", [body.input[0].name], ["c"], value=value)


def _second_body(graph, loop, body):
    loop.attribute.append(helper.make_attribute("other", helper.make_graph([], "other", [], [])))


def _body_for(operator):
    def change(graph, loop, body):
        loop.op_type = operator

    return change


def _reads_what_comes_later(graph, loop, body):
    _add(body, "Identity", [graph.output[-1].name], ["c"])


def _read_from_outside(graph, loop, body):
    _add(graph, "Identity", [body.node[0].output[0]], ["c"])


def _reads_the_loop_itself(graph, loop, body):
    _add(body, "Identity", [loop.output[0]], ["c"])


def _input_named_as_outside(graph, loop, body):
    body.input[0].name = graph.input[0].name


def _written_again_outside(graph, loop, body):
    _add(graph, "Identity", [graph.input[0].name], [body.node[0].output[0]])


def _written_twice(graph, loop, body):
    _add(body, "Identity", [body.input[0].name], [body.node[0].output[0]])


def _writes_an_outside_name(graph, loop, body):
    _add(body, "Identity", [body.input[0].name], [graph.input[0].name])


CHANGES = {
    "operator of another domain": (lambda g, s, b: setattr(b.node[0], "domain", "com.microsoft"), FORBIDDEN),
    "operator not allowed": (lambda g, s, b: setattr(b.node[0], "op_type", "RandomNormalLike"), FORBIDDEN),
    "loop of another domain": (lambda g, s, b: setattr(s, "domain", "com.microsoft"), FORBIDDEN),
    "loop in the loop": (_nested, MALFORMED),
    "loop in the loop without a body": (lambda g, s, b: _add(b, "Scan", [], ["c"]), FORBIDDEN),
    "no body": (lambda g, s, b: s.attribute.remove(_attribute(s, "body")), MALFORMED),
    "body under another name": (lambda g, s, b: setattr(_attribute(s, "body"), "name", "then_branch"), MALFORMED),
    "body of another type": (lambda g, s, b: setattr(_attribute(s, "body"), "type", 2), MALFORMED),
    "second body": (_second_body, MALFORMED),
    "list of bodies": (lambda g, s, b: _attribute(s, "body").graphs.append(b), MALFORMED),
    "Loop with a body": (_body_for("Loop"), MALFORMED),
    "If with a body": (_body_for("If"), MALFORMED),
    "allowed operator with a body": (_body_for("Relu"), MALFORMED),
    "initialiser": (lambda g, s, b: b.initializer.append(numpy_helper.from_array(np.ones(1), "c")), MALFORMED),
    "declared values": (lambda g, s, b: b.value_info.append(b.input[0]), MALFORMED),
    "documentation": (lambda g, s, b: setattr(b, "doc_string", "x"), MALFORMED),
    "external data": (_external, "training-external-data"),
    "input too many": (lambda g, s, b: b.input.add().CopyFrom(b.input[0]), MALFORMED),
    "input too few": (lambda g, s, b: b.input.pop(), MALFORMED),
    "absent input": (lambda g, s, b: s.input.__setitem__(0, ""), MALFORMED),
    "input of one name twice": (lambda g, s, b: setattr(b.input[0], "name", b.input[1].name), MALFORMED),
    "input of no type": (lambda g, s, b: b.input[0].ClearField("type"), MALFORMED),
    "input named as outside": (_input_named_as_outside, MALFORMED),
    "output too few": (lambda g, s, b: b.output.pop(), MALFORMED),
    "output never computed": (lambda g, s, b: setattr(b.output[0], "name", "c"), MALFORMED),
    "output that is an input": (lambda g, s, b: setattr(b.output[0], "name", b.input[0].name), MALFORMED),
    "output from outside": (lambda g, s, b: setattr(b.output[0], "name", g.input[0].name), MALFORMED),
    "output twice": (lambda g, s, b: setattr(b.output[0], "name", b.output[1].name), MALFORMED),
    "reads what comes later": (_reads_what_comes_later, MALFORMED),
    "reads the loop itself": (_reads_the_loop_itself, MALFORMED),
    "reads what does not exist": (lambda g, s, b: _add(b, "Identity", ["nothing"], ["c"]), MALFORMED),
    "is read from outside": (_read_from_outside, MALFORMED),
    "written again outside": (_written_again_outside, MALFORMED),
    "written twice": (_written_twice, MALFORMED),
    "writes an outside name": (_writes_an_outside_name, MALFORMED),
}


@pytest.mark.parametrize("name", CHANGES)
def test_body_that_breaks_the_rules_is_refused(name, monkeypatch):
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("onnxruntime was reached"))
    change, code = CHANGES[name]
    with pytest.raises(BlindsumError) as caught:
        TrainingSession(_changed(change))
    assert caught.value.code == code


def test_nodes_of_bodies_count_towards_the_bound(monkeypatch):
    graph = protobuf.read_model(decode(GOOD).train)
    monkeypatch.setattr(protobuf, "NODES_MAX", len(graph.nodes))
    with pytest.raises(BlindsumError, match="training-artifact-too-large"):
        decode(GOOD)


def test_histogram_counts_the_nodes_of_bodies():
    good = decode(GOOD)
    outside = dict(Counter(node.operator for node in protobuf.read_model(good.train).nodes))
    assert sum(good.manifest.operators.values()) > sum(outside.values())
    stated = msgspec.structs.replace(good.manifest, operators=outside)
    with pytest.raises(BlindsumError, match="histogram"):
        decode(artifact.encode(dataclasses.replace(good, manifest=stated)))


def test_body_may_read_what_is_known_outside():
    data = _changed(lambda g, s, b: _add(b, "Identity", [g.input[0].name], ["c"]))
    x = np.ones((2, 4, 3), np.float32)
    t = np.zeros((2, 1, 2), np.float32)
    assert TrainingSession(data).step(x, t) == TrainingSession(GOOD).step(x, t)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, len(TRAIN) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_reader_of_a_changed_loop_returns_a_model_or_one_error(at, value, cut):
    data = bytearray(TRAIN)
    data[at] = value
    try:
        model = protobuf.read_model(bytes(data[: at + 1] if cut else data))
    except BlindsumError as error:
        assert error.code in ("training-artifact-malformed", "training-external-data")
    else:
        assert all(node.body is None or node.operator == "Scan" for node in model.every_node())


def test_good_loop_reads_as_the_onnx_package_reads_it():
    (theirs,) = (node for node in onnx.load_model_from_string(TRAIN).graph.node if node.op_type == "Scan")
    (ours,) = (node for node in protobuf.read_model(TRAIN).nodes if node.operator == "Scan")
    body = _attribute(theirs, "body").g
    assert ours.body is not None
    assert [tensor.name for tensor in ours.body.inputs] == [item.name for item in body.input]
    assert [tensor.name for tensor in ours.body.outputs] == [item.name for item in body.output]
    assert [(node.operator, node.inputs, node.outputs) for node in ours.body.nodes] == [
        (node.op_type, tuple(node.input), tuple(node.output)) for node in body.node
    ]
