"""Losses of the angles between vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from ..manifest import Targets
from .graph import Graph
from .loss import LossRule, Mean, count, positive, share, total

EPSILON = 1e-12  # added to squared lengths, as PyTorch does, so that a zero vector has an angle
EXCLUDED = -1e30  # takes the place of an example's likeness to itself


class CosineRule(LossRule):
    """Mean of 1 - p t / (|p| |t|) over the vectors of the last axis."""

    __slots__ = ()

    def mean(self, graph: Graph, prediction: str, targets: str) -> Mean:
        likeness = self._likeness(graph, prediction, targets)
        far = graph.op("Sub", graph.scalar(1.0), likeness)
        return graph.op("ReduceMean", far, keepdims=0), count(graph, likeness)

    def targets(self) -> Targets:
        return Targets(dtype="float32", shape=self.sizes())

    def origin(self, graph: Graph, prediction: str, targets: str, scale: str) -> tuple[str, str]:
        """The slope is (cos p / |p| - t / |t|) / |p|."""
        length = _length(graph, prediction)
        near = graph.op("Mul", graph.op("Div", prediction, length), self._likeness(graph, prediction, targets))
        slope = graph.op("Div", graph.op("Sub", near, graph.op("Div", targets, _length(graph, targets))), length)
        terms = count(graph, self._likeness(graph, prediction, targets))
        return prediction, graph.op("Mul", slope, share(graph, terms, scale))

    def _likeness(self, graph: Graph, prediction: str, targets: str) -> str:
        product = graph.op("ReduceSum", graph.op("Mul", prediction, targets), graph.integers([-1]), keepdims=1)
        return graph.op("Div", product, graph.op("Mul", _length(graph, prediction), _length(graph, targets)))


class ContrastiveRule(LossRule):
    """Supervised contrastive loss. With z the unit embeddings, S = z z' / temperature without its diagonal, and P the
    number of partners of an example, its term is the mean over them of logsumexp(S) - S[partner]."""

    __slots__ = ()

    @property
    def separable(self) -> bool:
        return False

    def targets(self) -> Targets:
        if len(self.sizes()) != 1:
            raise self.unfit("(batch, size of the embedding)")
        return Targets(dtype="int64", shape=())

    def mean(self, graph: Graph, prediction: str, targets: str) -> Mean:
        log, share_of_pair, anchors = self._pairs(graph, prediction, targets)
        loss = graph.op("Neg", total(graph, graph.op("Mul", log, share_of_pair)))
        return graph.op("Div", loss, positive(graph, anchors)), anchors

    def origin(self, graph: Graph, prediction: str, targets: str, scale: str) -> tuple[str, str]:
        log, share_of_pair, anchors = self._pairs(graph, prediction, targets)
        has = graph.op("ReduceSum", share_of_pair, graph.integers([1]), keepdims=1)
        pull = graph.op("Sub", graph.op("Mul", graph.op("Exp", log), has), share_of_pair)  # gradient for S
        both = graph.op("Add", pull, graph.op("Transpose", pull, perm=[1, 0]))
        unit, length = self._unit(graph, prediction), _length(graph, prediction)
        slope = graph.op("MatMul", both, unit)
        along = graph.op("ReduceSum", graph.op("Mul", slope, unit), graph.integers([-1]), keepdims=1)
        slope = graph.op("Div", graph.op("Sub", slope, graph.op("Mul", unit, along)), length)
        factor = graph.op("Div", share(graph, positive(graph, anchors), scale), graph.scalar(self.loss.temperature))
        return prediction, graph.op("Mul", slope, factor)

    def metrics(self) -> dict[str, Callable[[Graph, str, str], Mean]]:
        return {"neighbour-accuracy": self._neighbour_accuracy}

    def _unit(self, graph: Graph, prediction: str) -> str:
        return graph.op("Div", prediction, _length(graph, prediction))

    def _others(self, graph: Graph, targets: str) -> str:
        """float32 (batch, batch): one off the diagonal."""
        size = graph.op("Shape", targets)
        rows = graph.op("Range", graph.constant(np.array(0)), graph.op("Squeeze", size), graph.constant(np.array(1)))
        same = graph.op("Equal", graph.op("Unsqueeze", rows, graph.integers([1])), rows)
        return graph.op("Cast", graph.op("Not", same), to=TensorProto.FLOAT)

    def _likeness(self, graph: Graph, prediction: str, targets: str) -> str:
        unit = self._unit(graph, prediction)
        likeness = graph.op("MatMul", unit, graph.op("Transpose", unit, perm=[1, 0]))
        likeness = graph.op("Div", likeness, graph.scalar(self.loss.temperature))
        itself = graph.op("Sub", graph.scalar(1.0), self._others(graph, targets))
        return graph.op("Add", likeness, graph.op("Mul", itself, graph.scalar(EXCLUDED)))

    def _pairs(self, graph: Graph, prediction: str, targets: str) -> tuple[str, str, str]:
        """Log-softmax of the likeness to the others, 1 / P at each pair of partners, and the number of examples with
        a partner."""
        log = graph.op("LogSoftmax", self._likeness(graph, prediction, targets), axis=1)
        alike = graph.op("Equal", graph.op("Unsqueeze", targets, graph.integers([1])), targets)
        partners = graph.op("Mul", graph.op("Cast", alike, to=TensorProto.FLOAT), self._others(graph, targets))
        number = graph.op("ReduceSum", partners, graph.integers([1]), keepdims=1)
        anchors = total(graph, graph.op("Min", number, graph.scalar(1.0)))
        return log, graph.op("Div", partners, positive(graph, number)), anchors

    def _neighbour_accuracy(self, graph: Graph, prediction: str, targets: str) -> Mean:
        """Share of examples whose nearest other one has their label."""
        nearest = graph.op("ArgMax", self._likeness(graph, prediction, targets), axis=1, keepdims=0)
        hits = graph.op("Equal", graph.op("Gather", targets, nearest, axis=0), targets)
        return graph.op("ReduceMean", graph.op("Cast", hits, to=TensorProto.FLOAT), keepdims=0), count(graph, targets)


def _length(graph: Graph, vectors: str) -> str:
    squared = graph.op("ReduceSum", graph.op("Mul", vectors, vectors), graph.integers([-1]), keepdims=1)
    return graph.op("Sqrt", graph.op("Add", squared, graph.scalar(EPSILON)))
