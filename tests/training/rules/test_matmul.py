"""Rules of matrix products."""

from __future__ import annotations

import pytest

from tests.training.cases import case, check

CASES = {
    "matmul": case("h = Mul (x, s) y = MatMul (h, w)", (3,), s=(3,), w=(3, 4)),
    "matmul_dense_over_last_axis": case("h = Mul (x, s) y = MatMul (h, w)", (2, 3), s=(3,), w=(3, 4)),
    "matmul_batched": case("h = Mul (x, s) y = MatMul (h, w)", (2, 4, 3), s=(3,), w=(2, 3, 4)),
    "matmul_broadcast_stack": case("h = Mul (x, s) y = MatMul (h, w)", (1, 4, 3), s=(3,), w=(2, 3, 4)),
    "matmul_weight_on_the_left": case("h = Mul (x, s) y = MatMul (w, h)", (3, 4), s=(4,), w=(2, 3)),
    "matmul_vector_right": case("h = Mul (x, s) y = MatMul (h, w)", (2, 3), s=(3,), w=(3,)),
    "matmul_vector_left": case("h = Mul (x, s) y = MatMul (w, h)", (3, 4), s=(4,), w=(3,)),
    "matmul_two_vectors": case("d = MatMul (v, w) y = Mul (x, d)", (3,), v=(3,), w=(3,)),
    "gemm_no_bias": case("h = Mul (x, s) y = Gemm (h, w)", (3,), s=(3,), w=(3, 4)),
    "gemm_scaled": case("h = Mul (x, s) y = Gemm <alpha=0.5, beta=3.0> (h, w, b)", (3,), s=(3,), w=(3, 4), b=(4,)),
    "gemm_weight_transposed": case("h = Mul (x, s) y = Gemm <transB=1> (h, w, b)", (3,), s=(3,), w=(4, 3), b=(1, 4)),
    "gemm_left_transposed": case(
        "h = Mul (x, s) a = Transpose (h) y = Gemm <transA=1, alpha=2.0> (a, w, b)", (3,), s=(3,), w=(3, 4), b=(1,)
    ),
    "gemm_both_transposed": case(
        "h = Mul (x, s) a = Transpose (h) y = Gemm <transA=1, transB=1> (a, w)", (3,), s=(3,), w=(4, 3)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])
