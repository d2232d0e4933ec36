"""What to say where no gradient gets through: which node, what it blocks, and what can be trained without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from blindsum.protocol.errors import BlindsumError

from .registry import stops
from .source import title

LISTED_MAX = 200  # names in a list that is there to be copied
NAMED_MAX = 8  # names in a sentence


def refusal(
    nodes: Sequence[onnx.NodeProto], reasons: Mapping[int, str], parameters: Sequence[str], code: str
) -> BlindsumError:
    """The error for those of the forward `nodes` that `reasons` names by position, each with why it has no gradient."""
    blocked: set[str] = set()
    said: dict[str, list[str]] = {}
    for at, reason in reasons.items():
        mine = _before(nodes, at)
        own = [name for name in parameters if name in mine]
        blocked.update(own)
        said.setdefault(nodes[at].op_type, []).append(f"{reason}, which blocks {_some(own)}")
    parts = [texts[0] + _more(texts, "of its kind") for texts in said.values()]
    rest = [name for name in parameters if name not in blocked]
    way = (
        f"without it: trainable={rest[:LISTED_MAX]}{_more(rest, 'weights', LISTED_MAX)}"
        if rest
        else "nothing lies behind"
    )
    return BlindsumError(code, f"{'; '.join(parts)}; {way}")


def without_rule(node: onnx.NodeProto, opset: int) -> str:
    return f"{title(node)} has no gradient rule in operator set {opset}"


def _before(nodes: Sequence[onnx.NodeProto], at: int) -> set[str]:
    """All values on which the node at that position depends smoothly."""
    values = set(filter(None, nodes[at].input))
    for node in reversed(nodes[:at]):
        if values.intersection(node.output) and not stops(node):
            values.update(filter(None, node.input))
    return values


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED_MAX]) + _more(names, "", NAMED_MAX)


def _more(items: Sequence[str], what: str, shown: int = 1) -> str:
    return f" and {len(items) - shown} more {what}".rstrip() if len(items) > shown else ""
