"""Rules of operators that read or write where an index tensor says."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.cases import case, check

CASES = {
    "one_hot": case(
        "y = OneHot (x, depth, w)", (3,), dtype="int64", between=(-5, 7), w=(2,), constants={"depth": np.int64(5)}
    ),
    "one_hot_axis": case(
        "h = OneHot <axis=1> (x, depth, w) y = Mul (h, s)",
        (3,),
        dtype="int64",
        between=(0, 5),
        w=(2,),
        s=(5, 3),
        constants={"depth": np.int64(5)},
    ),
    "gather_embedding": case("y = Gather (w, x)", (3,), dtype="int64", between=(0, 5), w=(5, 4)),
    "gather_counted_from_behind": case("y = Gather (w, x)", (3,), dtype="int64", between=(-5, 0), w=(5, 4)),
    "gather_int32": case("i = Cast <to=6> (x) y = Gather (w, i)", (3,), dtype="int64", between=(0, 5), w=(5, 4)),
    "gather_one": case(
        "h = Mul (x, w) y = Gather <axis=1> (h, last)", (3, 4), w=(3, 4), constants={"last": np.array(-1)}
    ),
    "gather_neighbours": case("h = Mul (x, w) y = Gather <axis=-1> (h, at)", (3, 4), w=(3, 4), at=[1, 2]),
    "gather_positions": case("p = Gather (w, at) y = Mul (x, p)", (3, 2), w=(4, 2), at=[[0, 1, 2]]),
    "gather_all_in_a_row": case("h = Mul (x, w) y = Gather <axis=1> (h, at)", (3, 2), w=(3, 2), at=[[0], [1], [2]]),
    "gather_scattered": case("h = Mul (x, w) y = Gather <axis=1> (h, at)", (3, 4), w=(3, 4), at=[[2, 0], [-1, 2]]),
    "gather_middle_computed": case(
        "h = Mul (x, w) i = Size (f) y = Gather <axis=2> (h, i)",
        (3, 4),
        w=(3, 4),
        constants={"f": np.ones(3, np.float32)},
    ),
    "gather_first_of_the_batch": case(
        "h = Mul (x, w) g = Gather <axis=0> (h, at) y = Mul (h, g)", (3,), w=(3,), at=[0]
    ),
    "gather_elements": case(
        "t = GatherElements <axis=1> (m, x) y = Mul (t, t)",
        (3,),
        dtype="int64",
        between=(-4, 4),
        m=(5, 4),
    ),
    "gather_elements_repeated": case(
        "h = Mul (x, w) d = Shape (x) i = ConstantOfShape <value=int64[1] {2}> (d) y = GatherElements <axis=-1> (h, i)",
        (3,),
        w=(3,),
    ),
    "gather_nd": case("y = GatherND (w, x)", (3, 2), dtype="int64", between=(0, 4), w=(4, 5, 2)),
    "gather_nd_batch": case(
        "h = Mul (x, w) d = Shape <end=1> (x) s = Concat <axis=0> (d, rest) i = Expand (at, s)"
        " y = GatherND <batch_dims=1> (h, i)",
        (3, 4),
        w=(3, 4),
        at=[[[1, 2], [0, 0], [1, 2]]],
        rest=[3, 2],
    ),
    "top_k": case("h = Mul (x, w) y, i = TopK (h, k)", (6,), w=(6,), k=[3]),
    "top_k_smallest_without_indices": case(
        "h = Mul (x, w) y, i = TopK <axis=1, largest=0> (h, k)", (5, 2), w=(5, 2), k=[2]
    ),
    "scatter_elements": case(
        "h = Mul (x, w) v2 = Mul (v, v) s = ScatterElements <axis=1> (m, at, v2) y = Mul (h, s)",
        (4,),
        w=(4,),
        m=(1, 4),
        v=(1, 2),
        at=[[2, -4]],
    ),
    **{
        f"scatter_elements_{reduction}": case(
            f's = ScatterElements <axis=1, reduction="{reduction}"> (m, at, v) y = Mul (x, s)',
            (4,),
            m=(1, 4),
            v=(1, 5),
            at=[[2, 0, 2, 3, 2]],
        )
        for reduction in ("add", "mul", "max", "min")
    },
    "scatter_elements_mul_with_zeros": case(
        's = ScatterElements <axis=0, reduction="mul"> (m, at, v) y = Mul (x, s)',
        (5,),
        m=np.float32([2, 0, 0, 3, 1]),
        v=np.float32([0, 4, 5, 0, 0, 7]),
        at=[0, 0, 1, 2, 3, 4],
        differences=False,  # checked by autograd: onnx.reference divides as the slope is taken
    ),
    "scatter_elements_max_of_equals": case(
        's = ScatterElements <axis=0, reduction="max"> (m, at, v) y = Mul (x, s)',
        (3,),
        m=np.float32([1, 2, 3]),
        v=np.float32([2, 2, 1]),
        at=[1, 1, 2],
        differences=False,  # the slope is one-sided: equal elements share it
    ),
    "scatter_nd": case("s = ScatterND (m, at, v) y = Mul (x, s)", (4, 2), m=(4, 2), v=(2, 2), at=[[3], [1]]),
    **{
        f"scatter_nd_{reduction}": case(
            f's = ScatterND <reduction="{reduction}"> (m, at, v) y = Mul (x, s)',
            (4, 2),
            m=(4, 2),
            v=(3,),
            at=[[3, 0], [1, 1], [3, 0]],
        )
        for reduction in ("add", "mul", "max", "min")
    },
    "gather_nd_counted_from_behind": case(
        "h = Mul (w, w) y = GatherND (h, x)", (2, 1), dtype="int64", between=(-4, 4), w=(4, 3)
    ),
    "top_k_of_the_batch": case(
        "h = Mul (x, w) v, i = TopK <axis=0> (h, k) s = ReduceSum (v, k0) y = Mul (h, s)", (3,), w=(3,), k=[2], k0=[0]
    ),
    "scatter_elements_of_a_batch": case(
        "h = Mul (x, w) d = Shape (h) i = Expand (at, d) s = ScatterElements <axis=1> (h, i, h) y = Mul (s, s)",
        (3,),
        w=(3,),
        at=[[2, 0, 1]],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])
