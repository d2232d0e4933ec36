"""Write out the one use of sequences that exporters make: `SplitToSequence` whose parts are taken by constant places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from .graph import attribute

Constants = Mapping[str, NDArray[np.generic]]


def lowered(nodes: Sequence[onnx.NodeProto], constants: dict[str, NDArray[np.generic]]) -> list[onnx.NodeProto]:
    """The nodes with each `SequenceAt` of a `SplitToSequence` as a Slice, its bounds added to `constants`.

    What is none of that stays as it is.
    """
    splits = {node.output[0]: node for node in nodes if node.op_type == "SplitToSequence"}
    kept: list[onnx.NodeProto] = []
    for node in nodes:
        split = splits.get(node.input[0]) if node.op_type == "SequenceAt" else None
        bounds = _bounds(split, constants.get(node.input[1]), constants) if split is not None else None
        if split is None or bounds is None:
            kept.append(node)
            continue
        output, axis = node.output[0], attribute(split, "axis", 0)
        names = [f"{output}.{part}" for part in ("start", "end", "axis")]
        constants.update((name, np.array([value])) for name, value in zip(names, (*bounds, axis), strict=True))
        if len(split.input) > 1 or attribute(split, "keepdims", 1):
            kept.append(helper.make_node("Slice", [split.input[0], *names], [output], name=node.name))
        else:
            kept.append(helper.make_node("Slice", [split.input[0], *names], [f"{output}.slice"], name=node.name))
            kept.append(helper.make_node("Squeeze", [f"{output}.slice", names[2]], [output]))
    read = {name for node in kept for name in node.input}
    return [node for node in kept if node.op_type != "SplitToSequence" or node.output[0] in read]


def _bounds(split: onnx.NodeProto, place: NDArray[np.generic] | None, constants: Constants) -> tuple[int, int] | None:
    """Where the part at `place` begins and ends, None where that is not constant."""
    if place is None or place.size != 1 or int(place.item()) < 0:
        return None
    at = int(place.item())
    if len(split.input) < 2:
        return at, at + 1
    sizes = constants.get(split.input[1])
    if sizes is None:
        return None
    if sizes.ndim == 0:
        return at * int(sizes.item()), (at + 1) * int(sizes.item())
    ends = list(accumulate(sizes.tolist()))
    return (ends[at] - int(sizes[at]), ends[at]) if at < len(ends) else None
