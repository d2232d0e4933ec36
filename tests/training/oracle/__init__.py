"""An interpreter of ONNX graphs with PyTorch operators in float64: the forward pass and autograd gradients of any graph.

Written from the ONNX specification, apart from the engine: it shares no code with it. One module holds each family of
operators; `operator` registers a function.
"""

from . import (  # noqa: F401  (each registers its operators)
    activation,
    attention,
    convolution,
    elementwise,
    index,
    matmul,
    movement,
    normalisation,
    pooling,
    quantisation,
    recurrent,
    reduction,
    resizing,
)
from .interpreter import FUNCTIONS, Node, Tensor, gradients, operator, run, tensor

__all__ = ["FUNCTIONS", "Node", "Tensor", "gradients", "operator", "run", "tensor"]
