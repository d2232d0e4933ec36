"""Rules of reductions."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.cases import Case, case, check

OPERATORS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


def _family(name: str) -> dict[str, Case]:
    """Axes given (from the front and the back), absent and empty, dimensions kept and dropped."""
    operator, more = f"Reduce{name}", {"between": (0.5, 2.0), "w": (2, 3, 2)}
    nothing = np.zeros(0, np.int64)
    body = "h = Mul (x, w) r = {} {} y = Mul (r, r)"
    forms = {
        "kept": case(body.format(operator, "(h, axes)"), (2, 3, 2), axes=[2], **more),
        "dropped": case(body.format(operator, "<keepdims=0> (h, axes)"), (2, 3, 2), axes=[-1, 1], **more),
        "everything": case(f"h = Mul (x, w) r = {operator} (h) y = Mul (x, r)", (2, 3, 2), **more),
        "everything_dropped": case(f"h = Mul (x, w) r = {operator} <keepdims=0> (h) y = Mul (x, r)", (2, 3, 2), **more),
        "nothing": case(body.format(operator, "<noop_with_empty_axes=1> (h)"), (2, 3, 2), **more),
        "no_axes": case(
            body.format(operator, "<noop_with_empty_axes=1, keepdims=0> (h, axes)"), (2, 3, 2), axes=nothing, **more
        ),
    }
    return {f"{name}_{form}": item for form, item in forms.items()}


CASES = {name: item for operator in OPERATORS for name, item in _family(operator).items()} | {
    "batch": case("h = Mul (x, w) m = ReduceMean (h, axes) y = Sub (h, m)", (3,), w=(3,), axes=[0]),
    "batch_max": case("h = Mul (x, w) m = ReduceMax <keepdims=0> (h, axes) y = Sub (h, m)", (3,), w=(3,), axes=[0]),
    "axes_from_the_graph": case(
        "h = Mul (x, w) d = Shape <start=2> (h) i = Sub (d, two) m = ReduceMean (h, i) s = Mul (h, m) y = Reshape (s, rows)",
        (2, 3),
        w=(2, 3),
        two=[2],
        rows=[-1, 6],
    ),
    "max_ties": case(
        "n = Mul (x, z) h = Add (n, w) y = ReduceMax (h, axes)",
        (4,),
        w=[1.0, 2.0, 2.0, 2.0],
        axes=[1],
        differences=False,
        constants={"z": np.float32(0)},
    ),
    "min_ties": case(
        "n = Mul (x, z) h = Add (n, w) y = ReduceMin (h, axes)",
        (4,),
        w=[1.0, 1.0, 2.0, 2.0],
        axes=[1],
        differences=False,
        constants={"z": np.float32(0)},
    ),
    "prod_one_zero": case("h = Mul (x, w) y = ReduceProd (h, axes)", (3,), w=[0.0, 2.0, 3.0], axes=[1]),
    "prod_two_zeros": case(
        "a = Mul (x, w) b = Add (a, v) y = ReduceProd (b, axes) ", (4,), w=(1,), v=[0.5, 0.7, 0.9, 0.3], axes=[1]
    ),
    "l1_of_zero": case("r = Relu (x) h = Mul (r, w) y = ReduceL1 (h, axes)", (6,), w=(6,), axes=[1]),
    "l2_of_zero": case(
        "h = Mul (x, w) y = ReduceL2 (h, axes)",
        (2, 3),
        differences=False,
        w=[[0.0, 0.0, 0.0], [0.4, 0.5, 0.6]],
        axes=[2],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])
