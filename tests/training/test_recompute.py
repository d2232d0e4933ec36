"""Recomputation changes what a step holds in memory, and no number."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.training import TrainingSession, build_artifact, decode, engine
from blindsum.training.protobuf import read_model, with_initialisers

WIDTH, DEPTH = 32, 12
RESULT = 4 * WIDTH  # bytes per example of one layer's result


def _deep(make_model, activation):
    """`DEPTH` dense layers, each with an activation that `activation` writes from `z` into `h`, and a shortcut."""
    generator = np.random.default_rng(0)
    weights = {f"w{n}": generator.normal(0, 0.2, (WIDTH, WIDTH)).astype(np.float32) for n in range(DEPTH)}
    body = "".join(
        f"z{n} = MatMul(s{n}, w{n}) {activation.replace('#', str(n))} s{n + 1} = Add(s{n}, h{n}) " for n in range(DEPTH)
    )
    text = (
        f"(float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y) {{ s0 = Identity(x) {body} y = Identity(s{DEPTH}) }}"
    )
    return make_model(text, weights)


def _convolutional(make_model):
    generator = np.random.default_rng(1)
    weights = {f"k{n}": generator.normal(0, 0.3, (2, 2, 3, 3)).astype(np.float32) for n in range(6)}
    body = "".join(f"c{n} = Conv<pads=[1,1,1,1]>(r{n}, k{n}) r{n + 1} = Relu(c{n}) " for n in range(5))
    text = f"(float[batch, 2, 8, 8] x) => (float[batch, 2, 8, 8] y) {{ r0 = Identity(x) {body} s = Add(r5, r2) "
    return make_model(text + "y = Conv<pads=[1,1,1,1]>(s, k5) }", weights)


def _recurrent(make_model):
    """Two LSTM layers over ten steps."""
    generator = np.random.default_rng(2)
    shapes = {"w0": (1, 12, 2), "r0": (1, 12, 3), "w1": (1, 8, 3), "r1": (1, 8, 2)}
    weights = {name: generator.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    text = """(float[batch, 10, 2] x) => (float[batch, 2] y) {
        t = Transpose <perm=[1, 0, 2]> (x) a = LSTM <hidden_size=3> (t, w0, r0) b = Squeeze (a, one)
        c, d = LSTM <hidden_size=2> (b, w1, r1) y = Squeeze (d, zero) }"""
    return make_model(text, {**weights, "one": np.array([1]), "zero": np.array([0])})


def _gradient(artifact, size, seed=0):
    session = TrainingSession(artifact)
    generator = np.random.default_rng(seed)
    features, prediction = session.manifest.features[0].shape, session.manifest.prediction.shape
    x, t = (generator.normal(size=(size, *shape)).astype(np.float32) for shape in (features, prediction))
    return session.step(x, t)


def _least(model):
    with pytest.raises(BlindsumError, match="training-request-invalid") as refused:
        build_artifact(model, loss="mse", optimizer="gradient", recompute=0)
    return int(re.search(r"at least (\d+) bytes", str(refused.value))[1])


def _work(artifact, *operators):
    """How many nodes of these operators, or of any, a step runs."""
    return sum(not operators or node.operator in operators for node in read_model(decode(artifact).train).nodes)


SILU = "g# = Sigmoid(z#) h# = Mul(z#, g#)"


@pytest.mark.parametrize(
    "make", [_convolutional, _recurrent, lambda m: _deep(m, SILU), lambda m: _deep(m, "h# = Tanh(z#)")]
)
def test_gradients_are_the_same_at_every_batch_size(make, make_model):
    model = make(make_model)
    plain = build_artifact(model, loss="mse", optimizer="gradient")
    tight = build_artifact(model, loss="mse", optimizer="gradient", recompute=_least(model))
    assert _work(tight) > _work(plain)
    for size in (1, 5):
        (loss, gradient), (same_loss, same) = _gradient(plain, size), _gradient(tight, size)
        assert loss == same_loss
        np.testing.assert_allclose(same, gradient, rtol=1e-6, atol=1e-7)


def test_enough_room_changes_nothing(make_model):
    model = _deep(make_model, SILU)
    assert build_artifact(model, loss="mse", recompute=1 << 20) == build_artifact(model, loss="mse")


def test_cheap_results_are_recomputed_first(make_model):
    model = _deep(make_model, SILU)
    plain = build_artifact(model, loss="mse", optimizer="gradient")
    # of a layer's four results three are read behind: s, z and g; s0 shows the features
    roomy = build_artifact(model, loss="mse", optimizer="gradient", recompute=(3 * DEPTH - 1) * RESULT - 1)
    thrifty = build_artifact(model, loss="mse", optimizer="gradient", recompute=2 * DEPTH * RESULT + 3 * RESULT)
    assert _work(plain, "MatMul", "Gemm") == _work(roomy, "MatMul", "Gemm") == _work(thrifty, "MatMul", "Gemm")
    assert _work(plain) < _work(roomy) < _work(thrifty)


def test_a_budget_that_nothing_fits_is_refused_with_the_least_that_does(make_model):
    model = _deep(make_model, "h# = Tanh(z#)")
    least = _least(model)
    build_artifact(model, loss="mse", recompute=least)
    with pytest.raises(BlindsumError, match=f"at least {least} bytes"):
        build_artifact(model, loss="mse", recompute=least - 1)


def test_a_step_takes_less_memory(make_model, tmp_path):
    """Measured in processes of their own: 24 results of 2 MiB each, against the two or three that segments hold."""
    code = """
import re, sys
import numpy as np
from blindsum.training import TrainingSession

def memory(field):
    return int(re.search(rf"^{field}:\\s+(\\d+) kB", open("/proc/self/status").read(), re.M)[1])

session = TrainingSession(open(sys.argv[1], "rb").read())
x = np.ones((16384, *session.manifest.features[0].shape), np.float32)
before = memory("VmRSS")
session.step(x, x)
print(memory("VmHWM") - before)
"""
    model = _deep(make_model, "h# = Tanh(z#)")
    peaks = []
    for name, budget in (("plain", None), ("tight", _least(model))):
        path = tmp_path / name
        path.write_bytes(build_artifact(model, loss="mse", recompute=budget))
        run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        peaks.append(int(run.stdout))
    assert peaks[1] < 0.7 * peaks[0], peaks


@pytest.mark.parametrize("bound", [1 << 12, 1 << 14, 1 << 16, 1 << 18])
def test_no_batch_takes_more_memory_in_pieces(make_model, monkeypatch, bound):
    """Where both go in pieces, or one of the two, or none."""
    monkeypatch.setattr(engine, "PIECE_BYTES", bound)
    monkeypatch.setattr(engine, "WORK_MIN", 1)
    monkeypatch.setattr(engine, "WORK_PER_WEIGHT_MIN", 0)
    model = _convolutional(make_model)
    plain, tight = (
        TrainingSession(build_artifact(model, loss="mse", recompute=budget), threads=1)._engine
        for budget in (None, _least(model))
    )
    assert (plain.budget.recomputes(), tight.budget.recomputes()) == (False, True)
    for rows in range(1, 200):
        least, most = (each.budget.cost("gradient", each._piece(rows)).memory for each in (tight, plain))
        assert least <= most, rows


def test_gradients_are_made_as_the_backward_pass_comes_by(make_model, tmp_path):
    """Else what they are made of waits for the end of the pass."""
    artifact = decode(build_artifact(_deep(make_model, "h# = Tanh(z#)"), loss="mse"))
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "run")
    session = ort.InferenceSession(
        with_initialisers(artifact.gradient, artifact.constants), options, providers=["CPUExecutionProvider"]
    )
    given = {
        item.name: np.ones([4 if size == "batch" else size for size in item.shape], np.float32)
        for item in session.get_inputs()
    }
    session.run(None, given)
    events = json.loads(Path(session.end_profiling()).read_text())
    made = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
    handed_out = [at for at, operator in enumerate(made) if operator == "Sum"]
    assert len(handed_out) == DEPTH
    # the second last layer's is there before anything of the layers before it is worked out
    between = [made[first:second].count("Mul") for first, second in pairwise(handed_out)]
    assert all(between), made


def test_the_reference_computes_the_same(make_model, run_reference):
    model = _convolutional(make_model)
    artifact = build_artifact(model, loss="mse", optimizer="gradient", recompute=_least(model))
    generator = np.random.default_rng(3)
    x = generator.normal(size=(3, 2, 8, 8)).astype(np.float32)
    t = generator.normal(size=(3, 2, 8, 8)).astype(np.float32)
    _, gradient = TrainingSession(artifact).step(x, t)
    expected = run_reference(artifact, x, t)[2:]
    np.testing.assert_allclose(gradient, np.concatenate([part.ravel() for part in expected]), rtol=1e-4, atol=1e-5)
