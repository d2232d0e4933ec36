"""Losses of class numbers and of probabilities."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto

from blindsum.protocol.errors import BlindsumError

from ..losses import CrossEntropy
from ..manifest import Targets
from .graph import Graph
from .loss import LossRule, Mean, NumbersRule, count, positive, share, total

TOP = 5
TOP_CLASSES_MIN = 2 * TOP  # with fewer classes, being among the first five says little


class ClassesRule(LossRule):
    """Weighted mean of -log p[target], p the softmax of the prediction, or the exponential of log-probabilities.

    With label smoothing e and C classes a target of class t is the distribution (1 - e) [t] + e / C, class c of which
    weighs w[c]; the divisor is the sum of w[t] (torch.nn.functional.cross_entropy).
    """

    __slots__ = ()

    @property
    def cuts(self) -> frozenset[str]:
        return frozenset({"Softmax", "LogSoftmax"} if isinstance(self.loss, CrossEntropy) else ())

    @property
    def axis(self) -> int:
        return int(self.loss.axis) % len(self.shape)

    @property
    def classes(self) -> int:
        return self.sizes()[self.axis - 1]

    def targets(self) -> Targets:
        rank = len(self.shape)
        if rank < 2 or not -rank <= self.loss.axis < rank or self.axis == 0:
            raise self.unfit("(batch, classes, ...)")
        sizes = self.sizes()
        weights = self.loss.class_weights
        if self.classes < 2:
            raise self.unfit("(batch, classes, ...) with two classes or more")
        if weights is not None and len(weights) != self.classes:
            raise BlindsumError("training-request-invalid", f"{len(weights)} class_weights for {self.classes} classes")
        return Targets(
            dtype="int64",
            shape=sizes[: self.axis - 1] + sizes[self.axis :],
            low=0.0,
            high=float(self.classes - 1),
            ignored=self.loss.ignore_index,
        )

    def mean(self, graph: Graph, prediction: str, targets: str) -> Mean:
        chosen = graph.op("GatherElements", self._log(graph, prediction), self._column(graph, targets), axis=self.axis)
        smoothing = self._smoothing
        if self._plain and not smoothing:
            return graph.op("Neg", graph.op("ReduceMean", chosen, keepdims=0)), count(graph, targets)
        weight = self._weights(graph, targets)
        sum_of_weights = total(graph, weight) if weight else count(graph, targets)
        fit = total(
            graph, graph.op("Mul", chosen, graph.op("Unsqueeze", weight, self._axes(graph))) if weight else chosen
        )
        if smoothing:
            spread = self._log(graph, prediction)
            if self.loss.class_weights is not None:
                spread = graph.op("Mul", spread, self._class_weights(graph))
            if self.loss.ignore_index is not None:
                spread = graph.op("Mul", spread, graph.op("Unsqueeze", self._valid(graph, targets), self._axes(graph)))
            part = graph.op("Mul", total(graph, spread), graph.scalar(smoothing / self.classes))
            fit = graph.op("Add", graph.op("Mul", fit, graph.scalar(1.0 - smoothing)), part)
        return graph.op("Div", graph.op("Neg", fit), positive(graph, sum_of_weights)), sum_of_weights

    def origin(self, graph: Graph, prediction: str, targets: str, scale: str) -> tuple[str, str]:
        """With d[c] the weight of class c in the target, the slope is p sum(d) - d, or -d for log-probabilities."""
        depth, off_on = graph.constant(np.array(self.classes)), graph.constant(np.array([0.0, 1.0], np.float32))
        wanted = graph.op("OneHot", self._safe(graph, targets), depth, off_on, axis=self.axis)
        weight, smoothing, mass = self._weights(graph, targets), self._smoothing, ""
        if weight:
            mass = graph.op("Unsqueeze", weight, self._axes(graph))
            wanted = graph.op("Mul", wanted, mass)
        if smoothing:
            wanted, mass = self._smoothed(graph, targets, wanted, mass)
        if isinstance(self.loss, CrossEntropy):
            probability = graph.op("Exp", self._log(graph, prediction))
            wanted = graph.op("Sub", graph.op("Mul", probability, mass) if mass else probability, wanted)
        else:
            wanted = graph.op("Neg", wanted)
        divisor = positive(graph, total(graph, weight)) if weight else count(graph, targets)
        return prediction, graph.op("Mul", wanted, share(graph, divisor, scale))

    def metrics(self) -> dict[str, Callable[[Graph, str, str], Mean]]:
        metrics: dict[str, Callable[[Graph, str, str], Mean]] = {"accuracy": self._accuracy}
        if self.classes >= TOP_CLASSES_MIN:
            metrics["top5-accuracy"] = self._top_accuracy
        return metrics

    @property
    def _smoothing(self) -> float:
        return self.loss.label_smoothing if isinstance(self.loss, CrossEntropy) else 0.0

    @property
    def _plain(self) -> bool:
        """All targets weigh the same."""
        return self.loss.class_weights is None and self.loss.ignore_index is None

    def _smoothed(self, graph: Graph, targets: str, wanted: str, mass: str) -> tuple[str, str]:
        """The smoothed target times its weights, and the sum of that over the classes ('' for one)."""
        smoothing = self._smoothing
        keep, spread = graph.scalar(1.0 - smoothing), graph.scalar(smoothing / self.classes)
        wanted = graph.op("Mul", wanted, keep)
        if self._plain:
            return graph.op("Add", wanted, spread), ""
        sum_of_spread = graph.scalar(smoothing)
        if self.loss.class_weights is not None:
            spread = graph.op("Mul", self._class_weights(graph), spread)
            sum_of_spread = graph.scalar(smoothing / self.classes * float(sum(self.loss.class_weights)))
        if self.loss.ignore_index is not None:
            valid = graph.op("Unsqueeze", self._valid(graph, targets), self._axes(graph))
            spread, sum_of_spread = graph.op("Mul", valid, spread), graph.op("Mul", valid, sum_of_spread)
        return graph.op("Add", wanted, spread), graph.op("Add", graph.op("Mul", mass, keep), sum_of_spread)

    def _log(self, graph: Graph, prediction: str) -> str:
        return graph.op("LogSoftmax", prediction, axis=self.axis) if isinstance(self.loss, CrossEntropy) else prediction

    def _axes(self, graph: Graph) -> str:
        return graph.integers([self.axis])

    def _column(self, graph: Graph, targets: str) -> str:
        return graph.op("Unsqueeze", self._safe(graph, targets), self._axes(graph))

    def _kept(self, graph: Graph, targets: str) -> str:
        """bool: the target is not the ignored one."""
        assert self.loss.ignore_index is not None
        return graph.op("Not", graph.op("Equal", targets, graph.constant(np.array(self.loss.ignore_index, np.int64))))

    def _safe(self, graph: Graph, targets: str) -> str:
        """Class numbers, zero in place of an ignored one."""
        if self.loss.ignore_index is None:
            return targets
        return graph.op("Mul", targets, graph.op("Cast", self._kept(graph, targets), to=TensorProto.INT64))

    def _valid(self, graph: Graph, targets: str) -> str:
        return graph.op("Cast", self._kept(graph, targets), to=TensorProto.FLOAT)

    def _class_weights(self, graph: Graph) -> str:
        """Shaped so that they broadcast along the classes."""
        weights = np.array(self.loss.class_weights, np.float32)
        return graph.constant(weights.reshape(-1, *[1] * (len(self.shape) - 1 - self.axis)))

    def _weights(self, graph: Graph, targets: str) -> str:
        """What each target weighs; '' where all weigh one."""
        if self._plain:
            return ""
        if self.loss.class_weights is None:
            return self._valid(graph, targets)
        weights = graph.constant(np.array(self.loss.class_weights, np.float32))
        chosen = graph.op("Gather", weights, self._safe(graph, targets), axis=0)
        return chosen if self.loss.ignore_index is None else graph.op("Mul", chosen, self._valid(graph, targets))

    def _accuracy(self, graph: Graph, prediction: str, targets: str) -> Mean:
        return self._hits(
            graph, graph.op("Equal", graph.op("ArgMax", prediction, axis=self.axis, keepdims=0), targets), targets
        )

    def _top_accuracy(self, graph: Graph, prediction: str, targets: str) -> Mean:
        first = graph.fresh("TopK")
        best = [prediction, graph.integers([TOP])]
        graph.nodes.append(onnx.helper.make_node("TopK", best, [graph.fresh("TopK"), first], axis=self.axis))
        among = graph.op("Cast", graph.op("Equal", first, self._column(graph, targets)), to=TensorProto.FLOAT)
        hit = graph.op("ReduceMax", among, self._axes(graph), keepdims=0)
        return self._hits(graph, graph.op("Greater", hit, graph.scalar(0.0)), targets)

    def _hits(self, graph: Graph, correct: str, targets: str) -> Mean:
        hits = graph.op("Cast", correct, to=TensorProto.FLOAT)
        if self.loss.ignore_index is None:
            return graph.op("ReduceMean", hits, keepdims=0), count(graph, targets)
        valid = self._valid(graph, targets)
        counted = total(graph, valid)
        return graph.op("Div", total(graph, graph.op("Mul", hits, valid)), positive(graph, counted)), counted


class BinaryRule(NumbersRule):
    """Mean of softplus(z) - z t: the cross-entropy of sigmoid(z) without its overflow.

    With the weight w of positives: (1 - t) z + (1 + (w - 1) t) softplus(-z).
    """

    __slots__ = ()

    @property
    def cuts(self) -> frozenset[str]:
        return frozenset({"Sigmoid"})

    def targets(self) -> Targets:
        weight = self.loss.pos_weight
        last = self.sizes()[-1] if self.sizes() else 1
        if not isinstance(weight, int | float) and len(weight) != last:
            raise BlindsumError("training-request-invalid", f"{len(weight)} pos_weight for {last} outputs")
        return Targets(dtype="float32", shape=self.sizes(), low=0.0, high=1.0)

    def terms(self, graph: Graph, prediction: str, targets: str) -> str:
        if self._unweighted:
            return graph.op("Sub", graph.op("Softplus", prediction), graph.op("Mul", prediction, targets))
        negative = graph.op("Mul", graph.op("Sub", graph.scalar(1.0), targets), prediction)
        loss = graph.op("Softplus", graph.op("Neg", prediction))
        return graph.op("Add", negative, graph.op("Mul", self._factor(graph, targets), loss))

    def slope(self, graph: Graph, prediction: str, targets: str) -> str:
        if self._unweighted:
            return graph.op("Sub", graph.op("Sigmoid", prediction), targets)
        missed = graph.op("Sigmoid", graph.op("Neg", prediction))
        negative = graph.op("Sub", graph.scalar(1.0), targets)
        return graph.op("Sub", negative, graph.op("Mul", self._factor(graph, targets), missed))

    def metrics(self) -> dict[str, Callable[[Graph, str, str], Mean]]:
        return {"accuracy": _binary_accuracy}

    @property
    def _unweighted(self) -> bool:
        return self.loss.pos_weight in (1, 1.0)

    def _factor(self, graph: Graph, targets: str) -> str:
        weight = graph.constant(np.asarray(self.loss.pos_weight, np.float32) - np.float32(1.0))
        return graph.op("Add", graph.op("Mul", targets, weight), graph.scalar(1.0))


def _binary_accuracy(graph: Graph, prediction: str, targets: str) -> Mean:
    said = graph.op("Greater", prediction, graph.scalar(0.0))
    hits = graph.op("Equal", said, graph.op("Greater", targets, graph.scalar(0.5)))
    return graph.op("ReduceMean", graph.op("Cast", hits, to=TensorProto.FLOAT), keepdims=0), count(graph, prediction)
