"""What is worked out about the size of values is what onnxruntime makes of them."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.training import CrossEntropy, TrainingSession, build_artifact, decode, engine, extent, models
from blindsum.training.operators import OPERATORS
from blindsum.training.protobuf import read_model, with_initialisers
from blindsum.training.verify import constants_of
from tests.training.cases import model_of

ROWS = 3
FAMILIES = sorted(path.stem for path in (Path(__file__).parent / "rules").glob("test_*.py"))


def _sizes(data, graph):
    """Extents of all values of a graph, and the arrays that onnxruntime makes of them."""
    artifact = decode(data)
    given = constants_of(artifact.manifest, graph, artifact.constants)
    extents = extent.extent_of(read_model(artifact.graphs()[graph]), given, ROWS, graph).values
    proto = onnx.load_model_from_string(with_initialisers(artifact.graphs()[graph], artifact.constants))
    shown = {item.name for item in proto.graph.output}
    made = [name for node in proto.graph.node for name in node.output if name]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in shown)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    generator, feeds = np.random.default_rng(1), {}
    for item in read_model(artifact.graphs()[graph]).inputs:
        shape = [size if isinstance(size, int) else ROWS for size in item.shape]
        feeds[item.name] = np.asarray(generator.random(shape) + 0.3).astype(item.dtype)
    return extents, dict(zip([item.name for item in proto.graph.output], session.run(None, feeds), strict=True))


def _require_exact(data, graph="train"):
    extents, arrays = _sizes(data, graph)
    for name, array in arrays.items():
        value = extents[name]
        assert (value.dtype, value.shape) == (array.dtype.name, array.shape), name
        if value.known is not None:
            np.testing.assert_array_equal(value.known, array)


def test_every_operator_that_devices_run_has_an_extent():
    assert extent.operators() == OPERATORS


@pytest.mark.parametrize("family", FAMILIES)
def test_extents_are_exact_in_forward_and_backward_graphs(family):
    for item in importlib.import_module(f"tests.training.rules.{family}").CASES.values():
        _require_exact(build_artifact(model_of(item), loss="mse", trainable=list(item.weights), optimizer="gradient"))


@pytest.mark.parametrize("loss", ["contrastive", CrossEntropy(ignore_index=1, label_smoothing=0.1), "cosine"])
def test_extents_of_losses_and_optimisers_are_exact(loss):
    data = build_artifact(models.mlp([3, 4, 12], seed=1), loss=loss, optimizer="adam")
    for graph in ("train", "update", "gradient"):
        _require_exact(data, graph)


def _model(text, weights=None, opset=23):
    head = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    proto = onnx.parser.parse_model(f"{head} model {text}")
    constants = {name: extent.constant(np.asarray(array)) for name, array in (weights or {}).items()}
    return read_model(_plain(proto).SerializeToString(deterministic=True)), constants


def _plain(proto):
    plain = onnx.ModelProto(ir_version=10, opset_import=proto.opset_import)
    plain.graph.CopyFrom(proto.graph)
    return plain


FORWARD = {
    # operators that gradient graphs hold in no test: (body, sizes that it reads)
    "slice backwards": ("y = Slice (x, s, e, a, t)", {"s": [-1], "e": [-(1 << 62)], "a": [1], "t": [-2]}),
    "slice beyond": ("y = Slice (x, s, e, a)", {"s": [1], "e": [1 << 62], "a": [1]}),
    "range of a computed size": ("n = Size (x) y = Range (z, n, t)", {"z": 0, "t": 3}),
    "integer arithmetic": ("n = Shape (x) m = Mul (n, t) d = Div (m, t) y = ConstantOfShape (d)", {"t": [4, 5]}),
    "floats that become sizes": (
        "n = Shape (x) f = Cast <to=1> (n) h = Mul (f, t) g = Floor (h) i = Cast <to=7> (g) y = ConstantOfShape (i)",
        {"t": np.float32([2.5, 1.5])},
    ),
    "choice of a size": ("n = Shape (x) b = Greater (n, t) w = Where (b, n, t) y = Expand (x, w)", {"t": [1, 4]}),
    "positions of a condition": ("n = Shape (x) b = Equal (n, t) p = NonZero (b) y = Gather (n, p)", {"t": [3, 4]}),
    "split in unequal parts": ("a, y = Split <axis=1> (x, s)", {"s": [1, 3]}),
    "pad of one axis": ("y = Pad (x, p, v, a)", {"p": [2, -1], "v": np.float32(0), "a": [1]}),
    "resize that keeps proportions": (
        'u = Unsqueeze (x, a) y = Resize <keep_aspect_ratio_policy="not_larger"> (u, none, none, s)',
        {"a": [0, 1], "none": np.zeros(0, np.float32), "s": [1, 1, 7, 7]},
    ),
    "resize that fills": (
        'u = Unsqueeze (x, a) y = Resize <axes=[3, 2], keep_aspect_ratio_policy="not_smaller"> (u, none, none, s)',
        {"a": [0, 1], "none": np.zeros(0, np.float32), "s": [7, 5]},
    ),
    "one hot on the left": ("y = OneHot <axis=0> (i, d, v)", {"i": [[1, 2]], "d": 5, "v": np.float32([0, 1])}),
}


@pytest.mark.parametrize("name", FORWARD)
def test_extents_of_computed_sizes_are_exact(name):
    body, weights = FORWARD[name]
    text = f"(float[N,4] x) => (float[Q] q) {{ {body} q = Cast <to=1> (y) }}"
    model, constants = _model(text, weights)
    model = dataclasses.replace(model, outputs=())
    values = extent.extent_of(model, constants, ROWS, "test").values
    arrays = {key: np.asarray(array) for key, array in weights.items()}
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> model {text}')
    del proto.graph.output[:]
    proto.graph.output.append(onnx.ValueInfoProto(name="y"))
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, key) for key, array in arrays.items())
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(["y"], {"x": np.ones((ROWS, 4), np.float32)})
    assert (values["y"].dtype, values["y"].shape) == (wanted.dtype.name, wanted.shape)


def test_peak_counts_what_is_alive_and_work_counts_products():
    text = "(float[N,4] x) => (float[N,4] y) { a = MatMul (x, w) b = Relu (a) c = Relu (b) y = MatMul (c, v) }"
    model, constants = _model(text, {"w": np.ones((4, 100), np.float32), "v": np.ones((100, 4), np.float32)})
    whole = extent.extent_of(model, constants, 10, "test")
    weights, x, hidden = 4 * 800, 4 * 40, 4 * 1000
    assert whole.peak == weights + x + 2 * hidden  # two hidden values at once, never three
    assert whole.work >= 10 * 4 * 100 * 2
    assert extent.extent_of(model, constants, 20, "test").peak - whole.peak == x + 2 * hidden


def test_size_that_depends_on_the_data_is_refused():
    model, constants = _model("(float[N,4] x) => (float[Q] y) { i = Cast <to=7> (x) y = ConstantOfShape (i) }")
    with pytest.raises(BlindsumError, match=r"training-artifact-too-large: .*computed from the data"):
        extent.extent_of(model, constants, 2, "test")


def test_cost_grows_with_the_rows_and_bounds_what_a_step_may_take():
    data = build_artifact(models.mlp([100, 200, 10], seed=1), loss="cross-entropy")
    session = TrainingSession(data)
    one, many = session.cost(1), session.cost(1000)
    assert many.memory - one.memory >= 4 * 999 * (100 + 200)
    assert many.work > 500 * 3 * 100 * 200
    small = TrainingSession(data, memory_max=many.memory)
    x, t = np.ones((1001, 100), np.float32), np.zeros(1001, np.int64)
    small.step(x[:1000], t[:1000])
    before = small.parameters
    with pytest.raises(BlindsumError, match="training-limit-exceeded: train of 1001 rows"):
        small.step(x, t)
    assert np.array_equal(small.parameters, before)
    assert small.evaluate(x, t)["loss"] >= 0
    assert small.fit(x, t, batch_size=1001, memory_cap=many.memory // 2).steps == 1
    slow = TrainingSession(data, work_max=one.work * 20)
    with pytest.raises(BlindsumError, match="training-limit-exceeded"):
        slow.step(x, t)
    with pytest.raises(BlindsumError, match="training-limit-exceeded"):
        TrainingSession(data, memory_max=1000)
    with pytest.raises(BlindsumError, match="training-limit-exceeded"):
        small.fit(x, t, memory_cap=1000)


def test_memory_cap_takes_pieces_that_fit_and_changes_no_result(monkeypatch):
    data = build_artifact(models.mlp([100, 200, 10], seed=1), loss="cross-entropy", optimizer="adam")
    x, t = np.random.default_rng(1).normal(size=(2000, 100)).astype(np.float32), np.arange(2000) % 10
    whole, capped = TrainingSession(data), TrainingSession(data)
    whole.fit(x, t, batch_size=1000)
    sizes = []
    engine = capped._engine
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda feeds, rows: sizes.append(rows) or step(feeds, rows))
    cap = capped.cost(1000).memory * 2 // 3
    capped.fit(x, t, batch_size=1000, memory_cap=cap)
    assert len(sizes) == 2
    assert 1 <= max(sizes) < 1000
    assert engine.budget.cost("gradient", max(sizes)).memory < cap
    np.testing.assert_allclose(capped.parameters, whole.parameters, rtol=1e-4, atol=2e-5)


def test_evaluation_takes_few_rows_at_a_time_where_rows_are_large(make_model, monkeypatch):
    """A row becomes 4 MB inside: more than sixty of them at once are above what an evaluation may take."""
    sizes = {"many": np.array([1, 1 << 20]), "w": np.ones((1,), np.float32), "axis": np.array([1])}
    text = "(float[N,1] x) => (float[N,1] y) { h = Mul (x, w) t = Expand (h, many) y = ReduceMean (t, axis) }"
    session = TrainingSession(build_artifact(make_model(text, sizes), loss="mse"))
    taken = []
    pieces = engine.pieces
    monkeypatch.setattr(engine, "pieces", lambda feeds, rows: taken.append(rows) or pieces(feeds, rows))
    x = np.arange(130, dtype=np.float32).reshape(130, 1)
    assert session.evaluate(x, x + 1)["loss"] == pytest.approx(1.0, rel=1e-3)
    np.testing.assert_allclose(session.predict(x), x, rtol=1e-3)
    assert all(30 < rows < 70 for rows in taken)
