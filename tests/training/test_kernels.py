"""Operators whose kernel is slow are written out without changing what they give."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from blindsum.training import TrainingSession, build_artifact, decode
from tests.training.cases import case, check, model_of

CASES = {
    "softplus": "y = Softplus (h)",
    "mish": "y = Mish (h)",
    "softmax": "y = Softmax <axis=1> (h)",
    "log_softmax": "y = LogSoftmax <axis=-2> (h)",
    "global_lp_pool_1": "y = GlobalLpPool <p=1> (h)",
    "global_lp_pool_2": "y = GlobalLpPool (h)",
    "global_lp_pool_3": "y = GlobalLpPool <p=3> (h)",
}
FAR = np.float32([-1e4, -100, -20, -1, -1e-3, 0, 1e-3, 1, 20, 100, 1e4, 1e10])


@pytest.mark.parametrize("name", CASES)
def test_written_out_operator_gives_what_the_kernel_gives(name):
    item = case(f"h = Mul (x, w) {CASES[name]}", (3, 4), w=np.ones((3, 4), np.float32))
    model = model_of(item)
    session = TrainingSession(build_artifact(model, loss="mse"))
    operator = model.graph.node[1].op_type
    assert operator not in session.manifest.operators
    kernel = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in (FAR.reshape(1, 3, 4), FAR[::-1].reshape(1, 4, 3).swapaxes(1, 2), np.zeros((1, 3, 4))):
        x = np.ascontiguousarray(x, np.float32)
        np.testing.assert_allclose(session.predict(x), kernel.run(None, {"x": x})[0], rtol=1e-6, atol=1e-37)


def test_softmax_over_the_last_axis_keeps_its_kernel():
    for body in ("y = Softmax (h)", "y = LogSoftmax <axis=2> (h)"):
        item = case(f"h = Mul (x, w) {body}", (3, 4), w=(3, 4))
        operators = decode(build_artifact(model_of(item), loss="mse")).manifest.operators
        assert {"Softmax", "LogSoftmax"} & set(operators)


def test_float64_keeps_its_kernel():
    item = case("d = Cast <to=11> (x) s = Softplus (d) c = Cast <to=1> (s) y = Mul (c, w)", (4,), w=(4,))
    assert decode(build_artifact(model_of(item), loss="mse")).manifest.operators["Softplus"] == 1
    check(item)
