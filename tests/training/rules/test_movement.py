"""Rules of operators that move elements."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.cases import case, check

CASES = {
    "identity": case("h = Mul (x, w) y = Identity (h)", (3, 4), w=(3, 4)),
    "flatten": case("h = Mul (x, w) y = Flatten (h)", (3, 4), w=(3, 4)),
    "flatten_axis_2": case(
        "h = Mul (x, w) f = Flatten <axis=2> (h) y = Reshape (f, shape)", (3, 4), w=(3, 4), shape=[-1, 2, 6]
    ),
    "reshape": case("h = Mul (x, w) y = Reshape (h, shape)", (3, 4), w=(3, 4), shape=[-1, 2, 6]),
    "reshape_then_add": case(
        "h = Mul (x, w) r = Reshape (h, rows) s = Reshape (r, shape) y = Add (s, b)",
        (3, 4),
        w=(3, 4),
        b=(2, 6),
        shape=[-1, 2, 6],
        rows=[-1, 12],
    ),
    "reshape_with_zero": case(
        "h = Mul (x, w) r = Reshape (h, keep) y = Mul (r, r)", (3, 4), w=(3, 4), keep=[-1, 0, 2, 2]
    ),
    "flatten_then_mul": case("h = Mul (x, w) f = Flatten (h) y = Mul (f, v)", (3, 4), w=(3, 4), v=(12,)),
    "reshape_of_weight": case("f = Reshape (w, flat) y = Mul (x, f)", (6,), w=(2, 3), flat=[6]),
    "transpose": case("h = Mul (x, w) y = Transpose <perm=[0, 2, 1]> (h)", (3, 4), w=(3, 4)),
    "transpose_of_weight": case("t = Transpose (w) y = MatMul (x, t)", (3,), w=(4, 3)),
    "reshape_of_a_zero_size": case(
        "h = Mul (x, w) r = Reshape <allowzero=1> (h, shape) y = Mul (r, r)", (3, 4), w=(3, 4), shape=[-1, 12]
    ),
    "squeeze": case("h = Mul (x, w) y = Squeeze (h, one)", (1, 4, 1), w=(1, 4, 1), one=[1]),
    "squeeze_two_from_behind": case("h = Mul (x, w) y = Squeeze (h, two)", (1, 4, 1), w=(1, 4, 1), two=[-1, 1]),
    "squeeze_all": case("s = Squeeze (w) y = Mul (x, s)", (4,), w=(1, 4, 1)),
    "unsqueeze": case("h = Mul (x, w) y = Unsqueeze (h, two)", (3, 4), w=(3, 4), two=[1, -1]),
    "concat": case("h = Mul (x, w) g = Mul (h, h) c = Concat <axis=1> (h, x, g) y = Mul (c, c)", (3,), w=(3,)),
    "concat_of_weights": case("c = Concat <axis=-1> (v, w) y = Mul (x, c)", (3, 5), v=(3, 2), w=(3, 3)),
    "concat_of_batches": case(
        "h = Mul (x, w) g = Mul (h, h) c = Concat <axis=0> (h, g) a, b = Split <axis=0, num_outputs=2> (c) y = Mul (a, b)",
        (3,),
        w=(3,),
    ),
    "split_even": case("h = Mul (x, w) a, b = Split <axis=1, num_outputs=2> (h) y = Mul (a, b)", (6,), w=(6,)),
    "split_uneven_and_unused": case(
        "h = Mul (x, w) a, b, c = Split <axis=-1> (h, sizes) y = Mul (a, a)", (2, 6), w=(6,), sizes=[2, 3, 1]
    ),
    "split_last_smaller": case(
        "h = Mul (x, w) a, b, c = Split <axis=1, num_outputs=3> (h) s = Mul (a, b) y = Mul (s, c)", (7,), w=(7,)
    ),
    "slice": case("h = Mul (x, w) y = Slice (h, one, three, axis)", (5, 2), w=(5, 2), one=[1], three=[3], axis=[1]),
    "slice_two_axes_oversized": case(
        "h = Mul (x, w) y = Slice (h, starts, ends, axes)",
        (5, 4),
        w=(5, 4),
        starts=[-3, 1],
        ends=[99, -1],
        axes=[1, -1],
    ),
    "slice_without_axes": case(
        "h = Mul (x, w) y = Slice (h, starts, ends)", (5,), w=(5,), starts=[0, 2], ends=[1 << 60, 4]
    ),
    "slice_step": case(
        "h = Mul (x, w) y = Slice (h, starts, ends, axes, steps)",
        (7, 8),
        w=(7, 8),
        starts=[1, 0],
        ends=[7, 8],
        axes=[1, 2],
        steps=[2, 3],
    ),
    "slice_backwards": case(
        "h = Mul (x, w) y = Slice (h, starts, ends, axes, steps)",
        (7, 8),
        w=(7, 8),
        starts=[-1, 6],
        ends=[-(1 << 62), 1],
        axes=[1, 2],
        steps=[-1, -2],
    ),
    "slice_of_a_batch": case(
        "h = Add (x, w) s = Slice (h, starts, ends, axes, steps) y = Mul (s, s)",
        (3,),
        w=(3,),
        starts=[-1],
        ends=[-(1 << 62)],
        axes=[0],
        steps=[-1],
    ),
    "slice_at_a_computed_place": case(
        "h = Mul (x, w) d = Shape <start=1> (h) e = Div (d, two) s = Slice (h, zero, e, one) y = Reshape (s, shape)",
        (4, 3),
        w=(4, 3),
        two=[2, 1],
        zero=[0, 0],
        one=[1, 2],
        shape=[-1, 6],
    ),
    "pad": case("h = Mul (x, w) y = Pad (h, pads)", (3, 2), w=(3, 2), pads=[0, 1, 0, 0, 2, 3]),
    "pad_some_axes_with_a_value": case(
        "h = Mul (x, w) y = Pad (h, pads, v, axes)", (3, 2), w=(3, 2), v=np.float32(0.5), pads=[1, 2], axes=[-1]
    ),
    "pad_cuts": case(
        "h = Mul (x, w) y = Pad (h, pads)", (5, 2), w=(5, 2), pads=[0, -1, 1, 0, -2, 0], differences=False
    ),  # as below
    **{
        f"pad_{mode}": case(
            f'h = Mul (x, w) y = Pad <mode="{mode}"> (h, pads)', (4, 3), w=(4, 3), opset=19, pads=[0, 2, 1, 0, 3, 0]
        )
        for mode in ("reflect", "edge", "wrap")
    },
    "pad_reflect_cuts": case(
        'h = Mul (x, w) y = Pad <mode="reflect"> (h, pads)',
        (4, 3),
        w=(4, 3),
        pads=[0, 2, 0, 0, -1, 0],
        differences=False,  # onnx.reference refuses to cut
    ),
    "pad_edge_far": case('h = Mul (x, w) y = Pad <mode="edge"> (h, pads)', (2,), w=(2,), pads=[0, 5, 0, 4]),
    "tile": case("h = Mul (x, w) y = Tile (h, repeats)", (2, 3), w=(2, 3), repeats=[1, 3, 2]),
    "tile_once": case("h = Mul (x, w) y = Tile (h, repeats)", (3,), w=(3,), repeats=[1, 1]),
    "tile_computed": case(
        "h = Mul (x, w) d = Shape (f) t = Tile (h, d) y = Reshape (t, shape)",
        (3,),
        w=(3,),
        constants={"f": np.zeros((1, 2), np.float32)},
        shape=[-1, 6],
    ),
    "expand": case("h = Mul (x, w) y = Expand (h, sizes)", (1, 3), w=(3,), sizes=[1, 4, 1]),
    "expand_weight_over_the_batch": case(
        "d = Shape <end=1> (x) s = Concat <axis=0> (d, rest) e = Expand (w, s) y = Mul (e, x)",
        (2, 3),
        w=(1, 1, 3),
        rest=[2, 3],
    ),
    "where": case(
        "c = Less (x, zero) h = Mul (x, s) y = Where (c, h, v)",
        (3, 4),
        s=(4,),
        v=(3, 1),
        constants={"zero": np.zeros(4, np.float32)},
    ),
    "cast_to_double_and_back": case(
        "h = Mul (x, w) d = Cast <to=11> (h) e = Mul (d, d) y = Cast <to=1> (e)", (3,), w=(3,)
    ),
    "cast_like": case("h = Mul (x, w) y = CastLike (h, x)", (3,), w=(3,)),
    "trilu_upper": case("h = Mul (x, w) y = Trilu (h)", (3, 4), w=(3, 4)),
    "trilu_lower_shifted": case(
        "h = Mul (x, w) y = Trilu <upper=0> (h, k)", (3, 4), w=(3, 4), constants={"k": np.array(-1)}
    ),
    **{
        f"cumsum_{exclusive}{reverse}": case(
            f"h = Mul (x, w) y = CumSum <exclusive={exclusive}, reverse={reverse}> (h, axis)",
            (4, 2),
            w=(4, 2),
            constants={"axis": np.array(-2)},
        )
        for exclusive in (0, 1)
        for reverse in (0, 1)
    },
    "reverse_sequence": case(
        "h = Mul (x, w) t = Transpose <perm=[1, 2, 0]> (h) r = ReverseSequence <batch_axis=1, time_axis=0> (t, lengths)"
        " y = Transpose <perm=[2, 0, 1]> (r)",
        (4, 3),
        w=(4, 3),
        lengths=[1, 3, 4],
    ),
    "compress": case(
        "h = Mul (x, w) c = Compress <axis=1> (h, kept) y = Reshape (c, shape)",
        (4, 2),
        w=(4, 2),
        constants={"kept": np.array([False, True, False, True])},
        shape=[-1, 4],
    ),
    "slice_of_a_padded_batch": case(
        "h = Mul (x, w) p = Pad (h, pads) s = Slice (p, one, end, zero) y = Mul (s, h)",
        (3,),
        w=(3,),
        pads=[1, 0, 0, 0],
        one=[1],
        end=[1 << 40],
        zero=[0],
    ),
    "tile_of_the_batch": case(
        "h = Mul (x, w) t = Tile (h, repeats) a, b = Split <axis=0, num_outputs=2> (t) y = Mul (a, b)",
        (3,),
        w=(3,),
        repeats=[2, 1],
    ),
    "cumsum_over_the_batch": case(
        "h = Mul (x, w) c = CumSum (h, axis) y = Mul (c, h)", (3,), w=(3,), constants={"axis": np.array(0)}
    ),
    "expand_scalar": case("e = Expand (w, sizes) y = Mul (x, e)", (2, 3), w=np.float32(0.7), sizes=[2, 3]),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])
