"""Choose the weights to train, by name, by place or all."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from blindsum.protocol.errors import BlindsumError

from ..trainable import Adapters, Head, Trainable
from .source import MADE_UP, Source, invalid

STATISTICS = {"BatchNormalization": (3, 4)}
"""Operands that are running statistics, not weights."""

_SETTINGS = {
    **STATISTICS,
    "Clip": (1, 2),
    "ConvInteger": (0, 1, 2, 3),
    "DequantizeLinear": (1, 2),
    "Dropout": (1, 2),
    "MatMulInteger": (0, 1, 2, 3),
    "OneHot": (2,),
    "Pad": (2,),
    "QLinearConv": tuple(range(9)),
    "QLinearMatMul": tuple(range(8)),
    "QuantizeLinear": (1, 2),
    "Resize": (1, 2),
}
"""Operands that state a range, a scale or a fill value: trained only when they are named in full."""

_OF_FORMULAS = re.compile(r"[A-Z][a-z]_[A-Z]\w*cst\d*|negate|unity|num_classes")
_LAYERS = {"Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"}
_PASSING = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
LISTED_MAX = 40  # names in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Constants to train, in the model's order, and adapters to add. `by_default`: nobody named them."""

    names: tuple[str, ...]
    adapters: tuple[Adapters, ...] = ()
    by_default: bool = False


def select(source: Source, trainable: Trainable | Sequence[Trainable] | None) -> Selection:
    """Raises `BlindsumError` "training-request-invalid" where a pattern matches nothing, "training-model-invalid"."""
    candidates = weights(source)
    if trainable is None:
        return Selection(names=tuple(defaults(source)), by_default=True)
    wanted = [trainable] if isinstance(trainable, str | Head | Adapters) else list(trainable)
    chosen: set[str] = set()
    for item in wanted:
        if isinstance(item, Head) or item == "head":
            chosen.update(_head(source))
        elif isinstance(item, str):
            found = matching(source, item, candidates)
            if not found:
                raise BlindsumError(
                    "training-request-invalid", f"trainable {item!r} matches none of {_list(candidates)}"
                )
            chosen.update(found)
    adapters = tuple(item for item in wanted if isinstance(item, Adapters))
    if not chosen and not adapters:
        raise BlindsumError("training-request-invalid", "trainable is empty")
    names = tuple(name for name in candidates if name in chosen)
    for name in names:
        if not np.isfinite(source.constants[name]).all():
            raise invalid(f"{name!r} holds NaN or infinity and cannot be trained")
    return Selection(names=names, adapters=adapters)


def weights(source: Source) -> list[str]:
    """All float32 constants, those that the model stores as initialisers first."""
    return [name for name, array in source.constants.items() if array.dtype == np.float32 and array.size]


def defaults(source: Source) -> list[str]:
    """What is trained where nobody says what: the float32 initialisers of at least one dimension that are weights.

    A model that keeps all its weights in `Constant` nodes has none; there it is the constants of more than one element.
    """
    settings = set(_settings(source)) | set(_fillers(source))
    plain = [
        name
        for name in weights(source)
        if name not in settings and source.constants[name].ndim and np.isfinite(source.constants[name]).all()
    ]
    stored = set(source.weights)
    found = [name for name in plain if name in stored]
    return found or [name for name in plain if source.constants[name].size > 1]


def matching(source: Source, pattern: str, candidates: Iterable[str]) -> list[str]:
    """The candidates that `pattern` names: in full, or as a glob pattern of the weight or of a node that reads it.

    A glob pattern leaves out running statistics and scales.
    """
    names = list(candidates)
    if pattern in names:
        return [pattern]
    readers = users(source)
    settings = set(_settings(source))
    return [
        name
        for name in names
        if name not in settings
        and any(fnmatch.fnmatchcase(title, pattern) for title in (name, *(node.name for node in readers.get(name, ()))))
    ]


def users(source: Source) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each constant, seen through transpositions and the like."""
    found: dict[str, list[onnx.NodeProto]] = {}
    origin = {name: name for name in source.constants}
    for node in source.nodes:
        for name in node.input:
            if name in origin:
                found.setdefault(origin[name], []).append(node)
        if node.op_type in _PASSING and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
    return found


def _settings(source: Source) -> Iterator[str]:
    """Constants that are read in no other place than those of `_SETTINGS`."""
    uses: dict[str, list[bool]] = {}
    for node in source.nodes:
        places = _SETTINGS.get(node.op_type, ())
        for at, name in enumerate(node.input):
            if name in source.constants:
                uses.setdefault(name, []).append(at in places)
    return (name for name, marks in uses.items() if all(marks))


def _fillers(source: Source) -> Iterator[str]:
    """Numbers that exporters store beside the weights. PyTorch's newer one: single ones, and the ones and zeros of the
    InstanceNormalization into which it writes a GroupNorm. skl2onnx: ranges of scalers, and parts of formulas. tf2onnx:
    what keeps a deviation from zero."""
    guarded = _guarded(source)
    for node in source.nodes:
        if node.op_type == "Add" and node.output[0] in guarded:
            yield from (name for name in node.input if name in source.constants and source.constants[name].size == 1)
        for name in node.input:
            array = source.constants.get(name)
            if array is not None and _OF_FORMULAS.fullmatch(name):
                yield name
            elif array is not None and MADE_UP.fullmatch(name):
                plain = array.size == 1 or (node.op_type == "InstanceNormalization" and (array == array.flat[0]).all())
                if (array.ndim == 1 and plain) or (name in node.input[5:] and not array.any()):
                    yield name


def _guarded(source: Source) -> set[str]:
    """Values of which roots, logarithms and inverses are taken, and nothing else."""
    taken, others = set[str](), {source.output}
    for node in source.nodes:
        for at, name in enumerate(node.input):
            inverted = node.op_type in ("Log", "Reciprocal", "Sqrt") or (node.op_type, at) == ("Div", 1)
            (taken if inverted else others).add(name)
    return taken - others


def _head(source: Source) -> list[str]:
    candidates, settings = set(weights(source)), set(_settings(source))
    origin = {name: name for name in candidates - settings}
    for node in source.nodes:
        if node.op_type in _PASSING and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
    for node in reversed(source.nodes):
        own = [origin[name] for name in node.input if name in origin]
        if node.op_type not in _LAYERS or not any(source.constants[name].ndim > 1 for name in own):
            continue
        if len(own) == len([name for name in node.input if name]):  # a product of constants only
            continue
        after = [user for user in source.nodes if node.output[0] in user.input]
        if len(after) == 1 and after[0].op_type == "Add":
            own += [origin[name] for name in after[0].input if name in origin]
        return own
    raise BlindsumError("training-request-invalid", "no layer has float32 weights: there is no head to train")


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
    return ", ".join(names[:LISTED_MAX]) + more
