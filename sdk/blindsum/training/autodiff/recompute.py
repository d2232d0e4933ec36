"""Recomputation: forward results that the backward pass reads are computed again there instead of being kept till then.

What is kept is chosen for a budget in bytes per example. First go results that cost no more than a pass over memory
(activation functions, normalisations, softmax). Where that is not enough the model is cut at its narrow places, only
what crosses the cuts is kept, and each segment runs again when the gradient has come back to it (Chen et al., arXiv
1604.06174).

onnxruntime runs nodes in an order of its own and merges equal ones. What must not run before the gradient arrives
therefore reads its kept inputs through a barrier: a Reshape to the shape that they have already, whose target is
computed from the size of that gradient. Reshape copies nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate

import onnx

from blindsum.protocol.errors import BlindsumError

from ..manifest import AGAIN
from .graph import Graph, reads

SEGMENTS_MAX = 64
GROUPS = (1, 2, 4)  # how much is computed again at once, in sizes of the largest result, where only cheap ones go
ITEM_SIZE = 4  # bytes of an element: few forward results are of another type

# fmt: off
CHEAP = frozenset({
    "Abs", "Add", "BatchNormalization", "Cast", "Celu", "Clip", "Concat", "Div", "Elu", "Equal", "Erf", "Exp", "Gelu",
    "Greater", "GreaterOrEqual", "GroupNormalization", "HardSigmoid", "HardSwish", "InstanceNormalization",
    "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "Max", "Min", "Mish", "Mul", "Neg",
    "PRelu", "Pow", "RMSNormalization", "Reciprocal", "Relu", "Selu", "Sigmoid", "Slice", "Softmax", "Softplus",
    "Softsign", "Split", "Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu", "Transpose", "Where",
})
VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
# fmt: on


@dataclass(frozen=True, slots=True)
class Visit:
    """A forward node as the backward pass came by: a gradient that arrived, and the nodes that its rule emitted."""

    dy: str
    emitted: range  # positions in the graph's nodes


def recompute(graph: Graph, tape: Sequence[Visit], gradients: Iterable[str], budget: int) -> None:
    """Rewrite the backward pass so that it holds at most `budget` bytes per example of forward results.

    `tape`: the visits in the order in which they happened; the graph ends with what they emitted. Counted are the
    results that are kept and the largest group that is computed again at once, not what operators need while they run.
    Raises "training-request-invalid" where no choice fits, with the least that would.
    """
    forward = _Forward(graph, tape, gradients)
    least = math.inf
    for kept in forward.plans(budget):
        held = forward.held(kept)
        if held <= budget:
            forward.rewrite(kept)
            return
        least = min(least, held)
    detail = f"recompute={budget}: training needs at least {least:.0f} bytes of forward results per example"
    raise BlindsumError("training-request-invalid", detail)


class _Forward:
    """The forward pass, with who reads its results behind.

    A plan is the set of results that are kept. Views (Reshape and the like) share the memory of what they show, so a
    plan names that instead.
    """

    def __init__(self, graph: Graph, tape: Sequence[Visit], gradients: Iterable[str]) -> None:
        self._graph, self._tape = graph, tape
        self._behind = min((visit.emitted.start for visit in tape), default=len(graph.nodes))
        self._nodes = graph.nodes[: self._behind]
        self._made_at = {name: at for at, node in enumerate(self._nodes) for name in node.output if name}
        self._readers: dict[str, list[int]] = {}  # result -> the visits whose rules read it
        live = _live(graph.nodes, gradients)
        for number, visit in enumerate(tape):
            for name in (name for at in visit.emitted if at in live for name in graph.nodes[at].input):
                if name in self._made_at and self._size(name):
                    self._readers.setdefault(name, []).append(number)

    def plans(self, budget: int) -> Iterator[frozenset[str]]:
        """The quickest first."""
        whole = frozenset(map(self._shown, self._readers))
        yield whole
        for results in GROUPS:
            yield self._without_cheap(whole, results * max(map(self._size, whole), default=0), budget)
        weights = self._weights(whole)
        for parts in range(2, SEGMENTS_MAX + 1):
            yield self._segmented(weights, sum(weights) / parts)

    def held(self, kept: Set[str]) -> int:
        """Bytes per example."""
        alive = {self._shown(name) for name in self._readers if self._available(name, kept)}
        alive.update(self._shown(name) for group in self._groups(kept) for name in self._taken(group, kept))
        return sum(self._size(name) for name in alive if name in self._made_at) + self._again(kept)

    def _again(self, kept: Set[str]) -> int:
        """Bytes per example that the largest group fills."""
        return max(
            (
                sum(
                    self._size(name)
                    for name in self._results(group)
                    if name in self._readers and not self._is_view(name)
                )
                for group in self._groups(kept)
            ),
            default=0,
        )

    def rewrite(self, kept: Set[str]) -> None:
        inserted: dict[int, list[onnx.NodeProto]] = {}
        renamed: dict[str, str] = {}
        end = len(self._graph.nodes)
        for group in self._groups(kept):
            first = min(number for name in self._results(group) for number in self._readers.get(name, ()))
            names = self._barriers(self._tape[first].dy, self._taken(group, kept))
            for at in sorted(group):
                node = onnx.NodeProto()
                node.CopyFrom(self._nodes[at])
                node.ClearField("name")  # onnxruntime wants each name once
                outputs = {name: self._graph.fresh(AGAIN) for name in node.output if name}
                shapes = self._graph.shapes
                shapes.update((new, shapes[name]) for name, new in outputs.items() if name in shapes)
                node.input[:] = [names.get(name, name) for name in node.input]
                node.output[:] = [outputs.get(name, "") for name in node.output]
                names |= outputs
                self._graph.nodes.append(node)
            renamed |= {name: names[name] for name in self._results(group) if not self._available(name, kept)}
            inserted.setdefault(self._tape[first].emitted.start, []).extend(self._graph.nodes[end:])
            del self._graph.nodes[end:]
        nodes = []
        for at, node in enumerate(self._graph.nodes):
            if at >= self._behind:
                node.input[:] = [renamed.get(name, name) for name in node.input]
            nodes += [*inserted.get(at, ()), node]
        self._graph.nodes = nodes

    def _barriers(self, dy: str, values: Iterable[str]) -> dict[str, str]:
        """`values` under names that exist only once the gradient `dy` does."""
        graph = self._graph
        nothing = graph.op("Mul", graph.op("Size", dy), graph.integers([0]), output=graph.fresh("nothing"))
        passed = {}
        for name in values:
            static = [size if isinstance(size, int) else -1 for size in graph.shape(name)]
            target = graph.op("Add", graph.integers(static), nothing, output=graph.fresh("shape"))
            passed[name] = graph.op("Reshape", name, target, output=graph.fresh("kept"))
            graph.shapes[passed[name]] = graph.shape(name)
        return passed

    def _without_cheap(self, kept: frozenset[str], group_max: int, budget: int) -> frozenset[str]:
        """Drop what is cheap to compute again, the largest first, till the budget is met.

        No group may take more than `group_max` bytes.
        """
        cheap = [name for name in kept if name in self._made_at and self._maker(name).op_type in CHEAP]
        for name in sorted(cheap, key=lambda name: (-self._size(name), -self._made_at[name])):
            trial = self._completed(kept - {name})
            if sum(map(self._size, trial)) < sum(map(self._size, kept)) and self._again(trial) <= group_max:
                kept = trial
                if self.held(kept) <= budget:
                    break
        return kept

    def _completed(self, kept: frozenset[str]) -> frozenset[str]:
        """`kept` and the results of costly nodes from which everything else follows."""
        added = set(kept)
        stack = list(self._readers)
        seen = set()
        while stack:
            name = stack.pop()
            if name in seen or self._available(name, added):
                continue
            seen.add(name)
            for source in self._maker(name).input:
                if not self._available(source, added):
                    if self._maker(source).op_type in CHEAP | VIEWS:
                        stack.append(source)
                    else:
                        added.add(self._shown(source))
        return frozenset(added)

    def _weights(self, kept: Iterable[str]) -> list[int]:
        """Bytes per example of the results in `kept` that each forward node makes."""
        weights = [0] * len(self._nodes)
        for name in kept:
            if name in self._made_at:
                weights[self._made_at[name]] += self._size(name)
        return weights

    def _segmented(self, weights: list[int], weight_max: float) -> frozenset[str]:
        """Cut into segments of at most `weight_max`; keep what crosses the cuts, and the last segment whole."""
        before = [0, *accumulate(weights)]
        cut, kept = 0, set()
        while before[-1] - before[cut] > weight_max:
            near = [at for at in range(cut + 1, len(before)) if before[at] - before[cut] <= weight_max]
            far = [at for at in near if before[at] - before[cut] >= weight_max / 2] or near or [cut + 1]
            crossings = {at: self._crossing(at) for at in far}
            cut = min(far, key=lambda at: (sum(map(self._size, crossings[at])), -at))
            kept |= crossings[cut]
        kept.update(self._shown(name) for name in self._readers if self._made_at[name] >= cut)
        return frozenset(kept)

    def _crossing(self, cut: int) -> set[str]:
        """What nodes from position `cut` on read of those before it."""
        read = {name for node in self._nodes[cut:] for name in node.input}
        return {self._shown(name) for name in read if self._made_at.get(name, cut) < cut and self._size(name)}

    def _groups(self, kept: Set[str]) -> list[set[int]]:
        """Positions of the nodes to run again, those together that pass results to each other."""
        again: set[int] = set()
        stack = [name for name in self._readers if not self._available(name, kept)]
        while stack:
            at = self._made_at[stack.pop()]
            if at not in again:
                again.add(at)
                stack += [name for name in self._nodes[at].input if not self._available(name, kept)]
        group_of: dict[int, set[int]] = {}
        for at in sorted(again):
            group = {at}
            for name in self._nodes[at].input:
                if not self._available(name, kept):
                    group |= group_of[self._made_at[name]]
            group_of.update(dict.fromkeys(group, group))
        return [group for at, group in group_of.items() if at == min(group)]

    def _taken(self, group: Iterable[int], kept: Set[str]) -> list[str]:
        """The results and features that a group starts from."""
        read = {name for at in group for name in self._nodes[at].input}
        return sorted(name for name in read if self._available(name, kept) and self._size(name))

    def _results(self, group: Iterable[int]) -> list[str]:
        return [name for at in sorted(group) for name in self._nodes[at].output if name]

    def _available(self, name: str, kept: Set[str]) -> bool:
        """True for what is there anyway: weights, features, shapes; and for what is kept."""
        return name not in self._made_at or not self._size(name) or self._shown(name) in kept

    def _size(self, name: str) -> int:
        """Bytes per example; 0 for what does not grow with the batch alone."""
        shape = self._graph.shapes.get(name, ())
        rest = [size for size in shape if isinstance(size, int)]
        if len(rest) != len(shape) - 1 or name in self._graph.constants:
            return 0
        return ITEM_SIZE * math.prod(rest)

    def _maker(self, name: str) -> onnx.NodeProto:
        return self._nodes[self._made_at[name]]

    def _is_view(self, name: str) -> bool:
        return self._maker(name).op_type in VIEWS

    def _shown(self, name: str) -> str:
        """What a view shows; `name` itself where it is none."""
        while name in self._made_at and self._is_view(name):
            name = self._maker(name).input[0]
        return name


def _live(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> set[int]:
    """Positions of the nodes that `outputs` depend on."""
    needed, live = set(outputs), set()
    for at in range(len(nodes) - 1, -1, -1):
        if needed.intersection(nodes[at].output):
            live.add(at)
            needed.update(reads(nodes[at]))
    return live
