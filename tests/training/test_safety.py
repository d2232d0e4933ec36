"""What a malicious artifact can ask for is refused before onnxruntime sees it, or bounded, and never ends the process."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from blindsum.protocol.errors import BlindsumError
from blindsum.training import CrossEntropy, TrainingSession, build_artifact, decode, models
from blindsum.training.operators import OPERATORS
from tests.training import forger

GOOD = forger.goods()[0]
X = "@features/features"


@pytest.fixture(autouse=True)
def _onnxruntime_is_out_of_reach(monkeypatch, request):
    def reached(*_args, **_kwargs):
        pytest.fail("onnxruntime was reached")

    if request.node.get_closest_marker("parametrize") or "refused" in request.node.name:
        monkeypatch.setattr(onnxruntime, "InferenceSession", reached)


def _appended(*nodes, **constants):
    """The good artifact whose prediction graph has further nodes."""
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    return forger.forged(GOOD, lambda graph: graph.node.extend(nodes), constants=arrays)


def _refusal(data):
    with pytest.raises(BlindsumError) as caught:
        TrainingSession(data)
    return caught.value


def _chain(operator, times, **attributes):
    """x -> operator(x, x) -> ...: each value is larger than the one before."""
    names = [X, *(f"@grown/{at}" for at in range(times))]
    return [helper.make_node(operator, [one, one], [two], **attributes) for one, two in pairwise(names)]


def _node(operator, *inputs, outputs=1, **attributes):
    return helper.make_node(operator, inputs, [f"@extra/{at}" for at in range(outputs)], **attributes)


CUBE, BIG = np.ones((1, 1, 4, 4), np.float32), 1 << 40
GREEDY = {
    "doubling": _appended(*_chain("Concat", 60, axis=1)),
    "expand": _appended(_node("Expand", "c", "n"), c=np.float32(1), n=[BIG]),
    "tile": _appended(_node("Tile", "c", "n"), c=np.ones(4, np.float32), n=[BIG]),
    "constant": _appended(_node("ConstantOfShape", "n"), n=[1 << 20, 1 << 20]),
    "one hot": _appended(_node("OneHot", "c", "n", "v"), c=[1], n=BIG, v=np.float32([0, 1])),
    "range": _appended(_node("Range", "c", "n", "d"), c=0, n=BIG, d=1),
    "range of small steps": _appended(
        _node("Range", "c", "n", "d"), c=np.float32(0), n=np.float32(1), d=np.float32(1e-30)
    ),
    "resize": _appended(_node("Resize", "c", "", "", "n"), c=CUBE, n=[1, 1, BIG, BIG]),
    "resize by scales": _appended(_node("Resize", "c", "", "s"), c=CUBE, s=np.float32([1, 1, 1e9, 1e9])),
    "pad": _appended(_node("Pad", "c", "n"), c=np.ones(1, np.float32), n=[BIG, BIG]),
    "outer product": _appended(
        _node("MatMul", "c", "d"), c=np.ones((1 << 17, 1), np.float32), d=np.ones((1, 1 << 17), np.float32)
    ),
    "broadcast": _appended(
        _node("Add", "c", "d"), c=np.ones((1 << 17, 1), np.float32), d=np.ones((1, 1 << 17), np.float32)
    ),
    "einsum": _appended(
        _node("Einsum", "c", "c", "c", equation="a,b,c->abc"), c=np.ones(1 << 14, np.float32)
    ),
    "transposed convolution": _appended(
        _node("ConvTranspose", "c", "w", strides=[1 << 20, 1 << 20]), c=CUBE, w=np.ones((1, 1, 2, 2), np.float32)
    ),
    "gather": _appended(
        _node("Gather", "c", "i"), c=np.ones((1, 1 << 16), np.float32), i=np.zeros(1 << 16, np.int64)
    ),
    "computed size": _appended(
        helper.make_node("Mul", ["n", "n"], ["@square"]), _node("ConstantOfShape", "@square"), n=[1 << 20]
    ),
    "size from the data": _appended(
        helper.make_node("Cast", [X], ["@whole"], to=7), _node("ConstantOfShape", "@whole")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_graph_that_asks_for_more_than_any_memory_is_refused(name):
    assert _refusal(GREEDY[name]).code == "training-artifact-too-large"


def _without_bias(graph):
    """The last layer's weight in place of its bias: another number of classes."""
    graph.node[-1].input[1] = graph.node[0].input[1]


IMAGE, KERNEL = np.ones((1, 4, 5, 5), np.float32), np.ones((4, 4, 3, 3), np.float32)
ABSURD = {
    "strides of zero": _appended(_node("Conv", "c", "w", strides=[0, 0]), c=IMAGE, w=KERNEL),
    "no groups": _appended(_node("Conv", "c", "w", group=0), c=IMAGE, w=KERNEL),
    "dilations of zero": _appended(_node("Conv", "c", "w", dilations=[0, 0]), c=IMAGE, w=KERNEL),
    "negative pads": _appended(_node("Conv", "c", "w", pads=[-9] * 4), c=IMAGE, w=KERNEL),
    "huge pads": _appended(_node("Conv", "c", "w", pads=[BIG] * 4), c=IMAGE, w=KERNEL),
    "another kernel": _appended(_node("Conv", "c", "w", kernel_shape=[9, 9]), c=IMAGE, w=KERNEL),
    "empty window": _appended(_node("MaxPool", "c", kernel_shape=[0, 0]), c=IMAGE),
    "pads beyond the window": _appended(_node("AveragePool", "c", kernel_shape=[2, 2], pads=[9] * 4), c=IMAGE),
    "no blocks": _appended(_node("DepthToSpace", "c", blocksize=0), c=IMAGE),
    "no groups to normalise": _appended(_node("GroupNormalization", "c", "g", "g", num_groups=0), c=IMAGE, g=IMAGE[0, :, 0, 0]),
    "other hidden size": _appended(
        _node("LSTM", "c", "w", "r", hidden_size=9),
        c=np.ones((2, 1, 3), np.float32), w=np.ones((1, 8, 3), np.float32), r=np.ones((1, 8, 2), np.float32),
    ),
    "integer division": _appended(_node("Div", "c", "d"), c=[-(1 << 63)], d=[-1]),
    "integer remainder": _appended(_node("Mod", "c", "d"), c=[1], d=[0]),
    "axis beyond": _appended(_node("Softmax", X, axis=9)),
    "axis that wraps round": _appended(_node("Flatten", X, axis=-(1 << 63))),
    "permutation": _appended(_node("Transpose", X, perm=[0, 0])),
    "type of an attribute": _appended(_node("Softmax", X, axis=1.5)),
    "type of a size": _appended(_node("Reshape", X, "s"), s=np.float32([np.nan])),
    "number of outputs": _appended(_node("Relu", X, outputs=2)),
    "too few inputs": _appended(_node("Gemm", X)),
    "shape of an output": forger.forged(GOOD, _without_bias),
}  # fmt: skip


@pytest.mark.parametrize("name", ABSURD)
def test_numbers_that_make_no_sense_are_refused(name):
    assert _refusal(ABSURD[name]).code == "training-artifact-malformed"


def _attribute(**fields):
    return onnx.AttributeProto(name="axis", **fields)


KINDS = onnx.AttributeProto
ODD = {
    "value of another type": _attribute(type=KINDS.INT, f=1.0),
    "two values": _attribute(type=KINDS.INT, i=1, f=1.0),
    "no value": _attribute(type=KINDS.INT),
    "no type": _attribute(i=1),
    "unknown type": _attribute(type=KINDS.TYPE_PROTO, tp=onnx.TypeProto()),
    "graph": _attribute(type=KINDS.GRAPH, g=helper.make_graph([], "g", [], [])),
    "graphs": _attribute(type=KINDS.GRAPHS, graphs=[helper.make_graph([], "g", [], [])]),
    "tensor of texts": _attribute(type=KINDS.TENSOR, t=onnx.TensorProto(data_type=8, dims=[1], string_data=[b"x"])),
    "sparse tensor": _attribute(type=KINDS.SPARSE_TENSOR, sparse_tensor=onnx.SparseTensorProto()),
    "reference": _attribute(type=KINDS.INT, ref_attr_name="x"),
}


@pytest.mark.parametrize("name", ODD)
def test_attribute_of_an_odd_kind_is_refused(name):
    data = forger.forged(GOOD, lambda graph: graph.node[0].attribute.append(ODD[name]))
    assert _refusal(data).code == "training-artifact-malformed"


def test_attribute_that_stands_twice_is_refused():
    node = _node("Softmax", X, axis=1)
    node.attribute.append(helper.make_attribute("axis", 0))
    assert _refusal(_appended(node)).detail.endswith("attribute axis twice")


@pytest.mark.parametrize("operator", ["If", "Loop", "Scan", "SequenceMap"])
def test_control_flow_with_a_body_of_its_own_is_refused(operator):
    """A Scan is allowed only as gradients hold it; see test_loops."""
    body = helper.make_graph([helper.make_node("NotThere", [], ["o"])], "b", [], [])
    data = _appended(_node(operator, X, body=body))
    assert _refusal(data).code in ("training-artifact-malformed", "training-operator-forbidden")


@pytest.mark.parametrize("operator", ["RandomNormal", "Optional", "StringConcat", "Unique", "Bernoulli", "Loop"])
def test_operator_outside_the_list_is_refused(operator):
    assert operator not in OPERATORS
    assert _refusal(_appended(_node(operator, X))).code == "training-operator-forbidden"


@pytest.mark.parametrize(
    "change",
    [
        {"hyperparameters": {"lr": -1.0, "momentum": 0.9}},
        {"hyperparameters": {"lr": 0.1, "momentum": 2.0}},
        {"hyperparameters": {"lr": 0.1, "momentum": float("inf")}},
        {"hyperparameters": {"lr": 0.1, "momentum": 0.9, "hidden": 1.0}},
        {"control": True},
        {"optimiser": "gradient"},
        {"metrics": ("loss", "accuracy", "loss")},
        {"metrics": ("loss", "weight")},
        {"opset": 19},
    ],
)
def test_manifest_that_does_not_fit_the_graphs_is_refused(change):
    data = forger.forged(GOOD, lambda graph: None, **change)
    assert _refusal(data).code == "training-artifact-malformed"


@pytest.mark.parametrize("change", [{"low": 5.0}, {"high": -1.0}, {"low": float("nan")}, {"dtype": "float64"}])
def test_targets_that_do_not_fit_are_refused(change):
    targets = msgspec.structs.replace(decode(GOOD).manifest.targets, **change)
    assert _refusal(forger.forged(GOOD, lambda graph: None, targets=targets)).code == "training-artifact-malformed"


def test_work_is_bounded_where_memory_is_not_asked_for_and_so_refused():
    """A thousand products of 1024 x 1024 matrices need a few megabytes and a quarter of an hour."""
    names = ["c", *(f"@power/{at}" for at in range(1000))]
    nodes = [helper.make_node("MatMul", [one, "c"], [two]) for one, two in pairwise(names)]
    data = forger.forged(
        GOOD, lambda graph: graph.node.extend(nodes), "train", {"c": np.ones((1024, 1024), np.float32)}
    )
    with pytest.raises(BlindsumError, match="training-limit-exceeded: train of 2 rows"):
        TrainingSession(data, work_max=1 << 36)


def test_weight_that_nothing_reads_is_refused_before_anything_is_loaded():
    assert "that no graph reads, 'more' among them" in _refusal(_appended(more=np.zeros(1 << 20, np.float32))).detail


def test_target_that_the_loss_ignores_is_no_way_round_the_range():
    loss = CrossEntropy(ignore_index=-5)
    session = TrainingSession(build_artifact(models.mlp([4, 3], seed=1), loss=loss))
    session.step(np.ones((2, 4)), [-5, 2])
    for bad in (-4, 3, -(1 << 63), (1 << 63) - 1):
        with pytest.raises(BlindsumError, match="training-batch-invalid"):
            session.step(np.ones((2, 4)), [-5, bad])


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1 << 32))
def test_what_is_forged_at_random_decodes_or_is_refused(seed):
    data = forger.at_random(GOOD, np.random.default_rng(seed))
    try:
        decode(data)
    except BlindsumError as error:
        assert error.code.startswith("training-")


def test_no_forged_artifact_ends_the_process():
    """Each is used as far as it goes, in another process: an exit by itself would be a crash of onnxruntime."""
    command = [sys.executable, "-m", "tests.training.forger", "0", "120"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    codes = Counter(ast.literal_eval(done.stdout))
    assert codes.total() == 120
    assert codes[""] > 5, "some still work"
    assert codes["training-artifact-malformed"] > 50
    assert all(not code or code.startswith("training-") for code in codes)
