"""Rules for activation functions."""

from __future__ import annotations

from .registry import Backward, Gradients, rule


@rule("Relu", since=6)
def relu(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, b.mask(b.op("Greater", b.y[0], b.scalar(0.0))))]


@rule("Sigmoid", since=6)
def sigmoid(b: Backward) -> Gradients:
    slope = b.op("Mul", b.y[0], b.op("Sub", b.scalar(1.0), b.y[0]))
    return [b.op("Mul", b.dy, slope)]


@rule("Tanh", since=6)
def tanh(b: Backward) -> Gradients:
    slope = b.op("Sub", b.scalar(1.0), b.op("Mul", b.y[0], b.y[0]))
    return [b.op("Mul", b.dy, slope)]


@rule("Softmax", since=13)
def softmax(b: Backward) -> Gradients:
    axis = b.integers([b.integer("axis", -1)])
    weighted = b.op("Mul", b.dy, b.y[0])
    mean = b.op("ReduceSum", weighted, axis, keepdims=1)
    return [b.op("Sub", weighted, b.op("Mul", b.y[0], mean))]


@rule("LogSoftmax", since=13)
def log_softmax(b: Backward) -> Gradients:
    total = b.op("ReduceSum", b.dy, b.integers([b.integer("axis", -1)]), keepdims=1)
    return [b.op("Sub", b.dy, b.op("Mul", b.op("Exp", b.y[0]), total))]
