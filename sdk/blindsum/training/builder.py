"""Turn an ONNX model into a training artifact (author side; needs the `onnx` package)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from blindsum.protocol.errors import BlindsumError

from .artifact import GRAPHS, Artifact, decode, encode
from .autodiff import Graph, batchnorm, differentiate, kernels, update
from .autodiff.adapters import DOWN, UP, adapted
from .autodiff.batchnorm import Statistic
from .autodiff.graph import Shape, attribute, every_node, reads
from .autodiff.loss import LossRule, rule_of
from .autodiff.planar import as_images
from .autodiff.prepare import prepare
from .autodiff.reverse import reached
from .autodiff.rewrite import rewrite
from .autodiff.select import select
from .autodiff.separable import separable
from .autodiff.simplify import simplify
from .autodiff.source import read_source
from .losses import Loss, as_loss
from .manifest import LOSS, PREDICTION, TARGETS, WEIGHT, Batch, Input, Manifest, Weight, feature, gradient
from .manifest import noise as drops
from .optimisers import Gradient, Optimiser, as_optimiser
from .protobuf import Tensor
from .trainable import Trainable
from .verify import IR_VERSION


def build_artifact(
    model: onnx.ModelProto | bytes | str | os.PathLike[str],
    *,
    loss: str | Loss,
    trainable: Trainable | Sequence[Trainable] | None = None,
    optimizer: str | Optimiser | Gradient = "sgd",
    output: str | None = None,
    dimensions: Mapping[str, int] | None = None,
    fixed: Mapping[str, ArrayLike] | None = None,
    recompute: int | None = None,
    batch_norm: str = "frozen",
    dropout: bool = False,
    personal: Sequence[str] = (),
) -> bytes:
    """Build the artifact from which devices train `model`; the same arguments always give the same bytes.

    `model`: inputs and output of shape (batch, ...), standard operators; a ModelProto, its bytes or a path.
    `loss`: one of `losses` or its name: "cross-entropy" of softmax(output), with int64 class numbers as targets;
    "negative-log-likelihood"; "binary-cross-entropy" of sigmoid(output), with targets in [0, 1]; "mse", "mae", "huber",
    "cosine", "contrastive"; or a `CustomLoss`. A final Softmax or Sigmoid that the loss holds itself is cut for
    training (but not for `predict`).
    `trainable`: "head" (the last layer with weights), `Adapters(...)`, names or glob patterns of weights or of the nodes
    that read them, or a list of such. None: all float32 initialisers of at least one dimension that the loss depends on
    smoothly, but for the running statistics of normalisations; scalars and `Constant` nodes must be named, as exporters
    also put fixed numbers there (a model without any such initialiser trains its `Constant` nodes of several elements).
    `optimizer`: "sgd", "adam", `SGD(...)`, `Adam(...)`, or "gradient" (the step returns the gradient and updates
    nothing).
    `output`: which of the model's outputs the loss takes; the others are left out. None: the only one.
    `dimensions`: sizes for the symbolic dimensions of the inputs, but for the batch; one without a name goes by
    "INPUT.AXIS".
    `fixed`: inputs that are no features but constants, such as a sampling rate.
    `recompute`: the most bytes per example of forward results that a step may hold for the backward pass; what does not
    fit is computed again there, which takes time and changes no result. None: all are kept.
    `batch_norm`: "frozen" normalises by the running statistics, which stay as they are; "train" normalises by those of
    the batch and moves the running ones, which are then parameters: federated averaging averages them with the rest.
    (With optimizer="gradient" they are none and stay.)
    `personal`: names or glob patterns of trained parameters that stay on each device: a federated update holds the others.
    `dropout`: the model's Dropout nodes drop while it trains, whatever mode it was exported in; else they never do. (Most
    exporters leave them out unless told to export the training mode.)

    Raises `BlindsumError` "training-request-invalid", "training-model-invalid", "training-external-data",
    "training-artifact-too-large", "training-operator-forbidden" or "training-operator-unsupported", which names the
    nodes, the parameters they block, and the rest that could be trained.
    """
    optimiser = as_optimiser(optimizer)
    loss, source = as_loss(loss), read_source(model, output, fixed)
    selection = select(source, trainable)
    source, merged, adapters = adapted(source, selection.adapters)
    wanted = [*selection.names, *(name + part for name in (one.name for one in adapters) for part in (DOWN, UP))]
    moving = batchnorm.statistics(source, batch_norm)
    kept = [*wanted, *(item.name for item in moving)]
    prepared = prepare(source, kept, dimensions or {}, drops=dropout)
    if dropout and not prepared.noise:
        raise BlindsumError(
            "training-request-invalid", "dropout: nothing before the output drops; export the training mode"
        )
    noise = prepared.noise
    rule = rule_of(loss, prepared.graph.shape(prepared.output), prepared.graph.opset)
    logits = _before_cut(prepared.graph, prepared.output, rule)
    targets = rule.targets()

    train = prepared.graph.copy()
    train.prune([logits])
    batches = [feature(item.name) for item in prepared.features] + [drops(item.name) for item in noise]
    apart = rule.separable and not moving and separable(train, logits, batches)
    initial = source.constants
    moving = tuple(item for item in moving if item.name in train.constants)
    wanted = [name for name in wanted if name in train.constants or not selection.by_default]
    trained, slopes = _complete(train, logits, wanted, rule, optimiser, recompute, moving)
    missed = [name for name in wanted if name not in trained]
    if missed and not selection.by_default:
        raise BlindsumError("training-request-invalid", f"the loss does not depend smoothly on {', '.join(missed)}")
    if isinstance(optimiser, Gradient):
        moving = ()
    parameters = [name for name in initial if name in {*trained, *(item.name for item in moving)}]
    if adapters or noise:
        prepared = prepare(merged, kept, dimensions or {}, beside=prepared.graph)
        logits = _before_cut(prepared.graph, prepared.output, rule)
    batchnorm.guard(prepared.graph, moving)
    evaluate = prepared.graph.copy()
    evaluate.prune([logits])
    as_images(evaluate, (), logits)
    metrics = {"loss": rule.mean, **rule.metrics()}
    for name, metric in metrics.items():
        pair = [evaluate.op("Reshape", part, evaluate.integers([1])) for part in metric(evaluate, logits, TARGETS)]
        evaluate.op("Concat", *pair, axis=0, output=f"@{name}")
    predict = prepared.graph.copy()
    predict.rename(prepared.output, PREDICTION)
    as_images(predict, (), PREDICTION)
    for graph in (train, slopes, evaluate, predict):
        kernels.write_out(graph)

    own = tuple(name for name in parameters if any(fnmatchcase(name, pattern) for pattern in personal))
    unmatched = [pattern for pattern in personal if not any(fnmatchcase(name, pattern) for name in parameters)]
    if unmatched or (own and len(own) == len(parameters)):
        raise BlindsumError(
            "training-request-invalid",
            f"personal: {', '.join(unmatched) or 'all'}; the trained parameters are {', '.join(parameters)}, one must be shared",
        )

    manifest = Manifest(
        loss=loss.name,  # type: ignore[arg-type]
        metrics=tuple(metrics),
        optimiser=optimiser.name,  # type: ignore[arg-type]
        control=isinstance(optimiser, Optimiser) and optimiser.control,
        hyperparameters=optimiser.hyperparameters,
        features=tuple(Input(name=i.name, dtype=i.dtype, shape=_static(i.shape)) for i in prepared.features),  # type: ignore[arg-type]
        targets=targets,
        prediction=Batch(dtype="float32", shape=_static(prepared.graph.shape(prepared.output)[1:])),
        parameters=tuple(Weight(name=name, shape=initial[name].shape) for name in parameters),
        states=tuple(update.states(optimiser, {name: initial[name].shape for name in trained})),
        opset=prepared.graph.opset,
        source=source.digest,
        adapters=adapters,
        noise=noise,
        personal=own,
        separable=apart,
        operators=dict(sorted(Counter(node.op_type for node in every_node(train.nodes)).items())),
    )
    graphs = {"train": train, "evaluate": evaluate, "predict": predict, "gradient": slopes}
    if isinstance(optimiser, Optimiser):
        graphs["update"] = _update(prepared.graph, optimiser, trained, moving)
    interfaces = manifest.interfaces()
    data = encode(
        Artifact(
            manifest=manifest,
            parameters=np.concatenate([initial[name].ravel() for name in parameters]).astype(np.float32),
            constants=_shared_constants((graphs[name] for name in interfaces), parameters),
            **{name: _serialise(graphs[name], *interfaces[name]) if name in interfaces else b"" for name in GRAPHS},
        )
    )
    decode(data)  # what a device would refuse is refused here first
    return data


def _before_cut(graph: Graph, output: str, rule: LossRule) -> str:
    """The value that the loss takes: the input of the final activation, where the loss holds that activation itself."""
    producers = {name: node for node in graph.nodes for name in node.output}
    value = output
    while value in producers and producers[value].op_type == "Identity":
        value = producers[value].input[0]
    node = producers.get(value)
    if node is None:
        return value
    inner = producers.get(node.input[0])
    if node.op_type == "Reshape" and inner is not None and inner.op_type in rule.cuts:
        # Softmax before operator set 13 flattened its input, and onnx's converter writes that out.
        flat = producers.get(inner.input[0])
        if flat is not None and flat.op_type == "Flatten" and graph.shape(flat.input[0])[1:] == rule.shape[1:]:
            return flat.input[0] if attribute(flat, "axis", 1) == rule.axis == len(rule.shape) - 1 else value
    if node.op_type in rule.cuts and attribute(node, "axis", -1) in (rule.axis, rule.axis - len(rule.shape)):
        return str(node.input[0])
    return value


def _complete(
    train: Graph,
    logits: str,
    wanted: list[str],
    rule: LossRule,
    optimiser: Optimiser | Gradient,
    held_max: int | None,
    moving: Sequence[Statistic],
) -> tuple[list[str], Graph]:
    """Add loss, gradients and update to the train graph.

    Returns the trained parameters in flat order and the graph that ends with their gradients. Parameters on which the
    loss does not depend smoothly are not among them.
    """
    rewrite(train, logits, wanted)
    as_images(train, reached(train, wanted), logits)
    statistics = batchnorm.train(train) if moving else {}
    loss, weight = rule.mean(train, logits, TARGETS)
    rate = update.folded_rate(optimiser)
    origin, seed = rule.origin(train, logits, TARGETS, rate)
    gradients = differentiate(train, origin, seed, wanted, held_max=held_max)
    if not gradients:
        raise BlindsumError("training-model-invalid", "the loss depends smoothly on none of the weights to train")
    simplify(train, [loss, weight, *gradients.values()])
    only_gradient = train.copy()
    if rate:
        only_gradient.rename(rate, only_gradient.scalar(1.0))
    outputs = update.append(only_gradient, Gradient(), gradients)
    outputs += batchnorm.give(only_gradient, statistics)
    _finish(only_gradient, {loss: LOSS, weight: WEIGHT}, outputs, [*gradients, *statistics])
    outputs = update.append(train, optimiser, gradients, rate)
    inputs = list(gradients)
    if isinstance(optimiser, Optimiser):
        outputs += batchnorm.move(train, moving, statistics)
        inputs += statistics
    _finish(train, {loss: LOSS, weight: WEIGHT}, outputs, inputs)
    return list(gradients), only_gradient


def _finish(graph: Graph, names: Mapping[str, str], outputs: Sequence[str], parameters: Iterable[str]) -> None:
    for old, new in names.items():
        graph.rename(old, new)
    graph.prune([*names.values(), *outputs])
    for name in parameters:
        graph.constants.pop(name, None)  # a parameter is an input of this graph


def _update(prepared: Graph, optimiser: Optimiser, trained: Sequence[str], moving: Sequence[Statistic]) -> Graph:
    """The graph that updates the parameters with gradients that are given."""
    graph = prepared.copy()
    graph.nodes.clear()
    outputs = update.append(graph, optimiser, {name: gradient(name) for name in trained})
    outputs += batchnorm.move(graph, moving, {item.name: gradient(item.name) for item in moving})
    _finish(graph, {}, outputs, [*trained, *(item.name for item in moving)])
    return graph


def _shared_constants(graphs: Iterable[Graph], parameters: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """What the graphs read beside the parameters and their inputs."""
    constants: dict[str, NDArray[np.generic]] = {}
    for graph in graphs:
        read = {name for node in graph.nodes for name in reads(node)}.difference(parameters)
        constants.update((name, array) for name, array in graph.constants.items() if name in read)
    return constants


def _serialise(graph: Graph, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bytes:
    body = onnx.helper.make_graph([_plain(node) for node in graph.nodes], "blindsum", _infos(inputs), _infos(outputs))
    model = onnx.helper.make_model(
        body, opset_imports=[onnx.helper.make_opsetid("", graph.opset)], ir_version=IR_VERSION
    )
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _infos(tensors: Sequence[Tensor]) -> list[onnx.ValueInfoProto]:
    return [
        onnx.helper.make_tensor_value_info(
            item.name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(item.dtype)), item.shape
        )
        for item in tensors
    ]


def _plain(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node as devices read it: no documentation, no metadata, attributes sorted, their tensors as raw data."""
    plain = onnx.NodeProto(op_type=node.op_type, name=node.name, input=node.input, output=node.output)
    for item in sorted(node.attribute, key=lambda item: item.name):
        value = onnx.helper.get_attribute_value(item)
        if isinstance(value, onnx.TensorProto):
            value = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(value))
        plain.attribute.append(onnx.helper.make_attribute(item.name, value, attr_type=item.type))
    return plain


def _static(shape: Shape) -> tuple[int, ...]:
    sizes = tuple(size for size in shape if isinstance(size, int))
    assert len(sizes) == len(shape)
    return sizes
