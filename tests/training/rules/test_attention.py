"""Rules of Einsum, Attention and RotaryEmbedding."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.cases import case, check

PACKED = "q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)"
APART = f"{PACKED} " + " ".join(
    f"{name}3 = Reshape ({name}, heads_{name}) {name}4 = Transpose <perm=[0, 2, 1, 3]> ({name}3)" for name in "qkv"
)
WEIGHTS = {name: np.random.default_rng(at).normal(size=(3, 8)) for at, name in enumerate(("wq", "wk", "wv"))}
GROUPED = WEIGHTS | {name: WEIGHTS[name][:, :4] for name in ("wk", "wv")}
HEADS = {"heads_q": [0, 0, 4, 2], "heads_k": [0, 0, 2, 2], "heads_v": [0, 0, 2, 2]}
ANGLES = np.random.default_rng(9).uniform(0, 6, (6, 2))


def einsum(equation: str, operands: str, x: tuple[int, ...], **weights: tuple[int, ...]) -> object:
    return case(f'h = Mul (x, s) y = Einsum <equation="{equation}"> ({operands})', x, s=x[-1:], **weights)


CASES = {
    "einsum_matrices": einsum("bij,jk->bik", "h, w", (2, 3), w=(3, 4)),
    "einsum_heads": einsum("bqhd,bkhd->bhqk", "h, h", (3, 2, 2)),
    "einsum_implicit_output": einsum("bi,ik", "h, w", (3,), w=(3, 2)),
    "einsum_spaces_and_capitals": einsum("b I, I K -> b K", "h, w", (3,), w=(3, 2)),
    "einsum_sum_alone": einsum("bij->bi", "h", (2, 3)),
    "einsum_letter_of_one_operand": einsum("bij,jk->bi", "h, w", (2, 3), w=(3, 4)),
    "einsum_transposed": einsum("bij->bji", "h", (2, 3)),
    "einsum_outer": einsum("bi,j->bij", "h, w", (3,), w=(4,)),
    "einsum_three": einsum("bi,ij,jk->bk", "h, v, w", (3,), v=(3, 2), w=(2, 4)),
    "einsum_diagonal": einsum("bii,i->bi", "h, w", (3, 3), w=(3,)),
    "einsum_trace": einsum("bi,jj->bi", "h, w", (3,), w=(3, 3)),
    "einsum_ellipsis": einsum("...ij,...kj->...ik", "h, h", (2, 3, 3)),
    "einsum_ellipsis_broadcast": einsum("...ij,...jk->...ik", "h, w", (2, 3, 3), w=(1, 2, 3, 2)),
    "einsum_ellipsis_broadcast_twice": einsum("...ij,...jk->...ik", "h, w", (2, 3, 3), w=(1, 1, 3, 2)),
    "einsum_ellipsis_of_other_rank": einsum("...i,ij->...j", "h, w", (2, 3), w=(3, 2)),
    "einsum_ellipsis_implicit": einsum("...i,i", "h, w", (2, 3), w=(3,)),
    "attention_packed": case(
        f"{PACKED} y = Attention <q_num_heads=2, kv_num_heads=2> (q, k, v)", (4, 3), opset=23, **WEIGHTS
    ),
    "attention_packed_grouped_causal_scaled": case(
        f"{PACKED} y = Attention <q_num_heads=4, kv_num_heads=2, is_causal=1, scale=0.3> (q, k, v)",
        (4, 3),
        opset=24,
        **GROUPED,
    ),
    "attention_grouped": case(f"{APART} y = Attention (q4, k4, v4)", (4, 3), opset=23, **HEADS, **GROUPED),
    "attention_trained_bias": case(
        f"{PACKED} y = Attention <q_num_heads=4, kv_num_heads=2> (q, k, v, m)",
        (4, 3),
        opset=23,
        m=np.random.default_rng(1).normal(size=(1, 4, 4, 4)),
        **GROUPED,
    ),
    # through the operator's definition
    "attention_soft_cap": case(
        f"{PACKED} y = Attention <q_num_heads=2, kv_num_heads=2, softcap=1.5> (q, k, v)", (4, 3), opset=23, **WEIGHTS
    ),
    "attention_cache": case(
        f"{PACKED} h = Shape <end=1> (x) c = Concat <axis=0> (h, past) p = Expand (m, c)"
        " z, pk, pv = Attention <q_num_heads=2, kv_num_heads=2> (q, k, v, mask, p, p)"
        " t = Transpose <perm=[0, 2, 1, 3]> (pv) f = Reshape (t, flat) y = Concat <axis=1> (z, f)",
        (4, 3),
        opset=23,
        m=(1, 2, 1, 4),
        past=[2, 3, 4],
        constants={"mask": np.tri(4, 7, 3, dtype=np.float32)},
        flat=[0, 7, 8],
        **WEIGHTS,
    ),
    "attention_mask": case(
        f"{PACKED} y = Attention <q_num_heads=2, kv_num_heads=2> (q, k, v, m)",
        (4, 3),
        opset=23,
        constants={"m": np.tri(4, dtype=bool)},
        **WEIGHTS,
    ),
    "attention_mask_of_one_row": case(
        f"{PACKED} y = Attention <q_num_heads=2, kv_num_heads=2> (q, k, v, m)",
        (4, 3),
        opset=23,
        m=np.random.default_rng(2).normal(size=(1, 1, 1, 4)),
        **WEIGHTS,
    ),
    "rotary_embedding_of_a_part": case(
        "h = MatMul (x, w) n = Shape <end=2> (x) p = Expand (steps, n) r = Reshape (h, apart)"
        " t = Transpose <perm=[0, 2, 1, 3]> (r) y = RotaryEmbedding <rotary_embedding_dim=4> (t, cos, sin, p)",
        (4, 3),
        opset=23,
        w=(3, 12),
        steps=[3, 0, 5, 2],
        apart=[0, 0, 2, 6],
        constants={"cos": np.cos(ANGLES).astype(np.float32), "sin": np.sin(ANGLES).astype(np.float32)},
    ),
    **{
        f"rotary_embedding{interleaved}": case(
            f"h = MatMul (x, w) n = Shape <end=2> (x) p = Expand (steps, n)"
            f" y = RotaryEmbedding <num_heads=2, interleaved={interleaved}> (h, cos, sin, p)",
            (4, 3),
            opset=23,
            w=(3, 8),
            steps=[3, 0, 5, 2],
            constants={"cos": np.cos(ANGLES).astype(np.float32), "sin": np.sin(ANGLES).astype(np.float32)},
        )
        for interleaved in (0, 1)
    },
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])
