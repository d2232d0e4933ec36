"""Reverse-mode differentiation of ONNX graphs into ONNX graphs (author side; needs the `onnx` package).

`registry` holds the rules by operator, one module holds each family of them, `reverse` walks the graph backwards.
"""

from . import (  # noqa: F401  (each registers its rules)
    activation,
    attention,
    conv,
    einsum,
    elementwise,
    index,
    lstm,
    matmul,
    normalisation,
    pool,
    quantise,
    recurrent,
    reduction,
    resize,
    shape,
    unary,
)
from .graph import Graph
from .registry import Backward, Gradients, differentiable, rule, stop
from .reverse import differentiate

__all__ = ["Backward", "Gradients", "Graph", "differentiable", "differentiate", "rule", "stop"]
