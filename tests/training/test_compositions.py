"""Random chains of operators have the gradient that autograd gives: rules fit together, whatever is broadcast."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.cases import case, check

SMOOTH = ("Sigmoid", "Tanh", "Softsign", "Gelu", "Erf", "Atan", "Sin", "Swish", "Mish", "Softplus", "Identity")
KINKED = ("Relu", "LeakyRelu", "Elu", "Selu", "HardSigmoid", "HardSwish", "Abs")
NORMAL = ("Softmax <axis={axis}>", "LogSoftmax <axis={axis}>")
REDUCED = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare")
BINARY = ("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum")
RANK = 3


@st.composite
def _chains(draw):
    """A body over x, and its weights: each step takes the last value, and perhaps a weight or an earlier value."""
    sizes = draw(st.tuples(*[st.integers(1, 4)] * (RANK - 1)))
    lines, values, weights = ["v0 = Mul (x, w0)"], ["v0"], {"w0": sizes}
    for at in range(1, draw(st.integers(2, 6))):
        last, made = values[-1], f"v{at}"
        kind = draw(st.sampled_from(["unary", "normal", "reduced", "weight", "binary", "div"]))
        if kind == "unary":
            lines.append(f"{made} = {draw(st.sampled_from(SMOOTH + KINKED))} ({last})")
        elif kind == "normal":
            operator = draw(st.sampled_from(NORMAL)).format(axis=draw(st.integers(1, RANK - 1)))
            lines.append(f"{made} = {operator} ({last})")
        elif kind == "reduced":
            axis = draw(st.sampled_from(["one", "two"]))
            lines.append(f"r{at} = {draw(st.sampled_from(REDUCED))} ({last}, {axis}) {made} = Add (v0, r{at})")
        elif kind == "weight":
            name = f"w{at}"
            weights[name] = tuple(draw(st.sampled_from([1, size])) for size in sizes)[draw(st.integers(0, RANK - 1)) :]
            lines.append(f"{made} = {draw(st.sampled_from(BINARY))} ({last}, {name})")
        elif kind == "binary":
            lines.append(f"{made} = {draw(st.sampled_from(BINARY))} ({last}, {draw(st.sampled_from(values))})")
        else:
            lines.append(
                f"q{at} = Softplus ({draw(st.sampled_from(values))}) p{at} = Add (q{at}, half) {made} = Div ({last}, p{at})"
            )
        values.append(made)
    lines.append(f"y = Add ({values[-1]}, last)")  # its gradient is not zero, whatever cancels out before
    weights["last"] = (1,)
    return " ".join(lines), sizes, weights


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(_chains())
def test_chain_has_the_gradient(chain):
    body, sizes, weights = chain
    constants = {"half": np.float32(0.5), "one": np.array([1]), "two": np.array([-1])}
    used = {name: value for name, value in constants.items() if name in body}
    check(case(body, sizes, opset=24, differences=False, tolerance=1e-3, constants=used, **weights))
