"""Check that the graphs of an artifact are what a device may run, before onnxruntime sees them.

Bounded here: nodes, names, types, shapes, and the size of every value for a small batch; `budget` bounds memory and
work for the batches that come.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Set

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

from .extent import Value, constant, extent_of
from .manifest import ELEMENTS_MAX, Manifest
from .operators import LOOPS, OPERATORS
from .optimisers import RANGES, in_range
from .protobuf import Graph, Model, Node, read_model

ROWS = 2  # for which shapes are checked: not every model takes a single row
IR_VERSION = 10  # the newest that onnxruntime 1.19 loads
STATES_PER_PARAMETER_MAX = 2

Constants = Mapping[str, NDArray[np.generic]]


def check_manifest(manifest: Manifest, constants: Constants) -> None:
    """What types alone do not say.

    Raises `BlindsumError` "training-artifact-malformed" or "training-artifact-too-large".
    """
    named = [*(weight.name for weight in (*manifest.parameters, *manifest.states)), *constants]
    if len(set(named)) != len(named):
        raise _malformed("two tensors of one name")
    if any(item.dtype != "float32" for item in (*manifest.parameters, *manifest.states, *manifest.noise)):
        raise _malformed("a parameter, state or noise that is not float32")
    names = [weight.name for weight in manifest.parameters]
    if list(manifest.personal) != [name for name in names if name in manifest.personal] or names == list(
        manifest.personal
    ):
        raise _malformed("personal parameters that are none, out of order, or all")
    if manifest.metrics[:1] != ("loss",):
        raise _malformed("metrics do not begin with the loss")
    limits = [limit for limit in (manifest.targets.low, manifest.targets.high) if limit is not None]
    if len(limits) == 1 or not all(map(math.isfinite, limits)) or limits != sorted(limits):
        raise _malformed("targets without a range")
    if not all(name in RANGES and in_range(name, value) for name, value in manifest.hyperparameters.items()):
        raise _malformed("a hyperparameter that is unknown or out of range")
    kept = sum(math.prod(weight.shape) for weight in manifest.states)
    if kept > STATES_PER_PARAMETER_MAX * manifest.size + 1:
        raise BlindsumError("training-artifact-too-large", f"{kept} numbers kept for {manifest.size} parameters")
    batches = (*manifest.features, manifest.targets, manifest.prediction)
    for shape in (*(item.shape for item in batches), *(item.shape for item in manifest.noise)):
        if math.prod(shape) > ELEMENTS_MAX:
            raise BlindsumError("training-artifact-too-large", f"an example of shape {shape}")


def check_graphs(manifest: Manifest, graphs: Mapping[str, bytes], constants: Constants) -> None:
    """Check that `graphs`, by name, have the interface that `manifest` states and hold nothing else than a device runs.

    Raises `BlindsumError` "training-artifact-malformed", "training-artifact-too-large", "training-operator-forbidden"
    or "training-external-data".
    """
    interfaces = manifest.interfaces()
    if any(graphs[name] for name in graphs if name not in interfaces):
        raise _malformed("a graph that the manifest does not ask for")
    models = {name: read_model(graphs[name]) for name in interfaces}
    for label, model in models.items():
        if model.ir_version != IR_VERSION or model.opsets != (("", manifest.opset),):
            raise _malformed(f"{label} graph: IR version {model.ir_version} and operator sets {model.opsets}")
        if (list(model.inputs), list(model.outputs)) != interfaces[label]:
            raise _malformed(f"{label} graph: inputs or outputs are not those of the manifest")
        given = constants_of(manifest, label, constants)
        _check_nodes(label, model, set(given))
        extent_of(model, given, ROWS, label)
    read = {name for model in models.values() for node in model.every_node() for name in node.inputs}
    if unread := constants.keys() - read:
        raise _malformed(f"{len(unread)} constants that no graph reads, {min(unread)!r} among them")
    if Counter(node.operator for node in models["train"].every_node()) != manifest.operators:
        raise _malformed("the operator histogram is not that of the train graph")


def constants_of(manifest: Manifest, label: str, constants: Constants) -> dict[str, Value]:
    """What a graph may read beside its inputs. The parameters are constants where they do not change in a run."""
    values = {name: constant(array) for name, array in constants.items()}
    if label in ("evaluate", "predict"):
        values |= {weight.name: Value(weight.dtype, weight.shape) for weight in manifest.parameters}
    return values


def _check_nodes(label: str, model: Model, initialisers: set[str]) -> None:
    """Operators allowed; every value written once, and before it is read."""
    given = {tensor.name for tensor in model.inputs}
    if len(given) != len(model.inputs) or given & initialisers:
        raise _malformed(f"{label} graph: two inputs or constants of one name")
    known = given | initialisers
    taken = set(known)  # names of bodies too, which are known only there
    for node in model.nodes:
        _check_reads(label, node, known)
        if node.body is not None:
            _check_body(label, node, node.body, known, taken)
        known.update(_written(label, node, taken))
    if any(tensor.name not in known for tensor in model.outputs):
        raise _malformed(f"{label} graph: an output is never computed")


def _check_body(label: str, node: Node, body: Graph, known: set[str], taken: set[str]) -> None:
    """A body reads its inputs and what is known outside, and computes every one of its outputs itself.

    A Scan runs once for each row of its inputs, so it ends.
    """
    where = f"{label} graph: the body of {node.operator}"
    if len(body.inputs) != len(node.inputs) or len(body.outputs) != len(node.outputs) or not all(node.inputs):
        raise _malformed(f"{where} has other inputs or outputs than the node")
    inside = {tensor.name for tensor in body.inputs}
    if len(inside) != len(body.inputs) or inside & taken or "" in inside:
        raise _malformed(f"{where} names an input as something else is named")
    taken |= inside
    made: set[str] = set()
    for inner in body.nodes:
        _check_reads(label, inner, known, inside, made)
        made.update(_written(label, inner, taken))
    outputs = {tensor.name for tensor in body.outputs}
    if len(outputs) != len(body.outputs) or not outputs <= made:
        raise _malformed(f"{where} has an output that it does not compute, or one twice")


def _check_reads(label: str, node: Node, *known: Set[str]) -> None:
    if node.domain or node.operator not in (OPERATORS if node.body is None else LOOPS):
        operator = f"{node.domain or 'ai.onnx'}.{node.operator}"
        raise BlindsumError("training-operator-forbidden", f"{label} graph: {operator}")
    if any(name and not any(name in names for names in known) for name in node.inputs):
        raise _malformed(f"{label} graph: {node.operator} reads a value that does not exist yet")


def _written(label: str, node: Node, taken: set[str]) -> list[str]:
    """The names that the node gives, each new."""
    names = [name for name in node.outputs if name]
    if len(set(names)) != len(names) or not taken.isdisjoint(names):
        raise _malformed(f"{label} graph: {node.operator} writes a value again")
    taken.update(names)
    return names


def _malformed(reason: str) -> BlindsumError:
    return BlindsumError("training-artifact-malformed", reason)
